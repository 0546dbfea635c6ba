"""Does the way the answers were drawn fit the power law? log p_w/p_l = beta l + const, l = log pi/ref, a response.

p_w and p_l are the distributions that wrote chosen and rejected answers. Under the law (arXiv 2505.23761) their
log-ratio is a straight line in l, one line a prompt: the slope is beta, the constant belongs to the prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped

from .ranking import AGREE, as_float64
from .report import Estimate, estimate_frame
from .statistics import BootstrapMeans, cluster_bootstrap, cluster_codes, estimate_from, single_column

UNKNOWN = "not identifiable: generators unknown"
CONSTANT = "not identifiable: every log-ratio is the same"
CONSTANT_INSIDE = "not identifiable: no prompt has two responses whose log-ratios differ"
NO_GAP_SPREAD = "every generator gap is the same: there is nothing to explain"
MIN_ROWS = 3  # a line with intercept goes through any two
_LABELS = {
    "beta": ("slope of log p_w/p_l on log pi/ref, one intercept", ""),
    "intercept": ("its intercept", "nats"),
    "r_squared": ("share of the spread of log p_w/p_l that the line explains", ""),
    "beta_within": ("the same slope with an intercept a prompt", ""),
}
_COLUMNS = ["cluster", "log_ratio", "generator_gap", "fitted", "residual"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GeneratorLaw:
    """The line log p_w/p_l = intercept + beta l over responses; all null with a reason where there is none."""

    beta: Estimate  # one intercept for all prompts
    intercept: Estimate  # nats
    r_squared: Estimate
    beta_within: Estimate  # an intercept a prompt: what the law says where there are several prompts
    residuals: pd.DataFrame  # cluster, log_ratio, generator_gap, fitted, residual (nats): a row a response

    @property
    def estimates(self) -> dict[str, Estimate]:
        return {name: getattr(self, name) for name in _LABELS}

    def to_frame(self) -> pd.DataFrame:
        """A row an estimate."""
        return estimate_frame(self.estimates)

    def summary(self) -> str:
        if self.beta.value is None:
            return f"No beta of the generators: {self.beta.reason}."
        inside = "" if self.beta_within.value is None else f", and inside prompts beta = {self.beta_within}"
        explained = "" if self.r_squared.value is None else f" (R^2 {self.r_squared.value:.3f})"
        return f"Over {self.beta.n} responses the generators' log-ratio has beta = {self.beta}{explained}{inside}."


def fit_generator_law(
    generator_gap: Any, log_ratio: Any, clusters: Any, *, bootstrap: int = 2000, seed: int = 0
) -> GeneratorLaw:
    """Least squares of log p_w(y) - log p_l(y) on l(y) = log pi(y) - log ref(y), with intercept.

    generator_gap: nats, [n], None where either generator is not known; log_ratio: nats, [n]; clusters: prompts, [n].
    The law's constant is one a prompt, so over several prompts `beta` mixes it in and `beta_within` does not; with one
    prompt the two are the same number. Intervals: cluster bootstrap, null under 20 clusters. Null: generators not
    known, fewer than 3 responses, or l constant. Source: arXiv 2505.23761.
    Raises ValueError for shapes that differ or values that are not finite.
    """
    if generator_gap is None:
        return _without(UNKNOWN, n=0)
    y, x = as_float64(generator_gap), as_float64(log_ratio)
    labels = np.asarray(clusters)
    if x.ndim != 1 or y.shape != x.shape or labels.shape != x.shape:
        raise ValueError(
            f"generator_gap of shape {y.shape}, log_ratio {x.shape}, clusters {labels.shape}: expected one number a "
            "response, all [n]"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("generator_gap or log_ratio is not finite everywhere; leave out responses without both")
    if len(x) < MIN_ROWS:
        return _without(f"{len(x)} responses: a line with intercept needs {MIN_ROWS}", n=len(x))
    if np.ptp(x) <= AGREE:
        return _without(CONSTANT, n=len(x))
    return _fitted(y, x, labels, bootstrap=bootstrap, seed=seed)


def margin_ordering(
    target_margin: Any,
    reference_margin: Any,
    rejected_margin: Any,
    clusters: Any,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Share of pairs with sign(m_* - m_ref) = sign(m_ref - m_l): 1 under the power law, where only pi_l is known.

    m_p = log p(chosen) - log p(rejected), nats, [n], of the target (the trained policy), of ref, and of the generator
    pi_l of the rejected answers (None where not known). The law gives m_ref - m_l = beta (m_* - m_ref), beta > 0; a
    share of 1 does not prove it, which needs proportionality. Differences up to 1e-9 nats count as 0.
    Raises ValueError for shapes that differ or values that are not finite. Source: arXiv 2505.23761.
    """
    label = "pairs on which the policy moved away from the rejected answers' generator, as the power law says"
    if rejected_margin is None:
        return Estimate(label=label, value=None, n=0, unit="share", method="none", reason=UNKNOWN)
    margins = [as_float64(margin) for margin in (target_margin, reference_margin, rejected_margin)]
    shapes = [margin.shape for margin in margins]
    labels = np.asarray(clusters)
    if margins[0].ndim != 1 or {*shapes, labels.shape} != {margins[0].shape}:
        raise ValueError(f"margins of shapes {shapes}, clusters {labels.shape}: expected one a pair, all [n]")
    if not all(np.isfinite(margin).all() for margin in margins):
        raise ValueError("margins are not finite everywhere; leave out pairs without all three")
    target, reference, rejected = margins
    same = _sign(target - reference) == _sign(reference - rejected)
    boot = cluster_bootstrap(same.astype(np.float64)[:, None], labels, draws=bootstrap, seed=seed)
    return estimate_from(boot, 0, label=label, null_value=0.5, reason="no pairs")


