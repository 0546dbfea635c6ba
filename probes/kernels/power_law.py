"""How steeply does a spectrum fall? A power law on a window of ranks, with what is needed to doubt it."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

Estimator = Literal["ols", "wls"]
Spectrum = Float[Tensor, "k"] | Float[np.ndarray, "k"]

FLOOR = 1e-6  # singular values under 1e-6 of the first are no directions of the data
MIN_POINTS, FEW_POINTS = 8, 20
MIN_ROWS_A_COLUMN = 4.0  # under N_eff = 4 d the half-sample correction does more harm than good


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLawFit:
    """sigma_k ~ k^-exponent on the ranks first_rank..last_rank (1-based). No standard error: a rank plot is no sample.

    Of singular values; the exponent of the eigenvalues is twice as large. Without a value, `reason` says why.
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


def fit_power_law(
    singular_values: Spectrum,
    *,
    window: tuple[float | int, float | int] = (0.02, 0.2),
    estimator: Estimator = "ols",
) -> PowerLawFit:
    """Least squares of ln sigma_k on ln k over a window of ranks k (equal weights, or 1/k for "wls").

    `window`: two fractions f, g of r = #(sigma >= 1e-6 sigma_1) -> ranks max(2, ceil(f r))..floor(g r); or two
    integers, the ranks themselves, as where the window of a full sample is kept for its parts. Fewer than 8 points or
    a non-finite sigma: no exponent, with a reason; fewer than 20: a warning.
    ValueError: not one descending column of sigma >= 0, or a window that is neither. Source: docs/spinal.md
    (exponent: arXiv 2601.06238; the window is reconstructed).

    >>> fit_power_law(np.arange(1.0, 513.0) ** -0.7).last_rank
    102
    """
    if estimator not in ("ols", "wls"):
        raise ValueError(f"estimator is 'ols' or 'wls', got {estimator!r}")
    absolute = _is_absolute(window)
    sigma = _column(singular_values)
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
    if not np.isfinite(sigma).all():
        return replace(empty, reason=f"{int((~np.isfinite(sigma)).sum())} of {len(sigma)} singular values not finite")
    if (sigma < 0).any():
        raise ValueError(f"singular values are >= 0, got {sigma.min():.3g}")
    if (np.diff(sigma) > 0).any():
        raise ValueError("singular values are in descending order: rank 1 is the largest")

    r = int((sigma >= FLOOR * sigma[0]).sum()) if len(sigma) and sigma[0] > 0 else 0
    if absolute:
        first, last = int(window[0]), min(int(window[1]), r)
    else:  # rounded first: 0.02 * 150 is no integer in binary
        first, last = max(2, math.ceil(round(window[0] * r, 9))), math.floor(round(window[1] * r, 9))
    n_points = max(0, last - first + 1)
    empty = replace(empty, n_points=n_points, first_rank=first, last_rank=last, n_ranks=r)
    if n_points < MIN_POINTS:
        return replace(empty, reason=f"too few modes: {n_points} ranks in the window, {MIN_POINTS} needed (r = {r})")

    k = np.arange(first, last + 1)
    x, y = np.log(k), np.log(sigma[first - 1 : last])
    w = np.ones(n_points) if estimator == "ols" else 1.0 / k
    slope, r_squared = _line(x, y, w)
    split = math.isqrt(first * last) - first  # index of the middle rank, which is in both halves
    head, tail = slice(0, split + 1), slice(split, None)
    halves = (-_line(x[head], y[head], w[head])[0], -_line(x[tail], y[tail], w[tail])[0])
    return replace(
        empty,
        exponent=-slope,
        r_squared=r_squared,
        curvature=_curvature(x, y, w),
        half_exponents=halves if split >= 1 else None,
        warning=f"only {n_points} ranks in the window; {FEW_POINTS} are wanted" if n_points < FEW_POINTS else None,
    )


def corrected_exponent(
    full: Spectrum,
    first_half: Spectrum,
    second_half: Spectrum,
    *,
    window: tuple[float | int, float | int] = (0.02, 0.2),
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


def _column(singular_values: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(singular_values, Tensor):
        singular_values = singular_values.detach().double().cpu().numpy()
    sigma = np.asarray(singular_values, dtype=np.float64)
    if sigma.ndim != 1:
        raise ValueError(f"one spectrum at a time, [k], got shape {sigma.shape}")
    return sigma


def _is_absolute(window: tuple[float | int, float | int]) -> bool:
    low, high = window
    if all(isinstance(end, int | np.integer) for end in window):
        if not 1 <= low <= high:
            raise ValueError(f"a window of ranks is 1 <= first <= last, got {window}")
        return True
    if not 0 <= low < high <= 1:
        raise ValueError(f"a window is two fractions 0 <= f < g <= 1, or two integers (ranks), got {window}")
    return False


def _line(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, float | None]:
    """Slope and R^2 of the weighted line; R^2 is None where y does not vary beyond its rounding."""
    w = w / w.sum()
    x, flat = x - w @ x, 4 * np.finfo(float).eps * max(1.0, float(np.abs(y).max()))
    y = y - w @ y
    sxx = w @ (x * x)
    if sxx == 0:
        return math.nan, None
    slope = float(w @ (x * y) / sxx)
    total = float(w @ (y * y))
    if np.abs(y).max() <= flat:
        return slope, None
    residual = y - slope * x
    return slope, 1.0 - float(w @ (residual * residual)) / total


def _curvature(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """Coefficient of x^2 in the weighted quadratic fit, x centred."""
    x = x - w @ x / w.sum()
    root = np.sqrt(w)
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
    return float(coefficients[2])
