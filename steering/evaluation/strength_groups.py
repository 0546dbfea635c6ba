"""The outputs of one concept and direction: which prompts choose a strength, and which strength they choose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from ...diagnose.statistics import cluster_bootstrap
from .ratings import DIRECTIONS, RATINGS, rating_scores

TIE = 1e-9  # of a score in [0, 2]: what summing in another order may move
KEY = ("concept", "direction")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StrengthGroup:
    """The outputs of one concept and direction."""

    concept: str
    direction: str
    prompt_ids: Shaped[np.ndarray, "n"]
    clusters: Int[np.ndarray, "n"]
    choosing: Bool[np.ndarray, "n"]
    strengths: list[float]  # the preferred ones of a tie first
    score: Float[np.ndarray, "n"]
    column: Int[np.ndarray, "n"]  # of its strength

    @classmethod
    def of(cls, key: Any, rows: pd.DataFrame, clusters: Int[np.ndarray, "n"], split: float) -> "StrengthGroup":
        try:
            chosen = first_part([*rows.prompt_id], split)
        except ValueError as error:
            raise ValueError(f"concept {key[0]!r}, {key[1]}: {error}") from error
        strengths = sorted({*rows.strength}, key=lambda s: (abs(s), s < 0))
        choosing = rows.prompt_id.isin(chosen).to_numpy()
        if rows.score[choosing].isna().all():
            raise ValueError(f"concept {key[0]!r}, {key[1]}: no prompt of the first half has a rating to choose by")
        return cls(
            concept=key[0],
            direction=key[1],
            prompt_ids=rows.prompt_id.to_numpy(str),
            clusters=clusters,
            choosing=choosing,
            strengths=strengths,
            score=rows.score.to_numpy(),
            column=rows.strength.map({s: i for i, s in enumerate(strengths)}).to_numpy(int),
        )

    @property
    def unit(self) -> float | None:
        """The strength that counts as 1: -1 to suppress, else +1 (an ablation knows no other); None: not in the grid"""
        lone = {*self.strengths} <= {0.0, 1.0}
        wanted = (1.0,) if self.direction != "suppress" or lone else (-1.0,)
        return next((s for s in wanted if s in self.strengths), None)

    def by_cluster(self, n_clusters: int) -> list[tuple[Float[np.ndarray, "C S"], Float[np.ndarray, "C S"]]]:
        """(sums, counts) of scores by cluster and strength: of the half that chooses, and of the other."""
        found = []
        known = ~np.isnan(self.score)
        for half in (self.choosing, ~self.choosing):
            at = half & known
            sums, counts = np.zeros((2, n_clusters, len(self.strengths)))
            np.add.at(sums, (self.clusters[at], self.column[at]), self.score[at])
            np.add.at(counts, (self.clusters[at], self.column[at]), 1.0)
            found.append((sums, counts))
        return found

    def readings(self, choosing: Float[np.ndarray, "b S"], other: Float[np.ndarray, "b S"]) -> Float[np.ndarray, "b 4"]:
        """selection_score, reported_score, optimism, unit_score of every draw.

        The reported score is at the strength that this draw chooses. Selection score and optimism are at the one that
        the data chose: the highest of resampled means is too high twice over, and their interval would miss the value.
        """
        at, fixed = preferred(choosing), self.strengths.index(self.selected)
        reported = np.where(at < 0, np.nan, other[np.arange(len(at)), at])
        unit = other[:, self.strengths.index(self.unit)] if self.unit is not None else np.full(len(at), np.nan)
        return np.stack([choosing[:, fixed], reported, choosing[:, fixed] - other[:, fixed], unit], 1)

    @property
    def selected(self) -> float:
        """The strength that the first half chooses."""
        n = int(self.clusters.max()) + 1
        return self.strengths[int(preferred(means(np.ones((1, n)), *self.by_cluster(n)[0]))[0])]

    @property
    def clusters_reported(self) -> list[int]:
        """Of every rated output at that strength in the other half."""
        at = ~self.choosing & ~np.isnan(self.score) & (self.column == self.strengths.index(self.selected))
        return [int(cluster) for cluster in self.clusters[at]]

    def halves(self) -> pd.DataFrame:
        half = np.where(self.choosing, "selection", "reported")
        frame = pd.DataFrame({"prompt_id": self.prompt_ids, "half": half}).drop_duplicates(ignore_index=True)
        return frame.assign(concept=self.concept, direction=self.direction)[[*KEY, "prompt_id", "half"]]

    def curve(self, *, draws: int, seed: int, level: float) -> pd.DataFrame:
        """Mean score by half and strength, in the order of strengths, with a prompt-cluster bootstrap."""
        lines = []
        for name, half in (("selection", self.choosing), ("reported", ~self.choosing)):
            at = np.flatnonzero(half)
            values = np.full((len(at), len(self.strengths)), np.nan)
            values[np.arange(len(at)), self.column[at]] = self.score[at]
            boot = cluster_bootstrap(values, self.clusters[at], draws=draws, seed=seed, level=level)
            for column in np.argsort(self.strengths):
                there = self.column[at] == column
                lines.append(
                    {
                        "concept": self.concept,
                        "direction": self.direction,
                        "half": name,
                        "strength": self.strengths[column],
                        "score": boot.mean[column],
                        "low": boot.low[column],
                        "high": boot.high[column],
                        "n": int(boot.n[column]),
                        "missing": int(np.isnan(self.score[at][there]).sum()),
                    }
                )
        return pd.DataFrame(lines)


def scored_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with concept, direction, prompt_id, cluster (texts), strength and score. ValueError as above."""
    found = pd.DataFrame({"row": np.arange(len(table))})
    rated = [name for name in RATINGS if name in table.columns]
    needed = {"prompt_id", "strength", *(RATINGS if rated else ("score",))}
    if (lacking := needed - {*table.columns}) or not len(table):
        raise ValueError(f"a table of {len(table)} outputs without {sorted(lacking)}; the columns: {[*table.columns]}")
    found["concept"] = table["concept"].astype(str).to_numpy() if "concept" in table else ""
    found["direction"] = table["direction"].astype(str).to_numpy() if "direction" in table else "elicit"
    found["prompt_id"] = table["prompt_id"].astype(str).to_numpy()
    found["cluster"] = (table["cluster"] if "cluster" in table else table["prompt_id"]).astype(str).to_numpy()
    found["strength"] = table["strength"].to_numpy(float) + 0.0  # no negative zero
    if unknown := {*found.direction} - {*DIRECTIONS}:
        raise ValueError(f"direction {sorted(unknown)[0]!r}: expected one of {', '.join(DIRECTIONS)}")
    if not np.isfinite(found.strength).all():
        raise ValueError("a strength that is not a finite number")
    score = np.full(len(table), np.nan)
    for direction in DIRECTIONS:
        at = (found.direction == direction).to_numpy()
        if rated:
            score[at] = rating_scores(table[list(RATINGS)].to_numpy(float)[at], direction=direction)
        else:
            score[at] = table["score"].to_numpy(float)[at]
    found["score"] = score
    return found


def first_part(prompt_ids: Sequence[str], split: float = 0.5) -> set[str]:
    """The ids that choose: of the distinct ones, sorted, the first share. ValueError for fewer than two."""
    ids = sorted({*prompt_ids})
    if all(i.removeprefix("-").isdecimal() for i in ids):
        ids.sort(key=int)
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} prompt: one half chooses and the other is reported, so 2 are the least")
    return {*ids[: min(max(1, int(split * len(ids) + TIE)), len(ids) - 1)]}


def preferred(means: Float[np.ndarray, "b S"]) -> Int[np.ndarray, "b"]:
    """The first column within a tie of the highest mean; -1 where no column has one. Columns: preferred ones first."""
    known = np.where(np.isnan(means), -np.inf, means)
    best = known.max(1, keepdims=True)
    return np.where(np.isneginf(best[:, 0]), -1, (known >= best - TIE).argmax(1))


def means(
    times: Float[np.ndarray, "b C"], sums: Float[np.ndarray, "C S"], counts: Float[np.ndarray, "C S"]
) -> Float[np.ndarray, "b S"]:
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without any output at a strength: 0 / 0
        return np.asarray((times @ sums) / (times @ counts))
