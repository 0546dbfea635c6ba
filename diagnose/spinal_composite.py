"""Do contraction, transport, coherence and the place of the change add up to one number? SPINAL's composite.

Reconstructed: the published score's formula and weights could not be read. Components come first; a component that
fails is null with its reason, and then so is the score, never a sum of two. Curves in, numbers out; knows no model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from .report import finite
from .spinal_components import (
    COHERENCES,
    DELTAS,
    GRADIENTS,
    POINTS_NEEDED,
    Blocks,
    Curves,
    Scales,
    blocks_of,
    coherence,
    combined,
    concentration,
    contrast,
    path_of,
    scales,
    steps_of,
    transport_share,
)

NOT_COMPARABLE = "not comparable with the paper"
NO_EFFICIENCY = "geodesic efficiency was not measured (it needs the overlap of the window's ends)"
NO_NORMS = "no norms of blocks were given"
SIDES = ("base", "aligned")  # in the names of parts
WEIGHTS = (1 / 3, 1 / 3, 1 / 3)
COMPONENTS = ("delta", "coherence", "concentration")
IN_WORDS = {
    "delta": "contraction less transport (Delta)",
    "coherence": "coherence of the path",
    "concentration": "concentration of the change",
}
LABELS = {
    "delta": "Delta: contraction gained less transport gained, aligned minus base",
    "coherence": "S_coh: coherence of the path, aligned minus base",
    "concentration": "G: share of the change in the window, above a uniform one",
    "score": "composite of Delta, S_coh and G",
    "efficiency": "geodesic efficiency through the window, aligned minus base",
    "coherence_base": "S_coh of the base",
    "coherence_aligned": "S_coh of the aligned model",
    "concentration_base": "G of the base: share of its block norms in the window, above a uniform one",
    "concentration_aligned": "G of the aligned model, the same",
    "efficiency_base": "geodesic efficiency of the base",
    "efficiency_aligned": "geodesic efficiency of the aligned model",
    "scale_alpha": "s_a: spread of the base's exponents over blocks",
    "scale_angle": "s_L: spread of the base's steps, rad",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One number of the composite, or null with its reason; always our reconstruction."""

    value: float | None
    reason: str | None = None
    reconstructed: Literal[True] = True
    note: str = NOT_COMPARABLE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompositeInput:
    """Checked arguments of `composite`, kept so that a jackknife can hold scales, window and options."""

    base: Curves
    aligned: Curves
    window: Blocks
    weights: tuple[float, float, float]
    delta: str
    coherence: str
    gradient: str
    norms: tuple[Float[np.ndarray, "L"] | None, Float[np.ndarray, "L"] | None]
    weight_share: Float[np.ndarray, "L"] | None
    efficiency: tuple[float | None, float | None]
    no_gradient: str
    size: Scales

    @property
    def one_number_a_pair(self) -> bool:
        """G comes from the pair and replaces G^A - G^B."""
        return self.gradient in ("weight_share", "transport_share")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Composite:
    """The composite of two models and its parts by name (the keys of `LABELS`); every part is `reconstructed`.

    Differences are aligned minus base. No unit: exponents and angles are divided by the base's spread over depth.
    """

    given: CompositeInput
    parts: dict[str, Part]

    @property
    def delta(self) -> Part:
        return self.parts["delta"]

    @property
    def coherence(self) -> Part:
        return self.parts["coherence"]

    @property
    def concentration(self) -> Part:
        return self.parts["concentration"]

    @property
    def score(self) -> Part:
        return self.parts["score"]

    def to_frame(self) -> pd.DataFrame:
        """A row a part: part, label, value, reason, reconstructed, note."""
        rows = [
            {
                "part": name,
                "label": LABELS[name],
                "value": math.nan if part.value is None else part.value,
                "reason": part.reason,
                "reconstructed": part.reconstructed,
                "note": part.note,
            }
            for name, part in self.parts.items()
        ]
        return pd.DataFrame(rows)

    def summary(self) -> str:
        """One or two sentences that a non-author can quote."""
        first, last = self.given.window
        shown = ", ".join(f"{IN_WORDS[name]} {_signed(self.parts[name].value)}" for name in COMPONENTS)
        score = f"no score: {self.score.reason}" if self.score.value is None else f"score {_signed(self.score.value)}"
        found = f"Over blocks {first} to {last}, aligned against base: {shown}; {score}."
        return f"{found} Our reconstruction, {NOT_COMPARABLE}."


