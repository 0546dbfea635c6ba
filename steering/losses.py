"""How far is the edited model's next-token distribution from its target? One loss a response token, in nats.

p = softmax(edited logits), q = softmax(source logits), over the whole vocabulary; all in log space, so that a token
which underflows in both costs nothing and has no gradient. float32, or float64 where either side is.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..probes.anatomy import at_least_float32

CEILING = 0.69  # a JSD above: p and q share almost nothing, the gradient vanishes [reconstructed]
CEILING_SHARE = 0.2  # of the tokens trained on: above it another loss is advised [reconstructed]
REDUCTIONS = ("token", "example")

Edited = Float[Tensor, "*batch V"]
Source = Float[Tensor, "*rows columns"]


def jsd(edited: Edited, source: Source) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence 1/2 KL(p : m) + 1/2 KL(q : m), m = (p + q) / 2; in [0, ln 2]. arXiv 2602.05234.

    The gradient to the edited logits is p (r - sum(p r)) / 2, r = log p - log m: 0 where p and q are disjoint.

    >>> f"{jsd(torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()).item():.6f}"
    '0.215762'
    """
    log_p, log_q = _log_probabilities(edited, source)
    nowhere = log_p.exp() + log_q.exp() == 0
    log_m = torch.logaddexp(log_p.masked_fill(nowhere, 0.0), log_q.masked_fill(nowhere, 0.0)) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def kl_source(edited: Edited, source: Source) -> Float[Tensor, "*batch"]:
    """KL(q : p) = sum q (log q - log p), mass-covering: its gradient to the edited logits is p - q; inf if p lacks."""
    log_p, log_q = _log_probabilities(edited, source)
    return _kl(log_q, log_p)


def kl_edited(edited: Edited, source: Source) -> Float[Tensor, "*batch"]:
    """KL(p : q) = sum p (log p - log q), mode-seeking; the released code of arXiv 2602.05234 calls it "forward"."""
    log_p, log_q = _log_probabilities(edited, source)
    return _kl(log_p, log_q)


def ce(edited: Edited, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*batch"]:
    """-log p[token]: labels in place of the source's distribution, as plain DAS trains."""
    if tokens.shape != edited.shape[:-1]:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} for logits {tuple(edited.shape)}: one a row of logits")
    return -at_least_float32(edited).log_softmax(-1).gather(-1, tokens.long()[..., None])[..., 0]


Divergence = Callable[[Tensor, Tensor], Tensor]
DIVERGENCES: dict[str, Divergence] = {"jsd": jsd, "kl_source": kl_source, "kl_edited": kl_edited}
LOSSES = (*DIVERGENCES, "ce")


def require_loss(loss: str, reduction: str, *, has_tokens: bool) -> None:
    """ValueError for a name that is none, or for "ce" where no response tokens are given."""
    if loss not in LOSSES:
        raise ValueError(f"loss '{loss}': expected one of {', '.join(LOSSES)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction '{reduction}': expected one of {', '.join(REDUCTIONS)}")
    if loss == "ce" and not has_tokens:
        raise ValueError("loss 'ce' needs the response tokens: pass tokens=[N, R]")


def token_losses(
    loss: str, edited: Float[Tensor, "n V"], source: Float[Tensor, "rows columns"], tokens: Int[Tensor, "m"] | None
) -> Float[Tensor, "n"]:
    """The loss of that name, one a response token; tokens are read by "ce" only."""
    require_loss(loss, "token", has_tokens=tokens is not None)
    if loss == "ce" and tokens is not None:
        return ce(edited, tokens)
    return DIVERGENCES[loss](edited, source)


def token_weights(response_mask: Bool[Tensor, "B R"], reduction: str) -> Float[Tensor, "n"]:
    """What each response token (in the order of response_mask's True) counts in the mean over a minibatch; sums to 1.

    "token": all alike, 1 / n, so that long answers count more. "example": 1 / (B n_row): the mean of every row first.
    ValueError for a row without a response token.
    """
    counts = response_mask.sum(-1)
    if (counts == 0).any():
        raise ValueError(f"row {int((counts == 0).nonzero()[0])} of the minibatch has no response token")
    if reduction == "token":
        return response_mask.new_ones(int(counts.sum()), dtype=torch.float32) / counts.sum()
    if reduction == "example":
        return (1 / (len(counts) * counts.float())).repeat_interleave(counts)
    raise ValueError(f"reduction '{reduction}': expected one of {', '.join(REDUCTIONS)}")


def share_at_ceiling(divergences: Float[Tensor, "*batch"]) -> float:
    """Share of tokens with a JSD above 0.69, in [0, 1]; ln 2 = 0.6931 is where no gradient is left [reconstructed]."""
    if divergences.numel() == 0:
        raise ValueError("no divergences: a share of nothing")
    return float((divergences > CEILING).double().mean())


def _log_probabilities(edited: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    if edited.shape != source.shape:
        raise ValueError(f"edited logits {tuple(edited.shape)} against source logits {tuple(source.shape)}: one shape")
    return at_least_float32(edited).log_softmax(-1), at_least_float32(source).log_softmax(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum p (log p - log q), with 0 log 0 = 0 in value and gradient; inf where q lacks what p has."""
    p = log_p.exp()
    absent = p == 0  # masked before the difference: -inf - -inf is NaN, and 0 times its gradient too
    return (p * (log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0))).sum(-1)
