"""Do the columns of somebody's pair table hold what they should? Checked, filled up and turned, or refused by row.

What one row alone gets wrong, its preference or votes, sets that row aside as in a file of pairs.
"""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from ..errors import InputError
from .pair_rows import Invalid, PairShape, RowError, judgement, number_in
from .pair_table import COLUMNS, PAIRED, PairScores

WANTED = ("policy_chosen", "policy_rejected")
JOIN_NOTICES = "join_notices"  # column of a plain table: what its joins could not compare
VOTES = ("votes_chosen", "votes_rejected", "votes_tie")
JUDGED = ("preference", "n_votes")  # made anew from what the row says of them
_LEAST = dict.fromkeys(("n_chosen", "n_rejected", "n_prompt"), 0)
_LEAST |= dict.fromkeys(("response_chosen", "response_rejected", "n_responses"), -1)
_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def completed(
    frame: pd.DataFrame, source: str, *, own_ids: bool = False
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[Invalid, ...]]:
    """All columns of a pair table, each pair turned so that its preference is at least 1/2; unused columns; rows lost.

    Rows whose preference or votes say nothing are set aside (missing_field, votes_invalid); `row` numbers the others as
    they stood, from 1. own_ids: a `pair_id` column must name every row, and no two alike. Raises InputError naming
    source, row, column.
    """
    _require_columns([*map(str, frame.columns)], source)
    given = frame.reset_index(drop=True).drop(columns="row", errors="ignore")  # assemble's name for the row in its file
    table = filled(given)
    names = {str(name) for name in given.columns}
    used = {*COLUMNS} & names
    for name, (dtype, _) in COLUMNS.items():
        if dtype == "str":
            table[name] = [None if value == "" else value for value in table[name].astype(object)]
        elif dtype == "bool":
            table[name] = _truths(table[name], name, source)
        elif name in names and name not in JUDGED:
            table[name] = _column(given[name], name, source, dtype)
    if {*VOTES[:2]} <= names:
        used = (used - {*JUDGED}) | ({*VOTES} & names)
    table[[*JUDGED]], aside = _judged(given, table["pair_id"])
    if own_ids and "pair_id" in names:
        _require_ids(given["pair_id"], source)
    if "prompt_id" not in names:
        table["prompt_id"] = table["pair_id"]
    table["row"] = np.arange(1, len(table) + 1)
    kept = ~table["row"].isin([row.row for row in aside])
    unused = tuple(name for name in map(str, frame.columns) if name not in {*used, JOIN_NOTICES})
    return _turned(table[kept].reset_index(drop=True)), unused, aside


def require_rows(scores: PairScores, source: str, max_invalid: float) -> None:
    """Stop where more of a table than `max_invalid` was set aside, or nothing is left.

    Raises InputError with the counts by reason and the first row of each, and for a share outside [0, 1].
    """
    if not 0 <= max_invalid <= 1:
        raise InputError(f"--max-invalid {max_invalid}: a share between 0 and 1 is expected")
    aside, everything = len(scores.invalid), len(scores.invalid) + len(scores)
    reasons = ", ".join(f"{n} {reason}" for reason, n in scores.invalid_counts.items())
    if not len(scores):
        raise InputError(f"{source}: no pair is left in this table; rows set aside: {reasons}")
    if aside > max_invalid * everything:
        firsts = {row.reason: row for row in reversed(scores.invalid)}
        shown = "; ".join(
            f"row {row.row}{f' ({row.name})' if row.name else ''}: {row.reason}, {row.detail}"
            for row in sorted(firsts.values(), key=lambda row: row.row)
        )
        raise InputError(
            f"{source}: {aside} of {everything} rows cannot be used, more than --max-invalid {max_invalid:g}: "
            f"{reasons} (first: {shown}). Mend the table, or raise --max-invalid"
        )


def said_of_joins(frame: pd.DataFrame) -> list[str]:
    """What a plain table says of the joins it is from: the different texts of its column `join_notices`."""
    return list(dict.fromkeys(text for text in frame.get(JOIN_NOTICES, []) if isinstance(text, str) and text))


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with every column it lacks: NaN, 0, no name; preference 1 by one vote; pairs numbered from 1."""
    defaults: dict[str, Any] = {"pair_id": [str(i + 1) for i in range(len(frame))], "n_votes": 1.0, "preference": 1.0}
    defaults |= {"swapped": False, "boundary_shift": False, "human_tie": False}
    defaults |= dict.fromkeys(("n_chosen", "n_rejected", "n_prompt"), 0)
    defaults |= dict.fromkeys(("response_chosen", "response_rejected", "n_responses"), -1)
    table = frame.copy()
    for name, (dtype, _) in COLUMNS.items():
        if name not in table:
            table[name] = defaults.get(name, np.nan if dtype == "float64" else None)
    return table


def _require_columns(names: list[str], source: str) -> None:
    found = f"the columns are: {', '.join(names) or 'none'}"
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: column {', '.join(twice)} occurs twice; {found}")
    missing = [name for name in WANTED if name not in names]
    if missing:
        raise InputError(
            f"{source}: no column {', '.join(missing)}; {found}. A pair table holds at least the summed "
            f"log-probabilities {' and '.join(WANTED)}, in nats"
        )
    for role in (*PAIRED, "votes"):
        here = [f"{role}_{side}" for side in ("chosen", "rejected") if f"{role}_{side}" in names]
        if len(here) == 1:
            other = f"{role}_{'rejected' if here[0].endswith('chosen') else 'chosen'}"
            raise InputError(f"{source}: `{here[0]}` is given without `{other}`; give both or neither")


def _column(column: pd.Series, name: str, source: str, dtype: str) -> np.ndarray:
    """A column of numbers: whole where its dtype says so, and not below what it counts from."""
    values = _numbers(column, name, source)
    least = _LEAST.get(name)
    if least is not None:
        bad = ~(np.isfinite(values) & (values >= least))
        if dtype == "int64":
            bad |= values != np.floor(values)
        what = "a whole number" if dtype == "int64" else "a number"
        _refuse(bad, values, name, source, f"{what} of at least {least} is expected")
    return values.astype(dtype)


def _numbers(column: pd.Series, name: str, source: str) -> Float64[np.ndarray, "N"]:
    """Numbers, also as text; an empty cell is NaN."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    values = np.full(len(column), np.nan)
    for i, value in enumerate(column):
        if value is None or value is pd.NA or value == "":
            continue
        try:
            if isinstance(value, bool | np.bool_):
                raise TypeError
            values[i] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{source}, row {i + 1}: `{name}` is {reprlib.repr(value)}, not numeric") from None
    return values


