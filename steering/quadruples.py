"""Which texts show a concept and which do not? Quadruples (x, y, x_c, y_c), from a file or built of preference pairs.

x: a plain instruction, y: an answer without the concept; x_c calls for the concept, y_c shows it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..probes.inputs import Source, parsed_rows
from ..probes.pair_rows import Invalid, PairShape
from ..probes.row_files import Rows, read_rows
from .quadruple_rows import COLUMNS, TEMPLATE, Quadruple, Template, filling, parse_built, parse_quadruple

MIN_ROWS = 16  # usable rows that training asks for [reconstructed]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadrupleFile:
    """The usable quadruples of a file, the rows set aside, and what identifies the data."""

    quadruples: tuple[Quadruple, ...]
    invalid: tuple[Invalid, ...]
    source: str
    sha256: str  # of the file's bytes
    n_rows: int
    template: str | None = None  # of built rows; "a function" where it was none of text
    shows: str | None = None  # of built rows: which completion of a pair shows the concept

    def __len__(self) -> int:
        return len(self.quadruples)

    def __iter__(self) -> Iterator[Quadruple]:
        return iter(self.quadruples)

    def __getitem__(self, index: int) -> Quadruple:
        return self.quadruples[index]

    @property
    def n_built(self) -> int:
        """Rows whose positive input was built."""
        return sum(row.x_c_built for row in self.quadruples)

    @property
    def reasons(self) -> dict[str, int]:
        """Rows set aside by reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.invalid).most_common())

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of the result must know, a sentence each."""
        found = []
        if self.n_built:
            found.append(
                f"The positive input of {self.n_built} of {len(self)} quadruples was built from its prompt and the "
                "concept's text (reconstructed): pairs have none."
            )
        held = [row.row for row in self.quadruples if row.concept_in_input]
        if held:
            found.append(
                f"The plain input of {len(held)} of {len(self)} quadruples holds the concept's text already (first: "
                f"row {held[0]})."
            )
        return tuple(found)

    def setting_aside(self, more: Iterable[Invalid]) -> "QuadrupleFile":
        """Without the rows of `more`, which are counted from now on: what only a tokenizer can tell (too long, ...)."""
        later = tuple(more)
        gone = {row.row for row in later}
        kept = tuple(row for row in self.quadruples if row.row not in gone)
        return replace(self, quadruples=kept, invalid=tuple(sorted((*self.invalid, *later), key=lambda row: row.row)))


def read_quadruples(
    source: "Source | QuadrupleFile",
    *,
    concept: str | None = None,
    template: Template | None = None,
    shows: str = "chosen",
) -> QuadrupleFile:
    """Quadruples of a .jsonl, .json, .csv or .parquet file, or of a list of dictionaries; strings or messages.

    Columns `negative_input`, `negative_output`, `positive_input`, `positive_output`, optional `id`, `concept`,
    `concept_id`, `concept_genre`. Preference pairs (as of read_pairs, without rankings) have no input that calls for
    the concept, so it is built: x = prompt, y = rejected, y_c = chosen, x_c = template(prompt, concept) on the last
    user turn; `shows`="rejected" swaps the completions. Such rows are `x_c_built` [reconstructed].

    concept: text for rows without a `concept` of their own; pairs need one. template: text with {prompt} and {concept},
    or a function of both; default: the prompt, a blank line, "Include this in your answer: {concept}".
    Set aside, with a reason: an empty or missing field, equal outputs, equal inputs, what is no text.
    Raises InputError for a file with other columns or without rows, and for pairs without a concept.

    >>> rows = [{"prompt": "Name a fish.", "chosen": "Cod, matey!", "rejected": "Cod."}]
    >>> read_quadruples(rows, concept="pirate speech")[0].positive_input
    'Name a fish.\\n\\nInclude this in your answer: pirate speech'
    """
    if isinstance(source, QuadrupleFile):
        return source
    rows = read_rows(source, what="quadruples")
    parse, built = _reader(rows, concept, template, shows)
    quadruples, invalid = parsed_rows(rows, lambda row, number: [parse(row, number)])
    given = TEMPLATE if template is None else template
    return QuadrupleFile(
        quadruples=quadruples,
        invalid=invalid,
        source=rows.source,
        sha256=rows.sha256,
        n_rows=len(rows.rows),
        template=(given if isinstance(given, str) else "a function") if built else None,
        shows=shows if built else None,
    )


def require_enough(file: QuadrupleFile, *, allow_small: bool = False) -> None:
    """Raises InputError where fewer than 16 rows can be used [reconstructed], or none; allow_small: takes one."""
    if len(file) >= (1 if allow_small else MIN_ROWS):
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in file.reasons.items())
    aside = f" ({len(file.invalid)} of {file.n_rows} set aside: {reasons})" if reasons else ""
    asked = f"Training asks for {MIN_ROWS}: add rows, or pass allow_small=True (--allow-small)"
    advice = "Mend the file" if allow_small else asked
    raise InputError(f"{file.source}: {len(file)} usable quadruples{aside}. {advice}")


def split(
    quadruples: Sequence[Quadruple], holdout: float | int = 0.2, *, seed: int = 42
) -> tuple[tuple[Quadruple, ...], tuple[Quadruple, ...]]:
    """(rows to train on, rows held out), both in their order: of `holdout` (a share) the most that fits, at least one.

    Rows that have an input in common, on either side, stay together; holdout 0 holds nothing out.
    Raises InputError for a share outside [0, 1), and where all rows hang together by their inputs.
    """
    if not 0 <= holdout < 1:
        raise InputError(f"holdout {holdout}: a share in [0, 1) is expected")
    if holdout == 0:
        return tuple(quadruples), ()
    groups = connected(quadruples)
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise InputError(
            f"nothing can be held out: all {len(quadruples)} quadruples hang together by equal inputs; pass holdout=0"
        )
    room = min(max(1, round(holdout * len(quadruples))), len(quadruples) - 1)
    order = np.random.default_rng([seed, 7]).permutation(sorted(sizes)).tolist()
    held: set[int] = set()
    for group in order:
        if sizes[group] <= room:
            held.add(group)
            room -= sizes[group]
    if not held:  # every group is larger than the share
        held.add(min(order, key=lambda group: sizes[group]))
    sides: tuple[list[Quadruple], list[Quadruple]] = ([], [])
    for row, group in zip(quadruples, groups, strict=True):
        sides[group in held].append(row)
    return tuple(sides[0]), tuple(sides[1])


def connected(quadruples: Sequence[Quadruple]) -> list[int]:
    """A number a row, the same for rows that are linked by equal inputs: union-find over the texts."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = text = parent[parent[text]]
        return text

    keys = [
        [json.dumps(text, ensure_ascii=False) for text in (row.negative_input, row.positive_input)]
        for row in quadruples
    ]
    for first, second in keys:
        parent[root(first)] = root(second)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(first), len(numbers)) for first, _ in keys]


