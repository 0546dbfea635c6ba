"""The torch backend of the lens kernels: logits of a tile, and the sums over them. Holds eight slices of one stream."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .lens_state import LensState, Pairs

SLOTS = 3  # streams whose exponentials are held at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """One head over a stack of hidden rows: z = softcap tanh(scale (h W^T + bias) / softcap) / temperature."""

    hidden: Float[Tensor, "L N d"]
    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, "V"] | None
    softcap: float | int | None
    scale: float | int
    temperature: float | int

    @property
    def dtype(self) -> torch.dtype:
        """float32, or float64 where either side is: half-precision logits turn an angle of 1e-3 into 1e-2."""
        return torch.promote_types(torch.promote_types(self.hidden.dtype, self.weight.dtype), torch.float32)

    def write(self, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Logits of the columns start..stop of rows[r, d], already multiplied by `_gain`, into out[r, stop - start]."""
        weight = self.weight[start:stop].to(rows.dtype)  # only this tile is ever upcast
        if self.bias is None:
            torch.mm(rows, weight.T, out=out)
        else:
            torch.addmm(self.bias[start:stop].to(rows.dtype) * self._gain, rows, weight.T, out=out)
        if self.softcap is not None:
            out.tanh_().mul_(self.softcap / self.temperature)

    def rows(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """Hidden rows upcast, scale and temperature folded in: a pass over d instead of one over the vocabulary."""
        return hidden.to(dtype) * self._gain

    @property
    def _gain(self) -> float:
        return self.scale / (self.temperature if self.softcap is None else self.softcap)


def checked_readout(
    side: str,
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    softcap: float | int | None,
    scale: float | int,
    temperature: float | int,
) -> Readout:
    """One side, its arguments checked; `side` is the suffix that the message names."""
    if head.ndim != 2 or head.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"head{side} is [vocabulary, width] with the width of hidden{side}, "
            f"got {tuple(head.shape)} for hidden{side} {tuple(hidden.shape)}"
        )
    if bias is not None and bias.shape != (len(head),):
        raise ValueError(f"bias{side} has an entry a row of head{side}, [{len(head)}], got {tuple(bias.shape)}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap{side} is > 0 (None for no cap), got {softcap}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is > 0, got {temperature}")
    if not math.isfinite(scale):
        raise ValueError(f"scale{side} is finite, got {scale}")
    return Readout(hidden=hidden, weight=head, bias=bias, softcap=softcap, scale=scale, temperature=temperature)


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Autocast, TF32 and the bf16 products of oneDNN off inside, and as they were after."""
    backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
    matmuls = [backend.matmul for backend in backends if hasattr(backend, "matmul")]
    settings = [(matmul, matmul.fp32_precision) for matmul in matmuls if hasattr(matmul, "fp32_precision")]
    try:
        for matmul, _ in settings:
            matmul.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for matmul, before in settings:
            matmul.fp32_precision = before


def tile_state(logits: Float[Tensor, "S n v"], pairs: Pairs, moments: int) -> LensState:
    """The state of one tile. Overwrites `logits`. Works a stream at a time, so that its slices stay in the cache.

    moments: of the log-ratio x under both sides of a pair (2), the first (1) or neither (0).
    """
    n_streams, n, _ = logits.shape
    stream = logits.new_empty(3, n_streams, n)
    between = logits.new_empty(2 + 3 * moments, len(pairs), n)
    # views of all rows at once: made one by one they cost as much as a sum
    z, p, s = (rows.unbind() for rows in (logits, *logits.new_empty(2, SLOTS, *logits.shape[1:])))
    peaks, masses, energies = (rows.unbind() for rows in stream)
    overlaps, residuals, *powers = (rows.unbind() for rows in between)
    difference, scratch = torch.empty_like(logits[0]), torch.empty_like(logits[0])
    held: list[int] = []  # streams whose s = exp((z - peak)/2) and p = s^2 a slot holds, the least recently used first
    slots: dict[int, int] = {}
    centred: set[int] = set()

    def load(k: int) -> int:
        if k in held:
            held.remove(k)
        else:
            slots[k] = slots.pop(held.pop(0)) if len(held) == SLOTS else len(held)
            slot = slots[k]
            if k not in centred:
                torch.amax(z[k], -1, out=peaks[k])
                z[k].sub_(peaks[k][:, None])  # from here on logits[k] is z - peak <= 0
            torch.mul(z[k], 0.5, out=s[slot]).exp_()
            if k not in centred or moments:
                torch.mul(s[slot], s[slot], out=p[slot])  # not exp(z): overlap and mass of equal rows agree to the bit
            if k not in centred:
                torch.sum(p[slot], -1, out=masses[k])
                torch.mul(p[slot], z[k], out=scratch)  # -inf: 0 * inf = NaN marks the row
                torch.sum(scratch, -1, out=energies[k])
                centred.add(k)
        held.append(k)
        return slots[k]

    # by the later stream: a chain of neighbours, with the pairs two apart, loads each stream once
    for row in sorted(range(len(pairs)), key=lambda row: sorted(pairs[row], reverse=True)):
        i, j = pairs[row]
        a, b = load(i), load(j)
        torch.sum(torch.mul(s[a], s[b], out=scratch), -1, out=overlaps[row])
        ratio = overlaps[row] / masses[i]  # mass >= 1: the column of the peak
        torch.addcmul(s[b], s[a], ratio[:, None], value=-1, out=scratch)
        torch.linalg.vector_norm(scratch, dim=-1, out=residuals[row])  # one pass where squares and their sum take two
        if moments:
            torch.sub(z[j], z[i], out=difference)  # x = z_j - z_i - pilot with pilot = peak_j - peak_i
        for side, weight in enumerate((p[a], p[b])[:moments]):
            torch.mul(weight, difference, out=scratch)
            for power in range(3):
                if power:
                    scratch.mul_(difference)
                torch.sum(scratch, -1, out=powers[3 * side + power][row])

    peak, mass, energy = stream.double()
    sums = between.double()
    sums[1].square_()
    return LensState(
        peak=peak,
        mass=mass,
        energy=energy,
        overlap=sums[0],
        residual=sums[1],
        pilot=peak[[j for _, j in pairs]] - peak[[i for i, _ in pairs]],
        forward=sums[2:5] if moments > 0 else None,
        backward=sums[5:8] if moments > 1 else None,
    )
