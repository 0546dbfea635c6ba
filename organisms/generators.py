"""Which generators make DPO's law of labels exact? Finite distributions over the same responses, every one > 0.

With chosen answers from ref and rejected ones from pi_l ∝ ref (ref/pi*)^beta, P(a preferred over b) is sigmoid(beta
[l(a) - l(b)]) with l = log pi*/ref: DPO at this beta then has pi* as its optimum (arXiv 2505.23761). Rejected ones from
ref need pi_w ∝ ref (pi*/ref)^beta; in general pi_w/pi_l ∝ (pi*/ref)^beta.
"""

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.special import expit, log_softmax

DRAWN = ("chosen", "rejected")


def optimal_rejected(
    reference: Float64[ndarray, "*p k"], target: Float64[ndarray, "*p k"], beta: float | int
) -> Float64[ndarray, "*p k"]:
    """pi_l ∝ ref (ref/pi*)^beta: the generator of rejected answers that goes with chosen ones drawn from ref.

    >>> print((optimal_rejected(np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4]), 1.0) * 265).round(9))
    [192.  54.  16.   3.]
    """
    return _tilted(reference, target, beta, sign=-1.0)


def optimal_chosen(
    reference: Float64[ndarray, "*p k"], target: Float64[ndarray, "*p k"], beta: float | int
) -> Float64[ndarray, "*p k"]:
    """pi_w ∝ ref (pi*/ref)^beta: the generator of chosen answers that goes with rejected ones drawn from ref."""
    return _tilted(reference, target, beta, sign=1.0)


def differential_information(
    policy: Float64[ndarray, "*p k"], reference: Float64[ndarray, "*p k"]
) -> Float64[ndarray, "*p k"]:
    """q ∝ pi/ref, the distribution whose product with ref is pi; its entropy is log k where nothing changed."""
    return np.asarray(np.exp(log_softmax(_log(policy) - _log(reference), axis=-1)))


def label_law(
    chosen_generator: Float64[ndarray, "*p k"], rejected_generator: Float64[ndarray, "*p k"]
) -> Float64[ndarray, "*p k k"]:
    """P(a is the chosen one of the pair {a, b}) where one answer came from each generator: [.., a, b].

    = p_w(a) p_l(b) / (p_w(a) p_l(b) + p_w(b) p_l(a)) = sigmoid(log q(a) - log q(b)), q ∝ p_w/p_l.
    """
    log_q = _log(chosen_generator) - _log(rejected_generator)
    return np.asarray(expit(log_q[..., :, None] - log_q[..., None, :]))


def predicted_displacement(
    reference: Float64[ndarray, "*p k"], target: Float64[ndarray, "*p k"], beta: float | int, *, drawn: str = "chosen"
) -> tuple[Float64[ndarray, "*p"], Float64[ndarray, "*p"]]:
    """Mean change log pi*/ref of chosen and of rejected answers at DPO's optimum, nats.

    drawn: the side that ref wrote. "chosen": it changes by -KL(ref || pi*) <= 0 and rejected by no more than that;
    "rejected": it changes by -KL(ref || pi*), and chosen by E_(pi_w)[log pi*/ref], which grows with beta and may have
    either sign.
    """
    if drawn not in DRAWN:
        raise ValueError(f"drawn={drawn!r}: expected one of {', '.join(DRAWN)}")
    generator = optimal_rejected if drawn == "chosen" else optimal_chosen
    change = _log(target) - _log(reference)
    forced, other = (np.asarray((p * change).sum(-1)) for p in (reference, generator(reference, target, beta)))
    return (forced, other) if drawn == "chosen" else (other, forced)


def _tilted(
    reference: Float64[ndarray, "*p k"], target: Float64[ndarray, "*p k"], beta: float | int, *, sign: float
) -> Float64[ndarray, "*p k"]:
    """ref (pi*/ref)^(sign beta), normalised."""
    if not (beta > 0 and np.isfinite(beta)):
        raise ValueError(f"beta={beta}: expected a finite number above 0")
    log_reference = _log(reference)
    return np.asarray(np.exp(log_softmax(log_reference + sign * beta * (_log(target) - log_reference), axis=-1)))


def _log(probabilities: Float64[ndarray, "*p k"]) -> Float64[ndarray, "*p k"]:
    p = np.asarray(probabilities, dtype=np.float64)
    if not (p > 0).all() or not np.allclose(p.sum(-1), 1.0, rtol=0, atol=1e-9):
        raise ValueError("expected distributions: every probability above 0, each row with sum 1")
    return np.log(p)
