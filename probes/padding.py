"""Rows of ids of different lengths as one batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def padded(
    rows: Sequence[Sequence[int]], pad: int, *, extra: int = 0, left: bool = False
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Ids and mask of rows brought to one length, `extra` more than the longest."""
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return ids, mask
