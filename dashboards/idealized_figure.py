"""The figure of R*(beta): how far could training have got, at every strength of the penalty?"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from .drawing import INK, MUTED, POLICY_LOOK, REFERENCE_LOOK, Look, canvas, null_line, safe, table_with
from .wording import missing, number, stated

_ENDS = ("low", "high")
_HATCHED = {"shape": "/", "fgcolor": INK, "size": 7, "solidity": 0.25}
_EXACT = "Wilson's interval"  # in the legend


def idealized_curve(
    tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate], settings: Mapping[str, Any]
) -> go.Figure | None:
    """R* against beta with its bands, beside the accuracies of policy and reference; None without the table."""
    table = table_with(tables, "idealized", "beta", "value")
    if table is None:
        return None
    best, policy = stated(estimates.get("idealized_accuracy")), stated(estimates.get("accuracy"))
    title = "Best attainable ranking accuracy R* against the strength β"
    if best and policy:
        title = f"At this β the optimum ranks {best} right; the policy {policy}"
    exact = ""
    if "low" in table and _is_exact(table[table.low.notna()]["value"]).any():
        exact = (
            "Where R* is exactly 1 (or 0) every resample of the prompts gives that same number, so the hatched band "
            "there is Wilson's interval instead: its edge is where the method changes, not the data. "
        )
    figure = canvas(
        title=title,
        how="The curve is the ranking accuracy of the policy that preference training would reach at its optimum, "
        "given this reference and these preferences, for every strength β of the penalty on leaving the reference. To "
        "the right the penalty wins and the curve falls to the reference's own accuracy. A policy below the curve at "
        "its β has not reached what the objective allows. Several curves: ways to smooth the votes into a preference; "
        "where they "
        "disagree, the answer rests on that choice. " + exact + missing(estimates, ["idealized_accuracy"]),
        x="β (strength of the penalty, logarithmic)",
        y="ranking accuracy [share]",
    )
    smoothings = table.smoothing.unique() if "smoothing" in table else [None]
    chosen = settings.get("smoothing")
    span = [float(table.beta.min()), float(table.beta.max())]
    for i, smoothing in enumerate(sorted(smoothings, key=lambda s: s != chosen)):
        rows = (table if smoothing is None else table[table.smoothing == smoothing]).sort_values("beta")
        name = "optimum R*" if smoothing is None else f"optimum R*, {smoothing}"
        _step_curve(figure, _over(rows, span), name, main=i == 0, which=i)
    for name, label, look in (
        ("accuracy", "policy R", POLICY_LOOK),
        ("reference_accuracy", "reference R", REFERENCE_LOOK),
    ):
        _level(figure, estimates.get(name), label, look, span)
    beta = settings.get("beta")
    if isinstance(beta, int | float) and span[0] <= beta <= span[1]:
        null_line(figure, float(beta), horizontal=False)
        figure.add_annotation(
            x=np.log10(beta), y=1, yref="paper", yanchor="top", xanchor="left", showarrow=False, font={"color": MUTED},
            text=f" β = {number(float(beta))} ({'as given' if settings.get('beta_given', True) else 'assumed'})",
        )  # fmt: skip
    figure.update_xaxes(type="log")
    return figure


def _step_curve(figure: go.Figure, rows: pd.DataFrame, name: str, *, main: bool, which: int) -> None:
    """R*(beta) is a right-continuous step function: horizontal, then down."""
    dash = ["solid", "dash", "dot", "dashdot"][which % 4]
    group, colour = f"optimum{which}", INK if main else MUTED
    if {"low", "high"} <= set(rows.columns):
        for exact, x, band in _stairs_bands(rows.dropna(subset=["low", "high"])):
            filled = {"fillpattern": _HATCHED} if exact else {"fillcolor": colour}
            opacity = (0.16 if main else 0.08) * (3 if exact else 1)
            figure.add_scatter(
                x=x, y=band, mode="lines", fill="toself", line={"color": colour, "width": 0}, opacity=opacity,
                hoverinfo="skip", name=_EXACT, showlegend=main and exact, legendrank=1001,
                legendgroup=_EXACT if exact else group, **filled,
            )  # fmt: skip
    figure.add_scatter(
        x=rows.beta.to_numpy(),
        y=rows["value"].to_numpy(dtype=float),
        mode="lines",
        name=safe(name),
        legendgroup=group,
        line={"color": colour, "width": 2.2 if main else 1.6, "shape": "hv", "dash": dash},
        hovertemplate="β %{x:.3g}<br>R* %{y:.3f}<extra></extra>",
    )


def _over(rows: pd.DataFrame, span: list[float]) -> pd.DataFrame:
    """The steps of one curve over all betas that are drawn: before its first and after its last step it is level."""
    before, after = (rows.iloc[[at]].assign(beta=beta) for at, beta in zip((0, -1), span, strict=True))
    return pd.concat([before, rows, after]).drop_duplicates("beta")


def _stairs_bands(rows: pd.DataFrame) -> Iterator[tuple[bool, list[float], list[float]]]:
    """Outlines of the band of a step function, whose value holds from its beta to the next.

    One outline for each stretch of betas whose intervals are of one kind: R* exactly 0 or 1 (Wilson's), or between.
    """
    exact = _is_exact(rows["value"])
    ends = [*(np.flatnonzero(np.diff(exact)) + 1), len(exact)]
    for first, end in zip([0, *ends], ends, strict=False):
        edges = rows.beta.to_numpy(dtype=float)[first : end + 1]  # the last beta of all closes the outline before it
        low, high = (np.repeat(rows[side].to_numpy(dtype=float)[first:end][: len(edges) - 1], 2) for side in _ENDS)
        x = np.repeat(edges, 2)[1:-1]
        if len(x):
            yield bool(exact[first]), [*x, *x[::-1]], [*high, *low[::-1]]


def _is_exact(share: pd.Series) -> np.ndarray:
    """Where resampling shows no spread, so that the interval is Wilson's (`statistics.estimate_from`)."""
    return share.isin([0.0, 1.0]).to_numpy()


def _level(figure: go.Figure, e: Estimate | None, label: str, look: Look, span: list[float]) -> None:
    if e is None or e.value is None:
        return
    if e.low is not None and e.high is not None:
        figure.add_scatter(
            x=[*span, *span[::-1]], y=[e.high, e.high, e.low, e.low], mode="lines", fill="toself",
            fillcolor=look.colour, line_width=0, opacity=0.16, hoverinfo="skip", showlegend=False, legendgroup=label,
        )  # fmt: skip
    figure.add_scatter(
        x=span, y=[e.value, e.value], mode="lines", name=label, legendgroup=label,
        line={"color": look.colour, "dash": look.dash, "width": 2},
        hovertemplate=f"{label} {safe(stated(e))}<extra></extra>",
    )  # fmt: skip
