"""Were the samples drawn from the models that score them? Identities over responses, with standard errors.

Beside `identities.token_identities`, which are exact: here a row fails only where sampling cannot explain it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from .identities import Identity, unknown
from .ranking import as_float64
from .statistics import MIN_CLUSTERS, cluster_codes, delete_group_jackknife

REACH = 4.0  # standard errors: the alarm blanks a section, and log-ratios are skewed
SAMPLE_ERROR = 1e-3  # nats: how far rounding may move a mean log-ratio of samples
OPENING = 5  # response tokens: beyond some 20 the mean of e^l is unusable
MIN_EVEN = 50.0  # prompts that even weights would need for a mean as sure as that of e^l


def response_identities(
    *,
    reference_samples: Any = None,
    reference_clusters: Any = None,
    policy_samples: Any = None,
    policy_clusters: Any = None,
    opening: Any = None,
) -> list[Identity]:
    """The identities over responses, with their standard error over prompts; l = log pi - log ref, nats a response.

    reference_samples: l of responses drawn from ref, [s]: E[l] = -KL(ref || pi) <= 0. policy_samples: of responses
    drawn from pi, [t]: E[l] = KL(pi || ref) >= 0. opening: l of each of the first tokens of the same reference samples,
    [s, k], NaN past the end of a response: E[e^(l_1 + .. + l_k)] = 1 for k up to 5. clusters: prompts (None: each its
    own). A row fails beyond 4 standard errors (delete-one-prompt jackknife) plus 1e-3; it is not judged under 20
    prompts, nor, of e^l, where n e^(-var l) < 50: a mean of weights so uneven mostly misses the few that carry it.
    Raises ValueError for shapes that differ or log-ratios that are not finite.
    """
    rows = [
        _mean("reference_samples", -1.0, *_samples("reference_samples", reference_samples, reference_clusters)),
        _mean("policy_samples", 1.0, *_samples("policy_samples", policy_samples, policy_clusters)),
    ]
    if opening is None:
        return [*rows, unknown("opening_mass_1", 1.0, "no log-ratios of opening tokens were given")]
    steps = as_float64(opening)
    if steps.ndim != 2 or np.isinf(steps).any():
        raise ValueError(f"opening of shape {steps.shape}: expected log-ratios [samples, tokens], NaN past the end")
    summed = np.nancumsum(steps[:, :OPENING], axis=1)  # a response that has ended keeps its ratio: still a martingale
    _, clusters = _samples("opening", summed[:, 0] if summed.size else np.zeros(len(steps)), reference_clusters)
    return [*rows, *(_opening(k + 1, summed[:, k], clusters) for k in range(summed.shape[1]))]


def _samples(name: str, values: Any, clusters: Any) -> tuple[Float64[np.ndarray, "s"] | None, Int64[np.ndarray, "s"]]:
    """Log-ratios, None where not given, and their prompts as 0..C-1."""
    if values is None:
        return None, np.zeros(0, dtype=np.int64)
    x = as_float64(values)
    labels = np.arange(len(x)) if clusters is None else np.asarray(clusters)
    if x.ndim != 1 or labels.shape != x.shape or not np.isfinite(x).all():
        raise ValueError(f"{name} of shape {x.shape}, clusters {labels.shape}: expected a finite log-ratio a response")
    return x, cluster_codes(labels)[0]


def _mean(name: str, sign: float, values: Float64[np.ndarray, "s"] | None, codes: Int64[np.ndarray, "s"]) -> Identity:
    """sign x E[l] >= 0."""
    if values is None:
        return unknown(name, 0.0, "no such samples were given")
    return _judged(name, values, codes, bound=0.0, miss=lambda mean: -sign * mean)


def _opening(k: int, values: Float64[np.ndarray, "s"], codes: Int64[np.ndarray, "s"]) -> Identity:
    name = f"opening_mass_{k}"
    n_clusters = len(np.unique(codes))
    even = n_clusters * float(np.exp(-values.var())) if len(values) else 0.0
    if n_clusters >= MIN_CLUSTERS and even < MIN_EVEN:
        reason = f"weights too uneven: as good as {even:.1f} of {n_clusters} prompts, {MIN_EVEN:g} are needed"
        return unknown(name, 1.0, reason, n=len(values))
    return _judged(name, np.exp(values), codes, bound=1.0, miss=lambda mean: abs(mean - 1))


def _judged(
    name: str,
    values: Float64[np.ndarray, "s"],
    codes: Int64[np.ndarray, "s"],
    *,
    bound: float,
    miss: Callable[[float], float],
) -> Identity:
    """A mean over samples; miss(mean) > 0 is a breach, which counts beyond REACH standard errors."""
    n_clusters = len(np.unique(codes))
    if n_clusters < MIN_CLUSTERS:
        value = float(values.mean()) if len(values) else None
        reason = f"{n_clusters} clusters (prompts): a standard error needs {MIN_CLUSTERS}"
        return Identity(name=name, value=value, bound=bound, ok=None, n=len(values), reason=reason)
    mean = float(values.mean())
    sums, counts = np.bincount(codes, weights=values), np.bincount(codes)
    without = (values.sum() - sums) / (len(values) - counts)
    error = float(delete_group_jackknife(without))
    ok = bool(miss(mean) <= REACH * error + SAMPLE_ERROR)
    return Identity(name=name, value=mean, bound=bound, ok=ok, n=len(values), standard_error=error)
