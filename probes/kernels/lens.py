"""How far apart are the next-token distributions of neighbouring layers, or of two models at one place?

The read-outs are never held: one pass over tiles of the vocabulary keeps a few sums a layer and token (lens_state.py).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backends import chosen, tiles
from .eager import Readout, checked_readout
from .lens_state import SMALL_ANGLE, LensReading, Pairs
from .tiled_reading import read


@dataclass(frozen=True, slots=True, kw_only=True)
class LensTransport:
    """Read-outs of L layers at N tokens, and the steps between neighbouring layers; float64.

    A row whose logits hold a NaN or an infinity is NaN in every field it takes part in, and counted.
    """

    angle: Float[Tensor, "L_minus_1 N"]  # 2 arccos sum sqrt(p q): Fisher-Rao distance, radians in [0, pi]
    entropy: Float[Tensor, "L N"]  # nats, in [0, log vocab]
    log_normalizer: Float[Tensor, "L N"]  # log sum exp of the logits, nats
    kl_to_next: Float[Tensor, "L_minus_1 N"] | None  # KL(p_l : p_l+1), nats; None with divergences=False
    kl_from_next: Float[Tensor, "L_minus_1 N"] | None  # KL(p_l+1 : p_l), nats
    target_log_prob: Float[Tensor, "L N"] | None  # nats; NaN where the target is -1; None without targets
    overlap: Float[Tensor, "L_minus_1 N"]  # Bhattacharyya coefficient sum sqrt(p q) in [0, 1]: a check, cos(angle/2)
    pair_angle: Float[Tensor, "P N"] | None  # angles of the layer pairs that were asked for, radians; None without
    n_nonfinite: int  # rows (layer, token) set to NaN
    backend: str
    precision: str  # dtype of logits and exponentials; sums over tiles are float64


@dataclass(frozen=True, slots=True, kw_only=True)
class LensDistance:
    """Two read-outs of the same places compared; float64. Shapes: the leading shape of the hidden states."""

    angle: Float[Tensor, "*batch"]  # radians in [0, pi]
    kl_ab: Float[Tensor, "*batch"] | None  # KL(p_a : p_b), nats; None with divergences=False
    kl_ba: Float[Tensor, "*batch"] | None  # KL(p_b : p_a), nats
    entropy_a: Float[Tensor, "*batch"]  # nats
    entropy_b: Float[Tensor, "*batch"]
    n_nonfinite: int  # rows of either side with a NaN or infinite logit
    backend: str
    precision: str


def lens_transport(
    hidden: Float[Tensor, "L N d"],
    head: Float[Tensor, "V width"],
    *,
    bias: Float[Tensor, "rows"] | None = None,
    softcap: float | int | None = None,
    scale: float | int = 1.0,
    temperature: float | int = 1.0,
    targets: Int[Tensor, "tokens"] | None = None,
    vocab: int | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    divergences: bool = True,
    backend: str = "auto",
    token_block: int = 64,
    vocab_tile: int | None = None,
) -> LensTransport:
    """Fisher-Rao steps, entropies and KLs of the logit lens over layers, without holding any distribution.

    z = softcap tanh(scale (h W^T + bias) / softcap) / temperature (no tanh where softcap is None), p = softmax over the
    first `vocab` entries (default all V); angle = 2 atan2(sqrt(R Z), P), the tangent form of 2 arccos sum sqrt(p q),
    which keeps angles that arccos loses (under 3e-4 rad in float32). `hidden` has already passed the final norm.
    Half-precision inputs are upcast a tile at a time; logits are float32 (float64 where an input is). `targets` are
    token ids, -1 for none. `vocab_tile` None: tiles of 8 MB, so that memory does not grow with L, N or V.
    pairs: more layers to compare, (i, j) of 0..L-1; their angles come as `pair_angle`, steps are not computed twice.
    divergences: False leaves the KLs out, of which the small ones are read a second time; all else is the same.
    backend: "eager" (torch), "numba" (compiled sums, the same to 5e-6: float32 on the CPU, alignscope[numba]), "auto".

    ValueError: shapes that do not fit, L < 2, a pair outside the layers, vocab outside [2, V], softcap or
    temperature <= 0, a target outside [-1, vocab), an unknown backend. N = 0 gives empty tensors.
    Source: the angle is SPINAL's L_l (arXiv 2601.06238).
    """
    if hidden.ndim != 3 or hidden.shape[0] < 2:
        raise ValueError(f"hidden is [layers, tokens, width] with at least 2 layers, got {tuple(hidden.shape)}")
    n_layers, n_tokens, _ = hidden.shape
    readout = checked_readout("", hidden, head, bias, softcap, scale, temperature)
    vocab = _vocab(vocab, len(head))
    _check_tiles(token_block, vocab_tile)
    backend = chosen(backend, readout.dtype, hidden.device)
    if targets is not None:
        if targets.shape != (n_tokens,):
            raise ValueError(f"targets is one id a token, [{n_tokens}], got {tuple(targets.shape)}")
        outside = ((targets < -1) | (targets >= vocab)).nonzero()
        if len(outside):
            token = int(outside[0])
            raise ValueError(f"target {int(targets[token])} of token {token} is outside [-1, {vocab}); -1 means none")

    steps = [(layer, layer + 1) for layer in range(n_layers - 1)]
    asked = [_layer_pair(pair, n_layers) for pair in pairs or ()]
    place = {pair: i for i, pair in enumerate(dict.fromkeys([*steps, *(pair for pair in asked if pair[0] != pair[1])]))}
    by_backend = functools.partial(
        read,
        tiles=tiles(backend),
        threaded=backend == "numba",
        vocab=vocab,
        token_block=token_block,
        vocab_tile=vocab_tile,
    )
    reading, target_logits = by_backend([readout], list(place), targets=targets, moments=2 if divergences else 0)
    if not divergences:
        reading = replace(reading, angle=_with_small_angles(reading.angle, readout, list(place), by_backend))
    n_steps = len(steps)
    return LensTransport(
        angle=reading.angle[:n_steps],
        entropy=reading.entropy,
        log_normalizer=reading.log_normalizer,
        kl_to_next=None if reading.kl_forward is None else reading.kl_forward[:n_steps],
        kl_from_next=None if reading.kl_backward is None else reading.kl_backward[:n_steps],
        target_log_prob=None if target_logits is None else target_logits - reading.log_normalizer,
        overlap=reading.overlap[:n_steps],
        pair_angle=None if pairs is None else _asked_angles(reading, asked, place),
        n_nonfinite=int(reading.log_normalizer.isnan().sum()),
        backend=backend,
        precision=str(readout.dtype).removeprefix("torch."),
    )


def lens_distance(
    hidden_a: Float[Tensor, "*batch d_a"],
    head_a: Float[Tensor, "V_a width_a"],
    hidden_b: Float[Tensor, "*places d_b"],
    head_b: Float[Tensor, "V_b width_b"],
    *,
    bias_a: Float[Tensor, "rows_a"] | None = None,
    bias_b: Float[Tensor, "rows_b"] | None = None,
    softcap_a: float | int | None = None,
    softcap_b: float | int | None = None,
    scale_a: float | int = 1.0,
    scale_b: float | int = 1.0,
    temperature: float | int = 1.0,
    vocab: int | None = None,
    divergences: bool = True,
    backend: str = "auto",
    token_block: int = 64,
    vocab_tile: int | None = None,
) -> LensDistance:
    """How far the read-out of model b is from that of model a, place by place: hidden [N, d] or [L, N, d].

    Formulas, precision and errors as in `lens_transport`; the widths of the models may differ, the vocabulary may not:
    where the heads have different numbers of rows, `vocab` says how many entries are shared (ids 0..vocab-1).
    """
    leading = hidden_a.shape[:-1]
    if hidden_b.shape[:-1] != leading or len(leading) not in (1, 2):
        raise ValueError(
            "hidden_a and hidden_b are [tokens, width] or [layers, tokens, width] over the same places, "
            f"got {tuple(hidden_a.shape)} and {tuple(hidden_b.shape)}"
        )
    if vocab is None and len(head_a) != len(head_b):
        raise ValueError(f"the heads have {len(head_a)} and {len(head_b)} rows: pass vocab, the number of shared ids")
    shape = leading if len(leading) == 2 else (1, *leading)
    rows_a = hidden_a.reshape(*shape, hidden_a.shape[-1])
    a = checked_readout("_a", rows_a, head_a, bias_a, softcap_a, scale_a, temperature)
    rows_b = hidden_b.reshape(*shape, hidden_b.shape[-1])
    b = checked_readout("_b", rows_b, head_b, bias_b, softcap_b, scale_b, temperature)
    vocab = _vocab(vocab, min(len(head_a), len(head_b)))
    _check_tiles(token_block, vocab_tile)
    dtype = torch.promote_types(a.dtype, b.dtype)
    backend = chosen(backend, dtype, hidden_a.device)

    n_layers = shape[0]
    if n_layers == 0:
        raise ValueError(f"hidden has no layer: {tuple(hidden_a.shape)}")
    pairs = [(layer, n_layers + layer) for layer in range(n_layers)]
    reading, _ = read(
        [a, b],
        pairs,
        tiles=tiles(backend),
        threaded=backend == "numba",
        vocab=vocab,
        token_block=token_block,
        vocab_tile=vocab_tile,
        moments=2 if divergences else 1,
    )
    return LensDistance(
        angle=reading.angle.reshape(leading),
        kl_ab=None if reading.kl_forward is None else reading.kl_forward.reshape(leading),
        kl_ba=None if reading.kl_backward is None else reading.kl_backward.reshape(leading),
        entropy_a=reading.entropy[:n_layers].reshape(leading),
        entropy_b=reading.entropy[n_layers:].reshape(leading),
        n_nonfinite=int(reading.log_normalizer.isnan().sum()),
        backend=backend,
        precision=str(dtype).removeprefix("torch."),
    )


def _with_small_angles(
    angle: Float[Tensor, "P N"], readout: Readout, pairs: Pairs, by_backend: Callable[..., tuple[LensReading, Any]]
) -> Float[Tensor, "P N"]:
    """Angles that were read without moments, the small ones read again with them: few, between layers of one model."""
    found = (angle < SMALL_ANGLE).nonzero()
    if not len(found):
        return angle
    layers = torch.tensor(pairs, device=found.device)[found[:, 0]].T  # [2, found]
    both = replace(readout, hidden=readout.hidden[layers, found[:, 1]])
    again, _ = by_backend([both], [(0, 1)], moments=1)
    return angle.index_put((found[:, 0], found[:, 1]), again.angle[0])


def _layer_pair(pair: tuple[int, int], n_layers: int) -> tuple[int, int]:
    """A pair of layers in ascending order: the angle is symmetric."""
    i, j = (int(layer) for layer in pair)
    if not (0 <= i < n_layers and 0 <= j < n_layers):
        raise ValueError(f"pair ({i}, {j}): layers 0 to {n_layers - 1} are there")
    return min(i, j), max(i, j)


def _asked_angles(
    reading: LensReading, asked: Sequence[tuple[int, int]], place: Mapping[tuple[int, int], int]
) -> Float[Tensor, "P N"]:
    """Angles in the order asked; a layer and itself is 0, NaN where its read-out is not finite."""
    own = torch.where(reading.log_normalizer.isnan(), torch.nan, 0.0).to(reading.angle)
    rows = [reading.angle[place[pair]] if pair in place else own[pair[0]] for pair in asked]
    return torch.stack(rows) if rows else reading.angle[:0]


def _vocab(vocab: int | None, rows: int) -> int:
    vocab = rows if vocab is None else vocab
    if not 2 <= vocab <= rows:
        raise ValueError(f"vocab is the number of real vocabulary entries, 2 to {rows} (rows of the head), got {vocab}")
    return vocab


def _check_tiles(token_block: int, vocab_tile: int | None) -> None:
    if token_block < 1 or (vocab_tile is not None and vocab_tile < 1):
        raise ValueError(f"token_block and vocab_tile are >= 1, got {token_block} and {vocab_tile}")
