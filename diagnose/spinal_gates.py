"""When can an exponent be trusted? One layer's power-law fit with every figure that may speak against it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from ..probes.kernels import (
    PowerLawFit,
    fit_power_law,
    participation_ratio,
    rankme,
    spectral_entropy_rank,
    stable_rank,
)
from ..probes.kernels.power_law import Estimator
from ..probes.kernels.rank_plot import (
    FEW_POINTS,
    MAX_CURVATURE,
    MAX_JITTER,
    MIN_R_SQUARED,
    NO_SLOPE,
    exponents_at,
    over,
    real_ranks,
    relative_bend,
    relative_jitter,
    slope_ranks,
    slope_reach,
)
from ..probes.kernels.rank_plot import jittered as jittered  # read from here beside the gates and windows they serve
from ..probes.kernels.rank_plot import window_ranks as window_ranks

Window = tuple[float, float]
Spectrum = Float[np.ndarray, "_"]  # of any length: the spectra of half samples are shorter

MIN_ROWS = 46  # with fewer rows, or columns under 45, the default window holds fewer than 8 ranks
WIDE, BULK = (0.05, 0.5), (0.1, 0.9)  # the other windows, always printed beside the chosen one
ROUGH_DTYPES = ("bfloat16", "float16")  # whose rounding reaches into a window of ranks
MAX_DEFLATED = 0.02  # change of an exponent by dropping ranks under the rounding floor, above which a warning stands
MAX_HALF = 0.05  # the thresholds of gates on one spectrum stand in probes/kernels/rank_plot.py
FLAT = "the spectrum is flat: no relative figure"
RANK_MEASURES = ("rankme", "spectral_entropy_rank", "participation_ratio", "stable_rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFit:
    """An exponent (of singular values against rank) and its gates. NaN where a figure could not be had."""

    alpha: float
    alpha_wls: float  # weights 1/k
    alpha_wide: float  # ranks .05 r .. .5 r
    alpha_bulk: float  # ranks .1 r .. .9 r: biased by N / d
    alpha_plain: float  # of all ranks, those under the rounding floor too; alpha itself but for bfloat16 and float16
    n_ranks: int
    n_points: int
    first_rank: int
    last_rank: int
    r_squared: float
    curvature: float  # coefficient of (log k)^2
    alpha_head: float  # slopes of the two halves of the window, split at floor(sqrt(first last))
    alpha_tail: float
    half_sample_ratio: float  # mean alpha(N/2) over draws / alpha(N); window recomputed
    half_sample_sd: float  # of one draw, relative
    jitter: float  # largest relative change of alpha when an end of the window moves by a quarter
    floor_ratio: float  # smallest variance in the window of all ranks / rounding floor of the storage dtype
    failed: tuple[str, ...]  # gates that failed
    reason: str | None  # why there is no alpha, or which gates failed, with their figures

    @property
    def gates_passed(self) -> bool:
        """Every gate passed; False also where there is no alpha."""
        return math.isfinite(self.alpha) and not self.failed


def fit_layer(
    sigma: Spectrum,
    *,
    n: int,
    width: int,
    window: Window | Literal["auto"],
    halves: Sequence[Spectrum] = (),
    floor: float = 0.0,
    dtype: str = "float32",
    estimator: Estimator = "ols",
    rows: str = "prompts",
    refused: str | None = None,
) -> LayerFit:
    """Fit and gates of one layer's singular values (n rows of `width` columns); `halves`: spectra of n // 2 of them.

    floor: variance added by storage in `dtype` (spinal_spectra.rounding_floor). Of bfloat16 and float16 the ranks under
    it are dropped, in the halves too; the gate "floor" is judged on the window of all ranks. estimator: of alpha, see
    `fit_power_law`; R^2, curvature and jitter stay those of lines. rows: what a row is called. refused: why there may
    be no exponent. Thresholds: ours (docs/spinal.md).
    """
    plain = fit_power_law(sigma, window=window, estimator=estimator)
    sigma_plain, sigma = sigma, above_floor(sigma, n, floor, dtype)
    fit = fit_power_law(sigma, window=window, estimator=estimator)
    if plain.n_ranks == 0:
        return _without(fit, f"all {n} rows are the same: every prompt gives this layer the same input")
    if refused is not None:
        return _without(fit, refused)
    if n < MIN_ROWS or width < MIN_ROWS - 1:
        return _without(fit, f"too few modes: {n} {rows} of width {width}; {MIN_ROWS} {rows} of width 45 needed")
    if fit.exponent is None and (plain.exponent is not None or fit.n_ranks == 0):
        under = f"{plain.n_ranks - fit.n_ranks} of {plain.n_ranks} ranks lie under the rounding floor of {dtype}"
        return _without(fit, f"{under}; trace in float32")
    if fit.exponent is None:
        return _without(fit, fit.reason or "no fit")
    alpha, (head, tail) = fit.exponent, fit.half_exponents or (math.nan, math.nan)
    if window == "auto":  # halves get the same share of their ranks, not a choice of their own
        window = fit.first_rank / fit.n_ranks, fit.last_rank / fit.n_ranks
    halves = [above_floor(half, n // 2, floor, dtype) for half in halves]
    halved = np.array([_exponent(fit_power_law(half, window=window, estimator=estimator)) for half in halves])
    half_ratio = over(float(halved.mean()), alpha) if len(halved) else math.nan
    line = alpha if estimator == "ols" else float(exponents_at(sigma, fit.first_rank, fit.last_rank))
    jitter = relative_jitter(sigma, fit.first_rank, fit.last_rank, fit.n_ranks, line)  # of the window, by lines
    floor_ratio = float(sigma_plain[plain.last_rank - 1] ** 2 / n / floor) if floor > 0 else math.nan
    r_squared = math.nan if fit.r_squared is None else fit.r_squared
    bend = relative_bend(head, tail, alpha)
    figures = {
        "points": (fit.n_points >= FEW_POINTS, f"{fit.n_points} points, {FEW_POINTS} wanted"),
        "r_squared": (r_squared >= MIN_R_SQUARED, f"R^2 {r_squared:.3f} < {MIN_R_SQUARED}"),
        "curvature": (bend < MAX_CURVATURE, f"the halves of the window differ by {bend:.0%} of alpha"),
        "half_sample": (abs(half_ratio - 1) < MAX_HALF, _half_sentence(half_ratio, dtype)),
        "jitter": (jitter < MAX_JITTER, f"moving an end of the window changes alpha by {jitter:.1%}"),
        "floor": (not floor_ratio < 1, f"the window reaches under the rounding floor ({floor_ratio:.2g} of it)"),
    }
    if abs(alpha) <= NO_SLOPE:
        figures |= dict.fromkeys(("r_squared", "curvature", "half_sample", "jitter"), (False, FLAT))
    if not len(halves):  # a spectrum alone: nobody could draw half of its rows
        del figures["half_sample"]
    failed = tuple(name for name, (passed, _) in figures.items() if not passed)
    return LayerFit(
        alpha=alpha,
        alpha_wls=_exponent(fit_power_law(sigma, window=window, estimator="wls")),
        alpha_wide=_exponent(fit_power_law(sigma, window=WIDE)),
        alpha_bulk=_exponent(fit_power_law(sigma, window=BULK)),
        alpha_plain=_exponent(plain),
        n_ranks=fit.n_ranks,
        n_points=fit.n_points,
        first_rank=fit.first_rank,
        last_rank=fit.last_rank,
        r_squared=r_squared,
        curvature=math.nan if fit.curvature is None else fit.curvature,
        alpha_head=head,
        alpha_tail=tail,
        half_sample_ratio=half_ratio,
        half_sample_sd=over(float(halved.std(ddof=1)), alpha) if len(halved) > 1 else math.nan,
        jitter=jitter,
        floor_ratio=floor_ratio,
        failed=failed,
        reason="; ".join(dict.fromkeys(figures[name][1] for name in failed)) or None,
    )


def above_floor(sigma: Spectrum, n: int, floor: float, dtype: str) -> Spectrum:
    """The singular values of n rows that are more than rounding: all but for bfloat16 and float16."""
    return sigma[sigma**2 / max(n, 1) >= floor] if dtype in ROUGH_DTYPES else sigma


def rank_measures(spectra: Float[np.ndarray, "*batch k"]) -> dict[str, Float[np.ndarray, "*batch"]]:
    """The four rank measures of every spectrum; NaN for a spectrum of zeros or without values."""
    if spectra.shape[-1] == 0:
        return {name: np.full(spectra.shape[:-1], np.nan) for name in RANK_MEASURES}
    measures = (rankme, spectral_entropy_rank, participation_ratio, stable_rank)
    sigma = torch.from_numpy(np.ascontiguousarray(spectra))
    return {name: measure(sigma).numpy() for name, measure in zip(RANK_MEASURES, measures, strict=True)}


def local_slopes(sigma: Spectrum) -> list[tuple[int, float]]:
    """alpha(k): the exponent over ranks k / sqrt 2 .. k sqrt 2, for k on a grid; one power law would be flat."""
    r = real_ranks(sigma)
    pairs = [(k, exponents_at(sigma, *slope_reach(k))) for k in slope_ranks(r)]
    return [(k, float(slope)) for k, slope in pairs]


def _without(fit: PowerLawFit, reason: str) -> LayerFit:
    nan = math.nan
    figures = (
        "alpha",
        "alpha_wls",
        "alpha_wide",
        "alpha_bulk",
        "alpha_plain",
        "r_squared",
        "curvature",
        "alpha_head",
        "alpha_tail",
        "half_sample_ratio",
        "half_sample_sd",
        "jitter",
        "floor_ratio",
    )
    return LayerFit(
        **dict.fromkeys(figures, nan),
        n_ranks=fit.n_ranks,
        n_points=fit.n_points,
        first_rank=fit.first_rank,
        last_rank=fit.last_rank,
        failed=(),
        reason=reason,
    )


def _half_sentence(ratio: float, dtype: str) -> str:
    if math.isfinite(ratio):
        return f"half the prompts change alpha by {ratio - 1:+.1%}"
    above = f" with their ranks above the rounding floor of {dtype}" if dtype in ROUGH_DTYPES else ""
    return f"no half-sample exponent: {2 * MIN_ROWS} prompts{above} needed"


def _exponent(fit: PowerLawFit) -> float:
    return math.nan if fit.exponent is None else fit.exponent
