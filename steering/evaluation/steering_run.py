"""A steering evaluation as a run: parts one after the other, each kept when it is done, joined to one report."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ...diagnose.manifest import count_reasons, first_rows, model_facts, model_identity, package_versions
from ...diagnose.naming import short_name
from ...diagnose.report import Manifest, Report
from ...diagnose.run_directory import RunDirectory, Stopwatch
from ...probes.inputs import Source
from ...probes.pair_rows import plain_text
from ...probes.row_files import read_rows
from ...probes.shards import Progress, prefixed
from ...probes.subject import Subject
from ..quadruples import QuadrupleFile
from ..vector import SteeringVector
from .kept import vector_key
from .refusals import is_refusal
from .report_parts import SECTION, Part, kept_part
from .report_section import steering_section

Named = str | os.PathLike[str]
SCAN = "layer_scan"  # key of a vector's metadata: the rows of LayerScan.to_frame()
MOST = 0.5  # share of y_c that begin as refusals, from which on the concept counts as refusal [reconstructed]
RED_TEAM = (
    "the concept of these rows is refusal: a vector that takes refusals out is an instrument of red teams; keep it "
    "among them, and what it makes the model say"
)
LIMITS = (  # of the paper, by way of others
    "known of CDAS (second-hand): little collateral damage where the contrast is strong, not the best steerer overall "
    "(best at one layer of a 9B model), too weak at strength 1 to put a concept into ordinary answers, weak on small "
    "models and late layers; it does not say where the model computes anything, and prompting is often as strong"
)
Make = Callable[[Mapping[str, Part], Progress | None, Path | None], Part]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenVector:
    """A vector with the name it was given by, and the sha256 that tells it from others."""

    vector: SteeringVector
    name: str
    sha256: str

    @classmethod
    def of(cls, given: "SteeringVector | Named", *, allow_other_weights: bool = False) -> "GivenVector":
        """A file, or a vector at hand. InputError as SteeringVector.load."""
        if isinstance(given, SteeringVector):
            return cls(vector=given, name=given.method or "vector", sha256=vector_key(given))
        vector = SteeringVector.load(given, allow_other_weights=allow_other_weights)
        file = next(path for path in (Path(given), Path(f"{os.fspath(given)}.safetensors")) if path.is_file())
        return cls(vector=vector, name=os.fspath(given), sha256=hashlib.sha256(file.read_bytes()).hexdigest())

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest and the section's settings: what it is, and how it was made."""
        one = self.vector
        return {
            "name": self.name,
            "sha256": self.sha256,
            "method": one.method or "unknown",
            "edit": one.edit,
            "site": str(one.site),
            "rank": one.subspace.rank,
            "positions": str(one.positions),
            "settings": dict(one.metadata.get("settings") or {}),
            "trained_on": one.metadata.get("sha256") or "unknown",
        }


def data_facts(source: Source | QuadrupleFile, what: str, bare: str | None = None) -> dict[str, Any]:
    """Name, sha256 and rows of an input; of quadruples also what was set aside."""
    if isinstance(source, QuadrupleFile):
        return {
            "source": source.source,
            "sha256": source.sha256,
            "rows": source.n_rows,
            "usable": len(source),
            "set_aside": count_reasons(source.invalid),
            "set_aside_rows": first_rows(source.invalid),
        }
    rows = read_rows(source, what=what, bare=bare)
    return {"source": rows.source, "sha256": rows.sha256, "rows": len(rows.rows)}


def vector_warnings(given: GivenVector, quadruples: QuadrupleFile | None, refusing: Sequence[str]) -> list[str]:
    """What is to be known of the vector, and whether it takes refusals out. refusing: how refusals begin."""
    found = list(given.vector.notices())
    if quadruples is not None and is_of_refusal(quadruples, refusing):
        found.append(RED_TEAM)
    if given.vector.method == "cdas":
        found.append(LIMITS)
    return found


def is_of_refusal(quadruples: QuadrupleFile, refusing: Sequence[str]) -> bool:
    """Whether most answers that show the concept begin as refusals do [reconstructed]."""
    shown = [is_refusal(plain_text(row.positive_output), refusing) for row in quadruples]
    return bool(shown) and sum(shown) >= MOST * len(shown)


def layers_table(vector: SteeringVector) -> pd.DataFrame | None:
    """The layers that were tried when the vector was trained, where its file says."""
    rows = vector.metadata.get(SCAN)
    return pd.DataFrame(rows) if isinstance(rows, list) and rows else None


def steering_report(
    subject: Subject,
    given: GivenVector,
    plan: Mapping[str, Make],
    *,
    kind: str,
    title: str,
    question: str,
    data: Mapping[str, Mapping[str, Any]],
    compare: Mapping[str, GivenVector],
    settings: Mapping[str, Any],
    free: Mapping[str, Any],
    warnings: Sequence[str],
    asked: Sequence[str],
    out: Named | None,
    seed: int,
    progress: Progress | None,
    command: str,
) -> Report:
    """Run the parts of the plan in order, and join them; with `out` finished ones are kept and read back.

    settings: what could change a number, by which the run is known; free: what could not. Raises InputError where `out`
    holds a run of another model, vector, file or setting.
    """
    run = None if out is None else RunDirectory(
        out,
        {
            "kind": kind,
            "alignscope": package_versions()["alignscope"],
            "seed": seed,
            "models": {
                "model": model_identity(subject),
                "vector": given.sha256,
                **{f"vector {name}": one.sha256 for name, one in compare.items()},
            },
            "data": {name: facts["sha256"] for name, facts in data.items()},
            "settings": settings,
        },
    )  # fmt: skip
    if run is not None and run.finished:
        return Report.load(run.path)
    watch = Stopwatch() if run is None else run.watch
    parts: dict[str, Part] = {}
    with watch.timed(SECTION):
        for name, make in plan.items():
            told = prefixed(watch.ticking(progress), name.replace("_", " "))
            folder = None if run is None else run.stage(name)
            parts[name] = kept_part(folder, partial(make, parts, told, folder))
        result = steering_section(
            parts,
            settings={"vector": given.facts, **settings, **free},
            warnings=warnings,
            layers=layers_table(given.vector),
            asked=asked,
            question=question,
        )
    manifest = Manifest(
        command=command,
        models={
            "model": model_facts(subject),
            "vector": given.facts,
            **{f"vector {name}": one.facts for name, one in compare.items()},
        },
        data={name: dict(facts) for name, facts in data.items()},
        settings=dict(settings) | dict(free),
        packages=package_versions(),
        device=subject.device,
        dtype=subject.dtype,
        seed=seed,
        wall_seconds=watch.total(),
    )
    report = Report.assemble(
        title=f"{title} of {short_name(given.name)} on {short_name(subject.name)}",
        question=result.section.question,
        manifest=manifest,
        results=[result.costed(watch.cost(SECTION))],
    )
    if run is not None:
        report.save(run.path)
    return report

