"""Log-probabilities of both completions of every pair, under policy and reference, and explicit rewards beside them.

    scores = score_pairs(policy, reference, "pairs.jsonl")
    scores.to_frame()

Each model is scored in its own pass over the same ids. A number does not depend on batch size, order or sharding
(1e-5 nats on tiny models; 5e-6 a scored token on real ones).
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import InputError
from .encoding import EncodedPair, Encoder, TextPolicy, prompt_hash
from .explicit_scores import RewardFunction, explicit_scores
from .inputs import PairFile, check_invalid, read_pairs
from .mismatched import mismatched_sequences
from .noise_floor import noise_floor
from .pair_rows import Invalid, Pair
from .pair_states import pair_states
from .pair_table import PairScores
from .scored_models import require_boundaries, score_facts, scored_models
from .sequence_scores import Folder, TokenSequence, score_sequences
from .shards import Progress
from .shared_prefix import Way, choose_way

if TYPE_CHECKING:
    from .subject import RewardSubject, Subject

__all__ = ["TokenSequence", "score_pairs", "score_sequences"]


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
        policy's own weights without its adapter, "adapter:NAME" with adapter NAME in its place, from that subfolder of
        its folder or on the live PEFT model (TRL keeps its reference as `ref`); None leaves the reference columns NaN.
    pairs: file or rows, see read_pairs.
    reward: a reward model (Subject of load_reward, or its folder), or a function (prompts, completions) -> scores. It
        replaces `explicit_chosen` and `explicit_rejected` of the file.
    template, eos, boundary, max_length, over_length: how text becomes ids, see TextPolicy.
    batch_tokens: padded tokens a forward pass. cache: folder for scores that later runs may use.
    cluster: "prompt" (pairs of one prompt are one cluster) or "response" (also pairs that share a response).
    share_prefix: both completions behind one copy of the prompt, in one row: True always, False never, "auto" where it
        saves at least 15 % of the tokens and 4 pairs scored both ways agree; settings["share_prefix"] says which.
    states: fill `ches` and `ches_normalised`, from hidden states of the reference (of the policy without one).
    mismatched: fill `mismatched`, from two more sequences a pair under both models.
    max_invalid: share of rows set aside above which nothing is scored.
    shards: folder for finished shards of `shard_size` pairs; a killed run repeats at most one.
    progress: called as progress(stage, tokens done, tokens in all).
    A model below float32 is compared with a float32 copy on 32 pairs: settings["noise_floor"], see noise_floor.py.
    Raises InputError for other tokenizers, text that cannot be encoded under the policy, too many unusable rows,
    mismatched=True without a reference, or share_prefix=True on a model whose scores it would move.
    """
    if cluster not in ("prompt", "response"):
        raise InputError(f"cluster={cluster!r}: expected prompt or response")
    if batch_tokens < 1 or shard_size < 1:
        raise InputError(f"batch_tokens={batch_tokens}, shard_size={shard_size}: both are at least 1")
    if share_prefix not in ("auto", True, False):
        raise InputError(f"share_prefix={share_prefix!r}: expected 'auto', True or False")
    if mismatched and reference is None:
        raise InputError("mismatched=True: log-ratios need a reference (--reference)")
    text = TextPolicy(template, eos, boundary, max_length, over_length)
    file = read_pairs(pairs)
    check_invalid(file, max_invalid)
    models = scored_models(policy, reference)
    subject, vocab, by_role = models.policy, models.vocab, models.by_role
    encoder = models.encoder(text, file.source)
    encoded, invalid, contradicting = encode_pairs(file, encoder)
    check_invalid(file, max_invalid, more=invalid)
    require_boundaries(encoded, encoder, file.source)

    kept: dict[str, Any] = {"batch_tokens": batch_tokens, "shards": shards, "cache": cache}
    kept |= {"text_facts": score_facts(encoder)}
    options = kept | {"shard_size": 2 * shard_size, "progress": progress}
    sequences = _sequences(encoded)
    crossed = mismatched_sequences(encoded if mismatched else [], encoder.max_length)
    every = [*sequences, *crossed.sequences]
    ways = {
        role: choose_way(model, every, share=share_prefix, vocab=vocab, stage=f"sharing {role}", **kept)
        for role, model in by_role.items()
    }

    def totals_of(role: str, what: list[TokenSequence], stage: str) -> list[float]:
        stage, shared = f"{stage} {role}", ways[role].shared
        found = score_sequences(by_role[role], what, vocab=vocab, stage=stage, share_prefix=shared, **options)
        return [total for total, _ in found]

    totals = {role: totals_of(role, sequences, "scoring") for role in by_role}
    crossed_totals = [totals_of(role, crossed.sequences, "mismatched") for role in by_role] if mismatched else []
    explicit, origin = explicit_scores(reward, encoded, policy=subject, text=text, source=file.source, **options)
    frame = _table(encoded, totals, explicit)
    if mismatched:
        frame["mismatched"] = crossed.means(*crossed_totals)
    states_from = [*by_role][-1] if states else None  # displacement risk is a property of what training starts from
    if states_from is not None:
        ches = pair_states(by_role[states_from], sequences, share_prefix=ways[states_from].shared, **options)
        frame["ches"], frame["ches_normalised"] = ches.value, ches.normalised
    frame["prompt_id"] = prompt_ids(encoded) if cluster == "prompt" else _response_clusters(encoded)
    counts = {
        "truncated": sum(pair.truncated for pair in encoded),
        "special_in_text": sum(pair.special_in_text for pair in encoded),
        "raw_on_template_model": sum(pair.raw_on_template_model for pair in encoded),
        "contradicting_pair": contradicting,
    }
    settings = {
        **encoder.facts(),
        **models.facts(),
        "explicit": origin,
        "cluster": cluster,
        "batch_tokens": batch_tokens,
        "share_prefix": _told(ways),
        "states_from": states_from,
        "mismatched": len(crossed.kept) if mismatched else None,
        "max_invalid": max_invalid,
        "pairs": file.source,
        "pairs_sha256": file.sha256,
        "n_rows": file.n_rows,
    }
    settings |= noise_floor(
        subject, sequences, totals["policy"], vocab=vocab, batch_tokens=batch_tokens, progress=progress
    )
    scores = PairScores.assemble(frame, invalid=(*file.invalid, *invalid), settings=settings, counts=counts)
    known = set(file.invalid)
    check_invalid(file, max_invalid, more=[row for row in scores.invalid if row not in known])
    return scores


