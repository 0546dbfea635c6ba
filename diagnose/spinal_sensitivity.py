"""An exponent beside itself: without outlier dimensions, corrected for few rows, over stacks of rows.

Columns of a trace's table of layers, only where they were asked for.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from ..probes.kernels import fit_power_law
from ..probes.kernels.outliers import without_top
from ..probes.kernels.power_law import RankWindow, corrected_exponent
from .spinal_options import SpectrumOptions, exponents_with
from .spinal_spectra import RowSpectrum, group_labels

MAX_OUTLIERS = 0.10  # relative change of an exponent by leaving outlier dimensions out, above which the gate fails


class Stacked(NamedTuple):
    """Mean exponent over stacks with its interval, NaN where there is none, and how many stacks have an exponent."""

    value: float
    low: float
    high: float
    n: int


def without_outliers(rows: Float[np.ndarray, "N d"], first: int, last: int, options: SpectrumOptions) -> float:
    """The exponent at the same ranks without the `drop_top` columns of largest variance; NaN with drop_top=0."""
    if not options.drop_top:
        return math.nan
    left = RowSpectrum(without_top(rows, options.drop_top), center=options.center).values()
    return float(exponents_with(left, first, last, options.estimator)) if len(left) >= last else math.nan


def corrected(
    rows: Float[np.ndarray, "N d"],
    clusters: Int[np.ndarray, "N"],
    window: RankWindow,
    options: SpectrumOptions,
    seed: int,
    n_eff: float | None = None,
) -> tuple[float, str | None]:
    """2 alpha(N) - mean alpha of two disjoint halves of the prompts (`bias="half_sample"`), or why it is refused.

    n_eff: independent rows that the rows are worth; None is one a cluster.
    """
    if options.bias is None:
        return math.nan, None
    spectrum = RowSpectrum(rows, center=options.center)
    half = group_labels(clusters, 2, seed)
    whole = spectrum.subset(None)[: min(len(rows) - 1, rows.shape[1])]
    sides = [np.zeros(len(whole)) for _ in range(2)]
    for side, padded in enumerate(sides):
        values = spectrum.subset(np.flatnonzero(half == side))[: len(whole)]
        padded[: len(values)] = values
    worth = len(np.unique(clusters)) if n_eff is None else n_eff
    fit = corrected_exponent(whole, sides[0], sides[1], window=window, effective_rows=worth)
    return (math.nan if fit.exponent is None else fit.exponent), fit.reason


def stacked(rows: Float[np.ndarray, "N d"], window: RankWindow, options: SpectrumOptions) -> Stacked:
    """Mean exponent over disjoint stacks of `stack` rows, and its t interval over stacks; NaN without two stacks.

    Rows stand in the order of a hash of their text, so that a stack is a random sample. [reconstructed]
    """
    if options.stack is None:
        return Stacked(math.nan, math.nan, math.nan, 0)
    stacks = [rows[start : start + options.stack] for start in range(0, len(rows) - options.stack + 1, options.stack)]
    fits = [
        fit_power_law(
            RowSpectrum(stack, center=options.center).values(),
            window=window,
            estimator=options.estimator,  # type: ignore[arg-type]
        ).exponent
        for stack in stacks
    ]
    found = np.array([alpha for alpha in fits if alpha is not None])
    if len(found) < 2:
        return Stacked(math.nan, math.nan, math.nan, len(found))
    reach = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    mean = float(found.mean())
    return Stacked(mean, mean - reach, mean + reach, len(found))


def add_options(
    layers: pd.DataFrame,
    rows: Float[np.ndarray, "layers N d"],
    clusters: Int[np.ndarray, "N"],
    window: RankWindow,
    options: SpectrumOptions,
    seed: int,
) -> None:
    """Columns of the options that were asked for, and the gate "outliers": in place, and nothing under the defaults."""
    fitted = np.flatnonzero(layers.alpha.notna())
    if options.drop_top:
        layers["alpha_without_top"] = math.nan
        for layer in fitted.tolist():
            first, last = (int(layers[f"{end}_rank"].iloc[layer]) for end in ("first", "last"))
            layers.at[layer, "alpha_without_top"] = without_outliers(rows[layer], first, last, options)
        change = (layers.alpha_without_top / layers.alpha - 1).abs()
        for layer in np.flatnonzero(change > MAX_OUTLIERS).tolist():
            said = f"leaving out {options.drop_top} dimensions changes alpha by {change[layer]:.0%}"
            failed, reason = str(layers["gates_failed"].iloc[layer]), layers["reason"].iloc[layer]
            layers.at[layer, "gates_failed"] = f"{failed}, outliers" if failed else "outliers"
            layers.at[layer, "reason"] = f"{reason}; {said}" if isinstance(reason, str) else said
            layers.at[layer, "gates_passed"] = False
    if options.bias is not None:
        n_eff = layers.n_eff.tolist() if options.pooled else [None] * len(layers)
        pairs = [
            corrected(rows[layer], clusters, window, options, seed, n_eff[layer])
            if layer in fitted
            else (math.nan, "no exponent")
            for layer in range(len(layers))
        ]
        layers["alpha_corrected"], layers["alpha_corrected_reason"] = [p[0] for p in pairs], [p[1] for p in pairs]
    if options.stack is not None:
        found = [stacked(rows[layer], window, options) for layer in range(len(layers))]
        columns = ("alpha_stacked", "alpha_stacked_low", "alpha_stacked_high", "n_stacks")
        for name, column in zip(columns, zip(*found, strict=True), strict=True):
            layers[name] = list(column)
