"""What does the edit do to texts that have nothing to do with it? Teacher-forced, token by token."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...probes.kernels.logprobs import token_log_probs
from ...probes.scored_rows import ScoredRows, TokenSequence, over_batches, residuals
from ...probes.sequence_scores import READOUT_BYTES
from ...probes.shards import Progress
from ...probes.subject import Subject
from ...probes.token_positions import announced_prompts
from ...probes.vocabulary import real_vocabulary
from ..losses import kl_source
from ..sets import SteeringSet
from ..vector import SteeringVector
from .applying import Steering, Undirected, applying

BATCH_TOKENS = 4096


def token_shifts(
    subject: Subject,
    vector: Steering,
    strength: float | int,
    texts: Sequence[TokenSequence],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[Float[np.ndarray, "n 3"]]:
    """KL(base || edited), base NLL and edited NLL of every scored token of each text; nats, float64.

    Sums run over the tokens of the tokenizer, some rows of logits at a time; nothing of texts x vocabulary is held.
    A vector that edits what is generated takes a text from its first scored token on as such. One that edits the last
    tokens of a prompt takes the first half of a text as the prompt, and the tokens of the second half count: those that
    the edit can reach. Others take all of it.
    """
    vocab = min(subject.vocab_size, real_vocabulary(subject.tokenizer))
    at_end = any(part.positions.last is not None for part in _vectors(vector))
    announced = at_end or any(part.positions.where == "generation" for part in _vectors(vector))
    if at_end:
        texts = [replace(text, start=max(text.start, len(text.ids) // 2)) for text in texts]
    applied = applying(subject, vector)
    total, done = sum(len(text.ids) for text in texts), 0

    def measure(rows: ScoredRows) -> list[Float[np.ndarray, "n 3"]]:
        nonlocal done
        base = residuals(subject, rows)
        begins = torch.tensor([int(rows.columns[rows.rows == row].min()) + 1 for row in range(len(rows.ids))])
        with applied(strength):
            edited = _announced(announced, begins, lambda: residuals(subject, rows))
        found = _read(subject, base, edited, rows.targets, vocab)
        done += int(rows.mask.sum())
        if progress is not None:
            progress("texts", done, total)
        return [part.numpy() for part in found.split(list(rows.counts))]

    return [values[0] for values in over_batches([(text,) for text in texts], batch_tokens, measure)]


@torch.no_grad()
def _read(
    subject: Subject, base: Float[Tensor, "n d"], edited: Float[Tensor, "n d"], targets: Tensor, vocab: int
) -> Float[Tensor, "n 3"]:
    rows = max(1, READOUT_BYTES // (16 * subject.vocab_size))  # both sides in float64
    parts = []
    for h, changed, target in zip(base.split(rows), edited.split(rows), targets.split(rows), strict=True):
        q, p = (subject.readout(state)[:, :vocab].double() for state in (h, changed))
        here = target.to(q.device)
        parts.append(torch.stack([kl_source(p, q), -token_log_probs(q, here), -token_log_probs(p, here)], 1).cpu())
    return torch.cat(parts)


def _announced(announced: bool, begins: Tensor, run: Callable[[], Tensor]) -> Tensor:
    if not announced:
        return run()
    context: AbstractContextManager[None] = announced_prompts(begins)
    with context:
        return run()


def _vectors(vector: Steering) -> Sequence[SteeringVector]:
    if isinstance(vector, Undirected):
        return []  # it edits prompts, or every token
    return list(vector.vectors) if isinstance(vector, SteeringSet) else [vector]
