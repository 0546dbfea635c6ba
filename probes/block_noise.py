"""Random weights of a given size on the blocks of a model, for as long as a context lasts: the null of an update."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from .block_weights import block_tensors
from .huggingface import HuggingFaceSubject
from .shards import item_key
from .subject import Subject

MAX_LOST = 0.05  # of a norm, by rounding
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


class NoiseLostError(InputError):
    """The storage format rounds the noise away: it would be smaller than the update it stands for."""


@contextmanager
def noisy_blocks(base: Subject, norms: Mapping[Place, float], *, seed: Sequence[int]) -> Iterator[Subject]:
    """The base with Gaussian noise of the given Frobenius norm on each matrix; put back to the bit afterwards.

    The weights themselves are changed inside the context, and a copy of each is held: nobody else may read the model
    meanwhile. Raises InputError for a carrier without modules, a matrix that is not there, or blocks that share one;
    NoiseLostError where rounding to the storage format takes more than 5 % of the norm away.
    """
    if not isinstance(base, HuggingFaceSubject):
        raise InputError(f"{base.name}: noise can be put on a transformers model only, not on a {type(base).__name__}")
    name = f"{base.name} (noise {seed[-1]})"
    own = base.fingerprints  # before a weight changes
    print_of = item_key("noise", own.combined, sorted(norms.items()), list(seed))
    parameters = [{_own_name(n): p for n, p in block.named_parameters()} for block in base.anatomy.blocks]
    kept: list[tuple[Tensor, Tensor]] = []
    seen: set[int] = set()
    try:
        with torch.no_grad():
            for number, ((block, place), norm) in enumerate(sorted(norms.items())):
                parameter = parameters[block - 1].get(place)
                if parameter is None or id(parameter) in seen:
                    what = "no" if parameter is None else "a shared"
                    raise InputError(f"{base.name}: block {block} has {what} {place}: it can carry no noise of its own")
                seen.add(id(parameter))
                kept.append((parameter, parameter.detach().clone()))
                _add_noise(parameter, kept[-1][1], norm, _seed([*seed, number]), f"block {block}, {place}")
        yield base.under(name, replace(own, weights=print_of, combined=print_of))
    finally:
        _put_back(kept)


def _add_noise(parameter: Tensor, before: Tensor, norm: float, seed: int, where: str) -> None:
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    parameter.add_((noise * (norm / torch.linalg.vector_norm(noise))).to(parameter))
    reached = float(torch.linalg.vector_norm(parameter.double() - before.double()))
    if not abs(reached / norm - 1) < MAX_LOST:
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise NoiseLostError(
            f"{where}: {dtype} rounds noise of norm {norm:.3g} to {reached:.3g}, too little to stand for the update; "
            "load the models in float32"
        )


def _put_back(kept: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Every weight as it was, also where Ctrl-C comes in the middle of it."""
    interrupted: KeyboardInterrupt | None = None
    left = list(kept)
    while left:
        try:
            with torch.no_grad():
                parameter, before = left[-1]
                parameter.copy_(before)
            left.pop()
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def _own_name(name: str) -> str:
    """A parameter's name without the wrappers of an adapter; those of the adapter itself keep theirs."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _seed(parts: Sequence[int]) -> int:
    return int(item_key(*parts)[:15], 16)
