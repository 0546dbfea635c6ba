"""The pair table read as a ranking: difficulty, critical beta, loss and threshold of every pair.

One row a pair, in the order of the scores. What a pair cannot have is NaN: everything about the reference without one,
`beta_crit` without a known strength of preference, per-token numbers without token counts.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from ..probes.pair_table import PairScores
from .ranking import (
    CLIP,
    SMOOTHINGS,
    credit,
    critical_beta,
    dpo_loss,
    flip_threshold,
    smooth_preference,
)

ONE_LABEL = "no preference strength: one label a pair"
NO_REFERENCE = "no reference model was given"
NO_EXPLICIT = "no reward model or explicit scores were given"
NO_LENGTHS = "the table holds no token counts"
_COPIED = (
    "pair_id",
    "prompt_id",
    "policy_chosen",
    "policy_rejected",
    "reference_chosen",
    "reference_rejected",
    "explicit_chosen",
    "explicit_rejected",
    "n_chosen",
    "n_rejected",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankedPairs:
    """Per-pair arrays that every ranking number is a mean of. Nats a completion; NaN where a pair has none."""

    table: pd.DataFrame  # the report's table "pairs"
    judged: Bool[np.ndarray, "N"]  # not a human tie: counts in accuracies
    clusters: np.ndarray  # prompt ids, as text
    margin: Float64[np.ndarray, "N"]  # h = log pi(chosen) - log pi(rejected)
    margin_per_token: Float64[np.ndarray, "N"]
    reference_margin: Float64[np.ndarray, "N"]
    log_ratios: Float64[np.ndarray, "N 2"]  # log pi - log pi_ref of chosen and rejected
    log_ratio_per_token: Float64[np.ndarray, "N 2"]
    explicit_margin: Float64[np.ndarray, "N"]
    length_difference: Float64[np.ndarray, "N"]  # scored tokens of chosen minus rejected
    critical: dict[str, Float64[np.ndarray, "N"]]  # smoothing -> beta_crit of every pair
    smoothing: str  # the key of `critical` that the headline uses
    n_assumed: int  # pairs whose beta_crit rests on an assumed strength of preference

    @property
    def reward_margin(self) -> Float64[np.ndarray, "N"]:
        """dw - dl: the implicit reward margin without its factor beta, nats."""
        return self.log_ratios[:, 0] - self.log_ratios[:, 1]

    @property
    def has_reference(self) -> bool:
        return bool(np.isfinite(self.reference_margin).any())

    @property
    def has_lengths(self) -> bool:
        return bool(np.isfinite(self.length_difference[self.judged]).any())


def rank_pairs(
    scores: PairScores, *, beta: float, ties: str, smoothing: str, assumed_preference: float | None
) -> RankedPairs:
    """Every per-pair quantity of the ranking report (docs/ranking.md)."""
    frame = scores.frame
    policy, reference, explicit = (
        frame[[f"{role}_chosen", f"{role}_rejected"]].to_numpy(dtype=np.float64)
        for role in ("policy", "reference", "explicit")
    )
    lengths = frame[["n_chosen", "n_rejected"]].to_numpy(dtype=np.float64)
    lengths = np.where((lengths > 0).all(1, keepdims=True), lengths, np.nan)  # 0 tokens: not given
    judged = ~frame["human_tie"].to_numpy(dtype=bool)
    margin, reference_margin, explicit_margin = (side[:, 0] - side[:, 1] for side in (policy, reference, explicit))
    log_ratios = policy - reference

    preferences = preference_strengths(frame, assumed_preference)
    headline = smoothing if smoothing in preferences else next(iter(preferences))
    critical = {name: _critical(reference_margin, p, judged) for name, p in preferences.items()}
    table = frame[list(_COPIED)].copy()
    for name in ("pair_id", "prompt_id"):
        table[name] = pd.Series(table[name].tolist())  # pandas' own text type: the same after Parquet
    table["preference"] = preferences[headline]
    table["difficulty"] = 0.0 - reference_margin  # 0 - x: never -0.0
    table["beta_crit"] = critical[headline]
    table["threshold"] = flip_threshold(reference_margin, beta)
    table["loss"] = dpo_loss(log_ratios[:, 0], log_ratios[:, 1], beta)
    for name, difference in (
        ("ranked_right", margin),
        ("reference_right", reference_margin),
        ("reward_right", log_ratios[:, 0] - log_ratios[:, 1]),
        ("explicit_right", explicit_margin),
    ):
        table[name] = np.where(judged, credit(difference, ties), np.nan)
    table["difficulty_class"] = _classes(table["difficulty"].to_numpy(), critical[headline], judged, beta)
    table["human_tie"] = ~judged
    return RankedPairs(
        table=table,
        judged=judged,
        clusters=clusters_of(frame),
        margin=margin,
        margin_per_token=_difference(policy / lengths),
        reference_margin=reference_margin,
        log_ratios=log_ratios,
        log_ratio_per_token=log_ratios / lengths,
        explicit_margin=explicit_margin,
        length_difference=_difference(lengths),
        critical=critical,
        smoothing=headline,
        n_assumed=_n_assumed(frame, critical[headline]),
    )


def preference_strengths(frame: pd.DataFrame, assumed: float | None) -> dict[str, Float64[np.ndarray, "N"]]:
    """P(chosen preferred) of every pair by smoothing, NaN where the file says only which one was preferred.

    More than one vote: smoothed. No votes but a judge's probability: clipped, whatever the smoothing; where every such
    probability is 1/2 or 1 they are labels. One vote, or a label: `assumed`, or NaN. Where all pairs rest on
    `assumed` there is one entry, "assumed".
    """
    share, votes = frame["preference"].to_numpy(dtype=np.float64), frame["n_votes"].to_numpy(dtype=np.float64)
    counted = votes > 1
    judge = votes == 0
    if np.isin(share[judge], (0.5, 1.0)).all():
        judge = np.zeros_like(judge)
    known = counted | judge
    rest = np.nan if assumed is None else assumed
    if assumed is not None and not known.any():
        return {"assumed": np.full(len(frame), rest)}
    found = {}
    for how in SMOOTHINGS:
        p = np.full(len(frame), rest)
        p[judge] = np.clip(share[judge], CLIP, 1 - CLIP)
        p[counted] = smooth_preference(share[counted] * votes[counted], votes[counted], how)
        found[how] = p
    return found


def _n_assumed(frame: pd.DataFrame, crit: Float64[np.ndarray, "N"]) -> int:
    """Pairs that have a critical beta, but no strength of preference of their own."""
    own = next(iter(preference_strengths(frame, None).values()))
    return int((np.isnan(own) & ~np.isnan(crit)).sum())


def _critical(
    reference_margin: Float64[np.ndarray, "N"], preference: Float64[np.ndarray, "N"], judged: Bool[np.ndarray, "N"]
) -> Float64[np.ndarray, "N"]:
    known = np.isfinite(reference_margin) & np.isfinite(preference) & judged
    crit = np.full(len(known), np.nan)
    crit[known] = critical_beta(reference_margin[known], preference[known])
    return crit


def _classes(
    difficulty: Float64[np.ndarray, "N"], crit: Float64[np.ndarray, "N"], judged: Bool[np.ndarray, "N"], beta: float
) -> list[str]:
    choices = [
        (~judged | np.isnan(difficulty), "unknown"),
        (difficulty <= 0, "already_right"),
        (beta < crit, "flippable"),
        (beta >= crit, "hard"),
    ]
    return np.select([rule for rule, _ in choices], [name for _, name in choices], "unknown").tolist()


def _difference(sides: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "N"]:
    return sides[:, 0] - sides[:, 1]


def clusters_of(frame: pd.DataFrame) -> np.ndarray:
    """Prompt ids; a pair without one is its own cluster."""
    given = frame["prompt_id"]
    return np.array([f"row {i}" if pd.isna(name) else f"id {name}" for i, name in enumerate(given)], dtype=str)
