"""How every figure looks: palette, marks, type. One place, so that a model keeps its colour through a page."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate

MAX_POINTS = 4_000  # marks in a scatter; more are slow in a browser and hide each other
WRAP = 84  # characters of a title line
TITLE_LINE = 20  # its height, px
TITLE_PAD = 14  # above the title, px

# Colour on white -> the same colour's stand-in on a dark page (the page swaps them in the figures' JSON).
PALETTE = {
    "#24292f": "#d9dee4",  # ink
    "#68717d": "#98a2af",  # muted
    "#e4e7eb": "#333a44",  # grid
    "#fefefe": "#1a1e24",  # paper
    "#1f5fae": "#6aabf7",  # policy
    "#bf6a12": "#f0a95c",  # reference
    "#2b8a66": "#5fcaa1",  # reward model
    "#7b52ab": "#bb9af0",  # a fourth model
    "#b3261e": "#ff8f86",  # wrong
}
INK, MUTED, GRID, PAPER, POLICY, REFERENCE, REWARD, FOURTH, WRONG = PALETTE


@dataclass(frozen=True, slots=True)
class Look:
    """Colour, and what tells lines apart where there is none."""

    colour: str
    dash: str
    symbol: str


POLICY_LOOK = Look(POLICY, "solid", "circle")
REFERENCE_LOOK = Look(REFERENCE, "dash", "square")
REWARD_LOOK = Look(REWARD, "dot", "diamond")
FOURTH_LOOK = Look(FOURTH, "dashdot", "triangle-up")
SOURCE_LOOKS = {  # where responses are from; those drawn from a model look like it
    "chosen": Look(INK, "solid", "triangle-up"),
    "rejected": Look(FOURTH, "dash", "triangle-down"),
    "policy": POLICY_LOOK,
    "reference": REFERENCE_LOOK,
    "dataset": REWARD_LOOK,
}

_AXIS = {
    "gridcolor": GRID,
    "linecolor": MUTED,
    "zeroline": False,
    "showline": True,
    "ticks": "outside",
    "tickcolor": MUTED,
    "ticklen": 4,
    "automargin": True,
    "title": {"standoff": 10},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "title": {"text": ""},
        },
        "hoverlabel": {"align": "left", "bgcolor": PAPER, "bordercolor": MUTED, "font": {"color": INK}},
        "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"},
    }
)


def canvas(*, title: str, how: str, x: str, y: str, height: int = 380) -> go.Figure:
    """An empty figure. `title` and `how` (how to read it) also stand in `layout.meta`, as plain text."""
    lines = textwrap.wrap(title, WRAP)
    figure = go.Figure()
    figure.update_layout(
        template=TEMPLATE,
        title={"text": "<br>".join(map(safe, lines)), "font": {"size": 15}, "pad": {"t": TITLE_PAD}},
        meta={"title": title, "how_to_read": how},
        xaxis_title_text=x,
        yaxis_title_text=y,
        margin={"l": 56, "r": 18, "t": 52 + TITLE_LINE * len(lines), "b": 48},
        height=height,
        hovermode="closest",
    )
    return figure


def without_title(figure: go.Figure) -> go.Figure:
    """The same marks at the same size under no title: for a page, whose own headings wrap at any width."""
    bare = go.Figure(figure)
    room = TITLE_PAD + TITLE_LINE * (str(bare.layout.title.text).count("<br>") + 1)
    bare.update_layout(margin_t=max(bare.layout.margin.t - room, 8), height=bare.layout.height - room)
    bare.layout.title = None
    return bare


def safe(text: object) -> str:
    """Text for a label: plotly reads a few HTML tags in labels, a model's name must not become one."""
    return html.escape(str(text), quote=False)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look a model: one alone looks like the policy; of several the first is the reference, the second the policy."""
    order = [REFERENCE_LOOK, POLICY_LOOK, REWARD_LOOK, FOURTH_LOOK] if len(names) > 1 else [POLICY_LOOK]
    return {name: order[i % len(order)] for i, name in enumerate(names)}


def null_line(figure: go.Figure, value: float, *, horizontal: bool = True) -> None:
    """The value that means 'no effect'."""
    line = {"color": MUTED, "width": 1.5, "dash": "4px,3px"}
    if horizontal:
        figure.add_hline(y=value, line=line, layer="below")
    else:
        figure.add_vline(x=value, line=line, layer="below")


def table_with(tables: Mapping[str, pd.DataFrame], name: str, *columns: str) -> pd.DataFrame | None:
    """The table where it has these columns and a row with all of them; a figure without its data is left out."""
    frame = tables.get(name)
    if frame is None or not set(columns) <= set(frame.columns):
        return None
    whole = frame.dropna(subset=list(columns))
    return whole if len(whole) else None


def drawn(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows that a scatter draws, and a note where they are a sample."""
    if len(frame) <= MAX_POINTS:
        return frame, ""
    sample = frame.sample(MAX_POINTS, random_state=0).sort_index()
    return sample, f" Drawn: {MAX_POINTS:,} of {len(frame):,} pairs, picked at random."


def error_bar(estimate: Estimate) -> tuple[float, float]:
    """Lengths of the two arms, 0 where there is no interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return 0.0, 0.0
    return max(estimate.value - estimate.low, 0.0), max(estimate.high - estimate.value, 0.0)
