"""The section "objectives" of a report: what each preference objective makes of these pairs, and TRL's own numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..probes.pair_table import PairScores
from .objectives import ObjectiveTable, objective_names, objective_table
from .phrases import assumed_beta
from .ranking import credit
from .ranking_table import NO_EXPLICIT, NO_REFERENCE, clusters_of, preference_strengths
from .report import Estimate, Section, SectionResult
from .statistics import cluster_bootstrap, estimate_from

# TRL's name -> (what it is, unit, value that means "no effect")
TRL: dict[str, tuple[str, str, float | None]] = {
    "rewards/chosen": ("mean implicit reward of chosen, beta dw", "nats", 0.0),
    "rewards/rejected": ("mean implicit reward of rejected, beta dl", "nats", 0.0),
    "rewards/margins": ("mean of their difference", "nats", 0.0),
    "rewards/accuracies": ("share of pairs with dw > dl; a tie counts 0, human ties stay in", "share", 0.5),
    "logps/chosen": ("mean summed log-probability of chosen under the policy", "nats a completion", None),
    "logps/rejected": ("mean summed log-probability of rejected under the policy", "nats a completion", None),
    "accuracy": ("reward trainer: the reward model scores chosen higher; a tie counts 0", "share", 0.5),
    "margin": ("reward trainer: mean score of chosen minus rejected", "", 0.0),
    "mean_reward": ("reward trainer: mean score of both", "", None),
}
WITHOUT_BETA = ("simpo", "orpo")  # SimPO has a beta of its own
BETA_MOVES = "implicit rewards and losses (but simpo's and orpo's)"
EXTREMES = {"min_reward": ("lowest", np.min), "max_reward": ("highest", np.max)}


def objectives_section(
    scores: PairScores,
    *,
    beta: float,
    beta_given: bool = True,
    smoothing: str,
    preference: float | None,
    bootstrap: int,
    seed: int,
) -> SectionResult:
    """Mean losses, agreement and TRL's metrics with intervals over prompts; losses, views and pulls of every pair.

    beta_given=False: beta is an assumption, and the warnings say so.
    preference: P(chosen preferred) assumed for pairs with one label, for dpo_soft; None leaves dpo_soft out there.
    """
    given = None if preference is None else _preference(scores, smoothing, preference)
    clusters = clusters_of(scores.frame)
    table = objective_table(scores, beta, preference=given, smoothing=smoothing)
    table = table.with_intervals(clusters, bootstrap=bootstrap, seed=seed)
    estimates = trl_estimates(scores, clusters, beta=beta, bootstrap=bootstrap, seed=seed)
    estimates |= _loss_estimates(table, clusters, bootstrap=bootstrap, seed=seed)
    section = Section(
        name="objectives",
        title="What would other objectives see?",
        question="Do other preference objectives see the same pairs as settled or unsettled?",
        summary=table.summary(),
        estimates=estimates,
        tables={
            "losses": "an objective: mean loss, share of pairs it takes as settled, mean pulls on both completions",
            "agreement": "two objectives: share of pairs on which their views have one sign, Spearman of their losses, "
            "with 95 % intervals over prompts (none below 20)",
            "pairs": "a pair: loss, view (above 0: chosen is better enough) and pulls of every objective",
        },
        settings=dict(table.settings) | {"beta_given": beta_given, "bootstrap": bootstrap, "seed": seed},
        warnings=_warnings(table, assumed=None if beta_given else beta),
    )
    tables = {name: table.to_frame(name) for name in section.tables}
    return SectionResult(section=section, tables=tables)


def trl_estimates(
    scores: PairScores, clusters: np.ndarray, *, beta: float, bootstrap: int, seed: int
) -> dict[str, Estimate]:
    """TRL's metrics by its names, means over pairs (`objectives.trl_metrics`), with intervals over prompts."""
    dw, dl = scores.log_ratios().T
    right = np.where(np.isfinite(dw - dl), np.asarray(credit(dw - dl, "strict")), np.nan)
    explicit = np.stack([scores.explicit_chosen, scores.explicit_rejected], axis=1)
    apart = explicit[:, 0] - explicit[:, 1]
    judged = np.where(np.isfinite(apart), np.asarray(credit(apart, "strict")), np.nan)
    rewards = (beta * dw, beta * dl, beta * (dw - dl), right)
    heads = (judged, apart, explicit.mean(1))
    columns = dict(zip(TRL, (*rewards, scores.policy_chosen, scores.policy_rejected, *heads), strict=True))
    boot = cluster_bootstrap(np.stack(list(columns.values()), axis=1), clusters, draws=bootstrap, seed=seed)
    found = {
        name: estimate_from(
            boot, j, label=label, unit=unit, null_value=null, reason=NO_REFERENCE if "/" in name else NO_EXPLICIT
        )
        for j, (name, (label, unit, null)) in enumerate(TRL.items())
    }
    known = explicit[np.isfinite(explicit).all(1)]
    for name, (what, extreme) in EXTREMES.items():
        found[name] = Estimate(
            label=f"reward trainer: {what} score; TRL logs a mean over batches, which lies inside",
            value=float(extreme(known)) if len(known) else None,
            level=None,
            n=len(known),
            n_clusters=len(np.unique(clusters[np.isfinite(explicit).all(1)])),
            method="exact",
            reason=None if len(known) else NO_EXPLICIT,
        )
    return found


def _loss_estimates(table: ObjectiveTable, clusters: np.ndarray, *, bootstrap: int, seed: int) -> dict[str, Estimate]:
    names = list(table.losses["objective"])
    if not names:
        return {}
    values: Float64[np.ndarray, "N K"] = np.stack([table.pairs[f"{name}_loss"].to_numpy() for name in names], axis=1)
    endless = np.isinf(values).any(0)  # ORPO's where rejected is certain
    values = np.where(endless, np.nan, values)
    boot = cluster_bootstrap(values, clusters, draws=bootstrap, seed=seed)
    return {
        _loss_name(name): estimate_from(
            boot, j, label=f"mean loss of {name}", unit="", reason="infinite: a rejected answer is certain"
        )
        for j, name in enumerate(names)
    }


def _loss_name(objective: str) -> str:
    """A point in the name of an estimate would read as its part in a gate: dpo_gamma_0.5 -> loss_dpo_gamma_0_5."""
    return f"loss_{objective.replace('.', '_')}"


def estimate_names() -> tuple[str, ...]:
    """The names that the estimates of the section "objectives" can have."""
    return (*TRL, *EXTREMES, *map(_loss_name, objective_names()))


def _preference(scores: PairScores, smoothing: str, assumed: float) -> Float64[np.ndarray, "N"]:
    found = preference_strengths(scores.frame, assumed)
    return found.get(smoothing, next(iter(found.values())))


def _uses_beta(table: ObjectiveTable) -> bool:
    """Whether a loss depends on the training's beta; where TRL's rewards do, dpo does too."""
    return any(name not in WITHOUT_BETA for name in table.losses["objective"])


def _warnings(table: ObjectiveTable, *, assumed: float | None) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in table.reasons.items():
        by_reason.setdefault(reason, []).append(name)
    found = [f"left out: {', '.join(names)} ({reason})" for reason, names in by_reason.items()]
    if assumed is not None and _uses_beta(table):
        found = [assumed_beta(assumed, BETA_MOVES), *found]
    settings: Mapping[str, Any] = table.settings
    if str(settings.get("z0_from", "")).startswith("0,"):
        found.append("KTO's reference point z0 was taken as 0: --mismatched scores the pairs that it is estimated from")
    return found
