"""How is a baseline trained? One loop for all: rows in shuffled batches, a strength for each, a held-out curve."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...probes.block_gradients import flowing_to
from ...probes.shards import Progress, detailed
from ..descent import Descent, descend
from ..encoded import EncodedQuadruple
from ..preparing import Prepared, one_way
from ..subspace import Subspace
from ..training import shuffled_batches
from ..vector import SteeringVector
from .choices import PASS_ROWS
from .objectives import Objective

Build = Callable[[Sequence[EncodedQuadruple]], tuple[Objective, list[str]]]  # rows -> what to minimise, and notices


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What came of the training apart from the parameters themselves."""

    descent: Descent
    held_out: list[dict[str, float | int]]  # loss of each direction, before the first step and after every epoch
    told: list[str]


def learn(
    data: Prepared,
    parameters: Sequence[Tensor],
    build: Build,
    *,
    method: str,
    settings: dict[str, Any],
    factors: Sequence[float | int] = (1.0,),
    retract: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Train the parameters on the training rows; every direction of the objective weighs the same.

    settings: lr, epochs, batch_size, grad_clip, and what else the vector is to say of its making. factors: of which
    each row gets one, drawn anew at every step; held-out rows get them in turn. The model is left as found.
    """
    data.settings.update(settings)
    seed = data.settings["seed"]
    draw = torch.Generator().manual_seed(seed)
    levels = torch.tensor(factors, dtype=torch.float32)
    batches = shuffled_batches(
        len(data.train), epochs=settings["epochs"], size=settings["batch_size"], seed=seed, both=False
    )
    an_epoch = len(batches) // settings["epochs"]
    curve: list[dict[str, float | int]] = []
    with flowing_to(data.subject, parameters):  # LoRA's are the model's own
        train, told = build(data.train)
        held, of_held = build(data.held) if data.held else (None, [])

        def terms(rows: Tensor) -> Iterator[Tensor]:
            drawn = levels[torch.randint(len(levels), (len(rows),), generator=draw)]
            for values in train.losses(rows.tolist(), drawn):
                yield values.mean() / len(train.directions)

        def observe(step: int) -> None:
            if held is not None and step % an_epoch == 0:
                curve.append({"step": step, **mean_losses(held, len(data.held), levels)})

        descent = descend(
            parameters,
            terms,
            batches,
            lr=settings["lr"],
            grad_clip=settings["grad_clip"],
            stage=f"{method} fit",
            retract=retract,
            observe=observe,
            progress=None if progress is None else detailed(progress, partial(_text, curve)),
        )
    return Learned(descent=descent, held_out=curve, told=[*told, *(f"rows held out: {one}" for one in of_held)])


def _text(curve: Sequence[Mapping[str, float | int]]) -> str:
    """The last held-out losses beside the first, for a line of progress."""
    ways = [name for name in curve[-1] if name != "step"] if curve else []
    parts = (f"{curve[-1][way]:.3g} (at first {curve[0][way]:.3g}, {way})" for way in ways)
    return f"held out {', '.join(parts)}" if ways else ""


@torch.no_grad()
def mean_losses(objective: Objective, n: int, levels: Float[Tensor, "k"]) -> dict[str, float]:
    """The mean loss of each direction over n rows, row i at strength i mod k."""
    found: list[list[Tensor]] = []
    for rows in torch.arange(n).split(PASS_ROWS):
        found.append(list(objective.losses(rows.tolist(), levels[rows % len(levels)])))
    sides = zip(*found, strict=True)
    return {name: float(torch.cat(side).mean()) for name, side in zip(objective.directions, sides, strict=True)}


def start_of(data: Prepared, spread: float | int = 0.0) -> Float[Tensor, "d"]:
    """Where a vector starts: zeros, or uniform in +- spread; float32, on the subject's device, with gradient."""
    generator = torch.Generator().manual_seed(data.settings["seed"])
    drawn = (2 * torch.rand(data.subject.d_model, generator=generator) - 1) * spread
    return drawn.to(data.subject.device).requires_grad_(True)


def learned_vector(
    data: Prepared, v: Float[Tensor, "d"], learned: Learned, *, method: str, notices: Sequence[str] = ()
) -> SteeringVector:
    """The vector that adds v; its factors are those of a clamp along it. InputError where v is still zero."""
    vector = v.detach().float().cpu().clone()
    length = float(vector.norm())
    if length == 0:
        raise InputError(f"{method}: the vector is zero after training: no response depends on the edited tokens")
    return SteeringVector.adding(
        vector,
        data.site,
        factors=data.factors(Subspace(vector)),
        positions=data.positions,
        method=method,
        metadata=metadata_of(data, learned, {"length": length}, notices),
        history=learned.descent.history(),
    )


def metadata_of(
    data: Prepared, learned: Learned, metrics: dict[str, Any], notices: Sequence[str] = ()
) -> dict[str, Any]:
    """As of train_cdas: settings, sha256, fingerprint, the held-out curve, notices."""
    told = (*learned.told, *one_way(data.settings["directions"]), *notices)
    return data.metadata({"held_out": learned.held_out, **metrics}, told)
