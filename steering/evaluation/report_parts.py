"""What one part of an evaluation found, as it is kept on disk: a run that was killed makes only the others.

The report is joined from parts that were read back, so that a run in one go and a continued one give the same.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ...diagnose.report import Estimate, Finding
from ...diagnose.run_directory import write_atomically
from ...probes.pair_rows import plain_text

SECTION = "steering"
FILE = "part.json"  # written last: where it is, the tables are whole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Estimates, tables, findings and what a reader must know; settings and counts go into the section's."""

    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    warnings: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    told: str = ""  # a sentence for the summary


def kept_part(folder: Path | None, make: Callable[[], Part]) -> Part:
    """What is in the folder; else what `make` gives, kept there first. None: it is not kept."""
    if folder is None:
        return make()
    if not (folder / FILE).exists():
        _keep(folder, make())
    return _read(folder)


def _keep(folder: Path, part: Part) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in part.tables.items():
        temporary = folder / f".{name}.tmp"
        table.to_parquet(temporary, index=False)
        temporary.replace(folder / f"{name}.parquet")
    content = {
        "estimates": {name: estimate.model_dump(mode="json") for name, estimate in part.estimates.items()},
        "tables": [*part.tables],
        "findings": [finding.model_dump(mode="json") for finding in part.findings],
        "warnings": [*part.warnings],
        "settings": dict(part.settings),
        "counts": dict(part.counts),
        "told": part.told,
    }
    write_atomically(folder / FILE, json.dumps(content))


def _read(folder: Path) -> Part:
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Part(
        estimates={name: Estimate.model_validate(row) for name, row in found["estimates"].items()},
        tables={name: pd.read_parquet(folder / f"{name}.parquet") for name in found["tables"]},
        findings=[Finding.model_validate(row) for row in found["findings"]],
        warnings=found["warnings"],
        settings=found["settings"],
        counts=found["counts"],
        told=found["told"],
    )


def rehomed(findings: Sequence[Finding], names: Mapping[str, str], before: str = "") -> list[Finding]:
    """Findings of a part as the section's own; names: estimate there -> here; before: how the sentence begins."""
    return [
        finding.model_copy(
            update={
                "section": SECTION,
                "sentence": before + finding.sentence,
                "rests_on": [f"{SECTION}.{names[name.partition('.')[2]]}" for name in finding.rests_on],
            }
        )
        for finding in findings
    ]


def with_texts(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table with prompts as text: messages do not go into a Parquet column beside strings."""
    return frame.assign(**{name: [plain_text(text) for text in frame[name]] for name in columns})
