"""How much of what could be said did training single out? The differential information of whole responses.

Exact for a set of candidates (candidates.py); sampled, behind a gate (weighted_information.py), for all strings of one
length: with the local proposal prod_t q_t up to 30 tokens, with particles beyond.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .candidates import CandidateInformation, candidate_information
from .pareto_tail import pareto_shape
from .sequence_sampling import (
    Particles,
    Step,
    Strings,
    draw_strings,
    log_mean_weight,
    normalized,
    run_particles,
)
from .weighted_information import (
    MIN_ESS,
    MIN_ESS_RATIO,
    PARETO_FROM,
    SequenceInformation,
    refusal,
    weighted_information,
)

MIN_RUNS = 8  # independent particle runs behind a standard error
LONGEST_SNIS = 30  # tokens; longer strings are sampled with particles

__all__ = [
    "CandidateInformation",
    "SequenceInformation",
    "candidate_information",
    "local_information",
    "sequence_information",
    "smc_information",
    "weighted_information",
]


def local_information(
    policy_step: Step,
    reference_step: Step,
    *,
    length: int,
    samples: int = 200,
    proposal: str = "local",
    temperature: int | float = 1.0,
    excluded_ids: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    min_ess: int | float = MIN_ESS,
    min_ess_ratio: int | float = MIN_ESS_RATIO,
) -> SequenceInformation:
    """`weighted_information` of `samples` strings of `length` tokens drawn from a proposal, step by step.

    step: token ids [K, t] -> logits [K, V], torch or numpy. proposal: "local", which draws token t from
    q_t = softmax(z_policy - z_reference); "policy" or "reference" at `temperature`, which collapse at real lengths.
    excluded_ids (ends of text) leave every sum, while probabilities stay those of the whole vocabulary.
    Up to 30 tokens; beyond, `smc_information`. ValueError as `draw_strings` and `weighted_information`.
    """
    drawn = draw_strings(
        policy_step, reference_step, length=length, samples=samples, proposal=proposal, temperature=temperature,
        excluded_ids=excluded_ids, seed=seed,
    )  # fmt: skip
    found = weighted_information(drawn.log_weights, drawn.log_ratios, min_ess=min_ess, min_ess_ratio=min_ess_ratio)
    heat = "" if temperature == 1 else f" at temperature {temperature:g}"
    return _placed(replace(found, method=f"{found.method}, {proposal} proposal{heat}"), drawn)


def smc_information(
    policy_step: Step,
    reference_step: Step,
    *,
    length: int,
    samples: int,
    runs: int = 8,
    excluded_ids: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    min_ess: int | float = MIN_ESS,
    min_ess_ratio: int | float = MIN_ESS_RATIO,
) -> SequenceInformation:
    """The same from sequential Monte Carlo with `samples` particles: strings of hundreds of tokens.

    Each step multiplies the weights by Z_t(h_t), resamples where ESS < K / 2, and then draws token t from q_t.
    value: mean of H^ = log Z^ - sum w~ l over the independent runs; standard_error: their spread / sqrt(runs), None
    under 8 runs. ess: the smallest before any resampling in any run, which the gate judges; pareto_k: of the weights
    there, runs pooled. bias of log Z^: -variance over runs / 2, for Z^ has none. ValueError: runs < 1, else as
    `draw_strings`.
    """
    if runs < 1:
        raise ValueError(f"runs={runs}: at least 1, and {MIN_RUNS} for a standard error")
    entropy = [*([seed] if isinstance(seed, int) else seed)]
    every = [
        run_particles(
            policy_step, reference_step, length=length, samples=samples, excluded_ids=excluded_ids,
            seed=[*entropy, run],
        )
        for run in range(runs)
    ]  # fmt: skip
    values = np.array([_particle_entropy(one) for one in every])
    log_z = np.array([one.log_normalizer for one in every])
    ess = min(one.least_ess for one in every)
    pooled = np.concatenate([one.least_weights - log_mean_weight(one.least_weights) for one in every])
    k_hat = pareto_shape(pooled) if samples >= PARETO_FROM else None
    found = SequenceInformation(
        value=None, standard_error=None, reason=None, raw_unreliable=None, log_normalizer=float(log_z.mean()),
        bias=-float(log_z.var(ddof=1)) / 2 if runs > 1 else None, ess=ess, samples=samples, runs=runs, pareto_k=k_hat,
        method=f"sequential Monte Carlo, {runs} runs",
    )  # fmt: skip
    found = _placed(found, *(one.strings for one in every))
    reason = refusal(ess, samples, k_hat, min_ess, min_ess_ratio)
    if reason:
        return replace(found, reason=reason, raw_unreliable=float(values.mean()))
    if runs < MIN_RUNS:
        reason = f"no standard error: {runs} runs, {MIN_RUNS} needed"
        return replace(found, value=float(values.mean()), reason=reason)
    error = float(values.std(ddof=1)) / math.sqrt(runs)
    return replace(found, value=float(values.mean()), standard_error=error)


def sequence_information(
    policy_step: Step,
    reference_step: Step,
    *,
    length: int = 20,
    samples: int = 200,
    method: str = "auto",
    runs: int = 8,
    excluded_ids: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    min_ess: int | float = MIN_ESS,
    min_ess_ratio: int | float = MIN_ESS_RATIO,
) -> SequenceInformation:
    """`local_information` ("snis") or `smc_information` ("smc"); "auto" takes the first up to 30 tokens."""
    if method not in ("auto", "snis", "smc"):
        raise ValueError(f"method={method!r}: expected auto, snis or smc")
    options = {
        "length": length, "samples": samples, "excluded_ids": excluded_ids, "seed": seed, "min_ess": min_ess,
        "min_ess_ratio": min_ess_ratio,
    }  # fmt: skip
    if method == "smc" or (method == "auto" and length > LONGEST_SNIS):
        return smc_information(policy_step, reference_step, runs=runs, **options)  # type: ignore[arg-type]
    return local_information(policy_step, reference_step, **options)  # type: ignore[arg-type]


def _particle_entropy(run: Particles) -> float:
    return run.log_normalizer - float(normalized(run.strings.log_weights) @ run.strings.log_ratios)


def _placed(found: SequenceInformation, *drawn: Strings) -> SequenceInformation:
    """With length, support and surprise of the strings."""
    supports = {strings.log_support for strings in drawn}
    return replace(
        found,
        length=drawn[0].tokens.shape[1],
        log_support=supports.pop() if len(supports) == 1 else None,
        mean_surprise=-float(np.mean([strings.policy.mean() for strings in drawn])),
    )
