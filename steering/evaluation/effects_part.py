"""Side effects and detection as parts of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ...diagnose.report import Estimate
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..vector import SteeringVector
from .candidates import WAYS
from .damage import SideEffects, side_effects_at
from .detecting import detection
from .refusals import Openings
from .report_names import OF_DETECTION, OF_EFFECTS
from .report_parts import Part, rehomed, with_texts
from .shares import missing


def effects_part(
    subject: Subject,
    vector: Any,
    strengths: Mapping[str, float | None],
    *,
    texts: Source,
    benign: Source | None,
    choices: Source | None,
    openings: Openings | None,
    max_new_tokens: int,
    template: str | None,
    batch_size: int,
    seed: int,
    warnings: Sequence[str],
    progress: Progress | None,
) -> Part:
    """Before and after at the strength of each direction; None: the vector has none there."""
    wanted = {way: strength for way, strength in strengths.items() if strength is not None}
    found = side_effects_at(
        subject, vector, [*wanted.values()], texts=texts, benign=benign, choices=choices, openings=openings,
        max_new_tokens=max_new_tokens, template=template, batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
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
    benign = [one.benign.assign(direction=way) for way, one in found.items() if one.benign is not None]
    frames = {"side_effects": pd.concat(tables, ignore_index=True)}
    if benign:
        frames["benign"] = with_texts(pd.concat(benign, ignore_index=True), "prompt")
    return Part(
        estimates=estimates,
        tables=frames,
        findings=findings,
        warnings=list(warnings),
        settings=dict(any_one.settings) | {"strength": dict(strengths)},
        counts=dict(any_one.counts),
        told=" ".join(told),
    )


def _absent(found: Mapping[str, SideEffects], name: str, way: str) -> Estimate:
    like = next(iter(found.values())).estimates[name]
    return missing(like.label, like.unit, f"the vector has no strength to {way}")


def detection_part(
    subject: Subject,
    vector: SteeringVector,
    positive: Source,
    negative: Source,
    hard: Source | None,
    *,
    template: str | None,
    seed: int,
) -> Part:
    """How well the direction tells texts apart."""
    found = detection(subject, vector, positive, negative, hard=hard, template=template, seed=seed)
    return Part(
        estimates={OF_DETECTION[name]: estimate for name, estimate in found.estimates.items()},
        tables={"detection": found.frame},
        settings={"threshold": found.threshold},
        counts=dict(found.counts),
        told=f"As a detector: {found.summary()}",
    )
