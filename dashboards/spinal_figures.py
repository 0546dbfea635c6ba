"""Figures of the sections "spinal" and "spinal_trace": contraction, transport, entropy and distance over layers."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..diagnose.report import Estimate
from ..diagnose.spinal_settings import RESOLUTION
from .drawing import POLICY_LOOK, table_with
from .profiles import STEP_AXIS, contrast_profile, layer_profile
from .spinal_control_figures import control_figures
from .wording import missing, moved, stated

DEPTH_AXIS = "relative depth of the block that the step leaves (1 = last block)"
CONTROL = "control: the base on other prompts"
_CONTROL_HOW = (
    " The grey band is the control, the same base model on one half of the prompts against the other half: unpaired "
    "and on half the prompts. It should contain 0; its width is not to be compared with the points."
)


def spinal_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """The section's figures by name; one whose table or columns are missing is left out.

    tables: `layers`, `steps` of one model or of two, and of a comparison `contrast`, `transport`, `halves`.
    settings: `alarm_p`, the p under which a point is filled (default .025).
    """
    level = float((settings or {}).get("alarm_p") or 0.025)
    made: dict[str, go.Figure | None] = {
        "alpha": _alpha(tables, estimates),
        "d_alpha": _alpha_contrast(tables, estimates, level),
        "angle": _angle(tables, estimates),
        "d_angle": _angle_contrast(tables, estimates, level),
        "entropy": _entropy(tables, estimates),
        "d_entropy": _entropy_contrast(tables, estimates),
        "base_distance": _base_distance(tables, estimates),
        **control_figures(tables),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _alpha(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    rows = _rows(tables, "layers", "alpha")
    if rows is None:
        return None
    title = "How steeply the spectrum of the residual stream falls, by layer"
    passed, share = "gates_passed" if "gates_passed" in rows else None, estimates.get("alpha_terminal")
    if stated(share):
        title = f"Contraction: the exponent is {stated(share)} over the last blocks"
    elif passed:
        fitted = rows[rows.alpha.notna()]
        good = int(fitted[passed].fillna(False).astype(bool).sum())
        title = f"Contraction by layer; {good} of {len(fitted)} exponents pass every gate"
    return layer_profile(
        rows,
        value="alpha",
        unit="",
        title=title,
        y_title="exponent α of singular values",
        how="A larger exponent means that few directions carry the residual stream: it is more contracted. A hollow "
        "grey point failed a gate (hover for which): the spectrum is not one power law there, or too few prompts pin "
        "it down; take it as a rough description. The band is the interval from leaving out groups of prompts; it "
        "covers the choice of prompts, not the bias of a small number of them. Compare models, not absolute values.",
        passed=passed,
    )


def _angle(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    rows = _rows(tables, "steps", "angle")
    if rows is None:
        return None
    if (rows.layer > 0).any():
        rows = rows[rows.layer > 0]
    path, last = stated(estimates.get("path_length")), stated(estimates.get("angle_terminal"))
    title = "Transport: how far each block moves the read-out"
    if path:
        title = f"The read-out travels {path} in all" + (f", {last} a step over the last blocks" if last else "")
    return layer_profile(
        rows,
        value="angle",
        unit="rad",
        title=title,
        y_title="angle a step",
        x_title=STEP_AXIS,
        how="Read the residual stream after every block as if it were the last one, as a distribution over the next "
        "token. The angle says how far one block moves that distribution: 0 not at all, π (3.14 rad) to entirely other "
        "tokens. The step from the embeddings to block 1 is usually large and left out.",
    )


def _entropy(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    rows = _rows(tables, "layers", "entropy")
    if rows is None:
        return None
    final = stated(estimates.get("entropy_final"))
    title = "Entropy of the read-out by layer"
    if final:
        title = f"The model's own next-token distribution has an entropy of {final}"
    return layer_profile(
        rows,
        value="entropy",
        unit="nats",
        title=title,
        y_title="entropy of the read-out",
        how="How undecided the read-out after each block is about the next token: 0 is certain, the logarithm of the "
        "vocabulary size is no idea. The last point is the model's own output.",
    )


def _alpha_contrast(
    tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate], level: float
) -> go.Figure | None:
    rows = _rows(tables, "contrast", "d_alpha")
    if rows is None:
        return None
    found = _moved(estimates.get("d_alpha_terminal"), "larger", "smaller")
    halves = table_with(tables, "halves", "layer", "d_alpha")
    return contrast_profile(
        rows,
        value="d_alpha",
        unit="",
        title=f"Exponent over the last blocks, aligned against base: {found}" if found else "Difference of exponents",
        y_title="Δα, aligned − base",
        how="Above 0 the aligned model is more contracted at that layer, below it less. A filled point is clear of 0 "
        "even after all layers were tested together; one hollow point off the line means nothing."
        + (_CONTROL_HOW if halves is not None else "")
        + " "
        + missing(estimates, ["d_alpha_terminal"]),
        p="d_alpha_p" if "d_alpha_p" in rows else None,
        level=level,
        control=halves,
        control_name=CONTROL,
    )


def _angle_contrast(
    tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate], level: float
) -> go.Figure | None:
    rows = _rows(tables, "transport", "d_angle")
    if rows is None:
        return None
    found = _moved(estimates.get("d_transport_terminal"), "longer", "shorter")
    halves = table_with(tables, "halves", "layer", "d_angle")
    return contrast_profile(
        rows,
        value="d_angle",
        unit="rad",
        title=f"Step of the read-out over the last blocks, aligned against base: {found}"
        if found
        else "Difference of transport",
        y_title="Δ angle, aligned − base",
        x_title=STEP_AXIS,
        how="Above 0 the aligned model moves its read-out further in that step. A filled point is clear of 0 even "
        "after all steps were tested together. The prompts are the same in both models, so even tiny differences can "
        "be clear; "
        "clear does not mean large, nor that the preferences caused it." + (_CONTROL_HOW if halves is not None else ""),
        p="p" if "p" in rows else None,
        level=level,
        control=halves,
        control_name=CONTROL,
    )


def _entropy_contrast(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    rows = _rows(tables, "contrast", "d_entropy")
    if rows is None:
        return None
    found = _moved(estimates.get("d_entropy_terminal"), "higher", "lower")
    return contrast_profile(
        rows,
        value="d_entropy",
        unit="nats",
        title=f"Entropy over the last blocks, aligned against base: {found}" if found else "Difference of entropies",
        y_title="Δ entropy, aligned − base",
        how="Below 0 the aligned model's read-out is more decided at that layer. Intervals are layer by layer: with "
        "many layers some miss 0 by chance.",
    )


def _base_distance(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    rows = _rows(tables, "contrast", "base_distance")
    if rows is None:
        return None
    value, largest = stated(estimates.get("base_distance_terminal")), estimates.get("base_distance_max")
    where = f" {largest.label}, {stated(largest)}, n = {largest.n}." if largest and stated(largest) else ""
    name = "aligned against base"
    return layer_profile(
        rows.assign(model=name),
        value="base_distance",
        unit="rad",
        title=f"At the same layer both read-outs lie {value} apart over the last blocks"
        if value
        else "Distance between both models' read-outs at the same layer",
        y_title="distance of read-outs",
        how="Both models read the same prompts; after every block, how far apart are their read-outs, each through its "
        "own head? 0 is the same distribution, π (3.14 rad) no token in common. A changed head or final norm shows at "
        "every layer; only a rise from about 0 locates a block. A distance cannot be below 0, so its size matters and "
        f"not that it is above 0.{where[:2].upper()}{where[2:]} " + missing(estimates, ["base_distance_terminal"]),
        appearance={name: POLICY_LOOK},
    )


def _moved(estimate: Estimate | None, up: str, down: str) -> str | None:
    """`moved`, but a change under the resolution of the measurement is none."""
    if estimate is not None and estimate.value is not None and abs(estimate.value) < RESOLUTION:
        return f"no clear change ({stated(estimate)})"
    return moved(estimate, up, down)


def _rows(tables: Mapping[str, pd.DataFrame], name: str, value: str) -> pd.DataFrame | None:
    """The whole table (gaps stay gaps) where `value` has at least one number."""
    needed = ("layer", value) if name in ("contrast", "transport") else ("model", "layer", value)
    return None if table_with(tables, name, *needed) is None else tables[name]


def profile_figure(frame: pd.DataFrame) -> go.Figure:
    """Transport of several models over relative depth: shapes beside each other, no contrast."""
    rows = frame[(frame.layer > 0) & frame.angle.notna()]
    figure = layer_profile(
        rows.assign(layer=rows.relative_depth),
        value="angle",
        unit="rad",
        title="Transport by relative depth, of models of unlike depth",
        y_title="angle a step",
        x_title=DEPTH_AXIS,
        how="Each model has its own blocks, so that nothing is subtracted: compare where steps are long and where "
        "short. Widths, vocabularies and numbers of prompts move heights by themselves.",
    )
    figure.update_xaxes(tickformat=".2f", dtick=None)
    return figure
