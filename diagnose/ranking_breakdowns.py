"""Where do the ranking numbers come from? Tables that split the pairs: flips, difference of length, log-ratios."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from .ranking import AGREE, flip_threshold, ipo_threshold, theorem_mismatches
from .ranking_table import RankedPairs
from .report import finite
from .statistics import BootstrapMeans, cluster_bootstrap, estimate_from

QUARTERS = (0.25, 0.5, 0.75)
GAMMAS = (0.0, 0.5, 1.0, 2.0)  # weights of the reference in the loss; 1 is DPO
_VARIANTS = {"mean_loss": "", "share_within": "share", "share_ranked_right": "share"}  # column -> unit

QUADRANTS = {  # name -> whether chosen, rejected fell
    "both_rose": (False, False),
    "chosen_rose_rejected_fell": (False, True),
    "chosen_fell_rejected_rose": (True, False),
    "both_fell": (True, True),
}


def variant_table(pairs: RankedPairs, *, beta: float, bootstrap: int, seed: int) -> pd.DataFrame:
    """Other objectives of the kind of Theorem 4.1: does the pair's loss being at its threshold say who is ranked first?

    objective, n, mean_loss, share_within (loss at or below the threshold), share_ranked_right (h >= 0), each of the
    three with _low and _high, mismatches, unreachable. Intervals: the cluster bootstrap of the headline numbers, the
    same resamples; NaN under 20 prompts.
    dpo_gamma_G: loss softplus(-beta (h + G c)), threshold softplus(-beta G c): loss within it exactly where the pair is
    ranked right, so mismatches is 0. ipo: loss (h + c - 1/(2 tau))^2, tau = beta; within (1/(2 tau) - c)^2 suffices, so
    mismatches counts pairs within it that are ranked wrong; unreachable: zero loss itself ranks the pair wrong.
    """
    some = pairs.judged & np.isfinite(pairs.reference_margin)
    h, reference = pairs.margin[some], pairs.reference_margin[some]
    right = h >= 0
    rows: list[dict[str, Any]] = []
    columns: list[np.ndarray] = []  # per-pair values, those of `_VARIANTS` an objective
    for gamma in GAMMAS if some.any() else ():
        inside = -beta * (h - gamma * reference)  # loss = softplus(inside)
        loss = np.logaddexp(0.0, inside)
        threshold = np.asarray(flip_threshold(reference, beta, gamma=gamma))
        mismatches = int(theorem_mismatches(h, loss, threshold).sum())
        within = inside <= beta * gamma * reference + AGREE  # softplus rises, but far below 0 it underflows
        name = f"dpo_gamma_{gamma:g}" if gamma != 1 else "dpo"
        rows.append({"objective": name, "n": len(h), "mismatches": mismatches, "unreachable": 0})
        columns += [loss, within, right]
    if some.any():
        loss, threshold = (h - reference - 1 / (2 * beta)) ** 2, np.asarray(ipo_threshold(reference, beta))
        within = loss <= threshold  # never where the threshold is NaN
        mismatches, unreachable = int((within & (h < -AGREE)).sum()), int(np.isnan(threshold).sum())
        rows.append({"objective": "ipo", "n": len(h), "mismatches": mismatches, "unreachable": unreachable})
        # a square beyond the largest float has no mean
        columns += [loss if np.isfinite(loss).all() else np.full_like(loss, np.nan), within, right]
        # every judged pair, NaN where it has no reference: the resamples depend on the prompts that go in
        values = np.full((len(some), len(columns)), np.nan)
        values[some] = np.stack(columns, axis=1)
        boot = cluster_bootstrap(values[pairs.judged], pairs.clusters[pairs.judged], draws=bootstrap, seed=seed)
        for i, row in enumerate(rows):
            for j, (name, unit) in enumerate(_VARIANTS.items(), start=len(_VARIANTS) * i):
                row |= _with_interval(boot, j, name, unit=unit)
    names = ["objective", "n", *_ends(_VARIANTS), "mismatches", "unreachable"]
    return pd.DataFrame(rows, columns=names).astype(
        {"objective": str, "n": int, "mismatches": int, "unreachable": int} | dict.fromkeys(_ends(_VARIANTS), float)
    )


def flip_table(pairs: RankedPairs) -> pd.DataFrame:
    """reference_right, policy_right, n, share: four rows, or none without a reference.

    A tie is right with ties="ge" alone.
    """
    columns: dict[str, list] = {name: [] for name in ("reference_right", "policy_right", "n", "share")}
    some = pairs.table[pairs.judged & pairs.table["reference_right"].notna()]
    was_right, right = ((some[name] == 1).to_numpy() for name in ("reference_right", "ranked_right"))
    for before in (True, False) if len(some) else ():
        for after in (True, False):
            n = int(((was_right == before) & (right == after)).sum())
            for name, value in zip(columns, (before, after, n, n / len(some)), strict=True):
                columns[name].append(value)
    return pd.DataFrame(columns).astype({"reference_right": bool, "policy_right": bool, "n": int, "share": float})


def displacement_table(pairs: RankedPairs) -> pd.DataFrame:
    """chosen_fell, rejected_fell, n, share, mean log-ratios (nats a completion): the four sign quadrants."""
    ratios = pairs.log_ratios[pairs.judged & np.isfinite(pairs.log_ratios).all(1)]
    rows = []
    for chosen in (False, True) if len(ratios) else ():
        for rejected in (False, True):
            inside = ratios[((ratios[:, 0] < 0) == chosen) & ((ratios[:, 1] < 0) == rejected)]
            means = inside.mean(0) if len(inside) else np.full(2, np.nan)
            rows.append((chosen, rejected, len(inside), len(inside) / len(ratios), *means.tolist()))
    names = ["chosen_fell", "rejected_fell", "n", "share", "mean_chosen", "mean_rejected"]
    types = dict(zip(names, (bool, bool, int, float, float, float), strict=True))
    return pd.DataFrame(rows, columns=names).astype(types)


def quadrant_columns(ratios: Float64[np.ndarray, "N 2"]) -> dict[str, Float64[np.ndarray, "N"]]:
    """Quadrant -> 1 where the log-ratios of chosen and rejected lie in it, NaN without a reference; 0 is a rise."""
    known = np.isfinite(ratios).all(1)
    fell = ratios < 0
    return {
        name: np.where(known, ((fell[:, 0] == chosen) & (fell[:, 1] == rejected)).astype(float), np.nan)
        for name, (chosen, rejected) in QUADRANTS.items()
    }


def length_table(pairs: RankedPairs, *, bootstrap: int, seed: int) -> pd.DataFrame:
    """Accuracies with intervals inside the quarters of |tokens of chosen - tokens of rejected|.

    Columns quarter (1 = most alike), shortest, longest (difference in tokens), n, accuracy, reward_accuracy,
    shorter_wins, each with _low and _high. Equal differences are never split, so quarters may be uneven or missing.
    """
    some = pairs.judged & np.isfinite(pairs.length_difference)
    apart = np.abs(pairs.length_difference[some])
    measures = {
        "accuracy": pairs.table["ranked_right"].to_numpy()[some],
        "reward_accuracy": pairs.table["reward_right"].to_numpy()[some],
        "shorter_wins": (pairs.length_difference[some] < 0) + 0.5 * (apart == 0),
    }
    quarter = np.searchsorted(np.quantile(apart, QUARTERS), apart) + 1 if len(apart) else apart
    rows = []
    for q in np.unique(quarter):
        inside = quarter == q
        values = np.stack([column[inside] for column in measures.values()], axis=1)
        boot = cluster_bootstrap(values, pairs.clusters[some][inside], draws=bootstrap, seed=seed)
        row: dict[str, float] = {"quarter": int(q), "shortest": apart[inside].min(), "longest": apart[inside].max()}
        row["n"] = int(inside.sum())
        for j, name in enumerate(measures):
            row |= _with_interval(boot, j, name)
        rows.append(row)
    names = ["quarter", "shortest", "longest", "n", *_ends(measures)]
    return pd.DataFrame(rows, columns=names).astype(
        {name: int if name in ("quarter", "n") else float for name in names}
    )


def _ends(names: Iterable[str]) -> list[str]:
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def _with_interval(boot: BootstrapMeans, column: int, name: str, *, unit: str = "share") -> dict[str, float]:
    """A mean and the ends of its interval, NaN where an `Estimate` has null."""
    e = estimate_from(boot, column, label=name, unit=unit)
    return dict(zip(_ends([name]), (_number(v) for v in (e.value, e.low, e.high)), strict=True))


def _number(value: float | None) -> float:
    known = finite(value)
    return float("nan") if known is None else known
