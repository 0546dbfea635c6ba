"""How steeply does a spectrum fall? A power law on a window of ranks, with what is needed to doubt it."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from torch import Tensor

from .exponents import auto_window, clauset, hill, local_median, rank_half
from .rank_plot import (
    FEW_POINTS,
    MIN_POINTS,
    curvature,
    line,
    middle_rank,
    nonfinite_reason,
    real_ranks,
    spectrum_column,
    window_ranks,
)

Estimator = Literal["ols", "wls", "local_median", "rank_half", "hill", "clauset"]
Spectrum = Float[Tensor, "k"] | Float[np.ndarray, "k"]
RankWindow = tuple[float | int, float | int] | Literal["auto"]

HEAD = ("hill", "clauset")  # of all ranks up to the window's last
MIN_ROWS_A_COLUMN = 4.0  # under N_eff = 4 d the half-sample correction does more harm than good


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLawFit:
    """sigma_k ~ k^-exponent on the ranks first_rank..last_rank (1-based): alpha, whatever the estimator.

    Of singular values; the exponent of the eigenvalues is twice as large. Without a value, `reason` says why.
    R^2, curvature and halves are those of the least-squares line through the ranks used. A line has no standard error:
    a rank plot is no sample.
    """

    exponent: float | None
    r_squared: float | None  # None also for a flat spectrum, which has nothing to explain
    curvature: float | None  # coefficient of the centred (ln k)^2 in a quadratic fit; negative: steeper further down
    n_points: int
    first_rank: int
    last_rank: int
    reason: str | None
    n_ranks: int  # r: singular values >= 1e-6 of the first
    half_exponents: tuple[float, float] | None  # of first..m and m..last, m = floor(sqrt(first * last))
    estimator: str
    warning: str | None = None
    standard_error: float | None = None  # of "rank_half" alone, for independent draws: exponent * sqrt(2 / n_points)


def fit_power_law(
    singular_values: Spectrum,
    *,
    window: RankWindow = (0.02, 0.2),
    estimator: Estimator = "ols",
) -> PowerLawFit:
    """The exponent alpha of sigma_k ~ k^-alpha over a window of ranks k; "ols": least squares of ln sigma_k on ln k.

    `window`: two fractions f, g of r = #(sigma >= 1e-6 sigma_1) -> ranks max(2, ceil(f r))..floor(g r); or two
    integers, the ranks themselves, as where the window of a full sample is kept for its parts; or "auto"
    (`auto_window`, reconstructed). Fewer than 8 points or a non-finite sigma: no exponent, with a reason; fewer than
    20: a warning.

    `estimator`, all of alpha; on an exact power law they agree but for the bias stated in `exponents`:
    - "ols", "wls" (weights 1/k): exact. So is "local_median", of the octaves inside the window; none: a reason.
    - "rank_half": inverse line of ln(k - 1/2); low by 1.5 % on ranks 11..102; alone with a standard error.
    - "hill", "clauset": means over the head of the rank plot. They need every value above a threshold, so the window
      gives only its last rank k and the ranks used, and reported, are 1..k: top ranks that the window leaves out, and
      outliers among them, come back in. Hill's threshold is rank k + 1, so k is at most r - 1. Low by 2.2 and 3.2 % at
      k = 102. On a spectrum that bends they measure its head, not the window.

    ValueError: not one descending column of sigma >= 0, or a window that is none of the three. Source: docs/spinal.md
    (exponent: arXiv 2601.06238; the window is reconstructed).

    >>> fit_power_law(np.arange(1.0, 513.0) ** -0.7).last_rank
    102
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator is one of {', '.join(get_args(Estimator))}, got {estimator!r}")
    absolute = window != "auto" and _is_absolute(window)
    sigma = spectrum_column(singular_values)
    empty = PowerLawFit(
        exponent=None,
        r_squared=None,
        curvature=None,
        n_points=0,
        first_rank=0,
        last_rank=0,
        reason=None,
        n_ranks=0,
        half_exponents=None,
        estimator=estimator,
    )
    if reason := nonfinite_reason(sigma):
        return replace(empty, reason=reason)

    r = real_ranks(sigma)
    if window == "auto":
        chosen = auto_window(sigma)
        if chosen.ranks is None:
            return replace(empty, n_ranks=r, reason=chosen.reason)
        first, last = chosen.ranks
    elif absolute:
        first, last = int(window[0]), min(int(window[1]), r)
    else:
        first, last = window_ranks(r, window)
    if estimator in HEAD:
        first, last = 1, min(last, r - 1) if estimator == "hill" else last
    n_points = max(0, last - first + 1)
    empty = replace(empty, n_points=n_points, first_rank=first, last_rank=last, n_ranks=r)
    if n_points < MIN_POINTS:
        return replace(empty, reason=f"too few modes: {n_points} ranks in the window, {MIN_POINTS} needed (r = {r})")

    k = np.arange(first, last + 1)
    x, y = np.log(k), np.log(sigma[first - 1 : last])
    w = 1.0 / k if estimator == "wls" else np.ones(n_points)
    slope, r_squared = line(x, y, w)
    exponent, standard_error = _estimated(sigma, first, last, estimator, -slope)
    split = middle_rank(first, last) - first  # index of the middle rank, which is in both halves
    head, tail = slice(0, split + 1), slice(split, None)
    halves = (-line(x[head], y[head], w[head])[0], -line(x[tail], y[tail], w[tail])[0])
    fit = replace(
        empty,
        exponent=exponent,
        r_squared=r_squared,
        curvature=curvature(x, y, w),
        half_exponents=halves if split >= 1 else None,
        warning=f"only {n_points} ranks in the window; {FEW_POINTS} are wanted" if n_points < FEW_POINTS else None,
        standard_error=standard_error,
    )
    if fit.exponent is None:
        return replace(fit, reason=f"no local slope lies inside ranks {first}..{last}: each spans an octave")
    return fit


