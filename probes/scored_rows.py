"""Sequences as rows of a forward pass: each in a row of its own, or several behind one copy of what they begin with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .capture import rows_at
from .padding import padded
from .subject import Layout, Subject

ALIKE = 0.8  # a batch ends where rows get shorter than this share of its longest: padding costs a whole forward
MASK_ENTRIES = 2**24  # of a batch's masks of rows x columns, 64 MB in float32

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Prompt and completion as ids; positions from `start` on are scored."""

    ids: tuple[int, ...]
    start: int

    @property
    def n_scored(self) -> int:
        return len(self.ids) - self.start


Group = tuple[TokenSequence, ...]  # of one row: more than one have `start` and ids[:start] in common


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRows:
    """A batch, and where the residuals stand that predict its n scored tokens, sequence by sequence."""

    ids: Int[Tensor, "B T"]
    mask: Int[Tensor, "B T"]
    layout: Layout | None  # None: a sequence a row
    rows: Int[Tensor, "n"]
    columns: Int[Tensor, "n"]
    targets: Int[Tensor, "n"]  # the ids that are predicted there
    counts: tuple[int, ...]  # scored tokens of every sequence


def rows_of(groups: Sequence[Group]) -> ScoredRows:
    """[prefix | first rest | second rest | ...], a row a group, padded on the right.

    A rest sees the prefix and itself, and its positions go on from the prefix; the prefix's last state predicts the
    first token of every rest.
    """
    lines = [group[0].ids + tuple(i for other in group[1:] for i in other.ids[other.start :]) for group in groups]
    ids, mask = padded(lines, 0)
    columns: list[Tensor] = []
    targets: list[int] = []
    for group in groups:
        begin = group[0].start
        for sequence in group:
            own = torch.arange(begin - 1, begin - 1 + sequence.n_scored)
            own[:1] = sequence.start - 1
            columns.append(own)
            targets += sequence.ids[sequence.start :]
            begin += sequence.n_scored
    counts = tuple(sequence.n_scored for group in groups for sequence in group)
    of_row = torch.tensor([sum(sequence.n_scored for sequence in group) for group in groups])
    return ScoredRows(
        ids=ids,
        mask=mask,
        layout=_layout(groups, ids.shape[1]) if max(map(len, groups)) > 1 else None,
        rows=torch.repeat_interleave(torch.arange(len(groups)), of_row),
        columns=torch.cat(columns),
        targets=torch.tensor(targets, dtype=torch.long),
        counts=counts,
    )


def _layout(groups: Sequence[Group], width: int) -> Layout:
    positions = torch.zeros(len(groups), width, dtype=torch.long)
    part = torch.full((len(groups), width), -1)  # 0 in the prefix, k in the k-th rest, -1 on padding
    for row, group in enumerate(groups):
        end = group[0].start
        positions[row, :end], part[row, :end] = torch.arange(end), 0
        for number, sequence in enumerate(group, 1):
            place = slice(end, end + sequence.n_scored)
            positions[row, place], part[row, place] = torch.arange(sequence.start, len(sequence.ids)), number
            end = place.stop
    related = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    return Layout(position_ids=positions, visible=related & torch.ones(width, width, dtype=torch.bool).tril())


def residuals(subject: Subject, rows: ScoredRows) -> Float[Tensor, "n d"]:
    """The last residual, before the final norm, at every place that predicts a scored token."""
    device, last = subject.device, subject.n_layers
    with torch.no_grad():
        return subject.trace(
            rows.ids.to(device),
            rows.mask.to(device),
            reduce=rows_at(rows.rows.to(device), rows.columns.to(device)),
            layers=[last],
            **({} if rows.layout is None else {"layout": rows.layout}),
        )[last]


def begin_alike(first: TokenSequence, second: TokenSequence) -> bool:
    """Whether two sequences are scored behind the same ids."""
    return first.start == second.start and first.ids[: first.start] == second.ids[: second.start]


def width_of(group: Group) -> int:
    """Tokens of its row."""
    return group[0].start + sum(sequence.n_scored for sequence in group)


def over_batches(
    groups: Sequence[Group], batch_tokens: int, measure: Callable[[ScoredRows], list[Value]]
) -> list[list[Value]]:
    """What `measure` gives for every sequence of a batch, for every sequence of every group, in the order given."""
    found: dict[int, list[Value]] = {}
    for several in (False, True):
        order = [i for i, group in enumerate(groups) if (len(group) > 1) is several]
        order.sort(key=lambda i: -width_of(groups[i]))
        for batch in batches([width_of(groups[i]) for i in order], batch_tokens, masked=several):
            values = iter(measure(rows_of([groups[i] for i in order[batch]])))
            found |= {i: [next(values) for _ in groups[i]] for i in order[batch]}
    return [found[i] for i in range(len(groups))]


def batches(widths: Sequence[int], batch_tokens: int, *, masked: bool = False) -> Iterator[slice]:
    """Slices of rows that come longest first: alike in length, at most `batch_tokens` padded, or one row.

    masked: rows with a mask of rows x columns, which count too.
    """
    start = 0
    while start < len(widths):
        width = widths[start]
        most = batch_tokens // width if not masked else min(batch_tokens // width, MASK_ENTRIES // width**2)
        stop = min(len(widths), start + max(1, most))
        stop = next((i for i in range(start, stop) if widths[i] < ALIKE * width), stop)
        yield slice(start, stop)
        start = stop


def padded_tokens(groups: Sequence[Group], batch_tokens: int) -> int:
    """Tokens, padding included, that pass the model for these groups."""
    total = 0
    for several in (False, True):
        widths = sorted((width_of(group) for group in groups if (len(group) > 1) is several), reverse=True)
        slices = batches(widths, batch_tokens, masked=several)
        total += sum(widths[part.start] * (part.stop - part.start) for part in slices)
    return total
