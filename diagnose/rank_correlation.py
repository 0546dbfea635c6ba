"""Spearman's rank correlation with an interval that respects clusters."""

import numpy as np
from jaxtyping import Float, Int, Shaped

from .statistics import BootstrapMeans, cluster_codes, resampled_counts, single_column


def spearman(
    x: Float[np.ndarray, "N"],
    y: Float[np.ndarray, "N"],
    clusters: Shaped[np.ndarray, "N"],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> BootstrapMeans:
    """Spearman's rho of the rows where both are finite, one column; every bootstrap sample of clusters is ranked anew.

    Ties share their mean rank. NaN where either side is constant, in a draw too (such draws are left out).
    """
    some = np.isfinite(x) & np.isfinite(y)
    x, y = x[some], y[some]
    codes, n_clusters = cluster_codes(clusters[some])
    if not len(x):
        return single_column(np.nan, np.full(1, np.nan), n=0, n_clusters=0)
    parts = [
        _weighted_rho(x, y, times[:, codes])
        for times in resampled_counts(n_clusters, draws=draws, seed=seed, width=6 * len(x))
    ]
    value = _weighted_rho(x, y, np.ones((1, len(x))))[0]
    drawn = np.concatenate(parts)
    n = len(x) if np.isfinite(value) else 0
    return single_column(float(value), drawn, n=n, n_clusters=n_clusters)


def _weighted_rho(
    x: Float[np.ndarray, "N"], y: Float[np.ndarray, "N"], weight: Float[np.ndarray, "b N"]
) -> Float[np.ndarray, "b"]:
    """Pearson correlation of mid-ranks in samples where row i stands weight[i] times."""
    total = weight.sum(1, keepdims=True)
    first, second = (_mid_ranks(values, weight) - total / 2 for values in (x, y))  # centred: mid-ranks average to n / 2
    cross, one, two = ((weight * product).sum(1) for product in (first * second, first**2, second**2))
    below = np.sqrt(one * two)
    return np.divide(cross, below, out=np.full(len(cross), np.nan), where=below > 1e-9 * total[:, 0])


def _mid_ranks(values: Float[np.ndarray, "N"], weight: Float[np.ndarray, "b N"]) -> Float[np.ndarray, "b N"]:
    """Rank of every row, less 1/2: rows below it plus half of those equal to it, itself included."""
    order = np.argsort(values, kind="stable")
    starts, group = _groups(values[order])
    sums = np.add.reduceat(weight[:, order], starts, axis=1)  # [b, groups]
    middle = np.cumsum(sums, axis=1) - sums / 2
    ranks = np.empty_like(weight)
    ranks[:, order] = middle[:, group]
    return ranks


def _groups(ascending: Float[np.ndarray, "N"]) -> tuple[Int[np.ndarray, "G"], Int[np.ndarray, "N"]]:
    """Where runs of equal values start, and the run of every row."""
    new = np.append(True, ascending[1:] != ascending[:-1])
    return np.flatnonzero(new), np.cumsum(new) - 1
