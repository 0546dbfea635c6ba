"""How probable is a completion under a model, and what does a reward model give it? Batches in, one number each out."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .kernels.logprobs import token_log_probs
from .padding import padded
from .scored_rows import Group, ScoredRows, TokenSequence, batches, begin_alike, over_batches, residuals, width_of
from .shards import Progress, ScoreCache, distinct, item_key, run_in_shards
from .subject import RewardSubject, Subject

__all__ = ["TokenSequence", "reward_sequences", "score_sequences"]

SCORER_VERSION = 2  # raise it when a change moves a score: cached scores of before are then not used
READOUT_BYTES = 25 * 2**20  # logits made at a time: more of them leave the caches, and most of the memory is theirs

Folder = str | os.PathLike[str]


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
    share_prefix: bool = False,
) -> list[tuple[float, int]]:
    """Summed log-probability (nats, float64) and number of scored tokens of every sequence, in order.

    total = sum over t >= start of z[t-1, id[t]] - logsumexp(z[t-1, :vocab]), logits z in float32, sum in float64.
    Only positions that predict scored tokens pass the head, 25 MB of logits at a time. Batches hold sequences of like
    length, padded on the right to at most `batch_tokens` ids (or one sequence). Equal sequences are scored once.
    vocab: rows of the head that belong to tokens; the rest is masked. text_facts: how the text became ids, part of the
    cache's key. shards, cache: folders (see shards.py). share_prefix: sequences stand two by two, and two that begin
    alike are read in one row; only for a model that `choose_way` (shared_prefix.py) has tried it on.
    """
    for sequence in sequences:
        if not 1 <= sequence.start <= len(sequence.ids):
            raise ValueError(f"start is in 1 .. {len(sequence.ids)} (something must predict it), got {sequence.start}")
    model_key, keys = score_keys(subject, sequences, vocab, text_facts)
    order = work_order(sequences, keys) if share_prefix else None
    row_of = {i: row for row in order or () for i in row}

    def compute(indices: list[int]) -> list[float]:
        parts = _wanted_rows(indices, row_of)
        groups: list[Group] = [tuple(sequences[i] for i in part) for part in parts]
        totals = over_batches(groups, batch_tokens, lambda rows: log_probs(subject, rows, vocab))
        found = dict(zip((i for part in parts for i in part), (x for part in totals for x in part), strict=True))
        return [found[i] for i in indices]

    totals = run_in_shards(
        keys,
        [len(sequence.ids) for sequence in sequences],
        compute,
        stage=stage,
        shard_size=shard_size,
        folder=shards,
        cache=None if cache is None else ScoreCache(cache, model_key),
        progress=progress,
        order=order,
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
        items = [sequences[i] for i in indices]  # longest first
        parts = [items[part] for part in batches([len(sequence.ids) for sequence in items], batch_tokens)]
        return [value for part in parts for value in _rewards(reward, part)]

    whole = [TokenSequence(sequence.ids, len(sequence.ids)) for sequence in sequences]  # start plays no part
    model_key, keys = score_keys(reward, whole, None, text_facts)
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


def score_keys(
    model: Subject | RewardSubject,
    sequences: Sequence[TokenSequence],
    vocab: int | None,
    text_facts: Mapping[str, Any] | None,
) -> tuple[str, list[str]]:
    """A key for the model and one for every sequence: all that a score depends on."""
    facts = {name: model.facts.get(name) for name in ("dtype", "attention", "quantization", "reward_index", "readout")}
    here = [getattr(model, "dtype", None), str(getattr(model, "device", None))]
    model_key = item_key(SCORER_VERSION, model.fingerprint, facts, here, vocab, dict(text_facts or {}))
    return model_key, [item_key(model_key, sequence.ids, sequence.start)[:32] for sequence in sequences]


def work_order(sequences: Sequence[TokenSequence], keys: Sequence[str]) -> list[tuple[int, ...]]:
    """Indices by row: two sequences that follow each other and begin alike, else one; longest rows first.

    A sequence that occurs again has been read: of a ranking's pairs ab, ac, ad, bc, bd, cd the rows are ab and cd.
    """
    first = distinct(keys)
    rows: list[tuple[int, ...]] = []
    left = set(first.values())
    for i in range(0, len(sequences) - 1, 2):
        pair = tuple(first[key] for key in keys[i : i + 2])
        if left.issuperset(pair) and keys[i] != keys[i + 1] and begin_alike(*sequences[i : i + 2]):
            rows.append(pair)
            left.difference_update(pair)
    rows += [(i,) for i in sorted(left)]
    return sorted(rows, key=lambda row: -width_of(tuple(sequences[i] for i in row)))


def _wanted_rows(indices: Sequence[int], row_of: Mapping[int, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """`indices` by row: with the others of their row where all of those are wanted, else alone."""
    wanted = set(indices)
    rows = ((row if wanted.issuperset(row := row_of.get(i, (i,))) else (i,)) for i in indices)
    return list(dict.fromkeys(rows))


def log_probs(subject: Subject, rows: ScoredRows, vocab: int | None) -> list[float]:
    """Summed log-probability of every sequence of the batch, nats."""
    scores = [torch.empty(0, dtype=torch.float64)]
    residual = residuals(subject, rows)
    targets = rows.targets.to(residual.device)
    chunk = max(1, READOUT_BYTES // (4 * subject.vocab_size))
    with torch.no_grad():
        for h, target in zip(residual.split(chunk), targets.split(chunk), strict=True):
            z = subject.readout(h)[:, :vocab]  # [rows, vocab]
            scores.append(token_log_probs(z, target.to(z.device)).cpu())
    return [part.sum().item() for part in torch.cat(scores).split(rows.counts)]


def _rewards(reward: RewardSubject, batch: list[TokenSequence]) -> list[float]:
    pad = reward.tokenizer.pad_token_id  # its own rule for the read-out position may look for it
    device = str(getattr(reward, "device", "cpu"))
    ids, mask = (part.to(device) for part in padded([s.ids for s in batch], 0 if pad is None else pad))
    with torch.no_grad():
        return reward.rewards(ids, mask).double().cpu().tolist()
