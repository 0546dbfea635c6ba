"""How sure is a number? Intervals and tests that respect clusters: pairs of one prompt are not independent.

Arrays in, numbers out; every random draw comes from a seed, and no result depends on the order of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from .report import Estimate

MIN_CLUSTERS = 20  # below it a percentile interval covers far less than it says
LEVEL = 0.95
_CHUNK = 4_000_000  # numbers held at a time: 32 MB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BootstrapMeans:
    """Means of K columns with percentile intervals; all columns were resampled together.

    low, high: NaN where fewer than 20 clusters have a value. draws: means of the resampled columns.
    n, n_clusters: rows and clusters that have a value, by column.
    """

    mean: Float[np.ndarray, "K"]
    low: Float[np.ndarray, "K"]
    high: Float[np.ndarray, "K"]
    draws: Float[np.ndarray, "B K"]
    n: Int[np.ndarray, "K"]
    n_clusters: Int[np.ndarray, "K"]
    level: float

    @property
    def method(self) -> str:
        return f"cluster bootstrap, {len(self.draws)} draws, percentile"


def cluster_bootstrap(
    values: Float[np.ndarray, "N K"],
    clusters: Shaped[np.ndarray, "N"],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> BootstrapMeans:
    """Column means; whole clusters are drawn with replacement, and a draw is (sum of rows) / (number of rows).

    A NaN leaves its row out of that column alone. Columns share the same resamples, also between calls with the same
    clusters and seed, so differences of `draws` are paired. Every row repeated k times gives the same interval.
    Raises ValueError for infinite values or fewer than one draw.
    """
    if np.isinf(values).any():
        raise ValueError("values hold infinities, whose mean has no interval; leave such rows out as NaN")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws >= 1 and 0 < level < 1 expected, got draws={draws}, level={level}")
    present = ~np.isnan(values)
    codes, n_clusters = cluster_codes(clusters)
    sums = _sum_by(codes, n_clusters, np.where(present, values, 0.0))  # [C, K]
    if present.all():
        counts = _sum_by(codes, n_clusters, np.ones((len(values), 1)))  # [C, 1]: one count serves all columns
    else:
        counts = _sum_by(codes, n_clusters, present.astype(float))

    drawn = np.full((draws, values.shape[1]), np.nan)
    start = 0
    for times in resampled_counts(n_clusters, draws=draws, seed=seed):
        with np.errstate(invalid="ignore"):  # a draw without any row of a column: 0 / 0
            drawn[start : start + len(times)] = (times @ sums) / (times @ counts)
        start += len(times)

    n = present.sum(0)
    with_values = np.broadcast_to((counts > 0).sum(0), n.shape)
    low, high = np.full((2, values.shape[1]), np.nan)
    wide = with_values >= MIN_CLUSTERS
    if wide.any():
        low[wide], high[wide] = percentile_interval(drawn[:, wide], level=level)
    with np.errstate(invalid="ignore"):
        mean = sums.sum(0) / counts.sum(0)
    return BootstrapMeans(mean=mean, low=low, high=high, draws=drawn, n=n, n_clusters=with_values.copy(), level=level)


def single_column(
    value: float, draws: Float[np.ndarray, "B"], *, n: int, n_clusters: int, level: float = LEVEL
) -> BootstrapMeans:
    """A statistic that is no mean, with its own bootstrap draws, under the same rule of 20 clusters.

    Draws without a value (NaN) are left out; where none has one there is no interval.
    """
    known = n_clusters >= MIN_CLUSTERS and not np.isnan(draws).all()
    low, high = percentile_interval(draws, level=level) if known else (np.nan, np.nan)
    return BootstrapMeans(
        mean=np.array([value]),
        low=np.array([float(low)]),
        high=np.array([float(high)]),
        draws=draws[:, None],
        n=np.array([n]),
        n_clusters=np.array([n_clusters]),
        level=level,
    )


def smaller_of(boot: BootstrapMeans, first: int, second: int) -> BootstrapMeans:
    """The smaller of two columns' means, chosen anew in every draw: a choice made once would pass for no choice."""
    drawn = np.minimum(boot.draws[:, first], boot.draws[:, second])
    value = float(np.minimum(boot.mean[first], boot.mean[second]))
    return single_column(value, drawn, n=int(boot.n[first]), n_clusters=int(boot.n_clusters[first]), level=boot.level)


