"""Do the coordinates of prompts with the concept stand apart from those without? Factors as measured, AUROC."""

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from .factors import Factors
from .subspace import Subspace


def auroc(positive: Float[Tensor, "n"], negative: Float[Tensor, "m"]) -> float:
    """P(a positive value is above a negative one), ties half; in [0, 1]. ValueError where a side is empty.

    >>> f"{auroc(torch.tensor([3.0, 2.0, 2.0]), torch.tensor([2.0, 1.0])):.4f}"
    '0.8333'
    """
    n, m = len(positive), len(negative)
    if not (n and m):
        raise ValueError(f"an AUROC of {n} positive and {m} negative values: expected at least one of each")
    ranks = rankdata(torch.cat([positive, negative]).double().numpy())
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def oriented(subspace: Subspace, factors: Factors) -> tuple[Subspace, Factors]:
    """The same clamp with f+ >= f- along w [reconstructed]; of rank above 1, where no order is meant, as it is.

    A fit finds w up to its sign, and mode "min" or "max" raises or lowers along it: towards f+ for any seed this way.
    """
    if subspace.rank > 1 or bool(factors.positive >= factors.negative):
        return subspace, factors
    return Subspace.orthonormal(0.0 - subspace.basis), factors.negated()


def measured_factors(
    subspace: Subspace,
    positive: Float[Tensor, "n d"],
    negative: Float[Tensor, "n2 d"],
    held_positive: Float[Tensor, "m d"],
    held_negative: Float[Tensor, "m2 d"],
) -> Factors:
    """Mean coordinates of the states of training prompts, f+ and f-, with their standard deviations (of n - 1).

    AUROC of rank 1, on held-out prompts; None where there are none. std is None of a single prompt.
    """
    ours = [subspace.project(states.double()) for states in (positive, negative)]
    held = [subspace.project(states.double())[:, 0] for states in (held_positive, held_negative)]
    measured = subspace.rank == 1 and all(len(values) for values in held)
    return Factors(
        positive=ours[0].mean(0).float(),
        negative=ours[1].mean(0).float(),
        std=torch.stack([side.std(0) for side in ours]).float() if len(positive) > 1 else None,
        n=len(positive),
        auroc=auroc(*held) if measured else None,
    )
