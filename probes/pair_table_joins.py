"""Two tables of the same pairs, scored apart, as one: do they speak of the same text, in the same ids?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InputError
from .pair_rows import Invalid

if TYPE_CHECKING:
    from .pair_table import PairScores

SHOWN = 5  # pair ids named in a message
HASH = 64  # characters of a sha256
# what must be the same for two log-probabilities to be of the same ids
TEXT_SETTINGS = (
    "template",
    "template_hash",
    "template_date",
    "eos",
    "eos_id",
    "added_prefix_ids",
    "boundary",
    "max_length",
    "over_length",
    "vocabulary",
    "tokenizer",
    "tokenizer_hash",
    "pairs_sha256",
)
# a reward model may have its own tokenizer, and reads the text under the same rules
REWARD_SETTINGS = ("template", "template_date", "eos", "over_length", "pairs_sha256")


def with_reference(here: "PairScores", there: "PairScores", max_invalid: float) -> "PairScores":
    """See PairScores.with_reference."""
    place, notices = _matched(here, there, "reference", TEXT_SETTINGS, max_invalid, lengths=True)
    found = place >= 0
    frame = here.frame[found].reset_index(drop=True)
    for side in ("chosen", "rejected"):
        frame[f"reference_{side}"] = there[f"policy_{side}"][place[found]]
    frame["mismatched"] = np.nan  # it was of another reference, or of none
    name = _name(there)
    aside = tuple(
        Invalid(row=int(i) + 1, reason="not_in_reference", detail=f"no such pair in {name}", name=here["pair_id"][i])
        for i in np.flatnonzero(~found)
    )
    dtypes = [scores.settings.get("dtype") for scores in (there, here)]
    if None not in dtypes and dtypes[0] != dtypes[1]:
        notices.append(f"policy and reference were scored in other precisions ({dtypes[1]} and {dtypes[0]})")
    settings = {
        "reference": name,
        "reference_fingerprint": there.settings.get("policy_fingerprint"),
        "reference_kind": "separate",
        "reference_notice": None,
        "mismatched": None,
    }
    extra = len(there) - int(found.sum())
    return _assembled(here, frame, aside, settings, notices, {"only_in_reference": extra} if extra else {})


def with_explicit(here: "PairScores", there: "PairScores", max_invalid: float) -> "PairScores":
    """See PairScores.with_explicit."""
    if not there.frame["explicit_chosen"].notna().any():
        raise InputError(
            f"{_name(there)}: this table holds no explicit scores; score the pairs with a reward model (--reward)"
        )
    same_file = None not in (here.settings.get("pairs_sha256"), there.settings.get("pairs_sha256"))
    place, notices = _matched(here, there, "explicit", REWARD_SETTINGS, max_invalid, lengths=not same_file)
    frame = here.frame.copy()
    for side in ("chosen", "rejected"):
        frame[f"explicit_{side}"] = np.where(place >= 0, there[f"explicit_{side}"][place], np.nan)
    settings = {"explicit": there.settings.get("explicit") or _name(there)}
    notices += there.settings.get("joined", [])  # its explicit scores may be those of a third table
    return _assembled(here, frame, (), settings, notices, {})


def _assembled(
    here: "PairScores",
    frame: pd.DataFrame,
    aside: tuple[Invalid, ...],
    settings: dict[str, Any],
    notices: list[str],
    counts: dict[str, int],
) -> "PairScores":
    """Like `here` with these columns; what is counted on the table is counted again."""
    again = ("scored", "human_tie", "swapped", "boundary_shift", "explicit_missing")
    kept = {name: n for name, n in here.counts.items() if name not in again}
    said = list(dict.fromkeys([*here.settings.get("joined", []), *notices]))
    settings = here.settings | settings | ({"joined": said} if said else {})
    return type(here).assemble(frame, invalid=(*here.invalid, *aside), settings=settings, counts=kept | counts)


def _matched(
    here: "PairScores",
    there: "PairScores",
    role: str,
    keys: Sequence[str],
    max_invalid: float,
    *,
    lengths: bool,
) -> tuple[np.ndarray, list[str]]:
    """For every pair here its place there, -1 where it has none, and what could not be compared, in words.

    Raises InputError with every difference that makes the numbers those of other pairs or other ids.
    """
    if not 0 <= max_invalid <= 1:
        raise InputError(f"--max-invalid {max_invalid}: a share between 0 and 1 is expected")
    wrong = [*_unnamed(here, "here"), *_unnamed(there, "there")]
    _refuse(here, there, role, wrong)  # without names nothing else can be compared
    notices = []
    compared = [key for key in keys if key in here.settings and key in there.settings]
    for key in compared:
        if here.settings[key] != there.settings[key]:
            wrong.append(f"{key}: there {_short(there.settings[key])}, here {_short(here.settings[key])}")
    place = _places(here, there)
    wrong += _differing(here, there, place, "swapped")
    what = "pair ids"
    if lengths and _has_lengths(here) and _has_lengths(there):
        what += " and lengths"
        wrong += [more for name in ("n_chosen", "n_rejected") for more in _differing(here, there, place, name)]
    if not compared:
        silent = [_name(scores) for scores in (here, there) if not any(key in scores.settings for key in keys)]
        notices.append(
            f"{' and '.join(silent) or 'one table'}: nothing says how the text became ids, so only {what} could be "
            "compared with the joined table, not template, end of sequence or length limit"
        )
    wrong += _missing(here, there, place, max_invalid)
    _refuse(here, there, role, wrong)
    return place, notices


def _refuse(here: "PairScores", there: "PairScores", role: str, wrong: list[str]) -> None:
    if wrong:
        what = "explicit scores" if role == "explicit" else "the reference"
        raise InputError(f"{_name(there)} cannot give {what} of {_name(here)}: " + "; ".join(wrong))


def _unnamed(scores: "PairScores", where: str) -> list[str]:
    """Pair ids that are missing or stand for several pairs."""
    ids = scores.frame["pair_id"]
    found = []
    if n := int(ids.isna().sum()):
        found.append(f"{n} pairs {where} have no pair_id")
    twice = list(dict.fromkeys(ids[ids.notna() & ids.duplicated()]))
    if twice:
        found.append(f"{len(twice)} pair ids {where} are on several rows ({_first(twice)}); give every pair its own")
    return found


def _places(here: "PairScores", there: "PairScores") -> np.ndarray:
    index = {name: i for i, name in enumerate(there["pair_id"])}
    return np.array([index.get(name, -1) for name in here["pair_id"]], dtype=np.int64)


def _differing(here: "PairScores", there: "PairScores", place: np.ndarray, column: str) -> list[str]:
    both = np.flatnonzero(place >= 0)
    ours, theirs = here[column][both], there[column][place[both]]
    differ = np.flatnonzero(ours != theirs)
    if not len(differ):
        return []
    i = differ[0]
    why = {
        "swapped": "their preferences turn them to opposite sides of the file; give both tables the same preferences",
    }.get(column, "another tokenizer, or other text")
    return [
        f"{column} of pair {here['pair_id'][both[i]]!r}: there {theirs[i]}, here {ours[i]} "
        f"({len(differ)} of {len(both)} pairs differ: {why})"
    ]


def _missing(here: "PairScores", there: "PairScores", place: np.ndarray, max_invalid: float) -> list[str]:
    """More pairs on one side alone than may be set aside, or no pair on both."""
    ids = {*here["pair_id"]}
    alone = {
        "there": ([name for name, at in zip(here["pair_id"], place, strict=True) if at < 0], len(here)),
        "here": ([name for name in there["pair_id"] if name not in ids], len(there)),
    }
    return [
        f"{len(names)} of {n} pairs are missing {where} ({_first(names)}), more than --max-invalid {max_invalid:g}"
        for where, (names, n) in alone.items()
        if len(names) > max_invalid * n or (names and len(names) == n)
    ]


def _short(value: Any) -> str:
    """A setting as Python writes it, a hash by its beginning."""
    return repr(f"{value[:12]}..." if isinstance(value, str) and len(value) == HASH else value)


def _has_lengths(scores: "PairScores") -> bool:
    return bool(scores["n_chosen"].any() and scores["n_rejected"].any())


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _name(scores: "PairScores") -> str:
    return str(scores.settings.get("table") or scores.settings.get("policy") or "a pair table without a name")
