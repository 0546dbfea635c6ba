"""Which positions does a token-level diagnostic look at? A prompt, a response behind it, and where that is from.

    histories = pair_histories(read_pairs("pairs.jsonl"), encoder)

Ids only: two models that read the same histories are compared token by token.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from .encoding import EncodedSample, Encoder, Ids, prompt_hash
from .inputs import PairFile, SampleFile
from .pair_rows import Invalid
from .scored_models import require_boundaries
from .scored_rows import TokenSequence
from .scoring import encode_pairs, preference_and_votes, prompt_ids

SOURCES = ("chosen", "rejected", "policy", "reference", "dataset")  # policy, reference: drawn from that model


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A prompt and one response as ids; the positions that predict the response are looked at.

    source: "chosen", "rejected", "policy" or "reference" (drawn from that model), "dataset"; never pooled.
    truncated: the response was cut before its end. row: of the file it came from, from 1; 0 where there is none.
    """

    prompt_id: str
    prompt_ids: Ids
    response_ids: Ids
    source: str = "dataset"
    truncated: bool = False
    row: int = 0

    @property
    def sequence(self) -> TokenSequence:
        """As the scorer takes it."""
        return TokenSequence(self.prompt_ids + self.response_ids, len(self.prompt_ids))


def pair_histories(file: PairFile, encoder: Encoder) -> tuple[list[History], list[float], list[Invalid], int]:
    """Chosen and rejected of every pair in turn, P(chosen preferred) of each, those set aside, shifted boundaries.

    Raises InputError where over 5 % of the boundaries shift, unless the text policy accepts them.
    """
    encoded, invalid, _ = encode_pairs(file, encoder)
    require_boundaries(encoded, encoder, file.source)
    histories = [
        History(
            prompt_id=prompt_id,
            prompt_ids=ids[: pair.start],
            response_ids=ids[pair.start :],
            source=source,
            row=pair.row,
        )
        for pair, prompt_id in zip(encoded, prompt_ids(encoded), strict=True)
        for source, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids))
    ]
    preferences = [preference_and_votes(pair.pair)[0] for pair in encoded]
    return histories, preferences, invalid, sum(pair.boundary_shift for pair in encoded)


def sample_histories(file: SampleFile, encoder: Encoder, source: str) -> tuple[list[History], list[Invalid], int]:
    """Every sample under its source, those set aside, shifted boundaries; errors as of `pair_histories`."""
    every = [encoder.encode_sample(sample) for sample in file]
    encoded = [sample for sample in every if isinstance(sample, EncodedSample)]
    require_boundaries(encoded, encoder, file.source, what="responses")
    histories = [
        History(
            prompt_id=sample.sample.prompt_id or prompt_hash(sample),
            prompt_ids=sample.ids[: sample.start],
            response_ids=sample.ids[sample.start :],
            source=source,
            truncated=not sample.sample.finished,
            row=sample.row,
        )
        for sample in encoded
    ]
    invalid = [sample for sample in every if isinstance(sample, Invalid)]
    return histories, invalid, sum(sample.boundary_shift for sample in encoded)


def usable_histories(histories: Iterable[History], *, vocab_rows: int) -> tuple[list[History], list[Invalid]]:
    """Those that can be read; the others with a reason: an empty response, no prompt, an id beyond the head."""
    usable: list[History] = []
    invalid: list[Invalid] = []
    for number, history in enumerate(histories, 1):
        reason = _problem(history, vocab_rows)
        if reason is None:
            usable.append(history)
        else:
            row = history.row or number
            invalid.append(Invalid(row=row, reason=reason[0], detail=reason[1], name=history.prompt_id))
    return usable, invalid


def buckets_of(
    response_ids: Sequence[int], position_buckets: Sequence[int], end_id: int | Collection[int] | None
) -> Int[np.ndarray, "T"]:
    """Bucket of every response token: 0.. for positions up to each bound (from 1), then the rest, then the end.

    The end-of-sequence token is a bucket of its own, the last: whether to stop is another decision than what to say.
    """
    positions = np.arange(1, len(response_ids) + 1)
    found = np.searchsorted(np.asarray(position_buckets), positions, side="left")
    if end_id is not None:
        ends = [end_id] if isinstance(end_id, int) else list(end_id)
        found[np.isin(np.asarray(response_ids), ends)] = len(position_buckets) + 1
    return found.astype(np.int64)


def bucket_names(position_buckets: Sequence[int]) -> list[str]:
    """Names of the buckets in order: for (5, 50) they are 1-5, 6-50, 51+ and end."""
    starts = [1, *(bound + 1 for bound in position_buckets)]
    names = [f"{first}-{last}" for first, last in zip(starts, position_buckets, strict=False)]
    return [*names, f"{starts[-1]}+", "end"]


def _problem(history: History, vocab_rows: int) -> tuple[str, str] | None:
    if not history.response_ids:
        return "empty_response", "the response has no token"
    if not history.prompt_ids:
        return "no_context", "nothing stands before the first token of the response"
    largest = max(*history.prompt_ids, *history.response_ids)
    if largest >= vocab_rows:
        return "id_beyond_head", f"id {largest}, the heads have {vocab_rows} rows"
    if history.source not in SOURCES:
        return "unknown_source", f"source {history.source!r}; expected one of {', '.join(SOURCES)}"
    return None
