"""Strings of one length, drawn from a proposal or with particles, with what their differential information needs.

A step is a function: token ids [K, t] -> logits [K, V] of the next token, torch or numpy; t = 0 gives [K, 0].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real
from torch import Tensor

from .next_token_laws import Drawn, Laws, laws_of

Step = Callable[[np.ndarray], Any]
Numbers = Real[np.ndarray, "_"] | Real[Tensor, "_"] | Sequence[float] | Sequence[int]  # a row of numbers from outside
PROPOSALS = ("local", "policy", "reference")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strings:
    """K strings of T tokens with their weights; logarithms in nats, summed over the string, float64."""

    tokens: Int[np.ndarray, "K T"]
    log_weights: Float[np.ndarray, "K"]  # log of (policy / reference) / proposal
    log_ratios: Float[np.ndarray, "K"]  # log policy - log reference
    policy: Float[np.ndarray, "K"]  # log policy
    log_support: float | None  # log of the number of strings; None where it depends on the history


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Particles:
    """One run of sequential Monte Carlo: its particles, and what the weights were like on the way."""

    strings: Strings  # log_weights: since the last resampling
    log_normalizer: float  # log Z^, nats
    least_ess: float  # smallest effective sample size before any resampling, or at the end
    least_weights: Float[np.ndarray, "K"]  # log weights there


def draw_strings(
    policy_step: Step,
    reference_step: Step,
    *,
    length: int,
    samples: int,
    proposal: str = "local",
    temperature: int | float = 1.0,
    excluded_ids: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
) -> Strings:
    """Ancestral samples of "local" = prod_t q_t, q_t = (policy / reference) / Z_t, or of "policy" or "reference".

    The last two are drawn at `temperature` and without the excluded ids. The weight is (policy / reference) / proposal:
    prod_t Z_t for "local"; where nothing is excluded and the temperature is 1, policy / reference^2 from the reference
    and 1 / reference from the policy. ValueError: no length, no samples, another proposal, logits as in `laws_of`.
    """
    _check(length, samples)
    _check_proposal(proposal, temperature)
    random = np.random.default_rng(seed)
    strings = _nothing(samples)
    for _ in range(length):
        laws = laws_of(policy_step(strings.tokens), reference_step(strings.tokens), samples, excluded_ids)
        drawn = laws.draw(np.arange(samples), random.random(samples), proposal, temperature)
        strings = _continued(strings, laws, drawn, proposal)
    return strings


def score_strings(
    policy_step: Step,
    reference_step: Step,
    tokens: Int[np.ndarray, "K T"],
    *,
    proposal: str,
    temperature: int | float = 1.0,
    excluded_ids: Sequence[int] = (),
) -> Strings:
    """What `draw_strings` keeps, of given strings that were drawn from `proposal` at `temperature`.

    Raises ValueError as it does, and for a string that holds an excluded id.
    """
    _check(tokens.shape[1], len(tokens))
    _check_proposal(proposal, temperature)
    if np.isin(tokens, list(excluded_ids)).any():
        raise ValueError(f"a string holds one of the excluded ids {list(excluded_ids)}")
    strings = _nothing(len(tokens))
    for t in range(tokens.shape[1]):
        laws = laws_of(policy_step(tokens[:, :t]), reference_step(tokens[:, :t]), len(tokens), excluded_ids)
        strings = _continued(strings, laws, laws.at(tokens[:, t], proposal, temperature), proposal)
    return strings


def run_particles(
    policy_step: Step,
    reference_step: Step,
    *,
    length: int,
    samples: int,
    excluded_ids: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
) -> Particles:
    """Sequential Monte Carlo: weights take Z_t(h_t), are resampled where ESS < K / 2, then token t is drawn from q_t.

    log Z^ = sum of log mean weights, one term for each resampling and one for the end. ValueError as `draw_strings`.
    """
    _check(length, samples)
    random = np.random.default_rng(seed)
    strings = _nothing(samples)
    log_z, least, least_weights = 0.0, float(samples), strings.log_weights
    for _ in range(length):
        laws = laws_of(policy_step(strings.tokens), reference_step(strings.tokens), samples, excluded_ids)
        log_weights = strings.log_weights + laws.log_normalizer
        ess = effective_samples(log_weights)
        if ess < least:
            least, least_weights = ess, log_weights
        rows = np.arange(samples)
        if resampled := ess < samples / 2:
            log_z += log_mean_weight(log_weights)
            rows = systematic_ancestors(normalized(log_weights), random.random())
        drawn = laws.draw(rows, random.random(samples), "local")
        strings = _continued(strings, laws, drawn, "local", rows)
        if resampled:
            strings = replace(strings, log_weights=np.zeros(samples))
    return Particles(
        strings=strings,
        log_normalizer=log_z + log_mean_weight(strings.log_weights),
        least_ess=least,
        least_weights=least_weights,
    )


def as_floats(values: Numbers) -> np.ndarray:
    """The same numbers as a float64 array."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def effective_samples(log_weights: Float[np.ndarray, "K"]) -> float:
    """ESS = (sum w)^2 / sum w^2, from 1 to K; 0 where all weights are zero."""
    if np.isneginf(log_weights).all():
        return 0.0
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (weights**2).sum())


def normalized(log_weights: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    """w / sum w; not all weights are zero."""
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())


def log_mean_weight(log_weights: Float[np.ndarray, "K"]) -> float:
    """log of the mean weight, nats; not all weights are zero."""
    top = log_weights.max()
    return float(top + np.log(np.exp(log_weights - top).mean()))


def systematic_ancestors(weights: Float[np.ndarray, "K"], level: float) -> Int[np.ndarray, "K"]:
    """Which particle each new one continues: where (i + level) / K, level in [0, 1), falls on the cumulative weights.

    Particle i is taken floor(K w_i) or one more time.
    """
    edges = np.cumsum(weights)
    points = (np.arange(len(weights)) + level) / len(weights) * edges[-1]
    return np.asarray(np.minimum(np.searchsorted(edges, points, side="right"), len(weights) - 1))


def _nothing(samples: int) -> Strings:
    """Strings without a token."""
    zeros = np.zeros(samples)
    return Strings(
        tokens=np.zeros((samples, 0), dtype=np.int64),
        log_weights=zeros,
        log_ratios=zeros,
        policy=zeros,
        log_support=0.0,
    )


def _continued(
    strings: Strings, laws: Laws, drawn: Drawn, proposal: str, rows: Int[np.ndarray, "K"] | slice = slice(None)
) -> Strings:
    """The strings `rows`, each with its next token."""
    step = laws.log_normalizer[rows] if proposal == "local" else drawn.ratio - drawn.proposal
    known = strings.log_support is not None and laws.log_support is not None
    return Strings(
        tokens=np.concatenate([strings.tokens[rows], drawn.tokens[:, None]], axis=1),
        log_weights=strings.log_weights[rows] + step,
        log_ratios=strings.log_ratios[rows] + drawn.ratio,
        policy=strings.policy[rows] + drawn.policy,
        log_support=(strings.log_support or 0.0) + (laws.log_support or 0.0) if known else None,
    )


def _check(length: int, samples: int) -> None:
    if length < 1 or samples < 1:
        raise ValueError(f"length={length}, samples={samples}: both are at least 1")


def _check_proposal(proposal: str, temperature: int | float) -> None:
    if proposal not in PROPOSALS:
        raise ValueError(f"proposal={proposal!r}: expected one of {', '.join(PROPOSALS)}")
    if not temperature > 0 or (proposal == "local" and temperature != 1):
        raise ValueError(f"temperature={temperature} with proposal={proposal!r}: expected > 0, and 1 for local")
