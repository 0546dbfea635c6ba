"""What does a row of sampled completions say? One prompt, one completion, and whether it came to its end."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .pair_rows import Invalid, RowError, Text, label_of, parse_text
from .ranked_rows import completion_of

COMPLETION = ("completion", "response")  # columns of the completion, the first of them that is there
_WORDS = {"true": True, "1": True, "false": False, "0": False}  # as text in CSV
SAMPLING: Mapping[str, Callable[[float], bool]] = {  # columns -> whether the value leaves the distribution whole
    "temperature": lambda value: value == 1,
    "top_p": lambda value: value >= 1,
    "top_k": lambda value: value <= 0,  # 0 or -1 where a sampler keeps all
    "min_p": lambda value: value <= 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A completion that was drawn from a model."""

    row: int  # data row in its file, from 1
    sample_id: str  # the row's `id`, else its number
    prompt: Text
    completion: Text  # alone, without the prompt; may be empty where the model ended at once
    prompt_id: str | None = None
    finished: bool = True  # False where it was cut at a number of tokens
    cut: str | None = None  # "top_p=0.9": the row says that its draw was not from the whole distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFile:
    """The usable samples of a file, the rows set aside, and what identifies the data."""

    samples: tuple[Sample, ...]
    invalid: tuple[Invalid, ...]
    source: str
    sha256: str
    n_rows: int
    says_finished: bool  # whether the file has a column `finished`

    @property
    def cut(self) -> str | None:
        """The first row that was not drawn at temperature 1 from the whole distribution, as its own columns say.

        For example "row 3: drawn with top_p=0.9". None also where the file has none of the columns `SAMPLING`: what it
        does not say is not known.
        """
        return next((f"row {sample.row}: drawn with {sample.cut}" for sample in self.samples if sample.cut), None)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def require_full_draws(file: SampleFile, role: str) -> None:
    """Raises InputError, naming row and column, where samples of the model `role` are no draws of its distribution.

    role: whose samples they should be, "policy" or "reference". An average over draws of its whole distribution at
    temperature 1 is an expectation, of log-ratios a KL; one over other draws is neither.
    """
    if file.cut is not None:
        raise InputError(
            f"{file.source}, {file.cut}: not drawn from all that the {role} says, so the mean over such samples is no "
            "KL; draw at temperature 1 from the whole distribution: alignscope sample"
        )


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
        cut=_cut(row),
    )


def _finished(row: Mapping[str, Any]) -> bool:
    value = row.get("finished")
    if value is None or value == "":
        return True
    found = _WORDS.get(str(value).strip().lower())
    if found is None:
        raise RowError("finished_invalid", f"`finished` is {value!r}; expected true or false")
    return found


def _cut(row: Mapping[str, Any]) -> str | None:
    """The first setting of sampling that bent or cut the distribution; None for none, or none that is told."""
    for column, whole in SAMPLING.items():
        value = row.get(column)
        if value is None or value == "" or value != value:  # NaN: an empty cell of a table of numbers
            continue
        number = _number(value)
        if number is None:
            raise RowError("sampling_invalid", f"`{column}` is {value!r}; expected a number")
        if not whole(number):
            return f"{column}={number:g}"
    return None


def _number(value: Any) -> float | None:
    """Also as text (CSV)."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # overflow: JSON has integers beyond the largest float
        return None
    return number if math.isfinite(number) else None