def composite(
    alpha_base: Float[np.ndarray, "layers"],
    angle_base: Float[np.ndarray, "steps"],
    alpha_aligned: Float[np.ndarray, "layers_aligned"],
    angle_aligned: Float[np.ndarray, "steps_aligned"],
    window: Blocks,
    *,
    gradient_base: Float[np.ndarray, "L"] | None = None,
    gradient_aligned: Float[np.ndarray, "L_aligned"] | None = None,
    weight_share: Float[np.ndarray, "L_pair"] | None = None,
    weights: Sequence[float] = WEIGHTS,
    delta: str = "scaled",
    coherence: str = "curvature",
    gradient: str | None = None,
    efficiency: tuple[float | None, float | None] = (None, None),
    no_gradient: str = NO_NORMS,
) -> Composite:
    """score = w1 Delta + w2 (S_coh^A - S_coh^B) + w3 (G^A - G^B), every part of it reconstructed (arXiv 2601.06238).

    Delta, S_coh, G: `contrast`, `coherence`, `concentration` of `spinal_components`, which say what the options mean.
    Exponents [L + 1] of layers 0..L, mean angles [L] of steps 0..L-1, radians; layer 0 and step 0 enter nothing. Scales
    come from the base's layers that have a value.
    window: first and last block, 1..L.
    gradient_base, gradient_aligned: a norm a block, [L], blocks 1..L. weight_share: |W_A - W_B| / |W_B| a block, [L];
        its one number a pair replaces G^A - G^B. gradient: what the norms are ("gradient", "residual", "lens_local"),
        or "transport_share", which takes |dL_l| from the angles; it follows from the norms where not given.
    efficiency: mean geodesic efficiency of base and aligned, printed always, and S_coh with coherence="efficiency".
    no_gradient: the reason to give where norms are missing.
    A layer of the window without an exponent (NaN) makes null what rests on it, the reason naming model and layers: a
    mean over the others would be of another window. Block L enters Delta but not S_coh, as it has no step.
    Raises ValueError for shapes that differ, a window outside 1..L, options that are unknown, weights that do not add
    to 1, or norms of both kinds.
    """
    base, aligned = (Curves(alpha=a, angle=b) for a, b in ((alpha_base, angle_base), (alpha_aligned, angle_aligned)))
    norms = (gradient_base, gradient_aligned)
    kind = gradient or ("gradient" if weight_share is None and any(n is not None for n in norms) else "weight_share")
    _check_options(weights, delta, coherence, kind)
    _check_shapes(base, aligned, window, norms, weight_share, kind)
    given = CompositeInput(
        base=base,
        aligned=aligned,
        window=window,
        weights=(float(weights[0]), float(weights[1]), float(weights[2])),
        delta=delta,
        coherence=coherence,
        gradient=kind,
        norms=norms,
        weight_share=weight_share,
        efficiency=(finite(efficiency[0]), finite(efficiency[1])),
        no_gradient=no_gradient,
        size=scales(base),
    )
    parts = _delta(given) | _coherences(given) | _concentrations(given) | _efficiencies(given)
    parts["score"] = _score([parts[name] for name in COMPONENTS], given.weights)
    for name, value in zip(("scale_alpha", "scale_angle"), given.size, strict=True):
        parts[name] = _part(value, None if math.isfinite(value) else "fewer than 2 values in the base")
    return Composite(given=given, parts={name: parts[name] for name in LABELS if name in parts})


def _check_options(weights: Sequence[float], delta: str, coherence: str, gradient: str) -> None:
    for name, value, known in (
        ("delta", delta, DELTAS), ("coherence", coherence, COHERENCES), ("gradient", gradient, GRADIENTS)
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    if len(weights) != 3 or not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-9):
        raise ValueError(f"weights {tuple(weights)}: expected three that add to 1")


def _check_shapes(
    base: Curves,
    aligned: Curves,
    window: Blocks,
    norms: tuple[Float[np.ndarray, "_"] | None, Float[np.ndarray, "_"] | None],
    weight_share: Float[np.ndarray, "_"] | None,
    gradient: str,
) -> None:
    blocks = base.n_layers
    if aligned.n_layers != blocks:
        raise ValueError(f"{blocks} blocks in the base, {aligned.n_layers} in the aligned model: expected the same")
    if not 1 <= window[0] <= window[1] <= blocks:
        raise ValueError(f"window {window}: expected first <= last within blocks 1 to {blocks}")
    if gradient in ("weight_share", "transport_share") and any(n is not None for n in norms):
        raise ValueError(f"norms of each model and {gradient}, one number a pair: expected one of the two")
    if gradient != "weight_share" and weight_share is not None:
        raise ValueError(f"weight_share and gradient={gradient!r}: expected one of the two")
    for name, values in (("gradient_base", norms[0]), ("gradient_aligned", norms[1]), ("weight_share", weight_share)):
        if values is not None and len(values) != blocks:
            raise ValueError(f"{name} has {len(values)} values: expected one for each of {blocks} blocks")


def _delta(given: CompositeInput) -> dict[str, Part]:
    window, kind = given.window, given.delta
    reason = _one_block(window)
    if kind != "single_model":
        reason = reason or missing("base", given.base, blocks_of(window), steps_of(window))
    reason = reason or missing("aligned", given.aligned, blocks_of(window), steps_of(window))
    if kind == "scaled":
        reason = reason or _no_scale(given.size)
    return {"delta": _when(reason, lambda: contrast(given.base, given.aligned, window, given.size, kind))}


