"""What did training change at this token? The differential information of two next-token distributions.

q = softmax(d), d = z_policy - z_reference: the distribution that turns the reference into the policy.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

BLOCK_ENTRIES = 2**19  # logits of a model held in float64 at a time: 4 MB
OK, DEGENERATE, UNSUPPORTED, NON_FINITE = "ok", "degenerate", "unsupported", "non_finite"


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


def token_information(
    policy_logits: Float[Tensor, "N V"],
    reference_logits: Float[Tensor, "rows columns"],
    *,
    vocab: int | None = None,
    plausible: float | str = 1e-4,
) -> TokenInformation:
    """Differential information of each row: q = softmax(d), d = z_policy - z_reference (arXiv 2505.23761, token level).

    `vocab`: tokens of the shared tokenizer; the padded rows of a head beyond it must not count (271 of them with
    d = 12 turn an entropy of 11.9 into 5.6). `plausible`: S holds the tokens with policy or reference >= this, or
    "top64" for the union of both models' 64 likeliest. Sums in float64, some rows at a time.
    ValueError: shapes that differ (without vocab, also the vocabulary), vocab outside [2, V], plausible outside (0, 1).

    >>> change = token_information(torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2))
    >>> f"{change.entropy.item():.6f} {change.information.item():.6f} {change.status[0]}"
    '0.562335 0.130812 ok'
    """
    if policy_logits.ndim != 2 or reference_logits.ndim != 2 or len(policy_logits) != len(reference_logits):
        raise ValueError(
            "policy_logits and reference_logits are [N, V] over the same positions, got "
            f"{tuple(policy_logits.shape)} and {tuple(reference_logits.shape)}"
        )
    columns = (policy_logits.shape[1], reference_logits.shape[1])
    if vocab is None and columns[0] != columns[1]:
        raise ValueError(f"the logits have {columns[0]} and {columns[1]} columns: pass vocab, the tokenizer's size")
    vocab = min(columns) if vocab is None else vocab
    if not 2 <= vocab <= min(columns):
        raise ValueError(f"vocab is the number of shared tokens, 2 to {min(columns)} (columns of logits), got {vocab}")
    top, threshold = _plausible(plausible)

    block = max(1, BLOCK_ENTRIES // vocab)
    starts = range(0, max(1, len(policy_logits)), block)
    parts = [
        _rows(policy_logits[i : i + block, :vocab], reference_logits[i : i + block, :vocab], threshold, top)
        for i in starts
    ]
    status = np.concatenate([part.pop("status") for part in parts])
    return TokenInformation(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]}, status=status)


def _plausible(plausible: float | str) -> tuple[int | None, float]:
    """(k, 0) of "topk", or (None, threshold)."""
    if isinstance(plausible, str):
        found = re.fullmatch(r"top([1-9]\d*)", plausible)
        if found is None:
            raise ValueError(f"plausible is a probability or 'top64' (any number), got {plausible!r}")
        return int(found[1]), 0.0
    if not 0 < plausible < 1:
        raise ValueError(f"plausible is a probability in (0, 1), or 'top64', got {plausible}")
    return None, plausible


@torch.no_grad()
def _rows(policy: Tensor, reference: Tensor, threshold: float, top: int | None) -> dict:
    """All fields of one block of rows."""
    zp, zr = policy.double(), reference.double()
    broken = _broken(zp) | _broken(zr)
    zp, zr = (z.masked_fill(broken[:, None], 0.0) for z in (zp, zr))
    excluded = zp.isneginf() & zr.isneginf()
    support = (~excluded).sum(-1)
    lse_p, lse_r = zp.logsumexp(-1), zr.logsumexp(-1)
    log_p, log_r = zp - lse_p[:, None], zr - lse_r[:, None]
    p, r = log_p.exp(), log_r.exp()
    d = (zp - zr).masked_fill(excluded, -torch.inf)
    unsupported = d.isposinf().any(-1)

    entropy, log_sum = _entropy(d)
    if top is None:
        likely = (p >= threshold) | (r >= threshold)
    else:
        likely = torch.zeros_like(excluded)
        for z in (zp, zr):
            likely.scatter_(1, z.topk(min(top, z.shape[1]), dim=-1).indices, True)
        likely &= ~excluded
    size = likely.sum(-1)
    plausible_entropy, _ = _entropy(d.masked_fill(~likely, -torch.inf))
    plausible_entropy = plausible_entropy.masked_fill(size == 0, torch.nan)

    log_ratio = log_p - log_r  # NaN where both are -inf: p = r = 0 there, and 0 log 0 counts for nothing
    fields = {
        "entropy": entropy,
        "information": support.double().log() - entropy,
        "plausible_entropy": plausible_entropy,
        "kl": torch.where(p > 0, p * log_ratio, 0.0).sum(-1),
        "reverse_kl": torch.where(r > 0, -r * log_ratio, 0.0).sum(-1),
        "log_ratio_normalizer": log_sum - (lse_p - lse_r),
        "policy_mass": torch.where(likely, p, 0.0).sum(-1),
        "reference_mass": torch.where(likely, r, 0.0).sum(-1),
    }
    fields = {name: value.masked_fill(broken, torch.nan) for name, value in fields.items()}
    status = np.full(len(policy), OK, dtype="<U11")
    status[(size < 2).cpu().numpy()] = DEGENERATE
    status[unsupported.cpu().numpy()] = UNSUPPORTED
    status[broken.cpu().numpy()] = NON_FINITE
    counts = {"plausible_size": size.masked_fill(broken, 0), "support": support.masked_fill(broken, 0)}
    return {**fields, **counts, "status": status}


def _broken(z: Tensor) -> Tensor:
    """Rows that are no distribution: a NaN, a +inf, or everything excluded."""
    return z.isnan().any(-1) | z.isposinf().any(-1) | z.isneginf().all(-1)


def _entropy(d: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of softmax(d) and logsumexp(d); d = +inf makes a point mass: entropy 0."""
    log_sum = d.logsumexp(-1)
    log_q = d - log_sum[:, None]
    entropy = torch.where(d.isneginf(), 0.0, -log_q.exp() * log_q).sum(-1)
    return entropy.clamp(min=0.0).masked_fill(log_sum.isposinf(), 0.0).masked_fill(log_sum.isneginf(), 0.0), log_sum
