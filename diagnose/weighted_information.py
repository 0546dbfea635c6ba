"""Sequence entropy from weighted samples, and the gate that keeps collapsed weights from being read.

q(y) = (policy(y) / reference(y)) / Z over all strings of one length, H(q) = log Z - sum q log-ratio (arXiv 2505.23761).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from .pareto_tail import pareto_shape
from .sequence_sampling import Numbers, as_floats, effective_samples, log_mean_weight, normalized

MIN_ESS, MIN_ESS_RATIO = 10.0, 0.05
MAX_PARETO_K, PARETO_FROM = 0.7, 100  # the largest shape of a tail that passes, judged from so many samples


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInformation:
    """Entropy of q over the strings of one length from weighted samples, nats; null with a reason if they collapsed."""

    value: float | None  # H^ = log Z^ - sum w~ l; None where the weights collapsed
    standard_error: float | None  # None without a value, and under 8 particle runs
    reason: str | None
    raw_unreliable: float | None  # H^ where it is refused: it measures response length and policy entropy
    log_normalizer: float | None  # log Z^; None where all weights are zero
    bias: float | None  # leading bias of log Z^
    ess: float | None  # 1 / sum w~^2; with particles the smallest before any resampling; None: weights unknown
    samples: int  # K, of one run
    runs: int  # 1: importance sampling; more: independent particle runs
    pareto_k: float | None  # None under 100 samples, and where the weights have no tail (nearly equal ones)
    method: str
    length: int | None = None  # T, tokens
    log_support: float | None = None  # log |Y|, nats: T log V without exclusions
    mean_surprise: float | None = None  # mean of -log policy over the samples as drawn, nats a string

    @property
    def information(self) -> float | None:
        """D = log |Y| - H >= 0 up to sampling, nats: 0 is no change. None where either is unknown."""
        return None if self.value is None or self.log_support is None else self.log_support - self.value

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """value -+ quantile * standard error: normal, or t with runs - 1 degrees of freedom; None without one."""
        if self.value is None or self.standard_error is None:
            return None
        tail = (1 + level) / 2
        quantile = float(stats.t.ppf(tail, self.runs - 1) if self.runs > 1 else stats.norm.ppf(tail))
        return self.value - quantile * self.standard_error, self.value + quantile * self.standard_error

    def summary(self) -> str:
        if self.value is None:
            return f"No sequence entropy: {self.reason}."
        error = "" if self.standard_error is None else f" +- {self.standard_error:.2g}"
        most = "" if self.log_support is None else f" of at most {self.log_support:.4g}"
        return f"Sequence entropy {self.value:.4g}{error}{most} nats ({self.method})."


def weighted_information(
    log_weights: Numbers,
    log_ratios: Numbers,
    *,
    min_ess: int | float = MIN_ESS,
    min_ess_ratio: int | float = MIN_ESS_RATIO,
) -> SequenceInformation:
    """H^ = log Z^ - sum w~ l of K samples y from a proposal, w = (policy / reference)(y) / proposal(y), l = log-ratio.

    Z^ = mean w estimates Z = sum of policy / reference over Y only with weights so normalised. From the local proposal
    log w = sum_t log Z_t; from the reference log policy - 2 log reference; from the policy -log reference.
    standard_error = sqrt(sum IF^2) / K, IF_k = (w_k / mean w)(1 - (l_k - sum w~ l)) - 1; bias of log Z^ to first order
    -(1 / ESS - 1 / K) / 2. Published where ESS >= min_ess, ESS / K >= min_ess_ratio, and k-hat <= .7 from 100 samples
    on; else value is None and raw_unreliable holds H^. The gate is ours, not the paper's.
    ValueError: no samples, unequal numbers, NaN, +inf, or a log-ratio of -inf whose weight is not zero.

    >>> same = weighted_information(np.zeros(100), np.zeros(100))
    >>> same.value, same.standard_error, same.ess
    (0.0, 0.0, 100.0)
    """
    lw, ratio = as_floats(log_weights), as_floats(log_ratios)
    if lw.ndim != 1 or lw.shape != ratio.shape or not len(lw):
        raise ValueError(f"log_weights [K] and log_ratios [K], K >= 1, expected, got {lw.shape} and {ratio.shape}")
    if np.isnan(lw).any() or np.isnan(ratio).any() or np.isposinf(lw).any() or np.isposinf(ratio).any():
        raise ValueError("log weights and log-ratios are finite (or -inf for probability 0); got NaN or +inf")
    if (np.isneginf(ratio) & ~np.isneginf(lw)).any():
        raise ValueError("a log-ratio of -inf (the policy never says it) has weight 0: its log weight is -inf")
    ess = effective_samples(lw)
    k_hat = pareto_shape(lw) if len(lw) >= PARETO_FROM else None
    found = unmeasured(
        "every weight is zero: the policy says none of the samples", len(lw), "self-normalised importance sampling"
    )
    found = replace(found, ess=ess, pareto_k=k_hat)
    if ess == 0:
        return found
    mean_weight, share = log_mean_weight(lw), normalized(lw)
    known = share > 0
    centre = float(share[known] @ ratio[known])
    influence = np.full(len(lw), -1.0)
    influence[known] = len(lw) * share[known] * (1 - (ratio[known] - centre)) - 1
    reason = refusal(ess, len(lw), k_hat, min_ess, min_ess_ratio)
    found = replace(found, reason=reason, log_normalizer=mean_weight, bias=-(1 / ess - 1 / len(lw)) / 2)
    if reason:
        return replace(found, raw_unreliable=mean_weight - centre)
    error = math.sqrt(float((influence**2).sum())) / len(lw)
    return replace(found, value=mean_weight - centre, standard_error=error)


def refusal(
    ess: float, samples: int, k_hat: float | None, min_ess: int | float, min_ess_ratio: int | float
) -> str | None:
    """Why weights like these carry no number; None where they do."""
    if ess < min_ess or ess / samples < min_ess_ratio:
        return f"weights collapsed: ESS {ess:.1f} of {samples}"
    if k_hat is not None and k_hat > MAX_PARETO_K:
        return f"weights have a heavy tail: Pareto k-hat {k_hat:.2f} over {MAX_PARETO_K} (ESS {ess:.1f} of {samples})"
    return None


def unmeasured(reason: str, samples: int, method: str, *, length: int | None = None) -> SequenceInformation:
    """A null result of one run in which no weight is known."""
    return SequenceInformation(
        value=None, standard_error=None, reason=reason, raw_unreliable=None, log_normalizer=None, bias=None, ess=None,
        samples=samples, runs=1, pareto_k=None, method=method, length=length,
    )  # fmt: skip
