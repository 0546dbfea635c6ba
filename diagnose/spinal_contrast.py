"""Is a difference between two models, layer by layer, more than the choice of prompts explains?

Paired: both models read the same prompts. Arrays in, tables out; knows no model and assumes no sign.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats

from ..errors import InputError
from .spinal_gates import BULK, WIDE, Window, window_ranks
from .spinal_options import exponents_with
from .spinal_reading import last_third
from .spinal_settings import RESOLUTION
from .spinal_trace import bootstrap_means, jackknife_se, student
from .statistics import holm, sign_flip_max_t

FLIPS = 9_999
MIN_TESTED = 7  # clusters: the smallest p that flips of 6 signs can give is 2 * 2^-6 = .031, above the alarm's .025
SUFFIXES = ("", "_low", "_high")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpectraSide:
    """The spectra of one side of a comparison."""

    spectra: Float[np.ndarray, "layers k"]  # padded with 0
    jackknife: Float[np.ndarray, "G layers k"]
    n_ranks: Int[np.ndarray, "layers"]
    fitted: Bool[np.ndarray, "layers"]  # the layer has an exponent
    estimator: str = "ols"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExponentContrast:
    """Differences of exponents at equal ranks (aligned minus base), with what an interval of any mean of them needs."""

    value: Float[np.ndarray, "layers"]  # NaN where either model has none
    groups: Float[np.ndarray, "G layers"]  # the same without each jackknife group

    @property
    def se(self) -> Float[np.ndarray, "layers"]:
        return jackknife_se(self.groups)

    def mean(self, layers: Int[np.ndarray, "k"]) -> tuple[float, float, float, int]:
        """Mean over layers that have a value, the ends of its jackknife interval, and how many layers those are."""
        some = layers[np.isfinite(self.value[layers])]
        if not len(some):
            return math.nan, math.nan, math.nan, 0
        value = float(self.value[some].mean())
        reach = float(jackknife_se(self.groups[:, some].mean(1))) * student(len(self.groups))
        return value, value - reach, value + reach, len(some)


def terminal_window(terminal: str | tuple[int, int] | list[int], n_layers: int) -> tuple[int, int]:
    """First and last block, 1..L, of "last_third" (the last max(3, ceil(L/3))), "last_<k>", "<i>-<j>", or a pair.

    Raises InputError where the model has fewer blocks than the window needs.
    """
    if isinstance(terminal, str):
        if terminal == "last_third":
            size = n_layers - last_third(n_layers)[0] + 1
        elif terminal.startswith("last_") and terminal[5:].isdecimal():
            size = int(terminal[5:])
        elif found := re.fullmatch(r"(\d+)-(\d+)", terminal):
            return terminal_window((int(found[1]), int(found[2])), n_layers)
        else:
            raise InputError(f"terminal={terminal!r}: expected last_third, last_<k> (as last_10), or 21-30")
        first, last = n_layers - size + 1, n_layers
    else:
        first, last = (int(end) for end in terminal)
    if not 1 <= first <= last <= n_layers:
        raise InputError(f"terminal={terminal!r}: blocks {first} to {last} of a model with blocks 1 to {n_layers}")
    return first, last


def exponents_of_both(
    base: SpectraSide, aligned: SpectraSide, window: Window
) -> tuple[tuple[Float[np.ndarray, "layers"], ...], tuple[Float[np.ndarray, "G layers"], ...]]:
    """Exponents and delete-group exponents of both sides at equal ranks: those that the smaller r gives the window."""
    shape = base.jackknife.shape[:2]
    values = tuple(np.full(shape[1], np.nan) for _ in range(2))
    groups = tuple(np.full((len(side.jackknife), shape[1]), np.nan) for side in (base, aligned))
    for layer in np.flatnonzero(base.fitted & aligned.fitted):
        first, last = window_ranks(int(min(base.n_ranks[layer], aligned.n_ranks[layer])), window)
        for side, value, group in zip((base, aligned), values, groups, strict=True):
            value[layer] = exponents_with(side.spectra[layer], first, last, side.estimator)
            group[:, layer] = exponents_with(side.jackknife[:, layer], first, last, side.estimator)
    return values, groups


def exponent_contrast(base: SpectraSide, aligned: SpectraSide, window: Window) -> ExponentContrast:
    """Paired differences, aligned minus base; both sides used the same jackknife groups."""
    values, groups = exponents_of_both(base, aligned, window)
    return ExponentContrast(value=values[1] - values[0], groups=groups[1] - groups[0])


def exponent_columns(contrasts: dict[str, ExponentContrast]) -> dict[str, Float[np.ndarray, "layers"]]:
    """d_alpha (of the window ""), with Holm-adjusted p over the blocks, and d_alpha_<window>, with intervals."""
    columns: dict[str, Float[np.ndarray, "layers"]] = {}
    for name, contrast in contrasts.items():
        key = f"d_alpha{name}"
        reach = contrast.se * student(len(contrast.groups))
        columns |= {key: contrast.value, f"{key}_low": contrast.value - reach, f"{key}_high": contrast.value + reach}
    plain = contrasts[""]
    freedom = np.full(len(plain.value), len(plain.groups) - 1.0)
    columns["d_alpha_p"] = student_p(plain.value, plain.se, freedom)
    return columns


def windows(window: Window) -> dict[str, Window]:
    """The chosen window and the two always printed beside it: a change of window can flip a sign."""
    return {"": window, "_wide": WIDE, "_bulk": BULK}


def student_p(
    value: Float[np.ndarray, "layers"], se: Float[np.ndarray, "layers"], freedom: Float[np.ndarray, "layers"]
) -> Float[np.ndarray, "layers"]:
    """Two-sided t, Holm-adjusted over the blocks (layer 0 is no member); 1 for a difference under `RESOLUTION`."""
    p = np.full(len(value), np.nan)
    for layer in range(1, len(value)):
        if not (math.isfinite(value[layer]) and math.isfinite(se[layer])):
            continue
        if abs(value[layer]) < RESOLUTION:
            p[layer] = 1.0
        else:
            p[layer] = 2 * stats.t.sf(abs(value[layer]) / se[layer], freedom[layer]) if se[layer] > 0 else 0.0
    tested = np.isfinite(p)
    if tested.any():
        p[tested] = np.asarray(holm(p[tested]))
    return p


def transport_table(
    base: Float[np.ndarray, "steps N"],
    aligned: Float[np.ndarray, "steps N"],
    clusters: Int[np.ndarray, "N"],
    seed: int,
) -> pd.DataFrame:
    """Steps 1..L-1: mean difference of angles, its interval, t, and p of the largest |t| (whole prompts flipped).

    Mean and interval weigh prompts the same; t and p weigh clusters (prompts of one `prompt_id`) the same.
    """
    difference = aligned[1:] - base[1:]
    table = pd.DataFrame({"layer": np.arange(1, len(base)), "n": difference.shape[1]})
    for suffix, column in zip(SUFFIXES, bootstrap_means(difference, clusters, seed), strict=True):
        table["d_angle" + suffix] = column
    table["p"], table["t"] = flipped(difference, clusters, seed)
    return table


def flipped(
    difference: Float[np.ndarray, "K N"], clusters: Int[np.ndarray, "N"], seed: int
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
    """p, adjusted for all rows, and t of a paired sign-flip test of cluster means.

    p 1 and t 0 for a row whose mean |difference| is under `RESOLUTION`: what batching may move is not tested. NaN for a
    row that was not read.
    """
    difference = np.where(np.abs(difference).mean(1, keepdims=True) < RESOLUTION, 0.0, difference)
    means = by_cluster(difference, clusters)
    p, t = np.ones(len(difference)), np.zeros(len(difference))
    if len(means) < 2:
        return np.full_like(p, np.nan), np.full_like(t, np.nan)
    unread = np.isnan(difference).any(1)
    p[unread], t[unread] = np.nan, np.nan
    some = (means != 0).any(0) & ~unread
    if some.any():
        found_t, found_p = sign_flip_max_t(means[:, some], flips=FLIPS, seed=seed)
        p[some], t[some] = found_p, found_t
    return p, t


def by_cluster(values: Float[np.ndarray, "K N"], clusters: Int[np.ndarray, "N"]) -> Float[np.ndarray, "C K"]:
    """Mean of every cluster, a row a cluster."""
    codes = np.unique(clusters, return_inverse=True)[1]
    member = np.zeros((codes.max(initial=-1) + 1, len(codes)))
    member[codes, np.arange(len(codes))] = 1.0
    return (member @ values.T) / member.sum(1, keepdims=True)


def smallest(p: Float[np.ndarray, "K"] | pd.Series) -> float:
    """The family's p: the smallest adjusted one; NaN where nothing was tested."""
    finite = np.asarray(p, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(finite.min()) if len(finite) else math.nan
