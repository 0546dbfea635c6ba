"""Headline numbers of SPINAL as `Estimate`s: value, interval, n, method, and the reason where one is missing."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .report import Estimate, finite
from .spinal_contrast import FLIPS, ExponentContrast
from .spinal_controls import PERMUTATIONS, HalvesControl
from .spinal_effects import over_steps
from .spinal_geometry import TOO_SHORT
from .spinal_settings import RESOLUTION
from .spinal_trace import DRAWS, SAMPLING_ONLY, SpinalTrace, bootstrap_means, jackknife_se, student
from .spinal_warnings import ONLY_LAST

BOOTSTRAP = f"paired cluster bootstrap over prompts, {DRAWS} draws, percentile"
FEW_CLUSTERS = "fewer than 20 prompts: no interval"
NO_SAMPLED = "no sampled positions (lens_positions=0, or prompts of one token)"
WEIGHTS = "prompts weigh the same (in the test of transport_p, clusters of prompts do)"
UNITS = {"d_entropy_terminal": "nats", "d_efficiency_terminal": ""}  # the others: rad
FORMS = {"bucketed": "in one bucket", "renormalised": "left out and renormalised"}  # of a reduced vocabulary
LABELS = {
    "d_transport_terminal": "transport a step over the last blocks, aligned minus base",
    "d_transport_terminal_sampled": "the same at sampled positions inside the prompts",
    "d_entropy_terminal": "entropy of the read-out over the last blocks, aligned minus base",
    "d_efficiency_terminal": "geodesic efficiency over the last blocks (1 = a straight path), aligned minus base",
    "base_distance_terminal_residual": "the same distance through the base's head: without a changed head or norm",
    "base_distance_terminal": "distance between both models' read-outs, same layer, over the last blocks",
}

# that the estimates of the sections "spinal" and "spinal_trace" can have
COMPARISON_NAMES = (
    *("d_alpha_terminal", "d_alpha_terminal_wide", "d_alpha_terminal_bulk", *LABELS, "base_distance_max"),
    *("transport_p", "alpha_p"),
    *("null_d_alpha_terminal", "null_d_transport_terminal", "null_transport_p", "null_alpha_p"),
)
TRACE_NAMES = (
    *("alpha_terminal", "angle_terminal", "path_length", "entropy_final", "gates_passed"),
    *("efficiency_terminal", "efficiency_path"),
)
REDUCED_NAMES = ("angle_terminal_bucketed", "angle_terminal_renormalised")  # with a reduced vocabulary


def estimate(
    label: str,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    *,
    n: int,
    n_clusters: int,
    unit: str,
    method: str,
    reason: str | None = None,
    null_value: float | None = None,
) -> Estimate:
    """An `Estimate` from floats, NaN meaning null; `reason` is kept only where something is null."""
    whole = all(math.isfinite(number) for number in (value, low, high))
    return Estimate(
        label=label,
        value=finite(value),
        low=finite(low),
        high=finite(high),
        n=n,
        n_clusters=n_clusters,
        unit=unit,
        method=method,
        reason=None if whole else reason or FEW_CLUSTERS,
        null_value=null_value,
    )


def ours(found: Estimate) -> Estimate:
    """The same, marked: window and token position of an exponent are our choice, not the paper's."""
    return found.model_copy(update={"reconstructed": True})


def family_p(label: str, p: float, *, n: int, n_clusters: int, method: str, reason: str | None) -> Estimate:
    """The p of a whole family of tests: a number without an interval."""
    return Estimate(
        label=label,
        value=finite(p),
        level=None,
        n=n,
        n_clusters=n_clusters,
        unit="p",
        method=method,
        reason=None if math.isfinite(p) else reason or "nothing could be tested",
    )


