"""Where over depth did a model change, and would other prompts say the same place? The detected window.

Reconstructed: ours, not the paper's. Detect on one half of the prompts, estimate on the other, swap: an effect read off
the layers that were picked for being large, on the same prompts, is too large.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from .report import Estimate
from .spinal_components import Blocks, blocks_of, steps_of
from .spinal_estimates import estimate, ours
from .spinal_reading import MIN_WINDOW
from .spinal_settings import RESOLUTION
from .spinal_trace import SAMPLING_ONLY, jackknife_se, student

STABLE = 0.5  # overlap of the windows of both halves, below which there is no stable location
NO_LOCATION = "no stable location"
# simulated: two halves of independent standard normal differences, 2,000 runs each
CHANCE = "windows of pure noise overlap by half in about 9 % of runs with 30 blocks, 28 % with 12 and 61 % with 6"
OVERLAP = "overlap of the windows found on two halves of the prompts (Jaccard: blocks in both / blocks in either)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowFound:
    """The run of blocks that stands out most in one profile, or null with its reason; `reconstructed`."""

    profile: Float[np.ndarray, "L"]  # c of blocks 1..L, NaN where nothing entered
    window: Blocks | None  # first and last block
    score: float | None  # sum_S (c - mean c) / sqrt |S|
    reason: str | None = None
    reconstructed: Literal[True] = True

    def to_frame(self) -> pd.DataFrame:
        """A row a block: layer, c, in_window."""
        layers = np.arange(1, len(self.profile) + 1)
        first, last = self.window or (0, -1)
        return pd.DataFrame({"layer": layers, "c": self.profile, "in_window": (first <= layers) & (layers <= last)})

    def summary(self) -> str:
        """One sentence that a non-author can quote."""
        if self.window is None:
            return f"No window of change was detected: {self.reason}."
        return f"The change stands out most at blocks {self.window[0]} to {self.window[1]}, on these prompts."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerEffect:
    """A difference by layer on one half of the prompts, with the same without each of G jackknife groups of it.

    over: "blocks" (exponents, entropies: layers 0..L) or "steps" (angles: steps 0..L-1). Index 0 enters nothing.
    """

    label: str
    value: Float[np.ndarray, "K"]  # NaN where a layer has none
    groups: Float[np.ndarray, "G K"]
    over: Literal["blocks", "steps"]
    unit: str = ""

    def mean(self, window: Blocks) -> tuple[float, float, int]:
        """Mean over the blocks of the window, or its steps with both ends inside, that have a value; SE; how many."""
        places = np.array(blocks_of(window) if self.over == "blocks" else steps_of(window), dtype=int)
        some = places[np.isfinite(self.value[places])]
        if not len(some):
            return math.nan, math.nan, 0
        return float(self.value[some].mean()), float(jackknife_se(self.groups[:, some].mean(1))), len(some)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectedWindow:
    """Windows found on two halves of the prompts, how far they agree, and effects cross-fitted over them.

    overlap: null where a half has no window. blocks: those in both windows; None under half an overlap, which reads "no
    stable location". Every number is `reconstructed`.
    """

    first: WindowFound
    second: WindowFound
    overlap: Estimate
    effects: dict[str, Estimate]

    @property
    def stable(self) -> bool:
        return self.overlap.value is not None and self.overlap.value >= STABLE

    @property
    def blocks(self) -> Blocks | None:
        """First and last of the blocks in both windows."""
        if not self.stable or self.first.window is None or self.second.window is None:
            return None
        return max(self.first.window[0], self.second.window[0]), min(self.first.window[1], self.second.window[1])

    @property
    def reason(self) -> str | None:
        """Why there are no `blocks`."""
        return None if self.stable else NO_LOCATION if self.overlap.value is not None else self.overlap.reason

    def to_frame(self) -> pd.DataFrame:
        """A row a block: c on either half (NaN: nothing entered), and whether it is in that half's window."""
        first, second = self.first.to_frame(), self.second.to_frame()
        table = first.merge(second, on="layer", suffixes=("_first", "_second"))
        return table.rename(columns=lambda name: name.replace("in_window", "in")).assign(reconstructed=True)

    def summary(self) -> str:
        """One to three sentences that a non-author can quote."""
        if self.overlap.value is None:
            return f"No window of change was detected: {self.overlap.reason}."
        windows = " and ".join(f"{w.window[0]} to {w.window[1]}" for w in (self.first, self.second) if w.window)
        found = (
            f"The change stands out at blocks {windows} on two halves of the prompts, overlap {self.overlap.value:.2f}"
        )
        if self.blocks is None:
            return f"{found}: {NO_LOCATION}."
        effects = "; ".join(f"{effect.label} {effect}" for effect in self.effects.values())
        return (
            f"{found}; both hold blocks {self.blocks[0]} to {self.blocks[1]}."
            + (f" Cross-fitted: {effects}." if effects else "")
            + f" Overlap alone is weak evidence: {CHANCE}."
        )


