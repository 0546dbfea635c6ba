"""Pair tables for tests of the ranking report: rows of nats in eighths, so that sums and differences are exact."""

import numpy as np
import pandas as pd

from alignscope import PairScores, ranking_report
from alignscope.diagnose.ranking_report import RankingReport

BASE = -64.0  # log-probability of a rejected completion, nats


def frame(margin, reference=None, **more) -> pd.DataFrame:
    """A row a margin log pi(chosen) - log pi(rejected); reference: the same of the reference, at the same rejected."""
    margin = np.asarray(margin, dtype=float)
    columns = {"policy_chosen": BASE + margin, "policy_rejected": np.full(len(margin), BASE)}
    if reference is not None:
        columns |= {"reference_chosen": BASE + np.asarray(reference), "reference_rejected": np.full(len(margin), BASE)}
    return pd.DataFrame(columns | more, index=range(len(margin)))


def report(table: pd.DataFrame, **settings) -> RankingReport:
    """The report on a table, with few bootstrap draws."""
    return ranking_report(PairScores.from_frame(table), **({"bootstrap": 100} | settings))


def mixed(n: int = 120, seed: int = 0) -> pd.DataFrame:
    """All that a table can hold: ties of every kind, human ties, votes, lengths, explicit scores, prompts of 1 to 4."""
    rng = np.random.default_rng(seed)
    sides = {
        f"{role}_{side}": rng.integers(-800, -720, n) / 8.0
        for role in ("policy", "reference", "explicit")
        for side in ("chosen", "rejected")
    }
    table = pd.DataFrame(sides | {f"n_{side}": rng.integers(1, 30, n) for side in ("chosen", "rejected")})
    table["n_votes"] = rng.choice([2.0, 4.0, 8.0], n)
    table["preference"] = np.ceil(table["n_votes"] * rng.uniform(0.5, 1.0, n)) / table["n_votes"]
    table["prompt_id"] = [f"p{i}" for i in rng.integers(0, n // 2, n)]
    for at, role in zip((0, 10, 20), ("policy", "reference", "explicit"), strict=True):
        table.loc[at : at + 3, f"{role}_chosen"] = table.loc[at : at + 3, f"{role}_rejected"]
    table.loc[30:33, "policy_chosen"] = (
        table["reference_chosen"] - table["reference_rejected"] + table["policy_rejected"]
    )
    table.loc[40:45, "preference"] = 0.5
    return table
