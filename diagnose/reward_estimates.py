"""Numbers of the reward report: what each reward gets right, a setting, and how the two compare (arXiv 2409.03650)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .ranking import AGREE, credit, residualised_accuracy
from .ranking_estimates import over_length, residualised_draws
from .ranking_table import NO_EXPLICIT, NO_LENGTHS, NO_REFERENCE
from .report import Estimate
from .reward_rows import RewardRows, prompt_names
from .rewards import minimum_detectable_gap
from .statistics import (
    BootstrapMeans,
    cluster_bootstrap,
    cluster_codes,
    estimate_from,
    holm,
    paired_p,
    single_column,
)

CHANCE = 0.5
# name -> (label, unit, value that means "no effect")
LABELS: dict[str, tuple[str, str, float | None]] = {
    "accuracy_implicit": ("implicit reward: log pi / pi_ref is higher for chosen", "share", CHANCE),
    "accuracy_implicit_normalised": ("the same with log-ratios per token", "share", CHANCE),
    "accuracy_explicit": ("explicit reward: the reward model scores chosen higher", "share", CHANCE),
    "accuracy_ranking": ("ranking: the policy itself gives chosen the higher log-probability", "share", CHANCE),
    "gap": ("explicit minus implicit accuracy, on the same pairs", "share difference", 0.0),
    "shorter_wins": ("accuracy of preferring the shorter completion (tokens)", "share", CHANCE),
    "longer_wins": ("accuracy of preferring the longer completion (tokens)", "share", CHANCE),
    "implicit_over_length": ("implicit accuracy minus the better rule on length alone", "share difference", 0.0),
    "explicit_over_length": ("explicit accuracy minus the better rule on length alone", "share difference", 0.0),
    "disagreement": ("pairs on which the two rewards decide differently", "share", None),
}
_OVER = ("implicit_over_length", "explicit_over_length")  # the smaller of two columns, in every draw
COLUMNS = [name for name in LABELS if name not in _OVER]
SCALES = {
    "scale_implicit": "size of implicit margins: mean |d| over the standard deviation of all rewards",
    "scale_explicit": "size of explicit margins: mean |d| over the standard deviation of all rewards",
}
GAP_P = "p that implicit and explicit reward are right equally often"
DETECTABLE = "smallest gap that so many pairs show with 80 % power at 5 %"
RESIDUALISED = {
    "implicit_residualised": "implicit accuracy without what length predicts of the margin",
    "explicit_residualised": "explicit accuracy without what length predicts of the margin",
}
DROPS = {
    "drop_implicit": "implicit accuracy, in-distribution minus here",
    "drop_explicit": "explicit accuracy, in-distribution minus here",
    "excess_drop": "how much more the implicit reward loses than the explicit one: gap here minus in-distribution",
}
SHIFTED_GAPS = {
    "mean_gap_shifted": "explicit minus implicit accuracy, mean over the shifted settings",
    "max_gap_shifted": "the largest of these gaps (selected: high by chance where all are alike, its low end too)",
}
SETTING_NAMES = (*LABELS, *SCALES, *RESIDUALISED, "gap_p", "minimum_detectable_gap")  # of every setting
_IMPLICIT = ("accuracy_implicit", "accuracy_implicit_normalised", "implicit_over_length", "drop_implicit")
_EXPLICIT = ("accuracy_explicit", "explicit_over_length", "drop_explicit")
_BOTH = ("gap", "disagreement", "excess_drop")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SettingNumbers:
    """A setting's estimates by name, with the bootstrap behind them and the test of its gap."""

    rows: RewardRows
    estimates: dict[str, Estimate]
    boot: BootstrapMeans  # columns as in COLUMNS first
    gap_p: float | None
    gap_test: str

    def draws(self, name: str) -> Float64[np.ndarray, "B"]:
        return self.boot.draws[:, COLUMNS.index(name)]


