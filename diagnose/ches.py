"""Which pairs risk that training pushes the chosen completion down? The centred hidden embedding similarity.

Razin et al., arXiv 2410.08847: a chosen and a rejected completion whose summed hidden states are alike pull on the same
directions, so lowering the one lowers the other. High = displacement risk.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from ..probes.hidden_similarity import Ches, ches_of_sums
from .ranking import as_float64


def ches(chosen_states: Any, rejected_states: Any, chosen_mask: Any = None, rejected_mask: Any = None) -> Ches:
    """CHES from final-layer hidden states of the positions that predict the completion's tokens.

    states: [T, d] for one pair or [B, T, d], T of either side its own; the positions run from the last prompt token to
    the one before the last response token. mask: [T] or [B, T], true where a position counts (None: all count); what
    padding holds is never read. Raises ValueError for shapes that do not fit, a row without a position, or states
    that are not finite.
    """
    chosen, n_chosen = _summed("chosen", chosen_states, chosen_mask)
    rejected, n_rejected = _summed("rejected", rejected_states, rejected_mask)
    return ches_from_sums(chosen, rejected, n_chosen, n_rejected)


def ches_from_sums(sum_chosen: Any, sum_rejected: Any, n_chosen: Any, n_rejected: Any) -> Ches:
    """CHES from sums over positions, [..., d], and their true numbers of positions, [...].

    Raises ValueError for shapes that differ, counts below 1, or sums that are not finite.
    """
    chosen, rejected = as_float64(sum_chosen), as_float64(sum_rejected)
    counts = as_float64(n_chosen), as_float64(n_rejected)
    if chosen.ndim < 1 or chosen.shape != rejected.shape or any(n.shape != chosen.shape[:-1] for n in counts):
        raise ValueError(
            f"sums of shape {chosen.shape} and {rejected.shape} with counts {counts[0].shape} and {counts[1].shape}: "
            "expected sums [..., d] of one width, and one count a row on each side"
        )
    if not all((n >= 1).all() for n in counts):
        raise ValueError("a completion without a scored position has no CHES; leave such pairs out")
    if not (np.isfinite(chosen).all() and np.isfinite(rejected).all()):
        raise ValueError("hidden states are not finite everywhere; leave such pairs out")
    return ches_of_sums(chosen, rejected, *counts)


def _summed(side: str, states: Any, mask: Any) -> tuple[Float64[np.ndarray, "*batch d"], Float64[np.ndarray, "*batch"]]:
    x = as_float64(states)
    if x.ndim not in (2, 3):
        raise ValueError(f"{side} states of shape {x.shape}: expected [T, d] or [B, T, d]")
    counted = np.ones(x.shape[:-1], dtype=bool) if mask is None else _as_mask(mask)
    if counted.shape != x.shape[:-1]:
        raise ValueError(f"{side} mask of shape {counted.shape}: expected {x.shape[:-1]}, one a position of the states")
    # where, not a product: padding may hold NaN, and 0 * NaN is NaN
    return np.where(counted[..., None], x, 0.0).sum(-2), np.asarray(counted.sum(-1), dtype=np.float64)


def _as_mask(mask: Any) -> Bool[np.ndarray, "*shape"]:
    return np.asarray(as_float64(mask) != 0)
