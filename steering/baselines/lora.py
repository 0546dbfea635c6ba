"""A low-rank change of weights, trained on the answers through PEFT: LoRA, the reference point that is no edit."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Site, Subject
from ..descent import required_settings
from ..encoded import EncodedQuadruple
from ..lora import LoraSteering, linear_layers, wearing
from ..model_fit import blocks_of, require_rank
from ..positions import Positions
from ..preparing import prepare
from ..quadruples import QuadrupleFile
from ..runs import Edits
from .choices import kept_runs
from .learning import learn, metadata_of
from .objectives import LanguageLoss, Objective

EDITS_ONLY = ("component", "positions", "prefix")  # options of edits of hidden states


def fit_lora(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int | Sequence[int],
    rank: int = 4,
    alpha: float | int = 8,
    lr: float | int = 9e-4,
    epochs: int = 24,
    batch_size: int = 18,
    grad_clip: float | int = 1.0,
    cache_bytes: float | int = 2e9,
    progress: Progress | None = None,
    **options: Any,
) -> LoraSteering:
    """W + (alpha / rank) B A in every linear layer of blocks: min of -log pi(y_c | x) over A and B, nats a token.

    layer: one or several blocks. It acts at every token, so options are fit_ssv's but for EDITS_ONLY. A starts
    random from `seed`, B at zero, so nothing is changed before the first step. All settings are reconstructed: rank,
    lr, epochs and batch_size are fit_loreft's. Source: LoRA, arXiv 2106.09685, through the library peft.
    Raises InputError as train_cdas does, for layers that are none or named twice, an alpha that is no number above 0,
    and for a model that has an adapter. It has no direction: not a SteeringVector, but `applied(subject, strength)`,
    method, metadata, history and notices are as of one, and `save` writes an adapter of PEFT.
    """
    rates = required_settings(lr=lr, epochs=epochs, batch_size=batch_size, grad_clip=grad_clip)
    layers = blocks_of(layer, subject)
    if not isinstance(alpha, Real) or not 0 < alpha < float("inf"):
        raise InputError(f"alpha={alpha}: expected a number above 0")
    if given := [name for name in EDITS_ONLY if name in options]:
        raise InputError(f"{', '.join(given)}: LoRA changes weights, which act at every token of whole blocks")
    require_rank(rank, subject)
    names = linear_layers(subject, layers)
    data = prepare(subject, quadruples, layer=layers[0], positions="all", **options)

    def unedited(factors: Tensor) -> Edits:
        return {}  # the model itself is changed

    def build(rows: Sequence[EncodedQuadruple]) -> tuple[Objective, list[str]]:
        asked = [(row.negative, row.positive_response) for row in rows]
        runs, told = kept_runs(data, asked, Site(layers[0], "resid_pre"), Positions(), cache_bytes)
        return LanguageLoss(runs=runs, steering=unedited), told

    settings = rates | {"directions": "elicit", "layers": list(layers), "rank": rank, "alpha": alpha}
    with wearing(subject, names, rank=rank, alpha=float(alpha), seed=data.settings["seed"]) as worn:
        learned = learn(
            data,
            [part for pair in worn.values() for part in pair],
            build,
            method="lora",
            settings=settings | {"cache_bytes": cache_bytes},
            progress=progress,
        )
        weights = {name: (a.detach().cpu().clone(), b.detach().cpu().clone()) for name, (a, b) in worn.items()}
    return LoraSteering(
        weights=weights,
        layers=layers,
        alpha=float(alpha),
        metadata=metadata_of(data, learned, {}, packed_weights(subject, layers)),
        history=learned.descent.history(),
    )


def packed_weights(subject: Subject, layers: Sequence[int]) -> list[str]:
    """A notice where a block holds weights of three axes, as experts of a mixture are: no linear layer has them."""
    anatomy: Any = getattr(subject, "anatomy")  # noqa: B009  linear_layers has refused carriers without one
    names = [
        f"block {layer}: {name}"
        for layer in layers
        for name, parameter in anatomy.blocks[layer].named_parameters()
        if parameter.ndim > 2
    ]
    return [f"weights of no linear layer are left as they are ({'; '.join(names)})"] if names else []
