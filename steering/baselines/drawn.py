"""A direction drawn at random: the floor that every other vector stands on."""

from typing import Any

import torch

from ...probes.inputs import Source
from ...probes.subject import Subject
from ..preparing import prepare
from ..quadruples import QuadrupleFile
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
    Raises InputError as preparing.prepare does; ValueError for a rank outside 1 .. d.
    """
    data = prepare(subject, quadruples, layer=layer, **options)
    generator = torch.Generator().manual_seed(draw)
    subspace = Subspace(torch.randn(rank, subject.d_model, generator=generator))
    data.settings.update(draw=draw, rank=rank)
    return SteeringVector(
        site=data.site,
        subspace=subspace,
        factors=data.factors(subspace),
        positions=data.positions,
        method="random",
        metadata=data.metadata({}),
    )