def setting_numbers(rows: RewardRows, *, ties: str, bootstrap: int, seed: int) -> SettingNumbers:
    """All numbers of one setting over the same resamples of its prompts."""
    columns = decisions(rows, ties=ties)
    values = np.stack(list(columns.values()), axis=1)
    boot = cluster_bootstrap(values, rows.clusters, draws=bootstrap, seed=seed)
    estimates = {}
    for name, (label, unit, null) in LABELS.items():
        if name in _OVER:
            at = list(columns).index(f"{name}_shorter")
            estimates[name] = over_length(boot, at, label, absent(name, rows))
        else:
            at = list(columns).index(name)
            estimates[name] = estimate_from(
                boot, at, label=label, unit=unit, null_value=null, reason=absent(name, rows)
            )
    gap = columns["gap"][np.isfinite(columns["gap"])]
    if len(gap) and np.ptp(gap) == 0:
        estimates["gap"] = _constant_gap(estimates)
    p, test = paired_p(gap, rows.clusters[np.isfinite(columns["gap"])], seed=seed) if len(gap) else (None, "none")
    for name, sides in (("scale_implicit", rows.log_ratios), ("scale_explicit", rows.explicit)):
        estimates[name] = _scale(name, sides, rows, bootstrap=bootstrap, seed=seed)
    for name, margin in (("implicit", rows.implicit_margin), ("explicit", rows.explicit_margin)):
        estimates[f"{name}_residualised"] = _residualised(name, margin, rows, ties=ties, bootstrap=bootstrap, seed=seed)
    estimates["gap_p"] = _p(p, test, rows, len(gap), int(boot.n_clusters[COLUMNS.index("gap")]))
    estimates["minimum_detectable_gap"] = _detectable(estimates["disagreement"])
    return SettingNumbers(rows=rows, estimates=estimates, boot=boot, gap_p=p, gap_test=test)


def decisions(rows: RewardRows, *, ties: str) -> dict[str, Float64[np.ndarray, "N"]]:
    """Name -> a value a pair whose mean it is, those of `COLUMNS` first; NaN where a scorer is absent."""
    implicit, explicit = (np.asarray(credit(d, ties)) for d in (rows.implicit_margin, rows.explicit_margin))
    lengths = rows.length_difference
    shorter, longer = np.asarray(credit(-lengths)), np.asarray(credit(lengths))
    differ = np.where(np.isnan(implicit + explicit), np.nan, (implicit != explicit).astype(float))
    return {
        "accuracy_implicit": implicit,
        "accuracy_implicit_normalised": np.asarray(
            credit(rows.per_token[:, 0] - rows.per_token[:, 1], ties, atol=AGREE)  # (n x) / n is x up to rounding
        ),
        "accuracy_explicit": explicit,
        "accuracy_ranking": np.asarray(credit(rows.policy_margin, ties)),
        "gap": explicit - implicit,
        "shorter_wins": shorter,
        "longer_wins": longer,
        "disagreement": differ,
        "implicit_over_length_shorter": implicit - shorter,
        "implicit_over_length_longer": implicit - longer,
        "explicit_over_length_shorter": explicit - shorter,
        "explicit_over_length_longer": explicit - longer,
    }


def absent(name: str, rows: RewardRows) -> str:
    """Why a number of this setting has no value."""
    if not len(rows):
        return "no pair is left in this setting"
    if (name in _IMPLICIT or name in _BOTH or name == "scale_implicit") and not rows.has_implicit:
        return NO_REFERENCE
    if (name in _EXPLICIT or name in _BOTH or name == "scale_explicit") and not rows.has_explicit:
        return NO_EXPLICIT
    return NO_LENGTHS


def without_setting(reason: str) -> dict[str, Estimate]:
    """The same names as of `setting_numbers`, all null."""
    names = LABELS | {name: (label, "", None) for name, label in SCALES.items()}
    names |= {name: (label, "share", CHANCE) for name, label in RESIDUALISED.items()}
    names |= {"gap_p": (GAP_P, "p", None), "minimum_detectable_gap": (DETECTABLE, "share difference", None)}
    return {
        name: Estimate(label=label, value=None, n=0, unit=unit, method="none", reason=reason, null_value=null)
        for name, (label, unit, null) in names.items()
    }


def drop_estimates(here: SettingNumbers, base: SettingNumbers | None) -> dict[str, Estimate]:
    """The drops of a shifted setting against the in-distribution one; each was resampled apart."""
    found = {}
    for name, label in DROPS.items():
        source = {"drop_implicit": "accuracy_implicit", "drop_explicit": "accuracy_explicit"}.get(name, "gap")
        sign = 1.0 if name == "excess_drop" else -1.0  # drop: base minus here; excess: gap here minus gap there
        number = here.estimates[source]
        known = base is not None and number.value is not None and base.estimates[source].value is not None
        reason = "no in-distribution set was given" if base is None else absent(source, here.rows)
        if base is not None and number.value is not None and base.estimates[source].value is None:
            reason = f"in-distribution: {base.estimates[source].reason}"
        value, drawn = math.nan, np.full(1, np.nan)
        n, n_clusters = number.n, number.n_clusters or 0
        if known and base is not None:
            there = base.estimates[source]
            value = sign * (float(number.value or 0.0) - float(there.value or 0.0))
            drawn = sign * (here.draws(source) - base.draws(source))
            n_clusters = min(n_clusters, there.n_clusters or 0)  # the smaller side says whether an interval can be had
        boot = single_column(value, drawn, n=n if known else 0, n_clusters=n_clusters if known else 0)
        found[name] = estimate_from(boot, 0, label=label, unit="share difference", null_value=0.0, reason=reason)
        if known and base is not None and 0.0 in (np.ptp(here.draws(source)), np.ptp(base.draws(source))):
            there = base.estimates[source]
            found[name] = _from_ends(found[name], *((number, there) if sign > 0 else (there, number)))
    return found


