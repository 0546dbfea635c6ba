"""The weights of a decoder's blocks, one at a time, as the model applies them: with what an adapter adds to them.

Nothing is merged in place. A LoRA weight is W + scaling B A in float64; of other adapters the weight is what the
adapted layer makes of the identity matrix, in the layer's own precision.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .fused_weights import Part, parts, stacked_parts
from .huggingface import HuggingFaceSubject
from .kernels.eager import exact_products
from .live import evaluating
from .subject import Subject

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockWeight:
    """One matrix of a block, [out, in] where that is known, or anything else of it as a flat vector; float64."""

    block: int  # from 1
    name: str  # inside the block, without an adapter's wrappers: self_attn.q_proj, attn.c_attn.q, mlp.experts.up.3
    kind: str  # the name without the number of the expert
    value: Float[Tensor, "rows columns"] | Float[Tensor, "n"]
    adapter_rank: int | None  # the largest rank of what a LoRA adds here; None where none does
    note: str | None  # what keeps the matrix from being one thing


def block_weights(subject: Subject) -> Iterator[BlockWeight]:
    """Every weight of every block, in the order of the modules; one in memory at a time.

    Matrices are the 2-D weights, fused ones taken apart (probes/fused_weights.py), and each expert of a stack. Biases,
    gains, convolutions and the like come as vectors. A subject with its adapter off gives the base's weights.
    Raises InputError for a carrier without modules, for packed (low-bit) weights and for weights that are not in
    memory, naming block and tensor, and for an adapter that is not linear in its input.
    """
    if not isinstance(subject, HuggingFaceSubject):
        raise InputError(
            f"{subject.name}: the weights of the blocks can be read of a transformers model only, not of a "
            f"{type(subject).__name__}; load the checkpoint with carrier='huggingface'"
        )
    return _all(subject)


def _all(subject: HuggingFaceSubject) -> Iterator[BlockWeight]:
    config = subject.model.config.get_text_config()
    for number, block in enumerate(subject.anatomy.blocks, start=1):
        _refuse_packed(subject, block, number)
        for path, tensor, rank in _effective(subject, block, ""):
            name, value = path.removesuffix(".weight"), _float64(tensor)
            for part_name, kind, part, note in _parts(name, value, config):
                matrix = part.ndim == 2
                yield BlockWeight(
                    block=number,
                    name=part_name,
                    kind=kind,
                    value=part,
                    adapter_rank=rank if matrix else None,
                    note=note,
                )


def _parts(name: str, value: Tensor, config: Any) -> "Iterator[Part] | list[tuple[str, str, Tensor, str | None]]":
    vector = name.endswith("bias") or "conv" in name
    if value.ndim == 2 and not vector:
        return parts(name, value, config)
    if value.ndim == 3 and not vector and min(value.shape[1:]) > 1:
        return stacked_parts(name, value, config)
    return [(name, name, value.reshape(-1), None)]


def _effective(subject: HuggingFaceSubject, module: nn.Module, path: str) -> Iterator[tuple[str, Tensor, int | None]]:
    """Path, tensor and LoRA rank of every parameter, as the subject applies it."""
    if isinstance(getattr(module, "original_module", None), nn.Module):  # peft's modules_to_save
        yield from _effective(subject, _saved(subject, module), path)
        return
    if isinstance(getattr(module, "base_layer", None), nn.Module):
        with subject.switched():  # not over a yield: the other model may share the module
            found = list(_adapted(subject, module, path))
        yield from found
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{path}{name}", _outputs_first(module, parameter.detach()), None
    for name, child in module.named_children():
        yield from _effective(subject, child, f"{path}{name}.")


def _saved(subject: HuggingFaceSubject, wrapper: Any) -> nn.Module:
    with subject.switched():
        active = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
        off = wrapper.disable_adapters or not active
        return wrapper.original_module if off else wrapper.modules_to_save[active[0]]


def _adapted(subject: HuggingFaceSubject, layer: Any, path: str) -> Iterator[tuple[str, Tensor, int | None]]:
    """Weight and bias of a layer that carries an adapter. Merged into the weight already, it is there as it stands."""
    base = layer.get_base_layer()
    off = layer.disable_adapters or layer.merged or not _has_active(layer)
    if not off and hasattr(layer, "parameter_name"):
        raise InputError(
            f"{subject.name}: {path}{layer.parameter_name} carries an adapter on a bare parameter (peft's "
            "target_parameters), which cannot be read apart; merge the adapter into its base and give that"
        )
    for name, tensor, _ in _effective(subject, base, path):
        if off:
            yield name, tensor, None
        elif name == f"{path}bias":
            yield name, _response(layer, torch.zeros(1, _inputs(base), dtype=tensor.dtype))[0], None
        elif name != f"{path}weight":
            yield name, tensor, None
        elif isinstance(base, nn.Linear) or _is_conv1d(base):
            low_rank = _lora(layer)
            if low_rank is None:
                yield name, _by_identity(subject, layer, tensor, path), None
            else:
                delta, rank = low_rank
                yield name, tensor.double() + delta.to(tensor.device), rank
        else:
            raise InputError(
                f"{subject.name}: {path.rstrip('.')} carries an adapter on a {type(base).__name__}, whose effective "
                "weight cannot be read; merge the adapter into its base and give that"
            )


def _has_active(layer: Any) -> bool:
    """Whether an active adapter has tensors on this layer."""
    names = {key for kind in layer.adapter_layer_names for key in getattr(layer, kind)}
    return bool(names & set(layer.active_adapters))


def _lora(layer: Any) -> tuple[Float[Tensor, "out in"], int] | None:
    """scaling B A summed over active adapters in float64, and its rank bound; None where the adapter is more."""
    if not hasattr(layer, "lora_A"):
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if any(name in layer.lora_variant for name in active):  # DoRA and others rescale the weight itself
        return None
    factors = [
        (layer.scaling[name], layer.lora_B[name].weight.detach().double(), layer.lora_A[name].weight.detach().double())
        for name in active
    ]
    rank = sum(len(a) for _, _, a in factors)
    return torch.stack([scaling * (b @ a) for scaling, b, a in factors]).sum(0), rank


def _by_identity(subject: HuggingFaceSubject, layer: Any, weight: Tensor, path: str) -> Float[Tensor, "out in"]:
    width = weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, width, generator=generator).to(weight.dtype)
    offset = _response(layer, torch.zeros(1, width, dtype=weight.dtype))
    found = (_response(layer, torch.eye(width, dtype=weight.dtype)) - offset).T
    expected = (_response(layer, x) - offset).double()
    error = (x.to(found.device).double() @ found.T.double() - expected).abs().max()
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 3e-2
    if not error <= tolerance * expected.abs().max():
        raise InputError(
            f"{subject.name}: the adapter on {path.rstrip('.')} is not linear in its input, so it has no weight matrix"
        )
    return found


def _response(layer: Any, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
    device = layer.get_base_layer().weight.device
    with torch.no_grad(), exact_products(device), evaluating(layer):
        return layer(x.to(device))


def _inputs(base: nn.Module) -> int:
    return _outputs_first(base, base.get_parameter("weight")).shape[1]


def _outputs_first(module: nn.Module, tensor: Tensor) -> Tensor:
    return tensor.T if tensor.ndim == 2 and _is_conv1d(module) else tensor


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's layer that stores its weight [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _float64(tensor: Tensor) -> Tensor:
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device  # mps has no float64
    return tensor.detach().to(device=device, dtype=torch.float64)


def _refuse_packed(subject: HuggingFaceSubject, block: nn.Module, number: int) -> None:
    buffers = [(name, b) for name, b in block.named_buffers() if b.ndim >= 2 and b.dtype is not torch.bool]
    for name, tensor in [*block.named_parameters(), *buffers]:
        where = f"{subject.name}: block {number}, {name}"
        if tensor.dtype not in FLOATS:
            scheme = subject.facts.get("quantization") or "a low-bit format"
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{where} is packed ({dtype}, {scheme}): its numbers are codes, not weights; give the checkpoint "
                "before quantisation, or one unpacked to float32"
            )
        if tensor.is_meta:
            raise InputError(f"{where} is not in memory (offloaded); load the model without a device map")


def block_tensors(subject: Subject) -> Iterator[tuple[int, str, Tensor]]:
    """Block (from 1), name and effective value, float64, of every parameter as the modules hold it: nothing split.

    Raises InputError as `block_weights` does.
    """
    if not isinstance(subject, HuggingFaceSubject):
        raise InputError(f"{subject.name}: weights can be read of a transformers model only")
    for number, block in enumerate(subject.anatomy.blocks, start=1):
        _refuse_packed(subject, block, number)
        for path, tensor, _ in _effective(subject, block, ""):
            yield number, path, _float64(tensor)
