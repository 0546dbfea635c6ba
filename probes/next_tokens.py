"""What may follow, step by step? A model's next-token logits after a prompt and each of K continuations.

    step = NextTokens(subject, prompt_ids)
    step(np.zeros((8, 0), int))          # logits [8, V] after the prompt
    step(np.array([[5], [9]]))           # and after the prompt and one more token

Continuations that differ in nothing are read once. Where the model keeps a cache that gives the logits of its plain
forward pass, only the last token is read, whatever order the continuations come in.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from .subject import Subject

CLOSE = 1e-3  # logits: what reading through the cache may move
CACHED_TOKENS = 32_768  # rows x tokens of a cache; more are read without one
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)  # what models raise on a cache they do not know


class NextTokens:
    """A step function: token ids [K, t] -> logits [K, vocab] after the prompt and them, float32 or wider."""

    def __init__(
        self,
        subject: "Subject",
        prompt: Sequence[int],
        *,
        vocab: int | None = None,
        batch_tokens: int = 8192,
        cached: bool = False,
    ) -> None:
        """vocab: keep so many columns. batch_tokens: of a pass without a cache. cached: ask `cache_problem` first.

        Raises InputError for a prompt without a token.
        """
        if not len(prompt):
            raise InputError(f"{subject.name}: the prompt holds no token, so nothing is there to continue")
        self.subject, self.prompt, self.vocab = subject, list(map(int, prompt)), vocab
        self.batch_tokens, self.cached = batch_tokens, cached
        self._past: Any = None  # of the histories read last, a row each
        self._places: dict[bytes, int] = {}  # history -> its row there

    def __call__(self, ids: Int[np.ndarray, "K t"]) -> Float[Tensor, "K V"]:
        histories, which = np.unique(ids, axis=0, return_inverse=True)
        if ids.shape[1] == 0:  # numpy keeps one row of no columns a row
            histories, which = ids[:1], np.zeros(len(ids), dtype=np.int64)
        read = self._with_cache if self.cached else self._plainly
        logits = read(np.ascontiguousarray(histories, dtype=np.int64))
        return logits[torch.from_numpy(which.reshape(-1)).to(logits.device)]

    def _plainly(self, histories: Int[np.ndarray, "U t"]) -> Float[Tensor, "U V"]:
        width = len(self.prompt) + histories.shape[1]
        parts = []
        with torch.no_grad():
            for rows in torch.from_numpy(histories).split(max(1, self.batch_tokens // width)):
                ids = torch.cat([torch.tensor(self.prompt).expand(len(rows), -1), rows], dim=1)
                last = torch.full((len(rows), 1), width - 1)
                parts.append(self.subject.logits(ids, torch.ones_like(ids), last)[:, 0, : self.vocab])
        return torch.cat(parts)

    def _with_cache(self, histories: Int[np.ndarray, "U t"]) -> Float[Tensor, "U V"]:
        if len(histories) * (len(self.prompt) + histories.shape[1]) > CACHED_TOKENS:
            self._past, self._places = None, {}
            return self._plainly(histories)
        model: Any = self.subject
        rows = [self._places.get(row[:-1].tobytes()) for row in histories] if histories.shape[1] else [None]
        if self._past is None or None in rows:
            self._past = None
            before = torch.tensor(self.prompt).expand(len(histories), -1)
            new = torch.cat([before, torch.from_numpy(histories)], dim=1)
        else:
            self._past.reorder_cache(torch.tensor(rows, device=self.subject.device))
            new = torch.from_numpy(histories[:, -1:])
        logits, self._past = model.continued(new, self._past, len(self.prompt) + histories.shape[1])
        if not hasattr(self._past, "reorder_cache"):  # `cache_problem` tells it
            raise TypeError(f"{type(self._past).__name__} cannot be reordered")
        self._places = {row.tobytes(): i for i, row in enumerate(histories)}
        return logits[:, : self.vocab]


def cache_problem(subject: "Subject", prompt: Sequence[int]) -> str | None:
    """Why `subject` is read without a cache; None where it gives the logits of a plain pass, tried behind `prompt`."""
    if not hasattr(subject, "continued"):
        return "the carrier has no pass that keeps a cache"
    plain, cached = (NextTokens(subject, prompt, cached=cached) for cached in (False, True))
    tried: list[list[list[int]]] = [[[], []], [[0], [1]], [[1, 2], [0, 3], [1, 0]], [[1, 0, 1], [1, 2, 2]]]
    moved = 0.0
    try:
        for ids in tried:
            both = [step(np.array(ids, dtype=np.int64) % subject.vocab_size) for step in (plain, cached)]
            moved = max(moved, float((both[0] - both[1]).abs().max()))
    except _REFUSALS as error:
        return f"the model keeps no cache that could be reordered ({type(error).__name__})"
    return None if moved <= CLOSE else f"its cache moves logits by {moved:.2g} (allowed: {CLOSE:g})"


def end_ids(*subjects: "Subject") -> tuple[int, ...]:
    """Ids that end a text for one of the models: the tokenizer's EOS and those of the generation settings."""
    found: set[int] = set()
    for subject in subjects:
        own = getattr(getattr(subject, "model", None), "generation_config", None)
        reads = getattr(subject, "tokenizer", None)  # none on a model that was wrapped without one
        for ends in (getattr(reads, "eos_token_id", None), getattr(own, "eos_token_id", None)):
            found.update(ends if isinstance(ends, list) else [] if ends is None else [ends])
    return tuple(sorted(found))
