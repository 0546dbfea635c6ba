"""Do a few importance weights carry the whole sum? The shape of a generalised Pareto tail fitted to the largest.

Vehtari, Simpson, Gelman, Yao and Gabry, arXiv 1507.02646 (PSIS); the fit is Zhang and Stephens 2009.
"""

import math

import numpy as np
from jaxtyping import Float

MIN_TAIL = 5  # weights above the start of the tail; fewer say nothing of a shape
ROUNDING = 1e-9  # a tail whose logarithms span less than this is constant: its spread is that of the arithmetic


def pareto_shape(log_weights: Float[np.ndarray, "K"]) -> float | None:
    """k-hat: shape of the largest M = min(K / 5, 3 sqrt(K)) weights above the one below them, a pure number.

    Moments of order 1 / k and up do not exist: over .7 an average of so few weights is not to be trusted (PSIS). Only
    differences of log weights matter. None where there is no tail: under 5 weights above its start, or all equal.
    Raises ValueError for NaN or +inf.
    """
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        raise ValueError("log weights are finite, or -inf for a weight of zero; got NaN or +inf")
    n_tail = math.ceil(min(0.2 * len(log_weights), 3 * math.sqrt(len(log_weights))))
    if n_tail < MIN_TAIL:
        return None
    ascending = np.sort(log_weights)
    if np.isneginf(ascending[-1]) or ascending[-1] - ascending[-n_tail - 1] < ROUNDING:
        return None
    weights = np.exp(ascending[-n_tail - 1 :] - ascending[-1])  # the largest is 1
    excess = weights[1:] - weights[0]
    excess = excess[excess > ROUNDING * weights[0]]  # ties with the start are no part of the tail
    return generalized_pareto_shape(excess) if len(excess) >= MIN_TAIL else None


def generalized_pareto_shape(excess: Float[np.ndarray, "n"]) -> float:
    """Shape k of the generalised Pareto distribution of positive excesses, heavy tails k > 0.

    Zhang and Stephens' 2009 posterior mean of theta over a grid of 30 + sqrt(n) points, then
    k = mean log(1 - theta x), drawn towards 1/2 as by 10 more observations (PSIS): (n k + 5) / (n + 10).
    """
    if not len(excess) or not (excess > 0).all():
        raise ValueError("excesses over a threshold are positive, and there is at least one")
    x = np.sort(excess)
    n = len(x)
    n_grid = 30 + math.isqrt(n)
    quartile = x[math.floor(n / 4 + 0.5) - 1] if n > 1 else x[0]
    steps = np.arange(1, n_grid + 1) - 0.5
    theta = 1 / x[-1] + (1 - np.sqrt(n_grid / steps)) / (3 * quartile)  # [grid], all < 1 / max
    shape = np.log1p(-theta[:, None] * x).mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_likelihood = n * (np.log(-theta / shape) - shape - 1)
    exponential = np.abs(theta * x[-1]) < 1e-12  # theta -> 0: theta / k -> -1 / mean
    log_likelihood[exponential] = n * (-math.log(x.mean()) - 1)
    weight = np.exp(log_likelihood - log_likelihood.max())
    middle = float(theta @ weight / weight.sum())
    return float((n * np.log1p(-middle * x).mean() + 5) / (n + 10))
