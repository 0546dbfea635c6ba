"""Is a straight line enough? The cubic term b3 of P = sigmoid(b x + b3 x^3), its likelihood ratio and its draws.

x holds single votes in units of their root mean square (`logistic_fits.single_votes`), so b and b3 are pure numbers.
"""

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import expit, log_expit
from scipy.stats import chi2

from .logistic_fits import MAX_STEPS
from .statistics import resampled_counts

ONE_SIZE = "every difference has the same size: a cubic term cannot be told from the linear one"
CUBIC_SEPARABLE = "separable once a cubic term is added"
CUBIC_FAILED = "the fit with a cubic term did not converge"
_SAME_SIZE = 1e-9  # relative: sizes that differ by rounding alone


def added_cubic(
    x: Float64[np.ndarray, "M"], weight: Float64[np.ndarray, "M"], slope: float
) -> tuple[float | None, float | None, str | None]:
    """b3, the p of its likelihood ratio (1 df), and why there is none; `slope` is the optimum without it."""
    if np.ptp(size := np.abs(x)) <= _SAME_SIZE * size.min():
        return None, None, ONE_SIZE
    if _limit(x, weight[None])[0] != 0:
        return None, None, CUBIC_SEPARABLE
    columns, scale = _columns(x)
    start = np.array([[slope, 0.0]])
    found = _newton(columns, weight[None], start)
    if np.isnan(found).any():
        return None, None, CUBIC_FAILED
    gain = float((_log_likelihood(columns, weight[None], found) - _log_likelihood(columns, weight[None], start))[0])
    return float(found[0, 1] / scale), float(chi2.sf(2 * max(gain, 0.0), 1)), None


def drawn_cubics(
    x: Float64[np.ndarray, "M"],
    weight: Float64[np.ndarray, "M"],
    codes: Int64[np.ndarray, "M"],
    n_clusters: int,
    start: tuple[float, float],
    *,
    draws: int,
    seed: int,
) -> Float64[np.ndarray, "B"]:
    """b3 in every bootstrap draw of clusters, from the optimum `start` = (b, b3) of all rows.

    +-inf where separable; NaN where that leaves the sign open, or the fit did not converge.
    """
    columns, scale = _columns(x)
    theta = np.array([[start[0], start[1] * scale]])
    found = []
    for times in resampled_counts(n_clusters, draws=draws, seed=seed, width=12 * len(x)):
        weights = weight * times[:, codes]
        drawn = _limit(x, weights)
        some = drawn == 0
        drawn[some] = _newton(columns, weights[some], np.repeat(theta, int(some.sum()), axis=0))[:, 1] / scale
        found.append(drawn)
    return np.concatenate(found)


def _columns(x: Float64[np.ndarray, "M"]) -> tuple[Float64[np.ndarray, "M 2"], float]:
    """x and x^3 / scale, both of order 1, and the scale."""
    cube = x**3
    scale = float(np.sqrt((cube**2).mean()))
    return np.stack([x, cube / scale], axis=1), scale


def _limit(x: Float64[np.ndarray, "M"], weights: Float64[np.ndarray, "B M"]) -> Float64[np.ndarray, "B"]:
    """Where b3 runs off to in a row of weights: +-inf, NaN where either would do, 0 where there is a finite optimum.

    The sign of b + b3 x^2 changes once: separable exactly where some size parts the votes for from those against.
    """
    held, size = weights > 0, np.abs(x)
    ends = []
    for side in (x > 0, x < 0):
        ends.append(np.where(held[:, side], size[side], np.inf).min(1, initial=np.inf))
        ends.append(np.where(held[:, side], size[side], -np.inf).max(1, initial=-np.inf))
    least_for, most_for, least_against, most_against = ends
    falls, rises = most_for <= least_against, most_against <= least_for
    return np.select([falls & rises, falls, rises], [np.nan, -np.inf, np.inf], 0.0)


def _newton(
    columns: Float64[np.ndarray, "M 2"], weights: Float64[np.ndarray, "B M"], start: Float64[np.ndarray, "B 2"]
) -> Float64[np.ndarray, "B 2"]:
    """argmax of sum w log sigmoid(columns @ theta) for every row of weights, strictly concave; NaN where steps run out.

    Newton's method with step halving: a step is taken only where the likelihood does not fall.
    """
    theta, best = start.copy(), np.full_like(start, np.nan)
    value = _log_likelihood(columns, weights, theta)
    active = np.arange(len(theta))
    products = columns[:, [0, 0, 1]] * columns[:, [0, 1, 1]]  # [M, 3]
    for _ in range(MAX_STEPS):
        if not len(active):
            break
        missed = expit(-theta[active] @ columns.T)  # [b, M]
        pull = weights[active] * missed
        gradient = pull @ columns
        curvature = ((pull * (1 - missed)) @ products)[:, [0, 1, 1, 2]].reshape(-1, 2, 2)
        inverse = np.linalg.pinv(curvature, rcond=1e-15, hermitian=True)  # flat in a direction: no step there
        step = np.einsum("bij,bj->bi", inverse, gradient)
        done = (gradient * step).sum(1) < 1e-12  # twice the gain in nats that is left
        best[active[done]] = theta[active[done]]
        active, step = active[~done], step[~done]
        theta[active], value[active] = _climbed(columns, weights[active], theta[active], value[active], step)
    return best


def _climbed(
    columns: Float64[np.ndarray, "M 2"],
    weights: Float64[np.ndarray, "b M"],
    theta: Float64[np.ndarray, "b 2"],
    value: Float64[np.ndarray, "b"],
    step: Float64[np.ndarray, "b 2"],
) -> tuple[Float64[np.ndarray, "b 2"], Float64[np.ndarray, "b"]]:
    """theta + step and its likelihood, the step of a row halved until that is no lower than `value`."""
    step, after = step.copy(), _log_likelihood(columns, weights, theta + step)
    while len(low := np.flatnonzero((after < value) & (np.abs(step).max(1, initial=0.0) > 1e-15))):
        step[low] /= 2
        after[low] = _log_likelihood(columns, weights[low], theta[low] + step[low])
    return theta + step, after


def _log_likelihood(
    columns: Float64[np.ndarray, "M 2"], weights: Float64[np.ndarray, "b M"], theta: Float64[np.ndarray, "b 2"]
) -> Float64[np.ndarray, "b"]:
    return (weights * log_expit(theta @ columns.T)).sum(1)
