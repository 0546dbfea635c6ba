"""How many independent rows are pooled tokens worth? Those of one prompt resemble each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import fft
from torch import Tensor

from .statistics import cluster_codes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EffectiveRows:
    """N_eff of rows pooled over prompts: as many independent rows would tell as much about the covariance."""

    n_eff: float | None  # at most n; None with a reason
    n: int
    n_prompts: int
    rho: Float[np.ndarray, "lags"]  # correlation at lags 1, 2, .. in positions; empty where n_eff is None
    reason: str | None


def effective_rows(
    rows: Float[np.ndarray, "N d"] | Float[Tensor, "N d"],
    prompt_ids: Shaped[np.ndarray, "_"] | Shaped[Tensor, "_"] | Sequence[str] | Sequence[int],
) -> EffectiveRows:
    """N_eff = N / (1 + 2 sum_h (n_h / N) rho_h^2), n_h = pairs of rows of one prompt that stand h apart.

    rho_h = (mean of <x_t, x_t+h> over all n_h pairs of all prompts) / (mean |x|^2 over all rows), after the mean of all
    rows is taken off: pooled before it is squared, for noise in each prompt's own rho would count as dependence. With
    prompts of equal length T, n_h / N = 1 - h / T. Rows of a prompt stand in the order of their positions; prompts may
    come in any order, also mixed. Squares, because it is the covariance that is estimated: AR(1) of rho costs
    (1 + rho^2) / (1 - rho^2), 9.5 at .9. Independent rows lose about 2 / (prompts * participation ratio) of N to noise.

    No value, with a reason: fewer than 2 rows, or all rows the same. ValueError: shapes that do not fit, or rows with
    NaN or infinity (leave them out; in a prompt the rows after one would then stand too near). Float64. Under
    N_eff = 4 d an exponent of the pooled rows should carry a warning. Reconstructed: docs/spinal.md.

    >>> both = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> effective_rows(both, ["a", "a", "b", "b"]).n_eff
    2.0
    """
    x = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows
    ids = np.asarray(prompt_ids.cpu() if isinstance(prompt_ids, Tensor) else prompt_ids)
    if x.ndim != 2 or ids.shape != (len(x),):
        raise ValueError(f"rows [N, d] and an id a row, [N], expected, got {x.shape} and {ids.shape}")
    codes, n_prompts = cluster_codes(ids)
    nothing = EffectiveRows(n_eff=None, n=len(x), n_prompts=n_prompts, rho=np.zeros(0), reason=None)
    if len(x) < 2:
        return replace(nothing, reason=f"{len(x)} rows: at least 2 are needed")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x).all(1)).sum())} of {len(x)} rows hold NaN or infinity")
    if (x == x[0]).all():
        return replace(nothing, reason="all rows are the same: nothing varies")

    mean = x.mean(0, dtype=np.float64)
    lengths = np.bincount(codes)
    products = np.zeros(lengths.max())  # by lag, 0 first: sum of <x_t, x_t+h>
    for prompt in _prompts(x, codes, lengths):
        products[: len(prompt)] += _lagged_products(prompt - mean)
    pairs = _pairs(lengths)
    rho = (products[1:] / pairs[1:]) / (products[0] / len(x))
    n_eff = len(x) / (1 + 2 * float(pairs[1:] / len(x) @ rho**2))
    return EffectiveRows(n_eff=n_eff, n=len(x), n_prompts=n_prompts, rho=rho, reason=None)


def _prompts(
    x: Float[np.ndarray, "N d"], codes: Int[np.ndarray, "N"], lengths: Int[np.ndarray, "P"]
) -> Iterator[Float[np.ndarray, "T d"]]:
    """The rows of each prompt, in the order given, as float64."""
    order = np.argsort(codes, kind="stable")
    for stop, length in zip(np.cumsum(lengths), lengths, strict=True):
        yield x[order[stop - length : stop]].astype(np.float64)


def _lagged_products(x: Float[np.ndarray, "T d"]) -> Float[np.ndarray, "T"]:
    """sum_t <x_t, x_t+h> for h = 0..T-1, by Fourier transform: T log T d steps where products of pairs take T^2 d."""
    size = fft.next_fast_len(2 * len(x) - 1, real=True)  # zeros past the end: no lag wraps round
    power = (np.abs(fft.rfft(x, size, axis=0)) ** 2).sum(1)
    return np.asarray(fft.irfft(power, size)[: len(x)])


def _pairs(lengths: Int[np.ndarray, "P"]) -> Int[np.ndarray, "T"]:
    """n_h = sum over prompts of max(length - h, 0), h = 0..longest - 1."""
    longer = np.bincount(lengths)[::-1].cumsum()[::-1][1:]  # prompts with more than h rows
    return longer[::-1].cumsum()[::-1]
