"""Which pairs of a setting do both rewards judge? The rows that implicit and explicit reward are compared on.

A setting is a set of pairs: the in-distribution one, or one that is shifted from it. In a prompt shift other questions
are asked; in a response shift the same questions get other answers (paraphrased, translated, of another generator).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from ..errors import InputError
from ..probes.pair_table import PairScores
from .ranking_table import clusters_of

Shift = Literal["in-distribution", "prompt shift", "response shift"]
SHIFTS: tuple[Shift, ...] = ("prompt shift", "response shift")
SAME_PROMPTS = 0.5  # share of its pairs whose prompt the other set asks too, from which on only responses are shifted
SAME_NATS = 1e-3  # what two runs of one float32 scorer move a sum by, in other batches


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardRows:
    """The rows of one setting, arrays of N; margins are chosen minus rejected, NaN where there is no scorer."""

    name: str
    shift: Shift
    frame: pd.DataFrame  # the pair table's rows that are used
    clusters: np.ndarray  # prompt ids, as text
    log_ratios: Float64[np.ndarray, "N 2"]  # log pi - log pi_ref of chosen and rejected, nats a completion
    per_token: Float64[np.ndarray, "N 2"]  # the same a token; NaN without token counts
    explicit: Float64[np.ndarray, "N 2"]  # scores of the reward model, its units
    counts: Mapping[str, int]  # rows left out, by reason

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def implicit_margin(self) -> Float64[np.ndarray, "N"]:
        """dw - dl, nats: the implicit reward margin without its factor beta."""
        return self.log_ratios[:, 0] - self.log_ratios[:, 1]

    @property
    def explicit_margin(self) -> Float64[np.ndarray, "N"]:
        return self.explicit[:, 0] - self.explicit[:, 1]

    @property
    def policy_margin(self) -> Float64[np.ndarray, "N"]:
        """log pi(chosen) - log pi(rejected), nats."""
        return self._column("policy_chosen") - self._column("policy_rejected")

    @property
    def difficulty(self) -> Float64[np.ndarray, "N"]:
        """c = log pi_ref(rejected) - log pi_ref(chosen), nats: above 0 the reference is wrong."""
        return self._column("reference_rejected") - self._column("reference_chosen")

    @property
    def length_difference(self) -> Float64[np.ndarray, "N"]:
        """Scored tokens of chosen minus rejected; NaN where the table holds no counts."""
        lengths = self.frame[["n_chosen", "n_rejected"]].to_numpy(dtype=np.float64)
        return np.where((lengths > 0).all(1), lengths[:, 0] - lengths[:, 1], np.nan)

    @property
    def overlap(self) -> Float64[np.ndarray, "N"]:
        """Jaccard index of the token sets of both completions."""
        return self._column("overlap")

    @property
    def preference(self) -> Float64[np.ndarray, "N"]:
        """P(chosen preferred) as the votes have it, not smoothed; 1 for a bare decision."""
        return self._column("preference")

    @property
    def has_implicit(self) -> bool:
        return bool(np.isfinite(self.log_ratios).all(1).any())

    @property
    def has_explicit(self) -> bool:
        return bool(np.isfinite(self.explicit).all(1).any())

    def _column(self, name: str) -> Float64[np.ndarray, "N"]:
        return self.frame[name].to_numpy(dtype=np.float64)


def settings_rows(
    scores: Mapping[str, PairScores], *, in_distribution: str, shifts: Mapping[str, str]
) -> dict[str, RewardRows]:
    """The rows of every setting, the in-distribution one first.

    Prompts of a prompt shift that the in-distribution set asks too are left out of the shifted set; of a response shift
    only pairs that are the same there. Which of the two a set is, `shifts` says, else the share of shared prompts.
    Raises InputError for an unknown kind of shift or one for a set that is not there.
    """
    require_shifts(shifts, [name for name in scores if name != in_distribution])
    base = scores.get(in_distribution)
    found = {}
    if base is not None:
        found[in_distribution] = _rows(in_distribution, "in-distribution", base, {}, judged_only=True)
    for name, table in scores.items():
        if name != in_distribution:
            found[name] = _shifted(name, table, base, shifts.get(name))
    return found


def voted_rows(scores: PairScores, *, in_distribution: str) -> RewardRows:
    """The in-distribution rows with the human ties among them, for what is held against votes.

    A tie is no right or wrong, but half of its votes are for chosen: left out, two votes a pair would look twice as
    sure as they are (and beta-hat come out twice as large).
    """
    return _rows(in_distribution, "in-distribution", scores, {}, judged_only=False)


def prompt_names(frame: pd.DataFrame) -> list[str | None]:
    """What tells prompts of two files apart: the hash of the text, else the id that was given; None where neither.

    An id that is the pair's own names no prompt: pairs without prompts are numbered from 1 in every file.
    """
    columns = (frame[name] for name in ("prompt_hash", "prompt_id", "pair_id"))
    return [
        f"text {text}" if not pd.isna(text) else None if pd.isna(own) or own == pair else f"id {own}"
        for text, own, pair in zip(*columns, strict=True)
    ]


def require_shifts(shifts: Mapping[str, str], shifted: Collection[str]) -> None:
    """Every kind of shift is one of `SHIFTS` and belongs to a shifted set. Raises InputError."""
    for name, shift in shifts.items():
        if name not in shifted:
            raise InputError(f"shifts: no shifted set '{name}'; there are: {', '.join(shifted) or 'none'}")
        if shift not in SHIFTS:
            raise InputError(f"shifts: '{shift}' of '{name}' is unknown; choose from {', '.join(SHIFTS)}")


def _shifted(name: str, table: PairScores, base: PairScores | None, declared: str | None) -> RewardRows:
    if base is None:
        kind: Shift = "response shift" if declared == "response shift" else "prompt shift"
        return _rows(name, kind, table, {}, judged_only=True)
    here, there = prompt_names(table.frame), set(prompt_names(base.frame)) - {None}
    kinds = {prompt.split(" ")[0] for prompt in there if prompt is not None}
    shared = np.array([prompt in there for prompt in here], dtype=bool)
    unknown = sum(prompt is None or prompt.split(" ")[0] not in kinds for prompt in here)
    share = float(shared.mean()) if len(shared) else 0.0
    if declared == "response shift" or (declared is None and share >= SAME_PROMPTS):
        same = _same_pairs(table.frame, base.frame)
        counts = {"shared_prompt_pairs": int(shared.sum()), "identical_pairs_removed": int(same.sum())}
        return _rows(name, "response shift", _without(table, same), counts, judged_only=True)
    counts = {"overlap_removed": int(shared.sum()), "prompt_not_known": unknown}
    return _rows(name, "prompt shift", _without(table, shared), counts, judged_only=True)


def _rows(name: str, shift: Shift, scores: PairScores, counts: Mapping[str, int], *, judged_only: bool) -> RewardRows:
    """Rows that every scorer present has scored, and that are judged."""
    frame = scores.frame
    policy, reference, explicit, lengths = (
        frame[[f"{role}_chosen", f"{role}_rejected"]].to_numpy(dtype=np.float64)
        for role in ("policy", "reference", "explicit", "n")
    )
    keep = ~frame["human_tie"].to_numpy(dtype=bool) | (not judged_only)
    left_out = dict(counts) | {"human_tie": int((~keep).sum())}
    for reason, sides in (("no_implicit", policy - reference), ("no_explicit", explicit)):
        there = np.isfinite(sides).all(1)
        if there.any():  # a scorer that scored no row at all is absent: its numbers are null with that reason
            left_out[reason] = int((keep & ~there).sum())
            keep = keep & there
    kept = frame[keep].reset_index(drop=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_token = np.where((lengths > 0).all(1, keepdims=True), (policy - reference) / lengths, np.nan)
    return RewardRows(
        name=name,
        shift=shift,
        frame=kept,
        clusters=clusters_of(frame)[keep],
        log_ratios=(policy - reference)[keep],
        per_token=per_token[keep],
        explicit=explicit[keep],
        counts=left_out,
    )


def _without(scores: PairScores, gone: Bool[np.ndarray, "N"]) -> PairScores:
    return replace(scores, frame=scores.frame[~gone].reset_index(drop=True))


def _same_pairs(frame: pd.DataFrame, base: pd.DataFrame) -> Bool[np.ndarray, "N"]:
    """Pairs that the other file holds too, either way round: one prompt, lengths and log-probabilities of both."""
    there: dict[str, list[Float64[np.ndarray, "4"]]] = {}
    for prompt, numbers in zip(prompt_names(base), _fingerprints(base), strict=True):
        if prompt is not None:
            there.setdefault(prompt, []).extend((numbers, numbers[[1, 0, 3, 2]]))
    rows = zip(prompt_names(frame), _fingerprints(frame), strict=True)
    return np.array(
        [any(np.abs(own - other).max() <= SAME_NATS for other in there.get(prompt or "", ())) for prompt, own in rows],
        dtype=bool,
    )


def _fingerprints(frame: pd.DataFrame) -> Float64[np.ndarray, "N 4"]:
    return frame[["policy_chosen", "policy_rejected", "n_chosen", "n_rejected"]].to_numpy(dtype=np.float64)
