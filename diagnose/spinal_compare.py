"""How do contraction and transport differ between two models that read the same prompts? Aligned minus base, paired."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..errors import InputError
from .report import Estimate
from .spinal_composite import WEIGHTS, Composite
from .spinal_contrast import exponent_columns, smallest, terminal_window, transport_table
from .spinal_controls import ALARM, HalvesControl, halves_control
from .spinal_distance import base_distance, same_head
from .spinal_effects import effects, over_blocks
from .spinal_estimates import comparison_estimates
from .spinal_noise import noise_control
from .spinal_nulls import Control, controls_table, trained_controls
from .spinal_reading import Folder, Progress
from .spinal_retrace import Prompts, template_control
from .spinal_score import block_norms_of, detected_estimates, detected_window, require_score_settings, score_of
from .spinal_settings import require_at_least
from .spinal_trace import SpinalTrace, bootstrap_means
from .spinal_warnings import ONLY_LAST
from .spinal_window import DetectedWindow

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..probes.subject import Subject
    from .report import SectionResult

CONTROLS = ("halves", "template", "noise")
DEFAULT_CONTROLS = ("halves",)
NOISE_SEEDS = 3
SAME_SETTINGS = (
    *("positions", "lens", "lens_positions", "temperature", "window", "groups", "seed", "max_tokens"),
    *("estimator", "centering", "row_scale", "angle_vocabulary"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpinalComparison:
    """Contrasts by layer, aligned minus base, with intervals from prompts, family tests, and the controls beside them.

    Angles in radians, entropies in nats. `alarm`: one of two families (transport by the largest |t|, exponents by Holm)
    has p < .025. It says that the models differ by more than the choice of prompts, not why. Below 1e-5 (rad, or
    exponent), what batching may move, nothing is tested: such a layer or step counts as 0, with p = 1. Fewer than 7
    clusters of prompts cannot raise the alarm of transport (2 * 2^-6 > .025), nor fewer than 46 prompts that of alpha.
    """

    base: SpinalTrace
    aligned: SpinalTrace
    names: tuple[str, str]  # as in the tables
    layers: pd.DataFrame  # both traces' tables, a row a model and layer
    steps: pd.DataFrame
    local_slopes: pd.DataFrame
    contrast: pd.DataFrame  # d_alpha, d_entropy, base_distance, a row a layer
    transport: pd.DataFrame  # d_angle, a row a step 1..L-1
    base_distance: Float[np.ndarray, "layers N"] | None
    window: tuple[int, int] | None  # terminal blocks, first and last
    estimates: dict[str, Estimate]
    controls: dict[str, HalvesControl | Control]
    score: Composite | None  # the reconstructed composite over the window; None without a window
    detected: DetectedWindow  # where over depth the models differ
    control_effects: pd.DataFrame  # a row a control and headline: effect, control's effect, net, verdict
    identical: bool  # equal fingerprints
    settings: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def alpha(self) -> pd.DataFrame:
        """The contrast of exponents by layer."""
        return self.contrast.filter(regex="^(layer|n|d_alpha.*)$")

    @property
    def components(self) -> pd.DataFrame:
        """The parts of the composite, every one of them reconstructed; empty without a window."""
        return pd.DataFrame() if self.score is None else self.score.to_frame()

    @property
    def windows(self) -> dict[str, tuple[int, int] | None]:
        """First and last block of the window that the aggregates run over, and of the one that was detected."""
        return {"terminal": self.window, "detected": self.detected.blocks}

    @property
    def halves(self) -> HalvesControl | None:
        """The control on two halves of the prompts, where it was asked for."""
        found = self.controls.get("halves")
        return found if isinstance(found, HalvesControl) else None

    @property
    def alarm(self) -> bool:
        """A family of tests says that the two models differ."""
        values = [self.estimates[name].value for name in ("transport_p", "alpha_p")]
        return any(value is not None and value < ALARM for value in values)

    def to_frame(self) -> pd.DataFrame:
        """The contrasts, a row a layer."""
        return self.contrast.copy()

    def section(self) -> "SectionResult":
        """The report's section "spinal"."""
        from .spinal_section import comparison_section

        return comparison_section(self)

    def summary(self) -> str:
        """One to three sentences that a non-author can quote."""
        return self.section().section.summary

    def figure(self) -> "go.Figure":
        """Of the figures of this section the difference of transport over layers; `figures()` gives all."""
        return self.figures()["d_angle"]

    def figures(self) -> "dict[str, go.Figure]":
        """The figures of this section by name."""
        from ..dashboards.figures import spinal_figures

        result = self.section()
        return spinal_figures(result.tables, result.section.estimates)


