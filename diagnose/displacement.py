"""Where did the probability go? What training did to chosen and rejected answers, beside what sampling alone forces.

Changes are l = log pi - log ref, nats. Answers that the reference wrote itself must fall on average: E_ref[l] =
-KL(ref || pi) <= 0 (arXiv 2505.23761; 2410.08847 for displacement). Only a fall below that is displacement proper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped

from .phrases import percent
from .ranking import as_float64
from .ranking_breakdowns import quadrant_columns
from .ranking_estimates import LABELS
from .ranking_table import NO_LENGTHS
from .report import Estimate, estimate_frame
from .statistics import LEVEL, cluster_bootstrap, estimate_from

MOVED = ("chosen", "rejected", "chosen_per_token", "rejected_per_token")
NO_PAIRS = "no pairs"
NO_SAMPLES = "no samples of the reference were given"
NO_SAMPLE_LEFT = "no sample is left"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Displacement:
    """Mean changes of log-probability with their prediction.

    estimates: chosen, rejected (nats a completion), chosen_per_token, rejected_per_token (nats a token),
    share_chosen_fell, the four quadrants both_rose, chosen_rose_rejected_fell, chosen_fell_rejected_rose, both_fell
    (shares; 0 is a rise), chosen_absolute, on_policy (the prediction -KL(ref || pi), from samples of the reference).
    """

    estimates: Mapping[str, Estimate]
    beyond_sampling: bool | None  # chosen fell below the prediction, on intervals; None with `reason`
    reason: str | None

    def to_frame(self) -> pd.DataFrame:
        """A row an estimate."""
        return estimate_frame(self.estimates)

    def summary(self) -> str:
        known = {name: e.value for name, e in self.estimates.items() if e.value is not None}
        if "chosen" not in known:
            return f"Not known: {self.estimates['chosen'].reason}."
        verdict = {
            True: ", more than sampling from the reference explains",
            False: ", no more than sampling from the reference may explain",
            None: f"; whether by more than sampling explains is not known: {self.reason}",
        }[self.beyond_sampling]
        return (
            f"Chosen answers moved by {known['chosen']:+.3g} nats on average{verdict if known['chosen'] < 0 else ''}; "
            f"rejected ones by {known['rejected']:+.3g}. Both fell in {percent(known['both_fell'])} of the pairs, "
            f"chosen alone in {percent(known['chosen_fell_rejected_rose'])}."
        )


def displacement_table(
    chosen_change: Any,
    rejected_change: Any,
    lengths: Any,
    clusters: Any,
    *,
    reference_sample_log_ratio: Any = None,
    sample_clusters: Any = None,
    bootstrap: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Displacement:
    """Mean change of chosen and rejected per sequence and per token, sign quadrants, and what sampling alone predicts.

    chosen_change, rejected_change: summed log pi - log ref, nats, [n]; lengths: scored tokens of chosen and rejected,
    [n, 2] or a tuple of two [n], None where not known; clusters: prompts, [n]. reference_sample_log_ratio: log pi - log
    ref of the reference's own samples, nats, [s], whose mean is -KL(ref || pi): chosen answers drawn from the reference
    fall by it, rejected ones then further; rejected ones drawn from it fall by it, and the sign of chosen is free.
    sample_clusters: prompts of the samples (None: each its own). Intervals: cluster bootstrap, null under 20 clusters.
    beyond_sampling is True only where chosen's interval lies wholly below 0 and below the prediction's.
    Raises ValueError for shapes that differ, changes that are not finite or lengths below 1. Source: arXiv 2505.23761.

    >>> fell = displacement_table([-2.0] * 20, [-3.0] * 20, None, range(20))
    >>> print(fell.estimates["chosen"].value, fell.estimates["both_fell"].value, fell.beyond_sampling, fell.reason)
    -2.0 1.0 None no samples of the reference were given
    """
    ratios, counts, names = _rows(chosen_change, rejected_change, lengths, clusters)
    columns = np.concatenate([ratios, ratios / counts, (ratios[:, :1] < 0).astype(np.float64)], axis=1)
    boot = cluster_bootstrap(columns, names, draws=bootstrap, seed=seed, level=level)
    estimates = {}
    for j, name in enumerate((*MOVED, "share_chosen_fell")):
        label, unit, null_value = LABELS[name if name.startswith("share") else f"displacement_{name}"]
        reason = NO_LENGTHS if len(ratios) and name.endswith("per_token") else NO_PAIRS
        estimates[name] = estimate_from(boot, j, label=label, unit=unit, null_value=null_value, reason=reason)
    estimates |= sign_estimates(ratios, names, reason=NO_PAIRS, draws=bootstrap, seed=seed, level=level)
    samples = None if reference_sample_log_ratio is None else _samples(reference_sample_log_ratio, sample_clusters)
    estimates["on_policy"] = on_policy_estimate(samples, draws=bootstrap, seed=seed, level=level)
    beyond = beyond_sampling(estimates["chosen"], estimates["on_policy"])
    unknown = next((estimates[name].reason for name in ("on_policy", "chosen") if estimates[name].reason), None)
    return Displacement(estimates=estimates, beyond_sampling=beyond, reason=unknown if beyond is None else None)


def sign_estimates(
    log_ratios: Float64[np.ndarray, "n 2"],
    clusters: Shaped[np.ndarray, "n"],
    *,
    reason: str,
    draws: int,
    seed: int,
    level: float = LEVEL,
) -> dict[str, Estimate]:
    """Shares of the four sign quadrants, and mean |change| of chosen; `reason`: why there are none."""
    quadrants = quadrant_columns(log_ratios)
    values = np.stack([*quadrants.values(), np.abs(log_ratios[:, 0])], axis=1)
    boot = cluster_bootstrap(values, clusters, draws=draws, seed=seed, level=level)
    found = {
        name: estimate_from(boot, j, label=f"pairs: {name.replace('_', ' ')}", reason=reason)
        for j, name in enumerate(quadrants)
    }
    label = "mean |log pi / pi_ref| of chosen: 0 where policy and reference are the same"
    return found | {
        "chosen_absolute": estimate_from(
            boot, len(quadrants), label=label, unit="nats a completion", null_value=0.0, reason=reason
        )
    }


def on_policy_estimate(
    samples: tuple[Float64[np.ndarray, "s"], Shaped[np.ndarray, "s"]] | None,
    *,
    draws: int,
    seed: int,
    level: float = LEVEL,
    absent: str = NO_SAMPLES,
) -> Estimate:
    """-KL(ref || pi), the mean log-ratio of the reference's own samples: what is forced on any text that it wrote.

    samples: log-ratios (nats) and prompts; None where there are none, for the reason `absent`.
    """
    values, clusters = (np.zeros(0), np.zeros(0)) if samples is None else samples
    boot = cluster_bootstrap(values[:, None], clusters, draws=draws, seed=seed, level=level)
    return estimate_from(
        boot, 0, label="mean log pi / pi_ref of the reference's own samples, -KL(ref || policy)",
        unit="nats a completion", null_value=0.0, reason=absent if samples is None else NO_SAMPLE_LEFT,
    )  # fmt: skip


def beyond_sampling(chosen: Estimate, predicted: Estimate) -> bool | None:
    """Whether chosen fell by more than sampling forces: its interval below 0 and the prediction's; None without one."""
    if chosen.high is None or predicted.low is None:
        return None
    return chosen.high < min(0.0, predicted.low)


