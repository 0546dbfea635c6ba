"""Sums over the whole vocabulary that say how two models differ at some positions: float64, one reading of the logits.

Three exponentials a logit, in three arrays that are used again and again, so that a core's cache holds them; no mask
where every logit is finite.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .column_peaks import column_peaks

ARRAYS = 3  # d, weights, products
SAFE = 300.0  # nats; float64 holds exp of -700 to 700, so that a peak within this needs no shift


@runtime_checkable
class VocabularyTotals(Protocol):
    """What may collect sums over positions for every token, while the weights are there."""

    def add(self, name: str, weights: Float[Tensor, "n V"], factor: Float[Tensor, "n"]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSums:
    """One value a position; see `TokenInformation`. `broken` rows are no distribution: their numbers mean nothing."""

    policy_peaks: Float[Tensor, "n columns"]  # of the logits, as column_peaks
    reference_peaks: Float[Tensor, "n columns"]
    change_peaks: Float[Tensor, "n columns"]  # of d, -inf where q = 0
    policy_normalizer: Float[Tensor, "n"]  # logsumexp of the logits
    reference_normalizer: Float[Tensor, "n"]
    change_normalizer: Float[Tensor, "n"]  # logsumexp(d)
    entropy: Float[Tensor, "n"]
    kl: Float[Tensor, "n"]
    reverse_kl: Float[Tensor, "n"]
    log_ratio_normalizer: Float[Tensor, "n"]
    support: Int[Tensor, "n"]
    broken: Bool[Tensor, "n"]  # a NaN, a +inf, or everything excluded
    unsupported: Bool[Tensor, "n"]  # the reference excludes what the policy allows: q is a point mass


def row_sums(
    policy: Float[Tensor, "n V"],
    reference: Float[Tensor, "rows V"],
    work: Float[Tensor, "3 n V"],
    totals: VocabularyTotals | None = None,
) -> RowSums:
    """Formulas as in `TokenInformation`. No infinity enters a product; overwrites `work`, float64.

    `totals` gets the weights of q, pi, ref and pi d' with the factor of each position: one over their sum, or 0 for a
    position that belongs in no mean.
    """
    d, weights, products = work
    d.copy_(policy).sub_(weights.copy_(reference))
    odd = None if bool(d.sum(-1).isfinite().all()) else _Odd.of(policy, reference, d)
    if odd is not None:
        policy, reference = odd.policy, odd.reference
    log_q = d if odd is None else odd.log_q
    n, vocab = d.shape
    nowhere = torch.zeros(n, dtype=torch.bool, device=d.device)
    broken, unsupported = (nowhere, nowhere) if odd is None else (odd.broken, odd.unsupported)
    counted = (~(broken | unsupported)).double()

    policy_peaks, reference_peaks, change_peaks = (column_peaks(z) for z in (policy, reference, log_q))
    lse_r, total = _weigh(reference, reference_peaks, weights)
    mean_r = torch.mul(weights, d, out=products).sum(-1) / total
    reverse_infinite = nowhere if odd is None else (odd.policy_excludes & (weights > 0)).any(-1)
    if totals is not None:
        totals.add("reference_total", weights, counted / total)

    lse_p, total = _weigh(policy, policy_peaks, weights)
    mean_p = torch.mul(weights, d, out=products).sum(-1) / total
    infinite = nowhere if odd is None else (odd.reference_excludes & (weights > 0)).any(-1)
    gap = lse_p - lse_r
    if totals is not None:
        totals.add("policy_total", weights, counted / total)
        totals.add("policy_change", products, counted / total)  # pi d' = pi d - gap pi
        totals.add("policy_change", weights, -gap * counted / total)

    lse_q, total = _weigh(log_q, change_peaks, weights)
    entropy = (lse_q - torch.mul(weights, d, out=products).sum(-1) / total).clamp(min=0.0)
    if totals is not None:
        totals.add("q_total", weights, counted / total)

    kl, reverse_kl = mean_p - gap, gap - mean_r
    if odd is not None:
        kl, reverse_kl = kl.masked_fill(infinite, torch.inf), reverse_kl.masked_fill(reverse_infinite, torch.inf)
        lse_q, entropy = lse_q.masked_fill(unsupported, torch.inf), entropy.masked_fill(unsupported, 0.0)
    return RowSums(
        policy_peaks=policy_peaks,
        reference_peaks=reference_peaks,
        change_peaks=change_peaks,
        policy_normalizer=lse_p,
        reference_normalizer=lse_r,
        change_normalizer=lse_q,
        entropy=entropy,
        kl=kl,
        reverse_kl=reverse_kl,
        log_ratio_normalizer=lse_q - gap,
        support=torch.full((n,), vocab, device=d.device) if odd is None else odd.support,
        broken=broken,
        unsupported=unsupported,
    )


def _weigh(z: Tensor, peaks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Writes exp(z - shift) into weights; logsumexp(z) and the sum of the weights, of each row."""
    peak = torch.nan_to_num(peaks.amax(-1).double(), neginf=0.0)  # -inf only in an unsupported row: its q is not read
    shift = torch.where(peak.abs() < SAFE, 0.0, peak)  # mostly no shift and so a pass less
    weights.copy_(z)
    if bool(shift.any()):
        weights.sub_(shift[:, None])
    total = weights.exp_().sum(-1)
    return shift + total.log(), total


@dataclass(frozen=True, slots=True, kw_only=True)
class _Odd:
    """Rows of which some hold an infinity or a NaN."""

    policy: Tensor  # 0 throughout a broken row
    reference: Tensor
    log_q: Tensor  # d, -inf where a model excludes the token
    policy_excludes: Tensor  # but not the reference
    reference_excludes: Tensor  # but not the policy
    support: Tensor
    broken: Tensor
    unsupported: Tensor

    @classmethod
    def of(cls, policy: Tensor, reference: Tensor, d: Tensor) -> "_Odd":
        """Sets d to 0 in a broken row and where a model excludes the token."""
        broken = _broken(policy) | _broken(reference)
        policy, reference = (z.masked_fill(broken[:, None], 0.0) for z in (policy, reference))
        without = policy.isneginf(), reference.isneginf()
        either = without[0] | without[1]
        d.masked_fill_(broken[:, None] | either, 0.0)
        return cls(
            policy=policy,
            reference=reference,
            log_q=d.masked_fill(either, -torch.inf),
            policy_excludes=without[0] & ~without[1],
            reference_excludes=without[1] & ~without[0],
            support=(~(without[0] & without[1])).sum(-1),
            broken=broken,
            unsupported=(without[1] & ~without[0]).any(-1),
        )


def _broken(z: Tensor) -> Tensor:
    """Rows that are no distribution."""
    return z.isnan().any(-1) | z.isposinf().any(-1) | z.isneginf().all(-1)