def corrected_exponent(
    full: Spectrum,
    first_half: Spectrum,
    second_half: Spectrum,
    *,
    window: RankWindow = (0.02, 0.2),
    effective_rows: float | int,
) -> PowerLawFit:
    """Half-sample correction of the finite-N bias: 2 a(N) - (a(half 1) + a(half 2)) / 2, at the full fit's ranks.

    The bias goes like d / N, so halving N doubles it. Spectra of all rows and of two disjoint halves (by prompt), d
    singular values each; `effective_rows` = N_eff, the number of independent rows. The other fields are the full
    fit's. Refused (a reason, no exponent) under N_eff = 4 d. Ours: reconstructed.
    """
    fit = fit_power_law(full, window=window)
    if fit.exponent is None:
        return fit
    width = len(full)
    if not effective_rows >= MIN_ROWS_A_COLUMN * width:  # also a NaN
        reason = (
            f"too few rows for the half-sample correction: N_eff = {effective_rows:.0f}, "
            f"{MIN_ROWS_A_COLUMN * width:.0f} (4 d) needed"
        )
        return replace(fit, exponent=None, reason=reason)
    ranks = (fit.first_rank, fit.last_rank)
    halves = [fit_power_law(half, window=ranks) for half in (first_half, second_half)]
    for name, half in zip(("first", "second"), halves, strict=True):
        if half.exponent is None or half.last_rank != fit.last_rank:
            reason = half.reason or f"only {half.n_ranks} ranks, the window of the full fit ends at {fit.last_rank}"
            return replace(fit, exponent=None, reason=f"{name} half: {reason}")
    a, b = (half.exponent for half in halves)
    assert a is not None  # checked above
    assert b is not None
    return replace(fit, exponent=2 * fit.exponent - (a + b) / 2)


def _estimated(
    sigma: Float[np.ndarray, "k"], first: int, last: int, estimator: str, alpha: float
) -> tuple[float | None, float | None]:
    """Exponent and, where there is one, its standard error; `alpha` is that of the line of ln sigma on ln k."""
    if estimator == "local_median":
        return local_median(sigma, first, last), None
    if estimator == "rank_half":
        return rank_half(sigma, first, last)
    if estimator == "hill":
        return hill(sigma, last), None
    if estimator == "clauset":
        return clauset(sigma, last), None
    return alpha, None


def _is_absolute(window: tuple[float | int, float | int]) -> bool:
    if isinstance(window, str):
        raise ValueError(f"a window is two fractions, two ranks or 'auto', got {window!r}")
    low, high = window
    if all(isinstance(end, int | np.integer) for end in window):
        if not 1 <= low <= high:
            raise ValueError(f"a window of ranks is 1 <= first <= last, got {window}")
        return True
    if not 0 <= low < high <= 1:
        raise ValueError(f"a window is two fractions 0 <= f < g <= 1, or two integers (ranks), got {window}")
    return False
