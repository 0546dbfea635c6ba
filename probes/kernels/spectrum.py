"""Which singular values do centred activations have? Streamed in float64, so that rows need not be held."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 1024  # rows squared at a time
BLOCK = 128  # columns of the lower triangle a product
MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}  # stored bits


class SpectrumAccumulator:
    """Second moments of rows x[d] about a pilot p: n, s = sum (x - p), S = sum (x - p)(x - p)^T; all float64.

    p is the mean of the first chunk and stays; it keeps a large common offset out of the squares. Rows with a NaN or
    infinity are set aside and counted in `n_nonfinite`. Accumulators merge exactly, whatever their pilots, so halves by
    parity of the prompt's index cost nothing beside the full sample, which is their merge.
    """

    def __init__(
        self, width: int, *, device: str | torch.device = "cpu", pilot: Float[Tensor, "d"] | None = None
    ) -> None:
        if width < 1:
            raise ValueError(f"width is the number of columns, >= 1, got {width}")
        if pilot is not None and pilot.shape != (width,):
            raise ValueError(f"pilot has an entry a column, [{width}], got {tuple(pilot.shape)}")
        self.width = width
        self.n_rows = 0  # finite rows
        self.n_nonfinite = 0
        self.n_clipped: int | None = None  # eigenvalues < 0 (rounding) set to 0 by the last singular_values()
        self._pilot = None if pilot is None else pilot.detach().to(device, torch.float64, copy=True)
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._squares = torch.zeros(width, width, dtype=torch.float64, device=device)  # lower triangle is meant
        self._ulps = torch.zeros(width, dtype=torch.float64, device=device)  # sum of squared storage spacings

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "n d"]) -> None:
        """Add rows in the dtype they were stored in (that decides `rounding_floor`). ValueError: another width."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"rows are [n, {self.width}], got {tuple(rows.shape)}")
        for chunk in rows.to(self._sum.device).split(CHUNK):
            x = chunk.to(torch.float64, copy=True)  # [n, d]
            finite = x.sum(1).isfinite()  # a NaN or infinity reaches the sum of its row
            if not finite.all():
                self.n_nonfinite += int((~finite).sum())
                chunk, x = chunk[finite], x[finite]
            if not len(x):
                continue
            if self._pilot is None:
                self._pilot = x.mean(0)
            x.sub_(self._pilot)  # in float64: bf16(x - p) would round again
            self.n_rows += len(x)
            self._sum += x.sum(0)
            _add_squares(self._squares, x)
            self._ulps += _squared_spacing(chunk)

    @torch.no_grad()
    def merge(self, other: "SpectrumAccumulator") -> None:
        """Add another accumulator's rows; `other` is left as it was. ValueError: another width."""
        if other.width != self.width:
            raise ValueError(f"widths differ: {self.width} and {other.width}")
        device = self._sum.device
        self.n_nonfinite += other.n_nonfinite
        if other._pilot is None or not other.n_rows:
            return
        pilot, total = other._pilot.to(device), other._sum.to(device)
        if self._pilot is None:
            self._pilot = pilot.clone()
        shift = pilot - self._pilot
        cross = torch.outer(total, shift)
        self._squares += other._squares.to(device) + cross + cross.T + other.n_rows * torch.outer(shift, shift)
        self._sum += total + other.n_rows * shift
        self._ulps += other._ulps.to(device)
        self.n_rows += other.n_rows

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """Mean of the finite rows, float64. ValueError without rows."""
        return self._centre() + self._sum / self._rows(1)

    def covariance(self) -> Float[Tensor, "d d"]:
        """S/n - (s/n)(s/n)^T, divisor n, float64. ValueError without rows."""
        return self._scatter(centered=True) / self._rows(1)

    def singular_values(self, centered: bool = True) -> Float[Tensor, "d"]:
        """Singular values of the n x d matrix of rows (column-centred, or as they are), descending, d long, float64.

        Roots of the eigenvalues of the scatter; those below 0 by rounding count in `n_clipped` and are 0. Past
        min(n - 1, d) values are rounding of 0, about 1e-8 of the first. ValueError: fewer than 2 finite rows.
        """
        self._rows(2)
        eigenvalues = torch.linalg.eigvalsh(self._scatter(centered), UPLO="L").flip(0)
        self.n_clipped = int((eigenvalues < 0).sum())
        return eigenvalues.clamp(min=0).sqrt()

    @property
    def rounding_floor(self) -> tuple[float, float]:
        """Variance that storing the rows in their dtype added, nu_j = mean(ulp_j^2)/12: (mean, max) over columns j.

        In units of the covariance's eigenvalues; ulp = 2^(floor(log2|x|) - m), m = 7 / 10 / 23 stored mantissa bits of
        bf16 / fp16 / fp32. Eigenvalues under it are storage noise.
        """
        noise = self._ulps / self._rows(1) / 12
        return float(noise.mean()), float(noise.max())

    def state(self) -> dict[str, Any]:
        """Everything needed to go on elsewhere: plain integers and float64 arrays on the CPU."""
        arrays = {"sum": self._sum, "squares": self._squares.tril(), "ulps": self._ulps}
        if self._pilot is not None:
            arrays["pilot"] = self._pilot
        counts = {"width": self.width, "n_rows": self.n_rows, "n_nonfinite": self.n_nonfinite}
        return {**counts, **{name: value.cpu().numpy().copy() for name, value in arrays.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any], *, device: str | torch.device = "cpu") -> "SpectrumAccumulator":
        """The accumulator whose `state()` this is."""
        pilot = torch.as_tensor(state["pilot"]) if "pilot" in state else None
        made = cls(int(state["width"]), device=device, pilot=pilot)
        made.n_rows, made.n_nonfinite = int(state["n_rows"]), int(state["n_nonfinite"])
        for own, name in ((made._sum, "sum"), (made._squares, "squares"), (made._ulps, "ulps")):
            own.copy_(torch.as_tensor(state[name]))
        return made

    def _rows(self, needed: int) -> int:
        if self.n_rows < needed:
            raise ValueError(
                f"{needed} finite rows needed, got {self.n_rows} ({self.n_nonfinite} with NaN or infinity set aside)"
            )
        return self.n_rows

    def _centre(self) -> Tensor:
        return self._sum.new_zeros(self.width) if self._pilot is None else self._pilot

    def _scatter(self, centered: bool) -> Tensor:
        """sum (x - c)(x - c)^T, symmetric; c = mean or 0."""
        n = self._rows(1)
        scatter = self._squares.tril()
        scatter = scatter + scatter.tril(-1).T
        if centered:
            root = self._sum / math.sqrt(n)
            return scatter - torch.outer(root, root)
        pilot = self._centre()
        cross = torch.outer(self._sum, pilot)
        return scatter + cross + cross.T + n * torch.outer(pilot, pilot)


def _add_squares(squares: Float[Tensor, "d d"], x: Float[Tensor, "n d"]) -> None:
    """Add the lower triangle of x^T x to `squares`, in place, for little more than half the work of the full product.

    By torch and not by scipy's dsyrk, which is faster on one thread: with two, its own pool fights with torch's.
    """
    columns = x.T.contiguous()  # [d, n]; one copy makes every block a product of rows
    for start in range(0, len(squares), BLOCK):
        stop = min(start + BLOCK, len(squares))
        squares[start:, start:stop].addmm_(columns[start:], columns[start:stop].T)


def _squared_spacing(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """Sum of ulp(x)^2 over rows, in their dtype; float64. The exponent bits alone are 2^floor(log2|x|); 0 and
    subnormals give 0."""
    if rows.dtype == torch.float64:
        power = (rows.contiguous().view(torch.int64) & 0x7FF0000000000000).view(torch.float64)
    else:
        power = (rows.float().contiguous().view(torch.int32) & 0x7F800000).view(torch.float32).double()
    return power.square_().sum(0) * 4.0 ** -MANTISSA[rows.dtype]
