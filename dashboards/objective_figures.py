"""Figures of what stands beside the accuracies: other objectives, length, and where the probability went.

Sections "objectives", "length" and "displacement".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from .drawing import INK, MUTED, PAPER, POLICY, POLICY_LOOK, Look, canvas, null_line, safe, table_with
from .intervals import arms, span, title_from_the_left
from .wording import interval_text, missing, number, stated

# column of the table "strata" -> (name, look, place within its quarter)
_STRATA = {
    "accuracy": ("policy ranking R", POLICY_LOOK, -0.14),
    "reward_accuracy": ("implicit reward", Look(POLICY, "dash", "diamond-open"), 0.0),
    "shorter_wins": ("always the shorter", Look(MUTED, "dot", "square-open"), 0.14),
}


def objective_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """`agreement` from the table of that name of the section "objectives"; empty without two objectives."""
    figure = _agreement(tables)
    return {} if figure is None else {"agreement": figure}


def companion_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """`strata` of the section "length", `quadrants` of "displacement"; one whose table is missing is left out."""
    made = {"strata": _strata(tables, estimates), "quadrants": _quadrants(tables, estimates)}
    return {name: figure for name, figure in made.items() if figure is not None}


def _agreement(tables: Mapping[str, pd.DataFrame]) -> go.Figure | None:
    table = table_with(tables, "agreement", "first", "second", "same_sign")
    if table is None:
        return None
    names = list(dict.fromkeys([*table["first"], *table["second"]]))
    least = table.iloc[int(table.same_sign.to_numpy(dtype=float).argmin())]
    figure = canvas(
        title=f"{least['first']} and {least['second']} agree least: the same view of "
        f"{_with_ends(least, 'same_sign', 2)} of the pairs",
        how="A cell is the share of pairs on which two objectives have the same view, that is whether chosen is "
        "already better enough. Near 1 it hardly matters which of the two trains on these pairs; where it is low, one "
        "of them still pulls at pairs that the other holds for settled. Objectives with a view in common (kto, bco, "
        "apo_zero, nca and sppo_hard take that of dpo) agree fully and differ only in how hard they pull. Hover for "
        "the intervals and the rank correlation of their losses. No interval allows for the choice of the pair of "
        "objectives that agrees least.",
        x="objective",
        y="objective",
        height=170 + max(30 * (len(names) - 1), 120),
    )
    rows, columns = names[1:], names[:-1]
    share = np.full((len(rows), len(columns)), np.nan)
    hover = np.full(share.shape, "", dtype=object)
    for cell in table.itertuples():
        below, left = sorted((names.index(cell.first), names.index(cell.second)), reverse=True)
        share[below - 1, left] = cell.same_sign
        hover[below - 1, left] = _pair_text(cell)
    figure.add_heatmap(
        z=share,
        x=[safe(name) for name in columns],
        y=[safe(name) for name in rows],
        zmin=min(0.5, float(np.nanmin(share))),
        zmax=1.0,
        colorscale=[[0, PAPER], [1, POLICY]],
        text=[["" if np.isnan(v) else number(v, 2) for v in line] for line in share],
        texttemplate="%{text}",
        textfont={"size": 11 if len(names) > 12 else 13, "color": INK},
        opacity=0.6,  # so that ink can be read on the darkest cell
        xgap=2,
        ygap=2,
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        showscale=False,
    )
    figure.update_xaxes(showgrid=False, tickangle=-45 if len(names) > 6 else 0)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(margin_t=figure.layout.margin.t - 18)
    title_from_the_left(figure)
    return figure


def _pair_text(cell: Any) -> str:
    text = f"{safe(cell.first)} and {safe(cell.second)}<br>same view on {_with_ends(cell, 'same_sign', 3)}"
    text += f" of {cell.n:,} pairs" if hasattr(cell, "n") else ""
    rank = getattr(cell, "spearman", float("nan"))
    return text + ("" if np.isnan(rank) else f"<br>Spearman of the losses {_with_ends(cell, 'spearman', 2)}")


def _with_ends(row: Any, name: str, places: int) -> str:
    """'0.25 [0.18, 0.33]', the number alone where the table has no interval."""
    value, low, high = (float(getattr(row, f"{name}{end}", np.nan)) for end in ("", "_low", "_high"))
    shown = number(value, places)
    return shown if np.isnan(low) or np.isnan(high) else f"{shown} [{number(low, places)}, {number(high, places)}]"


def _strata(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    table = table_with(tables, "strata", "quarter", "shortest", "longest", "accuracy", "shorter_wins")
    if table is None:
        return None
    table = table.sort_values("quarter")
    rest, shorter = stated(estimates.get("residualised_accuracy")), stated(estimates.get("shorter_wins"))
    title = "Accuracy by difference of length"
    if rest and shorter:
        title = (
            f"Without what length predicts the policy ranks {rest} of the pairs right; always taking the shorter "
            f"answer is right on {shorter}"
        )
    figure = canvas(
        title=title,
        how="The pairs in quarters by how much their two answers differ in length, from the most alike on the left. In "
        "each: how often the policy and its implicit reward prefer the chosen answer, and how often the shorter one "
        "was chosen, all with intervals. Accuracy that is high only where lengths differ much, and follows the grey "
        "squares there (or mirrors them at 0.5), is a preference for length. Quarters may be uneven: pairs with the "
        "same difference stay together. " + missing(estimates, ["residualised_accuracy", "shorter_wins"]),
        x="difference of length of the two answers [tokens]",
        y="pairs ranked right [share]",
    )
    null_line(figure, 0.5)
    place = np.arange(len(table), dtype=float)
    for column, (name, look, offset) in _STRATA.items():
        if column not in table or table[column].isna().all():
            continue
        figure.add_scatter(
            x=place + offset, y=table[column].to_numpy(dtype=float), mode="lines+markers", name=name,
            line={"color": look.colour, "width": 1.2, "dash": look.dash},
            marker={"color": look.colour, "symbol": look.symbol, "size": 9,
                    "line": {"width": 1.6, "color": look.colour}},
            error_y=arms(table, column, look.colour),
            customdata=table.n.to_numpy() if "n" in table else None,
            hovertemplate=f"{name} %{{y:.3f}}<br>n = %{{customdata}}<extra></extra>",
        )  # fmt: skip
    ticks = [span(*ends).replace("<br>", " ") for ends in zip(table.shortest, table.longest, strict=True)]
    if "n" in table:
        ticks = [f"{tick}<br>n = {n:,}" for tick, n in zip(ticks, table.n, strict=True)]
    figure.update_xaxes(tickvals=place, ticktext=ticks, range=[-0.5, len(table) - 0.5], showgrid=False)
    return figure


def _quadrants(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    table = table_with(tables, "quadrants", "chosen_fell", "rejected_fell", "share", "n")
    if table is None:
        return None
    fell, both = stated(estimates.get("share_chosen_fell")), stated(estimates.get("both_fell"))
    title = "Which log-probabilities training raised and which it lowered"
    if fell and both:
        title = f"Training lowered the chosen answer in {fell} of the pairs; in {both} it lowered both answers"
    figure = canvas(
        title=title,
        how="Every pair stands in one cell: did training raise or lower the log-probability of the chosen answer "
        "(rows) and of the rejected one (columns)? Upper right is what preference training is meant to do. In the "
        "lower right both lost probability, which then went to answers that are in neither column of the data: the "
        "accuracy can be high all the same. An answer that did not move counts as raised.",
        x="rejected answer",
        y="chosen answer",
        height=330,
    )
    share, text = np.full((2, 2), np.nan), np.full((2, 2), "", dtype=object)
    columns = (table[name].to_numpy() for name in ("chosen_fell", "rejected_fell", "share", "n"))
    for chosen, rejected, part, n in zip(*columns, strict=True):
        at = int(chosen), int(rejected)
        share[at] = part
        name = {(0, 0): "both_rose", (0, 1): "chosen_rose_rejected_fell", (1, 0): "chosen_fell_rejected_rose"}
        interval = estimates.get(name.get(at, "both_fell"))
        inside = "" if interval is None else interval_text(interval)
        text[at] = f"<b>{number(float(part), 3)}</b><br>" + (f"({inside})<br>" if inside else "") + f"n = {n:,}"
    figure.add_heatmap(
        z=share,
        x=["rose", "fell"],
        y=["rose", "fell"],
        zmin=0,
        zmax=max(float(np.nanmax(share)), 0.01),
        colorscale=[[0, PAPER], [1, POLICY]],
        text=text,
        texttemplate="%{text}",
        textfont={"size": 14, "color": INK},
        opacity=0.6,
        xgap=3,
        ygap=3,
        hovertemplate="chosen %{y}, rejected %{x}<br>%{text}<extra></extra>",
        showscale=False,
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(margin_t=figure.layout.margin.t - 18)
    return figure
