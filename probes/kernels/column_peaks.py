"""Where in a row of the vocabulary are its few largest entries? Without sorting or comparing the whole row.

A row of V entries is laid out as 8 lines of V // 8 columns (and one last column for the rest). The largest entry of a
column takes one fast pass; after that only the columns that can hold what is wanted are looked at.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LINES = 8  # fewer: more columns to search; more: more entries to look at in each


def column_peaks(rows: Float[Tensor, "n V"]) -> Float[Tensor, "n columns"]:
    """The largest entry of every column."""
    n, vocab = rows.shape
    width = vocab // LINES
    parts = []
    if width:
        parts.append(rows[:, : LINES * width].view(n, LINES, width).amax(1))
    if LINES * width < vocab:
        parts.append(rows[:, LINES * width :].amax(1, keepdim=True))
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def column_entries(
    columns: Int[Tensor, "*batch"], vocab: int
) -> tuple[Int[Tensor, "*batch 8"], Bool[Tensor, "*batch 8"]]:
    """Where the entries of these columns stand in the row, and which of the 8 are there (the last column is short)."""
    width = vocab // LINES
    lines = torch.arange(LINES, device=columns.device)
    last = (columns == width)[..., None]
    places = torch.where(last, LINES * width + lines, lines * width + columns[..., None])
    there = places < vocab
    return places.clamp(max=vocab - 1), there


def largest(
    entries: Callable[[Tensor], Tensor], peaks: Float[Tensor, "n columns"], vocab: int, k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Values and places of the k largest entries of each row, largest first; k <= vocab.

    `entries` gives the values at places [n, m] of the rows whose column peaks these are.
    """
    n = len(peaks)
    if k < peaks.shape[1]:
        # every entry above the k-th largest peak stands in one of the k columns that are taken
        places, there = (part.flatten(1) for part in column_entries(peaks.topk(k, dim=-1).indices, vocab))
        values = entries(places).masked_fill(~there, -torch.inf)
    else:
        places = torch.arange(vocab, device=peaks.device).expand(n, vocab)
        values = entries(places)
    values, chosen = values.topk(k, dim=-1)
    return values, places.gather(1, chosen)
