"""What must be read beside an accuracy: the sections "length" and "displacement" of a report.

Is it only length? And where did the probability go? The numbers stand on the same pairs and prompts as the ranking.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float64

from ..probes.pair_table import PairScores
from .phrases import percent
from .rank_correlation import spearman
from .ranking_breakdowns import QUADRANTS, quadrant_columns
from .ranking_estimates import residualised_estimate
from .ranking_report import RankingReport
from .ranking_table import NO_EXPLICIT, NO_LENGTHS, NO_REFERENCE, RankedPairs, rank_pairs
from .report import Estimate, Finding, Section, SectionResult
from .statistics import cluster_bootstrap, estimate_from

TOP_CHES = 0.05  # share of pairs listed as most at risk of displacement
NO_STATES = "hidden states were not read (--ches)"
NO_SAMPLES = "no samples of the reference were given (reference_samples=)"
_FROM_RANKING = ("shorter_wins", "longer_wins", "accuracy_over_length", "residualised_accuracy",
                 "reward_residualised_accuracy")  # fmt: skip
_MOVED = ("chosen", "rejected", "chosen_per_token", "rejected_per_token")
# that the estimates of the sections "length" and "displacement" can have
LENGTH_NAMES = (*_FROM_RANKING, "explicit_residualised_accuracy", "spearman_margin", "spearman_reward",
                "spearman_explicit", "spearman_difficulty")  # fmt: skip
DISPLACEMENT_NAMES = (*_MOVED, "share_chosen_fell", *QUADRANTS, "chosen_absolute", "on_policy", "ches_spearman")


def companion_sections(
    scores: PairScores, ranking: RankingReport, *, reference_samples: object = None
) -> list[SectionResult]:
    """The sections "length" and "displacement", under the settings of the ranking report.

    reference_samples: log pi - log pi_ref of completions drawn from the reference, nats: their mean is -KL(ref || pi).
    """
    settings = {key: ranking.settings[key] for key in ("beta", "ties", "smoothing", "assumed_preference")}
    pairs = rank_pairs(scores, **settings)
    draws, seed = int(ranking.settings["bootstrap"]), int(ranking.settings["seed"])
    samples = None if reference_samples is None else np.asarray(reference_samples, dtype=np.float64).ravel()
    return [
        _length_section(pairs, ranking, draws=draws, seed=seed),
        _displacement_section(scores, pairs, ranking, samples, draws=draws, seed=seed),
    ]


def _length_section(pairs: RankedPairs, ranking: RankingReport, *, draws: int, seed: int) -> SectionResult:
    estimates = {name: ranking.estimates[name] for name in _FROM_RANKING}
    ties = str(ranking.settings["ties"])
    estimates["explicit_residualised_accuracy"] = residualised_estimate(
        pairs, pairs.explicit_margin, label="explicit accuracy without what length predicts", ties=ties,
        reason=_why(pairs, _lacking(pairs.explicit_margin, NO_EXPLICIT)), bootstrap=draws, seed=seed,
    )  # fmt: skip
    for name, margin, what, reason in (
        ("spearman_margin", pairs.margin, "the policy's margin", NO_LENGTHS),
        ("spearman_reward", pairs.reward_margin, "the implicit reward's margin", NO_REFERENCE),
        ("spearman_explicit", pairs.explicit_margin, "the explicit reward's margin", NO_EXPLICIT),
        ("spearman_difficulty", 0.0 - pairs.reference_margin, "the difficulty c", NO_REFERENCE),
    ):
        estimates[name] = _correlation(
            margin, pairs.length_difference, pairs, label=f"Spearman of {what} with the difference of length",
            reason=_why(pairs, _lacking(margin, reason)), draws=draws, seed=seed,
        )  # fmt: skip
    section = Section(
        name="length",
        title="Is it only length?",
        question="How much of the accuracies does the length of the answers explain?",
        summary=_length_summary(estimates),
        estimates=estimates,
        tables={"strata": "a quarter of the pairs by difference of length (tokens), with the accuracies inside it"},
        settings={key: ranking.settings[key] for key in ("ties", "bootstrap", "seed")},
    )
    return SectionResult(section=section, tables={"strata": ranking.tables["length"]})


def _displacement_section(
    scores: PairScores,
    pairs: RankedPairs,
    ranking: RankingReport,
    samples: Float64[np.ndarray, "S"] | None,
    *,
    draws: int,
    seed: int,
) -> SectionResult:
    estimates = {name: ranking.estimates[f"displacement_{name}"] for name in _MOVED}
    estimates["share_chosen_fell"] = ranking.estimates["share_chosen_fell"]
    judged = pairs.judged
    quadrants = quadrant_columns(pairs.log_ratios)
    values = np.stack([*quadrants.values(), np.abs(pairs.log_ratios[:, 0])], axis=1)[judged]
    boot = cluster_bootstrap(values, pairs.clusters[judged], draws=draws, seed=seed)
    for j, name in enumerate(quadrants):
        label = f"pairs: {name.replace('_', ' ')}"
        estimates[name] = estimate_from(boot, j, label=label, reason=_why(pairs, NO_REFERENCE))
    estimates["chosen_absolute"] = estimate_from(
        boot, len(quadrants), label="mean |log pi / pi_ref| of chosen: 0 where policy and reference are the same",
        unit="nats a completion", null_value=0.0, reason=_why(pairs, NO_REFERENCE),
    )  # fmt: skip
    estimates["on_policy"] = _on_policy(samples, draws=draws, seed=seed)
    ches = scores.frame["ches"].to_numpy(dtype=np.float64)
    known = np.isfinite(ches).any()
    estimates["ches_spearman"] = _correlation(
        ches, pairs.log_ratios[:, 0], pairs,
        label="Spearman of CHES with the change of the chosen log-probability (below 0: CHES foretells the fall)",
        reason=_why(pairs, NO_REFERENCE if known else NO_STATES), draws=draws, seed=seed,
    )  # fmt: skip
    section = Section(
        name="displacement",
        title="Where did the probability go?",
        question="Did training raise the chosen answers, or only lower the rejected ones further?",
        summary=_displacement_summary(estimates),
        estimates=estimates,
        tables={
            "quadrants": "a sign quadrant of the log-ratios of chosen and rejected, and its share of all pairs",
            "ches": "a pair of the top 5 % by CHES: the pairs whose training most endangers the chosen answer",
        },
        settings={"bootstrap": draws, "seed": seed, "states_from": scores.settings.get("states_from")},
    )
    tables = {"quadrants": ranking.tables["displacement"], "ches": _riskiest(scores, pairs)}
    found = [finding for finding in (_proper(estimates),) if finding is not None]
    return SectionResult(section=section, tables=tables, findings=tuple(found))


def _riskiest(scores: PairScores, pairs: RankedPairs) -> pd.DataFrame:
    """The top 5 % of the pairs by CHES, highest first; empty where no states were read."""
    frame = scores.frame
    table = pairs.table[["pair_id", "prompt_id"]].copy()
    for name in ("ches", "ches_normalised"):
        table[name] = frame[name].to_numpy(dtype=np.float64)
    table["log_ratio_chosen"], table["log_ratio_rejected"] = pairs.log_ratios.T
    table = table.dropna(subset=["ches"])
    n = int(np.ceil(TOP_CHES * len(table)))
    return table.sort_values("ches", ascending=False, kind="stable").head(n).reset_index(drop=True)


def _on_policy(samples: Float64[np.ndarray, "S"] | None, *, draws: int, seed: int) -> Estimate:
    """-KL(ref || pi) from samples of the reference: what is forced on any text that the reference itself wrote."""
    some = np.zeros(0) if samples is None else samples[np.isfinite(samples)]
    boot = cluster_bootstrap(some[:, None], np.arange(len(some)), draws=draws, seed=seed)
    return estimate_from(
        boot, 0, label="mean log pi / pi_ref of the reference's own samples, -KL(ref || policy)",
        unit="nats a completion", null_value=0.0, reason=NO_SAMPLES,
    )  # fmt: skip


def _proper(estimates: dict[str, Estimate]) -> Finding | None:
    """Displacement proper: the chosen answers fell by more than the reference's own samples did."""
    chosen, forced = estimates["chosen"], estimates["on_policy"]
    if chosen.high is None or forced.low is None or chosen.value is None or forced.value is None:
        return None
    if chosen.high >= min(0.0, forced.low):
        return None
    return Finding(
        severity="notice",
        section="displacement",
        sentence=f"The chosen answers lost {-chosen.value:.3g} nats on average, more than the {-forced.value:.3g} that "
        "the reference's own samples lost: probability was displaced to answers of neither kind.",
        rests_on=["displacement.chosen", "displacement.on_policy"],
        next_step="Look at the pairs of table ches, and at samples of the policy.",
    )