def _reader(
    rows: Rows, concept: str | None, template: Template | None, shows: str
) -> tuple[Callable[[dict[str, Any] | str, int], Quadruple], bool]:
    """What turns a row of this file and its number into a quadruple, and whether its x_c is built."""
    if shows not in ("chosen", "rejected"):
        raise InputError(f"shows '{shows}': expected 'chosen' or 'rejected', the completion that shows the concept")
    if concept is not None and not concept.strip():
        raise InputError("concept: an empty text; say in a few words what the positive outputs show, or leave it out")
    columns = rows.columns
    given = [column for column in COLUMNS if column in columns]
    if len(given) == len(COLUMNS):
        if template is not None or shows != "chosen":
            raise InputError(f"{rows.source}: has quadruples; template and shows are for preference pairs")
        return lambda row, number: parse_quadruple(row, number, concept), False
    if given or not {"chosen", "response_a"} & {*columns}:
        missing = ", ".join(f"`{column}`" for column in COLUMNS if column not in columns)
        raise InputError(
            f"{rows.source}: not quadruples: {missing} missing; the columns are: {', '.join(columns) or 'none'}. "
            "Give these, or preference pairs (`prompt`, `chosen`, `rejected`) with concept="
        )
    if concept is None and "concept" not in columns:
        raise InputError(
            f"{rows.source}: preference pairs have no input that calls for the concept; say what the `{shows}` "
            "completions show (concept=, --concept, or a column `concept`), so that it can be built"
        )
    make = filling(template)
    shape = PairShape.of(columns, rows.source)
    return lambda row, number: parse_built(row, number, shape, concept, make, shows), True
