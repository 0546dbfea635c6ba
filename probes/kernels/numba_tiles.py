"""The Numba backend of the lens kernels: the state of a tile in one compiled pass, where torch takes a pass a sum.

One exponential a logit, by a polynomial, so that nothing leaves the vector units.
"""

import math
from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

from .lens_state import LensState, Pairs

# a sum may be reordered and fused; NaN and infinity keep their meaning: they mark the rows that are not to be used
summing: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", cache=True
)
in_order: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    nogil=True, fastmath={"contract"}, error_model="numpy", cache=True
)

# amplitudes under 2^-40 (squares under 2^-80) count as 0: far below float32 round-off of a sum that holds a 1, and far
# above the subnormal numbers, which cost a hundred times as much
LOWEST = np.float32(-80 * math.log(2))
HALF_LOG2E = np.float32(0.5 / math.log(2))  # exp(x / 2) = 2^(x HALF_LOG2E)
STEP = np.float32(round(2 * math.log(2) * 2**15) / 2**15)  # 2 log 2 in 16 bits: up to 80 of them are exact
REST = np.float32(2 * math.log(2) - float(STEP))
# 2^f for |f| <= 1/2, relative error 2e-9: 1 + f (C[1] + f (C[2] + ...)), the coefficients of exp2f in Cephes
C6, C5, C4 = np.float32(1.535336188319500e-4), np.float32(1.339887440266574e-3), np.float32(9.618437357674640e-3)
C3, C2, C1 = np.float32(5.550332471162809e-2), np.float32(2.402264791363012e-1), np.float32(6.931472028550421e-1)
CHUNK = 2048  # columns summed in float32; their sums are added in float64
HALF, ONE, ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
SIGN, EXPONENT, BIAS = np.int32(31), np.int32(23), np.int32(127)
MAGNITUDE, LEAST = np.int32(0x7FFFFFFF), np.int32(-0x80000000)


class FusedTiles:
    """`eager.tile_state` compiled: the same sums of float32 logits on the CPU. Keeps its scratch, so one a thread."""

    def __init__(self) -> None:
        self._scratch = np.empty((0, 0), dtype=np.float32)

    def __call__(self, logits: Float[Tensor, "S n v"], pairs: Pairs, moments: int) -> LensState:
        """The state of one tile; `logits` are left as they are."""
        n_streams, n, columns = logits.shape
        first, second = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
        order = np.argsort(np.maximum(first, second), kind="stable")  # a pair as soon as its later stream is there
        ready = np.searchsorted(np.maximum(first, second)[order], np.arange(n_streams), side="right")
        stream = np.empty((3, n_streams, n))
        between = np.empty((2 + 3 * moments, len(pairs), n))
        if self._scratch.shape != (n_streams, columns):  # asked for anew, the pages cost as much as the sums
            self._scratch = np.empty((n_streams, columns), dtype=np.float32)
        values = logits.numpy()
        _tokens(self._scratch, values, values.view(np.int32), first, second, order, ready, stream, between)

        peak, mass, energy = torch.from_numpy(stream)
        sums = torch.from_numpy(between)
        return LensState(
            peak=peak,
            mass=mass,
            energy=energy,
            overlap=sums[0],
            residual=sums[1],
            pilot=(peak[second].float() - peak[first].float()).double(),  # rounded as in the sums
            forward=sums[2:5] if moments > 0 else None,
            backward=sums[5:8] if moments > 1 else None,
        )


@intrinsic
@no_type_check
def _as_float(context, bits):
    """The float32 of 32 bits."""

    @no_type_check
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.types.float32(numba.types.int32), generate


