"""Is what training did more than a control does? A contrast beside control checkpoints, the template, and noise.

Every control is another trace of the same prompts against the same base: a checkpoint that was trained without the
preferences (SFT only, shuffled labels), the base under a chat template, or the base with random weights added.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from ..errors import InputError
from .spinal_effects import ALPHA, HEADLINES, Blocks, Effects, Interval, effects
from .spinal_settings import RESOLUTION
from .spinal_trace import SpinalTrace

Kind = Literal["trained", "template", "noise"]
NONE: Interval = (math.nan, math.nan, math.nan)
UNITS = {"d_transport_terminal": "rad", "d_entropy_terminal": "nats"}
COLUMNS = ("control", "kind", "quantity", "unit", "effect", "control_effect", "net", "p", "n", "verdict", "reason")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Control:
    """One control on the base's prompts: its trace; of noise, a seed a time, what is left of a trace: its effects."""

    name: str
    kind: Kind
    traces: tuple[SpinalTrace, ...] = ()
    effects: tuple[Effects, ...] = ()  # noisy minus base, over the window of the contrast
    kept: Bool[np.ndarray, "N"] | None = None  # prompts that `effects` rest on
    reason: str | None = None  # why there is no trace


def trained_controls(given: Mapping[str, SpinalTrace] | None, base: SpinalTrace, aligned: SpinalTrace) -> list[Control]:
    """Control checkpoints by name. Raises InputError for one that is the base or the aligned model itself."""
    found = []
    for name, trace in (given or {}).items():
        for what, other in (("base", base), ("aligned model", aligned)):
            if trace.model.fingerprint == other.model.fingerprint:
                raise InputError(f"control {name}: it has the weights of the {what} ({other.model.name})")
        found.append(Control(name=name, kind="trained", traces=(trace,)))
    return found


def controls_table(
    base: SpinalTrace, aligned: SpinalTrace, controls: Sequence[Control], window: Blocks, *, seed: int
) -> pd.DataFrame:
    """A row a control and headline: the contrast, what the control shows against the same base, and the rest.

    effect = aligned - base, control_effect = control - base, net = aligned - control, each with _low and _high from
    the same prompts (a prompt that is not finite in one trace leaves all). Of noise the seed with the largest effect
    stands for all, and p = (1 + #{|noise| >= |effect|}) / (seeds + 1). Exponents only where the ids are the same.
    """
    rows = [row for control in controls for row in _rows(base, aligned, control, window, seed)]
    ends = [f"{name}{end}" for name in ("effect", "control_effect", "net") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*COLUMNS[:4], *ends, *COLUMNS[7:]])


def _rows(
    base: SpinalTrace, aligned: SpinalTrace, control: Control, window: Blocks, seed: int
) -> list[dict[str, object]]:
    kept = base.kept & aligned.kept
    for one in (*(trace.kept for trace in control.traces), *([] if control.kept is None else [control.kept])):
        kept = kept & one
    b, a, *c = (
        trace if (trace.kept == kept).all() else trace.restricted(kept) for trace in (base, aligned, *control.traces)
    )
    clusters = b.clusters
    of_aligned = effects(b, a, window)
    of_control = [*control.effects, *(effects(b, trace, window) for trace in c)]
    between = [effects(trace, a, window) for trace in c] if control.kind == "trained" else []
    refused = next((found.no_exponents for found in (of_aligned, *of_control) if found.no_exponents), None)
    rows = []
    for quantity in HEADLINES:
        effect = of_aligned.interval(quantity, clusters, seed)
        ours = [found.interval(quantity, clusters, seed) for found in of_control]
        row = _judged(control, quantity, effect, ours, between, clusters, seed)
        missing = control.reason or (refused if quantity == ALPHA else None) or "no number over this window"
        rows.append(row | {"n": int(kept.sum()), "reason": missing if row["verdict"] is None else None})
    return rows


def _judged(
    control: Control,
    quantity: str,
    effect: Interval,
    ours: list[Interval],
    between: list[Effects],
    clusters: Int[np.ndarray, "N"],
    seed: int,
) -> dict[str, object]:
    there = [found for found in ours if math.isfinite(found[0])]
    largest = max(there, key=lambda found: abs(found[0]), default=NONE)
    net, p, verdict = NONE, math.nan, None
    if math.isfinite(effect[0]) and there:
        if control.kind == "trained":
            net = between[0].interval(quantity, clusters, seed)
            verdict = compared(effect, largest, net)
        elif control.kind == "noise":
            reached = sum(abs(found[0]) >= abs(effect[0]) for found in there)
            p = (1 + reached) / (len(there) + 1)
            shown = f"more than all {len(there)} noise seeds"
            verdict = unclear(effect) or ("within noise" if reached else shown)
        else:
            verdict = unclear(effect) or f"the template alone: {largest[0] / effect[0]:+.2g} times the effect"
    values = {"effect": effect, "control_effect": largest, "net": net}
    return {
        "control": control.name,
        "kind": control.kind,
        "quantity": quantity,
        "unit": UNITS.get(quantity, ""),
        **{f"{name}{end}": x for name, v in values.items() for end, x in zip(("", "_low", "_high"), v, strict=True)},
        "p": p,
        "verdict": verdict,
    }


def unclear(found: Interval) -> str | None:
    """Why a difference is no clear one: no interval, one that holds 0, or under what batching may move; else None."""
    value, low, high = found
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return "no clear effect" if low <= 0 <= high or abs(value) < RESOLUTION else None


def compared(effect: Interval, control: Interval, net: Interval) -> str:
    """What is left of an effect when a control is taken away from it, in words; only a clear effect can exceed one."""
    if said := unclear(effect):
        return said
    if said := unclear(net):
        return said if said == "no interval" else "not told apart from the control"
    if net[0] * effect[0] < 0:
        return "less than the control"
    if not unclear(control) and control[0] * effect[0] < 0:
        return "more than the control, which moves the other way"
    return "more than the control"
