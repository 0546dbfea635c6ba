"""Does the policy prefer the chosen answers, more than its reference, and how far could training have brought it?

report = ranking_report(scores, beta=0.1)
report.summary()
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InputError
from ..probes.pair_table import PairScores
from .objectives import trl_metrics
from .phrases import assumed_beta
from .ranking import DEFAULT_BETA, PAPER_BETAS, SMOOTHINGS, TIES, theorem_mismatches
from .ranking_breakdowns import displacement_table, flip_table, length_table, variant_table
from .ranking_estimates import NAMES as OF_PAIRS
from .ranking_estimates import ranking_estimates
from .ranking_findings import headline, ranking_findings
from .ranking_orders import LABELS as OF_ORDERS
from .ranking_orders import order_estimates
from .ranking_table import ONE_LABEL, RankedPairs, rank_pairs
from .report import Estimate, Finding, Section, SectionResult
from .response_orders import orders_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

TABLES = {
    "pairs": "a pair: summed log-probabilities (nats), difficulty c = log pi_ref(rejected) - log pi_ref(chosen), the "
    "beta below which the optimum ranks it right, the largest DPO loss at which it is ranked right",
    "idealized": "a beta: share of pairs that a perfectly trained policy ranks right, by smoothing of the votes, with "
    "a pointwise 95 % band. Each pair is taken alone: where preferences form cycles the limit cannot be reached",
    "flips": "a cell of reference right? x policy right? (a tie only with ties='ge'), and its share of all pairs",
    "length": "a quarter of the pairs by difference of length (tokens), with the accuracies inside it",
    "set_aside": "a row of the file that could not be used: where, why, and what exactly",
    "displacement": "a sign quadrant of the log-ratios of chosen and rejected, and its share of all pairs",
    "variants": "a loss of the kind of Theorem 4.1: share of pairs within their threshold and ranked right, "
    "with intervals over prompts, and pairs that contradict it",
    "orders": "a row with more than two responses: is its whole order right, its pairs, Kendall's tau-b",
}
NAMES = (*OF_PAIRS, *OF_ORDERS)  # that the section's estimates can have
ELSEWHERE = ("length", "displacement")  # tables that stand in sections of their own
BETA_MOVES = "idealised accuracy, gap, shares flippable and hard, loss, its thresholds and the margin"
QUESTION = "Does the policy rank the chosen answers above the rejected ones, and how far could training have got?"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankingReport:
    """Estimates by name, tables by name (`TABLES`), and what follows from them."""

    estimates: Mapping[str, Estimate]
    tables: Mapping[str, pd.DataFrame]
    findings: tuple[Finding, ...]
    text: str  # the answer in one sentence
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    warnings: tuple[str, ...]
    trl: Mapping[str, float]

    def trl_metrics(self, prefix: str = "eval_") -> dict[str, float]:
        """The numbers that TRL's DPO trainer logs, by its names: strict ties, means over pairs (`objectives`)."""
        return {f"{prefix}{name}": value for name, value in self.trl.items()}

    @property
    def pairs(self) -> pd.DataFrame:
        """The per-pair table."""
        return self.tables["pairs"]

    def to_frame(self, table: str = "pairs") -> pd.DataFrame:
        """A copy of a table of `TABLES`, or "estimates": a row an estimate."""
        if table == "estimates":
            return pd.DataFrame([{"estimate": name, **e.model_dump()} for name, e in self.estimates.items()])
        if table not in self.tables:
            raise KeyError(f"no table '{table}'; choose from estimates, {', '.join(self.tables)}")
        return self.tables[table].copy()

    def summary(self) -> str:
        return self.text

    def figure(self) -> "go.Figure":
        """The idealised accuracy against beta where it is known, else the accuracies with their intervals."""
        from ..dashboards.figures import ranking_figures

        figures: dict[str, go.Figure] = ranking_figures(dict(self.tables), dict(self.estimates))
        return figures["idealized" if "idealized" in figures else "accuracies"]

    def section(self) -> SectionResult:
        """The section "ranking" of a report."""
        section = Section(
            name="ranking",
            title="Ranking accuracy",
            question=QUESTION,
            summary=self.text,
            estimates=dict(self.estimates),
            tables={name: about for name, about in TABLES.items() if name not in ELSEWHERE},
            settings=dict(self.settings),
            counts=dict(self.counts),
            warnings=list(self.warnings),
        )
        tables = {name: table for name, table in self.tables.items() if name not in ELSEWHERE}
        return SectionResult(section=section, tables=tables, findings=self.findings)


