"""Other exponents than the slope of a line, their conversions, and where a line may be laid at all.

Three exponents circulate; `alpha` is ours: sigma_k ~ k^-alpha, singular values against rank. Formulas: docs/spinal.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from .rank_plot import (
    FEW_POINTS,
    MAX_CURVATURE,
    MAX_JITTER,
    MIN_R_SQUARED,
    exponents_at,
    line,
    middle_rank,
    nonfinite_reason,
    real_ranks,
    relative_bend,
    relative_jitter,
    slope_ranks,
    slope_reach,
    spectrum_column,
    window_ranks,
)

MIN_VALUES = 10  # values >= x_min, below which Clauset's exponent is not given
AUTO_FRACTIONS = tuple(0.02 * 10 ** (step / 4) for step in range(5))  # of r: .02, .036, .063, .112, .2


def alpha_lambda_rank(alpha: float) -> float:
    """2 alpha: the exponent of eigenvalues against rank, lambda_k ~ k^-2alpha (alpha-ReQ's); no unit."""
    return 2 * alpha


def alpha_lambda_pdf(alpha: float) -> float:
    """1 + 1 / (2 alpha): the exponent of the eigenvalues' density, p(lambda) ~ lambda^-that (WeightWatcher, Clauset).

    Falls when alpha rises; [2, 6] there is alpha in [.1, .5]. ValueError: alpha <= 0, whose density is no power law.

    >>> alpha_lambda_pdf(0.5), alpha_lambda_pdf(0.1)
    (2.0, 6.0)
    """
    if not alpha > 0:
        raise ValueError(f"a density has an exponent for alpha > 0 only, got alpha = {alpha}")
    return 1 + 1 / (2 * alpha)


def local_median(sigma: Float[np.ndarray, "k"], first: int, last: int) -> float | None:
    """alpha as the median of the local slopes alpha(k), each over an octave k / sqrt 2 .. k sqrt 2 inside first..last.

    Exact on a power law; a kink or a few odd modes move it less than a line. Octaves and not neighbours: the median of
    slopes between neighbouring ranks of independent draws is alpha ln 2. None: no octave of the grid (`slope_ranks`)
    lies in the window; where last < 2 first there is never one, from 2.4 first on always.
    """
    slopes = [float(exponents_at(sigma, *slope_reach(k))) for k in slope_ranks(last, first)]
    return float(np.median(slopes)) if slopes else None


def rank_half(sigma: Float[np.ndarray, "k"], first: int, last: int) -> tuple[float, float]:
    """alpha = 1 / zeta and its standard error from OLS of ln(k - 1/2) on ln sigma_k: ln(k - 1/2) = a - zeta ln sigma_k.

    SE(zeta) = zeta sqrt(2 / n), n = ranks used, so SE(alpha) = alpha sqrt(2 / n). It is that of n independent draws
    from a Pareto law: right for windows that begin at rank 1, up to a quarter too wide where they do not. Singular
    values repel each other, so of a spectrum it is far too wide: there use a jackknife over rows. The 1/2 takes away
    the bias of independent draws; on an exact power law it puts one in: -5.6, -1.2, -.03 % for ranks 1 to 100, 1,000,
    100,000, and -1.5 % for 11..102. A flat window: 0, 0. Gabaix and Ibragimov 2011.
    """
    k = np.arange(first, last + 1)
    x, y = np.log(sigma[first - 1 : last]), np.log(k - 0.5)
    if line(np.log(k), x, np.ones(len(k)))[1] is None:  # zeta is infinite
        return 0.0, 0.0
    alpha = -1 / line(x, y, np.ones(len(k)))[0]
    return alpha, alpha * float(np.sqrt(2 / len(k)))


def hill(sigma: Float[np.ndarray, "k"], last: int) -> float:
    """alpha = mean over i <= last of ln(sigma_i / sigma_last+1): the head of the rank plot, top ranks included.

    Unbiased for independent draws from a Pareto law. On an exact power law alpha (1 - (ln(2 pi k) / 2 - 1) / k) with
    k = last, to order 1 / k^2: -2.2 % at 100, -.05 % at 10,000. Hill 1975. ValueError: no rank past `last`.
    """
    if not 1 <= last < len(sigma):
        raise ValueError(f"last is a rank with another one past it, 1..{len(sigma) - 1}, got {last}")
    return mean_log_excess(sigma[:last], sigma[last])


def clauset(sigma: Float[np.ndarray, "k"], last: int) -> float:
    """alpha = 1 / (2 (c - 1)), c = 1 + k / sum ln(lambda_i / lambda_k), i <= k = last, lambda = sigma^2: the head.

    x_min is the window's end and not searched for (`clauset_pdf_exponent` does that). (k - 1) / k times `hill` of one
    rank less: alpha (1 - ln(2 pi k) / (2 k)) on an exact power law, -3.2 % at 100. A flat head: 0. arXiv 0706.1062.
    """
    values = sigma[:last] ** 2
    return mean_log_excess(values, values[-1]) / 2


def mean_log_excess(values: Float[np.ndarray, "n"], threshold: float | np.floating) -> float:
    """mean ln(x_i / threshold): the maximum-likelihood 1 / (c - 1) of a density x^-c above the threshold."""
    return float(np.log(values / threshold).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class ClausetFit:
    """A density p(x) ~ x^-exponent for x >= x_min. Without a value, `reason` says why."""

    exponent: float | None
    x_min: float | None
    n: int  # values >= x_min; all values where there is no x_min
    ks: float | None  # Kolmogorov-Smirnov distance of the values >= x_min to the law, in [0, 1]
    reason: str | None


def clauset_pdf_exponent(values: Float[np.ndarray, "n"] | Float[Tensor, "n"], x_min: float | None = None) -> ClausetFit:
    """Exponent of a density of positive values, c = 1 + n / sum ln(x_i / x_min) over the n values >= x_min.

    x_min None: the value whose tail has the smallest Kolmogorov-Smirnov distance, max |S(x) - P(x)| with S(x) the share
    of the tail's values under x, as in the authors' code; ties to the smaller. Order does not matter; no unit.
    Fewer than 10 values >= x_min, or all of them equal: no exponent, with a reason. Of eigenvalues lambda this is
    `alpha_lambda_pdf`. No p-value and no standard error: eigenvalues are not independent. arXiv 0706.1062.
    ValueError: values that are not one column of finite numbers > 0, or x_min <= 0.

    >>> round(clauset_pdf_exponent(np.arange(1.0, 1001) ** -0.5, x_min=1000**-0.5).exponent, 6)
    3.008784
    """
    x = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"one column of values, [n], got shape {x.shape}")
    n_bad = int((~(np.isfinite(x) & (x > 0))).sum())
    if n_bad:
        raise ValueError(f"finite values > 0 expected, got {n_bad} of {len(x)} that are not; leave zeros out")
    if x_min is not None and not 0 < x_min < np.inf:
        raise ValueError(f"x_min is a finite number > 0, got {x_min}")
    x = np.sort(x)
    if x_min is not None:
        tail = x[np.searchsorted(x, x_min) :]
        reason = _no_tail(tail, x_min)
        if reason:
            return ClausetFit(exponent=None, x_min=x_min, n=len(tail), ks=None, reason=reason)
        return _pareto(tail, x_min)
    fits = [_pareto(x[start:], x[start]) for start in _starts(x)]
    if not fits:
        return ClausetFit(exponent=None, x_min=None, n=len(x), ks=None, reason=_no_tail(x, x[0] if len(x) else None))
    return min(fits, key=lambda fit: (fit.ks, fit.x_min))


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoWindow:
    """Ranks (first, last) on which a spectrum is straight enough for one exponent; None with a reason. Ours."""

    ranks: tuple[int, int] | None
    reason: str | None
    reconstructed: bool = True


def auto_window(singular_values: Float[Tensor, "k"] | Float[np.ndarray, "k"]) -> AutoWindow:
    """The widest window inside the default one, ranks .02 r .. .2 r, that passes the gates of a spectrum.

    Ends lie on four equal log steps between .02 r and .2 r; windows of more steps come first, of as many those of
    smaller ranks. Gates: 20 points, R^2 >= .98, halves within 15 % of alpha, moved ends within 5 %. Never past .2 r:
    larger ranks measure N / d, which no gate on one spectrum sees, so a window here is straight, not unbiased.
    ValueError: not one descending column of sigma >= 0. Reconstructed: SPINAL defines no such rule.

    >>> auto_window(np.arange(1.0, 512.0) ** -0.75).ranks
    (11, 102)
    """
    sigma = spectrum_column(singular_values)
    if reason := nonfinite_reason(sigma):
        return AutoWindow(ranks=None, reason=reason)
    r = real_ranks(sigma)
    windows = [(first, last) for first, last in _candidates(r) if last - first + 1 >= FEW_POINTS]
    if not windows:
        return AutoWindow(ranks=None, reason=f"too few modes: no window holds {FEW_POINTS} ranks (r = {r})")
    for first, last in windows:
        if _bent(sigma, first, last, r) is None:
            return AutoWindow(ranks=(first, last), reason=None)
    first, last = windows[0]
    found = f"ranks {first}..{last}: {_bent(sigma, first, last, r)}"
    return AutoWindow(ranks=None, reason=f"no window of {len(windows)} is straight; {found}")


def _candidates(r: int) -> list[tuple[int, int]]:
    """Windows of ranks, widest first."""
    steps = len(AUTO_FRACTIONS) - 1
    ends = [(start, start + width) for width in range(steps, 0, -1) for start in range(steps - width + 1)]
    return [window_ranks(r, (AUTO_FRACTIONS[start], AUTO_FRACTIONS[stop])) for start, stop in ends]


def _bent(sigma: Float[np.ndarray, "k"], first: int, last: int, r: int) -> str | None:
    """Which gates the window fails, with their figures; None where it passes. A NaN fails."""
    k = np.arange(first, last + 1)
    slope, r_squared = line(np.log(k), np.log(sigma[first - 1 : last]), np.ones(len(k)))
    if r_squared is None:
        return "the spectrum is flat"
    middle = middle_rank(first, last)
    head, tail = float(exponents_at(sigma, first, middle)), float(exponents_at(sigma, middle, last))
    bend, jitter = relative_bend(head, tail, -slope), relative_jitter(sigma, first, last, r, -slope)
    failed = [
        text
        for passed, text in (
            (r_squared >= MIN_R_SQUARED, f"R^2 {r_squared:.3f}"),
            (bend < MAX_CURVATURE, f"halves differ by {bend:.0%} of alpha"),
            (jitter < MAX_JITTER, f"moved ends change alpha by {jitter:.1%}"),
        )
        if not passed
    ]
    return ", ".join(failed) or None


def _starts(x: Float[np.ndarray, "n"]) -> list[int]:
    """Where a tail of sorted values may begin: at the first of equal values, with 10 of them, not all equal."""
    return [
        start
        for start in range(len(x) - MIN_VALUES + 1)
        if (start == 0 or x[start] > x[start - 1]) and x[-1] > x[start]
    ]


def _no_tail(tail: Float[np.ndarray, "n"], x_min: float | np.floating | None) -> str | None:
    if len(tail) < MIN_VALUES:
        return f"too few values: {len(tail)} to fit, {MIN_VALUES} needed"
    return f"all {len(tail)} values equal x_min" if tail[-1] == x_min else None


def _pareto(tail: Float[np.ndarray, "n"], x_min: float | np.floating) -> ClausetFit:
    """Fit of sorted values >= x_min, not all equal to it."""
    n, rate = len(tail), 1 / mean_log_excess(tail, x_min)
    under = np.searchsorted(tail, tail) / n  # of equal values the share below all of them
    law = -np.expm1(-rate * np.log(tail / x_min))
    return ClausetFit(exponent=1 + rate, x_min=float(x_min), n=n, ks=float(np.abs(law - under).max()), reason=None)
