"""What does each save of a training run give over the terminal window? Seven signals, with intervals, by step.

A mean exponent, T mean angle a step, H entropy, E geodesic efficiency, R RankMe, D distance to step 0, v speed: the
distance to the previous save a training step (arXiv 2601.06238 names the first two; window and the others are ours).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..errors import InputError
from .spinal_compare import require_comparable
from .spinal_contrast import exponents_of_both, flipped, student_p
from .spinal_effects import over_blocks, over_steps, spectra_side, why_no_exponents
from .spinal_gates import rank_measures
from .spinal_reading import Readings
from .spinal_settings import RESOLUTION
from .spinal_trace import DRAWS, SpinalTrace, bootstrap_means, jackknife_se, student
from .statistics import cluster_bootstrap

NAMES = {
    "A": "alpha", "T": "transport", "H": "entropy", "E": "efficiency",
    "R": "rankme", "D": "base_distance", "v": "speed",
}  # fmt: skip
UNITS = {"A": "", "T": "rad", "H": "nats", "E": "", "R": "", "D": "rad", "v": "rad/step"}
FLIPPED = ("T", "H", "E")  # one family of sign flips; D cannot be below 0, so that flips mean nothing
WATCHED = ("T", "H", "A", "v")  # by CUSUM
NO_DISTANCE = "models not given"
NUMBERS = ("value", "low", "high", "change", "change_low", "change_high", "p")
ENDS = ("", "_low", "_high")
NO_EFFICIENCY = "the ends of this window were not compared (those of the last third are), or every path is too short"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesDistances:
    """Same-layer distances of read-outs in radians (`base_distance`): entry i - 1 belongs to save i, i = 1..saves - 1.

    Prompts: those finite in all saves, in the order of `together(traces)`.
    """

    to_first: Float[np.ndarray, "intervals layers N"]
    to_previous: Float[np.ndarray, "intervals layers N"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signals:
    """By letter, a row a save: of every prompt, or of the whole sample and without each jackknife group."""

    by_prompt: dict[str, Float[np.ndarray, "saves N"]]  # T, H, E, D, v; NaN where a prompt or save has none
    by_sample: dict[str, tuple[Float[np.ndarray, "saves"], Float[np.ndarray, "saves G"]]]  # A, R
    missing: dict[str, str]  # letter -> why the signal is not there


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Increments:
    """Increments a training step of a watched signal, with their own standard errors; entry i - 1 ends at save i."""

    value: Float[np.ndarray, "intervals"]
    se: Float[np.ndarray, "intervals"]


def together(traces: Sequence[SpinalTrace]) -> tuple[list[SpinalTrace], list[str]]:
    """The traces on the prompts that are finite in all of them, and what must be said.

    Saves of equal weights get the readings of the first such: two passes that differ by round-off are no change.
    Raises InputError for fewer than 2 traces, traces that cannot be compared, or no common prompt.
    """
    if len(traces) < 2:
        raise InputError(f"{len(traces)} traces: a series needs two or more saves")
    warnings = [text for trace in traces[1:] for text in require_comparable(traces[0], trace)]
    kept = np.logical_and.reduce([trace.kept for trace in traces])
    if not kept.any():
        raise InputError("no prompt has finite rows in all saves; run `alignscope doctor` on them")
    first: dict[tuple[str, str], SpinalTrace] = {}
    found = []
    for trace in traces:
        key = (trace.model.fingerprint, trace.token_hash)
        if key not in first:
            first[key] = trace if (trace.kept == kept).all() else trace.restricted(kept)
        found.append(replace(first[key], model=trace.model))
    return found, list(dict.fromkeys(warnings))


def read_signals(
    traces: Sequence[SpinalTrace],
    *,
    steps: Float[np.ndarray, "saves"],
    window: tuple[int, int],
    distances: SeriesDistances | None,
) -> Signals:
    """All signals of traces that went through `together`. Raises InputError for distances of another shape."""
    used = [trace.used for trace in traces]
    n = used[0].rows.shape[1]
    by_prompt: dict[str, Float[np.ndarray, "saves N"]] = {}
    missing: dict[str, str] = {}
    angles = [over_steps(readings.angle, window) for readings in used]
    if any(values is None for values in angles):
        missing["T"] = "one block as window: no step inside it"
    else:
        by_prompt["T"] = np.array(angles)
    by_prompt["H"] = np.array([over_blocks(readings.entropy, window) for readings in used])
    efficiency = _efficiency(used, window)
    if efficiency is None:
        missing["E"] = NO_EFFICIENCY
    else:
        by_prompt["E"] = efficiency

    if distances is None:
        missing |= {"D": NO_DISTANCE, "v": NO_DISTANCE}
    else:
        shape = (len(traces) - 1, traces[0].model.n_layers + 1, n)
        for name, given in (("to_first", distances.to_first), ("to_previous", distances.to_previous)):
            if given.shape != shape or not np.isfinite(given).all() or (given < 0).any():
                raise InputError(
                    f"distances.{name}: {given.shape} given, finite and >= 0 at {shape} (saves after the first, "
                    "layers, prompts finite in all saves) expected"
                )
        first = np.array([over_blocks(layers, window) for layers in distances.to_first])
        previous = np.array([over_blocks(layers, window) for layers in distances.to_previous])
        by_prompt["D"] = np.vstack([np.zeros((1, n)), first])
        by_prompt["v"] = np.vstack([np.full((1, n), np.nan), previous / np.diff(steps)[:, None]])
    by_sample, no_spectra = _from_spectra(traces, window)
    return Signals(by_prompt=by_prompt, by_sample=by_sample, missing=missing | no_spectra)


def _efficiency(readings: Sequence[Readings], window: tuple[int, int]) -> Float[np.ndarray, "saves N"] | None:
    """Geodesic efficiency of every prompt over the window, where all traces hold it."""
    found = [one.efficiency(*window) for one in readings]
    whole = [values for values in found if values is not None and np.isfinite(values).any()]
    return np.array(whole) if len(whole) == len(found) else None


def _from_spectra(
    traces: Sequence[SpinalTrace], window: tuple[int, int]
) -> tuple[dict[str, tuple[Float[np.ndarray, "saves"], Float[np.ndarray, "saves G"]]], dict[str, str]]:
    """A and R over the window: exponents at the ranks that all saves have, of the layers that have one in all."""
    refused = next(filter(None, (why_no_exponents(traces[0], trace) for trace in traces[1:])), None)
    if refused:
        return {}, {"A": refused, "R": refused}
    blocks = np.arange(window[0], window[1] + 1)
    sides = [spectra_side(trace, None) for trace in traces]
    common = replace(
        sides[0],
        n_ranks=np.min([side.n_ranks for side in sides], axis=0),
        fitted=np.logical_and.reduce([side.fitted for side in sides]),
    )
    found, missing = {}, {}
    some = blocks[common.fitted[blocks]]
    if len(some):
        both = [exponents_of_both(common, side, traces[0].settings["window"]) for side in sides]
        found["A"] = (
            np.array([values[1][some].mean() for values, _ in both]),
            np.array([groups[1][:, some].mean(1) for _, groups in both]),
        )
    else:
        missing["A"] = "no layer of the window has an exponent in all saves (column `reason` of the traces' layers)"
    ranks = [rank_measures(side.spectra)["rankme"][blocks].mean() for side in sides]
    if np.isfinite(ranks).all():
        groups = [rank_measures(side.jackknife)["rankme"][:, blocks].mean(1) for side in sides]
        found["R"] = (np.array(ranks), np.array(groups))
    else:
        missing["R"] = "a spectrum of the window is empty: all prompts give one row"
    return found, missing


def trajectory_table(
    signals: Signals, *, steps: Float[np.ndarray, "saves"], clusters: Int[np.ndarray, "N"], seed: int
) -> pd.DataFrame:
    """A row a signal and save: value and change against step 0, with intervals, n, and p of the change.

    p is adjusted: for T, H, E over saves and these signals together (largest |t| of sign flips), for A over saves
    (Holm). A change under 1e-5 is none (p = 1). NaN where there is no number; `reason` then says why.
    """
    p_flipped = _flipped(signals, clusters, seed)
    tables = []
    for letter, name in NAMES.items():
        table = pd.DataFrame({"step": steps, "signal": letter, "quantity": name, "unit": UNITS[letter]})
        if letter in signals.by_prompt:
            columns = _resampled(letter, signals.by_prompt[letter], clusters, seed)
            columns["p"] = p_flipped.get(letter, np.full(len(steps), np.nan))
        elif letter in signals.by_sample:
            columns = _jackknifed(*signals.by_sample[letter])
            columns["n"] = np.full(len(steps), len(clusters))
            columns["p"] = holm_p(*signals.by_sample[letter]) if letter == "A" else np.full(len(steps), np.nan)
        else:
            columns = dict.fromkeys(NUMBERS, np.full(len(steps), np.nan)) | {"n": np.zeros(len(steps), dtype=int)}
        table = table.assign(**{column: columns[column] for column in ("n", *NUMBERS)})
        table["reason"] = signals.missing.get(letter)
        if letter == "v":
            table.loc[0, "reason"] = table.reason[0] or "no save before it"
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _resampled(
    letter: str, values: Float[np.ndarray, "saves N"], clusters: Int[np.ndarray, "N"], seed: int
) -> dict[str, np.ndarray]:
    """Means over prompts and paired changes, with percentile intervals; a distance to step 0 is its own change."""
    if letter == "v":
        change = np.full_like(values, np.nan)  # no speed at step 0 to compare with
    else:
        change = values - values[0]
    both = bootstrap_means(np.vstack([values, change]), clusters, seed)
    names = [name for pair in zip(NUMBERS[:3], NUMBERS[3:6], strict=True) for name in pair]
    halves = [half for part in both for half in np.split(part, 2)]
    return dict(zip(names, halves, strict=True)) | {"n": np.isfinite(values).sum(1)}


def _jackknifed(value: Float[np.ndarray, "saves"], groups: Float[np.ndarray, "saves G"]) -> dict[str, np.ndarray]:
    """Values and paired changes with delete-group intervals; NaN without groups."""
    columns: dict[str, np.ndarray] = {}
    for names, numbers, parts in (
        (NUMBERS[:3], value, groups),
        (NUMBERS[3:6], value - value[0], groups - groups[0]),
    ):
        reach = jackknife_se(parts.T) * student(parts.shape[1])
        columns |= dict(zip(names, (numbers, numbers - reach, numbers + reach), strict=True))
    return columns


def holm_p(value: Float[np.ndarray, "saves"], groups: Float[np.ndarray, "saves G"]) -> Float[np.ndarray, "saves"]:
    """p of the changes against save 0: t of the jackknife, Holm over saves; NaN at save 0 or without groups."""
    freedom = np.full(len(value), groups.shape[1] - 1.0)
    return student_p(value - value[0], jackknife_se((groups - groups[0]).T), freedom)


def _flipped(signals: Signals, clusters: Int[np.ndarray, "N"], seed: int) -> dict[str, Float[np.ndarray, "saves"]]:
    """p of T, H and E at every save after the first, adjusted for all of them; NaN at save 0.

    A prompt that has no efficiency counts as unchanged there: flips leave a 0 alone, so that the test stays exact.
    """
    letters = [letter for letter in FLIPPED if letter in signals.by_prompt]
    changes = [signals.by_prompt[letter][1:] - signals.by_prompt[letter][0] for letter in letters]
    p = flipped(np.nan_to_num(np.vstack(changes)), clusters, seed)[0]
    parts = np.split(p, len(letters))
    return {letter: np.concatenate([[np.nan], part]) for letter, part in zip(letters, parts, strict=True)}


def increments_of(
    signals: Signals, letter: str, *, steps: Float[np.ndarray, "saves"], clusters: Int[np.ndarray, "N"], seed: int
) -> Increments | str:
    """Increments a training step of T, H or A; of v the values, which are increments of a path. Or why there are none.

    An increment whose mean size over prompts is under 1e-5, which batching may move, is 0.
    """
    if letter in signals.missing:
        return signals.missing[letter]
    apart = np.diff(steps)
    if letter in signals.by_sample:
        value, groups = signals.by_sample[letter]
        moved, se = np.diff(value), jackknife_se(np.diff(groups, axis=0).T)
        if not np.isfinite(se).all():
            return "fewer prompts than jackknife groups: no standard error"
        return Increments(value=np.where(np.abs(moved) < RESOLUTION, 0.0, moved) / apart, se=se / apart)
    values = signals.by_prompt[letter]
    moved = values[1:] * apart[:, None] if letter == "v" else np.diff(values, axis=0)
    moved = np.where(np.abs(moved).mean(1, keepdims=True) < RESOLUTION, 0.0, moved) / apart[:, None]
    boot = cluster_bootstrap(moved.T, clusters, draws=DRAWS, seed=seed)
    return Increments(value=boot.mean, se=boot.draws.std(0, ddof=1))


def layers_table(
    traces: Sequence[SpinalTrace],
    *,
    steps: Float[np.ndarray, "saves"],
    clusters: Int[np.ndarray, "N"],
    distances: SeriesDistances | None,
    seed: int,
) -> pd.DataFrame:
    """A row a save and layer: alpha, angle of the step that leaves it, entropy, base_distance, with intervals."""
    tables = []
    kept = ["layer", "n", *(f"{name}{end}" for name in ("alpha", "entropy") for end in ENDS)]
    for i, (step, trace) in enumerate(zip(steps, traces, strict=True)):
        table = trace.layers[kept].copy()
        table.insert(0, "step", step)
        table = table.merge(trace.steps[["layer", *(f"angle{end}" for end in ENDS)]], on="layer", how="left")
        columns: Sequence[np.ndarray] = [np.full(len(table), np.nan)] * 3
        if distances is not None:
            zero = np.zeros((len(table), len(clusters)))
            columns = bootstrap_means(zero if i == 0 else distances.to_first[i - 1], clusters, seed)
        tables.append(table.assign(**{f"base_distance{end}": part for end, part in zip(ENDS, columns, strict=True)}))
    return pd.concat(tables, ignore_index=True)
