"""What would the comparison say about one model against itself? The control on two disjoint halves of the prompts.

The one contrast that is not paired: labels of prompts are permuted, and jackknife variances add.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats

from .spinal_contrast import SUFFIXES, SpectraSide, by_cluster, exponents_of_both, smallest, student_p
from .spinal_gates import Window, fit_layer
from .spinal_options import SpectrumOptions, scaled
from .spinal_spectra import all_layers, group_labels, rounding_floor
from .spinal_trace import DRAWS, SpinalTrace, cluster_codes, jackknife_se
from .statistics import cluster_bootstrap

PERMUTATIONS = 9_999
CHUNK = 1_000  # permutations at a time
Interval = tuple[float, float, float]  # value, low, high; NaN where it could not be had
ALARM = 0.025  # a family's p; two families, 5 % together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HalvesControl:
    """The base on one half of its prompts against the other half; nothing differs but the prompts."""

    table: pd.DataFrame  # a row a layer: n (both halves), d_alpha and d_angle with _low and _high, d_alpha_p, p, t
    n: tuple[int, int]  # prompts in each half
    d_alpha_terminal: Interval
    d_transport_terminal: Interval
    alpha_p: float  # smallest Holm-adjusted p; NaN without exponents
    transport_p: float

    @property
    def alarm(self) -> bool:
        """A family of tests says that the halves differ: about 5 % of sound runs do."""
        return self.alpha_p < ALARM or self.transport_p < ALARM


def halves_control(trace: SpinalTrace, terminal: tuple[int, int] | None, *, seed: int) -> HalvesControl:
    """Compare one model on two random disjoint halves of its prompts, at N/2."""
    used = np.flatnonzero(trace.kept)
    clusters = cluster_codes([trace.prompts[int(i)] for i in used])
    second = half_labels(clusters, seed)
    readings, settings = trace.readings.take(used), trace.settings
    dtype = trace.model.dtype
    floors = [rounding_floor(rows, dtype) for rows in readings.spectrum_rows]  # as of the trace itself
    sides = []
    for part, half in enumerate((~second, second)):
        read = readings.take(half)
        sides.append(spectra_of(read.spectrum_rows, clusters[half][read.owner], settings, seed + part, floors, dtype))
    table, d_alpha = _unpaired_exponents(sides[0], sides[1], settings["window"], terminal)

    angle = readings.angle[1:]  # step 0, from the embeddings, belongs to no aggregate
    steps = pd.DataFrame({"layer": np.arange(1, len(angle) + 1)})
    for suffix, column in zip(SUFFIXES, _unpaired_means(angle, clusters, second, seed), strict=True):
        steps["d_angle" + suffix] = column
    labels = by_cluster(second[None].astype(float), clusters)[:, 0] > 0.5
    steps["p"], steps["t"] = permuted(by_cluster(angle, clusters), labels, seed)
    d_transport: Interval = (math.nan, math.nan, math.nan)
    if terminal is not None and terminal[1] > terminal[0]:
        inside = angle[terminal[0] - 1 : terminal[1] - 1].mean(0, keepdims=True)
        value, low, high = _unpaired_means(inside, clusters, second, seed)
        d_transport = (float(value[0]), float(low[0]), float(high[0]))
    table.insert(1, "n", len(clusters))
    return HalvesControl(
        table=table.merge(steps, on="layer", how="left"),
        n=(int((~second).sum()), int(second.sum())),
        d_alpha_terminal=d_alpha,
        d_transport_terminal=d_transport,
        alpha_p=smallest(table.d_alpha_p),
        transport_p=smallest(steps.p),
    )


def half_labels(clusters: Int[np.ndarray, "N"], seed: int) -> Bool[np.ndarray, "N"]:
    """True for the second half; clusters stay whole."""
    distinct, codes = np.unique(clusters, return_inverse=True)
    return np.random.default_rng([seed, 3]).permutation(np.arange(len(distinct)) % 2 == 1)[codes]


def permuted(
    values: Float[np.ndarray, "C K"], second: Bool[np.ndarray, "C"], seed: int
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
    """p, adjusted by the largest |t| over columns, and Welch's t of second minus first half; labels are permuted.

    p = (1 + #{max |t| of a permutation >= |t|}) / (1 + permutations).
    """
    observed = _welch(values, second[None].astype(float))[0]
    if not np.isfinite(observed).any():
        return np.full(len(observed), np.nan), np.full(len(observed), np.nan)
    random = np.random.default_rng([seed, 4])
    reached = np.zeros(len(observed))
    for start in range(0, PERMUTATIONS, CHUNK):
        labels = np.tile(second, (min(CHUNK, PERMUTATIONS - start), 1)).astype(float)
        largest = np.nanmax(np.abs(_welch(values, random.permuted(labels, axis=1))), axis=1)
        reached += (largest[:, None] >= np.abs(observed)[None] * (1 - 1e-12)).sum(0)
    unread = np.isnan(values).any(0)  # a step that was not read has no t, and moved no maximum
    p = (1 + reached) / (1 + PERMUTATIONS)
    return np.where(unread, np.nan, p), np.where(unread, np.nan, observed)


def _welch(values: Float[np.ndarray, "C K"], labels: Float[np.ndarray, "B C"]) -> Float[np.ndarray, "B K"]:
    """t of the labelled rows' mean minus the others', a row a labelling; NaN with fewer than 2 rows a side."""
    values = values - values.mean(0)  # squares of a small spread about a large mean would cancel
    n1 = labels.sum(1, keepdims=True)
    n0 = labels.shape[1] - n1
    if n1.min() < 2 or n0.min() < 2:
        return np.full((len(labels), values.shape[1]), np.nan)
    sums, squares = labels @ values, labels @ values**2
    m1, m0 = sums / n1, (values.sum(0) - sums) / n0
    v1 = (squares - n1 * m1**2) / (n1 - 1)
    v0 = ((values**2).sum(0) - squares - n0 * m0**2) / (n0 - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (m1 - m0) / np.sqrt(np.maximum(v1, 0) / n1 + np.maximum(v0, 0) / n0)
    return np.where(np.isfinite(t), t, 0.0)  # a step that never varies differs nowhere


def spectra_of(
    rows: Float[np.ndarray, "layers n d"],
    clusters: Int[np.ndarray, "n"],
    settings: dict[str, Any],
    seed: int,
    floors: list[float],
    dtype: str,
) -> SpectraSide:
    """Spectra of some rows and without each jackknife group of them, and which layers have an exponent."""
    n_groups = settings["groups"] if len(np.unique(clusters)) >= settings["groups"] else 0
    how = SpectrumOptions.of(settings)
    labels = group_labels(clusters, max(n_groups, 1), seed)
    full, jackknife, _ = all_layers(
        scaled(rows, how.row_scale), labels, n_groups, center=how.center, downdate=how.pooled
    )
    options: dict[str, Any] = {"n": rows.shape[1], "width": rows.shape[2], "window": settings["window"], "dtype": dtype}
    options |= {"estimator": how.estimator, "refused": settings.get("no_exponents")}
    floors = floors if how.row_scale is None else [0.0] * len(full)  # as of the trace: they are in units of plain rows
    fits = [fit_layer(sigma, floor=floor, **options) for sigma, floor in zip(full, floors, strict=True)]
    spectra = np.zeros(jackknife.shape[1:])
    for layer, sigma in enumerate(full):
        spectra[layer, : len(sigma)] = sigma
    return SpectraSide(
        spectra=spectra,
        jackknife=jackknife,
        n_ranks=np.array([fit.n_ranks for fit in fits]),
        fitted=np.array([math.isfinite(fit.alpha) for fit in fits]),
        estimator=how.estimator,
    )


def _unpaired_exponents(
    first: SpectraSide, second: SpectraSide, window: Window, terminal: tuple[int, int] | None
) -> tuple[pd.DataFrame, Interval]:
    """Second minus first by layer, Holm p among the blocks, and the mean over the terminal blocks with its interval."""
    values, groups = exponents_of_both(first, second, window)
    value = values[1] - values[0]
    se, freedom = _added([jackknife_se(part) for part in groups], [len(part) for part in groups])
    reach = se * stats.t.ppf(0.975, freedom)
    table = pd.DataFrame({"layer": np.arange(len(value)), "d_alpha": value})
    table["d_alpha_low"], table["d_alpha_high"] = value - reach, value + reach
    table["d_alpha_p"] = student_p(value, se, freedom)
    blocks = np.array([], dtype=int) if terminal is None else np.arange(terminal[0], terminal[1] + 1)
    blocks = blocks[np.isfinite(value[blocks])]
    if not len(blocks):
        return table, (math.nan, math.nan, math.nan)
    mean = float(value[blocks].mean())
    parts = [jackknife_se(part[:, blocks].mean(1)) for part in groups]
    se, freedom = _added([np.atleast_1d(part) for part in parts], [len(part) for part in groups])
    reach_mean = float(se[0] * stats.t.ppf(0.975, freedom[0]))
    return table, (mean, mean - reach_mean, mean + reach_mean)


def _added(
    errors: list[Float[np.ndarray, "K"]], n_groups: list[int]
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
    """Standard error of a difference of independent parts, and its degrees of freedom (Satterthwaite)."""
    variances = [error**2 for error in errors]
    total = variances[0] + variances[1]
    spread = sum(v**2 / max(g - 1, 1) for v, g in zip(variances, n_groups, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(spread > 0, total**2 / spread, 1.0)
    return np.sqrt(total), freedom


def _unpaired_means(
    values: Float[np.ndarray, "K N"], clusters: Int[np.ndarray, "N"], second: Bool[np.ndarray, "N"], seed: int
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
    """Mean of the second half minus that of the first; each half is resampled by itself."""
    boots = [
        cluster_bootstrap(values[:, half].T, clusters[half], draws=DRAWS, seed=seed + part)
        for part, half in enumerate((~second, second))
    ]
    difference = boots[1].mean - boots[0].mean
    if any(np.isnan(boot.low).all() for boot in boots):  # too few clusters for an interval
        return difference, np.full_like(difference, np.nan), np.full_like(difference, np.nan)
    low, high = np.percentile(boots[1].draws - boots[0].draws, [2.5, 97.5], axis=0)
    return difference, low, high
