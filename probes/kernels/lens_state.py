"""What one pass over the vocabulary has to remember to compare read-outs, and how two parts of a vocabulary merge.

A *stream* is one row of logits z a token (a layer, or a model's head); a *pair* is two streams to compare.
Everything here is float64 and of size streams x tokens; nothing has a vocabulary axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Pairs = Sequence[tuple[int, int]]

SMALL_KL = 1e-3  # nats; below it the difference form (absolute floor 2e-6 in float32 sums) gives way to the cumulants
SMALL_VARIANCE = 1e-5  # of log-ratios; below it (angles < 3e-3) float32 amplitudes may round t - u s visibly,
MAX_SKEW_ANGLE = 0.02  # though not where a few tokens move by more than this,
MAX_APART = 1e-5  # rad, nor where both forms are further apart than float32 amplitudes can be off
SMALL_ANGLE = math.sqrt(SMALL_VARIANCE * (1 + MAX_SKEW_ANGLE / 2)) + MAX_APART  # rad; from here on it is the tangent's
MAX_SKEW = 0.1  # |k3 / k2| up to which k2/2 + k3/6 is good to 1e-3; a heavier tail is read again in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class LensState:
    """Single-pass sums over a part of the vocabulary.

    With s = exp((z_i - peak_i)/2), t the same of the partner j, x = z_j - z_i - pilot:
    mass = sum s^2, energy = sum s^2 (z - peak); overlap = sum s t, residual = sum (t - u s)^2 with u = overlap/mass_i;
    forward[k] = sum s^2 x^(k+1), backward[k] = sum t^2 x^(k+1), k = 0, 1, 2.
    """

    peak: Float[Tensor, "S n"]
    mass: Float[Tensor, "S n"]
    energy: Float[Tensor, "S n"]
    overlap: Float[Tensor, "P n"]
    residual: Float[Tensor, "P n"]
    pilot: Float[Tensor, "P n"]
    forward: Float[Tensor, "3 P n"] | None  # None: small angles are read again
    backward: Float[Tensor, "3 P n"] | None  # None: no KL is wanted


def _recentred(moments: Tensor, mass: Tensor, shift: Tensor) -> Tensor:
    """Raw moments 1..3 about a pilot that moved by `shift`; x becomes x - shift."""
    first, second, third = moments
    return torch.stack(
        (
            first - shift * mass,
            second - 2 * shift * first + shift**2 * mass,
            third - 3 * shift * second + 3 * shift**2 * first - shift**3 * mass,
        )
    )


def merge(parts: Sequence[LensState], pairs: Pairs) -> LensState:
    """The state of the union of disjoint parts of a vocabulary; exact algebra (Chan's form for the residual)."""
    if len(parts) == 1:
        return parts[0]
    first, second = [i for i, _ in pairs], [j for _, j in pairs]
    peaks, masses, energies, pilots = (
        torch.stack([getattr(part, name) for part in parts]) for name in ("peak", "mass", "energy", "pilot")
    )  # [parts, S, n], the pilots [parts, P, n]
    peak = peaks.amax(0)
    lift = peaks - peak  # <= 0
    keep = lift.exp()
    kept = keep * masses
    mass = kept.sum(0)
    overlaps, of_second = torch.stack([part.overlap for part in parts]), keep[:, second]
    overlap = (overlaps * (keep[:, first] * of_second).sqrt()).sum(0)
    # a part's own u times the root of its mass, in which keep of the first stream, that may be 0, cancels
    own = overlaps / masses[:, first].sqrt() * of_second.sqrt()
    between = ((own - overlap / mass[first] * kept[:, first].sqrt()) ** 2).sum(0)
    residual = (of_second * torch.stack([part.residual for part in parts])).sum(0) + between

    shifts = pilots[0] - pilots  # moments of every part move to the pilot of the first
    forward = _moved([part.forward for part in parts], keep[:, first], masses[:, first], shifts)
    backward = _moved([part.backward for part in parts], keep[:, second], masses[:, second], shifts)
    return LensState(
        peak=peak,
        mass=mass,
        energy=(keep * (energies + masses * lift)).sum(0),
        overlap=overlap,
        residual=residual,
        pilot=pilots[0],
        forward=forward,
        backward=backward,
    )


def _moved(
    moments: Sequence[Float[Tensor, "3 P n"] | None],
    keep: Float[Tensor, "parts P n"],
    masses: Float[Tensor, "parts P n"],
    shifts: Float[Tensor, "parts P n"],
) -> Float[Tensor, "3 P n"] | None:
    """Moments of all parts about the pilot of the first; None where they were not taken."""
    taken = [part for part in moments if part is not None]
    if not taken:
        return None
    every = torch.stack(taken, dim=1)  # [3, parts, P, n]
    return (keep * _recentred(every, masses, shifts)).sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LensReading:
    """A finished state; the last three are None where its backward moments are.

    `uncertain` marks KLs too small for the difference form and too skewed for the cumulants.
    """

    log_normalizer: Float[Tensor, "S n"]
    entropy: Float[Tensor, "S n"]
    angle: Float[Tensor, "P n"]
    overlap: Float[Tensor, "P n"]
    kl_forward: Float[Tensor, "P n"] | None = None  # KL(p_i : p_j)
    kl_backward: Float[Tensor, "P n"] | None = None  # KL(p_j : p_i)
    uncertain: Bool[Tensor, "P n"] | None = None


def concatenated(parts: Sequence[LensReading]) -> LensReading:
    """Readings of blocks of tokens, one after the other."""
    found: dict[str, Any] = {}
    for field in fields(LensReading):
        values = [getattr(part, field.name) for part in parts]
        found[field.name] = None if values[0] is None else torch.cat(values, dim=-1)
    return LensReading(**found)


def _cumulants(moments: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Second and third cumulant from raw moments."""
    first, second, third = moments / mass
    return second - first**2, third - 3 * first * second + 2 * first**3


def _divergence(difference: Tensor, variance: Tensor, skew: Tensor) -> tuple[Tensor, Tensor]:
    """KL in nats: the difference form or, where that is small, the first two terms of log E e^x - E x; and where
    neither can be trusted."""
    series = variance / 2 + skew / 6
    small = difference < SMALL_KL
    settled = (skew.abs() <= MAX_SKEW * variance) & series.isfinite()
    return torch.where(small & settled, series, difference), small & ~settled


def finish(state: LensState, pairs: Pairs) -> LensReading:
    """Angles in [0, pi] (2 atan2, never arccos, which loses angles under 3e-4; the smallest from the cumulants of the
    log-ratio), entropies and KLs in nats.

    A row with a NaN or infinite logit (its energy is not finite) is NaN in everything it takes part in.
    """
    first, second = [i for i, _ in pairs], [j for _, j in pairs]
    bad = ~state.energy.isfinite() | ~state.peak.isfinite()
    log_normalizer = (state.peak + state.mass.log()).masked_fill(bad, torch.nan)
    entropy = (state.mass.log() - state.energy / state.mass).clamp(min=0.0).masked_fill(bad, torch.nan)

    angle = 2 * torch.atan2((state.residual * state.mass[first]).sqrt(), state.overlap)
    if state.forward is not None:
        variance, skew = _cumulants(state.forward, state.mass[first])
        # -8 log BC = k2 + k3/2 + ..., and for a small angle that is its square
        small = (variance < SMALL_VARIANCE) & (skew.abs() <= MAX_SKEW_ANGLE * variance)
        series = (variance + skew / 2).clamp(min=0).sqrt()
        # two sharp rows have no variance under p_i and yet lie pi apart: the series has to agree with the tangent
        angle = torch.where(small & ((angle - series).abs() < MAX_APART), series, angle)
    overlap = state.overlap / (state.mass[first] * state.mass[second]).sqrt()
    lost = bad[first] | bad[second]
    reading = LensReading(
        log_normalizer=log_normalizer,
        entropy=entropy,
        angle=angle.masked_fill(lost, torch.nan),
        overlap=overlap.masked_fill(lost, torch.nan),
    )
    if state.forward is None or state.backward is None:
        return reading
    # pilot = z_j - z_i of some column, so lse_j - lse_i - pilot is of the size of x, not of the logits
    gap = state.peak[second] - state.peak[first] - state.pilot + (state.mass[second] / state.mass[first]).log()
    back_variance, back_skew = _cumulants(state.backward, state.mass[second])
    forward, unsure_forward = _divergence(gap - state.forward[0] / state.mass[first], variance, skew)
    backward, unsure_backward = _divergence(state.backward[0] / state.mass[second] - gap, back_variance, -back_skew)
    return replace(
        reading,
        kl_forward=forward.masked_fill(lost, torch.nan),
        kl_backward=backward.masked_fill(lost, torch.nan),
        uncertain=(unsure_forward | unsure_backward) & ~lost,
    )
