"""Does a policy rank chosen above rejected, and how far could training have brought it? (arXiv 2405.19534)

Pure functions, numpy float64; torch tensors and lists are accepted. For a pair with chosen w and rejected l:
reference_margin = log pi_ref(w) - log pi_ref(l), nats, sums over tokens; preference = P(w is preferred);
difficulty c = -reference_margin (above 0: the reference is wrong).
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy.special import logit

TIES = ("half", "strict", "ge")
SMOOTHINGS = ("jeffreys", "laplace", "clip")
DEFAULT_BETA = 0.1  # of TRL's DPOConfig; assumed where nobody says what the training's was
PAPER_BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)  # the grid of 2405.19534
CLIP = 1e-3
AGREE = 1e-9  # nats: how far two sides of an exact identity may differ by rounding

Array = Float64[np.ndarray, "*shape"]


def credit(difference: Any, ties: str = "half", *, atol: float = 0.0) -> Array | float:
    """1 where the difference favours chosen, 0 where it favours rejected; a tie is |difference| <= atol.

    ties: "half" gives a tie 1/2 (an untrained policy reads .5), "strict" 0 (TRL, RewardBench), "ge" 1 (the paper).
    A missing difference (NaN) has no credit (NaN). Raises ValueError for another word or a negative atol.
    """
    if ties not in TIES:
        raise ValueError(f"ties={ties!r}: expected one of {', '.join(TIES)}")
    if not atol >= 0:
        raise ValueError(f"atol={atol}: expected >= 0")
    d = as_float64(difference)
    tied = {"half": 0.5, "strict": 0.0, "ge": 1.0}[ties]
    value = np.where(np.abs(d) <= atol, tied, (d > 0).astype(float))
    return _unwrapped(np.where(np.isnan(d), np.nan, value))


def critical_beta(reference_margin: Any, preference: Any) -> Array | float:
    """The beta below which the optimum of DPO (or of KL-regularised RLHF) ranks the pair right: logit(preference) / c.

    inf where the reference is right already (c <= 0). Pairs with preference < 1/2 are turned inside, so turning a pair
    changes nothing. At preference = 1/2 the optimum keeps the reference's order: inf where reference_margin > 0,
    else 0. Source: arXiv 2405.19534, in log space.
    Raises ValueError for a preference outside [0, 1], a margin that is not finite, or unequal shapes.
    """
    margin, p = np.broadcast_arrays(as_float64(reference_margin), as_float64(preference))
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("preference is P(chosen preferred) and lies in [0, 1]; leave out pairs without one")
    if not np.isfinite(margin).all():
        raise ValueError("reference_margin is not finite everywhere; leave out pairs without reference scores")
    turn = np.where(p < 0.5, -1.0, 1.0)
    c, strength = -turn * margin, np.abs(logit(p))  # logit(0), logit(1) = -inf, inf: right at every beta
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        beta = np.where(c > 0, strength / c, np.inf)
    return _unwrapped(np.where((c == 0) & (strength == 0), 0.0, beta))


def idealized_accuracy(reference_margin: Any, preference: Any, beta: Any) -> Array | float:
    """R*(beta): the share of pairs with reference_margin + logit(preference) / beta > 0, that is beta < critical_beta.

    The ranking accuracy of a policy at the exact optimum; in [0, 1]. Towards beta = 0 it is 1, towards infinity the
    reference's own accuracy. A list of betas gives a list of shares. NaN without pairs.
    Raises ValueError where a beta is not positive and finite, and as `critical_beta` does.
    """
    betas = as_float64(beta)
    _require_positive("beta", betas)
    crit = np.sort(np.ravel(critical_beta(reference_margin, preference)))
    share = _share_above(crit, betas) if len(crit) else np.full(betas.shape, np.nan)
    return float(share) if share.ndim == 0 else share


def idealized_curve(
    reference_margin: Any, preference: Any
) -> tuple[Float64[np.ndarray, "steps"], Float64[np.ndarray, "steps"]]:
    """R* as the exact step function: (betas, values), values[i] holds for betas[i] <= beta < betas[i + 1].

    betas[0] = 0, then every finite critical beta once, ascending; the last value is the limit for large beta.
    """
    crit = np.ravel(critical_beta(reference_margin, preference))
    if not len(crit):
        raise ValueError("no pairs: a curve needs at least one")
    betas = np.unique(np.append(crit[np.isfinite(crit)], 0.0))
    return betas, _share_above(np.sort(crit), betas)


def flip_threshold(reference_margin: Any, beta: float, *, gamma: float = 1.0) -> Array | float:
    """The largest DPO loss at which the pair is ranked right, nats: softplus(beta gamma reference_margin).

    Theorem 4.1 of arXiv 2405.19534: log pi(w) >= log pi(l) exactly where the pair's loss is at most this.
    gamma: weight of the reference in the loss softplus(-beta (h + gamma c)); 1 is DPO.
    """
    _require_positive("beta", as_float64(beta))
    if not np.isfinite(gamma):
        raise ValueError(f"gamma={gamma}: expected a finite number")
    return _softplus(beta * gamma * as_float64(reference_margin))


def dpo_loss(log_ratio_chosen: Any, log_ratio_rejected: Any, beta: float) -> Array | float:
    """softplus(-beta (dw - dl)), nats, a pair; dw, dl = log pi - log pi_ref of chosen and rejected (2305.18290)."""
    _require_positive("beta", as_float64(beta))
    return _softplus(-beta * (as_float64(log_ratio_chosen) - as_float64(log_ratio_rejected)))


def ipo_threshold(reference_margin: Any, tau: float) -> Array | float:
    """The largest IPO loss that suffices for a right ranking, (1 / (2 tau) - c)^2; NaN where c > 1 / (2 tau).

    The IPO loss (h + c - 1 / (2 tau))^2 is 0 at h = 1 / (2 tau) - c: for c above 1 / (2 tau) zero loss itself ranks the
    pair wrong. Sufficient, not necessary: a policy that overshoots ranks right at a larger loss.
    """
    _require_positive("tau", as_float64(tau))
    room = 1.0 / (2.0 * tau) + as_float64(reference_margin)
    return _unwrapped(np.where(room >= 0, room**2, np.nan))


def smooth_preference(wins: Any, n: Any, how: str = "jeffreys") -> Array | float:
    """P(chosen preferred) from `wins` of `n` votes, ties counted half: never 0 or 1, and 1 - p for n - wins.

    how: "jeffreys" (wins + 1/2) / (n + 1), "laplace" (wins + 1) / (n + 2), "clip" wins / n inside [.001, .999].
    Raises ValueError for another word, n <= 0, or wins outside [0, n].
    """
    if how not in SMOOTHINGS:
        raise ValueError(f"smoothing={how!r}: expected one of {', '.join(SMOOTHINGS)}")
    k, total = as_float64(wins), as_float64(n)
    if not ((total > 0) & (k >= 0) & (k <= total)).all():
        raise ValueError("votes: expected n > 0 and 0 <= wins <= n, everywhere")
    if how == "clip":
        return _unwrapped(np.clip(k / total, CLIP, 1 - CLIP))
    prior = 0.5 if how == "jeffreys" else 1.0
    return _unwrapped((k + prior) / (total + 2 * prior))


def length_slope(difference: Any, length_difference: Any) -> float:
    """sum(d dn) / sum(dn^2), nats a token: no intercept, so that turning every pair turns the fit. 0 where dn is 0."""
    d, dn = as_float64(difference), as_float64(length_difference)
    below = float((dn**2).sum())
    return float((d * dn).sum()) / below if below else 0.0


def residualised_accuracy(difference: Any, length_difference: Any, ties: str = "half") -> float:
    """Accuracy after what length predicts is taken away: the mean of credit(d - slope dn), in [0, 1].

    length_difference = tokens of chosen minus tokens of rejected. A rest within rounding of 0 is a tie. NaN without
    pairs.
    """
    d, dn = as_float64(difference), as_float64(length_difference)
    return float(np.mean(credit(d - length_slope(d, dn) * dn, ties, atol=AGREE))) if len(d) else float("nan")


def theorem_mismatches(margin: Any, loss: Any, threshold: Any, *, atol: float = AGREE) -> Bool[np.ndarray, "*shape"]:
    """Where Theorem 4.1 fails: margin h >= 0 and loss <= threshold must hold together, up to atol nats of rounding.

    The theorem is exact, so a mismatch is a fault in the scores, never a property of the model.
    """
    h, excess = as_float64(margin), as_float64(loss) - as_float64(threshold)
    return np.asarray(((h >= atol) & (excess > atol)) | ((h <= -atol) & (excess < -atol)))


def as_float64(values: Any) -> Array:
    """Lists, arrays and tensors (any device, bfloat16 too) as a float64 array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _share_above(ascending: Float64[np.ndarray, "N"], betas: Array) -> Array:
    return np.asarray((len(ascending) - np.searchsorted(ascending, betas, side="right")) / len(ascending))


def _require_positive(name: str, value: Array) -> None:
    if not ((value > 0) & np.isfinite(value)).all():
        raise ValueError(f"{name}={value}: expected a positive, finite number")


def _softplus(x: Array | float) -> Any:
    with np.errstate(invalid="ignore"):  # a pair without a reference: NaN stays NaN
        return _unwrapped(np.logaddexp(0.0, x))


def _unwrapped(values: Any) -> Any:
    """A number where numbers came in, else the array."""
    return np.asarray(values)[()]
