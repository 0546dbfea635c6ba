"""Prompts and preference pairs: what a row says, and which rows cannot be used and why.

A bad row never stops the reading: it becomes an `Invalid` with its reason. A file that holds no pairs at all (missing,
empty, unreadable, other columns) is an InputError. Text becomes ids in encoding.py.
"""

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import InputError
from .pair_rows import Invalid, Pair, PairShape, RowError, Text, parse_pair, parse_text, require_encodable, row_name
from .ranked_rows import completion_of, is_ranked, parse_ranking
from .row_files import Rows, read_rows
from .sample_rows import SampleFile, completion_column, parse_sample, require_full_draws

__all__ = [
    "Invalid",
    "Pair",
    "PairFile",
    "Prompt",
    "PromptFile",
    "SampleFile",
    "check_invalid",
    "distinct_prompts",
    "read_pairs",
    "read_prompts",
    "read_samples",
    "require_full_draws",
]

Source = str | os.PathLike[str] | Iterable[Any]  # a file, or its rows
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt: a string, or the messages of a conversation."""

    row: int  # data row in its file, from 1
    text: Text
    prompt_id: str | None = None
    response: Text | None = None  # an answer beside it; only a trace with lens_positions="response" reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFile:
    """The usable pairs of a file, the rows set aside, and what identifies the data."""

    pairs: tuple[Pair, ...]
    invalid: tuple[Invalid, ...]
    source: str
    sha256: str  # of the file's bytes
    n_rows: int  # rows of the file; a ranking is one row and several pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def take(self, n: int) -> "PairFile":
        """The first n usable pairs, with the rows set aside among them."""
        if n >= len(self.pairs):
            return self
        kept = self.pairs[:n]
        invalid = tuple(row for row in self.invalid if kept and row.row < kept[-1].row)
        digest = hashlib.sha256(f"{self.sha256}, first {n} pairs".encode()).hexdigest()
        n_rows = len({pair.row for pair in kept}) + len(invalid)
        return replace(self, pairs=kept, invalid=invalid, sha256=digest, n_rows=n_rows)

    def prompts(self, limit: int | None = 512, seed: int = 0) -> "PromptFile":
        """Its distinct prompts: see `distinct_prompts`."""
        return distinct_prompts(self, limit=limit, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """The usable prompts of a file, the rows set aside, and what identifies the data."""

    prompts: tuple[Prompt, ...]
    invalid: tuple[Invalid, ...]
    source: str
    sha256: str
    n_rows: int

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]


def read_pairs(source: Source) -> PairFile:
    """Preference pairs of a .jsonl, .json, .csv or .parquet file, or of a list of dictionaries.

    A row has one of these shapes (strings, or message lists `[{"role": ..., "content": ...}]`):

    - `prompt`, `chosen`, `rejected`; optional `votes_chosen`, `votes_rejected`, `votes_tie`, or `preference` in [0, 1]
      = P(chosen preferred);
    - `chosen`, `rejected` alone: whole conversations (the prompt is what both share before the answer), or whole texts
      (the prompt ends with the last "\\n\\nAssistant:");
    - `prompt`, `response_a`, `response_b` with `votes_a`, `votes_b`, `votes_tie`, or `preference` (of a), or `label`;
    - `prompt`, `responses` (a list) with `ranks` (1 = best, ties allowed) or `scores` (higher = better): all their
      pairs, see parse_ranking. One response or rank that cannot be used sets the whole row aside.

    Optional: `id`, `prompt_id`, `split`, `tag`, and scores of a reward model `explicit_chosen`, `explicit_rejected`
    (`explicit_a`, `explicit_b`). Rows are turned so that the preference for chosen is at least 1/2 (`swapped`).

    >>> file = read_pairs([{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, {"prompt": "?", "chosen": 4}])
    >>> len(file), [(row.row, row.reason) for row in file.invalid]
    (1, [(2, 'not_string')])
    """
    if isinstance(source, PairFile):
        return source
    rows = read_rows(source, what="pairs")
    pairs, invalid = parsed_rows(rows, _pair_reader(rows))
    return PairFile(pairs=pairs, invalid=invalid, source=rows.source, sha256=rows.sha256, n_rows=len(rows.rows))


def read_prompts(source: Source) -> PromptFile:
    """Prompts of a file with a `prompt` (else `text`) column, or of a list of strings or dictionaries (also .json).

    Optional: `prompt_id`, and `response`, a string or messages, which a trace with lens_positions="response" reads.

    >>> [prompt.text for prompt in read_prompts(["Why is the sky blue?", "Name a fish."])]
    ['Why is the sky blue?', 'Name a fish.']
    """
    if isinstance(source, PromptFile):
        return source
    rows = read_rows(source, what="prompts", bare="prompt")
    column = _prompt_column(rows)
    prompts, invalid = parsed_rows(rows, lambda row, number: [_parse_prompt(row, number, column)])
    return PromptFile(prompts=prompts, invalid=invalid, source=rows.source, sha256=rows.sha256, n_rows=len(rows.rows))


def read_samples(source: Source) -> SampleFile:
    """Completions drawn from a model: rows with `prompt` and `completion` (or `response`), strings or messages.

    Optional: `id`, `prompt_id` (else the prompt itself tells samples of one prompt), and `finished`: false where the
    sample was cut at a number of tokens before it ended. Equal rows are kept: a model may say the same twice. Columns
    `temperature`, `top_p`, `top_k`, `min_p` say how a row was drawn: `SampleFile.cut`, `require_full_draws`.

    >>> file = read_samples([{"prompt": "2 + 2 =", "completion": " 4"}, {"prompt": "?", "response": "!"}])
    >>> [sample.completion for sample in file], file.invalid[0].reason
    ([' 4'], 'missing_field')
    """
    if isinstance(source, SampleFile):
        return source
    rows = read_rows(source, what="samples")
    column = completion_column(rows.columns, rows.source)
    samples, invalid = parsed_rows(rows, lambda row, number: [parse_sample(row, number, column)])
    return SampleFile(
        samples=samples,
        invalid=invalid,
        source=rows.source,
        sha256=rows.sha256,
        n_rows=len(rows.rows),
        says_finished="finished" in rows.columns,
    )


def distinct_prompts(pairs: PairFile, limit: int | None = 512, seed: int = 0) -> PromptFile:
    """The distinct prompts of the pairs, in file order; more than `limit` are sampled without replacement, seeded."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(json.dumps(pair.prompt, ensure_ascii=False), pair)
    found = [
        Prompt(row=pair.row, text=pair.prompt, prompt_id=pair.prompt_id, response=pair.chosen)
        for pair in first.values()
        if not is_blank(pair.prompt)
    ]
    n_distinct = len(found)
    if limit is not None and len(found) > limit:
        chosen = sorted(random.Random(seed).sample(range(len(found)), limit))
        found = [found[i] for i in chosen]
    digest = hashlib.sha256(json.dumps([p.text for p in found], ensure_ascii=True).encode()).hexdigest()
    sampled = f"{len(found)} of {n_distinct} " if len(found) < n_distinct else ""
    return PromptFile(
        prompts=tuple(found), invalid=(), source=f"{sampled}prompts of {pairs.source}", sha256=digest, n_rows=len(found)
    )


def check_invalid(
    file: PairFile | PromptFile | SampleFile, max_invalid: float = 0.05, *, more: Iterable[Invalid] = ()
) -> None:
    """Stop where a larger share than `max_invalid` cannot be used, or nothing is left.

    share = 1 - (usable rows / rows) (kept pairs / pairs of usable rows): the share of rows where a row is a pair; where
    rows are rankings, a bad row weighs what the others do on average.
    more: what was set aside after reading, a pair each (too long, duplicate, ...). Raises InputError with the counts by
    reason and the first row of each.
    """
    if not 0 <= max_invalid <= 1:
        raise InputError(f"--max-invalid {max_invalid}: a share between 0 and 1 is expected")
    later = tuple(more)
    invalid = (*file.invalid, *later)
    kept = (file.n_rows - len(file.invalid)) * (len(file) - len(later))  # of n_rows * len(file), in whole numbers
    everything = file.n_rows * len(file)
    if kept > 0 and everything - kept <= max_invalid * everything:
        return
    first: dict[str, Invalid] = {}
    for row in invalid:
        first.setdefault(row.reason, row)
    reasons = "; ".join(
        f"{n} {reason} (first: row {first[reason].row}, {first[reason].detail})"
        for reason, n in Counter(row.reason for row in invalid).most_common()
    )
    if any(row.reason == "too_long" for row in invalid):
        reasons += ". Too long: --over-length prompt_left (over_length=) cuts prompts, the same for both sides"
    share = _share_set_aside(file, len(later), 1 - kept / everything if everything else 1.0)
    if kept <= 0:
        raise InputError(f"{file.source}: nothing is left: {share}: {reasons}. Mend the file")
    raise InputError(
        f"{file.source}: {share}, more than --max-invalid {max_invalid:g}: {reasons}. "
        "Mend the file, or raise --max-invalid"
    )


def _share_set_aside(file: PairFile | PromptFile | SampleFile, later: int, share: float) -> str:
    """Rows, or rows and pairs where a row makes several."""
    early = len(file.invalid)
    if len(file) == file.n_rows - early:
        return f"{early + later} of {file.n_rows} rows ({share:.1%}) cannot be used"
    also = f" and {later} of the {len(file)} pairs of the others" if later else ""
    return f"{early} of {file.n_rows} rows{also} ({share:.1%} in all) cannot be used"


def is_blank(text: Text) -> bool:
    """True where there is nothing but white space."""
    return not (text if isinstance(text, str) else "".join(message["content"] for message in text)).strip()


def parsed_rows(
    rows: Rows, items_of: Callable[[dict[str, Any] | str, int], Sequence[Item]]
) -> tuple[tuple[Item, ...], tuple[Invalid, ...]]:
    """What the rows hold, and those set aside because `items_of(row, number)` raised RowError."""
    items: list[Item] = []
    invalid: list[Invalid] = []
    for number, row in enumerate(rows.rows, start=1):
        try:
            items += items_of(row, number)
        except RowError as error:
            invalid.append(Invalid(row=number, reason=error.reason, detail=error.detail, name=row_name(row)))
    return tuple(items), tuple(invalid)


def _pair_reader(rows: Rows) -> Callable[[dict[str, Any] | str, int], list[Pair]]:
    """What turns a row of this file and its number into pairs. It raises RowError, also for a ranking's id twice."""
    if not is_ranked(rows.columns):
        shape = PairShape.of(rows.columns, rows.source)
        return lambda row, number: [parse_pair(row, number, shape)]
    first: dict[str | None, int] = {}

    def ranking(row: dict[str, Any] | str, number: int) -> list[Pair]:
        pairs = parse_ranking(row, number)
        ranking_id = pairs[0].ranking_id
        if first.setdefault(ranking_id, number) != number:
            raise RowError("duplicate_id", f"`id` {ranking_id!r} is that of row {first[ranking_id]}")
        return pairs

    return ranking


def _prompt_column(rows: Rows) -> str:
    for column in ("prompt", "text"):
        if column in rows.columns:
            return column
    raise InputError(
        f"{rows.source}: no column `prompt` or `text`; the columns are: {', '.join(rows.columns) or 'none'}. "
        "Rename the column that holds the prompts"
    )


def _parse_prompt(row: dict[str, Any] | str, number: int, column: str) -> Prompt:
    if isinstance(row, str):
        raise RowError("not_a_row", row)
    text = parse_text(row, column)
    if is_blank(text):
        raise RowError("empty_prompt", f"`{column}` is empty")
    given = row.get("prompt_id")
    require_encodable(str(given), "`prompt_id`")
    return Prompt(
        row=number,
        text=text,
        prompt_id=None if given in (None, "") else str(given),
        response=_response(row, text) if "response" in row else None,
    )


def _response(row: dict[str, Any], prompt: Text) -> Text | None:
    """The column `response` where it is text: a prompt is good without one."""
    try:
        return completion_of(prompt, parse_text(row, "response"), "response") or None
    except RowError:
        return None


def prompts_or_distinct(prompts: Any, pairs: PairFile | None, seed: int, max_invalid: float) -> PromptFile:
    """The prompts given, checked; without any the distinct prompts of the pairs, at most 512."""
    if prompts is None:
        if pairs is None:
            raise InputError("no prompts: give prompts, or pairs that they are taken from")
        return distinct_prompts(pairs, seed=seed)
    file = prompts if isinstance(prompts, PromptFile) else read_prompts(prompts)
    check_invalid(file, max_invalid)
    return file
