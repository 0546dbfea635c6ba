"""Which states is a direction read off, and how long is the vector that is added? The same for every baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ..preparing import Prepared, edited_tokens
from ..subspace import Subspace
from ..vector import SteeringVector

TOKENS = ("all", "last")
NORMS = ("difference", "largest", "gap", "unit")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class States:
    """Training states with the concept and without it, float64."""

    positive: Float[Tensor, "n d"]
    negative: Float[Tensor, "m d"]


def training_states(data: Prepared, tokens: str) -> States:
    """all: every edited token of the runs x_c + y_c and x + y, as AxBench takes them; last: the source token, paired.

    Raises InputError for another name.
    """
    if tokens not in TOKENS:
        raise InputError(f"tokens '{tokens}': expected one of {', '.join(TOKENS)}")
    if tokens == "last":
        positive, negative = data.source_states()
        return States(positive=positive.double(), negative=negative.double())
    return States(
        positive=_of_runs(data, [(row.positive, row.positive_response) for row in data.train]),
        negative=_of_runs(data, [(row.negative, row.negative_response) for row in data.train]),
    )


def _of_runs(data: Prepared, runs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Float[Tensor, "n d"]:
    at = [edited_tokens(data.positions, len(prompt) + len(response), len(prompt)) for prompt, response in runs]
    read = data.read(data.subject, data.site, [prompt + response for prompt, response in runs], at)
    found = torch.cat([states for states, _ in read]).cpu().double()
    if not len(found):
        raise InputError(f"no token that {data.positions} edits in {len(runs)} runs")
    return found


def added(
    data: Prepared,
    direction: Float[Tensor, "d"],
    states: States,
    *,
    method: str,
    norm: str,
    settings: dict[str, Any],
    notices: Sequence[str] = (),
) -> SteeringVector:
    """The vector that adds `direction`: as it is (difference), of unit norm, times A (largest), or times f+ - f- (gap).

    A: the largest projection of a training state with the concept. f+, f-: the factors of a clamp along it, which the
    vector has too. Raises InputError for another norm, a direction of zeros, and where A or the gap is not above 0.
    """
    if norm not in NORMS:
        raise InputError(f"norm '{norm}': expected one of {', '.join(NORMS)}")
    length = float(direction.norm())
    if length == 0:
        raise InputError(f"{method}: the direction is zero: states with and without the concept do not differ")
    unit = direction.double() / length
    largest = float((states.positive @ unit).max())
    if norm == "largest" and largest <= 0:
        raise InputError(
            f"{method}: no training state projects above 0 (largest: {largest:.3g}), so that A gives no length; use "
            "norm='gap', the distance between the means of prompts with and without the concept"
        )
    factors = data.factors(Subspace(unit.float()))
    gap = float(factors.positive - factors.negative)
    if norm == "gap" and gap <= 0:
        raise InputError(f"{method}: prompts with the concept do not lie further along it (f+ - f- = {gap:.3g})")
    size = {"difference": length, "largest": largest, "gap": gap, "unit": 1.0}[norm]
    data.settings.update(settings | {"norm": norm})
    n_states = [len(states.positive), len(states.negative)]
    metrics = {"length": length, "largest_projection": largest, "n_states": n_states}
    vector = (size * unit).float()
    return SteeringVector.adding(
        vector,
        data.site,
        factors=factors,
        positions=data.positions,
        method=method,
        metadata=data.metadata(metrics, notices),
    )
