"""Does the size of a reward margin mean what it says? The beta that fits the votes, and calibration of sigmoid(margin).

Pure functions, numpy float64; torch tensors and lists are accepted. Turning a pair (difference or margin -> minus it,
preference -> 1 - it) changes no number here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64
from scipy.special import entr, expit

from .cubic_term import added_cubic
from .logistic_fits import drawn_slopes, rms, single_votes, slope_interval, steepness
from .ranking import as_float64
from .report import Estimate, finite
from .statistics import LEVEL, MIN_CLUSTERS, cluster_codes, wilson

SEPARABLE = "separable: every difference points to the preferred side, or every one away from it"
NO_SPREAD = "no spread: every difference is 0"
NO_ROWS = "no pairs"
NO_CLUSTERS = "no clusters were given, so there is no interval"
SOFT = "soft labels: shares of votes have no likelihood of single votes, so the ratio has no chi-square law"


@dataclass(frozen=True, slots=True, kw_only=True)
class BetaFit:
    """The slope b of P(chosen preferred) = sigmoid(b difference), in 1 / units of the difference (1 / nats).

    value, standard_error, low, high: None with `reason`; the interval alone may be None. cubic: b3 of an added
    b3 (difference / rms)^3, and nonlinearity_p of the likelihood ratio (1 df); None with `nonlinearity_reason`.
    """

    value: float | None
    standard_error: float | None  # model-based: rows taken as independent single votes
    low: float | None
    high: float | None
    n: int
    n_clusters: int | None
    separable_draws: int  # bootstrap draws without a finite optimum
    cubic: float | None
    nonlinearity_p: float | None
    reason: str | None
    nonlinearity_reason: str | None
    level: float = LEVEL  # of low and high

    def summary(self) -> str:
        if self.value is None:
            return f"No slope of preference on difference: {self.reason}."
        interval = "" if self.low is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"The preferences of {self.n} pairs are fitted best by beta = {self.value:.3g}{interval}."

    def slope_estimate(
        self, label: str, *, bootstrap: int, unit: str = "1/nats", scale: float = 1.0, null_value: float | None = None
    ) -> Estimate:
        """scale x the slope as an `Estimate`; `bootstrap`: the draws of its interval."""
        ends = [finite(number) for number in (self.value, self.low, self.high)]
        value, low, high = (None if end is None else scale * end for end in ends)
        return Estimate(
            label=label,
            value=value,
            low=low if value is not None else None,
            high=high if value is not None else None,
            level=self.level,
            n=self.n,
            n_clusters=self.n_clusters,
            unit=unit,
            method=f"maximum likelihood of sigmoid(b (dw - dl)), no intercept; cluster bootstrap, {bootstrap} draws",
            reason=self.reason,
            null_value=null_value,
        )

    def nonlinearity_estimate(self, label: str) -> Estimate:
        """nonlinearity_p as an `Estimate`."""
        p = finite(self.nonlinearity_p)
        return Estimate(
            label=label,
            value=p,
            level=None,
            n=self.n,
            n_clusters=self.n_clusters,
            unit="p",
            method="likelihood ratio of an added b3 (d / rms d)^3, 1 degree of freedom",
            reason=None if p is not None else self.nonlinearity_reason,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """How well p = sigmoid(margin) foretells votes; shares, and nats for nll, entropy and excess_nll.

    ece is folded: confidence max(p, 1 - p) against the share that agrees. A calibrated scorer's ece is not 0 on few
    votes: expected_ece is its mean, expected_ece_p95 its 95th percentile. brier = mean[a (1 - p)^2 + (1 - a) p^2] and
    nll are those of single votes, expected under preference a; excess_nll = nll - entropy >= 0, and 0 only at p = a.
    table: bin, n, confidence, observed, low, high (Wilson, a row counted as one independent vote).
    """

    ece: float
    expected_ece: float
    expected_ece_p95: float
    brier: float
    nll: float
    entropy: float
    excess_nll: float
    n: int
    table: pd.DataFrame

    def summary(self) -> str:
        return (
            f"Confidence misses the share of agreeing votes by {self.ece:.3f} on average over {self.n} pairs, "
            f"{'more than' if self.ece > self.expected_ece_p95 else 'which may be'} chance: a calibrated scorer would "
            f"show {self.expected_ece:.3f}, and in 95 % of draws at most {self.expected_ece_p95:.3f}."
        )


def fit_beta(
    difference: Any,
    preference: Any = None,
    *,
    clusters: Any = None,
    bootstrap: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> BetaFit:
    """beta-hat = argmax_b of sum [a log sigmoid(b d) + (1 - a) log sigmoid(-b d)], no intercept; it may be negative.

    difference d: dw - dl, nats, [N]; preference a = P(chosen preferred) in [0, 1], [N] (None: 1 everywhere). At the
    population optimum of DPO beta-hat is the beta of training: a smaller one means an over-confident policy, a larger
    one an under-trained one. Standard error (sum d^2 p (1 - p))^-1/2; interval by cluster bootstrap where clusters
    (prompt ids, [N]) are given: `bootstrap` draws, the middle `level` of them, null under 20 clusters or where more
    than 2.5 % of the draws are separable. nonlinearity_p holds for labels of 0 and 1 on independent pairs; for shares
    it is null.
    Raises ValueError for values that are not finite, shapes that differ or preferences outside [0, 1].
    """
    d, alpha = _rows("difference", difference, preference)
    codes, n_clusters = _codes(clusters, len(d))
    if clusters is not None and bootstrap < 1:
        raise ValueError(f"bootstrap={bootstrap}: expected at least 1 draw")
    if not d.any():
        return _no_fit(NO_SPREAD if len(d) else NO_ROWS, n=len(d), n_clusters=n_clusters)
    scale = rms(d)
    x, weight, row = single_votes(d / scale, alpha)

    slope = float(steepness(x, weight[None], np.zeros(1))[0])
    if not np.isfinite(slope):
        return _no_fit(SEPARABLE, n=len(d), n_clusters=n_clusters)
    miss = expit(-slope * x)
    curvature = float((weight * x**2 * miss * (1 - miss)).sum())
    low, high, separable, reason = None, None, 0, NO_CLUSTERS
    if codes is not None and n_clusters is not None:
        if n_clusters < MIN_CLUSTERS:
            reason = f"{n_clusters} clusters (prompts): an interval needs {MIN_CLUSTERS}"
        else:
            drawn = drawn_slopes(x, weight, codes[row], n_clusters, slope, draws=bootstrap, seed=seed)
            low, high, separable, reason = slope_interval(drawn, level=level)
    hard = bool(np.isin(alpha, (0.0, 1.0)).all())
    cubic, p, why = added_cubic(x, weight, slope)
    return BetaFit(
        value=slope / scale,
        standard_error=float(1 / np.sqrt(curvature) / scale),
        low=None if low is None else low / scale,
        high=None if high is None else high / scale,
        n=len(d),
        n_clusters=n_clusters,
        separable_draws=separable,
        cubic=cubic,
        nonlinearity_p=p if hard else None,
        reason=reason or None,
        nonlinearity_reason=why or (None if hard else SOFT),
        level=level,
    )


def calibration(
    margin: Any,
    preference: Any = None,
    bins: int = 15,
    *,
    min_per_bin: int = 30,
    n_votes: Any = None,
    draws: int = 200,
    seed: int = 0,
) -> Calibration:
    """Folded calibration of p = sigmoid(margin): ECE, Brier, NLL, and the ECE that a calibrated scorer would show.

    margin m: beta (dw - dl) or sw - sl, [N]; preference alpha, [N] (None: 1 everywhere). Chosen-oriented labels are all
    1, so confidence max(p, 1 - p) is held against alpha where m > 0, 1 - alpha where m < 0, 1/2 where m = 0. Bins hold
    about equally many rows, at least min_per_bin (fewer rows: one bin); equal confidences are never split.
    expected_ece: votes drawn from p (`draws` times), n_votes a row or one: where alpha is a share of votes that are not
    counted it is too high. Raises ValueError without rows, for values that are not finite, shapes that differ,
    preferences outside [0, 1], votes that are no whole numbers above 0, or settings below 1.
    """
    m, alpha = _rows("margin", margin, preference)
    for name, setting in (("bins", bins), ("min_per_bin", min_per_bin), ("draws", draws)):
        if setting < 1:
            raise ValueError(f"{name}={setting}: expected at least 1")
    if not len(m):
        raise ValueError("no pairs: calibration needs at least one")
    votes = _votes(n_votes, len(m))
    confidence = expit(np.abs(m))
    order = np.lexsort((votes, confidence))
    confidence, votes, even = confidence[order], votes[order], m[order] == 0
    agree = np.where(even, 0.5, np.where(m > 0, alpha, 1 - alpha)[order])
    which = _equal_mass(confidence, min(bins, max(1, len(m) // min_per_bin)), min_per_bin)

    generator = np.random.default_rng(seed)
    calibrated = [
        _ece(which, confidence, np.where(even, 0.5, generator.binomial(votes, confidence) / votes))
        for _ in range(draws)
    ]
    brier, nll, entropy = proper_scores(m, alpha)
    return Calibration(
        ece=_ece(which, confidence, agree),
        expected_ece=float(np.mean(calibrated)),
        expected_ece_p95=float(np.quantile(calibrated, 0.95)),
        brier=float(brier.mean()),
        nll=float(nll.mean()),
        entropy=float(entropy.mean()),
        excess_nll=float(np.maximum(nll - entropy, 0.0).mean()),  # a divergence: below 0 only by rounding
        n=len(m),
        table=_table(which, confidence, agree),
    )


def proper_scores(
    margin: Float64[np.ndarray, "N"], alpha: Float64[np.ndarray, "N"]
) -> tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
    """Brier score and NLL of a single vote, expected under alpha, and the vote's entropy (nats), a pair."""
    brier = alpha * expit(-margin) ** 2 + (1 - alpha) * expit(margin) ** 2
    nll = alpha * np.logaddexp(0, -margin) + (1 - alpha) * np.logaddexp(0, margin)
    return brier, nll, entr(alpha) + entr(1 - alpha)


