"""What does one row of a quadruple file say, and how does a preference pair become one?"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..probes.inputs import is_blank
from ..probes.pair_rows import ASSISTANT_MARK, PairShape, RowError, Text, label_of, parse_pair, parse_text, plain_text
from ..probes.ranked_rows import completion_of

COLUMNS = ("negative_input", "negative_output", "positive_input", "positive_output")
TEMPLATE = "{prompt}\n\nInclude this in your answer: {concept}"  # x_c of a preference pair [reconstructed]

Template = str | Callable[[str, str], str]  # with {prompt} and {concept}, or a function of both


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadruple:
    """Two inputs and an output for each: negative without the concept, positive with it."""

    row: int  # data row in its file, from 1
    quadruple_id: str  # the row's `id`, else its number
    negative_input: Text  # x
    negative_output: Text  # y
    positive_input: Text  # x_c
    positive_output: Text  # y_c
    concept: str | None = None
    concept_id: str | None = None
    concept_genre: str | None = None
    x_c_built: bool = False  # the positive input was made of the negative one and the concept's text [reconstructed]

    @property
    def concept_in_input(self) -> bool:
        """Whether the plain input holds the concept's text already: then it is no plain input."""
        return self.concept is not None and self.concept.casefold() in plain_text(self.negative_input).casefold()


def parse_quadruple(row: dict[str, Any] | str, number: int, concept: str | None) -> Quadruple:
    """The quadruple in data row `number`. Raises RowError with the reason where the row cannot be used."""
    if isinstance(row, str):
        raise RowError("not_a_row", row)
    negative_input, negative_output, positive_input, positive_output = (parse_text(row, column) for column in COLUMNS)
    if isinstance(negative_input, str) != isinstance(positive_input, str):
        raise RowError("mixed_forms", "one of `negative_input`, `positive_input` is a string, the other messages")
    made = Quadruple(
        row=number,
        quadruple_id=label_of(row, "id") or str(number),
        negative_input=negative_input,
        negative_output=completion_of(negative_input, negative_output, "negative_output"),
        positive_input=positive_input,
        positive_output=completion_of(positive_input, positive_output, "positive_output"),
        **_labels(row, concept),
    )
    return _checked(made)


def parse_built(
    row: dict[str, Any] | str,
    number: int,
    shape: PairShape,
    concept: str | None,
    make: Callable[[str, str], str],
    shows: str,
) -> Quadruple:
    """The quadruple built of the preference pair in data row `number`. Raises RowError with the reason."""
    pair = parse_pair(row, number, shape)
    assert isinstance(row, dict)  # parse_pair has refused all else
    labels = _labels(row, concept)
    text = labels["concept"]
    if text is None:
        raise RowError("missing_field", "`concept` is missing")
    if is_blank(pair.prompt):
        raise RowError("empty_prompt", "`prompt` is empty")
    outputs = (pair.rejected, pair.chosen) if shows == "chosen" else (pair.chosen, pair.rejected)
    made = Quadruple(
        row=number,
        quadruple_id=pair.pair_id,
        negative_input=pair.prompt,
        negative_output=outputs[0],
        positive_input=asking(pair.prompt, lambda turn: make(turn, text)),
        positive_output=outputs[1],
        x_c_built=True,
        **labels,
    )
    return _checked(made)


def _checked(row: Quadruple) -> Quadruple:
    for column in COLUMNS:
        if is_blank(getattr(row, column)):
            raise RowError("empty_prompt" if column.endswith("input") else "empty_completion", f"`{column}` is empty")
    if row.negative_output == row.positive_output:
        raise RowError("identical_completions", "`negative_output` and `positive_output` are the same text")
    if row.negative_input == row.positive_input:
        raise RowError("identical_prompts", "`negative_input` and `positive_input` are the same text")
    return row


def _labels(row: Mapping[str, Any], concept: str | None) -> dict[str, Any]:
    labels = {column: label_of(row, column) for column in ("concept", "concept_id", "concept_genre")}
    own = labels["concept"]
    return labels | {"concept": own if own is not None and own.strip() else concept}


def asking(prompt: Text, make: Callable[[str], str]) -> Text:
    """The prompt with its last user turn changed: a plain text as a whole, a transcript before its "Assistant:"."""
    if isinstance(prompt, str):
        mark = ASSISTANT_MARK if prompt.endswith(ASSISTANT_MARK) else ""
        return make(prompt.removesuffix(mark)) + mark
    asked = [place for place, message in enumerate(prompt) if message["role"] == "user"]
    if not asked:
        raise RowError("mixed_forms", "`prompt` has no message of a user, to which the concept could be added")
    last = asked[-1]
    return (*prompt[:last], prompt[last] | {"content": make(prompt[last]["content"])}, *prompt[last + 1 :])


def filling(template: Template | None) -> Callable[[str, str], str]:
    """The function (prompt, concept) -> x_c that a template is; None: TEMPLATE. InputError where a name is missing."""
    given = TEMPLATE if template is None else template
    if not isinstance(given, str):
        return given
    missing = [name for name in ("{prompt}", "{concept}") if name not in given]
    if missing:
        raise InputError(f"template {given!r}: {' and '.join(missing)} missing; the built input must hold both")

    def filled(prompt: str, concept: str) -> str:
        texts = {"{prompt}": prompt, "{concept}": concept}
        return re.sub(r"\{prompt\}|\{concept\}", lambda match: texts[match.group()], given)  # braces of texts stay

    return filled
