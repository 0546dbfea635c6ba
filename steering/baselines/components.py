"""The direction in which states with and without the concept vary most: first principal components."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.subject import Subject
from ..preparing import prepare
from ..quadruples import QuadrupleFile
from ..vector import SteeringVector
from .states import States, added, training_states

METHODS = ("pca_diff", "pca_center", "pca_positive")


def fit_pca(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    method: str = "pca_diff",
    norm: str = "largest",
    **options: Any,
) -> SteeringVector:
    """Adds the first principal component at one layer, at the source token; for norm and options see fit_diffmean.

    method: "pca_diff", of the differences of each pair; "pca_center", of the states less the middle of their pair
    (both repeng's: the first takes the mean difference away, as every PCA centres, the second does not);
    "pca_positive", of the states with the concept alone, all edited tokens (AxBench). The sign is that under which
    most pairs have the larger projection on the positive side; of means where that is a tie [reconstructed].
    Raises InputError for another method, and where nothing varies.
    """
    if method not in METHODS:
        raise InputError(f"method '{method}': expected one of {', '.join(METHODS)}")
    data = prepare(subject, quadruples, layer=layer, **options)
    pairs = training_states(data, "last")
    states = training_states(data, "all") if method == "pca_positive" else pairs
    direction = signed(first_component(_rows(states, method)), pairs)
    return added(data, direction, states, method="pca", norm=norm, settings={"method": method})


def fit_lat(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    norm: str = "largest",
    **options: Any,
) -> SteeringVector:
    """Adds the first principal component of differences of random pairs of states with the concept, each of unit norm.

    All edited tokens of x_c + y_c, shuffled (option `seed`) and paired off, so that a state is in one pair at most;
    equal states are left out. The sign as of fit_pca. For norm and options see fit_diffmean. LAT, arXiv 2310.01405, in
    the form of AxBench. Raises InputError as fit_pca does.
    """
    data = prepare(subject, quadruples, layer=layer, **options)
    states = training_states(data, "all")
    rows = unit_differences(states.positive, seed=data.settings["seed"])
    direction = signed(first_component(rows), training_states(data, "last"))
    return added(data, direction, states, method="lat", norm=norm, settings={"n_pairs": len(rows)})


def unit_differences(states: Float[Tensor, "n d"], *, seed: int) -> Float[Tensor, "m d"]:
    """(h_i - h_j) / |h_i - h_j| of n // 2 random pairs of different rows. InputError where all rows are equal."""
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))
    half = len(states) // 2
    difference = states[order[:half]] - states[order[half : 2 * half]]
    length = difference.norm(dim=-1)
    if not bool((length > 0).any()):
        raise InputError(f"{len(states)} states of which no pair differs: nothing to find a direction in")
    return difference[length > 0] / length[length > 0, None]


def first_component(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """The unit direction of largest variance of the rows about their mean; its sign is not fixed.

    InputError where rows do not vary (below 1e-9 of their size).
    """
    centred = rows - rows.mean(0)
    if float(centred.norm()) <= 1e-9 * float(rows.norm()):
        raise InputError(f"{len(rows)} states that do not vary about their mean have no principal component")
    return torch.linalg.svd(centred, full_matrices=False).Vh[0]


def signed(direction: Float[Tensor, "d"], pairs: States) -> Float[Tensor, "d"]:
    """The direction turned so that most pairs project higher on their positive side; on a tie, their mean."""
    steps = (pairs.positive - pairs.negative) @ direction
    votes = int(steps.sign().sum())
    return -direction if (votes or float(steps.sum())) < 0 else direction


def _rows(states: States, method: str) -> Float[Tensor, "n d"]:
    if method == "pca_positive":
        return states.positive
    difference = states.positive - states.negative
    return difference if method == "pca_diff" else torch.cat([difference / 2, -difference / 2])
