"""Read the residual stream while a model runs: reducers called inside forward hooks, so that nothing large is held."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .anatomy import first_tensor
from .subject import Reducer


@contextmanager
def capturing(
    blocks: Sequence[nn.Module] | nn.ModuleList,
    *,
    reduce: Reducer,
    attention_mask: Int[Tensor, "B T"],
    layers: Sequence[int],
) -> Iterator[dict[int, Any]]:
    """Inside, every forward pass fills layer -> reduce(layer, h[B, T, d], attention_mask). Hooks are gone afterwards.

    Layer 0 is the input of block 0 (the embeddings), layer k the output of block k - 1.
    """
    kept: dict[int, Any] = {}

    def keep(layer: int, value: Any) -> None:  # a hook that returned something would replace the block's output
        h = first_tensor(value)
        if h is None:
            raise RuntimeError(f"layer {layer}: the block passed no tensor on")
        kept[layer] = reduce(layer, h, attention_mask)

    def reads_output(layer: int) -> Any:
        return lambda module, args, output: keep(layer, output)

    with ExitStack() as stack:
        for layer in layers:
            if layer == 0:
                handle = blocks[0].register_forward_pre_hook(
                    lambda module, args, kwargs: keep(0, [*args, *kwargs.values()]), with_kwargs=True
                )
            else:
                handle = blocks[layer - 1].register_forward_hook(reads_output(layer))
            stack.callback(handle.remove)
        yield kept


def rows_at(rows: Int[Tensor, "n"], columns: Int[Tensor, "n"]) -> Reducer:
    """A reducer that keeps h[rows, columns]: the residual at n places of a batch, [n, d]."""

    def keep(layer: int, h: Float[Tensor, "B T d"], attention_mask: Int[Tensor, "B T"]) -> Float[Tensor, "n d"]:
        return h[rows.to(h.device), columns.to(h.device)]

    return keep


def places(at: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Row and column of the tokens at[k] of every row k, row by row."""
    rows = torch.arange(len(at)).repeat_interleave(torch.tensor([len(some) for some in at]))
    return rows, torch.tensor([column for some in at for column in some], dtype=torch.long)


def last_residuals(
    subject: Any,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"],
    rows: Int[Tensor, "n"],
    columns: Int[Tensor, "n"],
) -> Float[Tensor, "n d"]:
    """What the final norm reads at n places, in the model's dtype; unlike `trace` with the caller's gradient mode.

    subject: a carrier with an anatomy. The head runs on one column of every row.
    """
    first = torch.zeros(len(input_ids), 1, dtype=torch.long)
    keep, last = rows_at(rows, columns), subject.n_layers
    with capturing(subject.anatomy.blocks, reduce=keep, attention_mask=attention_mask, layers=[last]) as kept:
        subject.logits(input_ids, attention_mask, positions=first)
    return kept[last]


def means_at(rows: Int[Tensor, "n"], columns: Int[Tensor, "n"]) -> Reducer:
    """A reducer that keeps the mean of h[rows, columns] of every row 0..max(rows), [B, d]; summed in float64."""
    places = rows_at(rows, columns)

    def keep(layer: int, h: Float[Tensor, "B T d"], attention_mask: Int[Tensor, "B T"]) -> Float[Tensor, "n d"]:
        owner = rows.to(h.device)
        exact = torch.float32 if h.device.type == "mps" else torch.float64  # mps has no float64
        found = places(layer, h, attention_mask).to(exact)
        sums = found.new_zeros(int(rows.max()) + 1, h.shape[-1]).index_add_(0, owner, found)
        return sums / torch.bincount(owner)[:, None]

    return keep
