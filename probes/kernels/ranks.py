"""Over how many directions does a spectrum spread? Several answers to one question; say which you print.

All take singular values s >= 0 (not eigenvalues) and are 1 for one direction, k for k equal ones; no unit.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """How many directions a spectrum spreads over: exp of the entropy of p_i = s_i / sum(s).

    From 1 (one direction) to k (all equal); no unit. Roy and Vetterli 2007.
    A spectrum of zeros has no effective rank: nan, which a report shows as null with a reason.

    >>> effective_rank(torch.tensor([2.0, 2.0, 2.0, 2.0])).item()
    4.0
    """
    s = _checked(singular_values)  # [..., k]; float32 loses the tail of a steep spectrum
    p = s / s.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp()  # entr(0) = 0: no epsilon, which would bias small ranks


def rankme(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """RankMe (arXiv 2210.02885): the effective rank of a matrix of activations, without the paper's 1e-7 in the log."""
    return effective_rank(singular_values)


def spectral_entropy_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """exp of the entropy of the shares of variance, w_i = s_i^2 / sum(s^2); in [1, k], below `rankme`."""
    return effective_rank(_checked(singular_values) ** 2)


def participation_ratio(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """(sum lambda)^2 / sum lambda^2 with lambda = s^2; in [1, k]; nan for a spectrum of zeros."""
    eigenvalues = _normalised(singular_values) ** 2
    return eigenvalues.sum(-1) ** 2 / (eigenvalues**2).sum(-1)


def stable_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """sum lambda / lambda_1 with lambda = s^2: squared Frobenius over squared spectral norm; in [1, k]; zeros: nan."""
    return (_normalised(singular_values) ** 2).sum(-1)


def _checked(singular_values: Tensor) -> Tensor:
    if singular_values.ndim == 0 or singular_values.shape[-1] == 0:
        raise ValueError(f"singular values are [..., k] with k >= 1, got shape {tuple(singular_values.shape)}")
    if (singular_values < 0).any():
        raise ValueError(f"singular values are >= 0, got {singular_values.min():.3g}; pass s, not eigenvalues")
    return singular_values.double()


def _normalised(singular_values: Tensor) -> Tensor:
    """s / s_1: squares and fourth powers of a spectrum near 1e-80 would vanish."""
    s = _checked(singular_values)
    return s / s.amax(-1, keepdim=True)
