"""Sums over the whole vocabulary that say how two models differ at some positions: float64, one reading of the logits.

Three exponentials a logit, in three arrays that are used again and again, so that a core's cache holds them; no mask
where every logit is finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
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

    @classmethod
    def of(
        cls,
        peaks: Sequence[Tensor],
        normalizers: Sequence[Float[Tensor, "n"]] | Float[Tensor, "3 n"],
        means: Sequence[Float[Tensor, "n"]] | Float[Tensor, "3 n"],
        **status: Tensor,
    ) -> "RowSums":
        """From policy, reference and d: their peaks, logsumexp(z), and mean d under softmax(z); status: the rest."""
        (lse_p, lse_r, lse_q), (mean_p, mean_r, mean_q) = normalizers, means
        gap = lse_p - lse_r
        return cls(
            policy_peaks=peaks[0],
            reference_peaks=peaks[1],
            change_peaks=peaks[2],
            policy_normalizer=lse_p,
            reference_normalizer=lse_r,
            change_normalizer=lse_q,
            entropy=(lse_q - mean_q).clamp(min=0.0),
            kl=mean_p - gap,
            reverse_kl=gap - mean_r,
            log_ratio_normalizer=lse_q - gap,
            **status,
        )

    def at(self, positions: slice) -> "RowSums":
        """Those of some positions."""
        return RowSums(**{field.name: getattr(self, field.name)[positions] for field in fields(self)})


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
    odd = None
    reference_peaks = column_peaks(reference)
    lse_r, total, mean_r = _weighted(reference, reference_peaks, d, weights, products)
    if not bool(mean_r.isfinite().all()):  # an infinity or NaN of either model is in d, and from there in its mean
        odd = _Odd.of(policy, reference, d)
        policy, reference = odd.policy, odd.reference
        reference_peaks = column_peaks(reference)
        lse_r, total, mean_r = _weighted(reference, reference_peaks, d, weights, products)
    log_q = d if odd is None else odd.log_q
    n, vocab = d.shape
    nowhere = torch.zeros(n, dtype=torch.bool, device=d.device)
    broken, unsupported = (nowhere, nowhere) if odd is None else (odd.broken, odd.unsupported)
    counted = (~(broken | unsupported)).double()
    reverse_infinite = nowhere if odd is None else (odd.policy_excludes & (weights > 0)).any(-1)
    if totals is not None:
        totals.add("reference_total", weights, counted / total)

    policy_peaks, change_peaks = column_peaks(policy), column_peaks(log_q)
    lse_p, total, mean_p = _weighted(policy, policy_peaks, d, weights, products)
    infinite = nowhere if odd is None else (odd.reference_excludes & (weights > 0)).any(-1)
    gap = lse_p - lse_r
    if totals is not None:
        totals.add("policy_total", weights, counted / total)
        totals.add("policy_change", products, counted / total)  # pi d' = pi d - gap pi
        totals.add("policy_change", weights, -gap * counted / total)

    lse_q, total, mean_q = _weighted(log_q, change_peaks, d, weights, products)
    if totals is not None:
        totals.add("q_total", weights, counted / total)

    rows = RowSums.of(
        (policy_peaks, reference_peaks, change_peaks),
        (lse_p, lse_r, lse_q),
        (mean_p, mean_r, mean_q),
        support=torch.full((n,), vocab, device=d.device) if odd is None else odd.support,
        broken=broken,
        unsupported=unsupported,
    )
    if odd is None:
        return rows
    return replace(
        rows,
        kl=rows.kl.masked_fill(infinite, torch.inf),
        reverse_kl=rows.reverse_kl.masked_fill(reverse_infinite, torch.inf),
        change_normalizer=lse_q.masked_fill(unsupported, torch.inf),
        log_ratio_normalizer=rows.log_ratio_normalizer.masked_fill(unsupported, torch.inf),
        entropy=rows.entropy.masked_fill(unsupported, 0.0),
    )


def _weighted(z: Tensor, peaks: Tensor, d: Tensor, weights: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Writes exp(z - shift) into weights, times d into products; of each row logsumexp(z), the sum of its weights, and
    the mean of d under them."""
    peak = torch.nan_to_num(peaks.amax(-1).double(), neginf=0.0)  # -inf only in an unsupported row: its q is not read
    shift = torch.where(peak.abs() < SAFE, 0.0, peak)  # mostly no shift and so a pass less
    if bool(shift.any()):
        torch.exp(weights.copy_(z).sub_(shift[:, None]), out=weights)
    elif z.dtype == weights.dtype:
        torch.exp(z, out=weights)
    else:
        weights.copy_(z).exp_()
    total = weights.sum(-1)
    return shift + total.log(), total, torch.mul(weights, d, out=products).sum(-1) / total


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
