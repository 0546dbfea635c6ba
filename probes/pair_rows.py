"""What does one row of a preference file say? Every accepted shape of a row, turned into a `Pair`."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

Messages = tuple[dict[str, Any], ...]
Text = str | Messages  # a string, or the messages of a conversation
ASSISTANT_MARK = "\n\nAssistant:"  # whole texts of the HH kind: the completion starts after the last one

_EXPECTED = (
    "expected `prompt`, `chosen`, `rejected` (or whole texts in `chosen` and `rejected`), or `prompt`, `response_a`, "
    "`response_b` with `votes_a` and `votes_b`, `preference` or `label`, or `prompt`, "
    "`responses` with `ranks` or `scores`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prompt with two completions, turned so that `chosen` is preferred at least as often as `rejected`."""

    row: int  # data row in its file, from 1
    pair_id: str  # the row's `id`, else its number
    prompt: Text
    chosen: Text  # the completion alone, without the prompt
    rejected: Text
    votes_chosen: float | None = None
    votes_rejected: float | None = None
    votes_tie: float | None = None
    preference: float | None = None  # P(chosen preferred) as given by a judge; None where there are votes or one label
    prompt_id: str | None = None
    split: str | None = None
    tag: str | None = None
    explicit_chosen: float | None = None  # scores of a reward model, in its units
    explicit_rejected: float | None = None
    swapped: bool = False  # True where `rejected` (or response a) of the file is `chosen` here
    ranking_id: str | None = None  # the row with several responses that the pair was made from
    response_chosen: int = -1  # which of its responses, from 0
    response_rejected: int = -1
    n_responses: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """A row set aside: where, why (a fixed word that is counted), and what exactly."""

    row: int
    reason: str
    detail: str
    name: str = ""  # the row's id, where it has one


class RowError(Exception):
    """A row that cannot be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class PairShape:
    """Which columns of a file hold what: the same for all its rows."""

    first: str  # column of the completion that a preference near 1 favours
    second: str
    has_prompt: bool
    judged: str  # "votes", "preference", "label" or "order" (chosen stands in its own column)

    @classmethod
    def of(cls, columns: Sequence[str], source: str) -> "PairShape":
        """Raises InputError, with the columns found, where they are none of the shapes."""
        found = f"the columns are: {', '.join(columns) or 'none'}"
        has_prompt = "prompt" in columns
        if {"chosen", "rejected"} <= {*columns}:
            judged = next((kind for kind, column in _DECIDED.items() if column in columns), "order")
            return cls("chosen", "rejected", has_prompt, judged)
        if {"response_a", "response_b", "prompt"} <= {*columns}:
            for kind, column in _OPEN.items():
                if column in columns:
                    return cls("response_a", "response_b", has_prompt, kind)
            raise InputError(
                f"{source}: nothing says which response is preferred; {found}. "
                "Add `votes_a` and `votes_b`, `preference` (of a, in [0, 1]) or `label` (a or b)"
            )
        raise InputError(f"{source}: not a file of pairs; {found}; {_EXPECTED}")

    @property
    def sides(self) -> tuple[str, str]:
        """Endings of the columns that belong to first and second: votes_a, explicit_chosen, ..."""
        return ("a", "b") if self.first == "response_a" else ("chosen", "rejected")


_DECIDED = {"votes": "votes_chosen", "preference": "preference"}  # how a preference is given -> its column
_OPEN = {"votes": "votes_a", "preference": "preference", "label": "label"}


def parse_pair(row: dict[str, Any] | str, number: int, shape: PairShape) -> Pair:
    """The pair in data row `number`. Raises RowError with the reason where the row cannot be used."""
    if isinstance(row, str):
        raise RowError("not_a_row", row)
    prompt, first, second = _texts(row, shape)
    for column, text in ((shape.first, first), (shape.second, second)):
        if not plain_text(text).strip():
            raise RowError("empty_completion", f"`{column}` holds no text")
    if first == second:
        raise RowError("identical_completions", f"`{shape.first}` and `{shape.second}` are the same text")
    votes, preference = judgement(row, shape)
    share = preference if votes is None else (votes[0] + votes[2] / 2) / sum(votes)
    swapped = share is not None and share < 0.5
    judged_by_label = shape.judged in ("label", "order")
    explicit = [_score(row.get(f"explicit_{side}")) for side in shape.sides]
    sides = [(first, votes and votes[0], explicit[0]), (second, votes and votes[1], explicit[1])]
    if swapped:
        sides.reverse()
    return Pair(
        row=number,
        pair_id=label_of(row, "id") or str(number),
        prompt=prompt,
        chosen=sides[0][0],
        rejected=sides[1][0],
        votes_chosen=sides[0][1],
        votes_rejected=sides[1][1],
        votes_tie=votes and votes[2],
        preference=None if preference is None or judged_by_label else max(preference, 1 - preference),
        prompt_id=label_of(row, "prompt_id"),
        split=label_of(row, "split"),
        tag=label_of(row, "tag"),
        explicit_chosen=sides[0][2],
        explicit_rejected=sides[1][2],
        swapped=swapped,
    )


def parse_text(row: Mapping[str, Any], column: str) -> Text:
    """A string as it is, a list of messages as a tuple. Raises RowError where it is neither."""
    value = row.get(column)
    if value is None:
        raise RowError("missing_field", f"`{column}` is missing")
    if isinstance(value, str):
        require_encodable(value, f"`{column}`")
        return value
    if isinstance(value, list | tuple):
        return tuple(_message(message, column) for message in value)
    raise RowError("not_string", f"`{column}` is {type(value).__name__} {reprlib.repr(value)}, not a string")


def row_name(row: Mapping[str, Any] | str) -> str:
    """The row's `id` as text that can be written; empty where it has none."""
    given = None if isinstance(row, str) else row.get("id")
    return "" if given in (None, "") else str(given).encode("utf-8", "backslashreplace").decode()


