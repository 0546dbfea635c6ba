"""Which tokens does this forward pass read? Their places among the real tokens of a row, with padding and caches.

Taken, in this order, from the attention mask (over cache and input, or the input alone), position ids, the length of
the cache, or a count of the real tokens that each row has read so far [reconstructed].
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError
from .subject import Tokens

_PROMPTS: ContextVar[Tensor | None] = ContextVar("prompts", default=None)  # real tokens of each row's prompt
_PAUSED: ContextVar[bool] = ContextVar("paused", default=False)
_CACHES = ("past_key_values", "cache_params", "state", "past_buckets_states")  # what models call what they have read


@contextmanager
def announced_prompts(lengths: Int[Tensor, "B"]) -> Iterator[None]:
    """Inside, prompts have these lengths: without a cache a forward pass cannot tell them from what follows."""
    token = _PROMPTS.set(lengths)
    try:
        yield
    finally:
        _PROMPTS.reset(token)


@contextmanager
def unedited() -> Iterator[None]:
    """Inside, no edit acts and none counts tokens: for looking at the model itself."""
    token = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(token)


def paused() -> bool:
    return _PAUSED.get()


def real_index(attention_mask: Tensor) -> Int[Tensor, "B T"]:
    """Place of each token among the real ones of its row, from 0; -1 at padding, on whichever side it stands."""
    real = attention_mask != 0
    return (real.cumsum(-1) - 1).masked_fill(~real, -1)


def per_row(value: Tensor, rows: int, what: str) -> Tensor:
    """A value a row for a batch that `generate` has expanded: each repeated for the beams or samples of its row.

    Raises InputError where `rows` is no multiple of what is there.
    """
    if rows % len(value):
        raise InputError(f"{what} for {len(value)} rows, and a batch of {rows}: expected as many, or a multiple")
    return value if rows == len(value) else value.repeat_interleave(rows // len(value), dim=0)


class TokenReader:
    """Follows the forward passes of one model. A pass with nothing in its cache begins anew."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None  # [B] real tokens read so far
        self._prompt: Tensor | None = None  # [B]

    def read(self, arguments: Mapping[str, Any]) -> Tokens:
        """The tokens of a pass from the arguments of the model's forward.

        Raises InputError where the model goes on from a cache that was filled unseen and nothing gives positions.
        """
        given = arguments.get("input_ids")
        given = arguments.get("inputs_embeds") if given is None else given
        if given is None:
            raise InputError("a forward pass without input_ids or inputs_embeds: edits cannot tell its tokens")
        rows, width = given.shape[:2]
        length = _cached_length(arguments)
        fresh = length == 0
        index = self._index(arguments, rows, width, length, given.device)
        before = torch.zeros(rows, dtype=torch.long, device=index.device) if fresh else _before(index)
        self._seen = torch.maximum(before, index.amax(-1) + 1)
        announced = _PROMPTS.get()
        if announced is not None:
            self._prompt = per_row(announced.to(index.device), rows, "prompt lengths")
        elif fresh:
            self._prompt = self._seen
        elif self._prompt is None or len(self._prompt) != rows:
            self._prompt = before  # the cache was filled before the edit came: what follows it is generated
        return Tokens(index=index, prompt=self._prompt)

    def _index(
        self, arguments: Mapping[str, Any], rows: int, width: int, length: int | None, device: torch.device
    ) -> Int[Tensor, "B T"]:
        mask = _plain_mask(arguments.get("attention_mask"))
        position_ids: Tensor | None = arguments.get("position_ids")
        real = torch.ones(rows, width, dtype=torch.bool, device=device)
        if mask is not None and len(mask) == rows and mask.shape[1] >= width:
            if length == 0 or mask.shape[1] > width:
                return real_index(mask)[:, -width:]
            real = mask != 0
        if position_ids is not None:
            positions = position_ids if position_ids.ndim < 3 else position_ids[0]  # several axes: time is the first
            return positions.expand(rows, width).masked_fill(~real, -1)
        if length is not None:
            return (real.cumsum(-1) - 1 + length).masked_fill(~real, -1)
        if self._seen is None or len(self._seen) != rows:
            raise InputError(
                "the model goes on from a state that was made outside of the edit, and gives neither mask nor "
                "positions: begin with the prompt inside the edit"
            )
        return (real.cumsum(-1) - 1 + self._seen[:, None]).masked_fill(~real, -1)


def _plain_mask(given: Any) -> Tensor | None:
    """The mask [rows, tokens], if that is what was given: not one of rows x columns, nor one a kind of layer."""
    return given if isinstance(given, Tensor) and given.ndim == 2 else None


def _before(index: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
    """Real tokens before the first one of this pass."""
    beyond = torch.iinfo(index.dtype).max
    first = index.masked_fill(index < 0, beyond).amin(-1)
    return first.masked_fill(first == beyond, 0)


def _cached_length(arguments: Mapping[str, Any]) -> int | None:
    """Tokens in the cache; 0 where there is none or an empty one, None where it is filled and does not say."""
    cache = next((c for key in _CACHES if (c := arguments.get(key)) is not None), None)
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        try:
            return int(cache.get_seq_length())
        except ValueError:  # transformers: a cache of recurrent states alone knows no length
            return None if cache.has_previous_state() else 0
    if isinstance(cache, tuple | list) and cache and isinstance(cache[0], tuple | list):
        return int(cache[0][0].shape[-2])
    return None
