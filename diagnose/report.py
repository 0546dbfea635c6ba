"""The report: one versioned schema that the command line, the HTML page and Python read.

`report.json` holds everything but the tables, which stand beside it as Parquet (`tables/<section>.<table>.parquet`).
A number is always an `Estimate`: with interval and n, or null with its reason. NaN and infinity never reach the file.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from ..errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCHEMA_VERSION = 1
# version -> what turns a report.json of that version into one of the next; none yet, as 1 is the first
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Model):
    """A number with its interval and n; null (value, or interval alone) only with the reason."""

    label: str = Field(description="What the number is, in a few words a non-author understands.")
    value: float | None = Field(description="The estimate; null where it could not be had.")
    low: float | None = Field(default=None, description="Lower end of the interval.")
    high: float | None = Field(default=None, description="Upper end of the interval.")
    level: float | None = Field(default=0.95, description="Coverage of the interval; null for an exact number.")
    n: int = Field(description="Rows (pairs, prompts, tokens) that the number rests on.")
    n_clusters: int | None = Field(default=None, description="Independent clusters among them (prompts).")
    unit: str = Field(default="", description="Unit: share, nats, rad, ... ; empty for a pure number.")
    method: str = Field(description="How value and interval were obtained; 'exact' where nothing was sampled.")
    reason: str | None = Field(default=None, description="Why value or interval is null.")
    null_value: float | None = Field(default=None, description="The value that means 'no effect', drawn in figures.")
    reconstructed: bool = Field(default=False, description="True where the definition is ours, not a publication's.")

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> "Estimate":
        no_interval = self.level is not None and (self.low is None or self.high is None)
        if (self.value is None or no_interval) and not self.reason:
            raise ValueError(f"estimate '{self.label}': a null value or interval needs a reason")
        return self

    def __str__(self) -> str:
        if self.value is None:
            return f"not available: {self.reason}"
        shown = f"{self.value:.4g}"
        if self.low is not None and self.high is not None:
            shown += f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{shown} {self.unit}".rstrip()


class Finding(_Model):
    """One plain sentence that follows from estimates and their intervals."""

    severity: Literal["info", "notice", "alarm"] = Field(
        description="info: says how it is; notice: keep it in mind; alarm: act before using the numbers."
    )
    section: str = Field(description="Section whose estimates it rests on.")
    sentence: str = Field(description="What was found, for someone who did not write the tool.")
    rests_on: list[str] = Field(description="Names of estimates, 'section.estimate'.")
    next_step: str = Field(default="", description="What to do about it.")


class Cost(_Model):
    seconds: float = Field(description="Wall time of the stage, summed over resumed runs.")
    peak_memory_mb: float = Field(description="Largest resident memory of the process up to the end of the stage, MB.")


class Section(_Model):
    name: str = Field(description="Short name, the first part of 'section.estimate' and 'section.table'.")
    title: str = Field(description="Heading for readers.")
    question: str = Field(description="The question the section answers, in one sentence.")
    summary: str = Field(description="The answer in one to three sentences.")
    estimates: dict[str, Estimate] = Field(description="Headline estimates by name.")
    tables: dict[str, str] = Field(default_factory=dict, description="Table name -> what a row is.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Every option that could change a number.")
    counts: dict[str, int] = Field(default_factory=dict, description="Rows used, set aside and flagged, by reason.")
    warnings: list[str] = Field(default_factory=list, description="What limits the numbers, one sentence each.")
    cost: Cost | None = Field(default=None, description="Time and memory of the stage; null where not measured.")


class Manifest(_Model):
    """All that the numbers depend on: two runs with the same manifest give the same numbers."""

    command: str = Field(description="The command line or Python call.")
    models: dict[str, dict[str, Any]] = Field(description="Role (policy, reference, ...) -> fingerprints and facts.")
    data: dict[str, dict[str, Any]] = Field(description="Input -> file name, sha256, rows, rows set aside by reason.")
    settings: dict[str, Any] = Field(description="Settings of the run, resolved defaults included.")
    packages: dict[str, str] = Field(description="Versions of Python and of the packages that compute.")
    device: str = Field(description="Where the models ran: cpu, cuda:0, ...")
    dtype: str = Field(description="Type in which weights were held and activations computed.")
    seed: int = Field(description="Seed of all that is drawn: samples of prompts, bootstrap, permutations.")
    wall_seconds: float = Field(description="Wall time; does not enter any number.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionResult:
    """What a diagnostic hands to the report: its section, its tables and its findings."""

    section: Section
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def costed(self, cost: Cost) -> "SectionResult":
        """The same with what it cost."""
        return replace(self, section=self.section.model_copy(update={"cost": cost}))


class Report(_Model):
    """The whole report. `Report.load(run)` reads it back, `to_frame('ranking.pairs')` gives a table."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of this layout; newer ones are refused.")
    title: str = Field(description="Heading of the report.")
    question: str = Field(description="What was asked, in one sentence.")
    manifest: Manifest = Field(description="All that the numbers depend on.")
    sections: list[Section] = Field(description="One section a diagnostic, in the order they ran.")
    findings: list[Finding] = Field(description="Findings of all sections, worst first.")

    _frames: dict[str, pd.DataFrame] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Same fields and same tables."""
        if not isinstance(other, Report):
            return NotImplemented
        same_tables = self._frames.keys() == other._frames.keys() and all(
            frame.equals(other._frames[name]) for name, frame in self._frames.items()
        )
        return same_tables and self.model_dump() == other.model_dump()

    @classmethod
    def assemble(cls, title: str, question: str, manifest: Manifest, results: list[SectionResult]) -> "Report":
        """Join the results of the stages; findings come worst first, otherwise in the order of the sections."""
        rank = {"alarm": 0, "notice": 1, "info": 2}
        findings = sorted((f for r in results for f in r.findings), key=lambda f: rank[f.severity])
        report = cls(
            title=title, question=question, manifest=manifest, sections=[r.section for r in results], findings=findings
        )
        for result in results:
            undeclared = set(result.tables) ^ set(result.section.tables)
            if undeclared:
                raise ValueError(f"section {result.section.name}: {sorted(undeclared)} not both declared and given")
            report._frames.update({f"{result.section.name}.{name}": t for name, t in result.tables.items()})
        return report

    def section(self, name: str) -> Section:
        for section in self.sections:
            if section.name == name:
                return section
        raise KeyError(f"no section '{name}'; the report has: {', '.join(s.name for s in self.sections)}")

    def estimate(self, name: str) -> Estimate:
        """The estimate `section.estimate`, for instance `report.estimate('ranking.accuracy')`."""
        section_name, _, estimate_name = name.partition(".")
        estimates = self.section(section_name).estimates
        if estimate_name not in estimates:
            raise KeyError(f"no estimate '{estimate_name}' in section '{section_name}'; it has: {', '.join(estimates)}")
        return estimates[estimate_name]

    def to_frame(self, name: str) -> pd.DataFrame:
        """The headline estimates of a section (`'ranking'`), or one of its tables (`'ranking.pairs'`)."""
        if name in self._frames:
            return self._frames[name].copy()
        if "." in name:
            raise KeyError(f"no table '{name}'; the report has: {', '.join(sorted(self._frames)) or 'none'}")
        return estimate_frame(self.section(name).estimates)

    def figures(self) -> "dict[str, go.Figure]":
        """Every figure of the report by name, `section.figure`."""
        from ..dashboards.figures import report_figures

        return report_figures(self)

    def summary(self) -> str:
        lines = [self.title, self.question, *(f"[{f.severity}] {f.sentence}" for f in self.findings)]
        return "\n".join(lines)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write tables, then report.json, each by rename: a report.json that exists is whole. Returns its path."""
        directory = Path(directory)
        (directory / "tables").mkdir(parents=True, exist_ok=True)
        (directory / "report.json").unlink(missing_ok=True)  # it would stand beside tables of another report
        for name, frame in self._frames.items():
            temporary = directory / "tables" / f".{name}.tmp"
            frame.to_parquet(temporary, index=False)
            temporary.replace(directory / "tables" / f"{name}.parquet")
        temporary = directory / ".report.json.tmp"
        temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return temporary.replace(directory / "report.json")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """Read a run directory (or its report.json) with its tables.

        Raises InputError, naming the file, where there is none, it or a table is damaged, or its version is not known.
        """
        file = Path(path)
        file = file / "report.json" if file.is_dir() else file
        if not file.exists():
            begun = (file.parent / "run.json").exists()
            hint = (
                "The run has not finished: give its command again and it continues."
                if begun
                else "Expected the folder that audit or trace wrote with --out."
            )
            raise InputError(f"{path}: no report.json there. {hint}")
        try:
            report = cls.model_validate(_migrated(_read_json(file), file))
        except ValidationError as error:
            raise InputError(f"{file}: not a valid report: {error}") from error
        for section in report.sections:
            for name in section.tables:
                key = f"{section.name}.{name}"
                report._frames[key] = _read_table(file.parent / "tables" / f"{key}.parquet")
        return report


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # ValueError: neither JSON nor UTF-8
        raise InputError(f"{file}: not JSON ({error}); the report was damaged, run the audit again") from error


