"""Where do the ranking numbers come from? Tables that split the pairs: flips, difference of length, log-ratios."""

import numpy as np
import pandas as pd

from .ranking_table import RankedPairs
from .report import finite
from .statistics import cluster_bootstrap, estimate_from

QUARTERS = (0.25, 0.5, 0.75)


def flip_table(pairs: RankedPairs) -> pd.DataFrame:
    """reference_right, policy_right, n, share: four rows, or none without a reference.

    A tie is right with ties="ge" alone.
    """
    columns: dict[str, list] = {name: [] for name in ("reference_right", "policy_right", "n", "share")}
    some = pairs.table[pairs.judged & pairs.table["reference_right"].notna()]
    was_right, right = ((some[name] == 1).to_numpy() for name in ("reference_right", "ranked_right"))
    for before in (True, False) if len(some) else ():
        for after in (True, False):
            n = int(((was_right == before) & (right == after)).sum())
            for name, value in zip(columns, (before, after, n, n / len(some)), strict=True):
                columns[name].append(value)
    return pd.DataFrame(columns).astype({"reference_right": bool, "policy_right": bool, "n": int, "share": float})


def displacement_table(pairs: RankedPairs) -> pd.DataFrame:
    """chosen_fell, rejected_fell, n, share, mean log-ratios (nats a completion): the four sign quadrants."""
    ratios = pairs.log_ratios[pairs.judged & np.isfinite(pairs.log_ratios).all(1)]
    rows = []
    for chosen in (False, True) if len(ratios) else ():
        for rejected in (False, True):
            inside = ratios[((ratios[:, 0] < 0) == chosen) & ((ratios[:, 1] < 0) == rejected)]
            means = inside.mean(0) if len(inside) else np.full(2, np.nan)
            rows.append((chosen, rejected, len(inside), len(inside) / len(ratios), *means.tolist()))
    names = ["chosen_fell", "rejected_fell", "n", "share", "mean_chosen", "mean_rejected"]
    types = dict(zip(names, (bool, bool, int, float, float, float), strict=True))
    return pd.DataFrame(rows, columns=names).astype(types)


def length_table(pairs: RankedPairs, *, bootstrap: int, seed: int) -> pd.DataFrame:
    """Accuracies with intervals inside the quarters of |tokens of chosen - tokens of rejected|.

    Columns quarter (1 = most alike), shortest, longest (difference in tokens), n, accuracy, reward_accuracy,
    shorter_wins, each with _low and _high. Equal differences are never split, so quarters may be uneven or missing.
    """
    some = pairs.judged & np.isfinite(pairs.length_difference)
    apart = np.abs(pairs.length_difference[some])
    measures = {
        "accuracy": pairs.table["ranked_right"].to_numpy()[some],
        "reward_accuracy": pairs.table["reward_right"].to_numpy()[some],
        "shorter_wins": (pairs.length_difference[some] < 0) + 0.5 * (apart == 0),
    }
    quarter = np.searchsorted(np.quantile(apart, QUARTERS), apart) + 1 if len(apart) else apart
    rows = []
    for q in np.unique(quarter):
        inside = quarter == q
        values = np.stack([column[inside] for column in measures.values()], axis=1)
        boot = cluster_bootstrap(values, pairs.clusters[some][inside], draws=bootstrap, seed=seed)
        row: dict[str, float] = {"quarter": int(q), "shortest": apart[inside].min(), "longest": apart[inside].max()}
        row["n"] = int(inside.sum())
        for j, name in enumerate(measures):
            estimate = estimate_from(boot, j, label=name)
            numbers = (estimate.value, estimate.low, estimate.high)
            row |= {f"{name}{end}": _number(v) for end, v in zip(("", "_low", "_high"), numbers, strict=True)}
        rows.append(row)
    names = ["quarter", "shortest", "longest", "n", *(f"{m}{end}" for m in measures for end in ("", "_low", "_high"))]
    return pd.DataFrame(rows, columns=names).astype(
        {name: int if name in ("quarter", "n") else float for name in names}
    )


def _number(value: float | None) -> float:
    known = finite(value)
    return float("nan") if known is None else known
