"""How heavy is the tail of a set of positive numbers? The exponent of a power-law density, by maximum likelihood."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

MIN_TAIL = 10  # values that a fit needs


@dataclass(frozen=True, slots=True, kw_only=True)
class PdfExponent:
    """p(x) ~ x^-exponent from x_min on; without a value, `reason` says why."""

    exponent: float | None
    x_min: float | None
    n: int  # values from x_min on
    ks: float | None  # Kolmogorov-Smirnov distance of that tail from its fit
    reason: str | None


def clauset_pdf_exponent(values: Float[np.ndarray, "n"], x_min: float | None = None) -> PdfExponent:
    """1 + n / sum(ln(x_i / x_min)) over the n values >= x_min; Clauset, Shalizi and Newman, arXiv 0706.1062.

    x_min: given, or the value whose tail (of at least 10 values) lies nearest to its fit by Kolmogorov-Smirnov.
    Zeros are left out. ValueError for negative or non-finite values.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    if not np.isfinite(x).all() or (len(x) and x[0] < 0):
        raise ValueError("values are finite and >= 0")
    x = x[x > 0]
    starts = np.unique(x, return_index=True)[1] if x_min is None else np.array([np.searchsorted(x, x_min)])
    best = PdfExponent(
        exponent=None, x_min=None, n=len(x), ks=None, reason=f"too few values: {len(x)}, {MIN_TAIL} needed"
    )
    for start in starts[len(x) - starts >= MIN_TAIL]:
        tail = x[start:]
        logs = np.log(tail / (tail[0] if x_min is None else x_min))
        if logs.sum() == 0:
            continue
        exponent = 1 + len(tail) / logs.sum()
        model = -np.expm1(-(exponent - 1) * logs)
        steps = np.arange(len(tail) + 1) / len(tail)
        ks = float(max((steps[1:] - model).max(), (model - steps[:-1]).max()))
        if best.ks is None or ks < best.ks:
            best = PdfExponent(exponent=float(exponent), x_min=float(tail[0]), n=len(tail), ks=ks, reason=None)
    return best
