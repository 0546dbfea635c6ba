"""The reconstructed composite of a comparison, and where over depth the change sits: both from two traces.

Pure formulas stand in `spinal_components`, `spinal_composite` and `spinal_window`; here they get their numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError
from .gradients import PLACES, gradient_concentration
from .report import Estimate
from .spinal_composite import LABELS, WEIGHTS, Composite, composite
from .spinal_composite_estimates import composite_estimates, delete_group_means
from .spinal_contrast import exponents_of_both
from .spinal_controls import half_labels, spectra_of
from .spinal_effects import Blocks, compared_sides, why_no_exponents
from .spinal_reading import Progress
from .spinal_spectra import group_labels, rounding_floor
from .spinal_trace import SpinalTrace, jackknife_se
from .spinal_window import DetectedWindow, LayerEffect, WindowFound, detect_window, detected
from .weights import block_changes

if TYPE_CHECKING:
    from ..probes.subject import Subject

GRADIENTS = ("weight_share", "gradient", "residual", "lens_local", "transport_share")
OF_PAIRS = ("gradient", *PLACES[1:])  # those that are measured on preference pairs
SCORE_NAMES = tuple(
    f"score_{name}" for name in LABELS if name != "efficiency" and not name.startswith("scale_")
)  # not the difference of efficiencies: it is `d_efficiency_terminal`, and stands in the table `components`
DETECTED_NAMES = ("detected_overlap", "detected_alpha", "detected_transport")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norms:
    """A norm a block of each model, or one of the pair, and what a jackknife over pairs needs."""

    base: Float[np.ndarray, "L"] | None = None
    aligned: Float[np.ndarray, "L"] | None = None
    pair: Float[np.ndarray, "L"] | None = None
    groups: tuple[Float[np.ndarray, "H L"] | None, Float[np.ndarray, "H L"] | None] = (None, None)
    n_pairs: int = 0
    reason: str = "models not given"


def require_score_settings(weights: Sequence[float], gradient: str, pairs: Any) -> None:
    """Raises InputError for weights that do not add to 1, an unknown term, or gradients without pairs."""
    if len(weights) != 3 or abs(sum(weights) - 1) > 1e-9:
        raise InputError(f"weights={tuple(weights)}: three that add to 1 are expected, of Delta, S_coh and G")
    if gradient not in GRADIENTS:
        raise InputError(f"gradient={gradient!r}: expected one of {', '.join(GRADIENTS)}")
    if gradient in OF_PAIRS and pairs is None:
        raise InputError(f"gradient={gradient!r} needs preference pairs: give pairs=")


def block_norms_of(
    subjects: "tuple[Subject, Subject] | None",
    gradient: str,
    pairs: Any,
    *,
    identical: bool,
    seed: int,
    text: Mapping[str, Any],
    progress: Progress | None = None,
) -> Norms:
    """The norms of G: how far each block's weights moved, or the gradients of both models on the same pairs.

    text: how the prompts of the traces became ids; the pairs are read the same way.
    """
    if identical:
        return Norms(reason="identical weights")
    if gradient == "transport_share" or subjects is None:
        return Norms()
    if gradient == "weight_share":
        try:
            changes = block_changes(*subjects)
        except InputError as error:
            return Norms(reason=str(error))
        if changes.share.isna().any():
            return Norms(reason=str(changes.reason.dropna().iloc[0]))
        return Norms(pair=changes.share.to_numpy(dtype=float))
    place = "parameters" if gradient == "gradient" else gradient
    found = [
        gradient_concentration(
            subject, pairs, of=place, loss="nll" if place == "lens_local" else "margin", seed=seed,
            template=text.get("template", "auto"), eos=text.get("eos", "auto"), boundary="accept", progress=progress,
        )
        for subject in subjects
    ]  # fmt: skip
    if found[0].token_hash != found[1].token_hash:
        return Norms(reason="the two models read other ids of the pairs")
    whole = [one.frame.norm.to_numpy(dtype=float) for one in found]
    groups = (found[0].group_norms(), found[1].group_norms())
    return Norms(base=whole[0], aligned=whole[1], groups=groups, n_pairs=found[0].n)


def score_of(
    base: SpinalTrace, aligned: SpinalTrace, window: Blocks, norms: Norms, *, weights: Sequence[float] = WEIGHTS,
    gradient: str = "weight_share",
) -> tuple[Composite | None, dict[str, Estimate]]:  # fmt: skip
    """The composite over the window and its estimates, `score_*`; all null with a reason where there is no window."""
    used, clusters = [base.used, aligned.used], base.clusters
    count = {"n": len(clusters), "n_clusters": len(np.unique(clusters))}
    if window is None:
        return None, {
            name: Estimate(label=LABELS[name.removeprefix("score_")], value=None, **count, unit="", method="none",
                           reason="fewer than 3 blocks: no terminal window", reconstructed=True)
            for name in SCORE_NAMES
        }  # fmt: skip
    values, groups = _exponents(base, aligned)
    n_groups = len(groups[0])
    labels = group_labels(clusters, max(n_groups, 1), base.settings["seed"])
    straight = [readings.efficiency(*window) for readings in used]
    means = [None if s is None or not np.isfinite(s).any() else float(np.nanmean(s)) for s in straight]
    found = composite(
        values[0],
        used[0].angle.mean(1),
        values[1],
        used[1].angle.mean(1),
        window,
        gradient_base=norms.base,
        gradient_aligned=norms.aligned,
        weight_share=norms.pair,
        weights=weights,
        gradient=gradient,
        efficiency=(means[0], means[1]),
        no_gradient=norms.reason,
    )
    angles = [delete_group_means(readings.angle, labels, max(n_groups, 1))[:n_groups] for readings in used]
    ends = [
        None if s is None else delete_group_means(s[None], labels, max(n_groups, 1))[:n_groups, 0] for s in straight
    ]
    estimates = composite_estimates(
        found,
        alpha_groups=(groups[0], groups[1]),
        angle_groups=(angles[0], angles[1]),
        efficiency_groups=(ends[0], ends[1]),
        norm_groups=norms.groups,
        n_pairs=norms.n_pairs,
        **count,
    )
    return found, {key: estimate for name, estimate in estimates.items() if (key := f"score_{name}") in SCORE_NAMES}


def _exponents(base: SpinalTrace, aligned: SpinalTrace) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return exponents_of_both(*compared_sides(base, aligned), base.settings["window"])


def detected_window(base: SpinalTrace, aligned: SpinalTrace, *, seed: int) -> DetectedWindow:
    """Where over depth the two models differ: found on each half of the prompts, effects estimated on the other."""
    clusters = base.clusters
    kept, second = np.flatnonzero(base.kept), half_labels(clusters, seed)
    halves = (~second, second)
    floors = [
        [rounding_floor(rows, trace.model.dtype) for rows in trace.readings.take(kept).spectrum_rows]
        for trace in (base, aligned)
    ]
    found = [_half(base, aligned, kept[half], clusters[half], floors) for half in halves]
    return detected(
        found[0][0],
        found[1][0],
        {name: (found[0][1][name], found[1][1][name]) for name in found[0][1]},
        n=(int((~second).sum()), int(second.sum())),
        n_clusters=(len(np.unique(clusters[~second])), len(np.unique(clusters[second]))),
    )


def _half(
    base: SpinalTrace,
    aligned: SpinalTrace,
    prompts: Int[np.ndarray, "n"],
    clusters: Int[np.ndarray, "n"],
    floors: list[list[float]],
) -> tuple[WindowFound, dict[str, LayerEffect]]:
    """Profile and effects of one half of the prompts, both with delete-group standard errors."""
    settings, seed = base.settings, base.settings["seed"]
    used = [trace.readings.take(prompts) for trace in (base, aligned)]
    n_groups = settings["groups"] if len(np.unique(clusters)) >= settings["groups"] else 0
    labels = group_labels(clusters, max(n_groups, 1), seed)
    if why_no_exponents(base, aligned) or not len(prompts):
        d_alpha = np.full(base.model.n_layers + 1, np.nan)
        alpha_groups = np.full((n_groups, len(d_alpha)), np.nan)
    else:
        sides = [
            spectra_of(readings.spectrum_rows, clusters[readings.owner], settings, seed, floor, base.model.dtype)
            for readings, floor in zip(used, floors, strict=True)
        ]
        values, groups = exponents_of_both(sides[0], sides[1], settings["window"])
        d_alpha, alpha_groups = values[1] - values[0], groups[1] - groups[0]
    difference = used[1].angle - used[0].angle
    d_angle = difference.mean(1) if len(prompts) else np.full(len(difference), np.nan)
    angle_groups = delete_group_means(difference, labels, max(n_groups, 1))[:n_groups]
    profile = detect_window(d_alpha, jackknife_se(alpha_groups), d_angle, jackknife_se(angle_groups))
    return profile, {
        "alpha": LayerEffect(label="contraction", value=d_alpha, groups=alpha_groups, over="blocks"),
        "transport": LayerEffect(label="transport", value=d_angle, groups=angle_groups, over="steps", unit="rad"),
    }


def detected_estimates(found: DetectedWindow) -> dict[str, Estimate]:
    """Overlap of the two windows and the cross-fitted effects, `detected_*`."""
    return {"detected_overlap": found.overlap, **{f"detected_{name}": e for name, e in found.effects.items()}}
