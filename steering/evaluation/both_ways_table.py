"""What `bidirectionality` gives: one row to elicit, one to suppress, and how far the two are apart."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...diagnose.phrases import in_points, in_share
from ...diagnose.report import Estimate
from .shares import cells


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AtStrength:
    """What one strength does in one direction. kl in nats a token, recovered its share that is gone."""

    strength: float | None  # None: the vector has none in this direction, and the estimates say why
    flips: Estimate
    n_not_judged: int
    kl: Estimate
    recovered: Estimate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DirectionRow:
    """One direction: before, at strength 1 (of a clamp f+ to elicit, f- to suppress), and at the selected strength."""

    direction: str
    flips_before: Estimate  # of the unedited model
    kl_before: Estimate
    full: AtStrength
    selected: AtStrength | None  # None: no strength was selected
    n_rows: int
    n_tokens: int
    one_way: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bidirectionality:
    """A row a direction, and the asymmetry: recovered share to elicit less that to suppress, paired by prompt.

    outputs: a line a (direction, method, row): the greedy output and whether it flipped (empty: not judged).
    """

    rows: tuple[DirectionRow, ...]
    asymmetry: Estimate
    asymmetry_selected: Estimate | None
    outputs: pd.DataFrame
    settings: dict[str, Any]
    notices: tuple[str, ...]

    def row(self, direction: str) -> DirectionRow:
        """KeyError for another name than "elicit" and "suppress"."""
        return {row.direction: row for row in self.rows}[direction]

    def to_frame(self) -> pd.DataFrame:
        """A line a direction."""
        return pd.DataFrame([_line(row) for row in self.rows])

    def summary(self) -> str:
        told = [
            f"{row.direction}: {in_share(row.full.flips)} of {row.full.flips.n} answers flip, "
            f"{in_share(row.full.recovered)} of the KL is recovered" + (f" ({row.one_way})" if row.one_way else "")
            for row in self.rows
        ]
        return f"At strength 1, {'; '.join(told)}. Asymmetry of the recovered shares: {in_points(self.asymmetry)}."


def _line(row: DirectionRow) -> dict[str, Any]:
    line: dict[str, Any] = {
        "direction": row.direction,
        **cells("flips_before", row.flips_before),
        **cells("kl_before", row.kl_before),
        **_columns("", row.full),
        "selected_strength": None,
    }
    if row.selected is not None:
        line |= {"selected_strength": row.selected.strength, **_columns("selected_", row.selected)}
    return line | {
        "n_rows": row.n_rows,
        "n_tokens": row.n_tokens,
        "n_judged": row.full.flips.n,
        "n_not_judged": row.full.n_not_judged,
        "one_way": row.one_way,
        "reason": row.full.kl.reason or row.full.recovered.reason or row.full.flips.reason,
    }


def _columns(before: str, at: AtStrength) -> dict[str, Any]:
    return {
        **cells(f"{before}flips", at.flips),
        **cells(f"{before}kl_after", at.kl),
        **cells(f"{before}recovered", at.recovered),
    }