def comparison_estimates(
    *,
    exponents: Mapping[str, ExponentContrast],
    means: Mapping[str, Float[np.ndarray, "N"] | None],
    families: Mapping[str, float],
    contrast: pd.DataFrame,
    halves: HalvesControl | None,
    window: tuple[int, int] | None,
    clusters: Int[np.ndarray, "N"],
    seed: int,
    reasons: Mapping[str, str | None],
) -> dict[str, Estimate]:
    """Aggregates over the terminal window, the largest distance, two family p, and the same of the halves control.

    Exponents are `reconstructed`: window and token position are ours.
    """
    count = {"n": len(clusters), "n_clusters": len(np.unique(clusters))}
    n_groups = len(exponents[""].groups)
    jackknife = f"paired delete-group jackknife, {n_groups} groups, ranks fixed; {SAMPLING_ONLY}"
    no_alpha = reasons["window"] or reasons["alpha"] or "no layer of the window has an exponent in both models"
    no_interval = f"fewer prompts than jackknife groups, or {no_alpha}"
    found = {}
    for name, exponent in exponents.items():
        blocks = np.array([], dtype=int) if window is None else np.arange(window[0], window[1] + 1)
        value, low, high, layers = exponent.mean(blocks)
        label = {"": "the window", "_wide": "ranks .05 r to .5 r", "_bulk": "ranks .1 r to .9 r"}[name]
        found[f"d_alpha_terminal{name}"] = ours(
            estimate(
                f"contraction over the last blocks, aligned minus base ({label})",
                value,
                low,
                high,
                **count,
                unit="",
                method=f"mean over {layers} layers; {jackknife}",
                reason=no_interval if math.isfinite(value) else no_alpha,
                null_value=0.0,
            )
        )
    for name, values in means.items():
        distance = name.startswith("base_distance")
        why = "residual" if name.endswith("_residual") else "distance" if distance else "efficiency"
        known = reasons[why] if distance or "efficiency" in name else reasons.get("read")
        missing = reasons["window"] or known or "no step inside the window"
        value, low, high = math.nan, math.nan, math.nan
        held = count
        if values is not None:
            value, low, high = (float(part[0]) for part in bootstrap_means(values[None], clusters, seed))
            held = _held(values, clusters)
            missing = NO_SAMPLED if name.endswith("_sampled") and known is None else missing
        found[name] = estimate(
            LABELS[name],
            value,
            low,
            high,
            **held,
            unit=UNITS.get(name, "rad"),
            method=f"{BOOTSTRAP}; {WEIGHTS}" if "transport" in name else BOOTSTRAP,
            reason=FEW_CLUSTERS if math.isfinite(value) else missing,
            null_value=None if distance else 0.0,
        )
    found["base_distance_max"] = largest_distance(contrast, count, reasons["distance"])
    found["transport_p"] = family_p(
        "do the models differ in transport at all? p of the family of steps",
        families["transport_p"],
        **count,
        method=f"sign flip of cluster means (clusters of prompts weigh the same), largest |t| over steps 1 to L-1, "
        f"{FLIPS} flips or all if fewer; a step under {RESOLUTION:g} rad counts as 0",
        reason="fewer than 2 prompts" if count["n_clusters"] < 2 else "one block: no step between two",
    )
    found["alpha_p"] = family_p(
        "do the models differ in contraction at all? p of the family of layers",
        families["alpha_p"],
        **count,
        method=f"t of a {jackknife}; smallest Holm-adjusted p over layers 1 to L; under {RESOLUTION:g} counts as 0",
        reason=reasons["alpha"] or "no layer has an exponent and its standard error in both models",
    )
    return found | (_halves_estimates(halves, count, window, reasons["window"], reasons.get("read")) if halves else {})


def largest_distance(contrast: pd.DataFrame, count: Mapping[str, int], missing: str | None) -> Estimate:
    """The same-layer distance of the layer where its mean is largest, in radians: a selected number."""
    rows = contrast[contrast.base_distance.notna()]
    label = "largest of the layers' distances between both models' read-outs"
    numbers, where = [math.nan] * 3, ""
    if len(rows):
        top = rows.iloc[int(rows.base_distance.to_numpy().argmax())]
        numbers = [float(top[f"base_distance{end}"]) for end in ("", "_low", "_high")]
        where = f": layer {int(top.layer)}"
    return estimate(
        label + where,
        *numbers,
        **count,
        unit="rad",
        method=f"{BOOTSTRAP}; selected as the largest of {len(contrast)} layers, which the interval does not cover",
        reason=FEW_CLUSTERS if len(rows) else missing or "no layer has a distance",
    )


def _rows_said(trace: SpinalTrace) -> str:
    """Which rows the spectrum has, where it is not one last token a prompt."""
    positions = trace.settings.get("positions", "last")
    if "n_eff" in trace.layers:
        low, high = trace.layers.n_eff.min(), trace.layers.n_eff.max()
        rows = int(trace.layers.n_rows.iloc[0])
        return f"{rows} rows at {positions} positions of a prompt, worth {low:.0f} to {high:.0f} independent ones; "
    return "" if positions == "last" else f"one row a prompt, the {positions} of its positions; "


def _why_none(values: Float[np.ndarray, "N"] | None, no_window: str | None) -> str:
    if values is None:
        return no_window or "no step inside the window"
    return FEW_CLUSTERS if np.isfinite(values).any() else f"every path is shorter than {TOO_SHORT:g} rad"


def _held(values: Float[np.ndarray, "N"], clusters: Int[np.ndarray, "N"]) -> dict[str, int]:
    """n and clusters of the prompts that have a value."""
    some = np.isfinite(values)
    return {"n": int(some.sum()), "n_clusters": len(np.unique(clusters[some]))}