def change_profile(
    d_alpha: Float[np.ndarray, "layers"],
    se_alpha: Float[np.ndarray, "layers"],
    d_angle: Float[np.ndarray, "steps"],
    se_angle: Float[np.ndarray, "steps"],
) -> Float[np.ndarray, "L"]:
    """c_l = |dalpha_l| / SE + |dL_l| / SE of blocks 1..L; no unit. [reconstructed]

    Differences and standard errors of layers 0..L and of steps 0..L-1 (l to l + 1); layer 0 and step 0 do not enter.
    Block l takes the step that leaves it, so block L, which none leaves, has the exponent's part alone and is found
    less easily; and other weights in block b show first in the step into it, that is at c of block b - 1.
    A part that is NaN, or that differs with a standard error of 0, does not enter: a layer without an exponent has its
    transport part alone; c is NaN where neither enters. Differences under 1e-5, what batching may move, count as 0.
    Raises ValueError unless there is one step less than layers, and for negative standard errors.
    """
    if not len(d_alpha) == len(se_alpha) == len(d_angle) + 1 == len(se_angle) + 1:
        raise ValueError(
            f"lengths {len(d_alpha)}, {len(se_alpha)}, {len(d_angle)}, {len(se_angle)}: expected L + 1 exponents with "
            "errors, L angles with errors"
        )
    parts = np.full((2, len(d_angle)), np.nan)
    parts[0] = _in_errors(d_alpha, se_alpha)[1:]
    parts[1, :-1] = _in_errors(d_angle, se_angle)[1:]
    return np.where(np.isfinite(parts).any(0), np.nansum(parts, axis=0), np.nan)