def _sign(difference: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    return np.where(np.abs(difference) <= AGREE, 0.0, np.sign(difference))


def _fitted(
    y: Float64[np.ndarray, "n"], x: Float64[np.ndarray, "n"], clusters: Shaped[np.ndarray, "n"], *, bootstrap: int,
    seed: int
) -> GeneratorLaw:  # fmt: skip
    codes, n_clusters = cluster_codes(clusters)
    middle_x, middle_y = x.mean(), y.mean()
    u, v = x - middle_x, y - middle_y  # far from 0 the squares would lose the spread
    inner_u, inner_v = _within(u, codes), _within(v, codes)
    inner_u[np.abs(inner_u) <= AGREE] = 0.0  # a prompt whose log-ratios are all the same says nothing
    columns = np.stack([u, v, u * u, u * v, v * v, inner_u * inner_u, inner_u * inner_v], axis=1)
    boot = cluster_bootstrap(columns, clusters, draws=bootstrap, seed=seed)

    reasons = {"r_squared": NO_GAP_SPREAD, "beta_within": CONSTANT_INSIDE}
    statistics: dict[str, Callable[[Float64[np.ndarray, "B 7"]], Float64[np.ndarray, "B"]]] = {
        "beta": _slope,
        "intercept": lambda means: middle_y + means[:, 1] - _slope(means) * (middle_x + means[:, 0]),
        "r_squared": _explained,
        "beta_within": lambda means: _ratio(means[:, 6], means[:, 5]),
    }
    found = {
        name: estimate_from(_column(of, boot, len(x), n_clusters), 0, label=_LABELS[name][0], unit=_LABELS[name][1],
                            reason=reasons.get(name))
        for name, of in statistics.items()
    }  # fmt: skip
    beta, intercept = (float(statistics[name](boot.mean[None])[0]) for name in ("beta", "intercept"))
    line = intercept + beta * x
    table = pd.DataFrame(dict(zip(_COLUMNS, (clusters, x, y, line, y - line), strict=True)))
    return GeneratorLaw(**found, residuals=table)


def _column(
    of: Callable[[Float64[np.ndarray, "B 7"]], Float64[np.ndarray, "B"]], boot: BootstrapMeans, n: int, n_clusters: int
) -> BootstrapMeans:
    """A function of the means with its draws; no row counts where it has no value."""
    value = float(of(boot.mean[None])[0])
    return single_column(value, of(boot.draws), n=n if np.isfinite(value) else 0, n_clusters=n_clusters)


def _slope(means: Float64[np.ndarray, "B 7"]) -> Float64[np.ndarray, "B"]:
    return _ratio(means[:, 3] - means[:, 0] * means[:, 1], _spread(means, 0, 2))


def _explained(means: Float64[np.ndarray, "B 7"]) -> Float64[np.ndarray, "B"]:
    """R^2 of the least-squares line: the squared correlation."""
    shared = means[:, 3] - means[:, 0] * means[:, 1]
    return np.minimum(_ratio(shared**2, _spread(means, 0, 2) * _spread(means, 1, 4)), 1.0)


def _spread(means: Float64[np.ndarray, "B 7"], first: int, square: int) -> Float64[np.ndarray, "B"]:
    """Variance from means of a column and of its square; rounding of a constant column is 0."""
    variance = means[:, square] - means[:, first] ** 2
    return np.where(variance > 1e-12 * means[:, square], variance, 0.0)


def _ratio(above: Float64[np.ndarray, "B"], below: Float64[np.ndarray, "B"]) -> Float64[np.ndarray, "B"]:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _within(values: Float64[np.ndarray, "n"], codes: Int64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """What is left when every cluster's mean is taken away."""
    return values - (np.bincount(codes, weights=values) / np.bincount(codes))[codes]


def _without(reason: str, *, n: int) -> GeneratorLaw:
    nothing = {
        name: Estimate(label=label, value=None, n=n, unit=unit, method="none", reason=reason)
        for name, (label, unit) in _LABELS.items()
    }
    return GeneratorLaw(**nothing, residuals=pd.DataFrame({name: [] for name in _COLUMNS}))
