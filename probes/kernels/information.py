"""What did training change at this token? The differential information of two next-token distributions.

q = softmax(d), d = z_policy - z_reference: the distribution that turns the reference into the policy.
"""

from jaxtyping import Float
from torch import Tensor

from . import token_pass
from .head_logits import HeadLogits, Projection, projected
from .token_pass import InformationPass
from .token_readings import TokenInformation

BLOCK_ENTRIES = token_pass.BLOCK_ENTRIES  # logits of a model in float64 at a time
BUFFER_BYTES = 96 * 2**20  # float32 logits of both models that a pass over states holds


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

    >>> import torch
    >>> change = token_information(torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2))
    >>> f"{change.entropy.item():.6f} {change.information.item():.6f} {change.status[0]}"
    '0.562335 0.130812 ok'
    """
    return read_logits(policy_logits, reference_logits, vocab=vocab, plausible=plausible, top=None).information()


def token_information_from_hidden(
    policy_hidden: Float[Tensor, "N d1"],
    policy_head: Projection | Float[Tensor, "V1 width1"],
    reference_hidden: Float[Tensor, "rows d2"],
    reference_head: Projection | Float[Tensor, "V2 width2"],
    *,
    vocab: int | None = None,
    plausible: float | str = 1e-4,
    block: int = 64,
    chunk: int = 16384,
) -> TokenInformation:
    """`token_information` of the heads' logits, which are never held but for `block` positions: see `information_pass`.

    >>> import torch
    >>> states, head = torch.tensor([[1.0]]), torch.tensor([[3.0], [1.0]]).log()
    >>> change = token_information_from_hidden(states, head, 0 * states, head)
    >>> f"{change.entropy.item():.6f} {change.status[0]}"
    '0.562335 ok'
    """
    return information_pass(
        policy_hidden,
        policy_head,
        reference_hidden,
        reference_head,
        vocab=vocab,
        plausible=plausible,
        top=None,
        block=block,
        chunk=chunk,
    ).information()


def information_pass(
    policy_hidden: Float[Tensor, "N d1"],
    policy_head: Projection | Float[Tensor, "V1 width1"],
    reference_hidden: Float[Tensor, "rows d2"],
    reference_head: Projection | Float[Tensor, "V2 width2"],
    *,
    vocab: int | None = None,
    plausible: float | str = 1e-4,
    top: int | None = 10,
    block: int = 128,
    chunk: int = 16384,
) -> InformationPass:
    """Information, tilt and attribution of N positions from the states that enter the heads, in one reading.

    The states are those **after** the final norm (`Subject.normed` of the last residual); a head's own norm is not
    applied. A head is a `Head`, whose bias, scale and soft-cap are applied, or a bare weight [V, d]. Logits are
    float32, float64 where an input of that side is; half precision is upcast, some rows at a time; sums are float64.
    The widths may differ. `vocab`: tokens of the shared tokenizer, by default those of both heads.

    At most `block` positions' logits are held, fewer where they would exceed BUFFER_BYTES, so that memory does not
    grow with N (V = 49,152: under 150 MB). Blocks of 128 cost a fifth less in the products than those of 64. `chunk`:
    rows of a head multiplied at a time. `top` None: no attribution.
    ValueError: shapes that do not fit, heads of unlike vocabulary without `vocab`, vocab outside [2, V], softcap <= 0,
    block or chunk < 1, plausible outside (0, 1), top < 1.
    """
    policy, policy_vocab = projected("_policy", policy_hidden, policy_head)
    reference, reference_vocab = projected("_reference", reference_hidden, reference_head)
    if len(policy_hidden) != len(reference_hidden):
        raise ValueError(
            "policy_hidden and reference_hidden are [N, width] over the same positions, "
            f"got {tuple(policy_hidden.shape)} and {tuple(reference_hidden.shape)}"
        )
    if block < 1 or chunk < 1:
        raise ValueError(f"block and chunk are >= 1, got {block} and {chunk}")
    rows = min(len(policy.weight), len(reference.weight))
    vocab = _shared("heads", "tokens", vocab, (policy_vocab, reference_vocab), rows)

    reading = InformationPass(vocab, plausible=plausible, top=top, entries=BLOCK_ENTRIES)
    n = len(policy_hidden)
    block = max(1, min(block, n, BUFFER_BYTES // (vocab * (policy.dtype.itemsize + reference.dtype.itemsize))))
    sides = [HeadLogits(readout, vocab, block, chunk) for readout in (policy, reference)]
    for start in range(0, max(1, n), block):
        z_policy, z_reference = (side.read(start, min(start + block, n)) for side in sides)
        reading.update(z_policy, z_reference)
    return reading


def read_logits(
    policy_logits: Tensor, reference_logits: Tensor, *, vocab: int | None, plausible: float | str, top: int | None
) -> InformationPass:
    """A pass over logits that are already there, checked."""
    if policy_logits.ndim != 2 or reference_logits.ndim != 2 or len(policy_logits) != len(reference_logits):
        raise ValueError(
            "policy_logits and reference_logits are [N, V] over the same positions, got "
            f"{tuple(policy_logits.shape)} and {tuple(reference_logits.shape)}"
        )
    columns = (policy_logits.shape[1], reference_logits.shape[1])
    vocab = _shared("logits", "columns", vocab, columns, min(columns))
    reading = InformationPass(vocab, plausible=plausible, top=top, entries=BLOCK_ENTRIES)
    reading.update(policy_logits, reference_logits)
    return reading


def _shared(what: str, unit: str, vocab: int | None, sizes: tuple[int, int], most: int) -> int:
    """The number of shared tokens."""
    if vocab is None and sizes[0] != sizes[1]:
        raise ValueError(f"the {what} have {sizes[0]} and {sizes[1]} {unit}: pass vocab, the tokenizer's size")
    vocab = sizes[0] if vocab is None else vocab
    if not 2 <= vocab <= most:
        raise ValueError(f"vocab is the number of shared tokens, 2 to {most} ({what}), got {vocab}")
    return vocab