def _in_errors(difference: Float[np.ndarray, "K"], se: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    """|difference| / SE; NaN where there is none, 0 for a difference under the resolution."""
    if (se < 0).any():
        raise ValueError(f"standard errors are >= 0, got {np.nanmin(se):.3g}")
    size = np.abs(difference)
    known = np.isfinite(size) & np.isfinite(se) & ((se > 0) | (size < RESOLUTION))
    ratio = np.divide(size, se, out=np.zeros(size.shape), where=known & (size >= RESOLUTION))
    return np.where(known, ratio, np.nan)


def best_window(profile: Float[np.ndarray, "L"]) -> WindowFound:
    """The contiguous blocks S that maximise sum_S (c - mean c) / sqrt |S|, 3 <= |S| <= 2L/3. [reconstructed]

    profile: c of blocks 1..L. Ties to the earlier, then the shorter. A block without c (NaN) is in no window and not in
    the mean. None, with a reason, under 5 blocks (no length fits) and where no such run lies above the mean.
    """
    blocks = len(profile)
    if 2 * blocks // 3 < MIN_WINDOW:
        return WindowFound(profile=profile, window=None, score=None, reason=f"{blocks} blocks: detection needs 5")
    above = profile - np.nanmean(profile) if np.isfinite(profile).any() else profile
    margin = 1e-12 * max(float(np.abs(profile).max(where=np.isfinite(profile), initial=0.0)), 1.0)
    best, window = margin, None  # a later or longer run must win by more than rounding
    for first in range(blocks):
        for size in range(MIN_WINDOW, min(2 * blocks // 3, blocks - first) + 1):
            score = float(above[first : first + size].sum()) / math.sqrt(size)
            if score > best + (margin if window else 0.0):
                best, window = score, (first + 1, first + size)
    if window is None:
        known = np.isfinite(profile)
        reason = f"no {MIN_WINDOW} neighbouring blocks stand out from the others"
        if not (known[:-2] & known[1:-1] & known[2:]).any():
            reason = f"no {MIN_WINDOW} neighbouring blocks have a difference with a standard error"
        return WindowFound(profile=profile, window=None, score=None, reason=reason)
    return WindowFound(profile=profile, window=window, score=best)


def detect_window(
    d_alpha: Float[np.ndarray, "layers"],
    se_alpha: Float[np.ndarray, "layers"],
    d_angle: Float[np.ndarray, "steps"],
    se_angle: Float[np.ndarray, "steps"],
) -> WindowFound:
    """`best_window` of the `change_profile`: where two models differ most, in standard errors, over depth."""
    return best_window(change_profile(d_alpha, se_alpha, d_angle, se_angle))


def detected(
    first: WindowFound,
    second: WindowFound,
    effects: Mapping[str, tuple[LayerEffect, LayerEffect]],
    *,
    n: tuple[int, int],
    n_clusters: tuple[int, int] | None = None,
) -> DetectedWindow:
    """Compare the windows found on two disjoint halves of the prompts, and cross-fit effects over them.

    effects: by name, the effect of the first and of the second half; each is averaged over the window that the *other*
        half found, and the two averaged: (mean_2 over W_1 + mean_1 over W_2) / 2, SE = sqrt(SE_1^2 + SE_2^2) / 2, t
        with the smaller number of groups less 1: the halves share no prompt, and the windows are held.
    n, n_clusters: prompts, and clusters of them, in each half; without n_clusters each prompt is its own.
    An effect is given also where there is no stable location: it then averages two different places.
    Raises ValueError for profiles of different lengths.
    """
    if len(first.profile) != len(second.profile):
        raise ValueError(f"profiles of {len(first.profile)} and {len(second.profile)} blocks: expected the same")
    counts = {"n": sum(n), "n_clusters": sum(n_clusters or n)}
    return DetectedWindow(
        first=first,
        second=second,
        overlap=_overlap(first, second, n, counts),
        effects={name: _cross_fitted(pair, first, second, counts) for name, pair in effects.items()},
    )


def jaccard(first: Blocks, second: Blocks) -> float:
    """Blocks in both windows over blocks in either, in [0, 1]."""
    one, two = set(blocks_of(first)), set(blocks_of(second))
    return len(one & two) / len(one | two)


def _overlap(first: WindowFound, second: WindowFound, n: tuple[int, int], counts: dict[str, int]) -> Estimate:
    value = None if first.window is None or second.window is None else jaccard(first.window, second.window)
    return Estimate(
        label=OVERLAP,
        value=value,
        level=None,
        **counts,
        unit="share",
        method=f"one split into {n[0]} and {n[1]} prompts; under {STABLE} there is {NO_LOCATION}; {CHANCE}",
        reason=None if value is not None else _no_window(first, second),
        reconstructed=True,
    )


def _no_window(first: WindowFound, second: WindowFound) -> str:
    return f"half of the prompts: {first.reason or second.reason}"


def _cross_fitted(
    effects: tuple[LayerEffect, LayerEffect], first: WindowFound, second: WindowFound, counts: dict[str, int]
) -> Estimate:
    value = reach = math.nan
    groups = min(len(effect.groups) for effect in effects)
    layers, reason = (0, 0), None
    if first.window is None or second.window is None:
        reason = _no_window(first, second)
    else:
        (one, se_one, n_one), (two, se_two, n_two) = effects[1].mean(first.window), effects[0].mean(second.window)
        layers = (n_one, n_two)
        value = (one + two) / 2
        reach = math.hypot(se_one, se_two) / 2 * student(groups)
        reason = (
            "no layer of a window has a value"
            if math.isnan(value)
            else "no delete-group values of a half (fewer prompts than groups)"
        )
    return ours(
        estimate(
            effects[0].label,
            value,
            value - reach,
            value + reach,
            **counts,
            unit=effects[0].unit,
            method=f"each half's mean over the window that the other half found ({layers[0]} and {layers[1]} "
            f"{effects[0].over}), averaged; delete-group jackknife in each half, {groups} groups, variances added, "
            f"windows held; {SAMPLING_ONLY}",
            reason=reason,
            null_value=0.0,
        )
    )
