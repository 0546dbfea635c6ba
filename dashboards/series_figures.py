"""Figures of the section "series": the signals over training, a panel each, and every layer behind a slider."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..diagnose.report import Estimate
from .drawing import MUTED, POLICY, WRONG, canvas, table_with
from .profiles import band_outline

STEP = "training step"
COLUMNS = 2  # panels side by side
PANEL = 210  # pixels of height a row of panels
PANELS = {  # signal -> heading, the value that means "as at the start"
    "A": "A: exponent α",
    "T": "T: transport (angle a step) [rad]",
    "H": "H: entropy [nats]",
    "E": "E: efficiency",
    "R": "R: RankMe",
    "D": "D: distance to the start [rad]",
    "v": "v: speed [rad a training step]",
}
BY_LAYER = {"alpha": "exponent α", "angle": "angle of the next step [rad]", "base_distance": "distance to start [rad]"}
NOISE = (
    " Dotted: how far noise on the weights, as large as the update of the last save, moves the signal from the start, "
    "to both sides."
)
RULES = {
    "cusum": "CUSUM", "speed": "speed", "entropy_halved": "entropy halved", "accuracy_falls": "accuracy falls",
}  # fmt: skip


def series_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """The section's figures by name; one whose table or columns are missing is left out.

    tables: `trajectory`, `layers`. settings: `terminal_blocks`, whose first block the slider starts at.
    """
    made = {"trajectory": _trajectory(tables, estimates), "layers": _layers(tables, settings or {})}
    return {name: figure for name, figure in made.items() if figure is not None}


def _trajectory(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    if table_with(tables, "trajectory", "step", "signal", "value") is None:
        return None
    rows = tables["trajectory"]
    shown = [letter for letter in PANELS if rows[rows.signal == letter].value.notna().any()]
    n_rows = -(-len(shown) // COLUMNS)
    figure = panels(
        title=_title(estimates),
        how="A panel a signal, over the last blocks of the model. The band is the interval over prompts (for α and "
        "RankMe from leaving out groups of prompts); the dashed line is the start. Shaded is where the first change "
        "lies that two saves in a row confirm; a cross is a save at which a rule for a broken run fired (hover for "
        "which). The prompts are the same at all saves, so that changes are far clearer than the bands suggest; clear "
        "does not mean large, nor that the preferences caused it."
        + (NOISE if any(name.startswith("noise_") for name in estimates) else ""),
        headings=[PANELS[letter] for letter in shown],
        n_rows=n_rows,
    )
    for i, letter in enumerate(shown):
        _panel(figure, rows[rows.signal == letter], i // COLUMNS + 1, i % COLUMNS + 1, estimates)
    for column in range(1, min(COLUMNS, len(shown)) + 1):
        lowest = max(row for row in range(1, n_rows + 1) if (row - 1) * COLUMNS + column <= len(shown))
        figure.update_xaxes(title_text=STEP, row=lowest, col=column)
    return figure


def _title(estimates: Mapping[str, Estimate]) -> str:
    onset, alarm = estimates.get("onset"), estimates.get("first_alarm")
    begun = "No change that two saves in a row confirm"
    if onset is not None and onset.value is not None and onset.low is not None:
        begun = f"The read-out first changed between steps {onset.low:g} and {onset.value:g}"
    broken = "no rule for a broken run fired"
    if alarm is not None and alarm.value is not None:
        broken = f"the first alarm is at step {alarm.value:g}"
    return f"{begun}; {broken}"


def panels(*, title: str, how: str, headings: Sequence[str], n_rows: int) -> go.Figure:
    """A canvas with a grid of panels under one title."""
    n_columns = min(COLUMNS, len(headings)) if n_rows > 1 else len(headings)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        figure=canvas(title=title, how=how, x=STEP, y="", height=110 + PANEL * n_rows),
        subplot_titles=list(headings),
        horizontal_spacing=0.1,
        vertical_spacing=0.32 / n_rows,
    )
    figure.update_annotations(font_size=13)
    figure.update_xaxes(title={"text": None, "font": {"size": 13}})
    figure.update_layout(showlegend=False)
    return figure


def _panel(figure: go.Figure, rows: pd.DataFrame, row: int, column: int, estimates: Mapping[str, Estimate]) -> None:
    at = {"row": row, "col": column}
    x, band = band_outline(_intervals(rows), "value")
    figure.add_scatter(x=x, y=band, **_BAND, **at)
    figure.add_scatter(
        x=rows.step.to_numpy(),
        y=rows.value.to_numpy(dtype=float),
        mode="lines+markers",
        line={"color": POLICY, "width": 2},
        marker={"color": POLICY, "size": 6},
        customdata=_hover(rows),
        hovertemplate="step %{x:,}<br>%{y:.4g}%{customdata[0]}<extra></extra>",
        **at,
    )
    # after the traces: plotly leaves shapes of an empty panel out
    onset = estimates.get(f"onset_{rows.quantity.iloc[0]}")
    if onset is not None and onset.value is not None and onset.low is not None:
        figure.add_vrect(x0=onset.low, x1=onset.value, fillcolor=MUTED, opacity=0.22, line_width=0, layer="below", **at)
    start = rows.value.iloc[0]
    if np.isfinite(start):
        figure.add_hline(y=start, **_NULL, **at)
    _noise(figure, rows, estimates.get(f"noise_{rows.quantity.iloc[0]}"), at)
    if "alarm" not in rows:
        return
    fired = rows[rows.alarm.notna() & rows.value.notna()]
    if len(fired):
        named = [[", ".join(RULES.get(rule, rule) for rule in text.split(", "))] for text in fired.alarm]
        figure.add_scatter(
            x=fired.step.to_numpy(),
            y=fired.value.to_numpy(dtype=float),
            mode="markers",
            marker={"color": WRONG, "symbol": "x", "size": 11},
            customdata=named,
            hovertemplate="step %{x:,}: %{customdata[0]}<extra>alarm</extra>",
            **at,
        )


def _noise(figure: go.Figure, rows: pd.DataFrame, size: Estimate | None, at: Mapping[str, int]) -> None:
    """Dotted, as far from the start as noise of the last update's size moves the signal, to both sides."""
    start = rows.value.iloc[0]
    if size is None or size.value is None or not np.isfinite(start):
        return
    reach = abs(size.value)
    for y in [start + reach] if rows.signal.iloc[0] == "D" else [start - reach, start + reach]:
        figure.add_scatter(
            x=[rows.step.iloc[0], rows.step.iloc[-1]],
            y=[y, y],
            mode="lines",
            line={"color": MUTED, "width": 1.5, "dash": "dot"},
            hovertemplate=f"noise as large as the last update: {size}<extra></extra>",
            **at,
        )


