"""What does a preference objective make of a pair: its loss, its view, and how hard it pulls at either side?

Pure functions, numpy float64. An objective takes `LogProbs` and `Hyperparameters` and gives a `Judgement`. Its view is
the margin m before squashing (above 0: chosen is better enough); its pulls are derivatives of the loss by the summed
log-probabilities of the policy, so that two objectives that divide by length differently still compare.
With dw, dl = log pi - log pi_ref of chosen and rejected: the reward margin is dw - dl.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64
from scipy.special import expit

PerPair: TypeAlias = Float64[np.ndarray, "N"]
_LN2 = float(np.log(2.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogProbs:
    """Summed log-probabilities, nats, scored tokens, and P(chosen preferred) of every pair; NaN where not known."""

    policy_chosen: PerPair
    policy_rejected: PerPair
    reference_chosen: PerPair
    reference_rejected: PerPair
    n_chosen: PerPair
    n_rejected: PerPair
    preference: PerPair

    def take(self, rows: Bool[np.ndarray, "N"]) -> "LogProbs":
        """The rows that are marked."""
        return LogProbs(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @property
    def ratio_chosen(self) -> PerPair:
        """dw = log pi - log pi_ref of chosen, nats."""
        return self.policy_chosen - self.reference_chosen

    @property
    def ratio_rejected(self) -> PerPair:
        """dl, the same of rejected."""
        return self.policy_rejected - self.reference_rejected

    @property
    def token_chosen(self) -> PerPair:
        """log pi of chosen, nats a token."""
        return self.policy_chosen / self.n_chosen

    @property
    def token_rejected(self) -> PerPair:
        """log pi of rejected, nats a token."""
        return self.policy_rejected / self.n_rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """What an objective is told beside the log-probabilities."""

    beta: float
    eps: float  # share of labels taken to be flipped: cdpo, robust
    orpo_lambda: float
    simpo_beta: float
    simpo_gamma: float  # nats
    z0: float  # KTO's reference point, nats
    delta: float  # BCO's reference point, in units of beta times nats


class Judgement(NamedTuple):
    """An objective on every pair."""

    loss: PerPair
    view: PerPair  # margin before squashing; above 0: chosen is better enough
    pull_chosen: PerPair  # -dL / d log pi(chosen), loss a nat; above 0 where training raises chosen
    pull_rejected: PerPair  # dL / d log pi(rejected); above 0 where training lowers rejected


Objective: TypeAlias = Callable[[LogProbs, Hyperparameters], Judgement]
Scale: TypeAlias = PerPair | float  # of a summed log-probability inside a margin


def dpo(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """softplus(-m), m = beta (dw - dl). Source: 2305.18290."""
    return _logistic(h.beta * _reward_margin(pairs), h.beta, h.beta)


def dpo_soft(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """alpha softplus(-m) + (1 - alpha) softplus(m), DPO's m; alpha = P(chosen preferred). Source: 2405.19534."""
    return _mixed(h.beta * _reward_margin(pairs), 1.0 - pairs.preference, h.beta)


