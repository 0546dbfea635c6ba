"""What `faithfulness` gives: KL and recovered share by method and direction, with what each row contributed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ...diagnose.phrases import in_share
from ...diagnose.report import Estimate
from .candidates import WAYS, Candidate
from .references import DIFFMEAN, EXCHANGED, RANDOM
from .shares import POINTS, DirectionShares, cells, difference
from .sides import NO_EDIT

VECTOR = "vector"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaithfulnessRow:
    """One method in one direction, over the response tokens of all rows.

    kl: KL(q : p) a response token, nats, q of the other prompt's unedited run, p of the edited run. recovered: 1 - KL /
    KL of no edit; below 0 the edit does harm. of_draws: the recovered share of every random direction; the row itself
    has their mean.
    """

    method: str
    direction: str  # "elicit" or "suppress"
    strength: float | None  # in the vector's own scale; None: it has none in this direction
    kl: Estimate
    recovered: Estimate
    n_rows: int
    n_tokens: int
    one_way: str | None = None  # the label of a vector that was made for one direction
    of_draws: tuple[float, ...] = ()

    @property
    def spread(self) -> float | None:
        """Standard deviation (of n - 1) of the recovered share over random directions; None below two of them."""
        return float(np.std(self.of_draws, ddof=1)) if len(self.of_draws) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Faithfulness:
    """Rows by method and direction: no edit, the vector, itself at the strength of the other direction ("exchanged"),
    those compared with, difference of means, random directions.

    examples: a line a (method, direction, row): `kl` in nats a token of this row's response, `n_tokens`, `prompt`, the
    number that rows linked by equal inputs share. settings: all that could change a number.
    """

    rows: tuple[FaithfulnessRow, ...]
    examples: pd.DataFrame
    settings: dict[str, Any]
    notices: tuple[str, ...]
    sides: Mapping[str, DirectionShares] = field(repr=False)  # by direction: what the estimates were made of
    methods: Mapping[str, Candidate] = field(repr=False)  # what was put on the model, each random direction by itself

    def row(self, method: str, direction: str) -> FaithfulnessRow:
        """KeyError, naming what there is, for another method or direction."""
        for row in self.rows:
            if (row.method, row.direction) == (method, direction):
                return row
        there = ", ".join(dict.fromkeys(row.method for row in self.rows))
        raise KeyError(f"no row '{method}', '{direction}'; methods: {there}; directions: {', '.join(WAYS)}")

    def compared(self, first: str, second: str, direction: str) -> Estimate:
        """Recovered share of one method minus that of another, with a paired interval."""
        for method in (first, second):
            if self.row(method, direction).kl.value is None:
                raise KeyError(f"{method} has no KL to compare: {self.row(method, direction).kl.reason}")
        side = self.sides[direction]
        return side.estimate(
            difference(side.recovered(first), side.recovered(second)),
            label=f"recovered share of {first} less that of {second}, {direction}",
            unit=POINTS,
            null_value=0.0,
        )

    def _exchanged(self, direction: str) -> str:
        there = {(row.method, row.direction): row for row in self.rows}.get((EXCHANGED, direction))
        if there is None:
            return ""
        return f"at strength {there.strength:g}, of the other direction, {in_share(there.recovered)}, "

    def to_frame(self) -> pd.DataFrame:
        """A line a row; what is missing is empty, with the reason in `reason`."""
        return pd.DataFrame([_line(row) for row in self.rows])

    def summary(self) -> str:
        told = []
        for direction in WAYS:
            own, random = self.row(VECTOR, direction), self.row(RANDOM, direction)
            if own.recovered.value is None:
                told.append(f"{direction}: not available ({own.recovered.reason})")
                continue
            mean = self.row(DIFFMEAN, direction).recovered
            told.append(
                f"{direction}: the vector recovers {in_share(own.recovered)} of a KL of "
                f"{self.row(NO_EDIT, direction).kl.value:.3g} nats a token, {self._exchanged(direction)}the difference "
                f"of means {in_share(mean)}, random directions {in_share(random.recovered)}"
            )
        return f"{'; '.join(told)}. {own.n_rows} rows."


def _line(row: FaithfulnessRow) -> dict[str, Any]:
    return {
        "method": row.method,
        "direction": row.direction,
        "strength": row.strength,
        **cells("kl", row.kl),
        **cells("recovered", row.recovered),
        "recovered_sd": row.spread,
        "n_rows": row.n_rows,
        "n_tokens": row.n_tokens,
        "n_prompts": row.kl.n_clusters,
        "one_way": row.one_way,
        "reason": row.kl.reason or row.recovered.reason,
    }
