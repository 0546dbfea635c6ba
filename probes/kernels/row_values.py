"""One number a hidden state, through logits of the whole vocabulary: those of a few rows are held at a time.

A loss of n response tokens needs n x vocabulary logits, and backward several times as much. But each value depends on
its own row alone, so its gradient [d] can be made beside it, and the logits dropped before the next rows.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .eager import exact_products

ENTRIES = 2**20  # logits at a time: 4 MB in float32, and a loss holds some ten times that
DEVICE_ENTRIES = 2**24  # where a core is no CPU's: few rows a product would leave most of it idle

RowValues = Callable[[Tensor, slice], Tensor]  # (states of the rows [r, d], which rows) -> [r]


def row_values(values: RowValues, h: Float[Tensor, "n d"], vocabulary: int) -> Float[Tensor, "n"]:
    """values(h[part], part) for parts of about 2**20 logits (2**24 on a GPU), joined. Differentiable once, in h alone.

    values: the r-th of its values depends on the r-th row alone, which is not checked; what else it reads gets no
    gradient. Its gradient is made in the dtype of h. ValueError where it does not give one value a row.
    """
    size = max(1, (ENTRIES if h.device.type == "cpu" else DEVICE_ENTRIES) // vocabulary)
    if h.requires_grad and torch.is_grad_enabled():
        return _WithGradient.apply(values, size, h)
    with torch.no_grad():
        return torch.cat([_checked(values(h[part], part), h[part]) for part in _parts(len(h), size)])


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: RowValues, size: int, h: Tensor) -> Tensor:
        found: list[Tensor] = []
        gradient = torch.empty_like(h)
        for part in _parts(len(h), size):
            with torch.enable_grad(), exact_products(h.device):
                rows = h[part].detach().requires_grad_()
                some = _checked(values(rows, part), rows)
                (gradient[part],) = torch.autograd.grad(some.sum(), rows)
            found.append(some.detach())
        ctx.save_for_backward(gradient)
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outgoing: Tensor) -> tuple[None, None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, None, (outgoing[0][:, None] * gradient).to(gradient.dtype)


def _parts(n: int, size: int) -> Iterator[slice]:
    """At least one, so that no rows give no values of the right dtype."""
    return (slice(start, min(start + size, n)) for start in range(0, max(1, n), size))


def _checked(found: Tensor, rows: Tensor) -> Tensor:
    if found.shape != rows.shape[:1]:
        raise ValueError(f"{tuple(found.shape)} values for {len(rows)} rows: expected one a row")
    return found
