"""`information_rows.row_sums` compiled: finite float32 logits on the CPU, one reading of a row, rows side by side.

Three exponentials a logit by a polynomial in float64, so that nothing leaves the vector units.
"""

import math
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

from .column_peaks import LINES
from .information_rows import SAFE, RowSums, VocabularyTotals
from .numba_tiles import in_order, summing
from .sharing import side_by_side, workers

CHUNK = 2048  # columns worked on at a time: three arrays of them stay in the cache
ROOM = 256  # tokens that reach a bound, a row, before the row is read once more
NAMES = ("q_total", "policy_total", "reference_total", "policy_change")

LOWEST = -708.0  # exp below it is not normal; such a weight counts as 3e-308
LOG2E = 1 / math.log(2)
LOG2_HIGH = 6.93147180369123816490e-01  # log 2 to 33 bits: up to 2^20 of them are exact
LOG2_LOW = 1.90821492927058770002e-10
ROUNDING = 1.5 * 2.0**52  # added, it leaves the nearest whole number in the lowest bits
BIAS, EXPONENT = np.int64(1023), np.int64(52)
# 1/k!: Taylor's for |x| <= log(2) / 2, whose next term is 2e-16
F2, F3, F4, F5, F6, F7, F8, F9, F10, F11, F12 = (1 / math.factorial(k) for k in range(2, 13))


class FusedRows:
    """The sums of some rows at a time. Keeps its scratch: with totals, seven rows of float64 a thread."""

    def __init__(self) -> None:
        self._scratch: list[tuple[np.ndarray, ...]] = []

    def __call__(
        self, policy: Float[Tensor, "n V"], reference: Float[Tensor, "n V"], totals: VocabularyTotals | None = None
    ) -> RowSums | None:
        """As `row_sums`; None, and nothing added to totals, where a logit is not finite."""
        n, vocab = policy.shape
        columns = vocab // LINES + (vocab % LINES > 0)
        peaks = [np.empty((n, columns), dtype=dtype) for dtype in (np.float32, np.float32, np.float64)]
        sums = np.empty((3, 3, n))
        z = [_plain(side) for side in (policy, reference)]
        count = workers(n)
        scratch = self._room(count, vocab, totals is not None)

        def some(k: int) -> None:
            rows, (chunk, weights, whole) = slice(n * k // count, n * (k + 1) // count), scratch[k]
            whole.fill(0.0)
            parts = [array[rows] for array in (*z, *peaks)]
            _rows(*parts, sums[:, :, rows], chunk, weights, whole, totals is not None)

        side_by_side(some, range(count))
        if not np.isfinite(sums).all():
            return None
        if totals is not None:
            one = torch.ones(1, dtype=torch.float64)
            for _, _, whole in scratch:
                for name, row in zip(NAMES, whole, strict=True):
                    totals.add(name, torch.from_numpy(row)[None], one)
        return _result(torch.from_numpy(sums), [torch.from_numpy(peak) for peak in peaks], vocab)

    @staticmethod
    def reaching_tokens(
        policy: Float[Tensor, "n V"],
        reference: Float[Tensor, "n V"],
        rows: RowSums,
        policy_bound: Float[Tensor, "n"],
        reference_bound: Float[Tensor, "n"],
    ) -> tuple[Int[Tensor, "E"], Int[Tensor, "E"]]:
        """As plausible_tokens.reaching_tokens."""
        sides = policy, reference, rows.policy_peaks, rows.reference_peaks, policy_bound, reference_bound
        arrays = [_plain(side) for side in sides]
        found = np.empty((2, ROOM * len(policy)), dtype=np.int64)
        if (count := _reaching(*arrays, found)) > found.shape[1]:
            found = np.empty((2, count), dtype=np.int64)
            _reaching(*arrays, found)
        position, token = torch.from_numpy(found[:, :count])
        return position, token

    def _room(self, count: int, vocab: int, totals: bool) -> list[tuple[np.ndarray, ...]]:
        """chunk, weights and totals of each thread; asked for anew every time, their pages cost as much as the sums."""
        shapes = [(3, CHUNK), (3, vocab if totals else CHUNK), (len(NAMES), vocab if totals else 0)]
        if len(self._scratch) < count or [array.shape for array in self._scratch[0]] != shapes:
            self._scratch = [tuple(np.zeros(shape) for shape in shapes) for _ in range(count)]
        return self._scratch[:count]


def _plain(numbers: Tensor) -> np.ndarray:
    """As the compiled code takes them; half precision upcast."""
    numbers = numbers.detach().contiguous()
    return (numbers if numbers.dtype == torch.float64 else numbers.float()).numpy()


def _result(sums: Float[Tensor, "3 3 n"], peaks: list[Tensor], vocab: int) -> RowSums:
    """sums: of policy, reference and d, the shift, sum exp(z - shift) and sum d exp(z - shift)."""
    n = sums.shape[-1]
    nowhere = torch.zeros(n, dtype=torch.bool)
    return RowSums.of(
        peaks,
        sums[:, 0] + sums[:, 1].log(),
        sums[:, 2] / sums[:, 1],
        support=torch.full((n,), vocab),
        broken=nowhere,
        unsupported=nowhere,
    )


@intrinsic
@no_type_check
def _as_bits(context, number):
    """The 64 bits of a float64."""

    @no_type_check
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(64))

    return numba.types.int64(numba.types.float64), generate


