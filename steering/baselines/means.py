"""The difference of two means, to add or to take out: CAA, DIM, and directional ablation."""

from dataclasses import replace
from typing import Any

from ...probes.inputs import Source
from ...probes.subject import Site, Subject
from ..preparing import prepare
from ..quadruples import QuadrupleFile
from ..sets import SteeringSet
from ..vector import SteeringVector
from .states import added, training_states


def fit_diffmean(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    tokens: str = "all",
    norm: str = "difference",
    **options: Any,
) -> SteeringVector:
    """Adds mean(h with the concept) - mean(h without it) [d] at the layer, in the units of h.

    tokens: "all" edited tokens of x_c + y_c against those of x + y (AxBench), or "last", the source token of x_c
    against that of x (CAA). norm: the full "difference"; "unit", or of unit norm times A ("largest"), the largest
    projection of a training state with the concept, or times f+ - f- ("gap") [reconstructed]. options: of
    preparing.prepare, as train_cdas takes them.
    Raises InputError as prepare does, for unknown names and means that are equal. Formulas from code (AxBench).
    """
    data = prepare(subject, quadruples, layer=layer, **options)
    states = training_states(data, tokens)
    difference = states.positive.mean(0) - states.negative.mean(0)
    return added(data, difference, states, method="diffmean", norm=norm, settings={"tokens": tokens})


def ablation(
    subject: Subject, quadruples: Source | QuadrupleFile, *, layer: int, tokens: str = "all", **options: Any
) -> SteeringVector:
    """Takes the direction of `fit_diffmean` out of the states at its layer: h - (h w) w; strength 0 or 1.

    `everywhere` takes it out at every layer. Raises InputError as fit_diffmean does.
    """
    found = fit_diffmean(subject, quadruples, layer=layer, tokens=tokens, norm="unit", **options)
    return replace(found, edit="ablate", vector=None, method="ablate")


def everywhere(vector: SteeringVector, subject: Subject) -> SteeringSet:
    """The same vector behind every block of the subject: directional ablation, arXiv 2406.11717."""
    sites = [Site(layer, vector.site.component) for layer in range(subject.n_layers)]
    return SteeringSet([replace(vector, site=site) for site in sites])