def cluster_codes(clusters: Shaped[np.ndarray, "N"]) -> tuple[Int[np.ndarray, "N"], int]:
    """Clusters as 0..C-1 in sorted order, and C."""
    labels, codes = np.unique(clusters.astype(str) if clusters.dtype == object else clusters, return_inverse=True)
    return codes.astype(np.int64), len(labels)


def resampled_counts(n_clusters: int, *, draws: int, seed: int, width: int = 0) -> Iterator[Float[np.ndarray, "b C"]]:
    """How often each cluster stands in each bootstrap sample, in chunks of draws that fit in memory.

    The samples depend on n_clusters, draws and seed alone. width: numbers a draw that the caller holds besides.
    """
    if n_clusters == 0:
        return
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK // max(n_clusters, width))
    for start in range(0, draws, size):
        n = min(size, draws - start)
        chosen = generator.integers(0, n_clusters, size=(n, n_clusters))
        chosen += np.arange(n)[:, None] * n_clusters  # a separate range for every draw: one bincount for all
        yield np.bincount(chosen.ravel(), minlength=n * n_clusters).reshape(n, n_clusters).astype(float)


def percentile_interval(
    draws: Float[np.ndarray, "B *rest"], *, level: float = LEVEL
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """The middle `level` of the draws, column by column; draws without a value (NaN) are left out."""
    tail = 100 * (1 - level) / 2
    take = np.nanpercentile if np.isnan(draws).any() else np.percentile
    low, high = take(draws, [tail, 100 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


def estimate_from(
    boot: BootstrapMeans,
    column: int,
    *,
    label: str,
    unit: str = "share",
    null_value: float | None = None,
    reason: str | None = None,
    reconstructed: bool = False,
) -> Estimate:
    """A column of a bootstrap as an `Estimate`.

    No row has a value: null, with `reason`. Fewer than 20 clusters: the value alone. A share of exactly 0 or 1, where
    every draw is the same: Wilson's interval on the number of clusters; of a difference that is 0 in every draw too.
    """
    value, n, n_clusters = float(boot.mean[column]), int(boot.n[column]), int(boot.n_clusters[column])
    low, high = float(boot.low[column]), float(boot.high[column])
    method = boot.method
    if n == 0:
        why: str | None = reason or "no row has a value"
    elif n_clusters < MIN_CLUSTERS:
        why = f"{n_clusters} clusters (prompts): an interval needs {MIN_CLUSTERS}"
    elif np.isnan(low):
        why = "no bootstrap sample has a value"
    else:
        why = None
        if unit == "share" and value in (0.0, 1.0):
            low, high = wilson(value * n_clusters, n_clusters, level=boot.level)
            method = "Wilson's interval on clusters, because the share is exactly 0 or 1"
        elif unit == "share difference" and low == high == value == 0.0:
            high = wilson(0.0, n_clusters, level=boot.level)[1]
            low, method = -high, "Wilson's interval on clusters of how often the two differ: they never did"
    return Estimate(
        label=label,
        value=None if n == 0 else value,
        low=None if why else low,
        high=None if why else high,
        level=boot.level,
        n=n,
        n_clusters=n_clusters,
        unit=unit,
        method=method,
        reason=why,
        null_value=null_value,
        reconstructed=reconstructed,
    )


def sign_flip_max_t(
    differences: Float[np.ndarray, "n m"], *, flips: int = 9999, seed: int = 0
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """One-sample t of every column, and p adjusted for all of them: rows change sign as a whole, max |t| is kept.

    p = (1 + #{max |t| >= |t_j|}) / (flips + 1); where 2^n <= flips all sign patterns are taken, and p is their share.
    A column of zeros has t = 0 and p = 1; one without spread t = +-inf. Rows must be independent (cluster means).
    Raises ValueError for fewer than two rows or values that are not finite.
    """
    n, m = differences.shape
    if n < 2 or m == 0:
        raise ValueError(f"differences of shape {differences.shape}: at least 2 rows and 1 column expected")
    if not np.isfinite(differences).all():
        raise ValueError("differences are not all finite: leave such rows out of every column")
    scale = np.sqrt((differences**2).mean(0))
    unit = np.divide(differences, scale, out=np.zeros_like(differences), where=scale > 0)
    # |t| = sqrt(n - 1) r / sqrt(1 - r^2) with r = |mean| / rms, and flips leave the rms alone: compare r, not t
    observed = np.abs(unit.mean(0))
    exact = n < 64 and 2**n <= flips  # 2.0**n overflows from 1,024 rows on
    total = 2**n if exact else flips
    reached = np.zeros(m)
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK // (n + m))
    for start in range(0, total, size):
        rows = min(size, total - start)
        if exact:
            pattern = ((np.arange(start, start + rows)[:, None] >> np.arange(n)) & 1).astype(bool)
        else:
            pattern = generator.random((rows, n)) < 0.5
        largest = np.abs((1.0 - 2.0 * pattern) @ unit / n).max(1)  # [rows]
        reached += (largest[:, None] >= observed - 1e-12).sum(0)  # equal up to rounding counts as reached
    p = reached / total if exact else (1 + reached) / (total + 1)

    mean, se = differences.mean(0), differences.std(0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0, 0.0, mean / se)
    return t, p


def paired_p(
    differences: Float[np.ndarray, "N"], clusters: Shaped[np.ndarray, "N"], *, flips: int = 9999, seed: int = 0
) -> tuple[float | None, str]:
    """Two-sided p that two scorers of the same rows are right equally often, and by which test.

    differences: credit of the one minus credit of the other, in {-1, -1/2, 0, 1/2, 1}. Exact McNemar where every row is
    a cluster of its own and none is half right; else signs of whole clusters' sums are flipped. None below 2 clusters.
    """
    codes, n_clusters = cluster_codes(clusters)
    if n_clusters == len(differences) and (np.abs(differences) != 0.5).all():
        return mcnemar(int((differences > 0).sum()), int((differences < 0).sum())), "exact McNemar, two-sided"
    method = "sign flip of the sums of whole prompts, two-sided"
    if n_clusters < 2:
        return None, method
    sums = np.bincount(codes, weights=differences, minlength=n_clusters)
    return float(sign_flip_max_t(sums[:, None], flips=flips, seed=seed)[1][0]), method


def delete_group_jackknife(theta: Float[np.ndarray, "G *rest"]) -> Float[np.ndarray, "*rest"]:
    """Standard error from estimates that each leave out one of G random groups: sqrt((G-1)/G sum (theta_g - mean)^2).

    The interval is value +- se times the t quantile with G - 1 degrees of freedom (2.131 for G = 16):
    `jackknife_interval`. Raises ValueError for fewer than 2 groups.
    """
    groups = len(theta)
    if groups < 2:
        raise ValueError(f"{groups} groups: a jackknife needs at least 2")
    spread = ((theta - theta.mean(0)) ** 2).sum(0)
    return np.asarray(np.sqrt((groups - 1) / groups * spread))


def jackknife_interval(
    value: Float[np.ndarray, "*rest"], theta: Float[np.ndarray, "G *rest"], *, level: float = LEVEL
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """value +- t_(G-1) times the delete-group standard error."""
    reach = stats.t.ppf((1 + level) / 2, len(theta) - 1) * delete_group_jackknife(theta)
    return np.asarray(value - reach), np.asarray(value + reach)


def holm(p: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """p adjusted for m tests by Holm's step-down rule, in the given order; family-wise error, any dependence."""
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values lie in [0, 1]; leave out tests that have none")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def wilson(successes: float, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share; successes may be fractional (ties counted half). Wilson 1927."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 <= successes <= n, n >= 1")
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
    return max(0.0, min(middle - reach, share)), min(
        1.0, max(middle + reach, share)
    )  # holds the share, rounding or not


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that two classifiers of the same independent rows are right equally often.

    only_first, only_second: rows that only the one or only the other has right. McNemar 1947, binomial form; 1 where
    they never differ.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts {only_first} and {only_second}: expected >= 0")
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def _sum_by(codes: Int[np.ndarray, "N"], n_clusters: int, values: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "C K"]:
    """Sum of the rows of every cluster; every code occurs."""
    if n_clusters == 0:
        return np.zeros((0, values.shape[1]))
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(n_clusters))
    return np.add.reduceat(values[order], starts, axis=0)
