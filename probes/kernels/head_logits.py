"""The logits of a head at some positions at a time: what a pass over two models' states reads, never [N, V]."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .eager import Readout, checked_readout, exact_products


@runtime_checkable
class Projection(Protocol):
    """What a pass needs of a `probes.subject.Head`: everything but its norm."""

    @property
    def weight(self) -> Float[Tensor, "V d"]: ...

    @property
    def bias(self) -> Float[Tensor, "V"] | None: ...

    @property
    def softcap(self) -> float | None: ...

    @property
    def scale(self) -> float: ...

    @property
    def vocab(self) -> int: ...  # rows from here on are padding


class HeadLogits:
    """Logits of the first `vocab` entries at a block of positions, in one buffer that every block overwrites."""

    def __init__(self, readout: Readout, vocab: int, block: int, chunk: int) -> None:
        self._readout, self._vocab, self._chunk = readout, vocab, chunk
        self._buffer = torch.empty(block, vocab, dtype=readout.dtype, device=readout.weight.device)

    @torch.no_grad()
    def read(self, start: int, stop: int) -> Float[Tensor, "n V"]:
        """Positions start..stop; `chunk` rows of the head, upcast where they are half precision, at a time."""
        out = self._buffer[: stop - start]
        with exact_products(out.device):
            rows = self._readout.rows(self._readout.hidden[0, start:stop].to(out.device), out.dtype)
            for first in range(0, self._vocab, self._chunk):
                last = min(first + self._chunk, self._vocab)
                self._readout.write(rows, first, last, out[:, first:last])
        return out


def projected(
    side: str, hidden: Float[Tensor, "N d"], head: Projection | Float[Tensor, "V width"]
) -> tuple[Readout, int]:
    """One side's readout, checked (`side` is the suffix that a message names), and the number of its real tokens."""
    if isinstance(head, Tensor):
        return checked_readout(side, hidden[None], head, None, None, 1.0, 1.0), len(head)
    return checked_readout(side, hidden[None], head.weight, head.bias, head.softcap, head.scale, 1.0), head.vocab