def _migrated(raw: Any, file: Path) -> dict[str, Any]:
    """The report in today's layout. Raises InputError for a version that is newer, or that nothing leads on from."""
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is not int:
        raise InputError(f"{file}: no schema_version; this is not an alignscope report")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{file}: schema version {version}, this alignscope reads up to {SCHEMA_VERSION}; upgrade alignscope"
        )
    for step in range(version, SCHEMA_VERSION):
        if step not in MIGRATIONS:
            raise InputError(
                f"{file}: schema version {version} is not known to this alignscope, which reads "
                f"{min((*MIGRATIONS, SCHEMA_VERSION))} to {SCHEMA_VERSION}; run the audit again"
            )
        raw = MIGRATIONS[step](raw)
    return {**raw, "schema_version": SCHEMA_VERSION}


def _read_table(file: Path) -> pd.DataFrame:
    if not file.exists():
        raise InputError(f"{file}: table of the report missing; copy the whole run directory, not only report.json")
    import pyarrow as pa

    try:
        return pd.read_parquet(file)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(
            f"{file}: not a readable table ({error}); copy it again, or run the audit into another folder"
        ) from error


def estimate_frame(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """A row an estimate: its name, then all its fields."""
    return pd.DataFrame([{"estimate": name, **e.model_dump()} for name, e in estimates.items()])


def finite(value: float | None) -> float | None:
    """NaN and infinity as None: JSON has neither, and an Estimate then needs its reason."""
    return None if value is None or not math.isfinite(value) else float(value)
