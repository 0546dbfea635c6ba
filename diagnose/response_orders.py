"""Does a policy order more than two responses as people did? Exact order, pairwise accuracy, Kendall's tau-b."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64
from scipy.special import gammaln

from .ranking import as_float64, credit

NOTHING_TO_ORDER = "every response has the same gold value"
ALL_TIED = "every response has the same score"
_MEASURES = ("exact", "pairwise", "tau_b")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderAgreement:
    """How far scores order n responses as gold does; None with the reason."""

    exact: float | None  # 1 where every pair that gold orders is ordered so and no two scores tie, else 0
    pairwise: float | None  # share of pairs that gold orders, ties of the scores counted half
    tau_b: float | None  # in [-1, 1], corrected for ties on both sides
    chance_exact: float  # the exact match of a random strict order: 1/n!, times k! for every k responses tied in gold
    n: int
    reason: str | None

    def summary(self) -> str:
        if self.pairwise is None:
            return f"No order of {self.n} responses to agree with: {self.reason}."
        verb = "match" if self.exact else "do not match"
        return f"The scores {verb} the order of {self.n} responses and agree on {self.pairwise:.0%} of its pairs."


def order_agreement(gold: Any, scores: Any) -> OrderAgreement:
    """The agreement of two orders of the same n responses, both [n], larger = better. Kendall 1945 for tau-b.

    Gold may tie: such pairs leave `pairwise`. Scores that tie anywhere are never an exact match.
    Raises ValueError for fewer than two responses, shapes that differ or values that are not finite.
    """
    truth, found = as_float64(gold), as_float64(scores)
    if truth.ndim != 1 or truth.shape != found.shape or len(truth) < 2:
        raise ValueError(
            f"gold of shape {truth.shape}, scores {found.shape}: expected two of the same length, 2 or more"
        )
    if not (np.isfinite(truth).all() and np.isfinite(found).all()):
        raise ValueError("gold and scores must be finite; leave such responses out")
    i, j = np.triu_indices(len(truth), k=1)
    sign = np.sign(truth[i] - truth[j])
    margin = np.sign(found[i] - found[j]) * np.where(sign == 0, 1.0, sign)
    one = np.zeros(len(i), dtype=np.int64)
    measures = _agreement(one, margin, sign == 0, np.array([len(i)]))
    exact, pairwise, tau = (None if np.isnan(value[0]) else float(value[0]) for value in measures)
    ways = math.prod(math.factorial(int(k)) for k in np.unique(truth, return_counts=True)[1])
    reason = NOTHING_TO_ORDER if pairwise is None else ALL_TIED if tau is None else None
    return OrderAgreement(
        exact=exact,
        pairwise=pairwise,
        tau_b=tau,
        chance_exact=ways / math.factorial(len(truth)),
        n=len(truth),
        reason=reason,
    )


def orders_table(frame: pd.DataFrame, sizes: Mapping[str, int] | None = None) -> pd.DataFrame:
    """The orders of every ranking in a pair table, one row a ranking, in order of first appearance.

    frame: the pair table with ranking_id (rows without one are passed over), response_chosen, response_rejected,
    policy_ and reference_ _chosen / _rejected, human_tie, prompt_id. Each pair keeps its own two scores, as a boundary
    between prompt and completion may differ from pair to pair. Columns: ranking_id, prompt_id, n_responses, exact,
    pairwise, tau_b, chance_exact, reference_exact, reference_pairwise, reference_tau_b.
    A ranking that lost pairs has NaN for exact, chance_exact and tau_b, and pairwise over the pairs it has; so have the
    reference's columns without a reference. n_responses: sizes[ranking_id], else the highest response seen plus one, so
    without sizes a lost last response goes unseen (two responses are always too few: a ranking has three or more).
    Raises ValueError where a ranking holds a pair twice or a response without a number.
    """
    ranked = frame[frame["ranking_id"].notna()]
    codes, ids = pd.factorize(ranked["ranking_id"])
    codes = codes.astype(np.int64)
    chosen, rejected = (ranked[f"response_{side}"].to_numpy(dtype=np.int64) for side in ("chosen", "rejected"))
    tied = ranked["human_tie"].to_numpy(dtype=bool)
    _require_pairs(codes, chosen, rejected)
    n = np.zeros(len(ids), dtype=np.int64)
    np.maximum.at(n, codes, np.maximum(chosen, rejected) + 1)
    n = np.maximum(n, 3)
    if sizes is not None:
        n = np.array([sizes.get(name, least) for name, least in zip(ids, n, strict=True)], dtype=np.int64)
    expected = n * (n - 1) // 2

    columns: dict[str, Any] = {}
    for role, prefix in (("policy", ""), ("reference", "reference_")):
        sides = ranked[[f"{role}_chosen", f"{role}_rejected"]].to_numpy(dtype=np.float64)
        measures = _agreement(codes, sides[:, 0] - sides[:, 1], tied, expected)
        columns |= {f"{prefix}{name}": value for name, value in zip(_MEASURES, measures, strict=True)}
    chance = np.exp(_log_ways(codes, chosen, rejected, tied, len(ids)) - gammaln(n + 1.0))
    columns["chance_exact"] = np.where(np.isnan(columns["exact"]), np.nan, chance)
    prompts = ranked["prompt_id"].to_numpy()[np.unique(codes, return_index=True)[1]]
    table = pd.DataFrame({"ranking_id": ids.tolist(), "prompt_id": prompts.tolist(), "n_responses": n} | columns)
    reference = [f"reference_{name}" for name in _MEASURES]
    return table[["ranking_id", "prompt_id", "n_responses", *_MEASURES, "chance_exact", *reference]]


def _agreement(
    codes: Int64[np.ndarray, "P"],
    margin: Float64[np.ndarray, "P"],
    tied: Bool[np.ndarray, "P"],
    expected: Int64[np.ndarray, "R"],
) -> tuple[Float64[np.ndarray, "R"], Float64[np.ndarray, "R"], Float64[np.ndarray, "R"]]:
    """exact, pairwise and tau-b of every ranking from its pairs; NaN where it has none.

    margin: score of gold's better response minus the other's (either way round where gold ties); NaN: lost.
    """
    seen = np.isfinite(margin)

    def total(values: Any) -> Float64[np.ndarray, "R"]:
        counted = np.where(seen, values, 0.0)
        return np.bincount(codes, weights=counted, minlength=len(expected)).astype(np.float64)  # int without rows

    ordered = total(~tied)
    even = total(margin == 0)
    right = total(np.where(tied, 0.0, margin > 0))
    complete = (total(1.0) == expected) & (ordered > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        pairwise = total(np.where(tied, 0.0, credit(margin))) / ordered
        tau = total(np.where(tied, 0.0, np.sign(margin))) / np.sqrt(ordered * (expected - even))
    exact = np.where(complete, (right == ordered) & (even == 0), np.nan)
    return exact, pairwise, np.where(complete, tau, np.nan)


def _require_pairs(
    codes: Int64[np.ndarray, "P"], chosen: Int64[np.ndarray, "P"], rejected: Int64[np.ndarray, "P"]
) -> None:
    if (np.minimum(chosen, rejected) < 0).any() or (chosen == rejected).any():
        raise ValueError("a pair of a ranking needs two different response numbers, from 0")
    pairs = np.stack([codes, np.minimum(chosen, rejected), np.maximum(chosen, rejected)], axis=1)
    if len(np.unique(pairs, axis=0)) < len(pairs):
        raise ValueError("a ranking holds the same two responses twice: every pair is expected once")


def _log_ways(
    codes: Int64[np.ndarray, "P"],
    chosen: Int64[np.ndarray, "P"],
    rejected: Int64[np.ndarray, "P"],
    tied: Bool[np.ndarray, "P"],
    n_rankings: int,
) -> Float64[np.ndarray, "R"]:
    """log of the number of strict orders that agree with gold: a response tied with k - 1 others adds log(k!) / k."""
    owner = np.concatenate([codes[tied], codes[tied]])
    response = np.concatenate([chosen[tied], rejected[tied]])
    members, others = np.unique(np.stack([owner, response], axis=1), axis=0, return_counts=True)
    share = gammaln(others + 2.0) / (others + 1.0)
    return np.bincount(members[:, 0], weights=share, minlength=n_rankings).astype(np.float64)
