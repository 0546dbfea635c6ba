"""One row a preference pair: every number that ranking and reward diagnostics rest on."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from ..errors import InputError
from .pair_rows import Invalid

# column -> (dtype, what it holds)
COLUMNS = {
    "pair_id": ("str", "the row's id, else its number"),
    "prompt_id": ("str", "cluster of the intervals: given, or hash of the rendered prompt"),
    "prompt_hash": ("str", "hash of the rendered prompt, by which files are compared; None where not known"),
    "policy_chosen": ("float64", "summed log-probability of the chosen completion under the policy, nats"),
    "policy_rejected": ("float64", "the same of the rejected completion"),
    "reference_chosen": ("float64", "the same under the reference; NaN without one"),
    "reference_rejected": ("float64", ""),
    "explicit_chosen": ("float64", "score of a reward model, its units; NaN without one"),
    "explicit_rejected": ("float64", ""),
    "n_chosen": ("int64", "scored tokens"),
    "n_rejected": ("int64", ""),
    "preference": ("float64", "share of votes for chosen, ties counted half; 1/2 to 1, not smoothed"),
    "n_votes": ("float64", "votes behind it; 1 where the file only decides; 0 where a judge gave a probability"),
    "human_tie": ("bool", "preference 1/2: kept, but in no accuracy"),
    "swapped": ("bool", "turned on reading so that the preference is at least 1/2"),
    "boundary_shift": ("bool", "the prompt's last token merged with a completion"),
    "n_prompt": ("int64", "tokens of the prompt"),
    "overlap": ("float64", "Jaccard index of the two completions' sets of token ids, in [0, 1]; NaN where not known"),
    "ches": ("float64", "<S+, S-> - |S+|^2 of summed final hidden states (2410.08847); NaN unless states were read"),
    "ches_normalised": ("float64", "the same with means over tokens for sums"),
    "mismatched": ("float64", "mean log pi/pi_ref of the next pair's completions after this prompt; NaN unless asked"),
    "ranking_id": ("str", "the row with more than two responses that the pair was made from; None where it is a pair"),
    "response_chosen": ("int64", "which response of that row, from 0; -1 where it is a pair"),
    "response_rejected": ("int64", ""),
    "n_responses": ("int64", "responses of that row; -1 where it is a pair"),
    "split": ("str", "as given"),
    "tag": ("str", "as given"),
}
PAIRED = ("policy", "reference", "explicit", "n", "response")  # columns that change places when a pair is turned


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """The pair table with the rows set aside, how it was made, and what was counted.

    frame: the columns of `COLUMNS`, in file order. settings: everything a score depends on. counts: rows kept but
    flagged, by reason (human_tie, swapped, boundary_shift, special_in_text, contradicting_pair, ...).
    """

    frame: pd.DataFrame
    invalid: tuple[Invalid, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, column: str) -> np.ndarray:
        """A column as an array."""
        return self.frame[column].to_numpy()

    @property
    def policy_chosen(self) -> Float64[np.ndarray, "N"]:
        return self["policy_chosen"]

    @property
    def policy_rejected(self) -> Float64[np.ndarray, "N"]:
        return self["policy_rejected"]

    @property
    def reference_chosen(self) -> Float64[np.ndarray, "N"]:
        return self["reference_chosen"]

    @property
    def reference_rejected(self) -> Float64[np.ndarray, "N"]:
        return self["reference_rejected"]

    @property
    def explicit_chosen(self) -> Float64[np.ndarray, "N"]:
        return self["explicit_chosen"]

    @property
    def explicit_rejected(self) -> Float64[np.ndarray, "N"]:
        return self["explicit_rejected"]

    @property
    def preference(self) -> Float64[np.ndarray, "N"]:
        return self["preference"]

    @property
    def has_reference(self) -> bool:
        return bool(self.frame["reference_chosen"].notna().any())

    def log_ratios(self) -> Float64[np.ndarray, "N 2"]:
        """log pi - log pi_ref of chosen and rejected, nats a completion; NaN without a reference."""
        sides = ("chosen", "rejected")
        return np.stack([self[f"policy_{side}"] - self[f"reference_{side}"] for side in sides], axis=1)

    @property
    def invalid_counts(self) -> dict[str, int]:
        """Rows set aside by reason, most frequent first."""
        return dict(Counter(row.reason for row in self.invalid).most_common())

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about the text that a reader of any number from this table should see."""
        found = []
        if len(self) and self.has_reference and not self.log_ratios().any():
            found.append("policy and reference give exactly the same log-probabilities: are they the same weights?")
        above = (self.frame[["policy_chosen", "policy_rejected"]] > 1e-6).any(axis=1)
        if n_above := int(above.sum()):
            found.append(f"in {n_above} pairs a log-probability is above 0, which none can be: are these other scores?")
        if n := self.counts.get("raw_on_template_model"):
            found.append(
                f"{n} pairs are plain strings and were read raw, though the tokenizer has a chat template; "
                "--template chat (template='chat') wraps each prompt as one user turn"
            )
        if n := self.counts.get("special_in_text"):
            found.append(f"{n} pairs spell a special token in their text, which the model reads as that token")
        if n := self.counts.get("truncated"):
            found.append(f"in {n} pairs the prompt's beginning was cut to the length limit, the same for both answers")
        if n := self.counts.get("boundary_shift"):
            found.append(f"in {n} pairs the prompt's last token merges with a completion; it is scored with it")
        if n := self.counts.get("contradicting_pair"):
            found.append(f"{n} pairs prefer the opposite of an earlier pair with the same completions")
        if n := self.counts.get("explicit_missing"):
            found.append(f"{n} pairs have no finite explicit reward and leave the comparison of rewards")
        if notice := self.settings.get("reference_notice"):
            found.append(f"{notice}; --reference adapter:ref takes that one")
        if names := self.settings.get("ignored_columns"):
            found.append(f"columns that a pair table does not have were not read: {', '.join(names)}")
        if n := self.counts.get("only_in_reference"):
            found.append(f"{n} pairs of the reference's table are not in the policy's")
        found += self.settings.get("joined", [])
        if self.settings.get("eos") == "auto" and self.settings.get("eos_id", 0) is None:
            found.append("the tokenizer has no end-of-sequence token, so none is scored")
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.frame.copy()

    def summary(self) -> str:
        aside = ", ".join(f"{n} {reason}" for reason, n in self.invalid_counts.items()) or "none"
        return f"{len(self)} pairs scored; rows set aside: {aside}."

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table, by rename: .parquet with settings and rows set aside in its metadata; .csv or .jsonl plain.

        A plain table has the columns alone, and where it was joined `join_notices`: what could not be compared, in
        words, which `read` and `from_frame` take up again. Raises InputError for another suffix or a place that cannot
        be written.
        """
        from .pair_table_files import write  # here: it knows the columns of this module

        return write(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PairScores":
        """Read what `save` wrote as Parquet. Raises InputError where the file is something else: see `read`."""
        from .pair_table_files import read_own

        parts = read_own(path)
        return cls(**parts | {"frame": _typed(parts["frame"])})

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None) -> "PairScores":
        """A table from a .parquet, .csv or .jsonl file: one of ours, or anybody's with the columns of `from_frame`.

        A `pair_id` column must name every pair once; without it they are numbered from 1. Rows are set aside as by
        `from_frame`. settings: what is known about
        the scores (template, eos, dtype, ...); for a table of ours it adds to those in the file. Raises InputError
        naming file, data row (from 1) and column.
        """
        from .pair_table_files import is_own, read_foreign

        if is_own(path):
            own = cls.load(path)
            return replace(own, settings={**own.settings, **(settings or {})})
        scores = cls._completed(read_foreign(path), str(path), {**(settings or {}), "table": str(path)}, own_ids=True)
        if not len(scores):
            first = scores.invalid[0]
            raise InputError(f"{path}: nothing is left: row {first.row}, {first.reason} ({first.detail})")
        return scores

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, settings: Mapping[str, Any] | None = None) -> "PairScores":
        """A table from your own log-probabilities: `policy_chosen` and `policy_rejected` at least, nats, summed.

        Other columns as in `COLUMNS`; or, for `preference` and `n_votes`, `votes_chosen`, `votes_rejected` and perhaps
        `votes_tie`. Left out: reference and explicit scores become NaN, lengths 0, preference 1 by one vote, every pair
        its own prompt. Rows whose preference is below 1/2 are turned. A row with a preference outside [0, 1] or votes
        that count nothing is set aside (votes_invalid; missing_field where the cell is empty). Columns of other names
        are kept out and told in `notices`. Raises InputError for missing columns, negative lengths, or what is no
        number elsewhere.
        """
        return cls._completed(frame, "pair table", dict(settings or {}))

    @classmethod
    def _completed(
        cls, frame: pd.DataFrame, source: str, settings: dict[str, Any], *, own_ids: bool = False
    ) -> "PairScores":
        from .pair_table_checks import completed, said_of_joins

        if said := said_of_joins(frame):
            settings = settings | {"joined": [*settings.get("joined", []), *said]}
        table, ignored, aside = completed(frame, source, own_ids=own_ids)
        if ignored:
            settings = settings | {"ignored_columns": list(ignored)}
        return cls.assemble(table, invalid=aside, settings=settings, counts={})

    def with_reference(self, reference: "PairScores", *, max_invalid: float = 0.05) -> "PairScores":
        """This table with the policy columns of another one as its reference, joined by `pair_id`, in this order.

        reference: the same pairs scored with the reference model as the policy. Pairs it lacks are set aside
        (`not_in_reference`), up to the share max_invalid of either table. Raises InputError naming every difference:
        pair ids missing or on several rows, another template, EOS, length limit, vocabulary or pairs file, other
        lengths (another tokenizer), pairs turned the other way. A table without settings is compared by ids and
        lengths alone; `notices` says so.
        """
        from .pair_table_joins import with_reference

        return with_reference(self, reference, max_invalid)

    def with_explicit(self, other: "PairScores", *, max_invalid: float = 0.05) -> "PairScores":
        """This table with the explicit scores of another one, joined by `pair_id`, in this order.

        Pairs without a score there stay, with NaN (`explicit_missing`). Refused like `with_reference`; lengths are
        compared only where the pairs files are not known to be one, since a reward model may read other ids.
        """
        from .pair_table_joins import with_explicit

        return with_explicit(self, other, max_invalid)

    @classmethod
    def assemble(
        cls, frame: pd.DataFrame, *, invalid: tuple[Invalid, ...], settings: dict[str, Any], counts: dict[str, int]
    ) -> "PairScores":
        """Typed columns; pairs whose scores are not finite are set aside (non_finite_policy, non_finite_reference)."""
        table = _typed(frame)
        aside: list[Invalid] = []
        keep = np.ones(len(table), dtype=bool)
        for role in ("policy", "reference"):
            sides = table[[f"{role}_chosen", f"{role}_rejected"]].to_numpy()
            if role == "reference" and np.isnan(sides).all():
                continue
            bad = keep & ~np.isfinite(sides).all(axis=1)
            keep &= ~bad
            aside += [
                Invalid(
                    row=_row_number(frame, int(i)),
                    reason=f"non_finite_{role}",
                    detail=f"log-probabilities {sides[i, 0]:g} and {sides[i, 1]:g}",
                    name=str(table["pair_id"][i]),
                )
                for i in np.flatnonzero(bad)
            ]
        explicit = table[["explicit_chosen", "explicit_rejected"]].to_numpy()
        absent = ~np.isfinite(explicit).all(axis=1)
        table.loc[absent, ["explicit_chosen", "explicit_rejected"]] = np.nan
        table = table[keep].reset_index(drop=True)
        flags = {name: int(table[name].sum()) for name in ("human_tie", "swapped", "boundary_shift")}
        missing = int((absent & keep).sum()) if not absent.all() else 0
        more = {"explicit_missing": missing} if missing else {}
        every = tuple(sorted((*invalid, *aside), key=lambda row: row.row))
        return cls(
            frame=table, invalid=every, settings=settings, counts={"scored": len(table), **flags, **counts, **more}
        )


def _row_number(frame: pd.DataFrame, index: int) -> int:
    return int(frame["row"].iloc[index]) if "row" in frame else index + 1


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    columns = {}
    for name, (dtype, _) in COLUMNS.items():
        column = frame[name]
        if dtype == "str":
            columns[name] = pd.Series(
                [None if pd.isna(v) else str(v) for v in column], dtype=object, index=column.index
            )
            continue
        try:
            columns[name] = column.astype(np.dtype(dtype))
        except (TypeError, ValueError) as error:
            raise InputError(f"pair table: column `{name}` is not {dtype} ({error})") from error
    return pd.DataFrame(columns).reset_index(drop=True)
