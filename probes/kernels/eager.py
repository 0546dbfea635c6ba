"""The torch backend of the lens kernels: tiles of tokens x vocabulary, one matrix product for all layers of a tile.

Held at any time: the logits of one tile (about `TILE_BYTES`) and eight slices of one stream. Never streams x tokens x
vocabulary, so that the memory does not grow with layers, tokens or vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .lens_state import LensReading, LensState, Pairs, finish, merge

SLOTS = 3  # streams whose exponentials are held at a time
TILE_BYTES = 8 * 2**20  # logits of one tile; with scratch about 12 MB
READ_AGAIN_ROWS = 64  # pairs of rows whose small KL is read again in float64, at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """One head over a stack of hidden rows: z = softcap tanh(scale (h W^T + bias) / softcap) / temperature."""

    hidden: Float[Tensor, "L N d"]
    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, "V"] | None
    softcap: float | int | None
    scale: float | int
    temperature: float | int

    @property
    def dtype(self) -> torch.dtype:
        """float32, or float64 where either side is: half-precision logits turn an angle of 1e-3 into 1e-2."""
        return torch.promote_types(torch.promote_types(self.hidden.dtype, self.weight.dtype), torch.float32)

    def write(self, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Logits of the columns start..stop of rows[r, d], already multiplied by `_gain`, into out[r, stop - start]."""
        weight = self.weight[start:stop].to(rows.dtype)  # only this tile is ever upcast
        if self.bias is None:
            torch.mm(rows, weight.T, out=out)
        else:
            torch.addmm(self.bias[start:stop].to(rows.dtype) * self._gain, rows, weight.T, out=out)
        if self.softcap is not None:
            out.tanh_().mul_(self.softcap / self.temperature)

    def rows(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """Hidden rows upcast, scale and temperature folded in: a pass over d instead of one over the vocabulary."""
        return hidden.to(dtype) * self._gain

    @property
    def _gain(self) -> float:
        return self.scale / (self.temperature if self.softcap is None else self.softcap)


def checked_readout(
    side: str,
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    softcap: float | int | None,
    scale: float | int,
    temperature: float | int,
) -> Readout:
    """One side, its arguments checked; `side` is the suffix that the message names."""
    if head.ndim != 2 or head.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"head{side} is [vocabulary, width] with the width of hidden{side}, "
            f"got {tuple(head.shape)} for hidden{side} {tuple(hidden.shape)}"
        )
    if bias is not None and bias.shape != (len(head),):
        raise ValueError(f"bias{side} has an entry a row of head{side}, [{len(head)}], got {tuple(bias.shape)}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap{side} is > 0 (None for no cap), got {softcap}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is > 0, got {temperature}")
    if not math.isfinite(scale):
        raise ValueError(f"scale{side} is finite, got {scale}")
    return Readout(hidden=hidden, weight=head, bias=bias, softcap=softcap, scale=scale, temperature=temperature)


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Autocast, TF32 and the bf16 products of oneDNN off inside, and as they were after."""
    backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
    matmuls = [backend.matmul for backend in backends if hasattr(backend, "matmul")]
    settings = [(matmul, matmul.fp32_precision) for matmul in matmuls if hasattr(matmul, "fp32_precision")]
    try:
        for matmul, _ in settings:
            matmul.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for matmul, before in settings:
            matmul.fp32_precision = before


def tile_state(logits: Float[Tensor, "S n v"], pairs: Pairs) -> LensState:
    """The state of one tile. Overwrites `logits`. Works a stream at a time, so that its slices stay in the cache."""
    n_streams, n, _ = logits.shape
    stream = logits.new_empty(3, n_streams, n)  # peak, mass, energy
    between = logits.new_empty(8, len(pairs), n)  # overlap, residual, forward 1..3, backward 1..3
    p, s = logits.new_empty(SLOTS, *logits.shape[1:]), logits.new_empty(SLOTS, *logits.shape[1:])
    difference, scratch = torch.empty_like(logits[0]), torch.empty_like(logits[0])
    held: list[int] = []  # streams whose s = exp((z - peak)/2) and p = s^2 a slot holds, the least recently used first
    slots: dict[int, int] = {}
    centred: set[int] = set()

    def load(k: int) -> int:
        if k in held:
            held.remove(k)
        else:
            slots[k] = slots.pop(held.pop(0)) if len(held) == SLOTS else len(held)
            z, slot = logits[k], slots[k]
            if k not in centred:
                peak = torch.amax(z, -1, out=stream[0, k])
                z.sub_(peak[:, None])  # from here on logits[k] is z - peak <= 0
            torch.mul(z, 0.5, out=s[slot]).exp_()
            torch.mul(s[slot], s[slot], out=p[slot])  # not exp(z): overlap and mass of equal rows agree to the bit
            if k not in centred:
                torch.sum(p[slot], -1, out=stream[1, k])
                torch.sum(torch.mul(p[slot], z, out=scratch), -1, out=stream[2, k])  # -inf: 0 * inf = NaN marks the row
                centred.add(k)
        held.append(k)
        return slots[k]

    # by the later stream: a chain of neighbours, with the pairs two apart, loads each stream once
    for row in sorted(range(len(pairs)), key=lambda row: sorted(pairs[row], reverse=True)):
        i, j = pairs[row]
        a, b = load(i), load(j)
        torch.sum(torch.mul(s[a], s[b], out=scratch), -1, out=between[0, row])
        ratio = between[0, row] / stream[1, i]  # mass >= 1: the column of the peak
        torch.addcmul(s[b], s[a], ratio[:, None], value=-1, out=scratch)
        torch.sum(scratch.square_(), -1, out=between[1, row])
        torch.sub(logits[j], logits[i], out=difference)  # x = z_j - z_i - pilot with pilot = peak_j - peak_i
        for offset, weight in ((2, p[a]), (5, p[b])):
            torch.mul(weight, difference, out=scratch)
            torch.sum(scratch, -1, out=between[offset, row])
            torch.sum(scratch.mul_(difference), -1, out=between[offset + 1, row])
            torch.sum(scratch.mul_(difference), -1, out=between[offset + 2, row])

    peak, mass, energy = stream.double()
    sums = between.double()
    return LensState(
        peak=peak,
        mass=mass,
        energy=energy,
        overlap=sums[0],
        residual=sums[1],
        pilot=peak[[j for _, j in pairs]] - peak[[i for i, _ in pairs]],
        forward=sums[2:5],
        backward=sums[5:8],
    )


def read(
    readouts: list[Readout],
    pairs: Pairs,
    *,
    vocab: int,
    token_block: int,
    vocab_tile: int | None,
    targets: Int[Tensor, "N"] | None = None,
    divergences: bool = True,
) -> tuple[LensReading, Float[Tensor, "S N"] | None]:
    """All streams of all readouts, one after the other, compared by `pairs`; and the logits z of the targets.

    divergences False: small, skewed KLs are not read again, and no KL of the reading is to be used.
    """
    n_tokens = readouts[0].hidden.shape[1]
    target_logits = None
    if targets is not None:
        n_streams = sum(len(readout.hidden) for readout in readouts)
        target_logits = torch.full((n_streams, n_tokens), torch.nan, dtype=torch.float64, device=targets.device)
    parts = []
    with torch.no_grad(), exact_products(readouts[0].hidden.device):
        for start in range(0, max(n_tokens, 1), token_block):  # one empty block where there is no token
            block = slice(start, min(start + token_block, n_tokens))
            part = _read_block(readouts, pairs, block, vocab, vocab_tile, targets, target_logits)
            parts.append(_read_again(readouts, pairs, block, vocab, part) if divergences else part)
    fields = LensReading.__dataclass_fields__
    return LensReading(**{name: torch.cat([getattr(p, name) for p in parts], dim=-1) for name in fields}), target_logits


def _read_block(
    readouts: list[Readout],
    pairs: Pairs,
    block: slice,
    vocab: int,
    vocab_tile: int | None,
    targets: Tensor | None,
    target_logits: Tensor | None,
) -> LensReading:
    """One block of tokens through the whole vocabulary."""
    dtype = readouts[0].dtype
    for readout in readouts:
        dtype = torch.promote_types(dtype, readout.dtype)
    rows = [readout.rows(readout.hidden[:, block].flatten(0, 1), dtype) for readout in readouts]
    n_layers = [len(readout.hidden) for readout in readouts]
    n = block.stop - block.start
    tile = vocab_tile or _tile_columns(sum(n_layers) * n, dtype)

    state = None
    buffer = rows[0].new_empty(sum(n_layers) * n * min(tile, vocab))
    for start in range(0, vocab, tile):
        stop = min(start + tile, vocab)
        logits = buffer[: sum(n_layers) * n * (stop - start)].view(sum(n_layers), n, stop - start)
        first = 0
        for readout, hidden, layers in zip(readouts, rows, n_layers, strict=True):
            readout.write(hidden, start, stop, logits[first : first + layers].view(-1, stop - start))
            first += layers
        if targets is not None and target_logits is not None:
            column = targets[block] - start
            inside = ((column >= 0) & (column < stop - start)).nonzero()[:, 0]
            target_logits[:, block][:, inside] = logits[:, inside, column[inside]].double()
        fresh = tile_state(logits, pairs)
        state = fresh if state is None else merge(state, fresh, pairs)
    assert state is not None  # vocab >= 2, so there is a tile
    return finish(state, pairs)


def _tile_columns(rows: int, dtype: torch.dtype) -> int:
    """As many columns as `TILE_BYTES` holds, a multiple of 64."""
    return max(64, TILE_BYTES // (max(rows, 1) * dtype.itemsize) // 64 * 64)


def _read_again(readouts: list[Readout], pairs: Pairs, block: slice, vocab: int, part: LensReading) -> LensReading:
    """Small, skewed KLs once more, with float64 sums over the float32 logits: their difference form has no floor."""
    found = part.uncertain.nonzero()
    if not len(found):
        return part
    forward, backward = part.kl_forward.clone(), part.kl_backward.clone()
    places = [(readout, layer) for readout in readouts for layer in range(len(readout.hidden))]
    for row, (i, j) in enumerate(pairs):
        tokens = found[found[:, 0] == row, 1]
        for some in tokens.split(READ_AGAIN_ROWS):
            sides = [readout.hidden[layer, block][some] for readout, layer in (places[i], places[j])]
            forward[row, some], backward[row, some] = _exact_divergences(
                places[i][0], places[j][0], sides[0], sides[1], vocab
            )
    return replace(part, kl_forward=forward, kl_backward=backward)


def _exact_divergences(
    left: Readout, right: Readout, left_hidden: Tensor, right_hidden: Tensor, vocab: int
) -> tuple[Tensor, Tensor]:
    """KL(left : right) and KL(right : left), nats, [n]; two passes over the vocabulary, sums in float64."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    sides = [(left, left.rows(left_hidden, dtype)), (right, right.rows(right_hidden, dtype))]
    n = len(left_hidden)
    tile = _tile_columns(2 * n, torch.float64)
    tiles = [(start, min(start + tile, vocab)) for start in range(0, vocab, tile)]

    def logits(start: int, stop: int) -> Tensor:
        out = sides[0][1].new_empty(2, n, stop - start)
        for k, (readout, rows) in enumerate(sides):
            readout.write(rows, start, stop, out[k])
        return out.double()

    normalizer = torch.stack([logits(*bounds).logsumexp(-1) for bounds in tiles]).logsumexp(0)  # [2, n]
    forward, backward = (torch.zeros(n, dtype=torch.float64, device=left_hidden.device) for _ in range(2))
    for bounds in tiles:
        log_p, log_q = logits(*bounds) - normalizer[:, :, None]
        # p (e^x - 1 - x) with x = log q - log p sums to KL(p : q), because p e^x = q sums to 1; no term is negative
        x = log_q - log_p
        forward += (log_q.exp() - log_p.exp() * (1 + x)).sum(-1)
        backward += (log_p.exp() - log_q.exp() * (1 - x)).sum(-1)
    return forward, backward