def _layers(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> go.Figure | None:
    if table_with(tables, "layers", "step", "layer") is None:
        return None
    rows = tables["layers"]
    shown = [name for name in BY_LAYER if name in rows and rows[name].notna().any()]
    if not shown:
        return None
    layers = sorted(int(layer) for layer in rows.layer.unique())
    blocks = settings.get("terminal_blocks")
    start = int(blocks[0]) if blocks and int(blocks[0]) in layers else layers[-1]
    figure = panels(
        title=_farthest(rows),
        how="The slider picks a layer; the panels show its exponent, the angle of the step that leaves it and how far "
        "its read-out lies from that of the start, save by save. The axes stay as they are, so that layers can be "
        "compared. The last layer has no next step, and layer 0 (embeddings) no exponent where all prompts end in the "
        "same token. Intervals are layer by layer: with many of them some differ by chance.",
        headings=[BY_LAYER[name] for name in shown],
        n_rows=1,
    )
    for i, name in enumerate(shown):
        at = {"row": 1, "col": i + 1}
        first = rows[rows.layer == start]
        x, band = band_outline(_intervals(first, name), name)
        figure.add_scatter(x=x, y=band, **_BAND, **at)
        figure.add_scatter(
            x=first.step.to_numpy(),
            y=first[name].to_numpy(dtype=float),
            mode="lines+markers",
            line={"color": POLICY, "width": 2},
            marker={"color": POLICY, "size": 6},
            customdata=_hover(first, name),
            hovertemplate="step %{x:,}<br>%{y:.4g}%{customdata[0]}<extra></extra>",
            **at,
        )
        figure.update_yaxes(range=_range(rows, name), **at)
        figure.update_xaxes(title_text=STEP, range=_padded(rows.step.to_numpy(dtype=float)), **at)
        if name == "base_distance":
            figure.add_hline(y=0.0, **_NULL, **at)
    choices = [_choice(rows[rows.layer == layer], layer, shown) for layer in layers]
    figure.update_layout(
        height=420,
        margin_b=120,
        sliders=[
            {
                "active": layers.index(start),
                "currentvalue": {"prefix": "layer "},
                "pad": {"t": 56},
                "steps": choices,
            }
        ],
    )
    return figure


def _farthest(rows: pd.DataFrame) -> str:
    """The layer whose read-out lies farthest from the start at the last save, where distances are known."""
    last = rows[rows.step == rows.step.max()].dropna(subset=["base_distance"]) if "base_distance" in rows else rows[:0]
    if not len(last):
        return "Every layer over training"
    top = last.iloc[int(last.base_distance.to_numpy().argmax())]
    return f"At step {top.step:g} layer {top.layer:g} reads out farthest from the start: {top.base_distance:.3g} rad"


def _choice(rows: pd.DataFrame, layer: int, shown: Sequence[str]) -> dict[str, Any]:
    """A position of the slider: the data of all traces at this layer, in the order in which they were added."""
    data: dict[str, list[Any]] = {"x": [], "y": [], "customdata": []}
    for name in shown:
        x, band = band_outline(_intervals(rows, name), name)
        data["x"] += [_plain(x), rows.step.tolist()]
        data["y"] += [_plain(band), _plain(rows[name])]
        data["customdata"] += [None, _hover(rows, name)]
    return {"label": str(layer), "method": "restyle", "args": [data]}


_BAND: dict[str, Any] = {
    "mode": "lines", "fill": "toself", "fillcolor": POLICY, "line": {"width": 0}, "opacity": 0.2, "hoverinfo": "skip",
}  # fmt: skip


_NULL: dict[str, Any] = {"line": {"color": MUTED, "width": 1.5, "dash": "4px,3px"}, "layer": "below"}


def _intervals(rows: pd.DataFrame, value: str = "value") -> pd.DataFrame:
    """Columns as `band_outline` reads them, over steps."""
    named = {"low": "value_low", "high": "value_high"} if value == "value" else {}
    return rows.drop(columns="layer", errors="ignore").rename(columns={"step": "layer", **named})


def _plain(values: Any) -> list[float | None]:
    """Numbers for the slider's JSON: a gap is null."""
    return [None if not np.isfinite(value) else float(value) for value in values]


def _hover(rows: pd.DataFrame, value: str = "value") -> list[list[str]]:
    ends = ("low", "high") if value == "value" else (f"{value}_low", f"{value}_high")
    texts = []
    for row in rows.to_dict("records"):
        low, high = (row.get(end, np.nan) for end in ends)
        known = np.isfinite(low) and np.isfinite(high)
        texts.append([(f" [{low:.4g}, {high:.4g}]" if known else " (no interval)") + f"<br>n = {row['n']:,}"])
    return texts


def _range(rows: pd.DataFrame, name: str) -> list[float]:
    """From the lowest to the highest end of all layers."""
    ends = [rows[column] for column in (name, f"{name}_low", f"{name}_high") if column in rows]
    return _padded(pd.concat(ends).dropna().to_numpy(dtype=float))


def _padded(values: np.ndarray) -> list[float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or 0.5
    return [low - pad, high + pad]
