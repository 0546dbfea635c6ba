"""How far can a reward's margin be taken at its word? Calibration and fitted beta of the in-distribution pairs.

p = sigmoid(m) is what a margin claims: m = beta (dw - dl) of the implicit reward, sw - sl of the explicit one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from .calibration import Calibration, calibration, fit_beta, proper_scores
from .ranking_table import NO_EXPLICIT, NO_REFERENCE
from .report import Estimate
from .reward_rows import RewardRows
from .statistics import cluster_bootstrap, estimate_from

NO_BASE = "there is no in-distribution setting"
NO_PAIR = "no pair is left in this setting"
DRAWS = 200  # of the votes of a calibrated scorer
NAMES = (
    *(f"{name}_{scorer}" for scorer in ("implicit", "explicit") for name in ("brier", "excess_nll", "ece")),
    *(f"ece_{scorer}_expected{end}" for scorer in ("implicit", "explicit") for end in ("", "_p95")),
    *("beta_hat", "beta_ratio", "nonlinearity_p"),
)
_COLUMNS = ["scorer", "bin", "n", "confidence", "observed", "low", "high"]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A reward whose margins are held against the votes."""

    name: str  # implicit, explicit
    margin: Float64[np.ndarray, "N"]
    absent: str  # why there are none


def calibration_estimates(
    rows: RewardRows | None, *, beta: float, bootstrap: int, seed: int
) -> tuple[dict[str, Estimate], pd.DataFrame]:
    """Brier score, excess NLL, ECE and what a calibrated scorer shows, by scorer; beta-hat; the table "calibration".

    rows: human ties among them (`voted_rows`), since here a pair counts by its votes.
    """
    estimates: dict[str, Estimate] = {}
    tables = []
    none = np.zeros(0)
    scorers = (
        Scorer("implicit", none if rows is None else beta * rows.implicit_margin, NO_REFERENCE),
        Scorer("explicit", none if rows is None else rows.explicit_margin, NO_EXPLICIT),
    )
    for scorer in scorers:
        some = np.isfinite(scorer.margin)
        reason = NO_BASE if rows is None else scorer.absent if len(rows) else NO_PAIR
        if rows is None or not some.any():
            estimates |= _absent(scorer.name, reason)
            continue
        alpha = rows.preference[some]
        votes = np.maximum(rows.frame["n_votes"].to_numpy(dtype=np.float64)[some], 1.0)  # a judge's probability: 0
        found = calibration(scorer.margin[some], alpha, n_votes=np.floor(votes), draws=DRAWS, seed=seed)
        estimates |= _scores(scorer.name, scorer.margin[some], alpha, rows.clusters[some], bootstrap, seed)
        estimates |= _errors(scorer.name, found, len(np.unique(rows.clusters[some])))
        tables.append(found.table.assign(scorer=scorer.name)[_COLUMNS])
    estimates |= _fitted(rows, beta=beta, bootstrap=bootstrap, seed=seed)
    empty = pd.DataFrame({name: [] for name in _COLUMNS})
    table = pd.concat(tables, ignore_index=True) if tables else empty
    types: dict[str, type] = {"scorer": str, "bin": int, "n": int}
    return estimates, table.astype(types | dict.fromkeys(_COLUMNS[3:], float))


def _scores(
    name: str,
    margin: Float64[np.ndarray, "N"],
    alpha: Float64[np.ndarray, "N"],
    clusters: np.ndarray,
    bootstrap: int,
    seed: int,
) -> dict[str, Estimate]:
    """Proper scores are means over pairs, so their intervals are those of every mean."""
    brier, nll, entropy = proper_scores(margin, alpha)
    boot = cluster_bootstrap(np.stack([brier, nll - entropy], axis=1), clusters, draws=bootstrap, seed=seed)
    return {
        f"brier_{name}": estimate_from(boot, 0, label=f"Brier score of the {name} reward", unit="", null_value=0.25),
        f"excess_nll_{name}": estimate_from(
            boot,
            1,
            label=f"NLL of the votes under the {name} reward, minus their entropy (which is 0 for single votes)",
            unit="nats",
        ),
    }


def _errors(name: str, found: Calibration, n_clusters: int) -> dict[str, Estimate]:
    """ECE has no honest percentile interval (it is biased up); what a calibrated scorer would show stands beside it."""
    labels = _error_labels(name)
    shared: dict[str, Any] = {"level": None, "n": found.n, "n_clusters": n_clusters, "unit": "share"}
    most = f"{found.expected_ece_p95:.3f}, which 95 % of calibrated scorers stay within"
    judged = f"above {most}: more than chance" if found.ece > found.expected_ece_p95 else f"not above {most}"
    drawn = f"parametric bootstrap, {DRAWS} draws of votes from p"
    return {
        f"ece_{name}": Estimate(
            label=labels[f"ece_{name}"],
            value=found.ece,
            null_value=found.expected_ece,
            method=f"equal-mass bins of max(p, 1-p), equal predictions never split; {judged}",
            **shared,
        ),
        f"ece_{name}_expected": Estimate(
            label=labels[f"ece_{name}_expected"], value=found.expected_ece, method=f"{drawn}: mean", **shared
        ),
        f"ece_{name}_expected_p95": Estimate(
            label=labels[f"ece_{name}_expected_p95"],
            value=found.expected_ece_p95,
            method=f"{drawn}, pairs independent, one vote where none was counted: 95th percentile",
            **shared,
        ),
    }


def _error_labels(name: str) -> dict[str, str]:
    return {
        f"ece_{name}": f"expected calibration error of the {name} reward, folded",
        f"ece_{name}_expected": f"the same if the {name} reward were calibrated",
        f"ece_{name}_expected_p95": f"what it exceeds in 5 % of cases if the {name} reward is calibrated",
    }


def _absent(name: str, reason: str) -> dict[str, Estimate]:
    labels = {
        f"brier_{name}": f"Brier score of the {name} reward",
        f"excess_nll_{name}": f"NLL of the votes under the {name} reward, minus their entropy",
    }
    return {key: _null(label, reason) for key, label in (labels | _error_labels(name)).items()}


def _fitted(rows: RewardRows | None, *, beta: float, bootstrap: int, seed: int) -> dict[str, Estimate]:
    """beta-hat, its ratio to the training's beta, and whether a line in the margin is enough."""
    labels = {
        "beta_hat": "beta that fits these pairs best; the training's at the optimum",
        "beta_ratio": "fitted over given beta; below 1 over-confident, above 1 under-trained",
        "nonlinearity_p": "p that a cubic term in the margin adds nothing (pairs taken as independent)",
    }
    if rows is None or not rows.has_implicit:
        reason = NO_BASE if rows is None else NO_REFERENCE if len(rows) else NO_PAIR
        return {name: _null(label, reason) for name, label in labels.items()}
    difference, alpha = rows.implicit_margin, rows.preference
    fit = fit_beta(difference, alpha, clusters=rows.clusters, bootstrap=bootstrap, seed=seed)
    shown = {"beta_hat": ("1/nats", 1.0, beta), "beta_ratio": ("", 1.0 / beta, 1.0)}
    found = {
        name: fit.slope_estimate(labels[name], bootstrap=bootstrap, unit=unit, scale=scale, null_value=null)
        for name, (unit, scale, null) in shown.items()
    }
    return found | {"nonlinearity_p": fit.nonlinearity_estimate(labels["nonlinearity_p"])}


def _null(label: str, reason: str) -> Estimate:
    return Estimate(label=label, value=None, n=0, method="none", reason=reason)
