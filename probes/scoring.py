"""Log-probabilities of both completions of every pair, under policy and reference, and explicit rewards beside them.

    scores = score_pairs(policy, reference, "pairs.jsonl")
    scores.to_frame()

Each model is scored in its own pass over the same ids. A number does not depend on batch size, order or sharding
(1e-5 nats on tiny models; 5e-6 a scored token on real ones).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import InputError
from .encoding import EncodedPair, Encoder, TextPolicy
from .explicit_scores import RewardFunction, explicit_scores
from .inputs import PairFile, check_invalid, read_pairs
from .pair_rows import Invalid, Pair
from .pair_table import PairScores
from .sequence_scores import Folder, TokenSequence, score_sequences
from .shards import Progress
from .vocabulary import real_vocabulary, require_same_tokenizer

if TYPE_CHECKING:
    from .subject import RewardSubject, Subject

__all__ = ["TokenSequence", "score_pairs", "score_sequences"]

MAX_SHIFTED = 0.05  # share of pairs whose boundary may shift before the run stops


def score_pairs(
    policy: "str | os.PathLike[str] | Subject",
    reference: "str | os.PathLike[str] | Subject | None",
    pairs: "str | os.PathLike[str] | Iterable[Any] | PairFile",
    *,
    reward: "str | os.PathLike[str] | RewardSubject | RewardFunction | None" = None,
    template: str = "auto",
    eos: str = "auto",
    boundary: str = "refuse",
    max_length: int | None = None,
    over_length: str = "drop",
    batch_tokens: int = 8192,
    cache: Folder | None = None,
    cluster: str = "prompt",
    share_prefix: str | bool = "auto",
    states: bool = False,
    mismatched: bool = False,
    max_invalid: float = 0.05,
    shards: Folder | None = None,
    shard_size: int = 32,
    progress: Progress | None = None,
) -> PairScores:
    """The pair table: a row a pair, summed log-probabilities in nats over the completion's tokens.

    policy, reference: Subject, folder, adapter folder, .gguf file or hub id. reference="adapter-disabled" is the
        policy's own weights without its adapter; None leaves the reference columns NaN.
    pairs: file or rows, see read_pairs.
    reward: a reward model (Subject of load_reward, or its folder), or a function (prompts, completions) -> scores. It
        replaces `explicit_chosen` and `explicit_rejected` of the file.
    template, eos, boundary, max_length, over_length: how text becomes ids, see TextPolicy.
    batch_tokens: padded tokens a forward pass. cache: folder for scores that later runs may use.
    cluster: "prompt" (pairs of one prompt are one cluster) or "response" (also pairs that share a response).
    share_prefix, states, mismatched: their defaults only; this version scores every sequence in a row of its own.
    max_invalid: share of rows set aside above which nothing is scored.
    shards: folder for finished shards of `shard_size` pairs; a killed run repeats at most one.
    progress: called as progress(stage, tokens done, tokens in all).
    Raises InputError for other tokenizers, text that cannot be encoded under the policy, or too many unusable rows.
    """
    if cluster not in ("prompt", "response"):
        raise InputError(f"cluster={cluster!r}: expected prompt or response")
    if batch_tokens < 1 or shard_size < 1:
        raise InputError(f"batch_tokens={batch_tokens}, shard_size={shard_size}: both are at least 1")
    if share_prefix not in ("auto", False) or states or mismatched:
        raise InputError(
            f"share_prefix={share_prefix!r}, states={states!r}, mismatched={mismatched!r}: this version has their "
            "defaults only ('auto', False, False)"
        )
    text = TextPolicy(template, eos, boundary, max_length, over_length)
    file = read_pairs(pairs)
    check_invalid(file, max_invalid)
    subject, other, kind = _models(policy, reference)
    models = [subject] if other is None else [subject, other]
    if other is not None:
        require_same_tokenizer(subject, other)
    rows = min(model.vocab_size for model in models)
    vocab = min(rows, real_vocabulary(subject.tokenizer))
    encoder = Encoder(subject.tokenizer, text, vocab_rows=rows, limit=_limit(models), source=file.source)
    encoded, invalid, contradicting = _encode(file, encoder)
    check_invalid(file, max_invalid, more=invalid)
    _require_boundaries(encoded, encoder, file.source)

    options: dict[str, Any] = {"batch_tokens": batch_tokens, "shards": shards, "shard_size": 2 * shard_size}
    options |= {"cache": cache, "progress": progress, "text_facts": encoder.facts()}
    sequences = _sequences(encoded)
    totals = {
        role: [total for total, _ in score_sequences(model, sequences, vocab=vocab, stage=f"scoring {role}", **options)]
        for role, model in zip(("policy", "reference"), models, strict=False)
    }
    explicit, origin = explicit_scores(reward, encoded, policy=subject, text=text, source=file.source, **options)
    frame = _table(encoded, totals, explicit)
    frame["prompt_id"] = _prompt_ids(encoded) if cluster == "prompt" else _response_clusters(encoded)
    counts = {
        "special_in_text": sum(pair.special_in_text for pair in encoded),
        "raw_on_template_model": sum(pair.raw_on_template_model for pair in encoded),
        "contradicting_pair": contradicting,
    }
    settings = encoder.facts() | {
        "policy": subject.name,
        "policy_fingerprint": subject.fingerprint,
        "reference": None if other is None else other.name,
        "reference_fingerprint": None if other is None else other.fingerprint,
        "reference_kind": kind,
        "explicit": origin,
        "dtype": subject.dtype,
        "vocabulary": vocab,
        "masked_head_rows": max(model.vocab_size for model in models) - vocab,
        "cluster": cluster,
        "batch_tokens": batch_tokens,
        "max_invalid": max_invalid,
        "pairs": file.source,
        "pairs_sha256": file.sha256,
        "n_rows": file.n_rows,
    }
    scores = PairScores.assemble(frame, invalid=(*file.invalid, *invalid), settings=settings, counts=counts)
    known = set(file.invalid)
    check_invalid(file, max_invalid, more=[row for row in scores.invalid if row not in known])
    return scores


def _models(policy: Any, reference: Any) -> "tuple[Subject, Subject | None, str]":
    """Both models and the kind of reference: separate, adapter-disabled or none."""
    from .policy import ADAPTER_DISABLED, load_policy_and_reference

    subject, other = load_policy_and_reference(policy, reference)
    if other is None:
        return subject, None, "none"
    ours, theirs = (getattr(model, "model", model) for model in (subject, other))
    return subject, other, ADAPTER_DISABLED if ours is theirs and subject is not other else "separate"


def _limit(models: "Sequence[Subject]") -> int | None:
    return min((model.limit for model in models if model.limit is not None), default=None)


def _encode(file: PairFile, encoder: Encoder) -> tuple[list[EncodedPair], list[Invalid], int]:
    """Pairs as ids, those set aside, and how many kept ones say the opposite of an earlier one."""
    encoded: list[EncodedPair] = []
    invalid: list[Invalid] = []
    seen: dict[tuple[Any, ...], int] = {}
    contradicting = 0
    for pair in file:
        ids = encoder.encode_pair(pair)
        if isinstance(ids, Invalid):
            invalid.append(ids)
            continue
        key = (ids.start, ids.chosen_ids, ids.rejected_ids)
        if key in seen:
            detail = f"the same ids as row {seen[key]}"
            invalid.append(Invalid(row=pair.row, reason="duplicate_pair", detail=detail, name=pair.pair_id))
            continue
        contradicting += (ids.start, ids.rejected_ids, ids.chosen_ids) in seen
        seen[key] = pair.row
        encoded.append(ids)
    return encoded, invalid, contradicting


def _require_boundaries(encoded: list[EncodedPair], encoder: Encoder, source: str) -> None:
    shifted = [pair for pair in encoded if pair.boundary_shift]
    if encoder.policy.boundary == "accept" or len(shifted) <= MAX_SHIFTED * len(encoded):
        return
    first = shifted[0]
    raise InputError(
        f"{source}, row {first.pair.row}: the prompt's last token merges with a completion (only {first.start} of "
        f"{first.n_prompt} prompt tokens survive): {encoder.pieces(first)}. It happens in {len(shifted)} of "
        f"{len(encoded)} pairs. End the prompts at a token boundary, most simply a newline, or pass boundary='accept' "
        "(--boundary accept), which scores the merged token with the completion"
    )


def _sequences(encoded: list[EncodedPair]) -> list[TokenSequence]:
    """Chosen and rejected of every pair, in turn."""
    return [TokenSequence(ids, pair.start) for pair in encoded for ids in (pair.chosen_ids, pair.rejected_ids)]


def _table(encoded: list[EncodedPair], totals: Mapping[str, list[float]], explicit: list[float]) -> pd.DataFrame:
    absent = [float("nan")] * (2 * len(encoded))
    columns: dict[str, Any] = {"row": [pair.pair.row for pair in encoded]}
    columns["pair_id"] = [pair.pair.pair_id for pair in encoded]
    for role, values in (("policy", totals["policy"]), ("reference", totals.get("reference", absent))):
        columns[f"{role}_chosen"], columns[f"{role}_rejected"] = values[::2], values[1::2]
    columns["explicit_chosen"], columns["explicit_rejected"] = explicit[::2], explicit[1::2]
    for name in ("n_chosen", "n_rejected", "n_prompt", "boundary_shift"):
        columns[name] = [getattr(pair, name) for pair in encoded]
    for name in ("swapped", "split", "tag"):
        columns[name] = [getattr(pair.pair, name) for pair in encoded]
    preferences = [_preference(pair.pair) for pair in encoded]
    columns["preference"] = [share for share, _ in preferences]
    columns["n_votes"] = [votes for _, votes in preferences]
    columns["human_tie"] = [share == 0.5 for share, _ in preferences]
    columns["overlap"] = [_overlap(pair) for pair in encoded]
    columns |= dict.fromkeys(("ches", "ches_normalised", "mismatched"), float("nan"))
    columns |= {"ranking_id": None, "response_chosen": -1, "response_rejected": -1}
    return pd.DataFrame(columns)


def _preference(pair: Pair) -> tuple[float, float]:
    """Share of votes for chosen (ties half) and number of votes: 1 for a bare decision, 0 for a judge's probability."""
    if pair.votes_chosen is not None and pair.votes_rejected is not None:
        tie = pair.votes_tie or 0.0
        n = pair.votes_chosen + pair.votes_rejected + tie
        return (pair.votes_chosen + tie / 2) / n, n
    return (1.0, 1.0) if pair.preference is None else (pair.preference, 0.0)


def _overlap(pair: EncodedPair) -> float:
    """Jaccard index of the token sets of both completions: 1 where they use the same tokens, 0 where none."""
    chosen, rejected = set(pair.chosen_ids[pair.start :]), set(pair.rejected_ids[pair.start :])
    return len(chosen & rejected) / len(chosen | rejected)


def _prompt_ids(encoded: list[EncodedPair]) -> list[str]:
    """The id given in the file, else a hash of the rendered text: a merged boundary must not split a prompt."""
    return [
        pair.pair.prompt_id or hashlib.sha256(pair.prompt_text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for pair in encoded
    ]


def _response_clusters(encoded: list[EncodedPair]) -> list[str]:
    """Pairs that share a prompt or a response, directly or through others, carry the id of their first prompt."""
    prompts = _prompt_ids(encoded)
    parent = list(range(len(encoded)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, pair in enumerate(encoded):
        texts = (json.dumps(["response", text], sort_keys=True) for text in (pair.pair.chosen, pair.pair.rejected))
        for key in (json.dumps(["prompt", prompts[i]]), *texts):
            a, b = sorted((root(i), root(first.setdefault(key, i))))
            parent[b] = a  # the earlier pair stays the root
    return [prompts[root(i)] for i in range(len(encoded))]
