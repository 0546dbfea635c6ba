"""Do the columns of somebody's pair table hold what they should? Checked, filled up and turned, or refused by row."""

import reprlib
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from ..errors import InputError
from .pair_table import COLUMNS, PAIRED

WANTED = ("policy_chosen", "policy_rejected")
JOIN_NOTICES = "join_notices"  # column of a plain table: what its joins could not compare
VOTES = ("votes_chosen", "votes_rejected", "votes_tie")
_LEAST = dict.fromkeys(("n_votes", "n_chosen", "n_rejected", "n_prompt"), 0)
_LEAST |= dict.fromkeys(("response_chosen", "response_rejected", "n_responses"), -1)
_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def completed(frame: pd.DataFrame, source: str, *, own_ids: bool = False) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """All columns of a pair table, each pair turned so that its preference is at least 1/2, and the columns not used.

    own_ids: a `pair_id` column must name every row, and no two alike. Raises InputError naming source, row, column.
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
        elif name in names:
            table[name] = _column(given[name], name, source, dtype)
    if {*VOTES[:2]} <= names:
        table["preference"], table["n_votes"] = _from_votes(given, source)
        used = (used - {"preference", "n_votes"}) | ({*VOTES} & names)
    elif "preference" in names and "n_votes" not in names:
        table["n_votes"] = 0.0
    _require_shares(table["preference"], source)
    if own_ids and "pair_id" in names:
        _require_ids(given["pair_id"], source)
    if "prompt_id" not in names:
        table["prompt_id"] = table["pair_id"]
    return _turned(table), tuple(name for name in map(str, frame.columns) if name not in {*used, JOIN_NOTICES})


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


def _from_votes(table: pd.DataFrame, source: str) -> tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
    """Share of votes for chosen, a tie counted half, and the number of votes."""
    votes = np.zeros((3, len(table)))
    for k, name in enumerate(VOTES):
        if name in table:
            votes[k] = _numbers(table[name], name, source)
            if name == "votes_tie":
                votes[k] = np.nan_to_num(votes[k], nan=0.0)
            _refuse(~(np.isfinite(votes[k]) & (votes[k] >= 0)), votes[k], name, source, "votes are at least 0")
    total = votes.sum(axis=0)
    if (total == 0).any():
        raise InputError(f"{source}, row {int(np.flatnonzero(total == 0)[0]) + 1}: no votes (`votes_chosen` 0, ...)")
    return (votes[0] + votes[2] / 2) / total, total


def _require_shares(preference: pd.Series, source: str) -> None:
    values = preference.to_numpy(dtype=np.float64)
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        found = "is missing" if np.isnan(values[row]) else f"{values[row]} is outside [0, 1]"
        raise InputError(f"{source}, row {row + 1}: preference {found}; it is P(chosen preferred), in [0, 1]")


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
