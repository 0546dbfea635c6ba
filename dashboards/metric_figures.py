"""Figures of the section "metrics": the headline numbers of every diagnostic against the training step."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from ..diagnose.series_metrics import HEADLINES
from .drawing import MUTED, POLICY, safe, table_with
from .series_figures import COLUMNS, panels

_NAMES = {
    "ranking.accuracy": "ranking accuracy",
    "ranking.reward_accuracy": "reward accuracy",
    "ranking.mean_margin": "reward margin",
    "ranking.dpo_loss": "DPO loss",
    "displacement.chosen": "chosen log-ratio",
    "displacement.rejected": "rejected log-ratio",
    "spinal.d_alpha_terminal": "Δ exponent, last blocks",
    "spinal.d_transport_terminal": "Δ transport, last blocks",
    "spinal.d_entropy_terminal": "Δ entropy, last blocks",
    "spinal.base_distance_terminal": "distance to the start, last blocks",
    "information.chosen_plausible_information": "information D^S, chosen",
    "information.chosen_kl": "KL a token, chosen",
    "information.rejected_plausible_information": "information D^S, rejected",
    "information.rejected_kl": "KL a token, rejected",
    "information.chosen_tilt": "tilt: sharpened above 0",
    "information.label_beta": "beta of the labels",
    "weights.delta_share": "weights: size of the change",
    "weights.delta_share_largest": "weights: change of the block that changed most",
    "weights.half_change_blocks": "weights: blocks with half of the change",
    "weights.delta_top_ratio": "weights: first direction, over noise",
    "weights.alpha_median": "weights: tail exponent",
}
WEIGHTS = " Numbers of the weights are exact and have no interval; a line at 1 is Gaussian noise."
_NULLS: dict[str, float | None] = {
    "information.label_beta": None,
    "ranking.accuracy": 0.5, "ranking.reward_accuracy": 0.5, "ranking.dpo_loss": math.log(2),
    "weights.half_change_blocks": None, "weights.delta_top_ratio": 1.0, "weights.alpha_median": None,
}  # fmt: skip


def metric_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """The figure `metrics`: a panel a headline; left out where the table has none of them."""
    table = table_with(tables, "metrics", "step", "section", "name", "value")
    if table is None:
        return {}
    named = table.assign(key=table.section + "." + table.name)
    shown = [name for name in HEADLINES if (named.key == name).any()]
    return {"metrics": _panels(named, shown)} if shown else {}


def _panels(table: pd.DataFrame, shown: list[str]) -> go.Figure:
    figure = panels(
        title="What each save does, by training step",
        how="A point is a save, with its 95 % interval. The dashed line is a model that training did not touch: one "
        "half for accuracies, log 2 for the loss, 0 for differences. Neighbouring saves whose intervals overlap are "
        "not told apart by these pairs." + (WEIGHTS if any(name.startswith("weights.") for name in shown) else ""),
        headings=[_NAMES[name] for name in shown],
        n_rows=-(-len(shown) // COLUMNS),
    )
    for i, name in enumerate(shown):
        at = {"row": 1 + i // COLUMNS, "col": 1 + i % COLUMNS}
        some = table[table.key == name].sort_values("step")
        unit = str(some.unit.iloc[0] or "")
        figure.add_scatter(
            x=some.step.tolist(), y=some.value.tolist(), mode="lines+markers", **at,
            line={"color": POLICY, "width": 1.5}, marker={"color": POLICY, "size": 8},
            error_y={
                "type": "data", "array": (some.high - some.value).fillna(0.0).tolist(),
                "arrayminus": (some.value - some.low).fillna(0.0).tolist(), "color": POLICY, "width": 3,
            },
            customdata=[_hover(one) for one in some.itertuples()],
            hovertemplate="step %{x}<br>%{customdata}<extra></extra>",
        )  # fmt: skip
        if (null := _NULLS.get(name, 0.0)) is not None:
            figure.add_hline(y=null, line={"color": MUTED, "dash": "dash", "width": 1}, **at)
        figure.update_yaxes(title_text=safe(unit), **at)
    return figure


def _hover(row: Any) -> str:
    interval = "" if pd.isna(row.low) or pd.isna(row.high) else f" [{row.low:.4g}, {row.high:.4g}]"
    return f"{safe(row.label)}<br>{row.value:.4g}{interval}<br>n = {row.n:,}"
