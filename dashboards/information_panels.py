"""The four measures of an update side by side, D^S, KL, D and KL the other way: none of them stands alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..diagnose.information_rates import row_estimate
from .drawing import MUTED, Look, safe
from .intervals import arms
from .series_figures import COLUMNS, panels
from .wording import number, stated

# measure -> heading, in reading order
PANELS = {
    "plausible_information": "D<sup>S</sup> (plausible)",
    "kl": "KL(π || ref)",
    "information": "D (all tokens)",
    "reverse_kl": "KL(ref || π)",
}
WIDE = 50  # largest over smallest end from which an axis is logarithmic: few marks would stand clear of 0 otherwise
LEGEND = 26  # height of a line of the legend, px
TICK = 5  # length of a letter beside an axis, px


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One set of marks in every panel. group: its source; the first of a source stands for it in the legend.

    rows: x, where (for hovering), measure, value, low, high, n, n_prompts, unit, reason.
    """

    name: str
    group: str
    look: Look
    rows: pd.DataFrame
    joined: bool = False


def measure_panels(
    series: Sequence[Series], *, ticks: Sequence[str], title: str, how: str, x: str, floor: float | None
) -> go.Figure:
    """A panel a measure on one range, from 0 or, where rates are far apart, logarithmic. The floor is dashed."""
    shown = [measure for measure in PANELS if any(_known(one, measure).size for one in series)]
    n_rows = -(-len(shown) // COLUMNS)
    floor_text = "" if floor is None else f" The dashed line is the noise floor, {number(floor)} nats: under it a rate "
    floor_text += "" if floor is None else "is rounding."
    limits, is_log = _limits([one.rows[one.rows.measure.isin(shown)] for one in series], floor)
    figure = panels(
        title=title,
        how=how + floor_text + (" Axes are logarithmic and alike." if is_log else " Axes are alike."),
        headings=[PANELS[measure] for measure in shown],
        n_rows=n_rows,
    )
    for i, measure in enumerate(shown):
        at = {"row": 1 + i // COLUMNS, "col": 1 + i % COLUMNS}
        for one in series:
            some = one.rows[(one.rows.measure == measure) & one.rows.value.notna()]
            is_named = i == 0 and one.name == one.group
            points(figure, some, one.name, one.look, group=one.group, joined=one.joined, showlegend=is_named, at=at)
        if floor is not None:
            figure.add_hline(y=floor, line={"color": MUTED, "width": 1.5, "dash": "4px,3px"}, layer="below", **at)
        figure.update_yaxes(type="log" if is_log else "linear", range=limits, tickformat="~g", **at)
        if is_log:
            figure.update_yaxes(dtick=1, **at)
        is_lowest = i + COLUMNS >= len(shown)  # of its column: ticks of others would run into headings
        figure.update_xaxes(title_text=x if is_lowest else None, showticklabels=is_lowest, **at)
        figure.update_yaxes(title_text="nats a token" if i % COLUMNS == 0 else None, title_font_size=13, **at)
    tick_axis(figure, ticks)
    room = TICK * max(map(len, ticks))  # where a narrow window turns them
    figure.update_layout(height=figure.layout.height + room)
    groups = {one.group for one in series}
    if len(groups) > 1:
        room = LEGEND * (1 + len(groups) // COLUMNS)
        figure.update_layout(
            showlegend=True,
            height=figure.layout.height + room,
            margin_b=figure.layout.margin.b + room,
            legend={"yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        )
    return figure


def points(
    figure: go.Figure,
    rows: pd.DataFrame,
    name: str,
    look: Look,
    *,
    group: str | None = None,
    joined: bool = False,
    showlegend: bool = True,
    at: dict[str, int] | None = None,
    more: Sequence[str] | None = None,
) -> None:
    """Marks with intervals at rows.x; hollow where there is none. more: what else each mark says when hovered."""
    if not len(rows):
        return
    bare = rows.low.isna() | rows.high.isna()
    said = more or [""] * len(rows)
    figure.add_scatter(
        x=rows.x.to_numpy(dtype=float), y=rows.value.to_numpy(dtype=float), name=safe(name), legendgroup=group or name,
        mode="lines+markers" if joined else "markers", showlegend=showlegend,
        line={"color": look.colour, "dash": look.dash, "width": 1.3},
        marker={
            "color": look.colour, "symbol": [f"{look.symbol}-open" if none else look.symbol for none in bare],
            "size": 9, "line": {"color": look.colour, "width": 1.5},
        },
        error_y=arms(rows, "value", look.colour),
        customdata=[_hover(row) + extra for (_, row), extra in zip(rows.iterrows(), said, strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
        **(at or {}),
    )  # fmt: skip


def tick_axis(figure: go.Figure, ticks: Sequence[str]) -> None:
    """A tick a name at 0, 1, 2, ..."""
    figure.update_xaxes(
        tickvals=list(range(len(ticks))), ticktext=list(map(safe, ticks)), range=[-0.5, len(ticks) - 0.5],
        showgrid=False,
    )  # fmt: skip


def dodge(k: int, n: int) -> float:
    """Shift of the k-th of n marks that share a tick."""
    return (k - (n - 1) / 2) * min(0.8 / n, 0.22)


def bare_note(rows: pd.DataFrame, what: str) -> str:
    """Sentences on hollow marks and on rows that have no value, with the reasons in the table."""
    bare = rows[rows.value.notna() & (rows.low.isna() | rows.high.isna())]
    gone = rows[rows.value.isna()]
    note = f" Hollow: no interval ({_reasons(bare)})." if len(bare) else ""
    if len(gone):
        columns = [name for name in ("source", "bucket", "to") if name in gone]
        named = dict.fromkeys(", ".join(map(str, row)) for row in gone[columns].itertuples(index=False, name=None))
        note += f" Not shown, as no {what} is known: {'; '.join(named)} ({_reasons(gone)})."
    return note


def _reasons(rows: pd.DataFrame) -> str:
    found = list(dict.fromkeys(str(reason).partition(": ")[0] for reason in rows.reason.dropna()))
    return "; ".join(found) or "no position has one"


def _hover(row: pd.Series) -> str:
    found = row_estimate(row.to_dict() | {"measure": row.get("measure", "slope")})
    reason = "" if found.low is not None else f"<br>no interval: {safe(found.reason)}"
    prompts = "" if found.n_clusters is None else f" in {found.n_clusters:,} prompts"
    return f"{safe(row['where'])}<br>{safe(stated(found))}{reason}<br>n = {found.n:,} tokens{prompts}"


def _known(one: Series, measure: str) -> np.ndarray:
    return one.rows[one.rows.measure == measure].value.dropna().to_numpy(dtype=float)


def _limits(tables: Sequence[pd.DataFrame], floor: float | None) -> tuple[list[float], bool]:
    """Ends of the axis (as powers of ten where it is logarithmic), and whether it is."""
    ends = np.concatenate([rows[["value", "low", "high"]].to_numpy(dtype=float).ravel() for rows in tables])
    ends = ends[np.isfinite(ends)]
    least, most = float(ends.min()), float(ends.max())
    known = [] if floor is None else [floor]
    if least > 0 and most / least > WIDE:
        low, high = np.log10(min([least, *known])), np.log10(max([most, *known]))
        room = 0.06 * float(high - low)
        return [float(low) - room, float(high) + room], True
    low, high = min([least, 0.0]), max([most, *known, 0.0])
    room = 0.06 * (high - low) or 0.5
    return [low - room, high + room], False
