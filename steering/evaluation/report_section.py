"""The section "steering": what its parts found, joined, and what was left out and why."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ...diagnose.report import Estimate, Section, SectionResult
from .report_findings import steering_findings
from .report_names import PARTS, TABLES
from .report_parts import SECTION, Part
from .sides import NO_EDIT

QUESTION = "Does the vector do what it was made for, both ways, better than what costs nothing, and what does it break?"
TELLING = ("faithfulness", "both_ways", "sweep", "side_effects", "detection")  # the first of them is the summary
LACKING: Mapping[str, str] = {
    "sweep": "no strength was selected: give strengths (strengths=, --strengths), of which half of the rows choose",
    "faithfulness": "KL to the runs of the other prompt was not measured: leave it in (only=, --only)",
    "both_ways": "nothing was generated, so no answer can flip: leave it in (only=, --only)",
    "side_effects": "side effects were not measured: give unrelated texts (texts=, --texts), benign prompts (benign=, "
    "--benign) and questions (choices=, --choices)",
    "detection": "detection was not measured: give texts with the concept and without it (positive=, --positive and "
    "negative=, --negative), and what looks like it (hard=, --hard)",
}


def steering_section(
    parts: Mapping[str, Part],
    *,
    settings: Mapping[str, Any],
    warnings: Sequence[str] = (),
    layers: pd.DataFrame | None = None,
    asked: Sequence[str] = PARTS,
    question: str = QUESTION,
) -> SectionResult:
    """parts: by name of report_names.PARTS; asked: those whose absence is worth a word."""
    estimates: dict[str, Estimate] = {}
    tables: dict[str, pd.DataFrame] = {}
    for part in parts.values():
        estimates |= part.estimates
        tables |= part.tables
    if "methods" in tables:
        tables["methods"] = _with_flips(tables["methods"], tables.get("both_ways"))
    if {"examples", "rows"} <= tables.keys():
        tables["examples"] = _with_kl(tables["examples"], tables["rows"])
    if layers is not None and len(layers):
        tables["layers"] = layers
    told = [parts[name].told for name in TELLING if name in parts]
    missing = [LACKING[name] for name in asked if name not in parts]
    findings = [*steering_findings(estimates), *(finding for part in parts.values() for finding in part.findings)]
    own = [warning for part in parts.values() for warning in part.warnings]
    section = Section(
        name=SECTION,
        title="Steering",
        question=question,
        summary=told[0] if told else "Nothing was measured.",
        estimates=estimates,
        tables={name: TABLES[name] for name in TABLES if name in tables},
        settings=dict(settings) | {name: dict(part.settings) for name, part in parts.items()},
        counts={f"{name}: {what}": n for name, part in parts.items() for what, n in part.counts.items()},
        warnings=list(dict.fromkeys([*warnings, *own, *missing])),
    )
    return SectionResult(section=section, tables=tables, findings=tuple(findings))


def _with_flips(methods: pd.DataFrame, both: pd.DataFrame | None) -> pd.DataFrame:
    """With the flips of what was generated: no edit and the vector; their n is that of judged rows."""
    columns = {"flips": float, "flips_low": float, "flips_high": float, "n_judged": float}
    if both is None:
        return methods
    rates: dict[tuple[str, str], dict[str, Any]] = {}
    for row in both.to_dict("records"):
        way = row["direction"]
        before = {name: row[name.replace("flips", "flips_before")] for name in ("flips", "flips_low", "flips_high")}
        rates[NO_EDIT, way] = before | {"n_judged": row["n_judged"]}
        rates["vector", way] = {name: row[name] for name in columns}
    keys = zip(methods.method, methods.direction, strict=True)
    more = pd.DataFrame([rates.get(key, dict.fromkeys(columns)) for key in keys], index=methods.index).astype(columns)
    return pd.concat([methods, more], axis=1)


def _with_kl(examples: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """With the KL of the row, without and with the vector; empty where it was not measured."""
    found = examples
    for method, name in ((NO_EDIT, "kl_without"), ("vector", "kl_with")):
        one = rows[rows.method == method][["direction", "row", "kl"]].rename(columns={"kl": name})
        found = found.merge(one, on=["direction", "row"], how="left")
    return found
