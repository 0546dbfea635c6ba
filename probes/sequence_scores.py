"""How probable is a completion under a model, and what does a reward model give it? Batches in, one number each out."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .capture import rows_at
from .kernels.logprobs import token_log_probs
from .padding import padded
from .shards import Progress, ScoreCache, item_key, run_in_shards
from .subject import RewardSubject, Subject

SCORER_VERSION = 2  # raise it when a change moves a score: cached scores of before are then not used
READOUT_BYTES = 25 * 2**20  # logits made at a time: more of them leave the caches, and most of the memory is theirs
ALIKE = 0.8  # a batch ends where rows get shorter than this share of its longest: padding costs a whole forward

Folder = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Prompt and completion as ids; positions from `start` on are scored."""

    ids: tuple[int, ...]
    start: int

    @property
    def n_scored(self) -> int:
        return len(self.ids) - self.start


def score_sequences(
    subject: Subject,
    sequences: Sequence[TokenSequence],
    *,
    vocab: int | None = None,
    text_facts: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    shards: Folder | None = None,
    shard_size: int = 64,
    cache: Folder | None = None,
    progress: Progress | None = None,
    stage: str = "log-probabilities",
) -> list[tuple[float, int]]:
    """Summed log-probability (nats, float64) and number of scored tokens of every sequence, in order.

    total = sum over t >= start of z[t-1, id[t]] - logsumexp(z[t-1, :vocab]), logits z in float32, sum in float64.
    Only positions that predict scored tokens pass the head, 25 MB of logits at a time. Batches hold sequences of like
    length, padded on the right to at most `batch_tokens` ids (or one sequence). Equal sequences are scored once.
    vocab: rows of the head that belong to tokens; the rest is masked. text_facts: how the text became ids, part of the
    cache's key. shards, cache: folders (see shards.py).
    """
    for sequence in sequences:
        if not 1 <= sequence.start <= len(sequence.ids):
            raise ValueError(f"start is in 1 .. {len(sequence.ids)} (something must predict it), got {sequence.start}")

    def compute(indices: list[int]) -> list[float]:
        return _in_batches(
            [sequences[i] for i in indices], batch_tokens, lambda batch: _log_probs(subject, batch, vocab)
        )

    model_key, keys = _keys(subject, sequences, vocab, text_facts)
    totals = run_in_shards(
        keys,
        [len(sequence.ids) for sequence in sequences],
        compute,
        stage=stage,
        shard_size=shard_size,
        folder=shards,
        cache=None if cache is None else ScoreCache(cache, model_key),
        progress=progress,
    )
    return [(total, sequence.n_scored) for total, sequence in zip(totals, sequences, strict=True)]


def reward_sequences(
    reward: RewardSubject,
    sequences: Sequence[TokenSequence],
    *,
    text_facts: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    shards: Folder | None = None,
    shard_size: int = 64,
    cache: Folder | None = None,
    progress: Progress | None = None,
    stage: str = "rewards",
) -> list[float]:
    """The reward model's scalar (its own units) for every sequence, read at the position its own rule takes."""

    def compute(indices: list[int]) -> list[float]:
        return _in_batches([sequences[i] for i in indices], batch_tokens, lambda batch: _rewards(reward, batch))

    whole = [TokenSequence(sequence.ids, len(sequence.ids)) for sequence in sequences]  # start plays no part
    model_key, keys = _keys(reward, whole, None, text_facts)
    return run_in_shards(
        keys,
        [len(sequence.ids) for sequence in sequences],
        compute,
        stage=stage,
        shard_size=shard_size,
        folder=shards,
        cache=None if cache is None else ScoreCache(cache, model_key),
        progress=progress,
    )


def _keys(
    model: Subject | RewardSubject, sequences: Sequence[TokenSequence], vocab: int | None, text_facts: Any
) -> tuple[str, list[str]]:
    """A key for the model and one for every sequence: all that a score depends on."""
    facts = {name: model.facts.get(name) for name in ("dtype", "attention", "quantization", "reward_index", "readout")}
    here = [getattr(model, "dtype", None), str(getattr(model, "device", None))]
    model_key = item_key(SCORER_VERSION, model.fingerprint, facts, here, vocab, dict(text_facts or {}))
    return model_key, [item_key(model_key, sequence.ids, sequence.start)[:32] for sequence in sequences]


def _in_batches(
    sequences: list[TokenSequence], batch_tokens: int, score: Callable[[list[TokenSequence]], list[float]]
) -> list[float]:
    """Scores in the order given. `sequences` come longest first, so the first of a batch sets its width."""
    scores: list[float] = []
    while len(scores) < len(sequences):
        rest = sequences[len(scores) :]
        width = len(rest[0].ids)
        most = rest[: max(1, batch_tokens // width)]
        alike = next((i for i, sequence in enumerate(most) if len(sequence.ids) < ALIKE * width), len(most))
        scores += score(most[:alike])
    return scores


def _log_probs(subject: Subject, batch: list[TokenSequence], vocab: int | None) -> list[float]:
    ids, mask = (part.to(subject.device) for part in padded([sequence.ids for sequence in batch], 0))
    counts = [sequence.n_scored for sequence in batch]
    rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts)).to(ids.device)
    columns = torch.cat([torch.arange(s.start - 1, len(s.ids) - 1) for s in batch]).to(ids.device)  # they predict t + 1

    last = subject.n_layers
    with torch.no_grad():
        residual = subject.trace(ids, mask, reduce=rows_at(rows, columns), layers=[last])[last]
        targets = ids[rows, columns + 1]
        scores = [torch.empty(0, dtype=torch.float64)]
        chunk = max(1, READOUT_BYTES // (4 * subject.vocab_size))
        for h, target in zip(residual.split(chunk), targets.split(chunk), strict=True):
            z = subject.readout(h)[:, :vocab]  # [rows, vocab]
            scores.append(token_log_probs(z, target.to(z.device)).cpu())
    return [part.sum().item() for part in torch.cat(scores).split(counts)]


def _rewards(reward: RewardSubject, batch: list[TokenSequence]) -> list[float]:
    pad = reward.tokenizer.pad_token_id  # its own rule for the read-out position may look for it
    device = str(getattr(reward, "device", "cpu"))
    ids, mask = (part.to(device) for part in padded([s.ids for s in batch], 0 if pad is None else pad))
    with torch.no_grad():
        return reward.rewards(ids, mask).double().cpu().tolist()
