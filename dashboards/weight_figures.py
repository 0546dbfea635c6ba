"""Figures of the section "weights": where the weights changed, along how few directions, how heavy the tails are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from .drawing import FOURTH, INK, MUTED, PAPER, POLICY, REFERENCE, REWARD, WRONG, canvas, null_line, safe, table_with
from .profiles import layer_axis
from .wording import number, stated

MAX_KINDS = 40  # rows of a heat map; a model with many experts has more
BLOCK_AXIS = "block"
_COLOURS = (POLICY, REFERENCE, REWARD, FOURTH, WRONG, INK, MUTED)
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")


def weight_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """The section's figures by name; one whose table or columns are missing is left out."""
    made = {
        "delta_share": _shares(tables, estimates),
        "delta_top": _directions(tables, estimates),
        "alpha": _exponents(tables, estimates),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _shares(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    rows = table_with(tables, "matrices", "block", "matrix", "delta_share")
    if rows is None:
        return None
    whole = estimates.get("delta_share")
    run = estimates.get("half_change_blocks")
    title = "How far each weight matrix moved"
    if whole is not None and whole.value is not None and run is not None and run.value is not None:
        title = (
            f"The matrices moved by {_percent(whole.value)} of their norm; half of the blocks' relative change is in "
            f"{run.label.rpartition(': ')[2]}"
        )
    return _heat(
        rows,
        value="delta_share",
        shown=_percent,
        title=title,
        how="A cell is one matrix of one block: the size of its change, |ΔW| over |W| of the reference (Frobenius). "
        "White did not move. How far weights moved is not how much behaviour changed.",
        name="change",
    )


def _directions(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    whole = tables.get("matrices")
    low_rank = (
        whole is not None
        and {"delta_top", "delta_top_times_rank"} <= set(whole.columns)
        and bool(whole[whole.delta_top.notna()].delta_top_times_rank.notna().all())
    )
    value = "delta_top_times_rank" if low_rank else "delta_top_ratio"
    rows = table_with(tables, "matrices", "block", "matrix", "kind", "delta_top", value)
    if rows is None:
        return None
    against = "an even spread over the adapter's rank" if low_rank else "Gaussian noise of its shape"
    top, ratio = stated(estimates.get("delta_top_median")), estimates.get("delta_top_ratio")
    noise = "" if ratio is None or ratio.value is None else f", {number(ratio.value)} times the share in Gaussian noise"
    figure = canvas(
        title=f"The first direction holds a share of {top} of the median matrix's change{noise}"
        if top
        else "How much of the change lies along one direction",
        how="The share of a matrix's change (squared Frobenius norm) along its first singular direction, divided by "
        f"that of {against} (dashed line, 1). "
        + (
            "The rank of the adapter is the most it can be: one direction alone. "
            if low_rank
            else "Large values mean that few directions carry the change. "
        )
        + "Few gradient steps give few directions by themselves, whatever they train for.",
        x=BLOCK_AXIS,
        y=f"first direction, times {'1 / rank' if low_rank else 'Gaussian noise'}",
        height=420,
    )
    null_line(figure, 1.0)
    for i, (kind, some) in enumerate(rows.groupby("kind", sort=False)):
        colour = _COLOURS[i % len(_COLOURS)]
        figure.add_scatter(
            x=some.block.to_numpy(),
            y=some[value].to_numpy(dtype=float),
            name=safe(kind),
            mode="markers" if some.block.duplicated().any() else "lines+markers",
            line={"color": colour, "dash": _DASHES[i % len(_DASHES)], "width": 1.6},
            marker={"color": colour, "symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 6},
            customdata=np.stack([some.matrix.map(safe), some.delta_top.map(lambda v: number(float(v), 3))], axis=1),
            hovertemplate="block %{x}, %{customdata[0]}<br>%{y:.4g} times, a share of %{customdata[1]}<extra></extra>",
        )
    figure.update_yaxes(**({"rangemode": "tozero"} if low_rank else {"type": "log"}))
    figure.update_layout(legend={"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top", "orientation": "v"})
    layer_axis(figure, rows.block)
    figure.update_xaxes(range=[rows.block.min() - 0.5, rows.block.max() + 0.5])
    return figure


def _exponents(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    rows = table_with(tables, "matrices", "block", "matrix", "alpha_lambda_pdf")
    if rows is None:
        return None
    median = stated(estimates.get("alpha_median"))
    return _heat(
        rows,
        value="alpha_lambda_pdf",
        shown=lambda v: number(v, 1),
        title=f"Tail exponent of the weights: {median} in the median matrix" if median else "Tail exponents of weights",
        how="A cell is the exponent of the tail of a matrix's squared singular values (Clauset's fit): smaller means a "
        "heavier tail. WeightWatcher's convention calls matrices under 2 over-trained and over 6 under-trained; that "
        "is a rule of thumb, not a test. White: fewer than 10 values to fit.",
        name="exponent",
    )


def _heat(rows: pd.DataFrame, *, value: str, shown: Any, title: str, how: str, name: str) -> go.Figure:
    """Blocks across, matrices down."""
    matrices = list(dict.fromkeys(rows.matrix))
    note = ""
    if len(matrices) > MAX_KINDS:
        largest = rows.groupby("matrix")[value].max().nlargest(MAX_KINDS).index
        note = f" Drawn: the {MAX_KINDS} of {len(matrices)} matrices with the largest values."
        matrices = [matrix for matrix in matrices if matrix in set(largest)]
    cells = rows[rows.matrix.isin(matrices)].pivot(index="matrix", columns="block", values=value).reindex(matrices)
    z = cells.to_numpy(dtype=float)
    figure = canvas(title=title, how=how + note, x=BLOCK_AXIS, y="", height=150 + max(26 * len(matrices), 110))
    figure.add_heatmap(
        z=z,
        x=cells.columns.to_numpy(),
        y=[safe(matrix) for matrix in matrices],
        zmin=0,
        zmax=max(float(np.nanmax(z)), 1e-12),
        colorscale=[[0, PAPER], [1, POLICY]],
        text=[["" if np.isnan(v) else shown(float(v)) for v in line] for line in z],
        xgap=1,
        ygap=1,
        hovertemplate=f"block %{{x}}, %{{y}}<br>{name} %{{text}}<extra></extra>",
        hoverongaps=False,
        colorbar={"thickness": 12, "tickformat": ".2%" if value == "delta_share" else "", "outlinewidth": 0},
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    layer_axis(figure, pd.Series(cells.columns))
    return figure


def _percent(share: float) -> str:
    return f"{number(float(f'{100 * share:.2g}'))} %"
