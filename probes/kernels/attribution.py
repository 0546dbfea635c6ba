"""Which tokens carry the update, and did it sharpen or smooth the reference? Views of one `InformationPass`."""

from jaxtyping import Float
from torch import Tensor

from .head_logits import Projection
from .information import information_pass, read_logits
from .token_readings import TokenAttribution, TokenTilt


def token_attribution(
    policy_logits: Float[Tensor, "N V"],
    reference_logits: Float[Tensor, "rows columns"],
    *,
    vocab: int | None = None,
    plausible: float | str = 1e-4,
    top: int = 10,
) -> TokenAttribution:
    """The tokens by which each position's information D arises: c(v) = q(v) log(support q(v)), sum over v = D, nats.

    For each position the `top` likeliest tokens of q (all V where V is smaller), and for each token sums over the
    positions of q, pi, ref, pi d' and, where it is plausible, of q^S, c^S, d'. Arguments and errors as in
    `token_information` (arXiv 2505.23761, token level); ValueError also for top < 1.

    >>> import torch
    >>> carried = token_attribution(torch.tensor([[3.0, 1.0, 1.0, 1.0]]).log(), torch.zeros(1, 4), top=1)
    >>> carried.ids.tolist(), f"{carried.q.item():.2f} {carried.contribution.item():.6f}"  # (1/2) log 2
    ([[0]], '0.50 0.346574')
    """
    return read_logits(policy_logits, reference_logits, vocab=vocab, plausible=plausible, top=top).attribution()


def token_attribution_from_hidden(
    policy_hidden: Float[Tensor, "N d1"],
    policy_head: Projection | Float[Tensor, "V1 width1"],
    reference_hidden: Float[Tensor, "rows d2"],
    reference_head: Projection | Float[Tensor, "V2 width2"],
    *,
    vocab: int | None = None,
    plausible: float | str = 1e-4,
    top: int = 10,
    block: int = 64,
    chunk: int = 16384,
) -> TokenAttribution:
    """`token_attribution` of the heads' logits, which are never held but for `block` positions: see `information_pass`.

    >>> import torch
    >>> states, head = torch.tensor([[1.0]]), torch.tensor([[3.0], [1.0]]).log()
    >>> token_attribution_from_hidden(states, head, 0 * states, head).ids.tolist()
    [[0, 1]]
    """
    return information_pass(
        policy_hidden,
        policy_head,
        reference_hidden,
        reference_head,
        vocab=vocab,
        plausible=plausible,
        top=top,
        block=block,
        chunk=chunk,
    ).attribution()


def token_tilt(
    policy_logits: Float[Tensor, "N V"],
    reference_logits: Float[Tensor, "rows columns"],
    *,
    vocab: int | None = None,
    plausible: float | str = 1e-4,
) -> TokenTilt:
    """Slope a of d = z_policy - z_reference on log ref over the plausible tokens, at each position; no unit.

    Exact where policy is proportional to ref^(1+a): a, R^2 = 1. a > 0 sharpens the reference, a < 0 smooths it. The
    idea is of arXiv 2505.23761, the regression and its weights are ours. Arguments, errors: as `token_information`.

    >>> import torch
    >>> reference = torch.tensor([[0.7, 0.2, 0.1]]).log()
    >>> tilt = token_tilt(1.5 * reference, reference)
    >>> f"{tilt.slope.item():.4f} {tilt.r_squared.item():.4f}"
    '0.5000 1.0000'
    """
    return read_logits(policy_logits, reference_logits, vocab=vocab, plausible=plausible, top=None).tilt()
