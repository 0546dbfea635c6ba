"""When did training begin to change a model's read-out, and when did it break? SPINAL over the saves of one run.

    traces = [spinal_trace(load(save), "prompts.jsonl") for save in saves]
    series = spinal_series(traces, steps=[0, 100, 200, 400])
    series.onset, series.alarms

arXiv 2601.06238 says that the signal shows when alignment destabilises; its criterion is unread, so rules are ours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..errors import InputError
from .changepoints import ALARM_AT, BURN_IN, DRIFT, Break, Cusum, Onset, breakpoint_interval, cusum, onset
from .report import Estimate
from .spinal_contrast import MIN_TESTED, terminal_window
from .spinal_controls import ALARM
from .spinal_estimates import ours
from .spinal_series_estimates import earliest, series_estimates
from .spinal_series_rules import HELD_OUT, AgainstBest, Alarm, HeldOut, against_best, cusum_alarms, plain_alarms
from .spinal_series_signals import (
    FLIPPED,
    NAMES,
    WATCHED,
    SeriesDistances,
    Signals,
    increments_of,
    layers_table,
    read_signals,
    together,
    trajectory_table,
)
from .spinal_settings import RESOLUTION
from .spinal_trace import SpinalTrace

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from .report import SectionResult

__all__ = ["HeldOut", "SeriesDistances", "SpinalSeries", "spinal_series", "together"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpinalSeries:
    """Seven signals by step, when they first changed for good, and where a rule says that the run broke.

    trajectory: a row a signal (A, T, H, E, R, D, v) and save; layers: a row a save and layer. `alarms` is empty where
    no rule fired. Angles in radians, entropies in nats, speeds in radians a training step.
    """

    names: tuple[str, ...]
    steps: tuple[float, ...]
    window: tuple[int, int]
    trajectory: pd.DataFrame
    layers: pd.DataFrame
    onsets: dict[str, Onset]  # by signal: T, H, E, A
    breaks: dict[str, Break]  # broken stick, by signal: T, H
    cusums: dict[str, Cusum | str]  # by signal: T, H, A, v; a text where it could not be had
    alarms: tuple[Alarm, ...]
    estimates: dict[str, Estimate]
    settings: dict[str, Any]
    counts: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def onset(self) -> Onset:
        """The first confirmed onset of any signal."""
        return earliest(self.onsets)

    def to_frame(self) -> pd.DataFrame:
        """The trajectory, a row a signal and save."""
        return self.trajectory.copy()

    def section(self) -> "SectionResult":
        """The report's section "series"."""
        from .spinal_series_section import series_section

        return series_section(self)

    def summary(self) -> str:
        """One to three sentences that a non-author can quote."""
        return self.section().section.summary

    def figure(self) -> "go.Figure":
        """Of the figures of this section the trajectory; `figures()` gives all."""
        return self.figures()["trajectory"]

    def figures(self) -> "dict[str, go.Figure]":
        """The figures of this section by name."""
        from ..dashboards.series_figures import series_figures

        result = self.section()
        return series_figures(result.tables, result.section.estimates, settings=result.section.settings)


def spinal_series(
    traces: Sequence[SpinalTrace],
    *,
    steps: Sequence[Any] | np.ndarray,
    terminal: str | tuple[int, int] | list[int] = "last_third",
    distances: SeriesDistances | None = None,
    held_out: HeldOut | None = None,
    noise: Mapping[str, float | int | Estimate] | None = None,
    seed: int = 0,
) -> SpinalSeries:
    """Follow the signals of SPINAL over the saves of one run; the first trace is the start (step 0).

    steps: training step of every trace, strictly increasing. terminal: the blocks W, as in `compare_spinal`.
    distances: of read-outs to the start and to the previous save; without: D and v are null, "models not given".
    held_out: values of all saves on the same pairs, for the rules on ranking accuracy and DPO loss.
    noise: size of the noise control's change by quantity (alpha, transport, entropy, ...), printed beside the onset;
        as `Estimate`s (`noise_sizes`) they become estimates of the section, `noise_*`.
    Raises InputError where steps are not as many increasing numbers, traces cannot be compared (same prompts, settings,
    depth, dtype), or an array has another shape. Definitions: arXiv 2601.06238; onset and rules: ours.
    """
    at = _checked_steps(steps, len(traces))
    traces, warnings = together(traces)
    window = terminal_window(terminal, traces[0].model.n_layers)
    clusters = traces[0].clusters
    count = {"n": len(clusters), "n_clusters": len(np.unique(clusters))}
    signals = read_signals(traces, steps=at, window=window, distances=distances)
    trajectory = trajectory_table(signals, steps=at, clusters=clusters, seed=seed)

    onsets = {letter: _onset(trajectory, letter, at, count["n_clusters"]) for letter in (*FLIPPED, "A")}
    breaks: dict[str, Break] = {
        letter: breakpoint_interval(at, signals.by_prompt[letter] - signals.by_prompt[letter][0], clusters, seed=seed)
        for letter in ("T", "H")
        if letter in signals.by_prompt
    }
    cusums = {letter: _cusum(signals, letter, at, clusters, seed) for letter in WATCHED}
    held = _held_out(held_out, len(traces), seed)
    alarms = cusum_alarms({letter: sums for letter, sums in cusums.items() if not isinstance(sums, str)}, at)
    alarms += _plain(signals, trajectory, clusters, at, held, seed)
    alarms.sort(key=lambda alarm: alarm.step)
    trajectory["alarm"] = _marked(trajectory, alarms)
    if len({trace.model.fingerprint for trace in traces}) == 1:
        warnings.append("identical weights: all saves are one model")
    warnings += [text for trace in traces for text in trace.warnings]
    return SpinalSeries(
        names=tuple(trace.model.name for trace in traces),
        steps=tuple(at.tolist()),
        window=window,
        trajectory=trajectory,
        layers=layers_table(traces, steps=at, clusters=clusters, distances=distances, seed=seed),
        onsets=onsets,
        breaks=breaks,
        cusums=cusums,
        alarms=tuple(alarms),
        estimates=series_estimates(
            trajectory=trajectory,
            onsets=onsets,
            breaks=breaks,
            cusums=cusums,
            alarms=alarms,
            held_out=held,
            steps=at,
            count=count,
        )
        | {f"noise_{name}": ours(size) for name, size in (noise or {}).items() if isinstance(size, Estimate)},
        settings={
            **{name: value for name, value in traces[0].settings.items() if name != "key"},
            "window": list(traces[0].settings["window"]),
            "token_hash": traces[0].token_hash,
            "terminal": terminal if isinstance(terminal, str) else list(terminal),
            "terminal_blocks": list(window),
            "saves": [trace.model.name for trace in traces],
            "steps": at.tolist(),
            "onset_p": ALARM,
            "resolution": RESOLUTION,
            "cusum": {"drift": DRIFT, "alarm": ALARM_AT, "burn_in": BURN_IN},
            "noise_control": _checked_noise(noise),
            "reconstructed": "window, onset, CUSUM and plain rules are ours: the paper's criterion is unread",
            "seed": seed,
        },
        counts={"prompts": len(clusters), "saves": len(traces)},
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _checked_steps(steps: Sequence[Any] | np.ndarray, n: int) -> Float[np.ndarray, "saves"]:
    if len(steps) != n:
        raise InputError(f"{len(steps)} steps for {n} traces: one step a trace is expected")
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, Real) or not math.isfinite(step):
            raise InputError(f"steps: {step!r} is no number of training steps")
    for before, after in pairwise(steps):
        if after == before:
            raise InputError(f"steps: {after:g} stands twice; each save has a step of its own")
        if after < before:
            raise InputError(f"steps: {after:g} comes after {before:g}; give the saves in the order of training")
    return np.array(steps, dtype=np.float64)


