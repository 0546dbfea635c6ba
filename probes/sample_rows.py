"""What does a row of sampled completions say? One prompt, one completion, and whether it came to its end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .pair_rows import Invalid, RowError, Text, label_of, parse_text
from .ranked_rows import completion_of

COMPLETION = ("completion", "response")  # columns of the completion, the first of them that is there
_WORDS = {"true": True, "1": True, "false": False, "0": False}  # as text in CSV


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A completion that was drawn from a model."""

    row: int  # data row in its file, from 1
    sample_id: str  # the row's `id`, else its number
    prompt: Text
    completion: Text  # alone, without the prompt; may be empty where the model ended at once
    prompt_id: str | None = None
    finished: bool = True  # False where it was cut at a number of tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFile:
    """The usable samples of a file, the rows set aside, and what identifies the data."""

    samples: tuple[Sample, ...]
    invalid: tuple[Invalid, ...]
    source: str
    sha256: str
    n_rows: int
    says_finished: bool  # whether the file has a column `finished`

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def completion_column(columns: Sequence[str], source: str) -> str:
    """Raises InputError, with the columns found, where the file holds no samples."""
    for column in COMPLETION:
        if {"prompt", column} <= {*columns}:
            return column
    raise InputError(
        f"{source}: not a file of samples; the columns are: {', '.join(columns) or 'none'}; expected `prompt` and "
        "`completion` (or `response`), and perhaps `prompt_id`, `finished`"
    )


def parse_sample(row: dict[str, Any] | str, number: int, column: str) -> Sample:
    """The sample in data row `number`. Raises RowError with the reason where the row cannot be used."""
    if isinstance(row, str):
        raise RowError("not_a_row", row)
    prompt = parse_text(row, "prompt")
    return Sample(
        row=number,
        sample_id=label_of(row, "id") or str(number),
        prompt=prompt,
        completion=completion_of(prompt, parse_text(row, column), column),
        prompt_id=label_of(row, "prompt_id"),
        finished=_finished(row),
    )


def _finished(row: Mapping[str, Any]) -> bool:
    value = row.get("finished")
    if value is None or value == "":
        return True
    found = _WORDS.get(str(value).strip().lower())
    if found is None:
        raise RowError("finished_invalid", f"`finished` is {value!r}; expected true or false")
    return found
