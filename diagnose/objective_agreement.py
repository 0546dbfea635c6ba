"""How far do two objectives agree? Shares of pairs with one sign of view, rank correlations of losses, intervals."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped

from .rank_correlation import spearman_matrix
from .statistics import cluster_bootstrap, estimate_from

ENDS = ("same_sign_low", "same_sign_high", "spearman_low", "spearman_high")


def agreement_table(pairs: pd.DataFrame, objectives: Sequence[str]) -> pd.DataFrame:
    """A row for two objectives: first, second, n pairs both have, same_sign, spearman (see `ObjectiveTable`).

    pairs: `<objective>_view` and `<objective>_loss`, a row a pair, NaN where the objective left it out.
    """
    # pandas' Spearman takes each two columns' common pairs, and gives NaN for a constant one without a warning
    rho = pairs[[f"{name}_loss" for name in objectives]].corr(method="spearman").to_numpy()
    rows = []
    for (i, first), (j, second) in combinations(enumerate(objectives), 2):
        same = _same_sign(pairs, first, second)
        known = same[~np.isnan(same)]
        mean = float(known.mean()) if len(known) else np.nan
        rows.append((first, second, len(known), mean, float(rho[i, j])))
    return pd.DataFrame(rows, columns=["first", "second", "n", "same_sign", "spearman"])


def with_intervals(
    agreement: pd.DataFrame,
    pairs: pd.DataFrame,
    clusters: Shaped[np.ndarray, "N"],
    *,
    bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    """The table of `agreement_table` with the ends of 95 % cluster-bootstrap intervals, each behind its number.

    clusters: of the rows of `pairs`. same_sign: all shares over the same resamples of clusters (`cluster_bootstrap`),
    Wilson's interval on clusters where one is exactly 0 or 1. spearman: the losses are ranked anew in every resample
    (`spearman_matrix`). NaN where fewer than 20 clusters have both objectives, or there is no number.
    """
    couples = list(zip(agreement["first"], agreement["second"], strict=True))
    table = agreement.copy()
    for name in ENDS:
        table[name] = np.nan
    if couples:
        shares = np.stack([_same_sign(pairs, *couple) for couple in couples], axis=1)  # [N, couples]
        boot = cluster_bootstrap(shares, clusters, draws=bootstrap, seed=seed)
        ends = [estimate_from(boot, k, label="same sign") for k in range(len(couples))]
        table["same_sign_low"] = [np.nan if e.low is None else e.low for e in ends]
        table["same_sign_high"] = [np.nan if e.high is None else e.high for e in ends]

        place = {name: k for k, name in enumerate(dict.fromkeys(name for couple in couples for name in couple))}
        losses = np.stack([pairs[f"{name}_loss"].to_numpy(dtype=np.float64) for name in place], axis=1)
        found = spearman_matrix(losses, clusters, draws=bootstrap, seed=seed)
        at = tuple(np.array([[place[name] for name in couple] for couple in couples]).T)
        table["spearman_low"], table["spearman_high"] = found.low[at], found.high[at]
    return table[["first", "second", "n", "same_sign", *ENDS[:2], "spearman", *ENDS[2:]]]


def _same_sign(pairs: pd.DataFrame, first: str, second: str) -> Float64[np.ndarray, "N"]:
    """1 where both views have one sign (0 is a sign of its own), 0 where not, NaN where either is missing."""
    one, other = (np.sign(pairs[f"{name}_view"].to_numpy(dtype=np.float64)) for name in (first, second))
    return np.where(np.isnan(one) | np.isnan(other), np.nan, (one == other).astype(np.float64))
