"""How alike are two completions to a model? CHES from sums of hidden states, for the pair table and for arrays at hand.

Razin et al., arXiv 2410.08847: the centred hidden embedding similarity. High = risk that training lowers chosen too.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ches:
    """CHES of every pair, in squared units of the hidden states; no pair index where one pair came in."""

    value: Float64[np.ndarray, "*batch"]  # <S+, S-> - |S+|^2, S summed over scored positions
    normalised: Float64[np.ndarray, "*batch"]  # the same of means: <S+, S->/(n+ n-) - |S+|^2/n+^2


def ches_of_sums(
    chosen: Float64[np.ndarray, "*batch d"],
    rejected: Float64[np.ndarray, "*batch d"],
    n_chosen: Float64[np.ndarray, "*batch"],
    n_rejected: Float64[np.ndarray, "*batch"],
) -> Ches:
    """Both forms from the sums S+ and S- over positions, and how many positions n+ and n- each of them has (>= 1)."""
    means = chosen / n_chosen[..., None], rejected / n_rejected[..., None]
    return Ches(value=_similarity(chosen, rejected), normalised=_similarity(*means))


def _similarity(
    chosen: Float64[np.ndarray, "*batch d"], rejected: Float64[np.ndarray, "*batch d"]
) -> Float64[np.ndarray, "*batch"]:
    """<a, b> - |a|^2 as <a, b - a>: equal sides give exactly 0, and two large numbers are never subtracted."""
    return np.asarray((chosen * (rejected - chosen)).sum(-1))
