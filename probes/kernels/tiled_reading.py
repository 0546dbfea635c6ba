"""All streams through the whole vocabulary: tiles of tokens x vocabulary, one matrix product for all layers of a tile.

Held at any time: the logits of one tile a thread (`TILE_BYTES` together) and what a backend needs beside them. Never
streams x tokens x vocabulary, so that the memory does not grow with layers, tokens or vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .eager import Readout, exact_products
from .lens_state import LensReading, LensState, Pairs, concatenated, finish, merge
from .sharing import side_by_side, workers

TILE_BYTES = 8 * 2**20  # logits of the tiles of all threads; with scratch about 12 MB
SHARE = 8  # tokens of a thread, at least: with fewer its products are bound by reading the head
MERGED_TILES = 16  # at a time: a few hundred numbers a token each
READ_AGAIN_ROWS = 64  # pairs of rows whose small KL is read again in float64, at a time

TileState = Callable[[Tensor, Pairs, int], LensState]  # logits [S, n, v], pairs, sides whose moments are taken


def read(
    readouts: list[Readout],
    pairs: Pairs,
    *,
    tiles: Callable[[], TileState],
    threaded: bool,
    vocab: int,
    token_block: int,
    vocab_tile: int | None,
    targets: Int[Tensor, "N"] | None = None,
    moments: int = 2,
) -> tuple[LensReading, Float[Tensor, "S N"] | None]:
    """All streams of all readouts, one after the other, compared by `pairs`; and the logits z of the targets.

    tiles: makes what sums up the tiles of a block, by a backend. moments: of the log-ratios, under 2 sides of a pair
    (KLs, of which small, skewed ones are read again), 1 (no KL; small angles come of them) or 0 (small angles are
    rough). threaded: blocks of tokens side by side on torch's threads, for sums that do not hold up Python.
    """
    n_tokens = readouts[0].hidden.shape[1]
    target_logits = None
    if targets is not None:
        n_streams = sum(len(readout.hidden) for readout in readouts)
        target_logits = torch.full((n_streams, n_tokens), torch.nan, dtype=torch.float64, device=targets.device)
    device = readouts[0].hidden.device
    at_once = workers(max(1, n_tokens // SHARE)) if threaded else 1
    size = min(token_block, max(1, -(-n_tokens // at_once)))

    @torch.no_grad()
    def block_reading(block: slice) -> LensReading:
        state_of, limit = tiles(), TILE_BYTES // at_once
        part = _read_block(readouts, pairs, state_of, block, vocab, vocab_tile, limit, targets, target_logits, moments)
        return _read_again(readouts, pairs, block, vocab, part) if moments == 2 else part

    starts = range(0, max(n_tokens, 1), size)  # one empty block where there is no token
    blocks = [slice(start, min(start + size, n_tokens)) for start in starts]
    with exact_products(device):
        parts = side_by_side(block_reading, blocks) if at_once > 1 else [block_reading(block) for block in blocks]
    return concatenated(parts), target_logits


def _read_block(
    readouts: list[Readout],
    pairs: Pairs,
    state_of: TileState,
    block: slice,
    vocab: int,
    vocab_tile: int | None,
    tile_bytes: int,
    targets: Tensor | None,
    target_logits: Tensor | None,
    moments: int,
) -> LensReading:
    """One block of tokens through the whole vocabulary."""
    dtype = readouts[0].dtype
    for readout in readouts:
        dtype = torch.promote_types(dtype, readout.dtype)
    rows = [readout.rows(readout.hidden[:, block].flatten(0, 1), dtype) for readout in readouts]
    n_layers = [len(readout.hidden) for readout in readouts]
    n = block.stop - block.start
    tile = vocab_tile or _tile_columns(sum(n_layers) * n, dtype, tile_bytes)

    states: list[LensState] = []
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
        states.append(state_of(logits, pairs, moments))
        if len(states) == MERGED_TILES:
            states = [merge(states, pairs)]
    return finish(merge(states, pairs), pairs)


def _tile_columns(rows: int, dtype: torch.dtype, tile_bytes: int = TILE_BYTES) -> int:
    """As many columns as these bytes hold, a multiple of 64."""
    return max(64, tile_bytes // (max(rows, 1) * dtype.itemsize) // 64 * 64)


def _read_again(readouts: list[Readout], pairs: Pairs, block: slice, vocab: int, part: LensReading) -> LensReading:
    """Small, skewed KLs once more, with float64 sums over the float32 logits: their difference form has no floor."""
    assert part.uncertain is not None  # `read` comes here where KLs are wanted
    assert part.kl_forward is not None
    assert part.kl_backward is not None
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
