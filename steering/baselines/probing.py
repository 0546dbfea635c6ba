"""The direction by which a linear classifier tells states with the concept from those without."""

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

STEPS = 1000


def fit_probe(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    tokens: str = "all",
    l1: float | int = 1e-3,
    norm: str = "largest",
    **options: Any,
) -> SteeringVector:
    """Adds the weight of a logistic regression on token states, of unit norm times A; see fit_diffmean for the rest.

    l1: penalty, see `logistic_weight` [reconstructed; AxBench trains by steps of Adam]. InputError for l1 below 0, and
    for one that leaves no weight.
    """
    if l1 < 0:
        raise InputError(f"l1={l1}: expected 0 or more")
    data = prepare(subject, quadruples, layer=layer, **options)
    states = training_states(data, tokens)
    weight, shrink = logistic_weight(states, l1=l1)
    if not weight.any() and (least := least_l1(states)) > 0:
        raise InputError(f"l1={l1}: from {least:.3g} on the penalty keeps every weight of the probe at 0; lower it")
    notices = () if shrink <= 1e-4 else (f"the probe was still moving when it was stopped ({shrink:.2g} a step)",)
    settings = {"tokens": tokens, "l1": l1}
    return added(data, weight, states, method="probe", norm=norm, settings=settings, notices=notices)


def logistic_weight(states: States, *, l1: float | int, steps: int = STEPS) -> tuple[Float[Tensor, "d"], float]:
    """w of min over w, b of mean BCE(sigmoid(w (h - m) / s + b)) + l1 |w|_1, in the units of 1 / h; and |last step|.

    m: mean state, s: root mean square length of h - m over sqrt(d), which makes l1 free of the scale of the model. Both
    classes weigh half. Accelerated proximal gradient (FISTA) with restarts, float64. The last step is relative to |w|.
    """
    h, spread = _centred(states)
    x = torch.cat([h / spread, torch.ones(len(h), 1, dtype=h.dtype)], dim=1)  # the last weight is b
    sizes = len(states.positive), len(states.negative)
    y = torch.cat([torch.ones(sizes[0]), torch.zeros(sizes[1])]).to(h)
    share = torch.cat([torch.full((n,), 0.5 / n, dtype=h.dtype) for n in sizes])
    rate = 4 / float(torch.linalg.matrix_norm(x * share.sqrt()[:, None], ord=2)) ** 2  # 1 / Lipschitz constant
    w = ahead = torch.zeros(x.shape[1], dtype=h.dtype)
    momentum, moved = 1.0, 0.0
    for _ in range(steps):
        new = ahead - rate * (x.T @ (share * ((x @ ahead).sigmoid() - y)))
        new[:-1] = new[:-1].sign() * (new[:-1].abs() - rate * l1).clamp(min=0)
        if float((ahead - new) @ (new - w)) > 0:
            momentum = 1.0  # it overshoots: begin anew
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * (new - w)
        moved = float((new - w).norm() / new.norm().clamp(min=1e-30))
        w, momentum = new, following
        if moved < 1e-9:
            break
    return w[:-1] / spread, moved


def least_l1(states: States) -> float:
    """The least penalty that keeps w of `logistic_weight` at 0: max |mean positive - mean negative| / (4 s).

    The largest slope of the mean BCE at w = b = 0, where both classes are predicted at 1/2.
    """
    difference = states.positive.mean(0) - states.negative.mean(0)
    return float(difference.abs().max() / (4 * _centred(states)[1]))


def _centred(states: States) -> tuple[Tensor, Tensor]:
    """h - m [n, d], positive states first, and s."""
    h = torch.cat([states.positive, states.negative])
    centred = h - h.mean(0)
    spread = centred.square().mean().sqrt()
    if float(spread) == 0:
        raise InputError(f"{len(h)} equal states: nothing to tell apart")
    return centred, spread
