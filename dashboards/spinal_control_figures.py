"""Figures of SPINAL's controls: what training did over the last blocks, and what the controls show too."""

import math
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from .drawing import INK, MUTED, POLICY, Look, canvas, null_line, safe, table_with
from .intervals import interval_marks, room_for_values, row_axis
from .wording import p_text

_QUANTITIES = {
    "d_alpha_terminal": ("exponent of the spectrum", "Δα over the last blocks"),
    "d_transport_terminal": ("step of the read-out", "Δ angle a step over the last blocks"),
    "d_entropy_terminal": ("entropy of the read-out", "Δ entropy over the last blocks"),
    "d_efficiency_terminal": ("straightness of the way", "Δ geodesic efficiency over the last blocks"),
}
_EFFECT, _CONTROL, _NET = Look(POLICY, "solid", "circle"), Look(MUTED, "solid", "diamond"), Look(INK, "solid", "square")


def control_figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """A figure a quantity from the table `controls`; one without numbers is left out."""
    table = table_with(tables, "controls", "control", "quantity", "effect", "control_effect")
    if table is None:
        return {}
    made = {
        f"controls_{name.split('_')[1]}": _figure(tables["controls"][tables["controls"].quantity == name], name)
        for name in _QUANTITIES
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _figure(rows: pd.DataFrame, quantity: str) -> go.Figure | None:
    rows = rows[rows.control_effect.notna() & rows.effect.notna()]
    if not len(rows):
        return None
    what, axis = _QUANTITIES[quantity]
    unit = rows.unit.iloc[0]
    trained = rows[rows.kind == "trained"]
    title = _title(what, trained)
    figure = canvas(
        title=title,
        how="The top row is what training did: aligned minus base. Below, for every control, what it shows against "
        "the same base (diamond), and what is left when it is taken away (square: aligned minus control). A square "
        "whose interval holds 0 means that the effect cannot be told from the control. Of noise the seed with the "
        "largest effect is shown; nothing is taken away from it.",
        x=f"{axis} [{unit}]" if unit else axis,
        y="",
        height=170 + 62 * (1 + len(rows)),
    )
    null_line(figure, 0.0, horizontal=False)
    effect = {0: _estimate(rows.iloc[0], "effect", "aligned minus base")}
    shown = {i: _estimate(row, "control_effect", f"{row.control} minus base") for i, row in _numbered(rows)}
    net = {i: _estimate(row, "net", f"aligned minus {row.control}") for i, row in _numbered(rows) if not _nan(row.net)}
    notes = {i: f", {p_text(row.p)}" for i, row in _numbered(rows) if not _nan(row.p)}
    interval_marks(figure, "effect of training", _EFFECT, effect, 0.0)
    interval_marks(figure, "control", _CONTROL, shown, -0.18, notes=notes)
    interval_marks(figure, "effect minus control", _NET, net, 0.18)
    room_for_values(figure, [*effect.values(), *shown.values(), *net.values()], 0.0, room=0.24)
    row_axis(figure, ["aligned − base", *(safe(row.control) for _, row in _numbered(rows))])
    return figure


def _title(what: str, trained: pd.DataFrame) -> str:
    """Which trained controls the change exceeds, and which not."""
    if not len(trained):
        return f"Controls beside the change of the {what}"
    if trained.verdict.isin(["no clear effect", "no interval"]).all():
        return f"No clear change of the {what} to hold against its controls"
    exceeded = trained.verdict.astype(str).str.startswith("more than")
    more, others = (" and ".join(trained.control[mask]) for mask in (exceeded, ~exceeded))
    parts = [f"more than {more} shows" if more else "", f"not more than {others} shows" if others else ""]
    return f"The change of the {what} is {', but '.join(part for part in parts if part)}"


def _numbered(rows: pd.DataFrame) -> list[tuple[int, pd.Series]]:
    return [(i, row) for i, (_, row) in enumerate(rows.iterrows(), start=1)]


def _estimate(row: pd.Series, name: str, label: str) -> Estimate:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    bounded = math.isfinite(low) and math.isfinite(high)
    return Estimate(
        label=label,
        value=value,
        low=low if bounded else None,
        high=high if bounded else None,
        n=int(row.n),
        unit=str(row.unit),
        method="see the table controls",
        reason=None if bounded else "no interval",
        null_value=0.0,
    )


def _nan(value: object) -> bool:
    return not math.isfinite(float(value))  # type: ignore[arg-type]
