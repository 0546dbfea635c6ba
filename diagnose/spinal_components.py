"""The parts of SPINAL's composite: contrast, coherence and concentration over a window of blocks.

Reconstructed: the formulas and weights of arXiv 2601.06238 could not be read, so nothing here is comparable with the
paper. Every function takes one curve or a stack of them (delete-group curves): the jackknife runs the same formula.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FLOOR = 1e-6  # of a scale
STILL = 1e-9  # in scales: a path, or one increment, this short has no direction
DELTAS = ("scaled", "raw", "sum", "single_model")
COHERENCES = ("curvature", "straightness", "cosine", "efficiency")
GRADIENTS = ("weight_share", "gradient", "residual", "transport_share", "lens_local")
POINTS_NEEDED = {"curvature": 3, "straightness": 2, "cosine": 3}

Blocks = tuple[int, int]  # first and last block, 1..L
Scales = tuple[float, float]  # of the exponent and of the angle; NaN where there is none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """A model over depth. Exponent of layers 0..L and mean angle of steps 0..L-1 (l to l + 1), radians; NaN = none.

    Layer 0 (embeddings) and step 0 are carried and enter nothing. Raises ValueError unless there is one step less than
    layers.
    """

    alpha: Float[np.ndarray, "*batch layers"]
    angle: Float[np.ndarray, "*batch steps"]

    def __post_init__(self) -> None:
        if self.alpha.shape[:-1] != self.angle.shape[:-1] or self.alpha.shape[-1] != self.angle.shape[-1] + 1:
            raise ValueError(
                f"exponents of shape {self.alpha.shape}, angles {self.angle.shape}: expected [L + 1] and [L], "
                "or a stack of these"
            )

    @property
    def n_layers(self) -> int:
        """L, the number of blocks."""
        return self.angle.shape[-1]


def scale(values: Float[np.ndarray, "k"]) -> float:
    """1.4826 median |x - median|; if that is 0 the sample standard deviation; at least 1e-6. Of the finite values.

    NaN with fewer than two of them.
    """
    some = values[np.isfinite(values)]
    if len(some) < 2:
        return math.nan
    spread = 1.4826 * float(np.median(np.abs(some - np.median(some))))
    if spread <= 1e-12 * float(np.abs(some).max()):  # 0 up to rounding
        spread = float(some.std(ddof=1))
    return max(spread, FLOOR)


def scales(base: Curves) -> Scales:
    """s_a, s_L: the scales of the base's exponents (blocks 1..L) and angles (steps 1..L-1)."""
    return scale(base.alpha[1:]), scale(base.angle[1:])


def blocks_of(window: Blocks) -> range:
    return range(window[0], window[1] + 1)


def steps_of(window: Blocks) -> range:
    """Steps with both ends in the window: first..last-1."""
    return range(window[0], window[1])


def path_of(window: Blocks, n_layers: int) -> range:
    """Blocks of the window where the curve g has a point, exponent of l and step l to l + 1: first..min(last, L-1)."""
    return range(window[0], min(window[1], n_layers - 1) + 1)


def contrast(
    base: Curves, aligned: Curves, window: Blocks, size: Scales, kind: str = "scaled"
) -> Float[np.ndarray, "*batch"]:
    """Delta = mean_W(aA - aB)/s_a - mean_W(LA - LB)/s_L; > 0: more contraction, less transport. [reconstructed]

    Exponents over the blocks of the window, angles over its steps (both ends inside). kind: "raw" has no scales; "sum"
    no scales and sums for means; "single_model" is sum_W alpha - sum_W L of the aligned model alone, so that "sum" is
    the difference of two such numbers.
    """
    blocks, steps = list(blocks_of(window)), list(steps_of(window))
    if kind == "single_model":
        return np.asarray(aligned.alpha[..., blocks].sum(-1) - aligned.angle[..., steps].sum(-1))
    d_alpha = (aligned.alpha - base.alpha)[..., blocks]
    d_angle = (aligned.angle - base.angle)[..., steps]
    if kind == "sum":
        return np.asarray(d_alpha.sum(-1) - d_angle.sum(-1))
    s_alpha, s_angle = size if kind == "scaled" else (1.0, 1.0)
    return np.asarray(d_alpha.mean(-1) / s_alpha - d_angle.mean(-1) / s_angle)


def coherence(model: Curves, window: Blocks, size: Scales, kind: str = "curvature") -> Float[np.ndarray, "*batch"]:
    """How smoothly g_l = (alpha_l/s_a, L_l/s_L) runs through the window. [reconstructed]

    curvature: mean 1/(1 + kappa_l), kappa_l = |g_(l+1) - 2 g_l + g_(l-1)|, over the inner points of the path (22..28
        for blocks 21..30 of 30, as block L has no step); in (0, 1], 1 = straight at constant speed.
    straightness: end-to-end distance over path length of g; in [0, 1]. cosine: mean cosine of successive increments; in
        [-1, 1]. NaN where the path, or an increment, has no length.
    Noise of single layers bends the curve, so few prompts lower all three in both models.
    """
    points = list(path_of(window, model.n_layers))
    g = np.stack([model.alpha[..., points] / size[0], model.angle[..., points] / size[1]], -1)  # [*batch, points, 2]
    increments = np.diff(g, axis=-2)
    if kind == "curvature":
        kappa = np.linalg.norm(np.diff(increments, axis=-2), axis=-1)
        return np.asarray((1 / (1 + kappa)).mean(-1))
    lengths = np.linalg.norm(increments, axis=-1)
    if kind == "straightness":
        path = lengths.sum(-1)
        ends = np.linalg.norm(g[..., -1, :] - g[..., 0, :], axis=-1)
        return np.asarray(np.divide(ends, path, out=np.full(path.shape, np.nan), where=path > STILL))
    product = lengths[..., 1:] * lengths[..., :-1]
    dots = (increments[..., 1:, :] * increments[..., :-1, :]).sum(-1)
    moves = np.minimum(lengths[..., 1:], lengths[..., :-1]) > STILL
    return np.asarray(np.divide(dots, product, out=np.full(product.shape, np.nan), where=moves).mean(-1))


def concentration(norms: Float[np.ndarray, "*batch k"], inside: range) -> Float[np.ndarray, "*batch"]:
    """G = sum_W n / sum n - |W|/k, with `inside` the places of W among k norms; 0 = uniform. [reconstructed]

    From -|W|/k to 1 - |W|/k. NaN where all norms are 0. Raises ValueError for a norm below 0.
    """
    if (norms < 0).any():
        raise ValueError(f"norms are >= 0, got {np.nanmin(norms):.3g}")
    total = norms.sum(-1)
    share = np.divide(norms[..., list(inside)].sum(-1), total, out=np.full(total.shape, np.nan), where=total > 0)
    return np.asarray(share - len(inside) / norms.shape[-1])


def transport_share(base: Curves, aligned: Curves, window: Blocks) -> Float[np.ndarray, "*batch"]:
    """`concentration` of |dL_l| over the steps 1..L-1, in the window those with both ends inside; one number a pair."""
    steps = steps_of(window)
    return concentration(np.abs(aligned.angle - base.angle)[..., 1:], range(steps.start - 1, steps.stop - 1))


def combined(
    components: Sequence[Float[np.ndarray, "*batch"]], weights: Sequence[float]
) -> Float[np.ndarray, "*batch"]:
    """The score: the weighted sum of Delta, S_coh and G. [reconstructed]"""
    return np.asarray(sum(weight * part for weight, part in zip(weights, components, strict=True)))