def ranking_report(
    scores: PairScores,
    *,
    beta: float = DEFAULT_BETA,
    beta_given: bool = True,
    betas: Sequence[float] | None = None,
    ties: str = "half",
    smoothing: str = "jeffreys",
    assumed_preference: float | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> RankingReport:
    """Ranking, reward and idealised accuracy with intervals over prompts (arXiv 2405.19534; docs/ranking.md).

    beta: of the DPO training, for losses, thresholds and R*. beta_given=False: it is an assumption, and the warnings
    say so. betas: where R* is also tabulated; None is the paper's
    grid. ties: credit of equal log-probabilities (`ranking.credit`). smoothing: of votes, for the headline R*.
    assumed_preference: P(chosen preferred) in (1/2, 1) for pairs of which only one label is known; without it their
    R* is null. bootstrap: draws. Human ties (preference 1/2) stay in the table and leave every estimate.
    Raises InputError (a ValueError) for a setting outside its range and for a table without pairs.
    """
    grid = tuple(PAPER_BETAS if betas is None else betas)
    require_ranking_settings((beta, *grid), len(grid), ties, smoothing, assumed_preference, bootstrap)
    if not len(scores):
        raise InputError("ranking: no pair was scored; see the rows set aside, by reason, in scores.invalid_counts")
    pairs = rank_pairs(scores, beta=beta, ties=ties, smoothing=smoothing, assumed_preference=assumed_preference)
    wrong = theorem_mismatches(pairs.margin, pairs.table["loss"], pairs.table["threshold"])
    estimates, idealized = ranking_estimates(pairs, beta=beta, betas=grid, ties=ties, bootstrap=bootstrap, seed=seed)
    ranked = scores.frame[scores.frame["ranking_id"].notna() & (scores.frame["n_responses"] > 0)]
    orders = orders_table(scores.frame, dict(zip(ranked["ranking_id"], ranked["n_responses"], strict=True)))
    estimates |= order_estimates(orders, bootstrap=bootstrap, seed=seed)
    tables = {
        "pairs": pairs.table,
        "idealized": idealized,
        "flips": flip_table(pairs),
        "length": length_table(pairs, bootstrap=bootstrap, seed=seed),
        "displacement": displacement_table(pairs),
        "variants": variant_table(pairs, beta=beta, bootstrap=bootstrap, seed=seed),
        "orders": orders,
        "set_aside": pd.DataFrame(
            [(row.row, row.name, row.reason, row.detail) for row in scores.invalid],
            columns=["row", "id", "reason", "detail"],
        ).astype({"row": int, "id": str, "reason": str, "detail": str}),
    }
    settings = {
        "beta": beta,
        "beta_given": beta_given,
        "betas": list(grid),
        "ties": ties,
        "smoothing": pairs.smoothing,
        "assumed_preference": assumed_preference,
        "bootstrap": bootstrap,
        "seed": seed,
    }
    return RankingReport(
        estimates=estimates,
        tables=tables,
        findings=ranking_findings(
            estimates,
            beta=beta,
            mismatches=int(wrong.sum()),
            noise_floor=scores.settings.get("noise_floor"),
            unmoved=unmoved(scores),
        ),
        text=headline(estimates, beta=beta),
        settings=dict(scores.settings) | settings,
        counts=_counts(scores, pairs, int(wrong.sum())),
        warnings=((assumed_beta(beta, BETA_MOVES),) if scores.has_reference and not beta_given else ())
        + _warnings(scores, pairs, estimates, orders),
        trl=trl_metrics(scores, beta, prefix=""),
    )


def unmoved(scores: PairScores) -> bool:
    """True where policy and reference agree to the last bit on every pair."""
    return bool(len(scores) and scores.has_reference and not scores.log_ratios().any())


def require_ranking_settings(
    betas: tuple[float, ...], n_grid: int, ties: str, smoothing: str, assumed_preference: float | None, bootstrap: int
) -> None:
    for beta in betas:
        if not (np.isfinite(beta) and beta > 0):
            raise InputError(f"beta={beta}: expected a positive, finite number, the beta of the DPO training")
    if not n_grid:
        raise InputError("betas is empty; leave it out for the grid .01, .1, 1, 5, 10")
    for name, value, choices in (("ties", ties, TIES), ("smoothing", smoothing, SMOOTHINGS)):
        if value not in choices:
            raise InputError(f"{name}={value!r}: choose from {', '.join(choices)}")
    if assumed_preference is not None and not 0.5 < assumed_preference < 1:
        raise InputError(
            f"assumed_preference={assumed_preference}: expected a probability above 1/2 and below 1, for instance 0.75"
        )
    if bootstrap < 1:
        raise InputError(f"bootstrap={bootstrap}: expected at least 1 draw; 2000 is the default")


def _counts(scores: PairScores, pairs: RankedPairs, mismatches: int) -> dict[str, int]:
    margins = {"policy": pairs.margin, "reference": pairs.reference_margin, "reward": pairs.reward_margin}
    ties = {f"{name}_ties": int((values[pairs.judged] == 0).sum()) for name, values in margins.items()}
    aside = {f"set_aside_{reason}": n for reason, n in scores.invalid_counts.items()}
    n_prompts = len(np.unique(pairs.clusters[pairs.judged]))
    own = {"pairs": int(pairs.judged.sum()), "prompts": n_prompts, "theorem_4_1_mismatches": mismatches}
    return own | ties | {name: int(n) for name, n in scores.counts.items()} | aside


def _warnings(
    scores: PairScores, pairs: RankedPairs, estimates: Mapping[str, Estimate], orders: pd.DataFrame
) -> tuple[str, ...]:
    found = list(scores.notices)
    if scores.invalid:
        parts = ", ".join(f"{n} {reason}" for reason, n in scores.invalid_counts.items())
        found.append(f"{len(scores.invalid)} rows were set aside: {parts} (table set_aside)")
    ideal, n = estimates["idealized_accuracy"], int(pairs.judged.sum())
    if ideal.reason == ONE_LABEL:
        found.append(
            "one label a pair says nothing about how strongly people prefer it, so there is no idealised accuracy; "
            "assumed_preference (--assumed-preference 0.75) assumes a strength, and the report says so"
        )
    elif ideal.value is not None and ideal.n < n:
        found.append(f"idealised accuracy and gap rest on {ideal.n} of {n} pairs: the others have one label")
    if n_lost := int(orders["exact"].isna().sum()):
        found.append(f"{n_lost} of {len(orders)} rankings lost a pair: their whole order is not judged")
    if pairs.n_assumed:
        found.append(
            f"{pairs.n_assumed} of {n} pairs have one label; idealised accuracy and gap rest on the strength of "
            "preference that assumed_preference gives them"
        )
    dtype = scores.settings.get("dtype")
    if dtype not in (None, "float32", "float64"):
        found.append(
            f"scored in {dtype}: sums of log-probabilities may be off by nats; --dtype float32 is exact enough"
        )
    return tuple(found)
