"""One self-contained HTML page of a report: what was asked, what was found, how sure, what to do.

Everything is inside the file (plotly.js too, 4.8 MB), so that it opens from the file system, offline and years later.
All text is escaped: names of models and pairs come from files.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..diagnose.report import Estimate, Finding, Report, Section
from .drawing import PALETTE, without_title
from .figures import report_figures
from .wording import PLAIN_UNITS, REASONS, duration, interval_text, number, size, value_text

_HERE = Path(__file__).parent
_SEVERITIES = {"alarm": "Alarm", "notice": "Notice", "info": "Found"}
SHOWN_ROWS = 12  # of a table; the whole of it lies beside the report as Parquet
BROWSED_ROWS = 5_000  # of a table of pairs or tokens, which the page can sort and filter
BROWSED_COLUMNS = 14
BROWSED_OBJECTIVES = 8  # of which the page holds loss and view
# table -> its columns that the page shows first; those that hold nothing are left out
_FIRST_COLUMNS = {
    "ranking.pairs": ("pair_id", "prompt_id", "difficulty_class", "ranked_right", "reference_right", "reward_right",
                "explicit_right", "difficulty", "beta_crit", "loss", "preference", "policy_chosen", "policy_rejected",
                "n_chosen", "n_rejected"),
    "rewards.pairs": ("setting", "pair_id", "prompt_id", "implicit_right", "explicit_right", "implicit_margin",
                      "explicit_margin"),
    "information.tokens": ("text", "source", "bucket", "list", "rank", "score", "mean_policy", "mean_reference",
                           "mean_q", "share_in_top", "n_plausible", "n_positions", "context", "token"),
}  # fmt: skip
_OBJECTIVES = ("dpo", "ipo", "simpo", "orpo", "cpo", "hinge", "sigmoid_norm", "kto")  # shown before others


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingView:
    """A finding with the numbers it rests on."""

    severity: str
    badge: str
    sentence: str
    next_step: str
    rests_on: tuple[tuple[str, str, str], ...]  # anchor, label, value with interval


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateView:
    """A row of the table of numbers."""

    anchor: str
    name: str
    label: str
    value: str
    interval: str  # or why there is none
    n: str
    method: str
    missing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """The first rows of a table; of a table of pairs or tokens also the rows that the page can sort and filter."""

    name: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_rows: int
    n_columns: int  # of the whole table
    anchor: str
    browsed: Mapping[str, Any] | None  # JSON for the browser of pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureView:
    """A figure's place on the page."""

    anchor: str
    title: str
    how_to_read: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionView:
    """A section in the order it is read."""

    section: Section
    figures: tuple[FigureView, ...]
    estimates: tuple[EstimateView, ...]
    tables: tuple[TableView, ...]
    counts: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]
    cost: str


def render_page(report: Report) -> str:
    """The page as HTML text. Needs no network to open, and nothing but a browser."""
    figures = report_figures(report)
    sections = [_section(report, section, figures) for section in report.sections]
    findings = [_finding(report, finding) for finding in report.findings]
    template = _environment().get_template("page.html.j2")
    return template.render(
        report=report,
        findings=findings,
        sections=sections,
        browsed_rows=BROWSED_ROWS,
        next_steps=list(dict.fromkeys(f.next_step for f in findings if f.next_step and f.severity != "info")),
        verdict=_verdict(report),
        sureness=list(_sureness(report)),
        models=[(role, list(_facts(facts))) for role, facts in report.manifest.models.items()],
        data=[(name, list(_facts(facts))) for name, facts in report.manifest.data.items()],
        settings=list(_facts(report.manifest.settings)),
        packages=sorted(report.manifest.packages.items()),
        cost=duration(report.manifest.wall_seconds),
        style=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
        plotly=Markup(_plotly()),
        figures=_embedded(
            {_anchor("figure", name): json.loads(str(without_title(f).to_json())) for name, f in figures.items()}
        ),
        palette=_embedded(PALETTE),
        browsed=_embedded({t.anchor: t.browsed for view in sections for t in view.tables if t.browsed is not None}),
    )


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _section(report: Report, section: Section, figures: Mapping[str, go.Figure]) -> SectionView:
    own = {name: f for name, f in figures.items() if name.startswith(f"{section.name}.")}
    cost = section.cost
    return SectionView(
        section=section,
        figures=tuple(
            FigureView(
                anchor=_anchor("figure", name),
                title=str(figure.layout.meta["title"]),
                how_to_read=str(figure.layout.meta["how_to_read"]).strip(),
            )
            for name, figure in own.items()
        ),
        estimates=tuple(_estimate(section.name, name, e) for name, e in section.estimates.items()),
        tables=tuple(
            _table(section.name, name, about, report.to_frame(f"{section.name}.{name}"))
            for name, about in section.tables.items()
        ),
        counts=tuple(
            (REASONS.get(name.removeprefix("set_aside_"), name.replace("_", " ")), number(n))
            for name, n in section.counts.items()
            if n
        ),
        settings=tuple(_facts(section.settings)),
        cost="" if cost is None else f"{duration(cost.seconds)}, peak memory {size(cost.peak_memory_mb)}",
    )


