"""What is said of two models' next-token distributions at a position: how much changed, which way, at which tokens.

pi = policy, ref = reference, d = z_pi - z_ref, q = softmax(d); S = the plausible tokens. Natural logs, nats, float64.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from torch import Tensor

OK, DEGENERATE, UNSUPPORTED, NON_FINITE = "ok", "degenerate", "unsupported", "non_finite"
FEW, FLAT = "few", "flat"  # why a position has no tilt


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInformation:
    """One value a position, float64, nats. A row with a NaN or +inf logit is NaN throughout, status "non_finite".

    status: "ok"; "degenerate" where fewer than two tokens are plausible (plausible_entropy 0, or NaN for none);
    "unsupported" where the reference excludes (-inf) a token that the policy allows: q is a point mass, entropy 0, kl
    infinite, and the row belongs in no mean. A token that only the policy excludes has q = 0 and makes reverse_kl
    infinite; one that both exclude leaves `support`.
    """

    entropy: Float[Tensor, "N"]  # h = logsumexp(d) - sum q d, of q over the vocabulary
    information: Float[Tensor, "N"]  # D = log support - h >= 0; 0 = no change
    plausible_entropy: Float[Tensor, "N"]  # of q renormalised on the plausible tokens S
    plausible_size: Int[Tensor, "N"]  # |S|
    kl: Float[Tensor, "N"]  # KL(policy || reference)
    reverse_kl: Float[Tensor, "N"]  # KL(reference || policy)
    log_ratio_normalizer: Float[Tensor, "N"]  # log sum_v policy(v) / reference(v)
    policy_mass: Float[Tensor, "N"]  # policy(S)
    reference_mass: Float[Tensor, "N"]  # reference(S)
    support: Int[Tensor, "N"]  # tokens that not both models exclude
    status: Shaped[np.ndarray, "N"]  # strings, see above

    @property
    def plausible_information(self) -> Float[Tensor, "N"]:
        """log |S| - plausible_entropy, nats: what changed among the tokens that can be said."""
        return self.plausible_size.double().log() - self.plausible_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTilt:
    """Did the update sharpen the reference or smooth it? The line d = a log ref + const over S; float64, no unit.

    a > 0 reinforces what the reference prefers (policy proportional to ref^(1+a)), a < 0 smooths it; sampling at
    temperature tau is a = 1/tau - 1. A position without a line is NaN in every field, and `status` says why:
    "few" (|S| < 3), "flat" (log ref is constant on S to 1e-5 nats), "unsupported" (a model excludes a token of S, or
    the reference one that the policy allows), "non_finite"; else "ok". The weights are our choice, not the paper's.
    """

    slope: Float[Tensor, "N"]  # a, least squares with weights (pi + ref)/2 renormalised on S
    r_squared: Float[Tensor, "N"]  # of that fit, in [0, 1]; NaN also where d is constant on S (slope 0)
    unweighted_slope: Float[Tensor, "N"]  # every token of S counts alike
    unweighted_r_squared: Float[Tensor, "N"]
    status: Shaped[np.ndarray, "N"]  # strings, see above


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAttribution:
    """Which tokens carry the update: the likeliest of q at each position, and sums over positions for each token.

    Divide a sum by `n_positions` for a mean over positions, `plausible_change` by `plausible_count`. Positions that are
    "unsupported" or "non_finite" in `TokenInformation.status` are in no sum; their ids are -1, q and contribution NaN.
    d' = log pi - log ref, which unlike d does not move with a constant in either model's logits.
    """

    ids: Int[Tensor, "N top"]  # the likeliest tokens of q, likeliest first; -1 where q is 0
    q: Float[Tensor, "N top"]
    contribution: Float[Tensor, "N top"]  # c = q log(support q), nats: over all tokens it sums to the information
    n_positions: int  # in the sums below
    q_total: Float[Tensor, "V"]  # sum of q
    policy_total: Float[Tensor, "V"]  # sum of pi
    reference_total: Float[Tensor, "V"]  # sum of ref
    policy_change: Float[Tensor, "V"]  # sum of pi d', nats: over tokens it sums to that of KL(pi || ref)
    plausible_q: Float[Tensor, "V"]  # sum of q^S, q renormalised on S, where the token is in S
    plausible_contribution: Float[Tensor, "V"]  # sum of c^S = q^S log(|S| q^S), nats: sums to that of D^S
    plausible_change: Float[Tensor, "V"]  # sum of d' where the token is in S, nats; -inf where pi excludes it
    plausible_count: Int[Tensor, "V"]  # positions that have the token in S
    top_count: Int[Tensor, "V"]  # positions that have the token among `ids`
