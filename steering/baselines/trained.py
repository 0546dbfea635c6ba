"""Vectors to add that gradients find: for an answer (SSV, Lang), or for one answer over another (BiPO, RePS)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..descent import required_settings
from ..edits import Add, Clamp
from ..encoded import DIRECTIONS, EncodedQuadruple
from ..preparing import Prepared, prepare
from ..quadruples import QuadrupleFile
from ..runs import Edits
from ..subspace import Subspace
from ..vector import SteeringVector
from .choices import kept_runs, preference_pairs
from .learning import learn, learned_vector, start_of
from .objectives import BidirectionalPreference, LanguageLoss, Objective, ReferenceFreePreference

FACTORS = tuple(range(2, 21, 2))  # strengths that Lang and RePS are trained at
BELOW = f"trained at strengths {FACTORS[0]} to {FACTORS[-1]}: strength 1 lies below them, so sweep it"


def fit_ssv(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    lang: bool = False,
    lr: float | int = 0.04,
    epochs: int = 18,
    batch_size: int = 8,
    grad_clip: float | int = 1.0,
    cache_bytes: float | int = 2e9,
    progress: Progress | None = None,
    **options: Any,
) -> SteeringVector:
    """Adds the v [d] under which y_c is likeliest behind x: min over v of -log pi(y_c | x; h + v), nats a token.

    lang: h + a v with a drawn from {2, 4, ..., 20} for every row and step, v of any length (AxBench's Lang). Starts at
    zero. options: of preparing.prepare; settings: as of train_cdas, whose steps these are; lr and epochs are
    reconstructed. metadata["metrics"]["held_out"] has the loss of the rows held out, epoch by epoch.
    Raises InputError as train_cdas does. Formulas from code (AxBench, arXiv 2501.17148).
    """
    rates = required_settings(lr=lr, epochs=epochs, batch_size=batch_size, grad_clip=grad_clip)
    data = prepare(subject, quadruples, layer=layer, **options)
    v = start_of(data)
    method = "lang" if lang else "ssv"

    def build(rows: Sequence[EncodedQuadruple]) -> tuple[Objective, list[str]]:
        asked = [(row.negative, row.positive_response) for row in rows]
        runs, told = kept_runs(data, asked, data.site, data.positions, cache_bytes)
        return LanguageLoss(runs=runs, steering=partial(_adding, data, v)), told

    settings = rates | {"directions": "elicit", "cache_bytes": cache_bytes, "factors": list(FACTORS) if lang else [1]}
    learned = learn(
        data, [v], build, method=method, settings=settings, factors=FACTORS if lang else (1,), progress=progress
    )
    return learned_vector(data, v, learned, method=method, notices=(BELOW,) if lang else ())


def fit_bipo(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    beta: float | int = 0.1,
    lr: float | int = 0.04,
    epochs: int = 12,
    batch_size: int = 8,
    grad_clip: float | int = 1.0,
    cache_bytes: float | int = 2e9,
    progress: Progress | None = None,
    **options: Any,
) -> SteeringVector:
    """Adds the v [d] that makes y_c preferred to y behind x, and -v the other way round: DPO both ways, half each.

    -log sigmoid(beta (d(y_c) - d(y))) under h + v, and with y_c and y exchanged under h - v; d = log pi of the steered
    model less that of the unsteered one, summed. Starts at zero, where the loss is log 2. beta: as released. For
    the rest see fit_ssv. InputError for a beta that is no number above 0. Source: BiPO, arXiv 2406.00045.
    """
    rates = required_settings(lr=lr, epochs=epochs, batch_size=batch_size, grad_clip=grad_clip)
    if not 0 < beta < float("inf"):
        raise InputError(f"beta={beta}: expected a number above 0")
    data = prepare(subject, quadruples, layer=layer, **options)
    v = start_of(data)

    def build(rows: Sequence[EncodedQuadruple]) -> tuple[Objective, list[str]]:
        found, told = preference_pairs(data, rows, ["elicit"], cache_bytes)
        return BidirectionalPreference(choices=found["elicit"], steering=partial(_adding, data, v), beta=beta), told

    settings = rates | {"directions": "both", "beta": beta, "cache_bytes": cache_bytes, "factors": [1]}
    learned = learn(data, [v], build, method="bipo", settings=settings, progress=progress)
    return learned_vector(data, v, learned, method="bipo")


def fit_reps(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    directions: str = "both",
    lr: float | int = 0.04,
    epochs: int = 18,
    batch_size: int = 8,
    grad_clip: float | int = 1.0,
    cache_bytes: float | int = 2e9,
    progress: Progress | None = None,
    **options: Any,
) -> SteeringVector:
    """Adds the v [d] of RePS, arXiv 2505.20809: y_c over y where v is added, y over y_c where it is taken out.

    elicit, behind x under h + a v, a drawn from {2, 4, ..., 20} for every row and step: see `reps_loss`, y_c wanted;
    suppress, behind x_c under h - ReLU(h v) / |v|^2 v: the same, y wanted. Both weigh half, or one of them alone.
    Reference log-probabilities are the unsteered model's. The released code draws a for each response, here both have
    one; starts uniform in +-1/sqrt(d), as released. Suppress with negative strengths, elicit with some 2 to 20.
    For the rest see fit_ssv.
    """
    rates = required_settings(lr=lr, epochs=epochs, batch_size=batch_size, grad_clip=grad_clip)
    if directions not in DIRECTIONS:
        raise InputError(f"directions '{directions}': expected one of {', '.join(DIRECTIONS)}")
    data = prepare(subject, quadruples, layer=layer, **options)
    v = start_of(data, spread=subject.d_model**-0.5)
    names = DIRECTIONS[1:] if directions == "both" else (directions,)

    def build(rows: Sequence[EncodedQuadruple]) -> tuple[Objective, list[str]]:
        found, told = preference_pairs(data, rows, names, cache_bytes)
        steering, removing = partial(_adding, data, v), partial(_removing, data, v)
        return ReferenceFreePreference(choices=found, steering=steering, removing=removing), told

    settings = rates | {"directions": directions, "cache_bytes": cache_bytes, "factors": list(FACTORS)}
    learned = learn(data, [v], build, method="reps", settings=settings, factors=FACTORS, progress=progress)
    return learned_vector(data, v, learned, method="reps", notices=() if directions == "suppress" else (BELOW,))


def _adding(data: Prepared, v: Tensor, strengths: Tensor) -> Edits:
    """h + a v, a [B] a run."""
    return {data.site: Add(v, strengths, data.positions)}


def _removing(data: Prepared, v: Tensor) -> Edits:
    """h - ReLU(h v) / |v|^2 v: what points along v is lowered to 0."""
    unit = Subspace.orthonormal((v / v.norm())[None])
    return {data.site: Clamp(unit, torch.zeros(1), "max", data.positions)}
