"""The section "information" as an audit and a series make it: on the pairs and samples that they have."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..probes.inputs import PairFile, SampleFile
from ..probes.shards import item_key
from .history_sets import HistoryInput
from .information import information_report
from .information_floor import NoiseFloor
from .report import Finding, Section, SectionResult
from .run_directory import write_atomically
from .spinal_reading import TORN

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from .information_report import InformationReport

INFORMATION_VERSION = 1  # raise it when a change moves a number of the section: those kept before are then not used
READ_AS = ("template", "eos", "boundary", "over_length", "max_length", "batch_tokens", "max_invalid")


def information_of(
    subject: "Subject",
    other: "Subject",
    pairs: PairFile,
    reading: Mapping[str, Any],
    *,
    beta: float | None,
    seed: int,
    policy_samples: SampleFile | None = None,
    reference_samples: SampleFile | None = None,
    shards: Path | None = None,
    reference_states: Path | None = None,
    floor: NoiseFloor | None = None,
    share_prefix: str | bool = "auto",
) -> "InformationReport":
    """Of the pairs and the samples beside them. reading: how text is read, those of `READ_AS`, and `progress`."""
    samples = {"policy": policy_samples, "reference": reference_samples}
    given = HistoryInput(pairs=pairs, responses={name: file for name, file in samples.items() if file is not None})
    return information_report(
        subject,
        other,
        given,
        beta=beta,
        measure_floor=True if floor is None else floor,
        seed=seed,
        share_prefix=share_prefix,
        shards=shards,
        reference_states=reference_states,
        progress=reading["progress"],
        **{name: reading[name] for name in READ_AS},
    )


def kept_information(
    file: Path, subject: "Subject", other: "Subject", facts: Mapping[str, Any]
) -> SectionResult | None:
    """What a run left in `file`, of the same models and settings; None where there is none, or a torn one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["key"] != _key(subject, other, facts):
            return None
        findings = tuple(Finding.model_validate(row) for row in found["findings"])
        return SectionResult(section=Section.model_validate(found["section"]), findings=findings)
    except TORN:
        return None


def keep_information(
    file: Path, subject: "Subject", other: "Subject", facts: Mapping[str, Any], result: SectionResult
) -> SectionResult:
    """The section and its findings without the tables, written for a run that continues."""
    bare = result.section.model_copy(update={"tables": {}})
    content = {
        "key": _key(subject, other, facts),
        "section": bare.model_dump(mode="json"),
        "findings": [finding.model_dump(mode="json") for finding in result.findings],
    }
    write_atomically(file, json.dumps(content))
    return SectionResult(section=bare, findings=result.findings)


def _key(subject: "Subject", other: "Subject", facts: Mapping[str, Any]) -> str:
    return item_key(INFORMATION_VERSION, subject.fingerprint, other.fingerprint, dict(facts))
