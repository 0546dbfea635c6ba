"""Curves over layers: a line a model with its band, and differences of two models with theirs."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .drawing import MUTED, POLICY, Look, canvas, looks, null_line, safe

LAYER_AXIS = "layer (0 = embeddings)"
STEP_AXIS = "step from layer l to l + 1"
SINGLE = 0.18  # half-width, in layers, of the band of a lone point


def layer_profile(
    rows: pd.DataFrame,
    *,
    value: str,
    unit: str,
    title: str,
    y_title: str | None = None,
    x_title: str = LAYER_AXIS,
    how: str = "",
    passed: str | None = None,
    appearance: Mapping[str, Look] | None = None,
) -> go.Figure:
    """A line a model over layers, its interval as a band. The title says the finding, not the variable.

    rows: columns model, layer, `value`, and `value`_low / _high where there are intervals (NaN: a gap).
    passed: a column of booleans; points where it is false are hollow and grey.
    """
    quantity = y_title or value
    figure = canvas(title=title, how=how, x=x_title, y=f"{quantity} [{unit}]" if unit else quantity)
    appearance = appearance or looks(list(rows.model.unique()))
    for name, model in rows.groupby("model", sort=False):
        look = appearance[str(name)]
        x, band = band_outline(model, value)
        figure.add_scatter(
            x=x,
            y=band,
            mode="lines",
            fill="toself",
            fillcolor=look.colour,
            line_width=0,
            opacity=0.2,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=str(name),
        )
        figure.add_scatter(
            x=model.layer.to_numpy(),
            y=model[value].to_numpy(dtype=float),
            name=safe(name),
            legendgroup=str(name),
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash, "width": 2},
            marker=_markers(model, look, passed),
            customdata=_hover(model, value, passed),
            hovertemplate=f"layer %{{x}}<br>{safe(quantity)} %{{y:.4g}}%{{customdata[0]}}<extra>{safe(name)}</extra>",
        )
    layer_axis(figure, rows.layer)
    return figure


def contrast_profile(
    rows: pd.DataFrame,
    *,
    value: str,
    unit: str,
    title: str,
    y_title: str,
    x_title: str = LAYER_AXIS,
    how: str = "",
    p: str | None = None,
    level: float = 0.025,
    control: pd.DataFrame | None = None,
    control_name: str = "control",
) -> go.Figure:
    """Differences by layer as points with intervals (bare where there is none), 0 drawn; filled where `p` < level.

    control: rows with the same columns, drawn as a grey band: what no training at all looks like.
    """
    figure = canvas(title=title, how=how, x=x_title, y=f"{y_title} [{unit}]" if unit else y_title)
    null_line(figure, 0.0)
    if control is not None and len(control):
        x, band = band_outline(control, value)
        figure.add_scatter(
            x=x, y=band, mode="lines", fill="toself", fillcolor=MUTED, line_width=0, opacity=0.22, hoverinfo="skip",
            showlegend=False, legendgroup="control",
        )  # fmt: skip
        figure.add_scatter(
            x=control.layer.to_numpy(), y=control[value].to_numpy(dtype=float), name=safe(control_name),
            legendgroup="control", mode="lines", line={"color": MUTED, "dash": "dot", "width": 1.5},
            hovertemplate="layer %{x}<br>control %{y:.4g}<extra></extra>",
        )  # fmt: skip
    clear = np.ones(len(rows), bool) if p is None else (rows[p] < level).fillna(False).to_numpy(dtype=bool)
    names = (
        {True: f"p < {level:g} after adjustment for all layers", False: f"p ≥ {level:g}"}
        if p is not None
        else {True: "difference"}
    )
    bounded = np.isfinite([rows.get(f"{value}_{end}", rows[value] * np.nan) for end in ("low", "high")]).all(0)
    pieces = [(filled, True) for filled in names]
    pieces += [(filled, False) for filled in names if (~bounded & (clear == filled)).any()]
    for filled, bars in pieces:
        group, some = rows[clear == filled], rows[(clear == filled) & (bounded == bars)]
        figure.add_scatter(
            x=some.layer.to_numpy(),
            y=some[value].to_numpy(dtype=float),
            name=names[filled],
            legendgroup=names[filled],
            mode="markers",
            showlegend=p is not None and len(some) > 0 and (bars or len(some) == len(group)),
            error_y=_arms(some, value) if bars else None,
            marker={
                "color": POLICY,
                "size": 8,
                "symbol": "circle" if filled else "circle-open",
                "line": {"width": 1.6, "color": POLICY},
            },
            customdata=_hover(some, value, None, p),
            hovertemplate="layer %{x}<br>difference %{y:.4g}%{customdata[0]}<extra></extra>",
        )
    layer_axis(figure, rows.layer)
    return figure


def _arms(rows: pd.DataFrame, value: str) -> dict[str, object]:
    """Error bars from centre to both ends of the interval, none for no rows."""
    if not len(rows):
        return {}
    centre, low, high = (rows[f"{value}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
    arms = {"array": high - centre, "arrayminus": centre - low}
    return {"type": "data", **arms, "thickness": 1.6, "width": 3, "color": POLICY}


def band_outline(rows: pd.DataFrame, value: str) -> tuple[list[float], list[float]]:
    """Outline of the band: along the upper ends and back along the lower ones, a closed piece a run of finite rows."""
    if f"{value}_low" not in rows or f"{value}_high" not in rows:
        return [], []
    layer = rows.layer.to_numpy(dtype=float)
    low, high = (rows[f"{value}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
    finite = np.isfinite(low) & np.isfinite(high)
    runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(finite)) + 1)
    x: list[float] = []
    y: list[float] = []
    for run in runs:
        if not len(run) or not finite[run[0]]:
            continue
        at, up, down = layer[run], high[run], low[run]
        if len(run) == 1:  # a polygon of one layer would have no width
            at, up, down = np.array([at[0] - SINGLE, at[0] + SINGLE]), up.repeat(2), down.repeat(2)
        gap = [float("nan")] if x else []
        x += [*gap, *at, *at[::-1]]
        y += [*gap, *up, *down[::-1]]
    return x, y


def layer_axis(figure: go.Figure, layers: pd.Series) -> None:
    """Whole layers as ticks."""
    figure.update_xaxes(tickformat="d", **({"dtick": 1} if layers.nunique() <= 13 else {}))


def _markers(model: pd.DataFrame, look: Look, passed: str | None) -> dict[str, object]:
    marks: dict[str, object] = {"size": 6, "symbol": look.symbol, "color": look.colour}
    if passed is None or passed not in model:
        return marks
    good = model[passed].fillna(False).to_numpy(dtype=bool)
    return marks | {
        "size": 7,
        "symbol": [look.symbol if ok else f"{look.symbol}-open" for ok in good],
        "color": [look.colour if ok else MUTED for ok in good],
        "line": {"width": 1.5, "color": [look.colour if ok else MUTED for ok in good]},
    }


def _hover(rows: pd.DataFrame, value: str, passed: str | None, p: str | None = None) -> list[list[str]]:
    """The interval, the family-adjusted p, and why a gate failed, a text a row."""
    texts = []
    for row in rows.to_dict("records"):
        low, high = row.get(f"{value}_low", np.nan), row.get(f"{value}_high", np.nan)
        text = f" [{low:.4g}, {high:.4g}]" if np.isfinite(low) and np.isfinite(high) else " (no interval)"
        if p is not None and np.isfinite(row[p]):
            text += f"<br>adjusted p {row[p]:.2g}"
        if passed is not None and not row.get(passed, True) and row.get("reason"):
            text += f"<br>flagged: {safe(row['reason'])}"
        texts.append([text])
    return texts
