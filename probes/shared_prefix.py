"""May both completions of a prompt be read in one row, behind one copy of it? And is that worth it for this file?

The rest of the rejected sequence does not see that of the chosen one, and its positions go on from the prompt. That
holds where a model knows order from position ids and the past through attention alone: not in recurrent models, nor
where a bias counts places in the row (ALiBi). It is tried before it is used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .scored_rows import Group, TokenSequence, over_batches, padded_tokens, width_of
from .sequence_scores import Folder, log_probs, score_keys, work_order
from .shards import ScoreCache, item_key, run_in_shards
from .subject import Subject

CLOSE = 1e-4  # nats a sequence
ROUNDING = 5e-6  # nats a scored token, if that is more: float32 in another batch moves real models' scores by this
TRIED = 4  # pairs
WORTH = 0.15  # share of the padded tokens that sharing must save to be taken unasked
LEAST = 8192  # and so many tokens: a pass or so
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)  # what models raise on a mask they do not know


@dataclass(frozen=True, slots=True)
class Way:
    """How a model reads pairs."""

    shared: bool
    told: str  # for the settings: the way, its measured difference, or why not the other
    difference: float = 0.0  # largest measured, nats a sequence; of those that are shared


def choose_way(
    subject: Subject,
    sequences: Sequence[TokenSequence],
    *,
    share: str | bool = "auto",
    vocab: int | None = None,
    text_facts: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    shards: Folder | None = None,
    cache: Folder | None = None,
    stage: str = "sharing",
) -> Way:
    """Whether `sequences` (chosen and rejected in turn) are read two a row under this model.

    share: False never; True always, or InputError with the measured difference; "auto" where it saves at least 15 % of
    the tokens of the file, padding and trial counted. Up to 4 pairs are first scored both ways: beyond 1e-4 nats a
    sequence (or 5e-6 a scored token), or where the model refuses, rows stay apart. The trial is kept in shards and
    cache as scores are.
    """
    if share is False:
        return Way(False, "buckets: asked for")
    model_key, keys = score_keys(subject, sequences, vocab, text_facts)
    rows: list[Group] = [tuple(sequences[i] for i in row) for row in work_order(sequences, keys)]
    pairs = [row for row in rows if len(row) > 1]
    tried = [pairs[i] for i in sorted({i * (len(pairs) - 1) // (TRIED - 1) for i in range(TRIED)})] if pairs else []
    reason = None if share is True else _not_worth_it(rows, tried, batch_tokens)
    if not pairs or reason:
        return Way(False, f"buckets: {reason or 'no two sequences of a pair are left to read'}")
    problem = subject.layout_problem(max(len(sequence.ids) for row in rows for sequence in row))
    refused: list[str] = []

    def compute(indices: list[int]) -> list[list[float]]:
        try:
            return [_difference(subject, tried, vocab, batch_tokens)]
        except _REFUSALS as error:
            refused.append(f" ({type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]})")
            return [[math.inf, CLOSE]]

    if problem is None:
        ((difference, allowed),) = run_in_shards(
            [item_key(model_key, "share_prefix", [(s.ids, s.start) for pair in tried for s in pair])[:32]],
            [sum(width_of(pair) for pair in tried)],
            compute,
            stage=stage,
            shard_size=1,
            folder=shards,
            cache=None if cache is None else ScoreCache(cache, model_key),
        )
        if difference <= allowed:
            return Way(True, f"shared: differs by {difference:.2g} nats", difference)
        problem = f"differs by {difference:.2g} nats (allowed: {allowed:.2g})"
        if difference == math.inf:
            problem = f"the model takes no mask of rows x columns{''.join(refused)}"
    if share is True:
        raise InputError(
            f"share_prefix=True: {subject.name} cannot read both completions of a pair in one row: {problem}; "
            "share_prefix='auto' (or False) reads them apart"
        )
    return Way(False, f"buckets: {problem}")


def _not_worth_it(rows: Sequence[Group], tried: Sequence[Group], batch_tokens: int) -> str | None:
    """Why sharing saves too little of this file; None where it saves enough."""
    apart = padded_tokens(_apart(rows), batch_tokens)
    saved = apart - padded_tokens(rows, batch_tokens)
    if saved < WORTH * apart:
        return "prompts are short"
    trial = padded_tokens(_apart(tried), batch_tokens) + padded_tokens(tried, batch_tokens)
    return None if saved - trial >= max(LEAST, WORTH * apart) else "the pairs are few"


def _difference(subject: Subject, pairs: Sequence[Group], vocab: int | None, batch_tokens: int) -> list[float]:
    """[difference of a total between a row of its own and one for two, allowed difference], nats; the worst of all."""

    def totals(groups: Sequence[Group]) -> list[float]:
        measured = over_batches(groups, batch_tokens, lambda rows: log_probs(subject, rows, vocab))
        return [total for part in measured for total in part]

    apart, shared = totals(_apart(pairs)), totals(pairs)
    allowed = [max(CLOSE, ROUNDING * sequence.n_scored) for pair in pairs for sequence in pair]
    found = [[abs(a - b), most] for a, b, most in zip(apart, shared, allowed, strict=True)]
    return max(found, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0] / pair[1])


def _apart(groups: Sequence[Group]) -> list[Group]:
    return [(sequence,) for group in groups for sequence in group]