def _correlation(
    x: Float64[np.ndarray, "N"],
    y: Float64[np.ndarray, "N"],
    pairs: RankedPairs,
    *,
    label: str,
    reason: str,
    draws: int,
    seed: int,
) -> Estimate:
    judged = pairs.judged
    boot = spearman(x[judged], y[judged], pairs.clusters[judged], draws=draws, seed=seed)
    if not boot.n[0] and (np.isfinite(x[judged]) & np.isfinite(y[judged])).any():
        reason = "one of the two is the same in every pair"
    return estimate_from(boot, 0, label=label, unit="", null_value=0.0, reason=reason)


def _why(pairs: RankedPairs, reason: str) -> str:
    if not pairs.judged.any():
        return "every pair is a human tie"
    return reason


def _lacking(margin: Float64[np.ndarray, "N"], reason: str) -> str:
    """A number of margin and length lacks the margin, for its own reason, or else the length."""
    return reason if np.isnan(margin).all() else NO_LENGTHS


def _length_summary(estimates: dict[str, Estimate]) -> str:
    shorter, longer, rest = (estimates[name] for name in ("shorter_wins", "longer_wins", "residualised_accuracy"))
    if shorter.value is None or longer.value is None:
        return f"Not known: {shorter.reason}."
    text = f"Always preferring the shorter answer is right on {percent(shorter.value)}"
    text += f", the longer on {percent(longer.value)}"
    if rest.value is not None:
        text += f"; without what length predicts the ranking is right on {percent(rest.value)}"
    return f"{text}."


def _displacement_summary(estimates: dict[str, Estimate]) -> str:
    chosen, rejected = estimates["chosen"], estimates["rejected"]
    if chosen.value is None or rejected.value is None:
        return f"Not known: {chosen.reason}."
    fell = estimates["both_fell"].value
    both = "" if fell is None else f" Both fell in {100 * fell:.0f} % of the pairs."
    return f"Chosen answers moved by {chosen.value:+.3g} nats on average, rejected ones by {rejected.value:+.3g}.{both}"
