"""Which subspace, interchanged between two runs, makes one say what the other says? Concept DAS, arXiv 2602.05234.

The loop knows no model: states, masks and target logits are tensors, and `readout` runs what lies above the edit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..probes.shards import Progress
from .descent import descend
from .interchange import InterchangeRows, Readout
from .losses import CEILING_SHARE, require_loss, share_at_ceiling
from .subspace import Subspace


@runtime_checkable
class FitRows(Protocol):
    """What the loop trains on: rows of tensors (InterchangeRows), or pairs of runs of a model (training_rows.py)."""

    def __len__(self) -> int: ...

    def token_losses(self, subspace: Subspace, rows: Tensor, loss: str) -> Tensor: ...  # [n], with gradient to S

    def weights(self, rows: Tensor, reduction: str) -> Tensor: ...  # [n], sum 1: what each token counts


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FitResult(Subspace):
    """The subspace after the last step, with what happened on the way; tuples hold an entry a step.

    losses: of the minibatch before its step, nats a token. gradient_norms: before the clip. at_ceiling: share of the
    minibatch's tokens with a JSD above 0.69, where it has no gradient left [reconstructed]; None for other losses.
    """

    basis: Float[Tensor, "k d"]  # S: orthonormal rows, float32
    loss: str
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    at_ceiling: tuple[float, ...] | None
    n_rows: int
    n_tokens: int  # response tokens trained on, a token as often as it was drawn

    @property
    def subspace(self) -> Subspace:
        """The subspace alone."""
        return Subspace.orthonormal(self.basis)

    @property
    def share_at_ceiling(self) -> float | None:
        """Mean over steps of `at_ceiling`; None, of other losses than "jsd", which have no ceiling."""
        return None if self.at_ceiling is None else math.fsum(self.at_ceiling) / len(self.at_ceiling)

    @property
    def warnings(self) -> tuple[str, ...]:
        share = self.share_at_ceiling
        if share is None or share <= CEILING_SHARE:
            return ()
        return (
            f"{share:.0%} of the response tokens had a JSD above 0.69, where it gives no gradient: the two runs share "
            "almost no next token. Try loss='kl_source'",
        )


def fit_interchange(
    base: Float[Tensor, "N T d"],
    source: Float[Tensor, "rows width"],
    edit_mask: Bool[Tensor, "rows2 columns"],
    target_logits: Float[Tensor, "rows3 R V"],
    readout: Readout,
    *,
    rank: int = 1,
    loss: str = "jsd",
    steps: int,
    lr: float | int = 0.04,
    batch_size: int = 16,
    seed: int = 42,
    init: Float[Tensor, "k2 d2"] | Float[Tensor, "d2"] | None = None,
    grad_clip: float | int = 1.0,
    reduction: str = "token",
    response_mask: Bool[Tensor, "rows4 R4"] | None = None,
    tokens: Int[Tensor, "rows5 R5"] | None = None,
    batches: Sequence[Tensor] | None = None,
    observe: Callable[[int, Subspace], bool | None] | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Minimise the loss of readout(h_b + (h_s S^T - h_b S^T) S) against the source's logits over orthonormal S [k, d].

    base, source, edit_mask, target_logits, response_mask (default: all), tokens: see InterchangeRows.
    readout(states[B, T, d], rows[B]) -> logits[B, R, V]. AdamW without weight decay, lr falling linearly to 0 at
    `steps`, gradient norm clipped at `grad_clip`, after every step a retraction to orthonormal rows (QR; rank 1:
    division by the norm). Gradient reaches S alone. init: rows to start from, default random from `seed`, which also
    draws the minibatches with replacement; batches: rows of every step instead, `steps` of them.
    observe(step, subspace): called before the first step (0) and after each one; True ends the fit there.
    Raises ValueError for arguments that do not fit, and where the loss is not finite. arXiv 2602.05234.
    """
    if response_mask is None:
        response_mask = torch.ones(target_logits.shape[:2], dtype=torch.bool, device=target_logits.device)
    data = InterchangeRows(
        base=base.detach(),
        source=source.detach(),
        edit_mask=edit_mask,
        target_logits=target_logits.detach(),
        readout=readout,
        response_mask=response_mask,
        tokens=tokens,
    )
    require_loss(loss, reduction, has_tokens=tokens is not None)
    return fit_rows(
        data,
        width=base.shape[-1],
        device=base.device,
        rank=rank,
        loss=loss,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        init=init,
        grad_clip=grad_clip,
        reduction=reduction,
        batches=batches,
        observe=observe,
        progress=progress,
    )


