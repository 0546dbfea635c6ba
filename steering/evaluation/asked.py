"""What is the steered model asked? Prompts with the concept and the direction that an answer is judged by."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError
from ...probes.encoding import Encoder, Ids
from ...probes.inputs import Prompt, Source, is_blank, parsed_rows
from ...probes.pair_rows import Invalid, RowError, Text, label_of, parse_text
from ...probes.row_files import Rows, read_rows
from ..quadruples import QuadrupleFile, read_quadruples
from .ratings import DIRECTIONS

QUADRUPLES = ("negative_input", "positive_input")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPrompt:
    """A prompt that is answered at every strength."""

    row: int  # data row in its file, from 1
    prompt_id: str  # the row's `prompt_id` (or `id`), else its number
    text: Text
    concept: str
    direction: str
    partner: Text | None = None  # the other input of its quadruple: x_c to elicit, x to suppress
    ids: Ids = ()

    @property
    def cluster(self) -> str:
        """The same for equal texts: answers to one prompt are not independent, whatever the concept."""
        return hashlib.sha256(json.dumps(self.text, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedFile:
    """The usable prompts of a file, the rows set aside, and what identifies the data."""

    prompts: tuple[AskedPrompt, ...]
    invalid: tuple[Invalid, ...]
    source: str
    sha256: str

    @property
    def reasons(self) -> dict[str, int]:
        """Rows set aside by reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.invalid).most_common())


def read_asked(source: "Source | QuadrupleFile", *, concept: str = "", direction: str = "elicit") -> AskedFile:
    """Prompts of a file or list: strings, or rows with `prompt` (else `text`), strings or messages.

    Optional columns: prompt_id (or id), concept, direction; without them those of the arguments hold. Quadruples give
    two prompts a row: x to elicit, x_c to suppress. Set aside, with a reason: an empty prompt, a text or an id that
    occurred before under the same concept and direction. InputError for another direction, no prompt column, no prompt.

    >>> [(p.prompt_id, p.text) for p in read_asked(["Name a fish.", " "], concept="pirate speech").prompts]
    [('1', 'Name a fish.')]
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction '{direction}': expected one of {', '.join(DIRECTIONS)}")
    if isinstance(source, QuadrupleFile):
        return _of_quadruples(source, concept)
    rows = read_rows(source, what="prompts", bare="prompt")
    if {*QUADRUPLES} <= {*rows.columns}:
        return _of_quadruples(read_quadruples([row for row in rows.rows if isinstance(row, dict)]), concept)
    column = next((name for name in ("prompt", "text") if name in rows.columns), None)
    if column is None:
        raise InputError(f"{rows.source}: no column `prompt` or `text`; the columns are: {', '.join(rows.columns)}")
    found, invalid = parsed_rows(rows, _reader(column, concept, direction))
    return _distinct(found, invalid, rows)


def encoded(file: AskedFile, encoder: Encoder, room: int) -> AskedFile:
    """The prompts with their ids; those that leave no room for `room` tokens, or cannot be encoded, set aside.

    Raises InputError where none is left.
    """
    kept, invalid = [], [*file.invalid]
    for prompt in file.prompts:
        ids = encoder.encode_prompt(Prompt(row=prompt.row, text=prompt.text, prompt_id=prompt.prompt_id))
        if isinstance(ids, Invalid):
            invalid.append(ids)
        elif not ids:
            invalid.append(_aside(prompt, "no_context", "the prompt has no token, and no BOS is added"))
        elif encoder.max_length is not None and len(ids) + room > encoder.max_length:
            detail = f"{len(ids)} tokens and {room} to come, the model reads {encoder.max_length}"
            invalid.append(_aside(prompt, "too_long", detail))
        else:
            kept.append(replace(prompt, ids=ids))
    if not kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(row.reason for row in invalid).items())
        raise InputError(f"{file.source}: no prompt is left ({reasons}). Mend the file, or ask for fewer new tokens")
    return replace(file, prompts=tuple(kept), invalid=tuple(invalid))


def _reader(column: str, concept: str, direction: str) -> Callable[[dict[str, Any] | str, int], list[AskedPrompt]]:
    def read(row: dict[str, Any] | str, number: int) -> list[AskedPrompt]:
        if isinstance(row, str):
            raise RowError("not_a_row", row)
        text = parse_text(row, column)
        if is_blank(text):
            raise RowError("empty_prompt", f"`{column}` is empty")
        asked = label_of(row, "direction") or direction
        if asked not in DIRECTIONS:
            raise RowError("unknown_direction", f"`direction` {asked!r}: expected one of {', '.join(DIRECTIONS)}")
        return [
            AskedPrompt(
                row=number,
                prompt_id=label_of(row, "prompt_id") or label_of(row, "id") or str(number),
                text=text,
                concept=label_of(row, "concept") or concept,
                direction=asked,
            )
        ]

    return read


def _of_quadruples(file: QuadrupleFile, concept: str) -> AskedFile:
    found = [
        AskedPrompt(
            row=row.row,
            prompt_id=row.quadruple_id,
            text=getattr(row, name),
            concept=row.concept or concept,
            direction=direction,
            partner=getattr(row, other),
        )
        for direction, name, other in zip(DIRECTIONS, QUADRUPLES, QUADRUPLES[::-1], strict=True)
        for row in file
    ]
    return _distinct(found, file.invalid, file)


def _distinct(found: Sequence[AskedPrompt], invalid: Sequence[Invalid], of: "Rows | QuadrupleFile") -> AskedFile:
    """Without what is there already: equal prompts would choose a strength and be reported."""
    texts: dict[tuple[str, str, str], int] = {}
    ids: dict[tuple[str, str, str], int] = {}
    kept, aside = [], [*invalid]
    for prompt in found:
        key = prompt.concept, prompt.direction
        first = texts.setdefault((*key, prompt.cluster), prompt.row)
        if first != prompt.row:
            aside.append(_aside(prompt, "duplicate_prompt", f"the prompt of row {first}"))
        elif (first := ids.setdefault((*key, prompt.prompt_id), prompt.row)) != prompt.row:
            aside.append(_aside(prompt, "duplicate_id", f"id {prompt.prompt_id!r} is that of row {first}"))
        else:
            kept.append(prompt)
    return AskedFile(prompts=tuple(kept), invalid=tuple(aside), source=of.source, sha256=of.sha256)


def _aside(prompt: AskedPrompt, reason: str, detail: str) -> Invalid:
    return Invalid(row=prompt.row, reason=reason, detail=detail, name=prompt.prompt_id)
