"""Does the update single out one of these completions? The differential information of a prompt's candidates.

q_k = softmax_k(log policy - log reference) over a finite set (arXiv 2505.23761): exact, nothing is sampled.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import log_softmax

from .sequence_sampling import Numbers, as_floats, effective_samples

SAME = 1e-3  # nats: what a forward pass in another batch may move, and more


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateInformation:
    """The differential information of one prompt's candidates; a property of this set, no estimate for all responses.

    Three fields are None where there is but one candidate, with the `reason`.
    """

    entropy: float | None  # H_K, nats
    normalized_entropy: float | None  # H_K / log K, in [0, 1]; 1: the update prefers none of them
    ess: float | None  # 1 / sum q^2, in [1, K]
    argmax: int  # index of the candidate that the update raised most; the first of equals
    n_candidates: int  # K, repeats left out
    n_repeats: int
    per_token: bool  # log-ratios were divided by the lengths
    reason: str | None = None

    @property
    def measure(self) -> str:
        """What q is a softmax of, for a label."""
        return "log-ratio per token" if self.per_token else "log-ratio of the whole response"

    @property
    def information(self) -> float | None:
        """log K - H_K >= 0, nats."""
        return None if self.entropy is None else math.log(self.n_candidates) - self.entropy

    def summary(self) -> str:
        if self.entropy is None or self.normalized_entropy is None:
            return f"No candidate-set information: {self.reason}."
        return (
            f"Entropy {self.normalized_entropy:.1%} of the largest over {self.n_candidates} candidates "
            f"({self.measure}): as if {self.ess:.1f} of them were equally favoured."
        )


def candidate_information(
    log_ratios: Numbers,
    *,
    lengths: Numbers | None = None,
    keys: Sequence[Hashable] | Shaped[np.ndarray, "_"] | None = None,
) -> CandidateInformation:
    """H_K, H_K / log K and ESS of q = softmax of log policy - log reference over K different completions of one prompt.

    keys: what tells completions apart (their text or ids); a repeat counts once. Without it all are different, for
    equal log-ratios do not make equal completions: with policy = reference all are 0, and H_K = log K.
    lengths: tokens of each; log-ratios are then divided by them, which `per_token` says.
    ValueError: no candidate, a log-ratio that is not finite, lengths below 1, other numbers of lengths or keys than of
    log-ratios, or repeats with log-ratios (over 1e-3 nats apart) or lengths of their own.

    >>> found = candidate_information(np.log([1.0, 3.0, 1.0]), keys=["a", "b", "a"])
    >>> f"{found.normalized_entropy:.7f} {found.ess:.1f} {found.argmax}"
    '0.8112781 1.6 1'
    """
    values = as_floats(log_ratios)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"finite log-ratios [K], K >= 1, expected, got {values.shape}: {values}")
    n_tokens = np.ones(len(values)) if lengths is None else as_floats(lengths)
    if n_tokens.shape != values.shape or not (n_tokens >= 1).all():
        raise ValueError(f"{len(values)} lengths of at least 1 token expected, got {lengths}")
    first = np.arange(len(values)) if keys is None else _first_of_each(keys, values, n_tokens)
    values = values / n_tokens
    kept = values[first]
    found = CandidateInformation(
        entropy=None, normalized_entropy=None, ess=None, argmax=int(first[kept.argmax()]), n_candidates=len(kept),
        n_repeats=len(values) - len(kept), per_token=lengths is not None,
    )  # fmt: skip
    if len(kept) == 1:
        return replace(found, reason="one candidate")
    log_q = log_softmax(kept)
    entropy = float(-(np.exp(log_q) * log_q).sum())
    return replace(
        found, entropy=entropy, normalized_entropy=entropy / math.log(len(kept)), ess=effective_samples(kept)
    )


def _first_of_each(
    keys: Sequence[Hashable] | Shaped[np.ndarray, "_"], values: Float[np.ndarray, "K"], lengths: Float[np.ndarray, "K"]
) -> Int[np.ndarray, "_"]:
    """Where each key stands first, in the given order."""
    if len(keys) != len(values):
        raise ValueError(f"{len(values)} log-ratios and {len(keys)} keys: expected a key for each")
    first: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        j = first.setdefault(key, i)
        if abs(values[i] - values[j]) > SAME or lengths[i] != lengths[j]:
            raise ValueError(f"candidates {j} and {i} have one key, {key!r}, but log-ratios or lengths of their own")
    return np.array(list(first.values()))
