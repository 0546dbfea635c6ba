"""Which line lies through a stretch of a rank plot, ln sigma_k against ln k, and how firmly does it lie there?

Ranks k are 1-based and windows include both ends. The thresholds are those of the gates (docs/spinal.md): ours.
"""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-6  # singular values under 1e-6 of the first are no directions of the data
MIN_POINTS, FEW_POINTS = 8, 20
MIN_R_SQUARED, MAX_CURVATURE, MAX_JITTER = 0.98, 0.15, 0.05
JITTER = 0.25  # each end of the window moves by this share, and by one rank at least
NO_SLOPE = 1e-9  # an exponent under it is that of a flat spectrum
SLOPE_REACH = math.sqrt(2.0)  # a local slope at rank k is fitted over k / reach .. k * reach


def spectrum_column(singular_values: Tensor | np.ndarray) -> np.ndarray:
    """One spectrum as float64 [k]. ValueError: another shape, a negative value, or an order that is not descending.

    Values that are not finite pass, for the caller to name; they are not checked for order.
    """
    if isinstance(singular_values, Tensor):
        singular_values = singular_values.detach().double().cpu().numpy()
    sigma = np.asarray(singular_values, dtype=np.float64)
    if sigma.ndim != 1:
        raise ValueError(f"one spectrum at a time, [k], got shape {sigma.shape}")
    if not np.isfinite(sigma).all():
        return sigma
    if (sigma < 0).any():
        raise ValueError(f"singular values are >= 0, got {sigma.min():.3g}")
    if (np.diff(sigma) > 0).any():
        raise ValueError("singular values are in descending order: rank 1 is the largest")
    return sigma


def nonfinite_reason(sigma: Float[np.ndarray, "k"]) -> str | None:
    """Why a spectrum has no fit at all, if it has none."""
    n_bad = int((~np.isfinite(sigma)).sum())
    return f"{n_bad} of {len(sigma)} singular values not finite" if n_bad else None


def real_ranks(sigma: Float[np.ndarray, "k"]) -> int:
    """r: singular values >= 1e-6 of the first; 0 for a spectrum of zeros."""
    return int((sigma >= FLOOR * sigma[0]).sum()) if len(sigma) and sigma[0] > 0 else 0


def window_ranks(r: int, window: tuple[float | int, float | int]) -> tuple[int, int]:
    """First and last rank of a window of fractions of r: max(2, ceil(f r))..floor(g r)."""
    # rounded first: 0.02 * 150 is no integer in binary
    return max(2, math.ceil(round(window[0] * r, 9))), math.floor(round(window[1] * r, 9))


def middle_rank(first: int, last: int) -> int:
    """floor(sqrt(first last)): where a window is split; the middle rank belongs to both halves."""
    return math.isqrt(first * last)


def jittered(first: int, last: int, r: int) -> list[tuple[int, int]]:
    """The window with each end in turn moved a quarter down and up, by one rank at least.

    No end leaves the ranks 1..r, and none comes closer to the other than the middle (of a narrow window of high ranks a
    quarter would be more than all of it).
    """
    middle = (first + last) // 2
    down, up = 1 - JITTER, 1 + JITTER
    low = [(max(1, math.floor(first * down)), last), (min(middle, math.ceil(first * up)), last)]
    return [*low, (first, max(middle, math.floor(last * down))), (first, min(r, math.ceil(last * up)))]


def slope_ranks(r: int, first: int = 1) -> list[int]:
    """Ranks where a local slope is published: four an octave, those whose reach lies inside first..r."""
    grid = sorted({round(2 ** (step / 4)) for step in range(4, 4 * max(1, r).bit_length() + 4)})
    return [k for k in grid if slope_reach(k)[0] >= first and slope_reach(k)[1] <= r]


def slope_reach(k: int) -> tuple[int, int]:
    """First and last rank of the local slope at rank k, an octave: k / sqrt 2 .. k sqrt 2."""
    return round(k / SLOPE_REACH), round(k * SLOPE_REACH)


def exponents_at(spectra: Float[np.ndarray, "*batch k"], first: int, last: int) -> Float[np.ndarray, "*batch"]:
    """OLS exponents of many spectra at the same ranks first..last; NaN where one of these singular values is 0."""
    if last - first < 1 or last > spectra.shape[-1]:
        return np.full(spectra.shape[:-1], np.nan)
    x = np.log(np.arange(first, last + 1))
    x = x - x.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(spectra[..., first - 1 : last])
        slopes = -(y @ x) / (x @ x)
    return np.where(np.isfinite(slopes), slopes, np.nan)


def relative_jitter(sigma: Float[np.ndarray, "k"], first: int, last: int, r: int, alpha: float) -> float:
    """Largest |alpha' / alpha - 1| over the jittered windows; NaN for a flat spectrum or where one has no exponent."""
    moved = [abs(over(float(exponents_at(sigma, *ends)), alpha) - 1) for ends in jittered(first, last, r)]
    return math.nan if any(math.isnan(change) for change in moved) else max(moved)


def relative_bend(head: float, tail: float, alpha: float) -> float:
    """|alpha of the first half - alpha of the second| / alpha; NaN for a flat spectrum."""
    return abs(over(head, alpha) - over(tail, alpha))


def over(value: float, alpha: float) -> float:
    """value / alpha; NaN for a flat spectrum, where no relative figure exists."""
    return value / alpha if abs(alpha) > NO_SLOPE else math.nan


def line(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], w: Float[np.ndarray, "n"]) -> tuple[float, float | None]:
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


def curvature(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], w: Float[np.ndarray, "n"]) -> float:
    """Coefficient of x^2 in the weighted quadratic fit, x centred."""
    x = x - w @ x / w.sum()
    root = np.sqrt(w)
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
    return float(coefficients[2])
