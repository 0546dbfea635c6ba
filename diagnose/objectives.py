"""Would another preference objective see these pairs otherwise? The losses that train on pairs, on one pair table.

    table = objective_table(scores, beta=0.1)
    table.agreement

Also the numbers that TRL logs, by its names, from the same table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Shaped

from ..errors import InputError
from ..probes.pair_table import PairScores
from . import objective_losses as losses
from .objective_agreement import agreement_table, with_intervals
from .objective_losses import Hyperparameters, Judgement, LogProbs, Objective
from .ranking import SMOOTHINGS, as_float64, credit, dpo_loss
from .ranking_table import NO_LENGTHS, NO_REFERENCE, ONE_LABEL, preference_strengths

GAMMAS = (0.0, 0.5, 2.0)  # weights of the reference beside DPO's 1
TABLES = ("pairs", "losses", "agreement")
NO_MISMATCHED = "0, no mismatched pairs were scored"
_REFERENCE = ("reference_chosen", "reference_rejected")
_LENGTHS = ("n_chosen", "n_rejected")
_PREFERENCE = ("preference",)
_REASONS = {_REFERENCE: NO_REFERENCE, _LENGTHS: NO_LENGTHS, _PREFERENCE: ONE_LABEL}
_NO_PROBABILITY = "no pair has log-probabilities below 0, as odds need"

# objective -> what it needs beside the policy's log-probabilities
_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "dpo": (_REFERENCE,),
    "dpo_soft": (_REFERENCE, _PREFERENCE),
    "cdpo": (_REFERENCE,),
    "robust": (_REFERENCE,),
    "dpo_gamma": (_REFERENCE,),
    "hinge": (_REFERENCE,),
    "ipo": (_REFERENCE,),
    "ipo_norm": (_REFERENCE, _LENGTHS),
    "sigmoid_norm": (_REFERENCE, _LENGTHS),
    "simpo": (_LENGTHS,),
    "cpo": (_LENGTHS,),
    "orpo": (_LENGTHS,),
    "kto": (_REFERENCE,),
    "bco": (_REFERENCE,),
    "apo_zero": (_REFERENCE,),
    "nca": (_REFERENCE,),
    "sppo_hard": (_REFERENCE,),
}
Rows: TypeAlias = Bool[np.ndarray, "N"]
Number: TypeAlias = float | int  # checked at run time, an int is no float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveTable:
    """Every objective on every pair; docs of the formulas in `objective_losses`.

    pairs: a row a pair in the order of the scores: pair_id, then `<objective>_loss`, `_view`, `_pull_chosen`,
        `_pull_rejected`. View: margin before squashing, above 0 where chosen is better enough; of kto, bco, apo_zero,
        nca and sppo_hard it is DPO's. Pulls: -dL/d log pi(chosen) and dL/d log pi(rejected), of sums over tokens, a
        nat. NaN on human ties and where the pair lacks what the objective needs.
    losses: a row an objective: mean_loss, share_view_right (view > 0; 0 counts half), mean_pull_chosen,
        mean_pull_rejected, n pairs behind them, n_human_tie and n_missing pairs left out.
    agreement: a row for two objectives: n pairs both have, same_sign = share of those whose views have one sign,
        spearman of the losses (NaN where a loss is the same on all pairs); after `with_intervals` also same_sign_low,
        same_sign_high, spearman_low, spearman_high.
    reasons: objective -> why it is absent. settings: every hyperparameter, and where z0, delta and preference are from.
    """

    pairs: pd.DataFrame
    losses: pd.DataFrame
    agreement: pd.DataFrame
    reasons: dict[str, str]
    settings: dict[str, Any]

    def to_frame(self, name: str = "pairs") -> pd.DataFrame:
        """A copy of the table `pairs`, `losses` or `agreement`. Raises KeyError for another name."""
        if name not in TABLES:
            raise KeyError(f"no table '{name}'; choose from {', '.join(TABLES)}")
        frame: pd.DataFrame = getattr(self, name)
        return frame.copy()

    def with_intervals(
        self, clusters: Shaped[np.ndarray, "N"], *, bootstrap: int = 2000, seed: int = 0
    ) -> "ObjectiveTable":
        """The same with 95 % intervals in `agreement`, by cluster bootstrap; NaN there below 20 clusters.

        clusters: a name for every row of `pairs`, as a prompt's id. Raises ValueError for another number of names, or
        fewer than one draw.
        """
        if len(clusters) != len(self.pairs):
            raise ValueError(f"clusters: expected {len(self.pairs)}, one a pair, got {len(clusters)}")
        table = with_intervals(self.agreement, self.pairs, clusters, bootstrap=bootstrap, seed=seed)
        return replace(self, agreement=table)

    def summary(self) -> str:
        """What the objectives see, and which two differ most, in sentences that a non-author can quote."""
        if self.losses.empty:
            return f"No objective could be computed: {'; '.join(dict.fromkeys(self.reasons.values()))}."
        by_share = self.losses.sort_values("share_view_right", kind="stable")
        low, high = by_share.iloc[0], by_share.iloc[-1]
        text = (
            f"{len(self.losses)} objectives on up to {self.losses['n'].max()} pairs: the share they take as "
            f"settled (view above 0) runs from {low['share_view_right']:.0%} ({low['objective']}) to "
            f"{high['share_view_right']:.0%} ({high['objective']})."
        )
        together = self.agreement[self.agreement["n"] > 0]
        if len(together):
            least = together.iloc[int(together["same_sign"].to_numpy().argmin())]
            text += (
                f" {least['first']} and {least['second']} agree least: the same sign on {least['same_sign']:.0%} of "
                f"{least['n']} pairs{_selected(least, len(together))}."
            )
        return f"{text} Absent: {', '.join(self.reasons)}." if self.reasons else text


def objective_table(
    scores: PairScores,
    beta: Number = 0.1,
    *,
    preference: Any = None,
    smoothing: str = "jeffreys",
    gamma: Any = GAMMAS,
    eps: Number = 0.1,
    orpo_lambda: Number = 0.1,
    simpo_beta: Number = 2.0,
    simpo_gamma: Number = 0.5,
    z0: Number | None = None,
    delta: Number | None = None,
) -> ObjectiveTable:
    """Loss, view and pulls of each preference objective on each pair, and how far the objectives agree.

    beta: of all but SimPO; IPO's and SPPO's targets are 1 / (2 beta) nats (nats a token for ipo_norm).
    preference: P(chosen preferred), one number or one a pair, NaN where not known; for dpo_soft. None: the table's
        own, votes smoothed by `smoothing`; where the table holds one label a pair, dpo_soft is absent.
    gamma: one or more weights of the reference in dpo_gamma, keys `dpo_gamma_<gamma>`; 1 is DPO (arXiv 2405.19534).
    eps: share of flipped labels in cdpo and robust, in [0, 1/2). orpo_lambda: weight of ORPO's odds ratio.
    z0: KTO's reference point, nats, >= 0. None: max(0, mean of the table's `mismatched` log-ratios), else 0.
    delta: BCO's reference point. None: the mean of every beta dw and beta dl of the table (TRL: a running mean).
    Human ties leave every number. Without a reference only simpo, cpo and orpo remain; without token counts those that
    need none. Raises ValueError for a hyperparameter or preference outside its range, or of another length.
    """
    gammas = [float(g) for g in np.ravel(as_float64(gamma))]
    pairs, preference_from = _log_probs(scores, preference, smoothing)
    (point, z0_from), (shift, delta_from) = _z0(scores, z0), _delta(scores, float(beta), delta)
    h = Hyperparameters(
        beta=float(beta),
        eps=float(eps),
        orpo_lambda=float(orpo_lambda),
        simpo_beta=float(simpo_beta),
        simpo_gamma=float(simpo_gamma),
        z0=0.0 if point is None else point,
        delta=0.0 if shift is None else shift,
    )
    _check(h, gammas)
    tie = scores["human_tie"].astype(bool)
    judged: dict[str, tuple[Rows, Judgement]] = {}
    reasons: dict[str, str] = {}
    for name, (objective, needs) in _objectives(gammas).items():
        have = _known(pairs, needs) & (_odds_exist(pairs) if name == "orpo" else True)
        if reason := _absent(pairs, needs, have, tie):
            reasons[name] = reason
        else:
            judged[name] = (have, objective(pairs.take(have & ~tie), h))
    wide = {name: _spread(judgement, have & ~tie) for name, (have, judgement) in judged.items()}
    settings = asdict(h) | {"gamma": gammas, "preference_from": preference_from}
    settings |= {"z0": point, "z0_from": z0_from, "delta": shift, "delta_from": delta_from}
    table = _pairs(scores, wide)
    return ObjectiveTable(
        pairs=table,
        losses=_losses(judged, tie),
        agreement=agreement_table(table, list(wide)),
        reasons=reasons,
        settings=settings,
    )


def objective_names(gamma: Sequence[float] = GAMMAS) -> tuple[str, ...]:
    """The names of all objectives that a table can hold, with these weights of the reference in dpo_gamma."""
    return tuple(_objectives(gamma))


def trl_metrics(scores: PairScores, beta: Number, prefix: str = "eval_") -> dict[str, float]:
    """What TRL's DPO trainer logs, by its names: means over all pairs, human ties too, in float64.

    rewards/chosen, rewards/rejected = mean beta dw, beta dl; rewards/margins their difference; rewards/accuracies the
    share with dw > dl (a tie counts 0); logps/* mean summed log-probabilities, nats; loss = mean softplus(-margin).
    Without a reference only logps/*. TRL logs means of batch means, so a short last batch moves its numbers.
    Raises InputError without pairs, ValueError for a beta that is not positive and finite.
    """
    _positive("beta", beta)
    if not len(scores):
        raise InputError("no pairs were scored, so there is nothing to average")
    found = {"logps/chosen": scores.policy_chosen.mean(), "logps/rejected": scores.policy_rejected.mean()}
    if scores.has_reference:
        dw, dl = scores.log_ratios().T
        found |= {"rewards/chosen": beta * dw.mean(), "rewards/rejected": beta * dl.mean()}
        found |= {"rewards/margins": beta * (dw - dl).mean()}
        found |= {"rewards/accuracies": np.mean(credit(dw - dl, "strict"))}
        found |= {"loss": np.mean(dpo_loss(dw, dl, float(beta)))}
    return {f"{prefix}{name}": float(value) for name, value in found.items()}


def reward_trainer_metrics(explicit_chosen: Any, explicit_rejected: Any, prefix: str = "eval_") -> dict[str, float]:
    """What TRL's reward trainer logs, by its names, over all pairs; scores in the reward model's own units.

    accuracy = share of chosen > rejected (a tie counts 0), margin = mean difference, min_reward, mean_reward and
    max_reward over both sides. TRL logs means of batch minima and maxima, which lie inside these.
    Raises ValueError without pairs, for scores that are not finite, or unequal shapes.
    """
    chosen, rejected = as_float64(explicit_chosen), as_float64(explicit_rejected)
    if chosen.shape != rejected.shape or chosen.ndim != 1 or not len(chosen):
        raise ValueError(f"scores: expected two lists of one length >= 1, got shapes {chosen.shape}, {rejected.shape}")
    both = np.concatenate([chosen, rejected])
    if not np.isfinite(both).all():
        raise ValueError("scores: not finite everywhere; leave out pairs without an explicit score")
    found = {"accuracy": np.mean(credit(chosen - rejected, "strict")), "margin": (chosen - rejected).mean()}
    found |= {"min_reward": both.min(), "mean_reward": both.mean(), "max_reward": both.max()}
    return {f"{prefix}{name}": float(value) for name, value in found.items()}


def _objectives(gammas: Sequence[float]) -> dict[str, tuple[Objective, tuple[tuple[str, ...], ...]]]:
    """Key in the table -> function and needs, in the order of `_NEEDS`."""
    found: dict[str, tuple[Objective, tuple[tuple[str, ...], ...]]] = {}
    for name, needs in _NEEDS.items():
        if name == "dpo_gamma":
            found |= {f"{name}_{g:.15g}": (partial(losses.dpo_gamma, gamma=g), needs) for g in gammas}
        else:
            found[name] = (getattr(losses, name), needs)
    return found


def _log_probs(scores: PairScores, preference: Any, smoothing: str) -> tuple[LogProbs, str]:
    """The arrays an objective reads, token counts of 0 (not given) as NaN; and where the preferences are from."""
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing={smoothing!r}: expected one of {', '.join(SMOOTHINGS)}")
    columns = {name: scores[name].astype(np.float64) for name in ("policy_chosen", "policy_rejected", *_REFERENCE)}
    for name in _LENGTHS:
        n = scores[name].astype(np.float64)
        columns[name] = np.where(n > 0, n, np.nan)
    if preference is None:
        alpha, origin = preference_strengths(scores.frame, None)[smoothing], f"the table, smoothing {smoothing}"
    else:
        alpha, origin = _given_preference(preference, len(scores)), "given"
    return LogProbs(**columns, preference=alpha), origin


def _given_preference(preference: Any, n: int) -> Float64[np.ndarray, "N"]:
    given = as_float64(preference)
    if given.shape not in ((), (n,)):
        raise ValueError(f"preference: expected one number or {n}, one a pair, got shape {given.shape}")
    if ((given < 0) | (given > 1)).any():
        raise ValueError("preference is P(chosen preferred) and lies in [0, 1], NaN where it is not known")
    return np.full(n, given) if given.ndim == 0 else given


def _z0(scores: PairScores, given: Number | None) -> tuple[float | None, str]:
    if given is not None:
        return float(given), "given"
    if not scores.has_reference:
        return None, NO_REFERENCE
    mismatched = scores["mismatched"]
    mismatched = mismatched[np.isfinite(mismatched)]
    return (max(0.0, float(mismatched.mean())), "mismatched pairs") if len(mismatched) else (0.0, NO_MISMATCHED)


def _delta(scores: PairScores, beta: float, given: Number | None) -> tuple[float | None, str]:
    if given is not None:
        return float(given), "given"
    ratios = scores.log_ratios()
    ratios = ratios[np.isfinite(ratios)]
    return (float(beta * ratios.mean()), "mean over the table") if len(ratios) else (None, NO_REFERENCE)


def _check(h: Hyperparameters, gammas: Sequence[float]) -> None:
    _positive("beta", h.beta)
    _positive("simpo_beta", h.simpo_beta)
    if not 0 <= h.eps < 0.5:
        raise ValueError(f"eps={h.eps}: the share of flipped labels lies in [0, 1/2)")
    for name, value in (("orpo_lambda", h.orpo_lambda), ("z0", h.z0)):
        if not (value >= 0 and np.isfinite(value)):
            raise ValueError(f"{name}={value}: expected a finite number >= 0")
    for name, value in (("simpo_gamma", h.simpo_gamma), ("delta", h.delta), *(("gamma", g) for g in gammas)):
        if not np.isfinite(value):
            raise ValueError(f"{name}={value}: expected a finite number")


def _positive(name: str, value: Number) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name}={value}: expected a positive, finite number")


def _selected(least: "pd.Series[Any]", n_couples: int) -> str:
    """The interval of the couple that agrees least, and that it was picked after looking; empty without one."""
    low, high = least.get("same_sign_low", np.nan), least.get("same_sign_high", np.nan)
    if np.isnan(low) or np.isnan(high):
        return ""
    picked = f", which does not allow for its being the least of {n_couples} couples" if n_couples > 1 else ""
    return f" (95 % interval {low:.0%} to {high:.0%}{picked})"


def _known(pairs: LogProbs, needs: tuple[tuple[str, ...], ...]) -> Rows:
    """Pairs with finite numbers in every column that is needed."""
    names = ("policy_chosen", "policy_rejected", *(name for need in needs for name in need))
    return np.asarray(np.isfinite([getattr(pairs, name) for name in names]).all(axis=0))


def _odds_exist(pairs: LogProbs) -> Rows:
    """Log-probabilities <= 0 on both sides, and not 0 on both: two infinite odds have no ratio."""
    worst = np.maximum(pairs.policy_chosen, pairs.policy_rejected)
    return np.asarray((worst <= 0) & (np.minimum(pairs.policy_chosen, pairs.policy_rejected) < 0))


def _absent(pairs: LogProbs, needs: tuple[tuple[str, ...], ...], have: Rows, tie: Rows) -> str | None:
    """Why an objective has no pair, or None where it has."""
    if (have & ~tie).any():
        return None
    if not len(tie):
        return "no pairs were scored"
    for need in needs:
        if not _known(pairs, (need,)).any():
            return _REASONS[need]
    if have.any():
        return "every pair that has what it needs is a human tie"
    return _NO_PROBABILITY if _known(pairs, needs).any() else "no pair has all it needs"


def _spread(judgement: Judgement, rows: Rows) -> dict[str, Float64[np.ndarray, "N"]]:
    """The parts of a judgement on all pairs, NaN on those it left out."""
    spread = {}
    for part, values in judgement._asdict().items():
        spread[part] = np.full(len(rows), np.nan)
        spread[part][rows] = values
    return spread


def _pairs(scores: PairScores, wide: Mapping[str, Mapping[str, Float64[np.ndarray, "N"]]]) -> pd.DataFrame:
    columns: dict[str, Any] = {"pair_id": pd.Series(scores["pair_id"].tolist(), dtype="str")}
    columns |= {f"{name}_{part}": values for name, parts in wide.items() for part, values in parts.items()}
    return pd.DataFrame(columns)


def _losses(judged: Mapping[str, tuple[Rows, Judgement]], tie: Rows) -> pd.DataFrame:
    rows = [
        {
            "objective": name,
            "mean_loss": judgement.loss.mean(),
            "share_view_right": float(np.mean(credit(judgement.view))),
            "mean_pull_chosen": judgement.pull_chosen.mean(),
            "mean_pull_rejected": judgement.pull_rejected.mean(),
            "n": len(judgement.loss),
            "n_human_tie": int(tie.sum()),
            "n_missing": int((~have & ~tie).sum()),
        }
        for name, (have, judgement) in judged.items()
    ]
    names = ("objective", "mean_loss", "share_view_right", "mean_pull_chosen", "mean_pull_rejected")
    return pd.DataFrame(rows, columns=[*names, "n", "n_human_tie", "n_missing"])