def compare_spinal(
    base: SpinalTrace,
    aligned: SpinalTrace,
    *,
    terminal: str | tuple[int, int] | list[int] = "last_third",
    subjects: "tuple[Subject, Subject] | None" = None,
    controls: Sequence[str] = DEFAULT_CONTROLS,
    control_traces: Mapping[str, SpinalTrace] | None = None,
    noise_seeds: int = NOISE_SEEDS,
    prompts: Prompts | None = None,
    weights: Sequence[float] = WEIGHTS,
    gradient: str = "weight_share",
    pairs: Any = None,
    seed: int = 0,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> SpinalComparison:
    """Compare two traces of the same prompts.

    terminal: blocks that the aggregates run over: "last_third", "last_<k>" or (first, last).
    subjects: the two models themselves, for the same-layer distance of their read-outs; without: null, with a reason.
    controls: of "halves" (the base against itself on two disjoint halves of the prompts), "template" (the base under
        the chat template against raw text; needs subjects and prompts) and "noise" (the base with random weights as
        large as the update, matrix by matrix; a trace a seed, 3 give p >= .25, 19 are needed for .05; needs subjects).
    control_traces: name -> trace of a control checkpoint of the same base on the same prompts: SFT only, chosen
        answers only, DPO with shuffled labels. prompts: the prompts as text, for the template.
    weights: of Delta, S_coh and G in the score. gradient: what G rests on: "weight_share" (how far each block's weights
        moved; needs subjects), "transport_share", or gradients on 32 `pairs` under both models: "gradient" (of the
        blocks' weights), "residual", "lens_local".
    shards: folder where the distance is kept once it is there. progress: called as progress(stage, done, total).
    Raises InputError, naming both values, where prompts, their `prompt_id`s, depth, dtype or settings of the traces
    differ; where only width or token ids differ there is no contrast of exponents, and the reason says so. Definitions:
    arXiv 2601.06238; tests, intervals and control: ours (docs/spinal.md).
    """
    require_at_least(noise_seeds=(noise_seeds, 1))
    require_score_settings(weights, gradient, pairs)
    _check_controls(controls)
    warnings = require_comparable(base, aligned)
    identical = base.model.fingerprint == aligned.model.fingerprint and base.token_hash == aligned.token_hash
    if identical:  # not two passes that differ by round-off, which a paired test would find
        aligned = replace(base, model=aligned.model)
        warnings.append("identical weights: every contrast is 0 by construction")
    kept = base.kept & aligned.kept
    if not kept.any():
        raise InputError("no prompt has finite rows in both models; run `alignscope doctor` on them")
    base, aligned = (trace if (trace.kept == kept).all() else trace.restricted(kept) for trace in (base, aligned))
    window, no_window = _window(terminal, base.model.n_layers)
    clusters = base.clusters

    found = effects(base, aligned, window)
    distance, no_distance = base_distance(
        base, aligned, subjects, identical=identical, warnings=warnings, shards=shards, progress=progress
    )
    residual, no_residual = distance, no_distance
    if subjects is not None and not identical and not same_head(*subjects, base.readings.rows[-1]):
        residual, no_residual = base_distance(
            base,
            aligned,
            subjects,
            identical=identical,
            warnings=warnings,
            readout="base",
            shards=shards,
            progress=progress,
        )
    used = [base.used, aligned.used]
    layers = {"layer": np.arange(base.model.n_layers + 1), "n": len(clusters)}
    contrast = pd.DataFrame(layers | exponent_columns(found.exponents))
    transport = transport_table(used[0].angle, used[1].angle, clusters, seed)
    for table, name, values in (
        (contrast, "d_entropy", used[1].entropy - used[0].entropy),
        (contrast, "base_distance", np.full_like(used[0].entropy, np.nan) if distance is None else distance),
        (contrast, "base_distance_residual", np.full_like(used[0].entropy, np.nan) if residual is None else residual),
        (transport, "d_angle_sampled", (used[1].angle_sampled - used[0].angle_sampled)[1:]),
    ):
        for suffix, column in zip(("", "_low", "_high"), bootstrap_means(values, clusters, seed), strict=True):
            table[name + suffix] = column
    transport["n_sampled"] = np.isfinite(used[1].angle_sampled - used[0].angle_sampled)[1:].sum(1)
    halves = halves_control(base, window, seed=seed) if "halves" in controls else None
    others = trained_controls(control_traces, base, aligned)
    for control in others:
        require_comparable(base, control.traces[0])
    if "template" in controls:
        others.append(template_control(base, aligned, subjects, prompts, shards=shards, progress=progress))
    if "noise" in controls and not identical:
        noise: dict[str, Any] = {"seeds": noise_seeds, "seed": seed, "shards": shards, "progress": progress}
        others.append(noise_control(base, subjects, window, **noise))
    means = found.means | {
        "base_distance_terminal": None if distance is None else over_blocks(distance, window),
        "base_distance_terminal_residual": None if residual is None else over_blocks(residual, window),
    }
    norms = block_norms_of(
        subjects,
        gradient,
        pairs,
        identical=identical,
        seed=seed,
        text=base.settings.get("text", {}),
        progress=progress,
    )
    score, score_estimates = score_of(base, aligned, window, norms, weights=weights, gradient=gradient)
    where = detected_window(base, aligned, seed=seed)
    families = {"transport_p": smallest(transport.p), "alpha_p": smallest(contrast.d_alpha_p)}
    names = _names(base, aligned)
    return SpinalComparison(
        base=base,
        aligned=aligned,
        names=names,
        layers=_both(base.layers, aligned.layers, names),
        steps=_both(base.steps, aligned.steps, names),
        local_slopes=_both(base.local_slopes, aligned.local_slopes, names),
        contrast=contrast,
        transport=transport,
        base_distance=distance,
        window=window,
        score=score,
        detected=where,
        estimates=comparison_estimates(
            exponents=found.exponents,
            means=means,
            families=families,
            contrast=contrast,
            halves=halves,
            window=window,
            clusters=clusters,
            seed=seed,
            reasons={
                "window": no_window,
                "alpha": found.no_exponents,
                "distance": no_distance,
                "residual": no_residual,
                "read": ONLY_LAST if base.readings.final_only else None,
                "efficiency": ONLY_LAST
                if base.readings.final_only
                else None
                if found.means["d_efficiency_terminal"] is not None
                else "the ends of this window "
                "were not compared: a straightness is read for the last third and for last blocks that equal it",
            },
        )
        | score_estimates
        | detected_estimates(where),
        controls=({"halves": halves} if halves else {}) | {control.name: control for control in others},
        control_effects=controls_table(base, aligned, others, window, seed=seed),
        identical=identical,
        settings={
            **base.settings,
            "terminal": terminal if isinstance(terminal, str) else list(terminal),
            "terminal_blocks": None if window is None else list(window),
            "controls": list(controls),
            "control_checkpoints": {c.name: c.traces[0].model.name for c in others if c.kind == "trained"},
            "noise_seeds": noise_seeds,
            "weights": list(weights),
            "gradient": gradient,
            "alarm_p": ALARM,
            "seed": seed,
        },
        warnings=tuple(dict.fromkeys([*warnings, *base.warnings, *aligned.warnings])),
    )


def _check_controls(controls: Sequence[str]) -> None:
    if isinstance(controls, str):
        raise InputError(f"controls={controls!r}: a list is expected, as ('halves',)")
    for name in controls:
        if name not in CONTROLS:
            raise InputError(f"controls: {name!r} is none of {', '.join(CONTROLS)}; checkpoints go to control_traces")


def require_comparable(base: SpinalTrace, aligned: SpinalTrace) -> list[str]:
    """The identical-N rule: raises InputError naming both values; returns what is allowed but must be said."""
    if "auto" in (base.settings["window"], aligned.settings["window"]):
        raise InputError("window='auto' takes other ranks in every layer and model: a contrast needs fixed ones")
    pairs: list[tuple[str, Any, Any]] = [("blocks", base.model.n_layers, aligned.model.n_layers)]
    pairs.append(("prompts", len(base.prompts), len(aligned.prompts)))
    pairs.append(("dtype", base.model.dtype, aligned.model.dtype))
    pairs += [(name, base.settings.get(name), aligned.settings.get(name)) for name in SAME_SETTINGS]
    for what, first, second in pairs:
        if first != second:
            advice = "trace both models with the same prompts and settings"
            if what == "blocks":
                advice = "their layers are not each other's: spinal_profiles draws both by relative depth"
            raise InputError(
                f"the traces cannot be compared: {what} {first} in {base.model.name}, {second} in "
                f"{aligned.model.name}; {advice}"
            )
    same_ids = base.token_hash == aligned.token_hash
    if not same_ids and base.text_hash != aligned.text_hash:
        raise InputError(
            f"the traces cannot be compared: {base.model.name} and {aligned.model.name} read different prompts "
            f"(hash {base.text_hash[:12]} and {aligned.text_hash[:12]}); trace both on one file"
        )
    for first, second in zip(base.prompts, aligned.prompts, strict=True):  # otherwise the jackknife is not paired
        if first.prompt_id != second.prompt_id:
            raise InputError(
                f"the traces cannot be compared: the prompt in row {first.row} has prompt_id {first.prompt_id!r} in "
                f"{base.model.name}, and in row {second.row} {second.prompt_id!r} in {aligned.model.name}; "
                "trace both on one file"
            )
    said = []
    if base.settings.get("lens_fingerprint") != aligned.settings.get("lens_fingerprint"):
        said = ["each model was read through a tuned lens of its own: part of a difference may be that of the lenses"]
    if same_ids:
        return said
    return [
        *said,
        "the models read the same texts as different token ids: no contrast of exponents, no same-layer distance",
    ]


def _window(terminal: str | tuple[int, int] | list[int], n_layers: int) -> tuple[tuple[int, int] | None, str | None]:
    """The terminal blocks; None, with the reason, for a model of fewer than 3 blocks under the default."""
    if terminal == "last_third" and n_layers < 3:
        return None, f"{n_layers} blocks: the last third needs 3"
    return terminal_window(terminal, n_layers), None


def _names(base: SpinalTrace, aligned: SpinalTrace) -> tuple[str, str]:
    if base.model.name != aligned.model.name:
        return base.model.name, aligned.model.name
    return f"{base.model.name} (base)", f"{aligned.model.name} (aligned)"


def _both(base: pd.DataFrame, aligned: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    frames = [table.assign(model=name) for table, name in zip((base, aligned), names, strict=True)]
    return pd.concat(frames, ignore_index=True)