def _constant_gap(estimates: Mapping[str, Estimate]) -> Estimate:
    """The gap where it is the same on every pair: no resample differs, but other prompts might."""
    gap, apart = estimates["gap"], estimates["disagreement"]
    if gap.low is None or gap.value != 0 or apart.high is None:
        return _from_ends(gap, estimates["accuracy_explicit"], estimates["accuracy_implicit"])
    method = "the rewards never differ: Wilson's interval on clusters of how often they do"
    return gap.model_copy(update={"low": -apart.high, "high": apart.high, "method": method})


def _from_ends(difference: Estimate, first: Estimate, second: Estimate) -> Estimate:
    """first - second, with an interval from those of both: resampling one that never varies would show no spread."""
    if None in (difference.low, first.low, second.low):
        return difference
    value = float(difference.value or 0.0)
    a, b = (np.array([e.value, e.low, e.high], dtype=np.float64) for e in (first, second))
    below = math.hypot(a[0] - a[1], b[2] - b[0])
    above = math.hypot(a[2] - a[0], b[0] - b[1])
    ends = {"low": max(-1.0, value - below), "high": min(1.0, value + above)}
    return difference.model_copy(update=ends | {"method": "from the intervals of both sides (Newcombe's hybrid)"})


def shifted_gaps(shifted: Mapping[str, SettingNumbers], *, ties: str, bootstrap: int, seed: int) -> dict[str, Estimate]:
    """Mean and largest gap over the shifted settings.

    Prompts are resampled over all settings at once: where several of them ask the same questions (translations of one
    set), they move together. The setting with fewest prompts says whether there is an interval.
    """
    parts = {name: numbers for name, numbers in shifted.items() if numbers.estimates["gap"].value is not None}
    if not parts:
        reason = "no shifted setting with both rewards" if shifted else "no shifted set was given (--shifted NAME=FILE)"
        empty = single_column(math.nan, np.full(1, np.nan), n=0, n_clusters=0)
        return {
            name: estimate_from(empty, 0, label=label, unit="share difference", null_value=0.0, reason=reason)
            for name, label in SHIFTED_GAPS.items()
        }
    if len(parts) == 1:  # the same number must not have two intervals
        only = next(iter(parts.values())).estimates["gap"]
        return {name: only.model_copy(update={"label": label}) for name, label in SHIFTED_GAPS.items()}
    total = sum(len(numbers.rows) for numbers in parts.values())
    values, start = np.full((total, len(parts)), np.nan), 0
    for j, numbers in enumerate(parts.values()):
        gap = decisions(numbers.rows, ties=ties)["gap"]
        values[start : start + len(gap), j] = gap
        start += len(gap)
    linked = _linked_prompts([numbers.rows for numbers in parts.values()])
    boot = cluster_bootstrap(values, linked, draws=bootstrap, seed=seed)
    gaps = [numbers.estimates["gap"] for numbers in parts.values()]
    found = {}
    for name, value, drawn, over in (
        ("mean_gap_shifted", boot.mean.mean(), boot.draws.mean(1), np.mean),
        ("max_gap_shifted", boot.mean.max(), boot.draws.max(1), np.max),
    ):
        one = single_column(float(value), drawn, n=total, n_clusters=int(boot.n_clusters.min()))
        found[name] = estimate_from(one, 0, label=SHIFTED_GAPS[name], unit="share difference", null_value=0.0)
        if found[name].low is not None and np.ptp(drawn) == 0:
            ends = {end: float(over([getattr(gap, end) for gap in gaps])) for end in ("low", "high")}
            found[name] = found[name].model_copy(update=ends | {"method": "from the intervals of the settings"})
    return found


def adjusted(shifted: Mapping[str, SettingNumbers]) -> dict[str, float]:
    """Holm's p of every shifted setting that has one."""
    known = {name: numbers.gap_p for name, numbers in shifted.items() if numbers.gap_p is not None}
    values = holm(np.array(list(known.values()), dtype=np.float64)) if known else np.zeros(0)
    return dict(zip(known, values.tolist(), strict=True))


