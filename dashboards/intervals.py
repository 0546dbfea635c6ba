"""Numbers with intervals as marks: rows of a forest plot, and points with error bars from a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from .drawing import GRID, MUTED, Look, error_bar, safe
from .wording import number, stated, value_text


def interval_marks(
    figure: go.Figure,
    name: str,
    look: Look,
    found: Mapping[int, Estimate],
    offset: float,
    *,
    notes: Mapping[int, str] | None = None,
) -> None:
    """Marks with intervals at rows, and their values at the right edge."""
    if not found:
        return
    bars = [error_bar(e) for e in found.values()]
    notes = notes or {}
    figure.add_scatter(
        x=[e.value for e in found.values()],
        y=[i + offset for i in found],
        mode="markers",
        name=name,
        error_x={
            "type": "data", "array": [up for _, up in bars], "arrayminus": [down for down, _ in bars],
            "color": look.colour, "thickness": 2.2, "width": 0,
        },
        marker={"color": look.colour, "symbol": look.symbol, "size": 11, "line": {"width": 2, "color": look.colour}},
        customdata=[f"{safe(e.label)}<br>{safe(stated(e))}{notes.get(i, '')}<br>n = {e.n:,}" for i, e in found.items()],
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    for i, e in found.items():
        figure.add_annotation(
            x=1, xref="paper", xanchor="right", y=i + offset, text=f"{value_text(e)}{notes.get(i, '')}",
            showarrow=False, font={"color": look.colour, "size": 12},
        )  # fmt: skip


def room_for_values(figure: go.Figure, found: Sequence[Estimate], null: float, *, room: float) -> None:
    """x from the lowest to the highest end, and a strip at the right for the values; room: share of the width."""
    ends = [end for e in found for end in (e.low, e.high, e.value) if end is not None]
    low, high = min(*ends, null), max(*ends, null)
    pad = 0.04 * (high - low) + 0.005
    figure.update_xaxes(range=[low - pad, high + pad + room * (high - low + 2 * pad) / (1 - room)])


def row_axis(figure: go.Figure, labels: Sequence[str]) -> None:
    """A row a label from the top down, with a line between rows."""
    n = len(labels)
    figure.update_yaxes(
        tickvals=list(range(n)), ticktext=list(labels), range=[n - 0.5, -0.5], showgrid=False, showline=False, ticks="",
    )  # fmt: skip
    for i in range(1, n):
        figure.add_hline(y=i - 0.5, line={"color": GRID, "width": 1}, layer="below")
    title_from_the_left(figure)


def title_from_the_left(figure: go.Figure) -> None:
    """The title starts at the figure's edge: right of long labels it would run into the buttons."""
    figure.update_layout(title={"xref": "container", "x": 0, "pad": {"l": 6}})


def arms(rows: pd.DataFrame, value: str, colour: str) -> dict[str, Any] | None:
    """Error bars from `<value>_low` and `_high`, or from `low` and `high`; none where the table has no interval."""
    low, high = (f"{value}_low", f"{value}_high") if f"{value}_low" in rows else ("low", "high")
    if not {low, high} <= set(rows.columns):
        return None
    up, down = ((rows[high] - rows[value]), (rows[value] - rows[low]))
    return {
        "type": "data", "array": up.fillna(0.0).clip(lower=0).tolist(),
        "arrayminus": down.fillna(0.0).clip(lower=0).tolist(), "color": colour, "thickness": 1.6, "width": 3,
    }  # fmt: skip


def reliability_curves(figure: go.Figure, curves: Mapping[str, tuple[pd.DataFrame, Look]]) -> None:
    """A line a scorer over its bins of pairs, with Wilson bars, and the diagonal on which confidence is deserved.

    curves: label -> table with columns confidence (folded to 0.5 and above), observed, n, and low, high.
    """
    figure.add_scatter(
        x=[0.5, 1], y=[0.5, 1], mode="lines", name="calibrated", hoverinfo="skip",
        line={"color": MUTED, "width": 1.5, "dash": "4px,3px"},
    )  # fmt: skip
    for label, (table, look) in curves.items():
        some = table.sort_values("confidence")
        if not len(some):
            continue
        figure.add_scatter(
            x=some.confidence.to_numpy(dtype=float), y=some.observed.to_numpy(dtype=float), mode="lines+markers",
            name=label, line={"color": look.colour, "dash": look.dash, "width": 1.6},
            marker={"color": look.colour, "symbol": look.symbol, "size": 8},
            error_y=arms(some, "observed", look.colour),
            customdata=some.n.to_numpy() if "n" in some else None,
            hovertemplate=f"{label}<br>claimed %{{x:.3f}}, agree %{{y:.3f}}<br>n = %{{customdata}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[0.49, 1.01])


def span(lowest: float, highest: float) -> str:
    """'3 to 9' on two lines, for the tick of a quarter of pairs."""
    ends = [number(float(f"{end:.3g}")) for end in (lowest, highest)]
    return ends[0] if lowest == highest else f"{ends[0]}<br>to {ends[1]}"
