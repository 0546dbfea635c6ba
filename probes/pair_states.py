"""How alike are the hidden states of chosen and rejected? CHES: the risk that training moves probability off both."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from .hidden_similarity import Ches, ches_of_sums
from .scored_rows import Group, ScoredRows, TokenSequence, over_batches, residuals
from .sequence_scores import Folder, score_keys
from .shards import Progress, ScoreCache, item_key, run_in_shards
from .subject import Subject

STATES_VERSION = 2  # raise it when other numbers of a pair are kept: those of before are then not read
NORMED_BYTES = 25 * 2**20  # states in float64 made at a time


def pair_states(
    subject: Subject,
    sequences: Sequence[TokenSequence],
    *,
    text_facts: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    shards: Folder | None = None,
    shard_size: int = 64,
    cache: Folder | None = None,
    progress: Progress | None = None,
    stage: str = "hidden states",
    share_prefix: bool = False,
) -> Ches:
    """CHES of every pair, [N]; `sequences` are chosen and rejected in turn, of one prompt and `start`.

    S = sum over t = start .. last of h[t - 1], h the last residual after the final norm (what the head reads), in
    float64. Both forms of CHES are kept a pair; states last for a batch, and one that is not finite gives NaN. Options
    are those of score_sequences; a shard holds half as many pairs as of those sequences.
    Raises ValueError for an odd number of sequences, or one without a scored token.
    """
    if len(sequences) % 2:
        raise ValueError(f"chosen and rejected in turn are an even number of sequences, got {len(sequences)}")
    if empty := [i for i, sequence in enumerate(sequences) if not 1 <= sequence.start < len(sequence.ids)]:
        n, start = len(sequences[empty[0]].ids), sequences[empty[0]].start
        raise ValueError(f"sequence {empty[0]}: start is in 1 .. {n - 1} (something must be scored), got {start}")
    pairs = list(zip(sequences[::2], sequences[1::2], strict=True))
    model_key, single = score_keys(subject, sequences, None, text_facts)
    keys = [item_key("states", STATES_VERSION, *single[i : i + 2])[:32] for i in range(0, len(single), 2)]

    def compute(indices: list[int]) -> list[list[float]]:
        groups: list[Group] = [group for i in indices for group in _rows(pairs[i], share_prefix)]
        parts = over_batches(groups, batch_tokens, lambda rows: [*state_sums(subject, rows)])
        sums = torch.stack([part for group in parts for part in group]).numpy()  # chosen and rejected in turn
        n = np.array([sequence.n_scored for i in indices for sequence in pairs[i]], dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            found = ches_of_sums(sums[::2], sums[1::2], n[::2], n[1::2])
        return [list(both) for both in zip(found.value.tolist(), found.normalised.tolist(), strict=True)]

    kept = run_in_shards(
        keys,
        [len(chosen.ids) + len(rejected.ids) for chosen, rejected in pairs],
        compute,
        stage=stage,
        shard_size=max(1, shard_size // 2),
        folder=shards,
        cache=None if cache is None else ScoreCache(cache, model_key),
        progress=progress,
    )
    value, normalised = np.array(kept, dtype=np.float64).reshape(-1, 2).T
    return Ches(value=value, normalised=normalised)


def state_sums(subject: Subject, rows: ScoredRows) -> Float64[Tensor, "sequences d"]:
    """Sum of the states that predict the scored tokens of every sequence, in float64."""
    residual = residuals(subject, rows)
    owner = torch.repeat_interleave(torch.arange(len(rows.counts)), torch.tensor(rows.counts)).to(residual.device)
    sums = torch.zeros(len(rows.counts), subject.normed(residual[:1]).shape[-1], dtype=torch.float64)
    chunk = max(1, NORMED_BYTES // (8 * subject.d_model))
    with torch.no_grad():
        for h, sequence in zip(residual.split(chunk), owner.split(chunk), strict=True):
            states = subject.normed(h).double()
            sums = sums.to(states.device).index_add_(0, sequence.to(states.device), states)
    return sums.cpu()


def _rows(pair: Group, share_prefix: bool) -> list[Group]:
    return [pair] if share_prefix else [(sequence,) for sequence in pair]
