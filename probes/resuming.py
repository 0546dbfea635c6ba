"""Run a model from the output of one of its blocks on: the blocks up to there give what they gave before.

The model's own forward still runs, so that masks, position ids and rotary tables reach the blocks above as ever; only
the forward of the lower blocks is taken out. Whether a model allows that (blocks may share keys and values across the
cut) is for the caller to try: see `resumes`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .components import with_first_tensor
from .token_positions import unedited


class LowerBlocks:
    """The first `count` blocks of a subject of transformers, and in what form each hands the residual stream on."""

    def __init__(self, subject: Any, count: int) -> None:
        self.subject = subject
        self.blocks: list[nn.Module] = list(subject.anatomy.blocks[:count])
        self._forms = self._handed_on()

    @property
    def problem(self) -> str | None:
        """Why they cannot be left out; None where nothing is known against it."""
        if not self.blocks:
            return "no block lies below the edit"
        if any(_tensors(form) != 1 for form in self._forms):
            return "blocks hand on more than the residual stream"
        return None

    @contextmanager
    def giving(self, h: Float[Tensor, "B T d"]) -> Iterator[None]:
        """Inside, all of these blocks give h, whatever goes in; hooks on them still fire. Gone afterwards."""
        before = [block.__dict__.get("forward") for block in self.blocks]
        try:
            for block, form in zip(self.blocks, self._forms, strict=True):
                block.forward = _returning(with_first_tensor(form, h))
            yield
        finally:
            for block, own in zip(self.blocks, before, strict=True):
                if own is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.forward = own

    def _handed_on(self) -> list[Any]:
        """The output of each block on a short row."""
        found: list[Any] = []
        handles = [
            block.register_forward_hook(lambda module, args, output: found.append(output)) for block in self.blocks
        ]
        ids = torch.zeros(1, 2, dtype=torch.long)
        try:
            with torch.no_grad(), unedited():
                self.subject.logits(ids, torch.ones_like(ids), positions=ids[:, :1])
        finally:
            for handle in handles:
                handle.remove()
        return found


def inputs_of(
    subject: Any, layer: int, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]
) -> list[Float[Tensor, "_ d"]]:
    """The residual at trace index `layer`, without the padding on the right, a tensor a row, in the model's dtype."""
    h = subject.trace(ids, mask, reduce=lambda layer, h, mask: h.clone(), layers=[layer])[layer]
    return [row[:n].clone() for row, n in zip(h, mask.sum(-1).tolist(), strict=True)]


def _returning(value: Any) -> Any:
    return lambda *args, **kwargs: value


def _tensors(value: Any) -> int:
    if isinstance(value, Tensor):
        return 1
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return sum(map(_tensors, parts))


def stacked(rows: list[Float[Tensor, "_ d"]]) -> Float[Tensor, "B T d"]:
    """Rows of states padded on the right with zeros."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)