def _truths(column: pd.Series, name: str, source: str) -> Bool[np.ndarray, "N"]:
    """True and false, also as text or 0 and 1; an empty cell is false."""
    values = np.zeros(len(column), dtype=bool)
    for i, value in enumerate(column):
        if value is None or value is pd.NA or value == "" or value != value:  # NaN alone differs from itself
            continue
        found = _TRUTH.get(str(value).strip().lower())
        if found is None:
            raise InputError(f"{source}, row {i + 1}: `{name}` is {reprlib.repr(value)}; expected true or false")
        values[i] = found
    return values


def _judged(table: pd.DataFrame, names: pd.Series) -> tuple[Float64[np.ndarray, "N 2"], tuple[Invalid, ...]]:
    """Share of votes for chosen (a tie counted half) and votes of every row, NaN where it says neither; those rows.

    Votes rule over a preference. A preference alone is a judge's, of no votes; a row without either is a label, 1 vote.
    """
    kind = "votes" if {*VOTES[:2]} <= {*table} else "preference" if "preference" in table else "order"
    shape = PairShape("chosen", "rejected", has_prompt=False, judged=kind)
    found = np.full((len(table), 2), np.nan)
    aside = []
    given = [name for name in (*VOTES, *JUDGED) if name in table]
    for i, cells in enumerate(zip(*(table[name].astype(object) for name in given), strict=True) if given else ()):
        row = {name: _cell(value) for name, value in zip(given, cells, strict=True)}
        try:
            found[i] = _share_and_votes(row, shape)
        except RowError as error:
            name = "" if pd.isna(names[i]) else str(names[i])
            aside.append(Invalid(row=i + 1, reason=error.reason, detail=error.detail, name=name))
    return (found if given else np.ones_like(found)), tuple(aside)


def _share_and_votes(row: Mapping[str, Any], shape: PairShape) -> tuple[float, float]:
    votes, share = judgement(row, shape)
    if votes is not None:
        return (votes[0] + votes[2] / 2) / sum(votes), sum(votes)
    n_votes = 1.0 if share is None else 0.0
    if "n_votes" in row:
        n_votes = number_in(row, "n_votes", required=True)
        if n_votes < 0:
            raise RowError("votes_invalid", f"`n_votes` is {n_votes:g}, a negative count")
    return (1.0 if share is None else share), n_votes


def _cell(value: Any) -> Any:
    """A cell as Python's own type, None where it is empty."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is pd.NA or (isinstance(value, float) and math.isnan(value)) else value


def _require_ids(ids: pd.Series, source: str) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(ids, start=1):
        if pd.isna(name) or name == "":
            raise InputError(
                f"{source}, row {row}: `pair_id` is missing; name every row, or leave the column out to number them"
            )
        if first.setdefault(str(name), row) != row:
            raise InputError(f"{source}, rows {first[str(name)]} and {row}: both have the `pair_id` {name!r}")


def _refuse(bad: np.ndarray, values: np.ndarray, name: str, source: str, expected: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        found = "missing" if np.isnan(values[row]) else f"{values[row]:g}"
        raise InputError(f"{source}, row {row + 1}: `{name}` is {found}; {expected}")


def _turned(table: pd.DataFrame) -> pd.DataFrame:
    """Every pair with a preference of at least 1/2 for `chosen`."""
    turn = (table["preference"] < 0.5).to_numpy()
    for name in PAIRED:
        first, second = table[f"{name}_chosen"].copy(), table[f"{name}_rejected"].copy()
        table[f"{name}_chosen"], table[f"{name}_rejected"] = first.mask(turn, second), second.mask(turn, first)
    table["preference"] = table["preference"].where(~turn, 1 - table["preference"])
    table["swapped"] = table["swapped"].astype("bool") ^ turn
    table["human_tie"] = table["preference"] == 0.5
    return table
