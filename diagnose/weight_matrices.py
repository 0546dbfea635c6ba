"""One weight matrix, or the difference of two: how its spectrum falls, how large the change is, along what directions.

No model here: matrices in, numbers out. Spectra are of the matrix as it stands, without scaling by its size.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..probes.kernels.exponents import clauset_pdf_exponent
from ..probes.kernels.rank_plot import FLOOR

OVER_TRAINED, UNDER_TRAINED = 2.0, 6.0  # WeightWatcher's convention, not a test


@dataclass(frozen=True, slots=True, kw_only=True)
class TailFit:
    """The tail of the eigenvalues lambda = sigma(W)^2; null with a reason where fewer than 10 values can be fitted."""

    alpha_lambda_pdf: float | None  # p(lambda) ~ lambda^-alpha from x_min on; falls when the singular values steepen
    alpha_weighted: float | None  # alpha_lambda_pdf * log10 lambda_max
    lambda_max: float
    x_min: float | None
    n_tail: int
    ks: float | None
    reason: str | None

    @property
    def flag(self) -> str | None:
        """What WeightWatcher calls such a matrix: over-trained under 2, under-trained over 6."""
        if self.alpha_lambda_pdf is None or OVER_TRAINED <= self.alpha_lambda_pdf <= UNDER_TRAINED:
            return None
        return "over-trained" if self.alpha_lambda_pdf < OVER_TRAINED else "under-trained"

    def columns(self, suffix: str = "") -> dict[str, Any]:
        """The fit as columns of a table, `suffix` saying whose."""
        named = {
            "alpha_lambda_pdf": _number(self.alpha_lambda_pdf),
            "alpha_weighted": _number(self.alpha_weighted),
            "lambda_max": self.lambda_max,
            "x_min": _number(self.x_min),
            "n_tail": self.n_tail,
            "ks": _number(self.ks),
            "alpha_reason": self.reason,
            "weightwatcher_flag": self.flag,
        }
        return {f"{name}{suffix}": value for name, value in named.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of a matrix: dW = W - W_reference. Shares in [0, 1]; null with a reason where dW is zero."""

    delta_norm: float  # |dW|, Frobenius
    delta_share: float | None  # |dW| / |W_reference|, Frobenius
    delta_top: float | None  # s_1^2 / sum s^2 of dW, in [1 / rank, 1]
    delta_stable_rank: float | None  # 1 / delta_top
    delta_null: float  # delta_top of a Gaussian matrix of this shape
    delta_top_ratio: float | None  # delta_top / delta_null
    delta_rank: int  # singular values of dW from 1e-6 of the first on
    reason: str | None

    def columns(self) -> dict[str, Any]:
        """The change as columns of a table."""
        return {
            "delta_norm": self.delta_norm,
            "delta_share": _number(self.delta_share),
            "delta_top": _number(self.delta_top),
            "delta_stable_rank": _number(self.delta_stable_rank),
            "delta_null": self.delta_null,
            "delta_top_ratio": _number(self.delta_top_ratio),
            "delta_rank": self.delta_rank,
            "delta_reason": self.reason,
        }


def gaussian_top(rows: int, columns: int) -> float:
    """(sqrt n + sqrt m)^2 / (n m): s_1^2 / sum s^2 of a large n x m matrix of independent Gaussian numbers.

    The edge of Marchenko and Pastur (1967); small matrices lie a little below. ValueError for an empty shape.

    >>> round(gaussian_top(576, 576), 5), round(gaussian_top(1536, 576), 5)
    (0.00694, 0.00451)
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a matrix has rows and columns, got {rows} x {columns}")
    return (math.sqrt(rows) + math.sqrt(columns)) ** 2 / (rows * columns)


def eigenvalues(matrix: Float[Tensor, "rows columns"]) -> Float[np.ndarray, "k"]:
    """sigma^2 in descending order, float64, those of sigma < 1e-6 sigma_1 left out: they are rounding.

    From the Gram matrix of the smaller side. ValueError for NaN or infinity.
    """
    if not torch.isfinite(matrix).all():
        raise ValueError(f"{int((~torch.isfinite(matrix)).sum())} of {matrix.numel()} weights are not finite")
    w = matrix.double()
    largest = float(w.abs().max())
    if largest == 0:
        return np.zeros(0)
    w = w / largest  # squares of numbers near 1e-160 would vanish
    gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
    found = torch.linalg.eigvalsh(gram).flip(0).cpu().numpy()
    return found[found >= FLOOR**2 * found[0]] * largest**2


def tail_fit(values: Float[np.ndarray, "k"]) -> TailFit:
    """Clauset's fit of the tail of eigenvalues (arXiv 0706.1062), x_min by the smallest Kolmogorov-Smirnov distance.

    alpha_weighted as in WeightWatcher (Martin, Peng, Mahoney 2021). No p-value: eigenvalues are not independent.
    """
    if not len(values):
        return TailFit(
            alpha_lambda_pdf=None, alpha_weighted=None, lambda_max=0.0, x_min=None, n_tail=0, ks=None,
            reason="every weight is 0",
        )  # fmt: skip
    fit, largest = clauset_pdf_exponent(values), float(values.max())
    return TailFit(
        alpha_lambda_pdf=fit.exponent,
        alpha_weighted=None if fit.exponent is None else fit.exponent * math.log10(largest),
        lambda_max=largest,
        x_min=fit.x_min,
        n_tail=fit.n,
        ks=fit.ks,
        reason=fit.reason,
    )


def change(
    matrix: Float[Tensor, "rows columns"], reference: Float[Tensor, "rows columns"]
) -> tuple[Change, Float[np.ndarray, "k"]]:
    """How a matrix differs from its reference, and the eigenvalues of the difference."""
    difference = matrix.double() - reference.double()
    values, norm, before = eigenvalues(difference), float(difference.norm()), float(reference.double().norm())
    rows, columns = matrix.shape
    null = gaussian_top(rows, columns)
    top = None if not len(values) else min(1.0, float(values[0]) / norm**2)
    return Change(
        delta_norm=norm,
        delta_share=None if before == 0 else norm / before,
        delta_top=top,
        delta_stable_rank=None if top is None else 1 / top,
        delta_null=null,
        delta_top_ratio=None if top is None else top / null,
        delta_rank=len(values),
        reason="the matrix did not change" if top is None else "the reference is 0" if before == 0 else None,
    ), values


def _number(value: float | None) -> float:
    return math.nan if value is None else value