def _halves_estimates(
    halves: HalvesControl,
    count: Mapping[str, int],
    window: tuple[int, int] | None,
    no_window: str | None,
    unread: str | None,
) -> dict[str, Estimate]:
    sizes = f"{halves.n[0]} and {halves.n[1]} prompts"
    no_alpha = no_window or f"no exponents on halves of {sizes}: 46 prompts a half and 16 groups needed"
    return {
        "null_d_alpha_terminal": ours(
            estimate(
                "control: contraction of the base, one half of the prompts minus the other",
                *halves.d_alpha_terminal,
                **count,
                unit="",
                method=f"{sizes}; delete-group jackknife of each half, variances added; {SAMPLING_ONLY}",
                reason=no_alpha,
                null_value=0.0,
            )
        ),
        "null_d_transport_terminal": estimate(
            "control: transport of the base, one half of the prompts minus the other",
            *halves.d_transport_terminal,
            **count,
            unit="rad",
            method=f"{sizes}; each half resampled by itself, {DRAWS} draws, percentile",
            reason=no_window or unread or f"too few prompts in a half for an interval ({sizes})",
            null_value=0.0,
        ),
        "null_transport_p": family_p(
            "control: do the halves of the base differ in transport?",
            halves.transport_p,
            **count,
            method=f"half labels of prompts permuted, largest |t| over steps, {PERMUTATIONS} permutations",
            reason=f"too few prompts in a half ({sizes})",
        ),
        "null_alpha_p": family_p(
            "control: do the halves of the base differ in contraction?",
            halves.alpha_p,
            **count,
            method="t with jackknife variances added; smallest Holm-adjusted p over layers",
            reason=no_alpha,
        ),
    }


def trace_estimates(trace: SpinalTrace, window: tuple[int, int] | None, no_window: str | None) -> dict[str, Estimate]:
    """One model: exponent and step over its last third, path length, entropy, share of exponents past the gates."""
    used, clusters = trace.used, trace.clusters
    count = {"n": len(clusters), "n_clusters": len(np.unique(clusters))}
    seed, jackknife = trace.settings["seed"], trace.jackknife
    alpha = trace.layers.alpha.to_numpy()
    blocks = np.array([], dtype=int) if window is None else np.arange(window[0], window[1] + 1)
    some = blocks[np.isfinite(alpha[blocks])]
    value = float(alpha[some].mean()) if len(some) else math.nan
    reach = float(jackknife_se(jackknife[:, some].mean(1))) * student(len(jackknife)) if len(some) else math.nan
    found = {
        "alpha_terminal": ours(
            estimate(
                "contraction (singular-value exponent) over the last blocks",
                value,
                value - reach,
                value + reach,
                **count,
                unit="",
                method=f"mean over {len(some)} layers; {_rows_said(trace)}delete-group jackknife, {len(jackknife)} "
                f"groups; {SAMPLING_ONLY}",
                reason=(
                    trace.settings.get("no_exponents")
                    or no_window
                    or "no layer of the window has an exponent (see the column `reason`)"
                )
                if math.isnan(value)
                else "fewer prompts than jackknife groups",
            )
        )
    }
    inside = over_steps(used.angle, window)
    path = used.angle[1:].sum(0) if len(used.angle) > 1 else None
    straight = None if window is None else used.efficiency(*window)
    whole = used.efficiency(1, trace.model.n_layers)
    headlines = [
        ("efficiency_terminal", "geodesic efficiency over the last blocks (1 = a straight path)", straight, ""),
        ("efficiency_path", "geodesic efficiency from block 1 to the last block (1 = a straight path)", whole, ""),
        ("angle_terminal", "transport a step over the last blocks", inside, "rad"),
        ("path_length", "transport from block 1 to the last block, all steps added", path, "rad"),
        ("entropy_final", "entropy of the model's own next-token distribution", used.entropy[-1], "nats"),
    ]
    reduced = f"on {trace.settings.get('angle_vocabulary')} tokens"
    for form, angle in (("bucketed", used.angle_bucketed), ("renormalised", used.angle_renormalised)):
        if angle is not None:
            label = f"transport a step over the last blocks {reduced}, the rest {FORMS[form]}"
            headlines.append((f"angle_terminal_{form}", label, over_steps(angle, window), "rad"))
    for name, label, values, unit in headlines:
        numbers = [math.nan] * 3
        if values is not None:
            numbers = [float(part[0]) for part in bootstrap_means(values[None], clusters, seed)]
        found[name] = estimate(
            label,
            *numbers,
            **(count if values is None else _held(values, clusters)),
            unit=unit,
            method=f"last token; {BOOTSTRAP.removeprefix('paired ')}",
            reason=ONLY_LAST if used.final_only else _why_none(values, no_window),
        )
    ours_too = [name for name in found if used.final_only or name.startswith("angle_terminal_")]
    found |= {name: ours(found[name]) for name in ours_too}
    fitted = trace.layers[trace.layers.alpha.notna()]
    found["gates_passed"] = Estimate(
        label="share of the layers' exponents that pass every gate",
        value=float(fitted.gates_passed.mean()) if len(fitted) else None,
        level=None,
        n=len(fitted),
        unit="share",
        method="exact",
        reason=None if len(fitted) else "no layer has an exponent",
    )
    return found