def _finding(report: Report, finding: Finding) -> FindingView:
    rests_on = []
    for name in finding.rests_on:
        estimate = report.estimate(name)
        shown = value_text(estimate)
        if interval := interval_text(estimate):
            shown += f" ({interval})"
        if estimate.value is not None and estimate.unit not in PLAIN_UNITS:
            shown += f" {estimate.unit}"
        rests_on.append((_anchor("estimate", name), estimate.label, shown))
    return FindingView(
        severity=finding.severity,
        badge=_SEVERITIES[finding.severity],
        sentence=finding.sentence,
        next_step=finding.next_step,
        rests_on=tuple(rests_on),
    )


def _estimate(section: str, name: str, estimate: Estimate) -> EstimateView:
    unit = "" if estimate.value is None or estimate.unit in PLAIN_UNITS else f" {estimate.unit}"
    interval = interval_text(estimate)
    if not interval:
        interval = "–" if estimate.level is None and estimate.value is not None else (estimate.reason or "")
    clusters = "" if estimate.n_clusters is None else f" in {number(estimate.n_clusters)}"
    return EstimateView(
        anchor=_anchor("estimate", f"{section}.{name}"),
        name=f"{section}.{name}",
        label=estimate.label + (" (our reconstruction)" if estimate.reconstructed else ""),
        value=value_text(estimate) + unit,
        interval=interval,
        n=f"{number(estimate.n)}{clusters}",
        method=estimate.method,
        missing=estimate.value is None,
    )


def _table(section: str, name: str, about: str, frame: pd.DataFrame) -> TableView:
    full_name = f"{section}.{name}"
    is_browsed = len(frame) > 0 and (full_name in _FIRST_COLUMNS or full_name == "objectives.pairs")
    if full_name == "information.tokens":
        frame = _telling_first(frame)
    shown = frame[_browsed_columns(full_name, frame)] if is_browsed else frame
    return TableView(
        name=name,
        about=about,
        columns=tuple(map(str, shown.columns)),
        rows=tuple(
            tuple(_cell(value) for value in row) for row in shown.head(SHOWN_ROWS).itertuples(index=False, name=None)
        ),
        n_rows=len(frame),
        n_columns=len(frame.columns),
        anchor=_anchor("table", full_name),
        browsed=_browsed(shown) if is_browsed else None,
    )


def _telling_first(tokens: pd.DataFrame) -> pd.DataFrame:
    """Lists over all positions before those of a bucket, and last the list of tokens that neither model says."""
    if not {"bucket", "list"} <= set(tokens.columns):
        return tokens
    order = (tokens["bucket"] != "all").astype(int) + 2 * (tokens["list"] == "full")
    return tokens.loc[order.sort_values(kind="stable").index]


def _browsed_columns(name: str, frame: pd.DataFrame) -> list[str]:
    """The columns of a browsed table that the page holds: a wide table would make it heavy and hard to read."""
    if name == "objectives.pairs":
        names = [str(column).removesuffix("_view") for column in frame if str(column).endswith("_view")]
        first = [name for name in (*_OBJECTIVES, *names) if name in names]
        kept = list(dict.fromkeys(first))[:BROWSED_OBJECTIVES]
        wanted: Sequence[str] = ["pair_id", *(f"{name}_{part}" for name in kept for part in ("loss", "view"))]
        return [column for column in wanted if column in frame]
    found = dict.fromkeys([*_FIRST_COLUMNS[name], *frame.columns])
    return [column for column in found if column in frame and frame[column].notna().any()][:BROWSED_COLUMNS]