@intrinsic
@no_type_check
def _as_number(context, bits):
    """The float64 of 64 bits."""

    @no_type_check
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return numba.types.float64(numba.types.int64), generate


@summing
@no_type_check
def _rows(policy, reference, policy_peaks, reference_peaks, change_peaks, sums, chunk, weights, totals, kept):
    """Peaks and sums of every row; kept: its weights go into totals [4, V]."""
    vocab = policy.shape[1]
    for row in range(policy.shape[0]):
        p, r = policy[row], reference[row]
        _peaks(p, policy_peaks[row])
        _peaks(r, reference_peaks[row])
        _change_peaks(p, r, change_peaks[row])
        sums[0, 0, row] = _shift(policy_peaks[row])
        sums[1, 0, row] = _shift(reference_peaks[row])
        sums[2, 0, row] = _shift(change_peaks[row])
        sums[:, 1:, row] = 0.0
        for start in range(0, vocab, CHUNK):
            stop = min(start + CHUNK, vocab)
            for column in range(stop - start):
                chunk[0, column] = p[start + column]
                chunk[1, column] = r[start + column]
                chunk[2, column] = chunk[0, column] - chunk[1, column]
            for side in range(3):
                into = weights[side, start:stop] if kept else weights[side, : stop - start]
                total, product = _weighted(
                    chunk[side, : stop - start], chunk[2, : stop - start], sums[side, 0, row], into
                )
                sums[side, 1, row] += total
                sums[side, 2, row] += product
        if kept:
            shares = 1 / sums[:, 1, row]
            lse_p = sums[0, 0, row] + np.log(sums[0, 1, row])
            gap = lse_p - (sums[1, 0, row] + np.log(sums[1, 1, row]))
            for column in range(vocab):
                share = weights[0, column] * shares[0]
                change = np.float64(p[column]) - np.float64(r[column]) - gap
                totals[0, column] += weights[2, column] * shares[2]
                totals[1, column] += share
                totals[2, column] += weights[1, column] * shares[1]
                totals[3, column] += share * change


@summing
@no_type_check
def _weighted(x, d, shift, weights):
    """exp(x - shift) into weights; their sum, and that of d times them, which is NaN or infinite where d is."""
    total = product = 0.0
    for column in range(len(x)):
        weight = _exponential(x[column] - shift)
        weights[column] = weight
        total += weight
        product += weight * d[column]
    return total, product


@in_order
@no_type_check
def _exponential(x):
    """exp(x) for x < 708, relative error 3e-16; no less than exp(LOWEST)."""
    x = x if x > LOWEST else LOWEST
    shifted = x * LOG2E + ROUNDING
    whole = shifted - ROUNDING
    f = (x - whole * LOG2_HIGH) - whole * LOG2_LOW  # in this order nothing of x is lost
    scale = _as_number((_as_bits(shifted) + BIAS) << EXPONENT)
    tail = (((((F12 * f + F11) * f + F10) * f + F9) * f + F8) * f + F7) * f + F6
    return (((((tail * f + F5) * f + F4) * f + F3) * f + F2) * f * f + f + 1.0) * scale


@summing
@no_type_check
def _shift(peaks):
    """The largest of them, or 0 where float64 holds its exponential as it is."""
    peak = peaks[0]
    for column in range(len(peaks)):
        peak = peaks[column] if peaks[column] > peak else peak
    return 0.0 if abs(peak) < SAFE else np.float64(peak)


@summing
@no_type_check
def _peaks(z, peaks):
    """As column_peaks."""
    width = len(z) // LINES
    for column in range(width):
        peaks[column] = z[column]
    for line in range(1, LINES):
        for column in range(width):
            value = z[line * width + column]
            peaks[column] = value if value > peaks[column] else peaks[column]
    if LINES * width < len(z):
        peaks[width] = z[LINES * width]
        for column in range(LINES * width, len(z)):
            peaks[width] = z[column] if z[column] > peaks[width] else peaks[width]


@summing
@no_type_check
def _change_peaks(p, r, peaks):
    """As column_peaks of p - r in float64."""
    width = len(p) // LINES
    for column in range(width):
        peaks[column] = np.float64(p[column]) - np.float64(r[column])
    for line in range(1, LINES):
        for column in range(width):
            value = np.float64(p[line * width + column]) - np.float64(r[line * width + column])
            peaks[column] = value if value > peaks[column] else peaks[column]
    if LINES * width < len(p):
        peaks[width] = -np.inf
        for column in range(LINES * width, len(p)):
            value = np.float64(p[column]) - np.float64(r[column])
            peaks[width] = value if value > peaks[width] else peaks[width]


@in_order
@no_type_check
def _reaching(policy, reference, policy_peaks, reference_peaks, policy_bound, reference_bound, found):
    """Number of entries that reach a bound; into found [2, entries], as far as it goes, positions and tokens."""
    vocab = policy.shape[1]
    width = vocab // LINES
    count = 0
    for row in range(policy.shape[0]):
        p, r = policy_bound[row], reference_bound[row]
        for column in range(policy_peaks.shape[1]):
            if not (policy_peaks[row, column] >= p or reference_peaks[row, column] >= r):
                continue
            for line in range(LINES):
                token = line * width + column if column < width else LINES * width + line
                if token < vocab and (policy[row, token] >= p or reference[row, token] >= r):
                    if count < found.shape[1]:
                        found[0, count] = row
                        found[1, count] = token
                    count += 1
    return count
