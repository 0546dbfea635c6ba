"""What differs between two traces over the terminal blocks? The aggregates that a contrast and its controls share.

Second minus first, paired over the same prompts.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .spinal_contrast import ExponentContrast, SpectraSide, exponent_contrast, windows
from .spinal_formats import unlike_formats
from .spinal_options import SpectrumOptions
from .spinal_reading import Readings
from .spinal_trace import SpinalTrace, bootstrap_means

Interval = tuple[float, float, float]  # value, low, high; NaN where it could not be had
Blocks = tuple[int, int] | None  # first and last block of the terminal window


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Effects:
    """Differences of two traces of the same prompts, over one window of blocks."""

    exponents: dict[str, ExponentContrast]  # by layer, for the chosen window of ranks ("") and the two beside it
    means: dict[str, Float[np.ndarray, "N"] | None]  # a value a prompt; None where the window has none
    window: Blocks
    no_exponents: str | None  # why exponents may not be compared; they are NaN then

    @property
    def blocks(self) -> Int[np.ndarray, "k"]:
        """The blocks of the window."""
        return np.array([], dtype=int) if self.window is None else np.arange(self.window[0], self.window[1] + 1)

    def interval(self, name: str, clusters: Int[np.ndarray, "N"], seed: int) -> Interval:
        """Mean and 95 % interval of one aggregate: jackknife for `d_alpha_terminal*`, cluster bootstrap otherwise."""
        if name.startswith(ALPHA):
            return self.exponents[name.removeprefix(ALPHA)].mean(self.blocks)[:3]
        values = self.means[name]
        if values is None:
            return math.nan, math.nan, math.nan
        value, low, high = (float(part[0]) for part in bootstrap_means(values[None], clusters, seed))
        return value, low, high


ALPHA = "d_alpha_terminal"
HEADLINES = (ALPHA, "d_transport_terminal", "d_entropy_terminal", "d_efficiency_terminal")


def effects(first: SpinalTrace, second: SpinalTrace, window: Blocks) -> Effects:
    """Second minus first over the terminal blocks, of traces that keep the same prompts in the same order."""
    a, b = first.used, second.used
    sides = compared_sides(first, second)
    return Effects(
        exponents={name: exponent_contrast(*sides, ranks) for name, ranks in windows(first.settings["window"]).items()},
        means={
            "d_transport_terminal": over_steps(b.angle - a.angle, window),
            "d_transport_terminal_sampled": over_steps(b.angle_sampled - a.angle_sampled, window),
            "d_entropy_terminal": over_blocks(b.entropy - a.entropy, window),
            "d_efficiency_terminal": _straighter(a, b, window),
        },
        window=window,
        no_exponents=why_no_exponents(first, second),
    )


def why_no_exponents(first: SpinalTrace, second: SpinalTrace) -> str | None:
    """Why two spectra may not be compared (the identical-N rule); None where they may."""
    if first.token_hash != second.token_hash:
        return f"different token ids (hash {first.token_hash[:12]} and {second.token_hash[:12]})"
    if first.model.d_model != second.model.d_model:
        return f"different widths ({first.model.d_model} and {second.model.d_model}): exponents move with N / d"
    return unlike_formats(first, second)


def over_steps(values: Float[np.ndarray, "steps N"], window: Blocks) -> Float[np.ndarray, "N"] | None:
    """Mean over the steps with both ends in the window, a prompt."""
    if window is None or window[1] == window[0]:
        return None
    return values[window[0] : window[1]].mean(0)


def over_blocks(values: Float[np.ndarray, "layers N"], window: Blocks) -> Float[np.ndarray, "N"] | None:
    """Mean over the blocks of the window, a prompt."""
    return None if window is None else values[window[0] : window[1] + 1].mean(0)


def _straighter(a: Readings, b: Readings, window: Blocks) -> Float[np.ndarray, "N"] | None:
    if window is None:
        return None
    ends = [readings.efficiency(*window) for readings in (a, b)]
    return None if ends[0] is None or ends[1] is None else ends[1] - ends[0]


def compared_sides(first: SpinalTrace, second: SpinalTrace) -> tuple[SpectraSide, SpectraSide]:
    """What a contrast of exponents reads of both; nothing where they may not be compared."""
    refused = why_no_exponents(first, second)
    side = spectra_side(first, refused)
    return side, side if refused else spectra_side(second, None)  # spectra of other widths have other shapes


def spectra_side(trace: SpinalTrace, refused: str | None) -> SpectraSide:
    """What a contrast of exponents reads of a trace; nothing where it is refused."""
    fitted = trace.layers.alpha.notna().to_numpy()
    return SpectraSide(
        spectra=trace.spectra,
        jackknife=trace.jackknife_spectra,
        n_ranks=trace.layers.n_ranks.to_numpy(),
        fitted=np.zeros_like(fitted) if refused else fitted,
        estimator=SpectrumOptions.of(trace.settings).estimator,
    )
