"""Pair tables with known implicit and explicit margins, for tests of the reward report."""

from functools import cache

import numpy as np
import pandas as pd
from ranking_tables import frame, mixed

from alignscope import PairScores
from alignscope.diagnose.reward_report import RewardReport, reward_report

ID = "in_distribution"
CREDIT = {"half": (0.0, 0.5, 1.0), "strict": (0.0, 0.0, 1.0), "ge": (0.0, 1.0, 1.0)}


def table(implicit, explicit=None, **more) -> pd.DataFrame:
    """A row a margin dw - dl of the implicit reward, and sw - sl of the explicit one."""
    if explicit is not None:
        more |= {"explicit_chosen": np.asarray(explicit, dtype=float), "explicit_rejected": 0.0}
    return frame(implicit, np.zeros(len(implicit)), **more)


def other(n: int, start: int = 0) -> dict[str, list[str]]:
    """Prompts of another file."""
    return {"prompt_hash": [f"other {i}" for i in range(start, start + n)]}


def report(tables, **settings) -> RewardReport:
    """The report on a table or on named ones, with few bootstrap draws."""
    tables = {ID: tables} if isinstance(tables, pd.DataFrame) else tables
    scores = {name: PairScores.from_frame(one) for name, one in tables.items()}
    return reward_report(scores, **({"bootstrap": 100} | settings))


def three() -> dict[str, pd.DataFrame]:
    """In-distribution prompts p0..p59, and two shifted sets that share prompts with each other alone."""
    tables = {ID: mixed(), "maths": mixed(seed=1), "french": mixed(90, seed=2)}
    for name in ("maths", "french"):
        tables[name]["prompt_hash"] = "shifted " + tables[name].prompt_id
    return tables


@cache
def report_of_three() -> RewardReport:
    return report(three())


def numbers(found: RewardReport, *, but=()) -> dict[str, tuple]:
    return {name: (e.value, e.low, e.high) for name, e in found.estimates.items() if not name.startswith(tuple(but))}


def same(one: RewardReport, two: RewardReport, *, but=()) -> None:
    first, second = numbers(one, but=but), numbers(two, but=but)
    assert first.keys() == second.keys()
    for name in first:
        here, there = (np.array(values, dtype=float) for values in (first[name], second[name]))  # None: NaN
        np.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-12, err_msg=name)


def naive(data: pd.DataFrame, ties: str) -> pd.DataFrame:
    """Credits of every judged pair by name, row by row."""
    rows = []
    for row in data[data.preference != 0.5].itertuples():
        dw, dl = row.policy_chosen - row.reference_chosen, row.policy_rejected - row.reference_rejected
        implicit, explicit, own, normal, shorter = (
            CREDIT[rule][int(np.sign(d)) + 1]
            for rule, d in (
                (ties, dw - dl),
                (ties, row.explicit_chosen - row.explicit_rejected),
                (ties, row.policy_chosen - row.policy_rejected),
                (ties, dw * row.n_rejected - dl * row.n_chosen),
                ("half", row.n_rejected - row.n_chosen),
            )
        )
        rows.append(
            {
                "prompt": row.prompt_id,
                "accuracy_implicit": implicit,
                "accuracy_explicit": explicit,
                "accuracy_ranking": own,
                "accuracy_implicit_normalised": normal,
                "gap": explicit - implicit,
                "disagreement": float(implicit != explicit),
                "shorter_wins": shorter,
                "longer_wins": 1 - shorter,
            }
        )
    return pd.DataFrame(rows)


def reasons(found: RewardReport) -> dict[str, str | None]:
    return {name: e.reason for name, e in found.estimates.items() if e.value is None}
