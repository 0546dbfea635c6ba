"""Side effects and detection as parts of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ...diagnose.report import Estimate
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..vector import SteeringVector
from .candidates import WAYS
from .damage import SideEffects, measured_effects
from .detecting import DetectionTexts, detected
from .effect_inputs import EffectInputs
from .report_names import OF_DETECTION, OF_EFFECTS
from .report_parts import Part, rehomed, with_texts
from .shares import missing


def effects_part(
    subject: Subject,
    vector: Any,
    strengths: Mapping[str, float | None],
    given: EffectInputs,
    *,
    batch_size: int,
    seed: int,
    warnings: Sequence[str],
    progress: Progress | None,
) -> Part:
    """Before and after at the strength of each direction; None: the vector has none there."""
    wanted = {way: strength for way, strength in strengths.items() if strength is not None}
    found = measured_effects(
        subject, vector, [*wanted.values()], given, batch_size=batch_size, seed=seed, progress=progress
    )
    return joined_effects(dict(zip(wanted, found, strict=True)), strengths, warnings)


def joined_effects(
    found: Mapping[str, SideEffects], strengths: Mapping[str, float | None], warnings: Sequence[str] = ()
) -> Part:
    """Both directions under the names of the section; a direction that was not measured is null, with the reason."""
    estimates: dict[str, Estimate] = {}
    findings, told, tables = [], [], []
    for way in WAYS:
        one = found.get(way)
        for name, here in OF_EFFECTS.items():
            known = one.estimates[name] if one is not None else _absent(found, name, way)
            estimates[f"{here}_{way}"] = known.model_copy(update={"label": f"{known.label}, steered to {way}"})
        if one is None:
            continue
        names = {name: f"{here}_{way}" for name, here in OF_EFFECTS.items()}
        findings += rehomed(one.findings, names, f"Steered to {way} (strength {strengths[way]:g}): ")
        told.append(f"Steered to {way}: {one.summary()}")
        tables.append(
            one.to_frame().assign(direction=way, strength=strengths[way]).rename(columns={"estimate": "measure"})
        )
    any_one = next(iter(found.values()))
    frames = {"side_effects": pd.concat(tables, ignore_index=True), **_rows(found, strengths)}
    return Part(
        estimates=estimates,
        tables=frames,
        findings=findings,
        warnings=list(warnings),
        settings=dict(any_one.settings) | {"strength": dict(strengths)},
        counts=dict(any_one.counts),
        told=" ".join(told),
    )


def _rows(found: Mapping[str, SideEffects], strengths: Mapping[str, float | None]) -> dict[str, pd.DataFrame]:
    """The tables that the estimates rest on, both directions in one."""
    frames: dict[str, pd.DataFrame] = {}
    for name, of in (
        ("paired", SideEffects.paired_frame),
        ("unrelated_texts", lambda one: one.texts),
        ("benign", lambda one: one.benign),
        ("questions", lambda one: one.questions),
    ):
        parts = {way: frame for way, one in found.items() if (frame := of(one)) is not None and len(frame)}
        if parts:
            every = [frame.assign(direction=way, strength=strengths[way]) for way, frame in parts.items()]
            frames[name] = pd.concat(every, ignore_index=True)
    if "benign" in frames:
        frames["benign"] = with_texts(frames["benign"], "prompt")
    return frames


def _absent(found: Mapping[str, SideEffects], name: str, way: str) -> Estimate:
    like = next(iter(found.values())).estimates[name]
    return missing(like.label, like.unit, f"the vector has no strength to {way}")


def detection_part(subject: Subject, vector: SteeringVector, texts: DetectionTexts, *, seed: int) -> Part:
    """How well the direction tells texts apart."""
    found = detected(subject, vector, texts, seed=seed)
    return Part(
        estimates={OF_DETECTION[name]: estimate for name, estimate in found.estimates.items()},
        tables={"detection": found.frame},
        settings={"threshold": found.threshold},
        counts=dict(found.counts),
        told=f"As a detector: {found.summary()}",
    )
