"""Figures of the section "rewards": is the implicit reward right as often as the explicit one, here and under shift?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from ..diagnose.reward_findings import SIGNIFICANT
from .drawing import (
    INK,
    MUTED,
    POLICY,
    POLICY_LOOK,
    REWARD,
    REWARD_LOOK,
    WRONG,
    Look,
    canvas,
    drawn,
    null_line,
    safe,
    table_with,
)
from .intervals import arms, interval_marks, reliability_curves, room_for_values, row_axis, span
from .wording import moved, number, p_text, stated

IN_DISTRIBUTION = "in-distribution"
_SHIFTS = (IN_DISTRIBUTION, "prompt shift", "response shift")  # order of the rows
_LENGTH_LOOK = Look(MUTED, "dot", "line-ns-open")
_SCORERS = {
    "accuracy_implicit": ("implicit reward", POLICY_LOOK),
    "accuracy_explicit": ("explicit reward", REWARD_LOOK),
}
_OFFSETS = (-0.23, 0.0, 0.23)  # of the three marks of a row, in rows
_KINDS = {
    "length": "difference of length [tokens]",
    "overlap": "overlap of tokens [Jaccard index]",
    "difficulty": "difficulty c [nats]",
}
# (implicit right, explicit right) -> legend, colour, symbol
_QUADRANTS = {
    (True, True): ("both right", MUTED, "circle-open"),
    (True, False): ("only implicit right", POLICY, "circle"),
    (False, True): ("only explicit right", REWARD, "diamond"),
    (False, False): ("neither right", WRONG, "x-thin-open"),
}


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting's place in a figure, and what its estimates' names end in."""

    name: str
    shift: str
    end: str

    def label(self, n: int) -> str:
        """The name, and below it the kind of shift and the pairs."""
        alike = self.name.replace("_", "-") == self.shift
        first, second = (self.shift, "") if alike else (self.name, f"{self.shift}, ")
        return f"{safe(first)}<br><span style='font-size:11px'>{safe(second)}n = {n:,}</span>"


