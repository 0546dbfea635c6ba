"""Which letter does the model choose? Multiple-choice questions by the log-probability of the next token.

A: first choice, B: second, ... The question, a line a choice, and "Answer:"; the likeliest letter is the answer.
"""

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from ...errors import InputError
from ...probes.encoding import Encoder, Ids
from ...probes.inputs import Prompt, Source, parsed_rows
from ...probes.pair_rows import Invalid, RowError, label_of, require_encodable
from ...probes.row_files import read_rows
from ...probes.subject import Subject
from .first_tokens import next_log_probs

LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its choices; `answer` is the place of the right one."""

    row: int
    question: str
    choices: tuple[str, ...]
    answer: int
    question_id: str = ""

    @property
    def text(self) -> str:
        """What the model reads."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
        return "\n".join([self.question, *lines, "Answer:"])


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionFile:
    questions: tuple[Question, ...]
    invalid: tuple[Invalid, ...]
    source: str

    @property
    def reasons(self) -> dict[str, int]:
        """Rows set aside by reason."""
        return dict(Counter(row.reason for row in self.invalid).most_common())


def read_choices(source: Source) -> QuestionFile:
    """Rows with `question`, `choices` (2 to 26 texts) and `answer`: the place from 0, or a letter.

    Set aside, with a reason: rows that lack one of them. InputError where none can be used.

    >>> read_choices([{"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}]).questions[0].text
    '2 + 2?\\nA. 3\\nB. 4\\nAnswer:'
    """
    rows = read_rows(source, what="questions")
    if lacking := [name for name in ("question", "choices", "answer") if name not in rows.columns]:
        raise InputError(f"{rows.source}: no column {', '.join(lacking)}; the columns are: {', '.join(rows.columns)}")
    questions, invalid = parsed_rows(rows, lambda row, number: [_question(row, number)])
    if not questions:
        raise InputError(f"{rows.source}: no question can be used; row {invalid[0].row}: {invalid[0].detail}")
    return QuestionFile(questions=questions, invalid=invalid, source=rows.source)


def letter_log_probs(
    subject: Subject, encoder: Encoder, questions: Sequence[Question]
) -> Float[np.ndarray, "n choices"]:
    """log P(letter) behind every question, nats, -inf beyond its choices; edits in force act.

    A letter counts with and without a blank before it: log of the summed probability. InputError as `letter_forms`,
    and for a question that cannot be encoded or is too long (see `question_ids`).
    """
    forms = letter_forms(encoder, questions)
    most = len(forms)
    tokens = list(dict.fromkeys(token for form in forms for token in form))
    rows = [ids for question in questions for ids in [question_ids(encoder, question)] if not isinstance(ids, Invalid)]
    if len(rows) < len(questions):
        raise InputError("a question that the model cannot read; leave it out")
    scores = next_log_probs(subject, rows, tokens).numpy()
    columns = [np.logaddexp.reduce(scores[:, [tokens.index(token) for token in form]], axis=1) for form in forms]
    found = np.stack(columns, 1)
    beyond = np.arange(most)[None] >= np.array([len(question.choices) for question in questions])[:, None]
    return np.asarray(np.where(beyond, -np.inf, found))


def letter_forms(encoder: Encoder, questions: Sequence[Question]) -> list[list[int]]:
    """Ids of the letters A, B, ... of the question with most choices: each alone and behind a blank.

    Raises InputError for a letter that is no token, and for two of one question with an id in common: between them the
    model cannot choose.
    """
    letters = LETTERS[: max(len(question.choices) for question in questions)]
    forms = [_forms(encoder, letter) for letter in letters]
    for (one, first), (other, second) in combinations(zip(letters, forms, strict=True), 2):
        if shared := [token for token in first if token in second]:
            raise InputError(
                f"the letters {one} and {other} are one token, id {shared[0]}, of {_name(encoder)}: the answer to a "
                "question of that many choices cannot be told; leave the questions out (choices=, --choices)"
            )
    return forms


def right_answers(log_probs: Float[np.ndarray, "n choices"], questions: Sequence[Question]) -> np.ndarray:
    """Whether the likeliest letter (of equal ones the first) is the right one; [n] bool."""
    return np.asarray(log_probs.argmax(1) == np.array([question.answer for question in questions]))


def question_ids(encoder: Encoder, question: Question) -> Ids | Invalid:
    """What the model reads of a question, or why it cannot."""
    ids = encoder.encode_prompt(Prompt(row=question.row, text=question.text))
    if not isinstance(ids, Invalid) and encoder.max_length is not None and len(ids) >= encoder.max_length:
        detail = f"the model reads {encoder.max_length} tokens"  # encode_prompt has cut its beginning
        return Invalid(row=question.row, reason="too_long", detail=detail, name=question.question_id)
    return ids


def _forms(encoder: Encoder, letter: str) -> list[int]:
    """Ids of the letter alone and behind a blank."""
    texts = (letter, f" {letter}")
    rows = [encoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    unknown = encoder.tokenizer.unk_token_id
    found = list(dict.fromkeys(row[0] for row in rows if len(row) == 1 and row[0] != unknown))
    if not found:
        raise InputError(f"the letter {letter} is no token of {_name(encoder)}")
    return found


def _name(encoder: Encoder) -> str:
    return encoder.tokenizer.name_or_path or "the tokenizer"


def _question(row: dict[str, Any] | str, number: int) -> Question:
    if isinstance(row, str):
        raise RowError("not_a_row", row)
    question, choices = label_of(row, "question"), row.get("choices")
    if question is None or not question.strip():
        raise RowError("empty_question", "`question` is empty")
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
        raise RowError("no_choices", f"`choices`: expected 2 to {len(LETTERS)} texts")
    texts = tuple(str(choice) for choice in choices)
    for text in texts:
        require_encodable(text, "`choices`")
    given = row.get("answer")
    letter = given.strip() if isinstance(given, str) else ""
    place = LETTERS.find(letter) if len(letter) == 1 else given
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(texts):
        raise RowError(
            "unknown_answer", f"`answer` {given!r}: expected a letter, or a place from 0 to {len(texts) - 1}"
        )
    name = label_of(row, "id") or str(number)
    return Question(row=number, question=question, choices=texts, answer=place, question_id=name)
