"""Which strength is best, and what is it worth on prompts that did not choose it?

Prompt ids of a concept and direction are sorted; the first half chooses the strength, the second is reported. Chosen
and reported on the same prompts, a score is too good: the difference is the optimism.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...diagnose.report import Estimate, Finding
from ...diagnose.statistics import (
    LEVEL,
    MIN_CLUSTERS,
    cluster_codes,
    estimate_from,
    resampled_counts,
    single_column,
    wilson,
)
from .ratings import HIGHEST
from .strength_groups import KEY, StrengthGroup, means, preferred, scored_table
from .sweep_findings import missing_ratings, selection_findings

LABELS = {
    "selection_score": "Mean score at the chosen strength, on the prompts that chose it",
    "reported_score": "Mean score at the chosen strength, on the other prompts",
    "optimism": "Score on the prompts that chose the strength minus score on the others",
    "unit_score": "Mean score at strength 1 (-1 to suppress), on the other prompts",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """The strengths that were chosen, and what they are worth.

    groups: a row a concept and direction: strength, the four scores (NaN where no rating is there), reported_low and
        reported_high, n_selection and n_reported (prompts), at_end (the grid's), unit (which strength counts as 1),
        times_selected (share of resamples that choose this strength; NaN where fewer than 20 prompts choose).
    curve: a row a concept, direction, half ("selection", "reported") and strength: score with interval, n, missing.
    halves: a row a concept, direction and prompt: its half.
    estimates: `elicit_reported_score`, ... for each direction: the mean over its concepts.
    """

    groups: pd.DataFrame
    curve: pd.DataFrame
    halves: pd.DataFrame
    estimates: Mapping[str, Estimate]
    findings: tuple[Finding, ...]
    missing: int  # outputs with a rating that is missing
    n: int  # outputs

    def to_frame(self) -> pd.DataFrame:
        """A row a concept and direction."""
        return self.groups.copy()

    def strength(self, concept: str | None = None, direction: str | None = None) -> float:
        """The strength chosen for a concept and direction; ValueError unless exactly one row is meant."""
        chosen = self.groups
        for name, value in zip(KEY, (concept, direction), strict=True):
            chosen = chosen if value is None else chosen[chosen[name] == value]
        if len(chosen) != 1:
            known = "; ".join(f"{row.concept!r}, {row.direction}" for row in self.groups.itertuples())
            raise ValueError(f"{len(chosen)} selections for concept={concept!r}, direction={direction!r}; of: {known}")
        return float(chosen.strength.iloc[0])

    def summary(self) -> str:
        """A sentence a direction."""
        told = []
        for direction in dict.fromkeys(self.groups.direction):
            strengths = sorted({*self.groups[self.groups.direction == direction].strength})
            span = " to ".join(f"{s:g}" for s in dict.fromkeys((strengths[0], strengths[-1])))
            score, optimism, unit = (
                self.estimates[f"{direction}_{name}"] for name in ("reported_score", "optimism", "unit_score")
            )
            told.append(
                f"{direction.capitalize()}: strength {span}, score {score} on {score.n} outputs whose prompts did "
                f"not choose it; optimism {optimism}; at strength 1: {unit}."
            )
        return " ".join(told)


def select_strength(
    table: pd.DataFrame, *, split: float = 0.5, seed: int = 0, draws: int = 2000, level: float = LEVEL
) -> Selection:
    """Choose a strength for every concept and direction on the first prompts, report it on the others.

    table: a row an output: prompt_id, strength, and concept_rating, instruction_rating, fluency_rating, or score (in
    [0, 2]); optional concept, direction ("elicit" or "suppress"), cluster (prompts that are not independent of each
    other, also between concepts; default prompt_id). NaN is missing: left out of means and counted.
    split: share of the sorted prompt ids (as numbers where all are, rounded down, at least one on either side) that
    choose. The highest mean wins; ties go to the smallest |strength|, then to the positive one. Intervals: clusters are
    drawn with replacement and the strength is chosen anew in every draw. A mean over concepts leaves out those without
    a rating. ValueError for missing columns, a concept with one prompt or without any rating to choose by.

    >>> rows = [(i, s, s * (2 - s) + 1 - 0.1 * i) for i in range(4) for s in (0.0, 1.0, 2.0)]
    >>> select_strength(pd.DataFrame(rows, columns=["prompt_id", "strength", "score"])).strength()
    1.0
    """
    if not 0 < split < 1:
        raise ValueError(f"split={split}: expected a share of the prompts in (0, 1)")
    scored = scored_table(table)
    codes, n_clusters = cluster_codes(scored.cluster.to_numpy(str))
    groups = [StrengthGroup.of(key, rows, codes[rows.row], split) for key, rows in scored.groupby([*KEY], sort=False)]
    sums = [group.by_cluster(n_clusters) for group in groups]
    everyone = np.ones((1, n_clusters))
    whole = [group.readings(*(means(everyone, *half) for half in both))[0]
             for group, both in zip(groups, sums, strict=True)]  # fmt: skip
    drawn: list[list[Float[np.ndarray, "b 4"]]] = [[] for _ in groups]
    at = [group.strengths.index(group.selected) for group in groups]
    alike = np.zeros(len(groups))  # draws that choose the strength that the data choose
    for times in resampled_counts(n_clusters, draws=draws, seed=seed, width=scored.strength.nunique()):
        for i, (group, both) in enumerate(zip(groups, sums, strict=True)):
            halves = [means(times, *half) for half in both]
            drawn[i].append(group.readings(*halves))
            alike[i] += (preferred(halves[0]) == at[i]).sum()
    every = [np.concatenate(found) for found in drawn]
    shares = [float(count / len(found)) for count, found in zip(alike, every, strict=True)]
    frame = pd.DataFrame([_row(*parts, level) for parts in zip(groups, whole, every, shares, strict=True)])
    curves = [group.curve(draws=draws, seed=seed, level=level) for group in groups]
    missing = int(scored.score.isna().sum())
    return Selection(
        groups=frame,
        curve=pd.concat(curves, ignore_index=True),
        halves=pd.concat([group.halves() for group in groups], ignore_index=True),
        estimates=_estimates(groups, whole, every, level),
        findings=(*selection_findings(frame), *missing_ratings(missing, len(scored))),
        missing=missing,
        n=len(scored),
    )


def _row(
    group: StrengthGroup, own: Float[np.ndarray, "4"], drawn: Float[np.ndarray, "B 4"], times: float, level: float
) -> dict[str, Any]:
    clusters = group.clusters_reported
    boot = single_column(float(own[1]), drawn[:, 1], n=len(clusters), n_clusters=len({*clusters}), level=level)
    ends = {min(group.strengths), max(group.strengths)}
    return {
        "concept": group.concept,
        "direction": group.direction,
        "strength": group.selected,
        **dict(zip(LABELS, map(float, own), strict=True)),
        "reported_low": float(boot.low[0]),
        "reported_high": float(boot.high[0]),
        "n_selection": len({*group.prompt_ids[group.choosing]}),
        "n_reported": len({*group.prompt_ids[~group.choosing]}),
        "unit": group.unit,
        "at_end": group.selected in ends - {0.0},
        "times_selected": times if len({*group.clusters[group.choosing]}) >= MIN_CLUSTERS else np.nan,
    }


def _estimates(
    groups: Sequence[StrengthGroup],
    whole: Sequence[Float[np.ndarray, "4"]],
    drawn: Sequence[Float[np.ndarray, "B 4"]],
    level: float,
) -> dict[str, Estimate]:
    """Means over the concepts of each direction."""
    found: dict[str, Estimate] = {}
    for direction in dict.fromkeys(group.direction for group in groups):
        at = [i for i, group in enumerate(groups) if group.direction == direction]
        clusters = [c for i in at for c in groups[i].clusters_reported]
        for column, (name, label) in enumerate(LABELS.items()):
            own = _mean_of([whole[i][None, column] for i in at])[0]
            draws = _mean_of([drawn[i][:, column] for i in at])
            n = 0 if np.isnan(own) else len(clusters)
            boot = single_column(float(own), draws, n=n, n_clusters=len({*clusters}), level=level)
            estimate = estimate_from(
                boot,
                0,
                label=f"{label} ({direction})",
                unit="of 2",
                null_value=0.0 if name == "optimism" else None,
                reason="strength 1 is not in the grid, or has no rating" if name == "unit_score" else None,
            )
            found[f"{direction}_{name}"] = _told(estimate, name)
    return found


def _told(estimate: Estimate, name: str) -> Estimate:
    """With what was held fixed; of outputs that are all rated 0, or all 2, with Wilson's interval on clusters."""
    how = {"reported_score": "; the strength chosen anew in every draw", "unit_score": ""}.get(
        name, "; at the strength that the data chose"
    )
    n = estimate.n_clusters
    if name == "optimism" and estimate.low is not None and estimate.low == estimate.high:
        return estimate.model_copy(update={"low": None, "high": None, "reason": "the scores do not differ at all"})
    if name != "optimism" and n and estimate.low == estimate.high and estimate.value in (0.0, HIGHEST):
        low, high = wilson(estimate.value / HIGHEST * n, n, level=estimate.level or LEVEL)
        method = f"Wilson's interval on clusters, times {HIGHEST:g}, because all scores are {estimate.value:g}"
        return estimate.model_copy(update={"low": HIGHEST * low, "high": HIGHEST * high, "method": method})
    return estimate.model_copy(update={"method": estimate.method + how})


def _mean_of(columns: Sequence[Float[np.ndarray, "b"]]) -> Float[np.ndarray, "b"]:
    """Mean over the concepts that have a value; NaN where none has."""
    values = np.stack(columns)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(0) / known.sum(0))
