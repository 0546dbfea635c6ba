"""What does a reward model, or a column of the file, give to both completions of every pair?"""

import os
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .encoding import EncodedPair, Encoder, TextPolicy
from .sequence_scores import TokenSequence, reward_sequences
from .vocabulary import real_vocabulary

if TYPE_CHECKING:
    from .subject import RewardSubject, Subject

RewardFunction = Callable[[list[Any], list[Any]], Any]
NAN = float("nan")


def explicit_scores(
    reward: "str | os.PathLike[str] | RewardSubject | RewardFunction | None",
    encoded: list[EncodedPair],
    *,
    policy: "Subject",
    text: TextPolicy,
    source: str,
    text_facts: dict[str, Any],
    **options: Any,
) -> tuple[list[float], str | None]:
    """Scores of chosen and rejected in turn, NaN where there is none, and in words where they come from.

    A reward model reads the very ids of the policy where it has the policy's tokenizer, else its own under the same
    text policy. A pair it cannot read (too long, say) gets NaN: it leaves the comparison of rewards alone.
    """
    judge: Any = reward
    if isinstance(reward, str | os.PathLike):
        from .reward import load_reward

        judge = load_reward(reward)
    if judge is None:
        given = [value for pair in encoded for value in (pair.pair.explicit_chosen, pair.pair.explicit_rejected)]
        known = any(value is not None for value in given)
        return [NAN if value is None else value for value in given], "columns of the pairs file" if known else None
    if not hasattr(judge, "rewards"):
        return _from_function(judge, encoded), f"function {getattr(judge, '__name__', type(judge).__name__)}"
    if judge.fingerprints.tokenizer == policy.fingerprints.tokenizer:
        readable: list[EncodedPair | None] = [_if_short(pair, judge.limit) for pair in encoded]
    else:
        encoder = Encoder(
            judge.tokenizer,
            TextPolicy(text.template, text.eos, "accept", None, "drop"),
            vocab_rows=getattr(judge, "vocab_size", real_vocabulary(judge.tokenizer)),
            limit=judge.limit,
            source=f"{source} (reward model {judge.name})",
        )
        own = [encoder.encode_pair(pair.pair) for pair in encoded]
        readable = [pair if isinstance(pair, EncodedPair) else None for pair in own]
        text_facts = encoder.facts()
    sequences = [
        TokenSequence(ids, len(ids)) for pair in readable if pair for ids in (pair.chosen_ids, pair.rejected_ids)
    ]
    values = iter(reward_sequences(judge, sequences, text_facts=text_facts, stage="scoring reward", **options))
    return [next(values) if pair else NAN for pair in readable for _ in range(2)], judge.name


def _if_short(pair: EncodedPair, limit: int | None) -> EncodedPair | None:
    longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
    return pair if limit is None or longest <= limit else None


def _from_function(reward: RewardFunction, encoded: list[EncodedPair]) -> list[float]:
    """reward(prompts, completions) -> one score each, called once with chosen and rejected in turn."""
    prompts = [pair.pair.prompt for pair in encoded for _ in range(2)]
    completions = [text for pair in encoded for text in (pair.pair.chosen, pair.pair.rejected)]
    values = _numbers(reward(prompts, completions))
    if values.shape != (len(prompts),):
        raise InputError(f"reward function: {len(prompts)} scores expected, got an array of shape {values.shape}")
    return [float(value) for value in values]


def _numbers(scores: Any) -> np.ndarray:
    """What a reward function returned, as float64; None is NaN. Raises InputError for text, ragged lists, objects."""
    try:
        found = np.asarray(scores)
        if found.dtype.kind not in "biufO" or any(isinstance(value, str | bytes) for value in found.flat):
            raise TypeError(f"an array of {found.dtype}")
        return found.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that still carries a gradient
        raise InputError(
            f"reward function: expected a list of numbers, one a completion, got {reprlib.repr(scores)} ({error})"
        ) from error