def _rows(name: str, values: Any, preference: Any) -> tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
    x = as_float64(values)
    alpha = np.ones_like(x) if preference is None else as_float64(preference)
    if x.ndim != 1 or alpha.shape != x.shape:
        raise ValueError(f"{name} of shape {x.shape}, preference {alpha.shape}: expected one number a pair, both [N]")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} is not finite everywhere; leave out pairs without one")
    if not ((alpha >= 0) & (alpha <= 1)).all():
        raise ValueError("preference is P(chosen preferred) and lies in [0, 1]; leave out pairs without one")
    return x, alpha


def _codes(clusters: Any, n: int) -> tuple[Int64[np.ndarray, "N"] | None, int | None]:
    if clusters is None:
        return None, None
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"clusters of shape {labels.shape}: expected one a pair, ({n},)")
    return cluster_codes(labels)


def _votes(n_votes: Any, n: int) -> Int64[np.ndarray, "N"]:
    votes = np.ones(n) if n_votes is None else as_float64(n_votes)
    if votes.shape != (n,) or not ((votes >= 1) & (votes == np.floor(votes)) & np.isfinite(votes)).all():
        raise ValueError(f"n_votes: expected {n} whole numbers of at least 1; leave it out where votes are not counted")
    return votes.astype(np.int64)