def _browsed(frame: pd.DataFrame) -> dict[str, Any]:
    """Column by column: name, whether its values are numbers, and the values; null where there is none."""
    head = frame.head(BROWSED_ROWS)
    columns = []
    for name in head:
        numeric = pd.api.types.is_numeric_dtype(head[name]) and not pd.api.types.is_bool_dtype(head[name])
        values = [_number(value) if numeric else _word(value) for value in head[name]]
        columns.append({"name": str(name), "numeric": bool(numeric), "values": values})
    return {"columns": columns, "n_rows": len(frame)}


def _number(value: Any) -> float | int | str | None:
    """Six digits, which is more than is shown; JSON has no infinity, so that goes as the word JavaScript reads."""
    if pd.isna(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _word(value: Any) -> str | None:
    """Text, or 'yes' and 'no'."""
    text = _cell(value)
    return None if text == "–" else text


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return "yes" if value else "no"
    if isinstance(value, int | float) or hasattr(value, "dtype"):
        return number(float(value))
    return str(value)


def _verdict(report: Report) -> str:
    """One line for someone who reads one line."""
    counts = {s: sum(f.severity == s for f in report.findings) for s in ("alarm", "notice")}
    named = [f"{n} {word}{'s' if n > 1 else ''}" for word, n in counts.items() if n]
    if counts["alarm"]:
        return f"{' and '.join(named)}: read them before using this checkpoint or these numbers."
    if named:
        return f"No alarm, {' and '.join(named)}: what was found needs a second look, not a stop."
    return "No alarm and no notice."


def _sureness(report: Report) -> Iterator[str]:
    """How far the numbers carry, in sentences."""
    data = report.manifest.data
    if "scored" in data.get("pairs", {}):
        scored, rows = data["pairs"]["scored"], data["pairs"]["rows"]
        made_of = f"{number(scored)} of {number(rows)} pairs were scored"
        if data["pairs"].get("usable", 0) > rows:  # a ranking is one row and several pairs
            made_of = f"{number(scored)} pairs of {number(rows)} rankings were scored"
        yield made_of + _lost(data["pairs"].get("set_aside") or {})
    for section in report.sections:
        counts = section.counts
        if {"prompts", "rows"} <= set(counts):
            aside = {
                "could not be read": counts.get("set_aside", 0),
                "repeat the tokens of another": counts.get("duplicate_prompts", 0),
                "gave a NaN or infinity": counts.get("nonfinite_rows", 0),
            }
            read = f"{number(counts['prompts'])} of {number(counts['rows'])} prompts were traced"
            yield read + _lost({reason: n for reason, n in aside.items() if n})
    levels = {e.level for s in report.sections for e in s.estimates.values() if e.low is not None and e.level}
    for level in sorted(levels):
        yield (
            f"Numbers in parentheses are {number(100 * level)} % intervals: they cover the choice of prompts (whole "
            "prompts were resampled or left out), not the choice of data set, training run or seed."
        )
    missing = sum(e.value is None for s in report.sections for e in s.estimates.values())
    if missing:
        yield f"{missing} numbers could not be had; each says why in the tables below."


def _lost(aside: Mapping[str, int]) -> str:
    """The end of a sentence about rows: why some were not used."""
    lost = ", ".join(f"{number(n)} {REASONS.get(reason, reason)}" for reason, n in aside.items())
    return f"; not used: {lost}." if lost else "; none was set aside."


def _facts(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines of name and value."""
    for key, value in facts.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping) and value:
            yield from _facts(value, f"{name}: ")
        elif value not in (None, [], {}, ()):
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            yield name, number(shown) if isinstance(shown, float) else str(shown)


def _anchor(kind: str, name: str) -> str:
    return f"{kind}-{name.replace('.', '-').replace('_', '-')}"


def _embedded(value: Any) -> Markup:
    """JSON that can stand inside a script element: no tag can begin in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
