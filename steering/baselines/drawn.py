"""A direction drawn at random: the floor that every other vector stands on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...probes.inputs import Source
from ...probes.subject import Subject
from ..model_fit import require_rank
from ..preparing import Prepared, prepare
from ..quadruples import QuadrupleFile
from ..reading import SharedReading
from ..subspace import Subspace
from ..vector import SteeringVector


def random_vector(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    rank: int = 1,
    draw: int = 0,
    **options: Any,
) -> SteeringVector:
    """A clamp along a random orthonormal basis (Gaussian rows) with the factors that `train_cdas` would give it.

    draw: seed of the direction, 0, 1, ...; five are the custom. The option `seed` stays that of the split.
    Of rank 1 with the sign that makes f+ >= f-, as train_cdas. Raises InputError for a rank outside 1 .. d, and as
    preparing.prepare does.
    """
    return random_vectors(subject, quadruples, layer=layer, rank=rank, draws=(draw,), **options)[0]


def random_vectors(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    rank: int = 1,
    draws: Sequence[int] = range(5),
    **options: Any,
) -> list[SteeringVector]:
    """As `random_vector`, one of every draw; the prompts are read once for all."""
    require_rank(rank, subject)
    data = prepare(subject, quadruples, layer=layer, **options)
    if not isinstance(data.read, SharedReading):
        data = replace(data, read=SharedReading(subject, [data.site]))
    return [_drawn(data, rank, draw) for draw in draws]


def _drawn(data: Prepared, rank: int, draw: int) -> SteeringVector:
    generator = torch.Generator().manual_seed(draw)
    subspace = Subspace(torch.randn(rank, data.subject.d_model, generator=generator))  # the same whatever the rows say
    return SteeringVector(
        site=data.site,
        subspace=subspace,
        factors=data.factors(subspace),
        positions=data.positions,
        method="random",
        metadata=replace(data, settings=data.settings | {"draw": draw, "rank": rank}).metadata({}),
    )