def reward_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """The section's figures by name; one whose table or columns are missing is left out.

    tables: `by_setting`, `tests`, `agreement`, `disagreement`, `calibration`, `pairs` of the section "rewards".
    settings: `in_distribution` and `shifts` (name -> kind of shift); without them `by_setting` says which is which.
    """
    rows = setting_rows(tables, settings or {})
    made = {
        "accuracies": _accuracies(rows, estimates),
        "gaps": _gaps(rows, tables, estimates),
        "calibration": _calibration(tables, estimates),
        "margins": _margins(rows, tables),
        "disagreement": _disagreement(rows, tables, estimates),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def setting_rows(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[SettingRow]:
    """In-distribution first, then the shifted settings, kind by kind."""
    table = table_with(tables, "by_setting", "setting", "shift")
    shifts = dict(zip(table["setting"], table["shift"], strict=True)) if table is not None else {}
    if "in_distribution" in settings:
        shifts = {str(settings["in_distribution"]): IN_DISTRIBUTION} | dict(settings.get("shifts") or {})
    found = [SettingRow(name, kind, "" if kind == IN_DISTRIBUTION else f"_{name}") for name, kind in shifts.items()]
    return sorted(found, key=lambda row: _SHIFTS.index(row.shift))


def _accuracies(rows: Sequence[SettingRow], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    there = [row for row in rows if any(_valued(estimates, f"{name}{row.end}") for name in _SCORERS)]
    if not there:
        return None
    title = _both_gaps(there, estimates)
    if title is None:
        name, e = next((n, e) for n in _SCORERS for row in there if (e := _valued(estimates, f"{n}{row.end}")))
        title = f"The {_SCORERS[name][0]} is right on {stated(e)} of the pairs"
    figure = canvas(
        title=title,
        how="A row is a set of pairs: the pairs both rewards were made for on top, then sets with other prompts or "
        "other answers. A mark is the share of pairs on which that reward prefers the chosen answer, the line through "
        "it its interval. Read it only to the right of chance (dashed line, 0.5) and of the grey stroke, the better of "
        "always preferring the shorter and always the longer answer, which reads no text. Both rewards are judged on "
        "the same pairs of a row." + _absent(rows, estimates),
        x="share of pairs ranked right",
        y="set of pairs",
        height=150 + 74 * len(there),
    )
    null_line(figure, 0.5, horizontal=False)
    marks = [
        (label, look, {i: e for i, row in enumerate(there) if (e := _valued(estimates, f"{name}{row.end}"))})
        for name, (label, look) in _SCORERS.items()
    ]
    marks.append(
        ("better length rule", _LENGTH_LOOK, {i: e for i, row in enumerate(there) if (e := _length(row, estimates))})
    )
    for (label, look, found), offset in zip(marks, _OFFSETS, strict=True):
        interval_marks(figure, label, look, found, offset)
    room_for_values(figure, [e for _, _, found in marks for e in found.values()], 0.5, room=0.1)
    row_axis(figure, [row.label(_n(row, estimates)) for row in there])
    return figure


def _gaps(
    rows: Sequence[SettingRow], tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]
) -> go.Figure | None:
    found = [(row, e) for row in rows if (e := _valued(estimates, f"gap{row.end}"))]
    if not any(row.end for row, _ in found):
        return None
    holm = _holm(tables)
    mean = _valued(estimates, "mean_gap_shifted")
    figure = canvas(
        title=_told_apart([row for row, _ in found if row.end], holm, estimates),
        how="Each mark is how much more often the explicit reward is right than the implicit one on the same pairs, "
        "with its interval: right of 0 the explicit reward is better, left of it the implicit one. An interval across "
        "0 leaves open which is better. p is for 'equally often right', after Holm's correction over the shifted "
        "sets. The last row is the mean over those sets, each counted once whatever its size.",
        x="explicit minus implicit accuracy [share difference]",
        y="set of pairs",
        height=150 + 52 * (len(found) + (mean is not None)),
    )
    null_line(figure, 0.0, horizontal=False)
    base, shifted = Look(INK, "solid", "circle-open"), Look(INK, "solid", "circle")
    for name, look, inside in (("in-distribution", base, False), ("shifted", shifted, True)):
        some = {i: e for i, (row, e) in enumerate(found) if bool(row.end) == inside}
        notes = {i: safe(f", {p_text(p)}") for i in some if (p := holm.get(found[i][0].name)) is not None}
        interval_marks(figure, name, look, some, 0.0, notes=notes)
    labels = [row.label(e.n) for row, e in found]
    every = [e for _, e in found]
    if mean is not None:
        interval_marks(figure, "mean over shifted sets", Look(INK, "solid", "diamond"), {len(found): mean}, 0.0)
        labels.append("mean over<br>shifted sets")
        every.append(mean)
    room_for_values(figure, every, 0.0, room=0.2)
    row_axis(figure, labels)
    figure.update_layout(showlegend=False, margin_t=figure.layout.margin.t - 22)
    return figure


def _calibration(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    table = table_with(tables, "calibration", "scorer", "confidence", "observed")
    if table is None:
        return None
    parts = []
    for name in ("implicit", "explicit"):
        error, expected = estimates.get(f"ece_{name}"), estimates.get(f"ece_{name}_expected")
        if error is not None and expected is not None and None not in (error.value, expected.value):
            shown, chance = (number(e.value or 0.0, 3) for e in (error, expected))
            most = estimates.get(f"ece_{name}_expected_p95")
            if most is not None and most.value is not None:
                chance += f", by chance up to {number(most.value, 3)}"
            parts.append(f"{shown} for the {name} reward (if calibrated {chance})")
    figure = canvas(
        title="Confidence misses the votes by " + ", by ".join(parts)
        if parts
        else "Does the size of a reward margin mean what it says?",
        how="A point is a bin of pairs whose margins claim about the same confidence, sigmoid of the margin folded to "
        "0.5 and above; its height is the share of votes that agree, the line through it its Wilson interval. On the "
        "diagonal confidence is deserved; below it the reward is over-confident, above it under-confident. With so few "
        "votes a bin even a calibrated reward strays: the title says by how much on average, and up to what in 95 % of "
        "cases. beta scales the implicit margins, so it moves this figure and no accuracy.",
        x="confidence claimed [share]",
        y="votes that agree [share]",
        height=420,
    )
    names = zip(("implicit", "explicit"), _SCORERS.values(), strict=True)
    reliability_curves(figure, {label: (table[table.scorer == scorer], look) for scorer, (label, look) in names})
    return figure


def _margins(rows: Sequence[SettingRow], tables: Mapping[str, pd.DataFrame]) -> go.Figure | None:
    columns = ("implicit_margin", "explicit_margin", "implicit_right", "explicit_right")
    table = table_with(tables, "pairs", "setting", *columns)
    if table is None:
        return None
    setting = _first(rows, table)
    table = table[table.setting == setting.name]
    shares = _shares(tables, setting.name)
    title = f"Margins of both rewards, {_spoken(setting)}"
    if shares:
        said = {key: number(share, 3) for key, share in shares.items()}
        title = (
            f"{_spoken(setting).capitalize()} both rewards are right on {said[True, True]} of the pairs, only the "
            f"implicit one on {said[True, False]}, only the explicit one on {said[False, True]}, neither on "
            f"{said[False, False]}"
        )
    some, note = drawn(table)
    figure = canvas(
        title=title,
        how="A point is a pair: the margin by which the implicit reward prefers the chosen answer (across; beta times "
        "the difference of log-ratios) and that of the explicit reward (up; its own units, so only signs and order "
        "compare). Upper left and lower right the two rewards decide differently. A tie counts as not right." + note,
        x="implicit margin β(Δ chosen − Δ rejected) [nats]",
        y="explicit margin [units of the reward model]",
        height=440,
    )
    null_line(figure, 0.0)
    null_line(figure, 0.0, horizontal=False)
    for (implicit, explicit), (label, colour, symbol) in _QUADRANTS.items():
        inside = some[((some.implicit_right == 1) == implicit) & ((some.explicit_right == 1) == explicit)]
        if len(inside):
            figure.add_scatter(
                x=inside.implicit_margin.to_numpy(dtype=float), y=inside.explicit_margin.to_numpy(dtype=float),
                mode="markers", name=label, customdata=_ids(inside),
                marker={"color": colour, "symbol": symbol, "size": 6, "opacity": 0.75,
                        "line": {"width": 1.3, "color": colour}},
                hovertemplate="%{customdata}<br>implicit %{x:.3g}, explicit %{y:.3g}<extra></extra>",
            )  # fmt: skip
    return figure


def _disagreement(
    rows: Sequence[SettingRow], tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]
) -> go.Figure | None:
    table = table_with(tables, "disagreement", "setting", "kind", "quarter", "lowest", "highest", "disagreement", "gap")
    if table is None:
        return None
    setting = _first(rows, table)
    table = table[table.setting == setting.name]
    kinds = [kind for kind in _KINDS if (table.kind == kind).any()]
    share = stated(estimates.get(f"disagreement{setting.end}"))
    figure = canvas(
        title=f"{_spoken(setting).capitalize()} the rewards decide differently on {share} of the pairs"
        if share
        else "Where the two rewards decide differently",
        how="The pairs are cut into quarters three times: by how much their answers differ in length, by how many "
        "tokens the answers share, and by how strongly the reference prefers the wrong one. Above: the share of pairs "
        "on which the rewards disagree. Below: which of them is then right more often (above 0 the explicit one). A "
        "slope across quarters says on what kind of pair the rewards part; overlapping intervals say that it may be "
        "chance.",
        x="",
        y="",
        height=500,
    )
    figure.set_subplots(
        rows=2, cols=len(kinds), start_cell="bottom-left", shared_yaxes=True, horizontal_spacing=0.04,
        vertical_spacing=0.08,
    )  # fmt: skip
    for col, kind in enumerate(kinds, 1):
        quarters = table[table.kind == kind].sort_values("quarter")
        place = list(range(len(quarters)))
        spans = [span(*ends) for ends in zip(quarters.lowest, quarters.highest, strict=True)]
        for row, value, look in ((2, "disagreement", Look(INK, "solid", "circle")), (1, "gap", REWARD_LOOK)):
            figure.add_scatter(
                x=place, y=quarters[value].to_numpy(dtype=float), mode="lines+markers", name=f"{value}, {kind}",
                showlegend=False, row=row, col=col,
                line={"color": look.colour, "width": 1.2, "dash": look.dash},
                marker={"color": look.colour, "symbol": look.symbol, "size": 9},
                error_y=arms(quarters, value, look.colour),
                customdata=quarters.n.to_numpy() if "n" in quarters else None,
                hovertemplate="%{y:.3f}<br>n = %{customdata}<extra></extra>",
            )  # fmt: skip
        ticks = {"tickvals": place, "ticktext": spans, "range": [-0.5, len(place) - 0.5], "showgrid": False}
        figure.update_xaxes(**ticks, row=1, col=col, title_text=_KINDS[kind])
        figure.update_xaxes(**ticks, row=2, col=col, showticklabels=False)
    figure.add_hline(y=0, line={"color": MUTED, "width": 1.5, "dash": "4px,3px"}, layer="below", row=1, col="all")
    figure.update_yaxes(title_text="explicit − implicit<br>[share difference]", row=1, col=1)
    figure.update_yaxes(title_text="decide differently<br>[share]", rangemode="tozero", row=2, col=1)
    figure.update_layout(margin_t=figure.layout.margin.t - 18)
    return figure


def _both_gaps(rows: Sequence[SettingRow], estimates: Mapping[str, Estimate]) -> str | None:
    """The in-distribution gap and the mean shifted gap in words; None where there is neither."""
    here = _ahead(estimates.get("gap"))
    mean = _ahead(estimates.get("mean_gap_shifted"))
    shifted = sum(bool(row.end) for row in rows)
    sets = f"over {shifted} shifted sets" if shifted > 1 else "on the shifted set"
    parts = [f"in-distribution {here}"] * (here is not None) + [f"{sets} {mean}"] * (mean is not None)
    text = "; ".join(parts)
    return text[0].upper() + text[1:] if text else None


def _told_apart(shifted: Sequence[SettingRow], holm: Mapping[str, float], estimates: Mapping[str, Estimate]) -> str:
    """In how many shifted sets the rewards differ after Holm's correction, and in which direction."""
    parts: dict[str, list[str]] = {"explicit": [], "implicit": []}
    for row in shifted:
        gap = estimates[f"gap{row.end}"].value or 0.0
        if holm.get(row.name, 1.0) < SIGNIFICANT:
            parts["explicit" if gap > 0 else "implicit"].append(row.name)
    if not any(row.name in holm for row in shifted):
        return "Explicit minus implicit accuracy, set by set"
    ahead = [f"the {name} reward is ahead in {len(n)} ({', '.join(n[:3])}{', ...' * (len(n) > 3)})"
             for name, n in parts.items() if n]  # fmt: skip
    sets = f"{len(shifted)} shifted sets" if len(shifted) > 1 else "1 shifted set"
    return f"Of {sets}, after Holm's correction: " + ("; ".join(ahead) or "neither reward is clearly ahead in any")


def _holm(tables: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    table = table_with(tables, "tests", "setting", "gap_p_holm")
    return {} if table is None else dict(zip(table["setting"], table["gap_p_holm"].astype(float), strict=True))


def _ahead(gap: Estimate | None) -> str | None:
    return moved(
        gap, "the explicit reward is ahead", "the implicit reward is ahead",
        unclear="neither reward is clearly ahead", bare="explicit minus implicit accuracy is",
    )  # fmt: skip


def _shares(tables: Mapping[str, pd.DataFrame], setting: str) -> dict[tuple[bool, bool], float]:
    table = table_with(tables, "agreement", "setting", "implicit_right", "explicit_right", "share")
    if table is None:
        return {}
    columns = [table[table.setting == setting][n].to_numpy() for n in ("implicit_right", "explicit_right", "share")]
    found = {(bool(first), bool(second)): float(share) for first, second, share in zip(*columns, strict=True)}
    return found if set(found) == set(_QUADRANTS) else {}


def _first(rows: Sequence[SettingRow], table: pd.DataFrame) -> SettingRow:
    """The first setting that the table holds: in-distribution where it can be had."""
    names = set(table.setting)
    return next((row for row in rows if row.name in names), SettingRow(str(table.setting.iloc[0]), IN_DISTRIBUTION, ""))


def _spoken(setting: SettingRow) -> str:
    return IN_DISTRIBUTION if not setting.end else f"on {setting.name}"


def _length(row: SettingRow, estimates: Mapping[str, Estimate]) -> Estimate | None:
    both = [e for name in ("shorter_wins", "longer_wins") if (e := _valued(estimates, f"{name}{row.end}"))]
    return max(both, key=lambda e: e.value or 0.0) if both else None


def _absent(rows: Sequence[SettingRow], estimates: Mapping[str, Estimate]) -> str:
    """One sentence a reward and reason: where its accuracy could not be had."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, (label, _) in _SCORERS.items():
        for row in rows:
            e = estimates.get(f"{name}{row.end}")
            if e is not None and e.value is None:
                found.setdefault((label, str(e.reason)), []).append(row.name)
    return "".join(f" Not shown: {what} of {', '.join(names)} ({why})." for (what, why), names in found.items())


def _n(row: SettingRow, estimates: Mapping[str, Estimate]) -> int:
    return max(e.n for name in _SCORERS if (e := _valued(estimates, f"{name}{row.end}")))


def _valued(estimates: Mapping[str, Estimate], name: str) -> Estimate | None:
    e = estimates.get(name)
    return None if e is None or e.value is None else e


def _ids(rows: pd.DataFrame) -> list[str]:
    """The pairs' ids, for hovering."""
    return [safe(f"pair {name}") for name in (rows.pair_id if "pair_id" in rows else rows.index)]
