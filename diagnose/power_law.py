"""Do a policy's log-ratios follow the law that DPO assumes? Labels first, then the generators of the answers.

l(y) = log pi(y|x) - log ref(y|x), nats. If chosen answers come from ref and rejected ones from pi_l, and the
differential information is a power law, log q_(ref/l) = beta l + const, then P(chosen preferred) = sigmoid(beta
[l(chosen) - l(rejected)]) (arXiv 2505.23761). Pure functions; numpy float64; torch tensors and lists are accepted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .calibration import NO_ROWS, NO_SPREAD, BetaFit, calibration, fit_beta
from .cubic_term import drawn_cubics
from .generator_law import GeneratorLaw, fit_generator_law, margin_ordering
from .logistic_fits import rms, single_votes, slope_interval
from .ranking import as_float64
from .report import Estimate, estimate_frame
from .statistics import LEVEL, cluster_codes

__all__ = ["GeneratorLaw", "LabelLaw", "fit_generator_law", "fit_label_law", "margin_ordering"]

BINS = 10
NOT_IDENTIFIABLE = {
    NO_SPREAD: "not identifiable: every log-ratio gap is 0",
    NO_ROWS: "not identifiable: no pairs",
}
IN_SAMPLE = "in-sample: on training pairs beta^ says how far the policy was fitted, not what it learned"
LOSS = "the training's loss is taken to be plain DPO (label smoothing alone puts beta^ above the training's beta)"
_COLUMNS = ["at", "bin", "n", "confidence", "observed", "low", "high"]
_TYPES = {"at": str, "bin": int, "n": int} | dict.fromkeys(_COLUMNS[3:], float)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelLaw:
    """The slope beta^ of P(chosen preferred) = sigmoid(beta^ dl), and how good a law that is."""

    beta: Estimate  # 1/nats; null with reason "separable ..." or "not identifiable ..."
    standard_error: float | None  # Fisher, 1/nats: pairs taken as independent single votes
    cubic: Estimate  # b3 of sigmoid(b dl + b3 dl^3), 1/nats^3; 0 where the law is straight
    nonlinearity_p: Estimate  # likelihood ratio of b3; for labels of 0 and 1
    reliability: pd.DataFrame  # at (fitted, trained), bin, n, confidence, observed, low, high (Wilson): folded
    trained_beta: float | None
    comparison: str | None  # beta^ against trained_beta in words
    warnings: tuple[str, ...]

    @property
    def estimates(self) -> dict[str, Estimate]:
        return {"beta": self.beta, "cubic": self.cubic, "nonlinearity_p": self.nonlinearity_p}

    def to_frame(self) -> pd.DataFrame:
        """A row an estimate."""
        return estimate_frame(self.estimates)

    def summary(self) -> str:
        if self.beta.value is None:
            return f"No beta of the labels: {self.beta.reason}."
        said = f"The labels of {self.beta.n} pairs follow sigmoid(beta dl) best at beta = {self.beta}."
        return said if self.comparison is None else f"{said} {self.comparison}"


def fit_label_law(
    log_ratio_gap: Any,
    clusters: Any,
    *,
    labels: Any = None,
    trained_beta: float | int | None = None,
    in_sample: bool = False,
    bootstrap: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> LabelLaw:
    """beta^ = argmax_b of sum [a log sigmoid(b dl) + (1 - a) log sigmoid(-b dl)], no intercept: the label law of DPO.

    log_ratio_gap dl = l(chosen) - l(rejected), nats, [n], on held-out pairs (in_sample=True says they are not);
    clusters: prompts, [n]; labels a = P(chosen preferred), [n] in [0, 1] (None: 1 everywhere). At DPO's population
    optimum beta^ = trained_beta; below it the policy is over-confident, above it under-trained. Null where all nonzero
    dl point one way ("separable") or all are 0 ("not identifiable"). Intervals: cluster bootstrap, null under 20
    clusters. reliability: 10 bins of about equally many pairs, equal predictions never split, at sigmoid(beta^ dl) and
    at trained_beta.
    Source: arXiv 2505.23761 (the law); the fit is `calibration.fit_beta`.
    Raises ValueError for values that are not finite, shapes that differ, labels outside [0, 1] or trained_beta <= 0.

    >>> law = fit_label_law([2, 2, 2, -2], ["a", "b", "c", "d"])
    >>> print(f"{law.beta.value:.6f} {law.standard_error:.6f}: {law.beta.reason}")
    0.549306 0.577350: 4 clusters (prompts): an interval needs 20
    """
    if trained_beta is not None and not (np.isfinite(trained_beta) and trained_beta > 0):
        raise ValueError(f"trained_beta={trained_beta}: expected a finite number above 0")
    fit = fit_beta(log_ratio_gap, labels, clusters=clusters, bootstrap=bootstrap, seed=seed, level=level)
    beta = fit.slope_estimate("beta that fits the labels best; the training's at DPO's optimum", bootstrap=bootstrap,
                              null_value=trained_beta)  # fmt: skip
    if fit.reason in NOT_IDENTIFIABLE:
        beta = beta.model_copy(update={"reason": NOT_IDENTIFIABLE[fit.reason]})
    return LabelLaw(
        beta=beta,
        standard_error=fit.standard_error,
        cubic=_cubic(fit, beta, log_ratio_gap, labels, clusters, bootstrap=bootstrap, seed=seed, level=level),
        nonlinearity_p=fit.nonlinearity_estimate("p that a cubic term in dl adds nothing (pairs taken as independent)"),
        reliability=_reliability(log_ratio_gap, labels, {"fitted": fit.value, "trained": trained_beta}),
        trained_beta=trained_beta,
        comparison=None if trained_beta is None else _compared(beta, trained_beta),
        warnings=((IN_SAMPLE,) if in_sample else ()) + (() if trained_beta is None else (LOSS,)),
    )


def _cubic(
    fit: BetaFit, beta: Estimate, gap: Any, labels: Any, clusters: Any, *, bootstrap: int, seed: int, level: float
) -> Estimate:
    """b3 of an added b3 dl^3, its interval from the same resamples as that of beta^."""
    low, high, value = None, None, None
    reason = beta.reason if fit.value is None else fit.nonlinearity_reason
    if fit.value is not None and fit.cubic is not None:
        d = as_float64(gap)
        scale = rms(d)
        value, reason = fit.cubic / scale**3, beta.reason  # fit_beta's is of (dl / rms)^3
        if fit.low is not None:
            alpha = np.ones_like(d) if labels is None else as_float64(labels)
            x, weight, row = single_votes(d / scale, alpha)
            codes, n_clusters = cluster_codes(np.asarray(clusters))
            start = (fit.value * scale, fit.cubic)
            drawn = drawn_cubics(x, weight, codes[row], n_clusters, start, draws=bootstrap, seed=seed)
            low, high, _, reason = slope_interval(drawn, level=level)
            low, high = (None if end is None else end / scale**3 for end in (low, high))
    return Estimate(
        label="b3 of sigmoid(b dl + b3 dl^3): 0 where the labels follow a straight law",
        value=value,
        low=low,
        high=high,
        level=level,
        n=fit.n,
        n_clusters=fit.n_clusters,
        unit="1/nats^3",
        method=f"maximum likelihood with a cubic term; cluster bootstrap, {bootstrap} draws, percentile",
        reason=reason or None,
        null_value=0.0,
    )


def _reliability(gap: Any, labels: Any, betas: Mapping[str, float | None]) -> pd.DataFrame:
    """Folded: confidence sigmoid(|beta dl|) against the share of labels that agree; a pair counts as one vote."""
    tables = [
        calibration(beta * as_float64(gap), labels, BINS, min_per_bin=1, draws=1).table.assign(at=at)[_COLUMNS]
        for at, beta in betas.items()
        if beta is not None and as_float64(gap).size
    ]
    return (pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_COLUMNS)).astype(_TYPES)


def _compared(beta: Estimate, trained: float) -> str:
    if beta.value is None:
        return f"It cannot be held against the training's {trained:g}: {beta.reason}."
    if beta.low is None or beta.high is None:
        return f"Whether it differs from the training's {trained:g} cannot be told: {beta.reason}."
    if beta.high < trained:
        return f"It lies below the training's {trained:g}: the policy is over-confident or over-trained on these pairs."
    if beta.low > trained:
        return f"It lies above the training's {trained:g}: the policy is under-trained, or its labels were smoothed."
    return f"The training's {trained:g} lies inside the interval: no departure from DPO's optimum is measurable."
