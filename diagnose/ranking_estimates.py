"""The headline numbers of a ranking report: columns of per-pair values, one bootstrap over prompts, `Estimate`s."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int

from .ranking import AGREE, as_float64, credit, residualised_accuracy
from .ranking_table import NO_EXPLICIT, NO_LENGTHS, NO_REFERENCE, ONE_LABEL, RankedPairs
from .report import Estimate
from .statistics import (
    BootstrapMeans,
    cluster_bootstrap,
    cluster_codes,
    estimate_from,
    paired_p,
    resampled_counts,
    single_column,
    smaller_of,
)

LOW_LOSS = 0.05  # nats; a DPO loss that training reaches on few held-out pairs
FLIPS = 9_999
MAX_STEPS = 1_000  # of the curve R*(beta) in its table
LN2 = math.log(2.0)
CHANCE = 0.5
# name -> (label, unit, value that means "no effect")
LABELS: dict[str, tuple[str, str, float | None]] = {
    "accuracy": ("ranking accuracy: the policy gives chosen the higher log-probability", "share", CHANCE),
    "accuracy_normalised": ("the same with log-probabilities per token", "share", CHANCE),
    "reference_accuracy": ("ranking accuracy of the reference", "share", CHANCE),
    "accuracy_gain": ("ranking accuracy, policy minus reference", "share difference", 0.0),
    "reward_accuracy": ("reward accuracy: log pi / pi_ref is higher for chosen", "share", CHANCE),
    "reward_accuracy_normalised": ("the same with log-ratios per token", "share", CHANCE),
    "explicit_accuracy": ("the reward model scores chosen higher", "share", CHANCE),
    "idealized_accuracy": ("ranking accuracy of a perfectly trained policy at this beta", "share", CHANCE),
    "gap": ("idealised minus actual ranking accuracy", "share difference", 0.0),
    "shorter_wins": ("accuracy of preferring the shorter completion (tokens)", "share", CHANCE),
    "longer_wins": ("accuracy of preferring the longer completion (tokens)", "share", CHANCE),
    "accuracy_over_length": (
        "ranking accuracy minus that of the better rule on length alone",
        "share difference",
        0.0,
    ),
    "displacement_chosen": ("change of log-probability of chosen, policy minus reference", "nats a completion", 0.0),
    "displacement_rejected": (
        "change of log-probability of rejected, policy minus reference",
        "nats a completion",
        0.0,
    ),
    "displacement_chosen_per_token": ("the same of chosen, per token", "nats a token", 0.0),
    "displacement_rejected_per_token": ("the same of rejected, per token", "nats a token", 0.0),
    "share_chosen_fell": ("pairs whose chosen completion became less likely", "share", None),
    "share_flippable": ("the reference is wrong, a perfectly trained policy would be right", "share", None),
    "share_hard": ("the reference is wrong, and so would be a perfectly trained policy", "share", None),
    "share_needs_low_loss": (f"pairs that are ranked right only at a DPO loss below {LOW_LOSS}", "share", None),
    "learned_of_wrong": ("of the pairs that the reference ranks wrong, the policy ranks right", "share", None),
    "lost_of_right": ("of the pairs that the reference ranks right, the policy ranks wrong", "share", None),
    "learned_of_all": ("of all pairs, the reference ranks wrong and the policy right", "share", None),
    "lost_of_all": ("of all pairs, the reference ranks right and the policy wrong", "share", None),
    "mean_margin": ("mean margin of implicit rewards, beta (dw - dl)", "nats", 0.0),
    "dpo_loss": ("mean DPO loss; ln 2 where policy and reference agree", "nats", LN2),
}
NAMES = (*LABELS, "residualised_accuracy", "reward_residualised_accuracy", "gain_p", "gap_median")
_NEEDS_LENGTHS = ("normalised", "per_token", "shorter", "longer", "over_length", "residualised")
_NO_REFERENCE_NEEDED = (
    "accuracy",
    "accuracy_normalised",
    "explicit_accuracy",
    "shorter_wins",
    "longer_wins",
    "accuracy_over_length",
    "residualised_accuracy",
)
_OVER = ("accuracy_over_shorter", "accuracy_over_longer")  # of which the smaller is accuracy_over_length
_NEEDS_STRENGTH = ("idealized_accuracy", "gap", "share_flippable", "share_hard")


def ranking_estimates(
    pairs: RankedPairs, *, beta: float, betas: Sequence[float], ties: str, bootstrap: int, seed: int
) -> tuple[dict[str, Estimate], pd.DataFrame]:
    """All headline numbers, and the table "idealized": smoothing, beta, value, low, high."""
    columns = _columns(pairs, beta=beta, ties=ties)
    boot = _bootstrap(columns, pairs, bootstrap, seed)
    found = {}
    for j, name in enumerate(columns):
        if name in _OVER:
            continue
        label, unit, null_value = LABELS[name]
        if name in _NEEDS_STRENGTH:
            label += _assuming(pairs)
        found[name] = estimate_from(boot, j, label=label, unit=unit, null_value=null_value, reason=_reason(name, pairs))
    found["accuracy_over_length"] = over_length(
        boot, list(columns).index(_OVER[0]), LABELS["accuracy_over_length"][0], _reason("accuracy_over_length", pairs)
    )
    found |= _residualised(pairs, ties=ties, bootstrap=bootstrap, seed=seed)
    found["gain_p"] = _gain_p(columns["accuracy_gain"], pairs, seed)
    found["gap_median"] = _gap_median(pairs, columns["accuracy"], betas=betas, bootstrap=bootstrap, seed=seed)
    return found, _idealized(pairs, betas=sorted({*betas, beta}), bootstrap=bootstrap, seed=seed)


def _columns(pairs: RankedPairs, *, beta: float, ties: str) -> dict[str, Float64[np.ndarray, "N"]]:
    """Estimate name -> a value a pair whose mean it is; NaN leaves the pair out."""
    right, was_right = (np.asarray(credit(margin, ties)) for margin in (pairs.margin, pairs.reference_margin))
    crit = pairs.critical[pairs.smoothing]
    ideal = _where(~np.isnan(crit), beta < crit)
    wrong = pairs.reference_margin < 0
    ratios, per_token = pairs.log_ratios, pairs.log_ratio_per_token
    lengths = pairs.length_difference
    shorter, longer = np.asarray(credit(-lengths)), np.asarray(credit(lengths))
    known = np.isfinite(pairs.reference_margin)
    columns = {
        "accuracy": right,
        "accuracy_normalised": credit(pairs.margin_per_token, ties, atol=AGREE),  # (n x) / n is x up to rounding
        "reference_accuracy": was_right,
        "accuracy_gain": right - was_right,
        "reward_accuracy": credit(pairs.reward_margin, ties),
        "reward_accuracy_normalised": credit(per_token[:, 0] - per_token[:, 1], ties, atol=AGREE),
        "explicit_accuracy": credit(pairs.explicit_margin, ties),
        "idealized_accuracy": ideal,
        "gap": ideal - right,
        "shorter_wins": shorter,
        "longer_wins": longer,
        _OVER[0]: right - shorter,
        _OVER[1]: right - longer,
        "displacement_chosen": ratios[:, 0],
        "displacement_rejected": ratios[:, 1],
        "displacement_chosen_per_token": per_token[:, 0],
        "displacement_rejected_per_token": per_token[:, 1],
        "share_chosen_fell": _where(known, ratios[:, 0] < 0),
        "share_flippable": _where(~np.isnan(crit), wrong & (ideal == 1)),
        "share_hard": _where(~np.isnan(crit), wrong & (ideal == 0)),
        "share_needs_low_loss": _where(known, pairs.table["threshold"].to_numpy() < LOW_LOSS),
        "learned_of_wrong": _where(was_right < 1, right == 1),
        "lost_of_right": _where(was_right == 1, right < 1),
        "learned_of_all": _where(known, (was_right < 1) & (right == 1)),
        "lost_of_all": _where(known, (was_right == 1) & (right < 1)),
        "mean_margin": beta * pairs.reward_margin,
        "dpo_loss": pairs.table["loss"].to_numpy(),
    }
    return {name: np.where(pairs.judged, values, np.nan) for name, values in columns.items()}


def over_length(boot: BootstrapMeans, first: int, label: str, reason: str) -> Estimate:
    """Accuracy minus the better rule on length; columns `first` and the next hold it minus each of the two rules."""
    return estimate_from(
        smaller_of(boot, first, first + 1), 0, label=label, unit="share difference", null_value=0.0, reason=reason
    )


def _where(rows: np.ndarray, holds: np.ndarray) -> Float64[np.ndarray, "N"]:
    """1 or 0 in the given rows, NaN elsewhere."""
    return np.where(rows, np.asarray(holds, dtype=np.float64), np.nan)


def _assuming(pairs: RankedPairs) -> str:
    """What to add to the label of a number that needs a strength of preference."""
    if not pairs.n_assumed:
        return ""
    return f", assuming the strength of preference of {pairs.n_assumed} pairs"


def _reason(name: str, pairs: RankedPairs) -> str:
    """Why an estimate has no value."""
    if not pairs.judged.any():
        return "every pair is a human tie"
    if name == "explicit_accuracy":
        return NO_EXPLICIT
    if name not in _NO_REFERENCE_NEEDED and not pairs.has_reference:
        return NO_REFERENCE
    if any(part in name for part in _NEEDS_LENGTHS) and not pairs.has_lengths:
        return NO_LENGTHS
    if name in _NEEDS_STRENGTH:
        return ONE_LABEL
    return f"the reference ranks {'every' if name == 'learned_of_wrong' else 'no'} pair right"


def _bootstrap(
    columns: Mapping[str, Float64[np.ndarray, "N"]], pairs: RankedPairs, bootstrap: int, seed: int
) -> BootstrapMeans:
    """All columns over the same resamples of the prompts that hold a judged pair."""
    values = np.stack(list(columns.values()), axis=1)[pairs.judged]
    return cluster_bootstrap(values, pairs.clusters[pairs.judged], draws=bootstrap, seed=seed)


def _residualised(pairs: RankedPairs, *, ties: str, bootstrap: int, seed: int) -> dict[str, Estimate]:
    """Accuracies after what length predicts is taken away; the slope is fitted anew in every resample."""
    found = {}
    for name, difference, label in (
        ("residualised_accuracy", pairs.margin, "ranking accuracy without what length predicts of the margin"),
        ("reward_residualised_accuracy", pairs.reward_margin, "reward accuracy without what length predicts"),
    ):
        found[name] = residualised_estimate(
            pairs, difference, label=label, ties=ties, reason=_reason(name, pairs), bootstrap=bootstrap, seed=seed
        )
    return found


def residualised_estimate(
    pairs: RankedPairs,
    difference: Float64[np.ndarray, "N"],
    *,
    label: str,
    ties: str,
    reason: str,
    bootstrap: int,
    seed: int,
) -> Estimate:
    """Accuracy of the judged pairs after what length predicts of `difference` is taken away."""
    some = pairs.judged & np.isfinite(difference) & np.isfinite(pairs.length_difference)
    d, dn = difference[some], pairs.length_difference[some]
    codes, n_clusters = cluster_codes(pairs.clusters[some])
    drawn = residualised_draws(d, dn, codes, n_clusters, ties=ties, draws=bootstrap, seed=seed)
    boot = single_column(residualised_accuracy(d, dn, ties), drawn, n=len(d), n_clusters=n_clusters)
    return estimate_from(boot, 0, label=label, null_value=CHANCE, reason=reason)


def residualised_draws(
    difference: Float64[np.ndarray, "N"],
    length_difference: Float64[np.ndarray, "N"],
    codes: Int[np.ndarray, "N"],
    n_clusters: int,
    *,
    ties: str,
    draws: int,
    seed: int,
) -> Float64[np.ndarray, "draws"]:
    """`residualised_accuracy` of every bootstrap sample of clusters; NaN without rows."""
    d, dn = as_float64(difference), as_float64(length_difference)
    above = np.bincount(codes, weights=d * dn, minlength=n_clusters)
    below = np.bincount(codes, weights=dn**2, minlength=n_clusters)
    parts = []
    for times in resampled_counts(n_clusters, draws=draws, seed=seed, width=len(d)):
        squares = times @ below
        slope = np.divide(times @ above, squares, out=np.zeros_like(squares), where=squares > 0)
        weight = times[:, codes]  # [draws of this chunk, N]
        right = np.asarray(credit(d - slope[:, None] * dn, ties, atol=AGREE))
        parts.append((weight * right).sum(1) / weight.sum(1))
    return np.concatenate(parts) if parts else np.full(draws, np.nan)


def _gain_p(gain: Float64[np.ndarray, "N"], pairs: RankedPairs, seed: int) -> Estimate:
    """Do policy and reference rank equally well? Exact McNemar where every pair is its own prompt, else sign flips."""
    some = np.isfinite(gain)
    n_clusters = cluster_codes(pairs.clusters[some])[1]
    p, method = paired_p(gain[some], pairs.clusters[some], flips=FLIPS, seed=seed) if some.any() else (None, "none")
    reason = None if p is not None else "one prompt"
    if not some.any():
        reason = "every pair is a human tie" if not pairs.judged.any() else NO_REFERENCE
    return Estimate(
        label="p that policy and reference rank equally many pairs right",
        value=p,
        level=None,
        n=int(some.sum()),
        n_clusters=n_clusters,
        unit="p",
        method=method,
        reason=reason,
    )


def _idealized(pairs: RankedPairs, *, betas: Sequence[float], bootstrap: int, seed: int) -> pd.DataFrame:
    """R*(beta) by smoothing, with its pointwise band; empty where no pair has a strength of preference."""
    columns: dict[str, list[float | str]] = {name: [] for name in ("smoothing", "beta", "value", "low", "high")}
    for name, crit in pairs.critical.items():
        known = ~np.isnan(crit)
        if not known.any():
            continue
        grid = _steps(crit, betas)
        boot = _bootstrap({str(beta): _where(known, beta < crit) for beta in grid}, pairs, bootstrap, seed)
        for j, beta in enumerate(grid):
            point = estimate_from(boot, j, label="R*")
            columns["smoothing"].append(name)
            for key, number in (("beta", beta), ("value", point.value), ("low", point.low), ("high", point.high)):
                columns[key].append(math.nan if number is None else float(number))
    return pd.DataFrame(columns).astype({key: np.float64 for key in columns if key != "smoothing"})


def _steps(crit: Float64[np.ndarray, "N"], betas: Sequence[float]) -> Float64[np.ndarray, "steps"]:
    """Every beta at which the curve steps down, the given betas, and a beta before and after them all.

    Of more than 1,000 steps as many are kept, evenly among the pairs: the table "pairs" holds every one.
    """
    steps = np.unique(crit[np.isfinite(crit) & (crit > 0)])
    if len(steps) > MAX_STEPS:
        steps = steps[np.linspace(0, len(steps) - 1, MAX_STEPS).round().astype(int)]
    inner = [*steps, *betas]
    return np.unique([min(inner) / 2, *inner, max(inner) * 2])


def _gap_median(
    pairs: RankedPairs, right: Float64[np.ndarray, "N"], *, betas: Sequence[float], bootstrap: int, seed: int
) -> Estimate:
    """Median of R*(beta) over the betas, minus R on the same rows: the headline gap of the paper."""
    crit = pairs.critical[pairs.smoothing]
    gaps = {str(i): _where(~np.isnan(crit), beta < crit) - right for i, beta in enumerate(betas)}  # a beta may recur
    boot = _bootstrap(gaps, pairs, bootstrap, seed)
    median = single_column(
        float(np.median(boot.mean)), np.median(boot.draws, axis=1), n=int(boot.n[0]), n_clusters=int(boot.n_clusters[0])
    )
    shown = ", ".join(f"{beta:g}" for beta in betas)
    return estimate_from(
        median,
        0,
        label=f"the same with the median of the idealised accuracy over beta = {shown}{_assuming(pairs)}",
        unit="share difference",
        null_value=0.0,
        reason=_reason("gap", pairs),
    )
