"""Which slope makes single votes most likely? Maximum likelihood of sigmoid(t x), for many weightings at once.

The numerics behind `calibration.fit_beta`; `cubic_term` bends the line. Bootstrap draws are rows of weights fitted side
by side, so that thousands of them cost some matrix products.
"""

import numpy as np
from jaxtyping import Float64, Int, Int64
from scipy.special import expit

from .statistics import LEVEL, percentile_interval, resampled_counts

MAX_SEPARABLE = 0.025  # share of bootstrap draws: beyond it an end of the interval is infinite
MAX_STEPS = 200


def rms(d: Float64[np.ndarray, "N"]) -> float:
    """Root mean square, safe from underflow; one of the numbers at least is not 0."""
    largest = np.abs(d).max()
    return float(largest * np.sqrt(((d / largest) ** 2).mean()))


def single_votes(
    x: Float64[np.ndarray, "N"], alpha: Float64[np.ndarray, "N"]
) -> tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Every row as weighted votes for its positive side: alpha at x, 1 - alpha at -x, with the row of each.

    The objective becomes sum w log sigmoid(b x), whose terms keep their precision however large b x is. x = 0 says
    nothing about b.
    """
    row = np.tile(np.arange(len(x)), 2)
    x, weight = np.concatenate([x, -x]), np.concatenate([alpha, 1 - alpha])
    kept = (x != 0) & (weight > 0)
    return x[kept], weight[kept], row[kept]


def steepness(
    x: Float64[np.ndarray, "M"], weights: Float64[np.ndarray, "B M"], start: Float64[np.ndarray, "B"]
) -> Float64[np.ndarray, "B"]:
    """argmax_t of sum w log sigmoid(t x) for every row of weights; +-inf where separable, NaN without any weight.

    Newton's method inside a bracket: the gradient sum w x sigmoid(-t x) falls with t.
    """
    upward, downward = weights @ np.maximum(x, 0.0), weights @ np.maximum(-x, 0.0)
    limit = np.where(upward > 0, np.inf, np.where(downward > 0, -np.inf, np.nan))
    t = np.where((upward > 0) & (downward > 0), start, limit)
    active = np.flatnonzero(np.isfinite(t))
    low, high = np.full((2, len(t)), np.inf) * [[-1.0], [1.0]]
    for _ in range(MAX_STEPS):
        if not len(active):
            break
        at = t[active]
        missed = expit(-at[:, None] * x)  # [b, M]
        pull = weights[active] * missed
        gradient, curvature = pull @ x, (pull * (1 - missed)) @ x**2
        low[active] = np.where(gradient > 0, at, low[active])
        high[active] = np.where(gradient < 0, at, high[active])
        after = _inside(at, gradient, curvature, low[active], high[active])
        t[active] = after
        # 1e-15: where t is 0 up to rounding, as x is scaled to rms 1
        active = active[np.abs(after - at) > 1e-12 * np.abs(after) + 1e-15]
    return t


def _inside(
    at: Float64[np.ndarray, "b"],
    gradient: Float64[np.ndarray, "b"],
    curvature: Float64[np.ndarray, "b"],
    low: Float64[np.ndarray, "b"],
    high: Float64[np.ndarray, "b"],
) -> Float64[np.ndarray, "b"]:
    """Newton's step, else the middle of the bracket; towards an open end at most 3 (|t| + 1)."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        newton = at + gradient / curvature
    reach = 3 * (np.abs(at) + 1)
    low, high = np.maximum(low, at - reach), np.minimum(high, at + reach)
    return np.where((newton > low) & (newton < high), newton, (low + high) / 2)


def drawn_slopes(
    x: Float64[np.ndarray, "M"],
    weight: Float64[np.ndarray, "M"],
    codes: Int64[np.ndarray, "M"],
    n_clusters: int,
    start: float,
    *,
    draws: int,
    seed: int,
) -> Float64[np.ndarray, "B"]:
    samples = resampled_counts(n_clusters, draws=draws, seed=seed, width=8 * len(x))
    slopes = [steepness(x, weight * times[:, codes], np.full(len(times), start)) for times in samples]
    return np.concatenate(slopes)


def slope_interval(
    drawn: Float64[np.ndarray, "B"], *, level: float = LEVEL
) -> tuple[float | None, float | None, int, str]:
    """Ends of the interval, the draws without a finite optimum, and why there is no interval ('' where there is)."""
    finite = np.isfinite(drawn)
    separable = int((~finite).sum())
    if separable > MAX_SEPARABLE * len(drawn):
        share = f"{separable} of {len(drawn)} bootstrap draws are separable, more than {MAX_SEPARABLE:.1%}"
        return None, None, separable, f"{share}: no interval"
    # infinite draws lie beyond the percentiles that are read: any value at the far end will do
    low, high = percentile_interval(np.clip(drawn, drawn[finite].min(), drawn[finite].max()), level=level)
    return float(low), float(high), separable, ""
