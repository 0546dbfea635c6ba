"""What all foreign formats have in common: one vector to add per layer, behind the block. What does that lose?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...probes.subject import Site
from ..files import FORMAT, KEY, header_fields
from ..header_kinds import require_keys, require_kinds
from ..positions import Positions
from ..vector import SteeringVector

Directions = Mapping[int, Float[Tensor, "d"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A file for another tool, and in words what it does not hold; empty where nothing was lost."""

    path: Path
    lost: tuple[str, ...]

    def summary(self) -> str:
        return f"{self.path}: {'; '.join(self.lost) if self.lost else 'nothing was lost'}."


def direction(vector: SteeringVector) -> Float[Tensor, "d"]:
    """The vector that is added at coefficient 1: that of an add, (f+ - f-) w of a clamp; float32.

    Raises InputError for a clamp of a higher rank, an ablation, and another component than resid_post.
    """
    if vector.site.component != "resid_post":
        raise InputError(f"site {vector.site}: the format knows residuals behind a block only (resid_post)")
    if vector.vector is not None:
        return vector.vector.detach().float().cpu()
    if vector.edit != "clamp" or vector.factors is None:
        raise InputError(f"an {vector.edit} is no vector to add, and the format holds nothing else")
    if vector.subspace.rank != 1:
        raise InputError(f"a clamp of rank {vector.subspace.rank}: only one of rank 1 has an additive approximation")
    difference = vector.factors.positive - vector.factors.negative
    return (difference * vector.subspace.basis[0]).detach().float().cpu()


def directions(vectors: Sequence[SteeringVector]) -> dict[int, Float[Tensor, "d"]]:
    """Layer -> vector to add; InputError for two vectors at one layer."""
    found: dict[int, Tensor] = {}
    for vector in vectors:
        if vector.site.layer in found:
            raise InputError(f"layer {vector.site.layer}: two vectors, and the format holds one a layer")
        found[vector.site.layer] = direction(vector)
    return found


def losses(vector: SteeringVector, *, everywhere: bool = True, metadata: bool = True) -> list[str]:
    """What the format does not hold. everywhere: it adds at all positions; metadata: it keeps our JSON."""
    lost = []
    if vector.edit == "clamp":
        lost.append(
            "a clamp became an addition: (f+ - f-) w moves the negative mean to the positive mean at coefficient 1, "
            "whatever the state was"
        )
    if everywhere and vector.positions != Positions():
        lost.append(f"positions: added at every position, not at {vector.positions.to_dict()}")
    if not metadata:
        lost.append("method, settings and the model's fingerprint are not in the file")
    return lost


def own_headers(content: object, where: Path) -> dict[int, dict[str, Any]]:
    """Layer -> our own JSON, of what a file has of it: {"layer": header}, or nothing. InputError for anything else."""
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(
        str(layer).isdecimal() and isinstance(header, dict) for layer, header in content.items()
    ):
        raise InputError(f"{where}: its '{KEY}' part is {content!r:.60}, expected {{layer: header}}; write it again")
    return {int(layer): header for layer, header in content.items()}


def added(
    found: Mapping[int, Tensor], headers: Mapping[int, Mapping[str, Any]], where: Path, **metadata: Any
) -> list[SteeringVector]:
    """Vectors to add from layer -> direction; `headers`: our own JSON by layer, of a file that we wrote.

    Raises InputError, naming file and layer, for a direction that is not finite, zero or no vector.
    """
    vectors = []
    for layer, values in sorted(found.items()):
        if values.ndim != 1 or not values.is_floating_point() or not torch.isfinite(values).all() or not values.any():
            raise InputError(f"{where}, layer {layer}: not a direction (expected finite numbers [d], not all 0)")
        header = headers.get(layer, {})
        own_header = header if header.get("format") == FORMAT else {}
        require_kinds(own_header, f"{where}, layer {layer}")
        if own_header:
            require_keys(own_header, f"{where}, layer {layer}")
        try:
            fields = header_fields(own_header) if own_header else {}
            made = fields.pop("edit", "add")  # of another tool's own file there is no header
            own = {**metadata, **fields.pop("metadata", {})} | ({"exported_from": made} if made != "add" else {})
            vectors.append(SteeringVector.adding(values.clone(), Site(layer), metadata=own, **fields))
        except ValueError as error:
            raise InputError(f"{where}, layer {layer}: {error}") from error
    if not vectors:
        raise InputError(f"{where}: holds no direction")
    return vectors