def _coherences(given: CompositeInput) -> dict[str, Part]:
    if given.coherence == "efficiency":
        found = {f"coherence_{side}": part for side, part in zip(SIDES, _efficiency_parts(given), strict=True)}
    else:
        found = {
            f"coherence_{side}": _coherence(given, side, model)
            for side, model in zip(SIDES, (given.base, given.aligned), strict=True)
        }
    return found | {"coherence": _difference(found["coherence_aligned"], found["coherence_base"])}


def _coherence(given: CompositeInput, side: str, model: Curves) -> Part:
    path, kind = path_of(given.window, model.n_layers), given.coherence
    reason = None
    if len(path) < POINTS_NEEDED[kind]:
        first, last = given.window
        reason = f"blocks {first} to {last} hold {len(path)} points of the path: {kind} needs {POINTS_NEEDED[kind]}"
    reason = reason or missing(side, model, path, path) or _no_scale(given.size)
    part = _when(reason, lambda: coherence(model, given.window, given.size, kind))
    return (
        part
        if reason or part.value is not None
        else Part(value=None, reason=f"the path of the {side} model stands still")
    )


def _concentrations(given: CompositeInput) -> dict[str, Part]:
    inside = range(given.window[0] - 1, given.window[1])
    if given.gradient == "transport_share":
        steps = range(1, given.base.n_layers)
        reason = _one_block(given.window)
        for side, model in zip(SIDES, (given.base, given.aligned), strict=True):
            reason = reason or missing(side, model, range(0), steps)
        part = _when(reason, lambda: transport_share(given.base, given.aligned, given.window))
        return {"concentration": _unless_still(part, "no step differs between the models")}
    if given.gradient == "weight_share":
        return {"concentration": _share(given.weight_share, inside, "weight_share", "identical weights", given)}
    found = {
        f"concentration_{side}": _share(
            norms, inside, f"{given.gradient} of the {side} model", "every norm is 0", given
        )
        for side, norms in zip(SIDES, given.norms, strict=True)
    }
    return found | {"concentration": _difference(found["concentration_aligned"], found["concentration_base"])}


def _share(
    norms: Float[np.ndarray, "L"] | None, inside: range, name: str, all_zero: str, given: CompositeInput
) -> Part:
    if norms is None:
        return Part(value=None, reason=given.no_gradient)
    lost = [block for block, norm in enumerate(norms, 1) if not math.isfinite(norm)]
    reason = f"no {name} at {_listed('block', lost)}" if lost else None
    return _unless_still(_when(reason, lambda: concentration(norms, inside)), all_zero)


def _efficiencies(given: CompositeInput) -> dict[str, Part]:
    base, aligned = _efficiency_parts(given)
    return {"efficiency_base": base, "efficiency_aligned": aligned, "efficiency": _difference(aligned, base)}


def _efficiency_parts(given: CompositeInput) -> tuple[Part, Part]:
    base, aligned = (_part(value, NO_EFFICIENCY if value is None else None) for value in given.efficiency)
    return base, aligned


def _score(components: list[Part], weights: tuple[float, float, float]) -> Part:
    reasons = [part.reason for part in components if part.reason]
    values = [np.array(part.value) for part in components if part.value is not None]
    return _when("; ".join(dict.fromkeys(reasons)) or None, lambda: combined(values, weights))


def _difference(aligned: Part, base: Part) -> Part:
    if aligned.value is None or base.value is None:
        return Part(value=None, reason=base.reason or aligned.reason)
    return _part(aligned.value - base.value, None)


def missing(side: str, model: Curves, blocks: range, steps: range) -> str | None:
    """Which of these blocks have no exponent, or steps no angle, in the words of a reason; None where none lacks."""
    for what, place, values, wanted in (
        ("exponent", "layer", model.alpha, blocks), ("angle", "step", model.angle, steps)
    ):  # fmt: skip
        lost = [i for i in wanted if not math.isfinite(values[i])]
        if lost:
            return f"the {side} model has no {what} at {_listed(place, lost)}"
    return None


def _listed(place: str, numbers: list[int]) -> str:
    """'layer 3', or 'layers 3, 4'."""
    return f"{place}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


def _one_block(window: Blocks) -> str | None:
    return None if window[0] < window[1] else f"block {window[0]} alone: no step inside the window"


def _no_scale(size: Scales) -> str | None:
    if all(math.isfinite(value) for value in size):
        return None
    return f"fewer than 2 {'angles' if math.isfinite(size[0]) else 'exponents'} in the base: no scale"


def _when(reason: str | None, evaluate: Callable[[], Float[np.ndarray, ""]]) -> Part:
    return Part(value=None, reason=reason) if reason else _part(float(evaluate()), None)


def _unless_still(part: Part, reason: str) -> Part:
    return part if part.value is not None or part.reason else Part(value=None, reason=reason)


def _part(value: float | None, reason: str | None) -> Part:
    return Part(value=finite(value), reason=reason)
