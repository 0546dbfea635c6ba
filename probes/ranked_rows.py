"""What does a row that ranks several responses to one prompt say? Every pair of it, the better response first."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from .pair_rows import Pair, RowError, Text, label_of, parse_text, plain_text

ORDERS = ("ranks", "scores")  # columns of the order: 1 = best, or higher = better


def is_ranked(columns: Sequence[str]) -> bool:
    """True for a file of rankings: `prompt`, `responses`, and `ranks` or `scores`, but no `chosen` and `rejected`."""
    given = {*columns}
    return {"prompt", "responses"} <= given and bool(given & {*ORDERS}) and not {"chosen", "rejected"} <= given


def parse_ranking(row: dict[str, Any] | str, number: int) -> list[Pair]:
    """The n (n - 1) / 2 pairs of a row with n responses, in the order (0, 1), (0, 2), ... of its responses.

    `ranks` (1 = best) or `scores` (higher = better) order them; equal ones make a human tie (preference 1/2). A pair is
    named `<id>:<better>-<worse>` by the places of its responses, from 0. Raises RowError where any response, rank or
    score cannot be used: the order of the rest would be another question.
    """
    if isinstance(row, str):
        raise RowError("not_a_row", row)
    prompt = parse_text(row, "prompt")
    responses = _responses(row, prompt)
    better = _order(row, len(responses))
    ranking_id = label_of(row, "id") or str(number)
    prompt_id, split, tag = (label_of(row, name) for name in ("prompt_id", "split", "tag"))
    pairs = []
    for i, j in combinations(range(len(responses)), 2):
        first, second = (j, i) if better[j] > better[i] else (i, j)
        pairs.append(
            Pair(
                row=number,
                pair_id=f"{ranking_id}:{first}-{second}",
                prompt=prompt,
                chosen=responses[first],
                rejected=responses[second],
                preference=0.5 if better[i] == better[j] else None,
                ranking_id=ranking_id,
                response_chosen=first,
                response_rejected=second,
                n_responses=len(responses),
                prompt_id=prompt_id,
                split=split,
                tag=tag,
            )
        )
    return pairs


def _responses(row: Mapping[str, Any], prompt: Text) -> list[Text]:
    """The responses as completions of the prompt: messages after messages, a string after a string."""
    given = _listed(row, "responses")
    if len(given) < 2:
        raise RowError("too_few_responses", f"`responses` holds {len(given)}; a ranking needs at least 2")
    names = [f"responses[{i}]" for i in range(len(given))]
    found = [parse_text({name: value}, name) for name, value in zip(names, given, strict=True)]
    for name, text in zip(names, found, strict=True):
        if not plain_text(text).strip():
            raise RowError("empty_completion", f"`{name}` holds no text")
    completions = [completion_of(prompt, text, name) for name, text in zip(names, found, strict=True)]
    for name, text in zip(names, completions, strict=True):
        if not plain_text(text).strip():
            raise RowError("empty_completion", f"`{name}` holds no text after the prompt")
    for (i, first), (j, second) in combinations(enumerate(completions), 2):
        if first == second:
            raise RowError("identical_completions", f"`responses[{i}]` and `responses[{j}]` are the same text")
    return completions


def completion_of(prompt: Text, response: Text, name: str) -> Text:
    """A response without the prompt that it may repeat: a string after a string, messages after messages."""
    if isinstance(prompt, str):
        if isinstance(response, str):
            return response
        raise RowError("mixed_forms", f"`prompt` is a string, `{name}` is messages; give the prompt as messages too")
    if isinstance(response, str):  # the answer to a conversation is the assistant's
        return ({"role": "assistant", "content": response},)
    repeats = bool(prompt) and response[: len(prompt)] == prompt
    return response[len(prompt) :] if repeats else response


def _order(row: Mapping[str, Any], n: int) -> list[float]:
    """A number a response, higher = better. Where both columns are given they may not contradict each other."""
    given = [name for name in ORDERS if row.get(name) not in (None, "")]
    if not given:
        raise RowError("missing_field", "neither `ranks` nor `scores` is given")
    orders = [_numbers(row, name, n) for name in given]
    if len(orders) == 2:
        for i, j in combinations(range(n), 2):
            if (orders[0][i] - orders[0][j]) * (orders[1][i] - orders[1][j]) < 0:
                detail = f"`ranks` and `scores` order `responses[{i}]` and `responses[{j}]` differently"
                raise RowError("ranks_invalid", detail)
    return orders[0]


def _numbers(row: Mapping[str, Any], name: str, n: int) -> list[float]:
    values = _listed(row, name)
    if len(values) != n:
        raise RowError("ranks_invalid", f"`{name}` holds {len(values)} numbers for {n} responses")
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RowError("ranks_invalid", f"`{name}[{i}]` is {reprlib.repr(value)}, not a finite number")
    sign = -1.0 if name == "ranks" else 1.0
    return [sign * float(value) for value in values]


def _listed(row: Mapping[str, Any], column: str) -> list[Any]:
    value = row.get(column)
    if value is None or value == "":
        raise RowError("missing_field", f"`{column}` is missing")
    if not isinstance(value, list | tuple):
        raise RowError("not_a_list", f"`{column}` is {type(value).__name__} {reprlib.repr(value)}, not a list")
    return list(value)
