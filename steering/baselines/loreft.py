"""Low-rank affine edits of the prompt, trained on the answers: LoReFT, which has more room than a vector."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import EditPositions, Site, Subject
from ..affine import AffineSteering
from ..descent import required_settings
from ..edits import Affine
from ..encoded import EncodedQuadruple
from ..model_fit import blocks_of, require_rank
from ..positions import Positions, prompt_ends
from ..preparing import prepare
from ..quadruples import QuadrupleFile
from ..subspace import Subspace
from .choices import kept_runs
from .learning import learn, metadata_of
from .objectives import LanguageLoss, Objective


def fit_loreft(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int | Sequence[int],
    rank: int = 4,
    positions: str | Positions = "f5+l5",
    lr: float | int = 9e-4,
    epochs: int = 24,
    batch_size: int = 18,
    grad_clip: float | int = 1.0,
    cache_bytes: float | int = 2e9,
    progress: Progress | None = None,
    **options: Any,
) -> AffineSteering:
    """h + R^T (W h + b - R h) behind each layer, R [rank, d] orthonormal: min of -log pi(y_c | x), nats a token.

    layer: one or several blocks, each with R, W and b of its own. positions: "f5+l5", the first five tokens of the
    prompt behind the prefix and its last five; or as of train_cdas. Starts as the identity (W = R, b = 0), R random;
    R is made orthonormal again after every step [both reconstructed]. Rank, positions, lr and epochs: as AxBench takes
    them. Options and settings: as of fit_ssv. Source: arXiv 2404.03592.
    Raises InputError as train_cdas does, and for layers that are none or named twice. It has no direction: not a
    SteeringVector, but `applied(subject, 1)`, method, metadata, history and notices are as of one.
    """
    rates = required_settings(lr=lr, epochs=epochs, batch_size=batch_size, grad_clip=grad_clip)
    layers = list(blocks_of(layer, subject))
    require_rank(rank, subject)
    named = isinstance(positions, str) and positions[:1] in "fl"
    data = prepare(subject, quadruples, layer=layers[0], positions="all" if named else positions, **options)
    where: EditPositions = prompt_ends(str(positions), int(data.positions.prefix)) if named else data.positions
    sites = [Site(number, data.site.component) for number in layers]
    parts = {site: _start(data.settings["seed"] + site.layer, rank, subject) for site in sites}

    def steering(factors: Tensor | None = None) -> dict[Site, Affine]:
        return {site: Affine(Subspace.orthonormal(r), w, b, where) for site, (r, w, b) in parts.items()}

    def retract() -> None:
        for rotation, _, _ in parts.values():
            rotation.copy_(Subspace(rotation).basis)

    def build(rows: Sequence[EncodedQuadruple]) -> tuple[Objective, list[str]]:
        asked = [(row.negative, row.positive_response) for row in rows]
        runs, told = kept_runs(data, asked, sites[0], where, cache_bytes)
        return LanguageLoss(runs=runs, steering=steering), told

    settings = rates | {"directions": "elicit", "layers": layers, "rank": rank, "positions": str(positions)}
    learned = learn(
        data,
        [part for triple in parts.values() for part in triple],
        build,
        method="loreft",
        settings=settings | {"cache_bytes": cache_bytes},
        retract=retract,
        progress=progress,
    )
    for site, triple in parts.items():
        rotation, weight, bias = (part.detach().cpu().clone() for part in triple)
        parts[site] = (rotation, weight, bias)
    return AffineSteering(
        edits=steering(),
        method="loreft",
        metadata=metadata_of(data, learned, {}),
        history=learned.descent.history(),
    )


def _start(
    seed: int, rank: int, subject: Subject
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k d"], Float[Tensor, "k"]]:
    """R, W, b of an edit that changes nothing: W = R random orthonormal, b = 0; with gradient."""
    generator = torch.Generator().manual_seed(seed)
    rotation = Subspace(torch.randn(rank, subject.d_model, generator=generator)).basis.to(subject.device)
    parts = rotation, rotation.clone(), torch.zeros(rank, device=rotation.device)
    return parts[0].requires_grad_(True), parts[1].requires_grad_(True), parts[2].requires_grad_(True)
