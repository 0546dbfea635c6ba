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


def tile_state(logits: Float[Tensor, "S n v"], pairs: Pairs, divergences: bool) -> LensState:
    """The state of one tile. Overwrites `logits`. Works a stream at a time, so that its slices stay in the cache.

    divergences False: no moments of the backward KL; those of the forward KL are what small angles come from.
    """
    n_streams, n, _ = logits.shape
    stream = logits.new_empty(3, n_streams, n)  # peak, mass, energy
    between = logits.new_empty(8 if divergences else 5, len(pairs), n)  # overlap, residual, forward 1..3, backward 1..3
    p, s = logits.new_empty(SLOTS, *logits.shape[1:]), logits.new_empty(SLOTS, *logits.shape[1:])
    difference, scratch = torch.empty_like(logits[0]), torch.empty_like(logits[0])
    held: list[int] = []  # streams whose s = exp((z - peak)/2) and p = s^2 a slot holds, the least recently used first
    slots: dict[int, int] = {}
    centred: set[int] = set()

    def load(k: int) -> int:
        if k in held:
            held.remove(k)
        else:
            slots[k] = slots.pop(held.pop(0)) if len(held) == SLOTS else len(held)
            z, slot = logits[k], slots[k]
            if k not in centred:
                peak = torch.amax(z, -1, out=stream[0, k])
                z.sub_(peak[:, None])  # from here on logits[k] is z - peak <= 0
            torch.mul(z, 0.5, out=s[slot]).exp_()
            torch.mul(s[slot], s[slot], out=p[slot])  # not exp(z): overlap and mass of equal rows agree to the bit
            if k not in centred:
                torch.sum(p[slot], -1, out=stream[1, k])
                torch.sum(torch.mul(p[slot], z, out=scratch), -1, out=stream[2, k])  # -inf: 0 * inf = NaN marks the row
                centred.add(k)
        held.append(k)
        return slots[k]

    # by the later stream: a chain of neighbours, with the pairs two apart, loads each stream once
    for row in sorted(range(len(pairs)), key=lambda row: sorted(pairs[row], reverse=True)):
        i, j = pairs[row]
        a, b = load(i), load(j)
        torch.sum(torch.mul(s[a], s[b], out=scratch), -1, out=between[0, row])
        ratio = between[0, row] / stream[1, i]  # mass >= 1: the column of the peak
        torch.addcmul(s[b], s[a], ratio[:, None], value=-1, out=scratch)
        torch.sum(scratch.square_(), -1, out=between[1, row])
        torch.sub(logits[j], logits[i], out=difference)  # x = z_j - z_i - pilot with pilot = peak_j - peak_i
        for offset, weight in ((2, p[a]), (5, p[b]))[: 2 if divergences else 1]:
            torch.mul(weight, difference, out=scratch)
            torch.sum(scratch, -1, out=between[offset, row])
            torch.sum(scratch.mul_(difference), -1, out=between[offset + 1, row])
            torch.sum(scratch.mul_(difference), -1, out=between[offset + 2, row])

    peak, mass, energy = stream.double()
    sums = between.double()
    return LensState(
        peak=peak,
        mass=mass,
        energy=energy,
        overlap=sums[0],
        residual=sums[1],
        pilot=peak[[j for _, j in pairs]] - peak[[i for i, _ in pairs]],
        forward=sums[2:5],
        backward=sums[5:8] if divergences else None,
    )
