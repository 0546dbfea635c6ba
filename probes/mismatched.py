"""What does training do to completions that answer another prompt? Log-ratios of every pair's neighbour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .encoding import EncodedPair
from .scored_rows import TokenSequence


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The sequences to score, two a kept pair, and which pairs those are."""

    sequences: list[TokenSequence]
    kept: list[int]  # indices of pairs
    n_pairs: int

    def means(self, policy: Sequence[float], reference: Sequence[float]) -> list[float]:
        """Mean of log pi - log pi_ref over both sequences of every pair, nats; NaN where it is not kept."""
        found = [math.nan] * self.n_pairs
        for place, i in enumerate(self.kept):
            ratios = [policy[k] - reference[k] for k in (2 * place, 2 * place + 1)]
            found[i] = sum(ratios) / 2
        return found


def mismatched_sequences(encoded: Sequence[EncodedPair], limit: int | None) -> Mismatched:
    """Both completions of the next pair that asks another prompt (from the end on to the first) behind every prompt.

    The prompt's ids go up to its `start`, the completion's from its own. Pairs with a longer sequence than `limit`
    tokens are left out, and all where there is but one prompt: answers to it would not be mismatched.
    """
    sequences: list[TokenSequence] = []
    kept: list[int] = []
    several = len({pair.prompt_text for pair in encoded}) > 1
    for i, pair in enumerate(encoded if several else ()):
        following = (encoded[(i + step) % len(encoded)] for step in range(1, len(encoded)))
        after = next(other for other in following if other.prompt_text != pair.prompt_text)
        prompt = pair.chosen_ids[: pair.start]
        both = [prompt + ids[after.start :] for ids in (after.chosen_ids, after.rejected_ids)]
        if limit is None or max(map(len, both)) <= limit:
            sequences += [TokenSequence(ids, pair.start) for ids in both]
            kept.append(i)
    return Mismatched(sequences, kept, len(encoded))