def by_setting_table(numbers: Mapping[str, dict[str, Estimate]], shifts: Mapping[str, str]) -> pd.DataFrame:
    """setting, shift, estimate, value, low, high, n, n_prompts, unit, reason: a row a number of a setting."""
    rows = [
        (name, shifts[name], key, *(math.nan if v is None else v for v in (e.value, e.low, e.high)), e.n,
         e.n_clusters or 0, e.unit, e.reason or "")
        for name, estimates in numbers.items()
        for key, e in estimates.items()
    ]  # fmt: skip
    names = ["setting", "shift", "estimate", "value", "low", "high", "n", "n_prompts", "unit", "reason"]
    return pd.DataFrame(rows, columns=names).astype(
        {"value": float, "low": float, "high": float, "n": int, "n_prompts": int}
    )


def _linked_prompts(parts: Sequence[RewardRows]) -> Int64[np.ndarray, "N"]:
    """A cluster a row over all settings: prompts of one setting, and those of others that ask the same."""
    own = [f"{rows.name} {cluster}" for rows in parts for cluster in rows.clusters]
    asked = [name for rows in parts for name in prompt_names(rows.frame)]
    mine, n_own = cluster_codes(np.array(own, dtype=str))
    asks, n_asked = cluster_codes(np.array([name or f"own {o}" for name, o in zip(asked, own, strict=True)], dtype=str))
    size = n_own + n_asked  # a graph: a setting's prompts are tied to what they ask
    graph = coo_array((np.ones(len(mine)), (mine, n_own + asks)), shape=(size, size))
    return connected_components(graph, directed=False)[1][mine].astype(np.int64)


def _scale(name: str, sides: Float64[np.ndarray, "N 2"], rows: RewardRows, *, bootstrap: int, seed: int) -> Estimate:
    """mean |d| / sd of all rewards of the scorer; no unit, so that two scorers can be compared."""
    some = np.isfinite(sides).all(1)
    near = sides - (sides[some].min() if some.any() else 0.0)  # far from 0 the squares would lose the spread
    parts = np.stack([np.abs(sides[:, 0] - sides[:, 1]), near.mean(1), (near**2).mean(1)], axis=1)
    boot = cluster_bootstrap(parts, rows.clusters, draws=bootstrap, seed=seed)
    value, drawn = (_ratio(means) for means in (boot.mean[None], boot.draws))
    reason, n = absent(name, rows), int(boot.n[0])
    if n and not np.isfinite(value[0]):
        reason, n = "every reward is the same", 0
    one = single_column(float(value[0]), drawn, n=n, n_clusters=int(boot.n_clusters[0]))
    return estimate_from(one, 0, label=SCALES[name], unit="", reason=reason)


def _residualised(
    name: str, margin: Float64[np.ndarray, "N"], rows: RewardRows, *, ties: str, bootstrap: int, seed: int
) -> Estimate:
    """Accuracy after what length predicts of the margin is taken away; the slope is fitted anew in every draw."""
    some = np.isfinite(margin) & np.isfinite(rows.length_difference)
    d, dn = margin[some], rows.length_difference[some]
    codes, n_clusters = cluster_codes(rows.clusters[some])
    drawn = residualised_draws(d, dn, codes, n_clusters, ties=ties, draws=bootstrap, seed=seed)
    boot = single_column(residualised_accuracy(d, dn, ties), drawn, n=len(d), n_clusters=n_clusters)
    return estimate_from(
        boot, 0, label=RESIDUALISED[f"{name}_residualised"], null_value=CHANCE, reason=absent(f"accuracy_{name}", rows)
    )


def _ratio(means: Float64[np.ndarray, "B 3"]) -> Float64[np.ndarray, "B"]:
    spread = np.sqrt(np.maximum(means[:, 2] - means[:, 1] ** 2, 0.0))
    return np.divide(means[:, 0], spread, out=np.full(len(means), np.nan), where=spread > 0)


def _p(p: float | None, test: str, rows: RewardRows, n: int, n_clusters: int) -> Estimate:
    return Estimate(
        label=GAP_P,
        value=p,
        level=None,
        n=n,
        n_clusters=n_clusters,
        unit="p",
        method=test,
        reason=None if p is not None else (absent("gap", rows) if not n else "one prompt"),
    )


def _detectable(disagreement: Estimate) -> Estimate:
    share = disagreement.value
    return Estimate(
        label=DETECTABLE,
        value=minimum_detectable_gap(share, disagreement.n) if share else None,
        level=None,
        n=disagreement.n,
        n_clusters=disagreement.n_clusters,
        unit="share difference",
        method="2.8016 sqrt(share of pairs on which the rewards disagree / pairs); pairs taken as independent",
        reason=None if share else disagreement.reason or "the two rewards never disagree on these pairs",
    )
