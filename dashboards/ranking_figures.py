"""Figures of the section "ranking": does the policy put the preferred completion first, could it, and at what price?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from .drawing import (
    GRID,
    INK,
    MUTED,
    PAPER,
    POLICY,
    POLICY_LOOK,
    REFERENCE_LOOK,
    REWARD_LOOK,
    WRONG,
    Look,
    canvas,
    drawn,
    error_bar,
    null_line,
    safe,
    table_with,
)
from .idealized_figure import idealized_curve
from .wording import VERDICTS, missing, moved, number, stated, value_text

_BASELINE = Look(MUTED, "dot", "line-ns-open")
_IDEAL = Look(INK, "solid", "star")

# estimate -> (row label, look), from the top of the figure down
ACCURACIES: dict[str, tuple[str, Look]] = {
    "accuracy": ("policy ranking R", POLICY_LOOK),
    "accuracy_normalised": ("policy ranking, per token", Look(POLICY, "solid", "circle-open")),
    "reference_accuracy": ("reference ranking", REFERENCE_LOOK),
    "reward_accuracy": ("implicit reward", Look(POLICY, "solid", "diamond")),
    "reward_accuracy_normalised": ("implicit reward, per token", Look(POLICY, "solid", "diamond-open")),
    "explicit_accuracy": ("reward model", REWARD_LOOK),
    "idealized_accuracy": ("best attainable R*", _IDEAL),
    "shorter_wins": ("always the shorter", _BASELINE),
    "longer_wins": ("always the longer", _BASELINE),
}


def ranking_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """The section's figures by name; one whose table or columns are missing is left out.

    tables: `pairs`, `idealized`, `flips` of the section "ranking". settings: `beta` marks the curve, where it is given.
    """
    made = {
        "accuracies": _accuracies(estimates),
        "idealized": idealized_curve(tables, estimates, settings or {}),
        "flips": _flips(tables, estimates),
        "difficulty": _difficulty(tables, estimates),
        "displacement": _displacement(tables, estimates),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _accuracies(estimates: Mapping[str, Estimate]) -> go.Figure | None:
    there = {name: e for name in ACCURACIES if (e := estimates.get(name)) is not None and e.value is not None}
    if not there:
        return None
    policy, reference = stated(there.get("accuracy")), stated(there.get("reference_accuracy"))
    title = "Share of pairs ranked right"
    if policy:
        title = f"The policy ranks {policy} of the pairs right" + (f", the reference {reference}" if reference else "")
    figure = canvas(
        title=title,
        how="Each mark is a share of pairs, the line through it its interval. An accuracy says something only where "
        "its interval lies above chance (dashed line, 0.5) and above both length rules at the bottom, which read no "
        "text at all. Ranking compares the log-probabilities of the two completions; the implicit reward compares how "
        "much training raised each, and can be high while the ranking is low. " + missing(estimates, list(ACCURACIES)),
        x="share of pairs ranked right",
        y="",
        height=130 + 30 * len(there),
    )
    null_line(figure, 0.5, horizontal=False)
    for name, e in there.items():
        label, look = ACCURACIES[name]
        down, up = error_bar(e)
        figure.add_scatter(
            x=[e.value],
            y=[label],
            mode="markers",
            name=label,
            showlegend=False,
            error_x={
                "type": "data", "array": [up], "arrayminus": [down], "color": look.colour, "thickness": 2.2, "width": 0,
            },
            marker={
                "color": look.colour, "symbol": look.symbol, "size": 11, "line": {"width": 2, "color": look.colour},
            },
            hovertemplate=f"{safe(e.label)}<br>{safe(stated(e))}<br>n = {e.n}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            x=1,
            xref="paper",
            xanchor="right",
            y=label,
            text=value_text(e),
            showarrow=False,
            font={"color": look.colour},
        )
    ends = [end for e in there.values() for end in (e.low, e.high, e.value) if end is not None]
    low, high = min(*ends, 0.5), max(*ends, 0.5)
    pad = 0.04 * (high - low) + 0.005
    figure.update_xaxes(range=[low - pad, high + pad + 0.13 * (high - low)])
    figure.update_yaxes(autorange="reversed", showline=False, ticks="", gridcolor=GRID)
    figure.update_layout(margin_t=figure.layout.margin.t - 22)
    return figure


def _flips(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    table = table_with(tables, "flips", "reference_right", "policy_right", "n")
    if table is None:
        return None
    learned, lost = stated(estimates.get("learned_of_wrong")), stated(estimates.get("lost_of_right"))
    title = "What training turned round"
    if learned and lost:
        title = f"Training mended {learned} of the pairs the reference ranks wrong and broke {lost} of the right ones"
    figure = canvas(
        title=title,
        how="Every pair stands in one cell: was it ranked right before training (rows), and after (columns)? Off the "
        "diagonal are the pairs that training turned round; where those two cells are nearly empty, training has moved "
        "probabilities without changing what is preferred.",
        x="policy (after)",
        y="reference (before)",
    )
    rows = table.assign(before=table.reference_right.map(_verdict), after=table.policy_right.map(_verdict))
    order = [v for v in VERDICTS.values() if v in {*rows.before, *rows.after}]
    counts = rows.pivot_table(index="before", columns="after", values="n", aggfunc="sum", fill_value=0)
    counts = counts.reindex(index=order, columns=order, fill_value=0)
    total = max(float(table.n.sum()), 1.0)
    share = counts.to_numpy(dtype=float) / total
    figure.add_heatmap(
        z=share,
        x=order,
        y=order,
        zmin=0,
        zmax=max(float(share.max()), 0.01),
        colorscale=[[0, PAPER], [1, POLICY]],
        text=[
            [f"<b>{n:,.0f}</b><br>{number(part, 3)}" for n, part in zip(line, parts, strict=True)]
            for line, parts in zip(counts.to_numpy(), share, strict=True)
        ],
        texttemplate="%{text}",
        textfont={"size": 15},
        xgap=3,
        ygap=3,
        hovertemplate="before: %{y}, after: %{x}<br>%{text}<extra></extra>",
        colorbar={"title": {"text": "share of pairs"}, "thickness": 10, "outlinewidth": 0, "len": 0.9},
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(margin_t=figure.layout.margin.t - 18)
    return figure


def _verdict(value: object) -> str:
    return VERDICTS.get(float(value), str(value)) if isinstance(value, int | float | np.number) else str(value)


def _difficulty(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    table = table_with(tables, "pairs", "difficulty", "loss", "ranked_right")
    if table is None or not (table.loss > 0).any():
        return None
    flippable, hard = stated(estimates.get("share_flippable")), stated(estimates.get("share_hard"))
    title = "DPO loss against how strongly the reference prefers the wrong completion"
    if flippable and hard:
        title = (
            f"The reference is wrong but could be turned at this β on {flippable} of the pairs; {hard} are out of reach"
        )
    rows, note = drawn(table[table.loss > 0])
    figure = canvas(
        title=title,
        how="A point is a pair. To the right the reference prefers the rejected completion ever more strongly. The "
        "curve is the largest loss at which a pair is still ranked right: points under it are, points over it are not, "
        "however low their loss. Many crosses at a low loss mean that the loss fell without the ranking following. "
        "Axis of losses: "
        "logarithmic." + note,
        x="difficulty c = log-odds of the reference against the chosen one [nats]",
        y="DPO loss [nats]",
        height=420,
    )
    marks = {
        "right": ("ranked right", POLICY, "circle-open"),
        "tie": ("tie", INK, "diamond"),
        "wrong": ("ranked wrong", WRONG, "x-thin-open"),
    }
    for key, (label, colour, symbol) in marks.items():
        some = rows[rows.ranked_right.map(_verdict) == key]
        if len(some):
            figure.add_scatter(
                x=some.difficulty.to_numpy(), y=some.loss.to_numpy(), mode="markers", name=label,
                marker={"color": colour, "symbol": symbol, "size": 6, "opacity": 0.75, "line": {"width": 1.3}},
                customdata=_about(some), hovertemplate="%{customdata}<br>c %{x:.3g}, loss %{y:.3g}<extra></extra>",
            )  # fmt: skip
    low, high = float(rows.loss.min()), float(rows.loss.max())
    if "threshold" in table:
        curve = table.dropna(subset=["threshold"]).sort_values("difficulty")
        curve = curve[curve.threshold > low / 4]
        figure.add_scatter(
            x=curve.difficulty.to_numpy(), y=curve.threshold.to_numpy(), mode="lines",
            name="largest loss that ranks right",
            line={"color": INK, "width": 2}, hovertemplate="c %{x:.3g}<br>threshold %{y:.3g}<extra></extra>",
        )  # fmt: skip
    null_line(figure, 0.0, horizontal=False)
    figure.update_yaxes(type="log", range=[np.log10(low) - 0.15, np.log10(high) + 0.15], tickformat="~g")
    return figure


def _displacement(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    columns = ("policy_chosen", "reference_chosen", "policy_rejected", "reference_rejected")
    table = table_with(tables, "pairs", *columns)
    if table is None:
        return None
    chosen = moved(estimates.get("displacement_chosen"), "rose", "fell")
    rejected = moved(estimates.get("displacement_rejected"), "rose", "fell")
    title = "How training moved the log-probabilities of both completions"
    if chosen and rejected:
        title = f"Log-probability of chosen completions: {chosen}; of rejected ones: {rejected}"
    rows, note = drawn(table)
    figure = canvas(
        title=title,
        how="A point is a pair: how far training moved the chosen completion (across) and the rejected one (up), as "
        "summed log-probabilities. Below the diagonal the chosen one gained on the other. Left of the upright line the "
        "chosen completion itself became less likely: the gap then widens only because the rejected one fell further. "
        "The cross is the mean with its interval." + note,
        x="chosen: policy − reference [nats a completion]",
        y="rejected: policy − reference [nats a completion]",
        height=420,
    )
    x = (rows.policy_chosen - rows.reference_chosen).to_numpy(dtype=float)
    y = (rows.policy_rejected - rows.reference_rejected).to_numpy(dtype=float)
    null_line(figure, 0.0)
    null_line(figure, 0.0, horizontal=False)
    low, high = float(min(x.min(), y.min(), 0)), float(max(x.max(), y.max(), 0))
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", name="moved alike",
        line={"color": MUTED, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=y, mode="markers", name="pairs", customdata=_about(rows),
        marker={"color": POLICY, "size": 5, "opacity": 0.5, "symbol": "circle"},
        hovertemplate="%{customdata}<br>chosen %{x:.3g}, rejected %{y:.3g} nats<extra></extra>",
    )  # fmt: skip
    _mean_cross(figure, estimates.get("displacement_chosen"), estimates.get("displacement_rejected"))
    for text, at in (
        ("both rose", {"x": 1, "y": 1}),
        ("chosen fell, rejected rose", {"x": 0, "y": 1}),
        ("both fell", {"x": 0, "y": 0}),
        ("chosen rose, rejected fell", {"x": 1, "y": 0}),
    ):
        figure.add_annotation(
            **at, xref="paper", yref="paper", text=text, showarrow=False, font={"color": MUTED, "size": 11.5},
            xanchor="right" if at["x"] else "left", yanchor="top" if at["y"] else "bottom",
        )  # fmt: skip
    return figure


def _mean_cross(figure: go.Figure, across: Estimate | None, upward: Estimate | None) -> None:
    if across is None or upward is None or across.value is None or upward.value is None:
        return
    (left, right), (down, up) = error_bar(across), error_bar(upward)
    bar = {"type": "data", "color": INK, "thickness": 2.4, "width": 5}
    figure.add_scatter(
        x=[across.value], y=[upward.value], mode="markers", name="mean with interval",
        error_x={**bar, "array": [right], "arrayminus": [left]}, error_y={**bar, "array": [up], "arrayminus": [down]},
        marker={"color": INK, "size": 8, "symbol": "diamond"},
        hovertemplate=f"mean: chosen {safe(stated(across))}<br>rejected {safe(stated(upward))}<extra></extra>",
    )  # fmt: skip


def _about(rows: pd.DataFrame) -> list[str]:
    """The pair's id, for hovering."""
    return [safe(f"pair {name}") for name in (rows.pair_id if "pair_id" in rows else rows.index)]