def _no_fit(reason: str, *, n: int, n_clusters: int | None) -> BetaFit:
    nothing: dict[str, Any] = dict.fromkeys(("value", "standard_error", "low", "high", "cubic", "nonlinearity_p"))
    return BetaFit(**nothing, n=n, n_clusters=n_clusters, separable_draws=0, reason=reason, nonlinearity_reason=reason)


def _equal_mass(confidence: Float64[np.ndarray, "N"], bins: int, min_per_bin: int) -> Int64[np.ndarray, "N"]:
    """The bin of every row, 0..; rows come sorted. A run of equal confidences goes where its middle falls."""
    first = np.flatnonzero(_changes(confidence))
    size = np.diff(np.append(first, len(confidence)))
    wanted = np.floor((first + size / 2) * bins / len(confidence)).astype(np.int64)
    rows = np.bincount(wanted, weights=size, minlength=bins)
    merged, current, filled = np.zeros(bins, dtype=np.int64), 0, 0.0
    for i, held in enumerate(rows):
        merged[i] = current
        filled += held
        if filled >= min_per_bin:
            current, filled = current + 1, 0.0
    if filled:  # too few rows at the end: they join the bin before
        merged[merged == current] = max(current - 1, 0)
    return np.repeat(merged[wanted], size)


def _changes(ascending: Float64[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    return np.append(True, ascending[1:] != ascending[:-1])


def _ece(which: Int64[np.ndarray, "N"], confidence: Float64[np.ndarray, "N"], agree: Float64[np.ndarray, "N"]) -> float:
    """sum over bins of n_b / n |mean confidence - mean agreement|."""
    return float(np.abs(np.bincount(which, weights=confidence - agree)).sum() / len(which))


def _table(
    which: Int64[np.ndarray, "N"], confidence: Float64[np.ndarray, "N"], agree: Float64[np.ndarray, "N"]
) -> pd.DataFrame:
    rows = np.bincount(which)
    sums = np.minimum(np.bincount(which, weights=agree), rows)  # rounding of a sum of shares must not pass n
    ends = [wilson(float(s), int(n)) for s, n in zip(sums, rows, strict=True)]
    columns = {"confidence": np.bincount(which, weights=confidence) / rows, "observed": sums / rows}
    low, high = np.array(ends).T
    return pd.DataFrame({"bin": np.arange(len(rows)), "n": rows} | columns | {"low": low, "high": high})
