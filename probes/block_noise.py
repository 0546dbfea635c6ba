"""Random weights of a given size on the blocks of a model, for as long as a context lasts: the null of an update."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import InputError
from .block_weights import block_tensors
from .huggingface import HuggingFaceSubject
from .shards import item_key
from .subject import Subject

Place = tuple[int, str]  # block from 1, name of the parameter inside it


def changed_blocks(base: Subject, aligned: Subject) -> dict[Place, float]:
    """Frobenius norm of aligned minus base of every matrix of every block, those that did not change left out.

    Adapters count as what they add to the weight. Raises InputError where the blocks do not hold the same matrices.
    """
    norms: dict[Place, float] = {}
    pairs = zip(block_tensors(base), block_tensors(aligned), strict=True)
    try:
        for (block, name, first), (other_block, other_name, second) in pairs:
            if (block, name, first.shape) != (other_block, other_name, second.shape):
                raise InputError(
                    f"block {block}, {name} {tuple(first.shape)} of {base.name} has no counterpart in {aligned.name} "
                    f"(block {other_block}, {other_name} {tuple(second.shape)})"
                )
            norm = float(torch.linalg.vector_norm(second.to(first.device) - first)) if first.ndim > 1 else 0.0
            if norm > 0:
                norms[block, name] = norm
    except ValueError as error:  # zip: one model has more of them
        if isinstance(error, InputError):
            raise
        raise InputError(f"the blocks of {base.name} and {aligned.name} do not hold the same weights") from error
    return norms


@contextmanager
def noisy_blocks(base: Subject, norms: Mapping[Place, float], *, seed: Sequence[int]) -> Iterator[Subject]:
    """The base with Gaussian noise of the given Frobenius norm on each matrix; put back to the bit afterwards.

    The weights themselves are changed inside the context, and a copy of each is held: nobody else may read the model
    meanwhile. Raises InputError for a carrier without modules, or a matrix that is not there.
    """
    if not isinstance(base, HuggingFaceSubject):
        raise InputError(f"{base.name}: noise can be put on a transformers model only, not on a {type(base).__name__}")
    parameters = [{_own_name(n): p for n, p in block.named_parameters()} for block in base.anatomy.blocks]
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for number, ((block, name), norm) in enumerate(sorted(norms.items())):
                parameter = parameters[block - 1].get(name)
                if parameter is None:
                    raise InputError(f"{base.name}: block {block} has no {name} to put noise on")
                generator = torch.Generator().manual_seed(_seed([*seed, number]))
                noise = torch.randn(parameter.shape, generator=generator)
                kept.append((parameter, parameter.detach().clone()))
                parameter.add_((noise * (norm / torch.linalg.vector_norm(noise))).to(parameter))
        name = f"{base.name} (noise {seed[-1]})"
        yield base.under(name, item_key("noise", base.fingerprint, sorted(norms.items()), list(seed)))
    finally:
        with torch.no_grad():
            for changed, before in kept:
                changed.copy_(before)


def _own_name(name: str) -> str:
    """A parameter's name without the wrappers of an adapter; those of the adapter itself keep theirs."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _seed(parts: Sequence[int]) -> int:
    return int(item_key(*parts)[:15], 16)