def _told(ways: Mapping[str, Way]) -> str:
    """One sentence where both models are read the same way, with the larger difference."""
    if all(way.shared for way in ways.values()):
        return max(ways.values(), key=lambda way: way.difference).told
    told = {role: way.told for role, way in ways.items()}
    return told["policy"] if len(set(told.values())) == 1 else "; ".join(f"{role} {way}" for role, way in told.items())


def encode_pairs(file: PairFile, encoder: Encoder) -> tuple[list[EncodedPair], list[Invalid], int]:
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


def _sequences(encoded: list[EncodedPair]) -> list[TokenSequence]:
    """Chosen and rejected of every pair, in turn."""
    return [TokenSequence(ids, pair.start) for pair in encoded for ids in (pair.chosen_ids, pair.rejected_ids)]


def _table(encoded: list[EncodedPair], totals: Mapping[str, list[float]], explicit: list[float]) -> pd.DataFrame:
    absent = [float("nan")] * (2 * len(encoded))
    columns: dict[str, Any] = {"row": [pair.pair.row for pair in encoded]}
    columns["pair_id"] = [pair.pair.pair_id for pair in encoded]
    columns["prompt_hash"] = [prompt_hash(pair) for pair in encoded]
    for role, values in (("policy", totals["policy"]), ("reference", totals.get("reference", absent))):
        columns[f"{role}_chosen"], columns[f"{role}_rejected"] = values[::2], values[1::2]
    columns["explicit_chosen"], columns["explicit_rejected"] = explicit[::2], explicit[1::2]
    for name in ("n_chosen", "n_rejected", "n_prompt", "boundary_shift"):
        columns[name] = [getattr(pair, name) for pair in encoded]
    for name in ("swapped", "split", "tag"):
        columns[name] = [getattr(pair.pair, name) for pair in encoded]
    preferences = [preference_and_votes(pair.pair) for pair in encoded]
    columns["preference"] = [share for share, _ in preferences]
    columns["n_votes"] = [votes for _, votes in preferences]
    columns["human_tie"] = [share == 0.5 for share, _ in preferences]
    columns["overlap"] = [_overlap(pair) for pair in encoded]
    columns |= dict.fromkeys(("ches", "ches_normalised", "mismatched"), float("nan"))
    for name in ("ranking_id", "response_chosen", "response_rejected", "n_responses"):
        columns[name] = [getattr(pair.pair, name) for pair in encoded]
    return pd.DataFrame(columns)


def preference_and_votes(pair: Pair) -> tuple[float, float]:
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


def prompt_ids(encoded: list[EncodedPair]) -> list[str]:
    """The id given in the file, else a hash of the rendered text: a merged boundary must not split a prompt."""
    return [pair.pair.prompt_id or prompt_hash(pair) for pair in encoded]


def _response_clusters(encoded: list[EncodedPair]) -> list[str]:
    """Pairs that share a prompt or a response, directly or through others, carry the id of their first prompt."""
    prompts = prompt_ids(encoded)
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