def fit_rows(
    data: FitRows,
    *,
    width: int,
    device: torch.device,
    rank: int,
    loss: str,
    steps: int,
    lr: float | int,
    batch_size: int,
    seed: int,
    init: Float[Tensor, "k2 d2"] | Float[Tensor, "d2"] | None = None,
    grad_clip: float | int = 1.0,
    reduction: str = "token",
    batches: Sequence[Tensor] | None = None,
    observe: Callable[[int, Subspace], bool | None] | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """The loop of `fit_interchange`, over rows of any kind; width: d of the states. Arguments and errors as there."""
    _require_positive(steps=steps, lr=lr, batch_size=batch_size, grad_clip=grad_clip)
    generator = torch.Generator().manual_seed(seed)
    weight = _start(init, rank, width, generator).basis.to(device).clone().requires_grad_(True)
    drawn = _drawn(len(data), batch_size, steps, generator) if batches is None else _checked(batches, steps, len(data))
    each: list[Tensor] = []  # of every step, [n] a token

    def terms(rows: Tensor) -> Iterator[Tensor]:
        of_tokens = data.token_losses(Subspace.orthonormal(weight), rows, loss)  # refuses |S S^T - I| above 1e-5
        each.append(of_tokens.detach())
        yield (of_tokens * data.weights(rows, reduction).to(of_tokens)).sum()

    def retract() -> None:
        weight.copy_(Subspace(weight).basis)

    found = descend(
        [weight],
        terms,
        [rows.to(device) for rows in drawn],
        lr=lr,
        grad_clip=grad_clip,
        stage="interchange fit",
        retract=retract,
        observe=None if observe is None else lambda step: observe(step, _frozen(weight)),
        progress=progress,
    )
    return FitResult(
        basis=_frozen(weight.cpu()).basis,
        loss=loss,
        losses=found.losses,
        gradient_norms=found.gradient_norms,
        at_ceiling=tuple(map(share_at_ceiling, each)) if loss == "jsd" else None,
        n_rows=len(data),
        n_tokens=sum(map(len, each)),
    )


def _start(init: Tensor | None, rank: int, width: int, generator: torch.Generator) -> Subspace:
    if not 1 <= rank <= width:
        raise ValueError(f"rank {rank}: expected 1 .. {width}, the width of the states")
    if init is None:
        return Subspace(torch.randn(rank, width, generator=generator))
    rows = init.reshape(-1, init.shape[-1])
    if rows.shape != (rank, width):
        raise ValueError(f"init of shape {tuple(init.shape)}: expected [{rank}, {width}]")
    return Subspace(rows)


def _frozen(weight: Float[Tensor, "k d"]) -> Subspace:
    """A copy that later steps leave alone."""
    return Subspace.orthonormal(weight.detach().clone())


def _drawn(n: int, size: int, steps: int, generator: torch.Generator) -> Sequence[Tensor]:
    """Rows of every step, with replacement."""
    return list(torch.randint(n, (steps, size), generator=generator))


def _checked(batches: Sequence[Tensor], steps: int, n: int) -> Sequence[Tensor]:
    if len(batches) != steps:
        raise ValueError(f"{len(batches)} batches for {steps} steps: expected one a step, for the rate to end at 0")
    for step, rows in enumerate(batches, start=1):
        if rows.numel() == 0 or rows.min() < 0 or rows.max() >= n:
            raise ValueError(f"the batch of step {step} is empty or names a row outside 0 .. {n - 1}")
    return batches


def _require_positive(**values: float | int) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} {value}: expected above 0")
