"""What must be read beside an accuracy: the sections "length" and "displacement" of a report.

Is it only length? And where did the probability go? The numbers stand on the same pairs and prompts as the ranking.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped

from ..probes.pair_table import PairScores
from ..probes.samples import SampleScores
from .displacement import MOVED, beyond_sampling, on_policy_estimate, sign_estimates
from .phrases import percent
from .rank_correlation import spearman
from .ranking_breakdowns import QUADRANTS
from .ranking_estimates import residualised_estimate
from .ranking_report import RankingReport
from .ranking_table import NO_EXPLICIT, NO_LENGTHS, NO_REFERENCE, RankedPairs, rank_pairs
from .report import Estimate, Finding, Section, SectionResult
from .statistics import estimate_from

TOP_CHES = 0.05  # share of pairs listed as most at risk of displacement
NO_STATES = "hidden states were not read (--ches)"
NO_SAMPLES = "no samples of the reference were given (--reference-samples)"
_FROM_RANKING = ("shorter_wins", "longer_wins", "accuracy_over_length", "residualised_accuracy",
                 "reward_residualised_accuracy")  # fmt: skip
# that the estimates of the sections "length" and "displacement" can have
LENGTH_NAMES = (*_FROM_RANKING, "explicit_residualised_accuracy", "spearman_margin", "spearman_reward",
                "spearman_explicit", "spearman_difficulty")  # fmt: skip
DISPLACEMENT_NAMES = (*MOVED, "share_chosen_fell", *QUADRANTS, "chosen_absolute", "on_policy", "ches_spearman")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Log-ratios of the reference's own samples, nats a completion, by prompt; and what is known about them."""

    log_ratios: Float64[np.ndarray, "S"]
    prompts: Shaped[np.ndarray, "S"]
    counts: dict[str, int]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, given: object, prompts: object, scores: PairScores) -> "Samples | None":
        """Raises ValueError where numbers and prompts are not as many."""
        if given is None:
            return None
        if isinstance(given, SampleScores):
            aside = {f"samples_set_aside_{reason}": n for reason, n in given.invalid_counts.items()}
            counts = {f"samples_{name}": n for name, n in given.counts.items()} | aside
            told = (*given.notices, *_asked_elsewhere(given, scores))
            return cls(log_ratios=given.log_ratios, prompts=given.prompt_ids, counts=counts, warnings=told)
        values = np.asarray(given, dtype=np.float64).ravel()
        clusters = np.arange(len(values)) if prompts is None else np.asarray(prompts).ravel()
        if len(clusters) != len(values):
            raise ValueError(f"a prompt a sample expected, got {len(clusters)} prompts for {len(values)} samples")
        keep = np.isfinite(values)
        counts = {"samples_scored": int(keep.sum()), "samples_set_aside_non_finite": int((~keep).sum())}
        return cls(log_ratios=values[keep], prompts=clusters[keep], counts=counts, warnings=())


def companion_sections(
    scores: PairScores, ranking: RankingReport, *, reference_samples: object = None, sample_prompts: object = None
) -> list[SectionResult]:
    """The sections "length" and "displacement", under the settings of the ranking report.

    reference_samples: completions drawn from the reference, as `score_samples` gives them, or their numbers log pi -
        log pi_ref, nats: the mean is -KL(ref || pi). sample_prompts: beside numbers, the prompt of each, which are the
        clusters of the interval; without it each is a cluster of its own.
    """
    settings = {key: ranking.settings[key] for key in ("beta", "ties", "smoothing", "assumed_preference")}
    pairs = rank_pairs(scores, **settings)
    draws, seed = int(ranking.settings["bootstrap"]), int(ranking.settings["seed"])
    samples = Samples.of(reference_samples, sample_prompts, scores)
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
    samples: Samples | None,
    *,
    draws: int,
    seed: int,
) -> SectionResult:
    estimates = {name: ranking.estimates[f"displacement_{name}"] for name in MOVED}
    estimates["share_chosen_fell"] = ranking.estimates["share_chosen_fell"]
    judged = pairs.judged
    estimates |= sign_estimates(
        pairs.log_ratios[judged], pairs.clusters[judged], reason=_why(pairs, NO_REFERENCE), draws=draws, seed=seed
    )
    own = None if samples is None else (samples.log_ratios, samples.prompts)
    estimates["on_policy"] = on_policy_estimate(own, draws=draws, seed=seed, absent=NO_SAMPLES)
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
        counts={} if samples is None else samples.counts,
        warnings=[] if samples is None else [*samples.warnings],
    )
    tables = {"quadrants": ranking.tables["displacement"], "ches": _riskiest(scores, pairs)}
    rules = (_proper(estimates), _not_drawn(estimates["on_policy"]))
    found = [finding for finding in rules if finding is not None]
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


def _asked_elsewhere(samples: SampleScores, scores: PairScores) -> tuple[str, ...]:
    """A warning where the samples answer other prompts than the pairs: another -KL, then, than that of the pairs."""
    asked = samples.frame["prompt_hash"].isin(scores.frame["prompt_hash"].dropna())
    if asked.all() or scores.frame["prompt_hash"].isna().all():
        return ()
    n = samples.frame.loc[~asked, "prompt_hash"].nunique()
    return (
        f"{n} of the {samples.frame['prompt_hash'].nunique()} prompts of the reference's samples are asked in no pair: "
        "what training took there need not be what it took from answers to the pairs' prompts",
    )


def _proper(estimates: dict[str, Estimate]) -> Finding | None:
    """Displacement proper: the chosen answers fell by more than the reference's own samples did."""
    chosen, forced = estimates["chosen"], estimates["on_policy"]
    if not beyond_sampling(chosen, forced) or chosen.value is None or forced.value is None:
        return None
    return Finding(
        severity="notice",
        section="displacement",
        sentence=f"The chosen answers lost {-chosen.value:.3g} nats on average, more than the {-forced.value:.3g} that "
        "the reference's own samples lost: probability was displaced to answers of neither kind.",
        rests_on=["displacement.chosen", "displacement.on_policy"],
        next_step="Look at the pairs of table ches, and at samples of the policy.",
    )


def _not_drawn(forced: Estimate) -> Finding | None:
    """-KL <= 0: samples whose mean log-ratio is surely above 0 were not drawn from the reference as it is scored."""
    if forced.low is None or forced.low <= 0:
        return None
    return Finding(
        severity="alarm",
        section="displacement",
        sentence=f"The samples of the reference gained {forced.value:.3g} nats on average, which draws from it cannot: "
        "they were drawn otherwise, or are scored by other ids than were drawn.",
        rests_on=["displacement.on_policy"],
        next_step="Draw at temperature 1 without top-k and top-p from this reference, under the template scored with.",
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