def require_encodable(text: str, what: str) -> None:
    """Raises RowError for a lone surrogate: half a character, which JSON can spell (\\ud83d) and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!r} at character {error.start}"
        raise RowError("not_encodable", f"{what} holds half a character ({half}): a cut text? Write it again") from None


def plain_text(text: Text) -> str:
    """All the text of a string or of messages."""
    return text if isinstance(text, str) else "".join(message["content"] for message in text)


def label_of(row: Mapping[str, Any], column: str) -> str | None:
    """A cell as text, None where it is empty. Raises RowError for half a character."""
    value = row.get(column)
    if value is None or value == "":
        return None
    require_encodable(str(value), f"`{column}`")
    return str(value)


def _texts(row: Mapping[str, Any], shape: PairShape) -> tuple[Text, Text, Text]:
    """Prompt and the two completions, in the order first, second."""
    prompt = parse_text(row, "prompt") if shape.has_prompt else None
    first, second = parse_text(row, shape.first), parse_text(row, shape.second)
    if isinstance(first, str) != isinstance(second, str):
        raise RowError("mixed_forms", f"one of `{shape.first}`, `{shape.second}` is a string, the other messages")
    if isinstance(first, str) and isinstance(second, str):
        if prompt is None:
            return _split_texts(first, second)
        if isinstance(prompt, tuple):  # the answer to a conversation is the assistant's
            return prompt, ({"role": "assistant", "content": first},), ({"role": "assistant", "content": second},)
        return prompt, first, second
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    if not first or not second:
        raise RowError("empty_completion", f"`{shape.second if first else shape.first}` holds no message")
    if prompt is None:
        return _split_messages(first, second)
    if isinstance(prompt, tuple):
        n = len(prompt)
        if n and first[:n] == prompt == second[:n]:  # conversations that repeat the prompt
            return prompt, first[n:], second[n:]
        return prompt, first, second
    if first[0]["role"] not in ("user", "system"):
        raise RowError("mixed_forms", "`prompt` is a string, the completions are messages; give it as messages")
    shared, rest_first, rest_second = _split_messages(first, second)
    asked = [message["content"] for message in shared if message["role"] == "user"]
    if not asked or asked[-1].strip() != prompt.strip():
        raise RowError("prompt_mismatch", "`prompt` is not the last user message that both conversations share")
    return shared, rest_first, rest_second


def _split_texts(first: str, second: str) -> tuple[str, str, str]:
    heads = [text.rfind(ASSISTANT_MARK) for text in (first, second)]
    if min(heads) < 0:
        raise RowError("missing_field", f"no `prompt`, and no {ASSISTANT_MARK!r} in the text to end it")
    ends = [head + len(ASSISTANT_MARK) for head in heads]
    prompts = first[: ends[0]], second[: ends[1]]
    if prompts[0] != prompts[1]:
        raise RowError("prompt_mismatch", "the texts differ before their last assistant turn")
    return prompts[0], first[ends[0] :], second[ends[1] :]


def _split_messages(first: Messages, second: Messages) -> tuple[Messages, Messages, Messages]:
    """The messages that both share, and what follows on each side; only an answer may differ, never a question."""
    if first == second:
        raise RowError("identical_completions", "the two conversations are the same")
    n = 0
    while n < min(len(first), len(second)) and first[n] == second[n]:
        n += 1
    if n == 0 or any(message["role"] in ("user", "system") for message in (*first[n:], *second[n:])):
        raise RowError("prompt_mismatch", f"the conversations differ from message {n + 1} on, before the answer")
    return first[:n], first[n:], second[n:]


def _message(message: Any, column: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RowError("not_string", f"`{column}` holds a message without a role")
    if not isinstance(message.get("content"), str):
        kind = type(message.get("content")).__name__
        raise RowError("not_string", f"`{column}` holds a message whose content is {kind}, not a string")
    require_encodable(message["role"] + message["content"], f"a message in `{column}`")
    return {str(key): value for key, value in message.items() if value is not None}  # Parquet fills absent keys by None


def judgement(row: Mapping[str, Any], shape: PairShape) -> tuple[tuple[float, float, float] | None, float | None]:
    """(votes for first, for second, ties) or None, and the preference for first or None.

    Raises RowError, `missing_field` or `votes_invalid`, where the cells hold neither.
    """
    if shape.judged == "order":
        return None, None
    if shape.judged == "label":
        label = row.get("label")
        if label in (None, ""):
            raise RowError("missing_field", "`label` is missing")
        if not isinstance(label, str) or label.strip().lower() not in ("a", "b"):
            raise RowError("label_invalid", f"`label` is {reprlib.repr(label)}; expected a or b")
        return None, float(label.strip().lower() == "a")
    if shape.judged == "preference":
        share = number_in(row, "preference", required=True)
        if not 0 <= share <= 1:
            raise RowError("votes_invalid", f"`preference` is {share:g}, outside [0, 1]")
        return None, share
    first, second = (number_in(row, f"votes_{side}", required=True) for side in shape.sides)
    tie = number_in(row, "votes_tie", required=False)
    if min(first, second, tie) < 0 or not 0 < first + second + tie < math.inf:
        raise RowError("votes_invalid", f"votes {first:g}, {second:g}, tie {tie:g}: none, too many or a negative count")
    return (first, second, tie), None


def number_in(row: Mapping[str, Any], column: str, *, required: bool) -> float:
    """A finite number, also as text; 0 where the cell is empty and not required. Raises RowError for anything else."""
    value = row.get(column)
    if value is None or value == "":
        if required:
            raise RowError("missing_field", f"`{column}` is missing")
        return 0.0
    number = _score(value)
    if number is None:
        raise RowError("votes_invalid", f"`{column}` is {reprlib.repr(value)}, not a finite number")
    return number


def _score(value: Any) -> float | None:
    """A finite number, also as text (CSV); None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # overflow: JSON has integers beyond the largest float
        return None
    return number if math.isfinite(number) else None
