"""Which share of the difference between two runs does an edit take away, and how sure is that? Ratios of means.

KL: mean over response tokens. recovered = 1 - KL / KL_none, with KL_none of the unedited run: 1 is all of it, 0 none,
below 0 the edit does harm. Whole prompts are resampled, numerator and denominator together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ...diagnose.report import Estimate
from ...diagnose.statistics import LEVEL, BootstrapMeans, cluster_bootstrap, estimate_from, single_column

ALIKE = 1e-9  # nats a token: runs that differ by less leave nothing to recover [reconstructed]

Ratio = tuple[float, Float[np.ndarray, "B"]]  # a value, and its bootstrap draws


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DirectionShares:
    """KL sums of rows under several ways to edit, and what was resampled of them. Column 0: no edit."""

    names: tuple[str, ...]
    sums: Float[np.ndarray, "N M"]  # nats
    n_tokens: Int[np.ndarray, "N"]
    boot: BootstrapMeans  # of the sums, and last of n_tokens

    @classmethod
    def resampled(
        cls,
        names: Sequence[str],
        sums: Float[np.ndarray, "N M"],
        n_tokens: Int[np.ndarray, "N"],
        clusters: Int[np.ndarray, "N"],
        *,
        resamples: int = 2000,
        seed: int = 0,
        level: float = LEVEL,
    ) -> "DirectionShares":
        """Resample whole clusters. Sides with the same clusters and seed share their resamples: differences are paired.

        ValueError where names and columns differ in number.
        """
        if len(names) != sums.shape[1]:
            raise ValueError(f"{len(names)} names for sums of shape {sums.shape}: expected one a column")
        columns = np.column_stack([sums, n_tokens.astype(float)])
        boot = cluster_bootstrap(columns, clusters, draws=resamples, seed=seed, level=level)
        return cls(names=tuple(names), sums=sums, n_tokens=n_tokens, boot=boot)

    @property
    def n_rows(self) -> int:
        return len(self.sums)

    @property
    def n_clusters(self) -> int:
        return int(self.boot.n_clusters[0])

    def kl(self, name: str) -> Ratio:
        """Nats a response token."""
        return self._ratio(self.names.index(name), -1)

    def recovered(self, name: str) -> Ratio:
        """1 - KL / KL_none; NaN where the unedited runs are alike."""
        if self.kl(self.names[0])[0] < ALIKE:
            return float("nan"), np.full(len(self.boot.draws), np.nan)
        value, draws = self._ratio(self.names.index(name), 0)
        return 1 - value, 1 - draws

    def estimate(self, ratio: Ratio, *, label: str, unit: str, null_value: float | None = None) -> Estimate:
        """A ratio, or a difference of two, with its interval; n counts response tokens."""
        return ratio_estimate(self.boot, ratio, int(self.n_tokens.sum()), label=label, unit=unit, null_value=null_value)

    def kl_estimate(self, name: str, label: str, absent: str = "") -> Estimate:
        """absent: why there is no column of that name."""
        if name not in self.names:
            return missing(label, NATS, absent)
        return self.estimate(self.kl(name), label=label, unit=NATS)

    def recovered_estimate(self, name: str, label: str, absent: str = "") -> Estimate:
        """As kl_estimate; of no edit exactly 0."""
        if name not in self.names:
            return missing(label, SHARE, absent)
        found = self.estimate(self.recovered(name), label=label, unit=SHARE, null_value=0.0)
        if name == self.names[0] and found.value is not None:
            exact = {"level": None, "low": None, "high": None, "reason": None, "method": "exact"}
            return found.model_copy(update=exact)
        return found

    def _ratio(self, above: int, below: int) -> Ratio:
        top, bottom = self.boot.draws[:, above], self.boot.draws[:, below]
        draws = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
        return float(self.boot.mean[above] / self.boot.mean[below]), draws


NATS = "nats a token"
SHARE = "of the KL"  # no share of counts: it may be below 0
POINTS = "difference of shares of the KL"
NOTHING = f"the unedited runs are alike (KL below {ALIKE:g} nats a token): nothing to recover"


def difference(first: Ratio, second: Ratio) -> Ratio:
    """first - second, draw by draw: paired where the draws are of the same resamples."""
    return first[0] - second[0], first[1] - second[1]


def ratio_estimate(
    boot: BootstrapMeans, ratio: Ratio, n: int, *, label: str, unit: str, null_value: float | None = None
) -> Estimate:
    """null with the reason where the ratio has no value; without interval below 20 clusters (prompts)."""
    value, draws = ratio
    known = not np.isnan(value)
    column = single_column(
        value, draws, n=n if known else 0, n_clusters=int(boot.n_clusters[0]) if known else 0, level=boot.level
    )
    found = estimate_from(column, 0, label=label, unit=unit, null_value=null_value, reason=NOTHING)
    return found.model_copy(update={"method": f"{boot.method}, of a ratio of means"})


def missing(label: str, unit: str, reason: str) -> Estimate:
    """An estimate that there is none of, and why."""
    return Estimate(label=label, value=None, n=0, unit=unit, method="not computed", reason=reason)


def cells(name: str, estimate: Estimate) -> dict[str, float | None]:
    """Value and interval of an estimate as cells of a table."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
