"""A section that took long, kept for a run that continues: its numbers and findings, without the tables."""

import json
from pathlib import Path

from .report import Finding, Section, SectionResult
from .run_directory import write_atomically
from .spinal_reading import TORN


def kept_section(file: Path, key: str) -> SectionResult | None:
    """What a run left in `file` under this key; None where there is none, a torn one, or one of other inputs."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["key"] != key:
            return None
        findings = tuple(Finding.model_validate(row) for row in found["findings"])
        return SectionResult(section=Section.model_validate(found["section"]), findings=findings)
    except TORN:
        return None


def keep_section(file: Path, key: str, result: SectionResult) -> SectionResult:
    """The result without its tables, as `kept_section` gives it back. key: all that the numbers depend on."""
    bare = SectionResult(section=result.section.model_copy(update={"tables": {}}), findings=result.findings)
    content = {
        "key": key,
        "section": bare.section.model_dump(mode="json"),
        "findings": [finding.model_dump(mode="json") for finding in bare.findings],
    }
    write_atomically(file, json.dumps(content))
    return bare