def _checked_noise(noise: Mapping[str, float | int | Estimate] | None) -> dict[str, float | None]:
    for name in noise or {}:
        if name not in NAMES.values():
            raise InputError(f"noise: {name!r} is no quantity of the series; it has: {', '.join(NAMES.values())}")
    return {name: size.value if isinstance(size, Estimate) else float(size) for name, size in (noise or {}).items()}


def _held_out(held_out: HeldOut | None, n_saves: int, seed: int) -> dict[str, AgainstBest]:
    found = {}
    for name in HELD_OUT:
        values = None if held_out is None else getattr(held_out, name)
        if held_out is None or values is None:
            continue
        shape = (n_saves, len(held_out.clusters))
        if values.shape != shape or not np.isfinite(values).all():
            raise InputError(
                f"held_out.{name}: {values.shape} given, finite values at {shape} (saves, pairs) expected; leave a "
                "pair that has none out of every save"
            )
        found[name] = against_best(values, held_out.clusters, lower=name == "dpo_loss", seed=seed)
    return found


def _onset(trajectory: pd.DataFrame, letter: str, steps: Float[np.ndarray, "saves"], n_clusters: int) -> Onset:
    rows = trajectory[trajectory.signal == letter]
    if rows.change.isna().any():
        return Onset(answer="not tested", reason=rows.reason.iloc[-1])
    if letter != "A" and n_clusters < MIN_TESTED:
        reason = f"too few prompts to test ({n_clusters} clusters; {MIN_TESTED} needed)"
        return Onset(answer="not tested", reason=reason)
    p = rows.p.to_numpy(dtype=float)
    if np.isnan(p[1:]).any():
        return Onset(answer="not tested", reason="fewer prompts than jackknife groups: no standard error")
    return onset(p, rows.change.to_numpy(dtype=float), steps=steps, level=ALARM)


def _cusum(
    signals: Signals, letter: str, steps: Float[np.ndarray, "saves"], clusters: Int[np.ndarray, "N"], seed: int
) -> Cusum | str:
    found = increments_of(signals, letter, steps=steps, clusters=clusters, seed=seed)
    return found if isinstance(found, str) else cusum(found.value, found.se)


def _plain(
    signals: Signals,
    trajectory: pd.DataFrame,
    clusters: Int[np.ndarray, "N"],
    steps: Float[np.ndarray, "saves"],
    held_out: dict[str, AgainstBest],
    seed: int,
) -> list[Alarm]:
    value = {letter: rows.value.to_numpy(dtype=float) for letter, rows in trajectory.groupby("signal")}
    speed = None
    if "v" in signals.by_prompt:
        apart = np.diff(steps, prepend=np.nan)
        speed = np.where(value["v"] * apart < RESOLUTION, 0.0, value["v"])  # what batching may move is no speed
    return plain_alarms(
        speed=speed,
        entropy=value["H"],
        distance=signals.by_prompt.get("D"),
        prompts=clusters,
        steps=steps,
        held_out=held_out,
        seed=seed,
    )


def _marked(trajectory: pd.DataFrame, alarms: Sequence[Alarm]) -> list[str | None]:
    """Rules that fired at a row's signal and step; the rule on accuracy is marked at D."""
    fired: dict[tuple[str, float], list[str]] = {}
    for alarm in alarms:
        letter = "D" if alarm.rule == "accuracy_falls" else alarm.signal
        for step in (alarm.step, *alarm.later):
            fired.setdefault((letter, step), []).append(alarm.rule)
    keys = zip(trajectory.signal, trajectory.step, strict=True)
    return [", ".join(fired[key]) if key in fired else None for key in keys]
