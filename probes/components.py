"""Which module of a block is its attention, and which its MLP? Tried, not looked up in a table of architectures.

The attention is the first module with weights whose output at a later token moves with the first token alone; the MLP
is the last module with weights besides it. Both must give what they add to the residual stream, not the sum.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .anatomy import first_tensor
from .token_positions import unedited

MOVED = 1e-4  # of the largest output: more than rounding
_NAMES = {"attn_out": "attention", "mlp_out": "MLP"}


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    module: nn.Module
    output: Tensor
    sums: bool  # takes a second tensor of the residual stream: it adds that one to its result


def component_module(model: Any, block: nn.Module, component: str, *, name: str) -> nn.Module:
    """The module of `block` whose output is `component`: "attn_out" or "mlp_out"; two short forward passes.

    Raises InputError where there is none, or where it adds the residual stream inside.
    """
    with torch.no_grad(), unedited():
        plain = _calls(model, block, shifted=False)
        moved = {call.name: call.output for call in _calls(model, block, shifted=True)}
    attention = next((call for call in plain if _differ(call.output, moved[call.name])), None)
    others = [call for call in plain if call is not attention]
    found = attention if component == "attn_out" else others[-1] if others else None
    if found is None:
        raise InputError(f"{name}: no module in it is an {_NAMES[component]}; expected resid_pre or resid_post")
    if found.sums:
        raise InputError(
            f"{name}: {found.name} adds the residual stream inside, so what the {_NAMES[component]} adds is not to be "
            "had on its own; use resid_post"
        )
    return found.module


def _calls(model: Any, block: nn.Module, *, shifted: bool) -> list[_Call]:
    """Calls of the block's own modules that have matrices and give a residual's width, in order."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[rows // 7, rows // 3, rows // 2]], device=model.device)
    calls: list[_Call] = []
    size: list[torch.Size] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        h = stream(args, kwargs)
        size.append(h.shape)
        return with_stream(args, kwargs, _first_moved(h)) if shifted else None

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            out = first_tensor(output)
            if out is not None and out.numel() == size[-1].numel() and out.shape[-1] == size[-1][-1]:
                given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()]
                sums = sum(a.numel() == out.numel() and a.shape[-1] == out.shape[-1] for a in given) > 1
                calls.append(_Call(name, module, out.reshape(size[-1]), sums))

        return hook

    with _hooks() as handles:
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        for name, child in block.named_children():
            if any(parameter.ndim > 1 for parameter in child.parameters()):
                handles.append(child.register_forward_hook(keep(name), with_kwargs=True))
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return calls


def stream(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among the arguments of a block: the first tensor."""
    found = first_tensor([*args, *kwargs.values()])
    if found is None:
        raise InputError("a block was called without a tensor; expected the residual stream")
    return found


def with_stream(args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a block with another residual stream."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:i], new, *args[i + 1 :]), kwargs
    key = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
    return args, kwargs | {key: new}


def with_first_tensor(value: Any, new: Tensor) -> Any:
    """The counterpart of `anatomy.first_tensor`: the same structure with `new` in the place of that tensor."""
    if isinstance(value, Tensor):
        return new
    if isinstance(value, dict):
        key = next(key for key, part in value.items() if isinstance(part, Tensor))
        return type(value)({**value, key: new})
    i = next(i for i, part in enumerate(value) if isinstance(part, Tensor))
    parts = [*value[:i], new, *value[i + 1 :]]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _first_moved(h: Float[Tensor, "B T d"]) -> Float[Tensor, "B T d"]:
    wave = torch.arange(h.shape[-1], device=h.device).cos().to(h)
    return torch.cat([h[:, :1] + (1 + h[:, :1].abs().max()) * wave, h[:, 1:]], dim=1)


def _differ(first: Tensor, second: Tensor) -> bool:
    """At the last token."""
    a, b = first[:, -1].double(), second[:, -1].double()
    return bool((a - b).abs().max() > MOVED * a.abs().max())


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
