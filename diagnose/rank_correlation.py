"""Spearman's rank correlation with an interval that respects clusters, of two columns or of every two of many."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int, Shaped

from .statistics import BootstrapMeans, cluster_codes, resampled_counts, single_column

# rows in ascending order, where runs of equal values end there, and the run of every row
Order = tuple[Int[np.ndarray, "N"], Int[np.ndarray, "_"], Int[np.ndarray, "N"]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankCorrelations:
    """Spearman's rho of every two of K columns, symmetric; NaN where a side is constant.

    low, high: 95 % percentile interval, NaN where fewer than 20 clusters have both. The diagonal is left NaN.
    """

    rho: Float[np.ndarray, "K K"]
    low: Float[np.ndarray, "K K"]
    high: Float[np.ndarray, "K K"]


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
    rho, drawn, n_clusters = _drawn(np.stack([x[some], y[some]], axis=1), clusters[some], draws=draws, seed=seed)
    n = int(some.sum()) if np.isfinite(rho[0, 1]) else 0
    return single_column(float(rho[0, 1]), drawn[:, 0, 1], n=n, n_clusters=n_clusters)


def spearman_matrix(
    columns: Float[np.ndarray, "N K"], clusters: Shaped[np.ndarray, "N"], *, draws: int = 2000, seed: int = 0
) -> RankCorrelations:
    """`spearman` of every two columns, each on the rows where both are finite: the same numbers, in far less time.

    A column is ranked once a draw for all its partners, and a draw's correlations are one matrix product; columns that
    lack other rows are ranked again for each set of rows that two of them share.
    """
    finite = np.isfinite(columns)
    shared: dict[bytes, list[tuple[int, int]]] = {}
    for i, j in combinations(range(columns.shape[1]), 2):
        shared.setdefault((finite[:, i] & finite[:, j]).tobytes(), []).append((i, j))

    size = (columns.shape[1],) * 2
    rho, low, high = np.full((3, *size), np.nan)
    for rows, couples in shared.items():
        some, used = np.frombuffer(rows, dtype=bool), sorted({k for couple in couples for k in couple})
        value, drawn, known = _drawn(columns[some][:, used], clusters[some], draws=draws, seed=seed)
        for i, j in couples:
            a, b = used.index(i), used.index(j)
            one = single_column(float(value[a, b]), drawn[:, a, b], n=int(some.sum()), n_clusters=known)
            for into, number in ((rho, one.mean), (low, one.low), (high, one.high)):
                into[i, j] = into[j, i] = number[0]
    return RankCorrelations(rho=rho, low=low, high=high)


def _drawn(
    columns: Float[np.ndarray, "N K"], clusters: Shaped[np.ndarray, "N"], *, draws: int, seed: int
) -> tuple[Float[np.ndarray, "K K"], Float[np.ndarray, "B K K"], int]:
    """Rho of every two columns, the same in every bootstrap sample of clusters, and the number of clusters."""
    n, k = columns.shape
    codes, n_clusters = cluster_codes(clusters)
    if not n:
        return np.full((k, k), np.nan), np.full((1, k, k), np.nan), 0
    orders = [_ascending(column) for column in columns.T]
    parts = [
        _weighted_rhos(orders, times[:, codes])
        for times in resampled_counts(n_clusters, draws=draws, seed=seed, width=12 * k * n)
    ]
    return _weighted_rhos(orders, np.ones((1, n)))[0], np.concatenate(parts), n_clusters


def _ascending(values: Float[np.ndarray, "N"]) -> Order:
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    last = np.append(ascending[1:] != ascending[:-1], True)
    run = np.empty(len(values), dtype=np.int64)
    run[order] = np.cumsum(last) - last
    return order, np.flatnonzero(last), run


def _weighted_rhos(orders: list[Order], weight: Float[np.ndarray, "b N"]) -> Float[np.ndarray, "b K K"]:
    """Pearson correlations of mid-ranks in samples where row i stands weight[i] times."""
    root, ranks = np.sqrt(weight), np.empty((len(weight), len(orders), weight.shape[1]))
    for k, order in enumerate(orders):  # the root on both sides of the product weighs a row once
        np.multiply(_centred_ranks(order, weight), root, out=ranks[:, k])
    cross = ranks @ ranks.transpose(0, 2, 1)
    spread = np.sqrt(np.diagonal(cross, axis1=1, axis2=2))  # [b, K]
    below = spread[:, :, None] * spread[:, None, :]
    rho = np.divide(cross, below, out=np.full(cross.shape, np.nan), where=below > 0)
    return np.clip(rho, -1.0, 1.0)  # rounding may leave the interval


def _centred_ranks(order: Order, weight: Float[np.ndarray, "b N"]) -> Float[np.ndarray, "b N"]:
    """Twice the mid-rank of every row minus its mean: rows below it minus rows above it, a whole number."""
    ascending, ends, run = order
    upto = np.cumsum(weight.take(ascending, axis=1), axis=1)
    if len(ends) < len(run):
        upto = upto.take(ends, axis=1)  # [b, runs]
    ranks = upto - upto[:, -1:]
    ranks[:, 1:] += upto[:, :-1]
    return ranks.take(run, axis=1)