def _rows(
    chosen: Any, rejected: Any, lengths: Any, clusters: Any
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "n 2"], Shaped[np.ndarray, "n"]]:
    sides, names = [as_float64(side) for side in (chosen, rejected)], np.asarray(clusters)
    if sides[0].ndim != 1 or {side.shape for side in sides} | {names.shape} != {sides[0].shape}:
        raise ValueError(
            f"chosen_change of shape {sides[0].shape}, rejected_change {sides[1].shape}, clusters {names.shape}: "
            "expected one a pair, all [n]"
        )
    ratios = np.stack(sides, axis=1)
    if not np.isfinite(ratios).all():
        raise ValueError("changes are not finite everywhere; leave out pairs without both")
    if lengths is None:
        return ratios, np.full_like(ratios, np.nan), names
    given = [as_float64(side) for side in lengths] if isinstance(lengths, tuple) else as_float64(lengths)
    counts = np.stack(given, axis=1) if isinstance(given, list) else given
    if counts.shape != ratios.shape:
        raise ValueError(f"lengths of shape {counts.shape}: expected tokens of chosen and rejected, {ratios.shape}")
    if not (np.isfinite(counts) & (counts >= 1)).all():
        raise ValueError("lengths are scored tokens, at least 1 each; leave out pairs without them, or pass None")
    return ratios, counts, names


def _samples(values: Any, clusters: Any) -> tuple[Float64[np.ndarray, "s"], Shaped[np.ndarray, "s"]]:
    log_ratios = as_float64(values)
    names = np.arange(len(log_ratios)) if clusters is None else np.asarray(clusters)
    if log_ratios.ndim != 1 or names.shape != log_ratios.shape or not np.isfinite(log_ratios).all():
        raise ValueError(
            f"reference_sample_log_ratio of shape {log_ratios.shape}, sample_clusters {names.shape}: expected one "
            "finite number and one prompt a sample"
        )
    return log_ratios, names