@summing
@no_type_check
def _tokens(s, logits, bits, first, second, order, ready, stream, between):
    """Each token of logits [S, n, v]: sums of each stream, then of the pairs that it completes."""
    for token in range(logits.shape[1]):
        done = 0
        for k in range(logits.shape[0]):
            peak = _peak(bits[k, token])
            stream[0, k, token] = peak
            stream[1, k, token], stream[2, k, token] = _stream(logits[k, token], peak, s[k])
            while done < ready[k]:
                row = order[done]
                i, j = first[row], second[row]
                pilot = np.float32(stream[0, j, token] - stream[0, i, token])
                overlap = _overlap(s[i], s[j])
                between[0, row, token] = overlap
                between[1, row, token] = _residual(s[i], s[j], np.float32(overlap / stream[1, i, token]))
                for side in range((between.shape[0] - 2) // 3):
                    weights = s[j] if side else s[i]
                    sums = _moments(weights, logits[i, token], logits[j, token], pilot)
                    for power in range(3):
                        between[2 + 3 * side + power, row, token] = sums[power]
                done += 1


@summing
@no_type_check
def _peak(bits):
    """The largest of float32 numbers given as bits, in the order of integers; NaN and infinity come out on top."""
    best = LEAST
    for column in range(bits.shape[0]):
        value = bits[column]
        best = max(best, value ^ ((value >> SIGN) & MAGNITUDE))  # of a negative number, the larger has the smaller bits
    return _as_float(best ^ ((best >> SIGN) & MAGNITUDE))


@in_order
@no_type_check
def _amplitude(below):
    """exp(below / 2) for below <= 0, relative error 2e-7, and 0 where it would be under 2^-40."""
    x = max(below, LOWEST)
    whole = np.floor(x * HALF_LOG2E + HALF)
    f = ((x - whole * STEP) - whole * REST) * HALF_LOG2E  # in this order nothing of x is lost
    scale = _as_float((np.int32(whole) + BIAS) << EXPONENT)
    amplitude = ((((((C6 * f + C5) * f + C4) * f + C3) * f + C2) * f + C1) * f + ONE) * scale
    return ZERO if below < LOWEST else amplitude


@summing
@no_type_check
def _stream(z, peak, s):
    """s = exp((z - peak) / 2) [v]; sum s^2 and sum s^2 (z - peak)."""
    mass = energy = 0.0
    for start in range(0, len(z), CHUNK):
        some = slice(start, min(start + CHUNK, len(z)))
        sums = _some_stream(z[some], peak, s[some])
        mass += sums[0]
        energy += sums[1]
    return mass, energy


@summing
@no_type_check
def _some_stream(z, peak, s):
    mass = energy = ZERO
    for column in range(len(z)):
        below = z[column] - peak
        amplitude = _amplitude(below)
        s[column] = amplitude
        mass += amplitude * amplitude
        energy += amplitude * amplitude * below  # NaN where z is infinite (0 x inf) or NaN: that marks the row
    return mass, energy


@summing
@no_type_check
def _overlap(s, t):
    """sum s t."""
    total = 0.0
    for start in range(0, len(s), CHUNK):
        some = slice(start, min(start + CHUNK, len(s)))
        total += _some_overlap(s[some], t[some])
    return total


@summing
@no_type_check
def _some_overlap(s, t):
    total = ZERO
    for column in range(len(s)):
        total += s[column] * t[column]
    return total


@summing
@no_type_check
def _moments(s, z_i, z_j, pilot):
    """sum s^2 x^k for k = 1, 2, 3, with x = z_j - z_i - pilot."""
    one = two = three = 0.0
    for start in range(0, len(s), CHUNK):
        some = slice(start, min(start + CHUNK, len(s)))
        sums = _some_moments(s[some], z_i[some], z_j[some], pilot)
        one += sums[0]
        two += sums[1]
        three += sums[2]
    return one, two, three


@in_order
@no_type_check
def _above(z_j, z_i, pilot):
    return (z_j - z_i) - pilot  # in this order: the difference of neighbours is exact


@in_order
@no_type_check
def _powers(s, x):
    """s^2 x^k for k = 1, 2, 3; in this order 0 stays 0 where x, of a masked logit, has no finite square."""
    first = s * s * x
    second = first * x
    return first, second, second * x


@summing
@no_type_check
def _some_moments(s, z_i, z_j, pilot):
    one = two = three = ZERO
    for column in range(len(s)):
        first, second, third = _powers(s[column], _above(z_j[column], z_i[column], pilot))
        one += first
        two += second
        three += third
    return one, two, three


@summing
@no_type_check
def _residual(s, t, ratio):
    """sum (t - ratio s)^2."""
    total = 0.0
    for start in range(0, len(s), CHUNK):
        some = slice(start, min(start + CHUNK, len(s)))
        total += _some_residual(s[some], t[some], ratio)
    return total


@summing
@no_type_check
def _some_residual(s, t, ratio):
    total = ZERO
    for column in range(len(s)):
        difference = t[column] - ratio * s[column]
        total += difference * difference
    return total