def cdpo(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """(1 - eps) softplus(-m) + eps softplus(m), DPO's m: conservative DPO, labels smoothed by eps (Mitchell 2023)."""
    return _mixed(h.beta * _reward_margin(pairs), h.eps, h.beta)


def robust(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """((1 - eps) softplus(-m) - eps softplus(m)) / (1 - 2 eps), DPO's m: unbiased under flips. Source: 2403.00409.

    Below 0 for large m, and its pull never falls under beta eps / (1 - 2 eps).
    """
    m, scale = h.beta * _reward_margin(pairs), 1.0 - 2.0 * h.eps
    loss = ((1.0 - h.eps) * softplus(-m) - h.eps * softplus(m)) / scale
    push = ((1.0 - h.eps) * expit(-m) + h.eps * expit(m)) / scale
    return Judgement(loss, m, h.beta * push, h.beta * push)


def dpo_gamma(pairs: LogProbs, h: Hyperparameters, *, gamma: float) -> Judgement:
    """softplus(-m), m = beta (log pi(w)/pi(l) - gamma log pi_ref(w)/pi_ref(l)); gamma 1 is DPO. Source: 2405.19534."""
    reference_margin = pairs.reference_chosen - pairs.reference_rejected
    m = h.beta * (pairs.policy_chosen - pairs.policy_rejected - gamma * reference_margin)
    return _logistic(m, h.beta, h.beta)


def hinge(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """max(0, -m), m = beta (dw - dl) - 1; no pull at the kink, as in torch. Source: SLiC-HF, 2305.10425; 2309.06657."""
    m = h.beta * _reward_margin(pairs) - 1.0
    push = h.beta * (m < 0)
    return Judgement(np.maximum(0.0, -m), m, push, push)


def ipo(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """m^2, m = dw - dl - 1 / (2 beta), sums over tokens as in the paper; beta is its tau. Source: 2310.12036."""
    return _squared(_reward_margin(pairs) - 1.0 / (2.0 * h.beta), 1.0, 1.0)


def ipo_norm(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """m^2, m = dw / nw - dl / nl - 1 / (2 beta), nats a token: what TRL trains as `ipo`."""
    return _squared(_token_reward_margin(pairs) - 1.0 / (2.0 * h.beta), 1.0 / pairs.n_chosen, 1.0 / pairs.n_rejected)


def sigmoid_norm(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """softplus(-m), m = beta (dw / nw - dl / nl): DPO a token (TRL's `sigmoid_norm`)."""
    return _logistic(h.beta * _token_reward_margin(pairs), h.beta / pairs.n_chosen, h.beta / pairs.n_rejected)


def simpo(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """softplus(-m), m = beta (lw / nw - ll / nl) - gamma; no reference, its own beta. Source: 2405.14734."""
    m = h.simpo_beta * (pairs.token_chosen - pairs.token_rejected) - h.simpo_gamma
    return _logistic(m, h.simpo_beta / pairs.n_chosen, h.simpo_beta / pairs.n_rejected)


def cpo(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """softplus(-m) - lw / nw, m = beta (lw - ll); no reference, NLL a token beside it. Source: 2401.08417."""
    judged = _logistic(h.beta * (pairs.policy_chosen - pairs.policy_rejected), h.beta, h.beta)
    return judged._replace(loss=judged.loss - pairs.token_chosen, pull_chosen=judged.pull_chosen + 1.0 / pairs.n_chosen)


def orpo(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """-aw + lambda softplus(-m), a = log-probability a token, m = log odds(aw) - log odds(al). Source: 2403.07691.

    log odds(a) = a - log1mexp(a). The NLL runs over the completion; TRL's over prompt and completion.
    """
    aw, al = pairs.token_chosen, pairs.token_rejected
    miss_w, miss_l = log1mexp(aw), log1mexp(al)  # log of 1 - exp(a); -inf at a = 0
    m = (aw - al) - (miss_w - miss_l)
    # sigmoid(-m) / (1 - p) by p, not by odds: the odds of p near 1 overflow where the product is still finite
    both = np.logaddexp(al + miss_w, aw + miss_l)
    push_w, push_l = np.exp(al - both), np.exp(al + miss_w - miss_l - both)
    return Judgement(
        h.orpo_lambda * softplus(-m) - aw,
        m,
        (1.0 + h.orpo_lambda * push_w) / pairs.n_chosen,
        h.orpo_lambda * push_l / pairs.n_rejected,
    )


def kto(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """(1 - s(beta (dw - z0))) + (1 - s(beta (z0 - dl))), s the sigmoid, z0 held fixed. Source: 2402.01306.

    The sum over both sides of a pair; TRL averages over examples, half of it. View: DPO's, since z0 cancels.
    """
    return _two_sigmoids(pairs, h.beta, h.beta * h.z0)


def bco(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """softplus(-(beta dw - delta)) + softplus(-(delta - beta dl)), delta held fixed. Source: 2404.04656. View: DPO's.

    At least DPO's loss, and least where delta is midway between beta dw and beta dl.
    """
    u, v = h.beta * pairs.ratio_chosen - h.delta, h.beta * pairs.ratio_rejected - h.delta
    pull_chosen, pull_rejected = h.beta * expit(-u), h.beta * expit(v)
    return Judgement(softplus(-u) + softplus(v), h.beta * _reward_margin(pairs), pull_chosen, pull_rejected)


def apo_zero(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """(1 - s(beta dw)) + s(beta dl): KTO with z0 = 0. Source: 2408.06266. View: DPO's."""
    return _two_sigmoids(pairs, h.beta, 0.0)


def nca(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """softplus(-u) + softplus(u) / 2 + softplus(v) / 2, u = beta dw, v = beta dl. Source: 2402.05369. View: DPO's."""
    u, v = h.beta * pairs.ratio_chosen, h.beta * pairs.ratio_rejected
    loss = softplus(-u) + 0.5 * softplus(u) + 0.5 * softplus(v)
    pull_chosen, pull_rejected = h.beta * (expit(-u) - 0.5 * expit(u)), 0.5 * h.beta * expit(v)
    return Judgement(loss, h.beta * _reward_margin(pairs), pull_chosen, pull_rejected)


def sppo_hard(pairs: LogProbs, h: Hyperparameters) -> Judgement:
    """(dw - 1 / (2 beta))^2 + (dl + 1 / (2 beta))^2. Source: 2405.00675, hard labels. View: DPO's."""
    short_w = pairs.ratio_chosen - 1.0 / (2.0 * h.beta)
    short_l = pairs.ratio_rejected + 1.0 / (2.0 * h.beta)
    return Judgement(short_w**2 + short_l**2, h.beta * _reward_margin(pairs), -2.0 * short_w, 2.0 * short_l)


def softplus(x: PerPair) -> PerPair:
    """log(1 + exp(x)), without overflow."""
    return np.asarray(np.logaddexp(0.0, x))


def log1mexp(a: PerPair) -> PerPair:
    """log(1 - exp(a)) for a <= 0, exact to rounding at both ends; -inf at a = 0."""
    with np.errstate(divide="ignore"):  # the branch not taken, and a = 0
        return np.where(a > -_LN2, np.log(-np.expm1(a)), np.log1p(-np.exp(a)))


def _reward_margin(pairs: LogProbs) -> PerPair:
    return pairs.ratio_chosen - pairs.ratio_rejected


def _token_reward_margin(pairs: LogProbs) -> PerPair:
    return pairs.ratio_chosen / pairs.n_chosen - pairs.ratio_rejected / pairs.n_rejected


def _logistic(m: PerPair, chosen: Scale, rejected: Scale) -> Judgement:
    """softplus(-m) where m = chosen * lw - rejected * ll + what does not depend on the policy."""
    push = expit(-m)
    return Judgement(softplus(-m), m, chosen * push, rejected * push)


def _mixed(m: PerPair, flipped: Scale, beta: float) -> Judgement:
    """softplus(-m), and softplus(m) with the weight of a flipped label."""
    loss = (1.0 - flipped) * softplus(-m) + flipped * softplus(m)
    push = (1.0 - flipped) * expit(-m) - flipped * expit(m)
    return Judgement(np.asarray(loss), m, beta * push, beta * push)


def _squared(m: PerPair, chosen: Scale, rejected: Scale) -> Judgement:
    return Judgement(m**2, m, -2.0 * chosen * m, -2.0 * rejected * m)


def _two_sigmoids(pairs: LogProbs, beta: float, point: float) -> Judgement:
    """(1 - s(u)) + s(v) with u, v = beta dw, beta dl from a reference point."""
    u, v = beta * pairs.ratio_chosen - point, beta * pairs.ratio_rejected - point
    pull_chosen, pull_rejected = (beta * expit(x) * expit(-x) for x in (u, v))
    return Judgement(expit(-u) + expit(v), beta * _reward_margin(pairs), pull_chosen, pull_rejected)
