"""Other ways to an exponent: rows scaled or uncentred, another estimator. They change alpha itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..probes.kernels import fit_power_law
from ..probes.kernels.rank_plot import exponents_at
from .spinal_settings import pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumOptions:
    """How rows become an exponent; the defaults are those of the preset `robust`."""

    estimator: str = "ols"
    center: bool = True
    row_scale: str | None = None
    drop_top: int = 0
    bias: str | None = None
    stack: int | None = None
    pooled: bool = False  # several rows a prompt

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "SpectrumOptions":
        """From the settings of a trace; those of before the options are the defaults."""
        stack = settings.get("stack", "all")
        return cls(
            estimator=settings.get("estimator", "ols"),
            center=settings.get("centering", "column") == "column",
            row_scale=settings.get("row_scale"),
            drop_top=settings.get("drop_top", 0),
            bias=settings.get("bias"),
            stack=None if stack == "all" else int(stack),
            pooled=pooled(settings.get("positions", "last")),
        )


def scaled(rows: Float[np.ndarray, "*layers N d"], scale: str | None) -> Float[np.ndarray, "*layers N d"]:
    """Rows divided by their root mean square ("rms") or length ("l2"); a row of zeros stays."""
    if scale is None:
        return rows
    if rows.ndim > 2:  # a layer at a time: the float64 copies of all would take four times the rows
        return np.stack([scaled(layer, scale) for layer in rows])
    size = np.sqrt((rows.astype(np.float64) ** 2).sum(-1, keepdims=True))
    size = size / math.sqrt(rows.shape[-1]) if scale == "rms" else size
    return (rows / np.where(size > 0, size, 1.0)).astype(rows.dtype)


def exponents_with(
    spectra: Float[np.ndarray, "*batch k"], first: int, last: int, estimator: str = "ols"
) -> Float[np.ndarray, "*batch"]:
    """Exponents of many spectra at the same ranks; NaN where one has none."""
    if estimator == "ols":
        return exponents_at(spectra, first, last)
    flat = spectra.reshape(-1, spectra.shape[-1])
    found = [fit_power_law(sigma, window=(first, last), estimator=estimator).exponent for sigma in flat]  # type: ignore[arg-type]
    return np.array([math.nan if alpha is None else alpha for alpha in found]).reshape(spectra.shape[:-1])
