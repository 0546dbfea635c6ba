"""Can the numbers of differential information be trusted? Identities that hold for any two models, checked on the data.

A row an identity: what was found, its bound, and whether it holds. One that fails says that the logits, the ids or the
samples are not what they are taken for; its section is then blank (`blanked`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.special import log_softmax, logsumexp

from .ranking import as_float64
from .report import Estimate

MASS_ERROR = 1e-5  # of sum_v ref(v) e^d'(v), which is 1
ROUNDING = 1e-6  # nats: how far rounding may take a divergence below 0
NO_POSITION = "no position has two full distributions"
NOT_SWAPPED = "not computed: the arguments were not swapped"
NO_MASS = "not computed: the sum of ref e^d' was not given"


@runtime_checkable
class PanelRows(Protocol):
    """What is read of `TokenInformation`: arrays or tensors, one value a position."""

    @property
    def information(self) -> Any: ...
    @property
    def kl(self) -> Any: ...
    @property
    def reverse_kl(self) -> Any: ...
    @property
    def support(self) -> Any: ...
    @property
    def status(self) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One identity on the data: value against bound; ok is None, with a reason, where it could not be judged."""

    name: str
    value: float | None
    bound: float
    ok: bool | None
    n: int  # positions or samples
    standard_error: float | None = None  # of `value`, over prompts; None where it is a worst case, not a mean
    reason: str | None = None


def token_identities(information: PanelRows, *, swapped: PanelRows | None = None, masses: Any = None) -> list[Identity]:
    """The identities of every position, the worst over the positions whose status is ok or degenerate; nats.

    ratio_mass: max |sum_v ref(v) e^d'(v) - 1| <= 1e-5, of `masses`, [N], as `ratio_mass` returns them. kl, reverse_kl,
    information: the least is >= -1e-6. information_excess: D - log V_eff, at most 0 but for rounding, <= 1e-6.
    swapped: the panel with policy and reference exchanged: |KL - RKL'| and |RKL - KL'|, relative above 1 nat, <= 1e-6.
    Raises ValueError for another number of positions in `swapped` or `masses`. Source: arXiv 2505.23761.
    """
    usable = np.isin(np.asarray(information.status), ("ok", "degenerate"))
    mass = None if masses is None else as_float64(masses)
    for name, given in (("swapped", None if swapped is None else swapped.status), ("masses", mass)):
        if given is not None and len(given) != len(usable):
            raise ValueError(f"{name} holds {len(given)} positions: expected {len(usable)}, those of information")
    least = {name: as_float64(getattr(information, name))[usable] for name in ("kl", "reverse_kl", "information")}
    excess = least["information"] - np.log(as_float64(information.support)[usable])
    rows = [_highest("ratio_mass", None if mass is None else np.abs(mass[usable] - 1), MASS_ERROR, absent=NO_MASS)]
    rows += [_lowest(name, values, -ROUNDING) for name, values in least.items()]
    rows.append(_highest("information_excess", excess, ROUNDING))
    if swapped is None:
        return [*rows, _highest("swapped", None, ROUNDING, absent=NOT_SWAPPED)]
    apart = [
        _apart(least[here], as_float64(getattr(swapped, there))[usable])
        for here, there in (("kl", "reverse_kl"), ("reverse_kl", "kl"))
    ]
    return [*rows, _highest("swapped", np.maximum(*apart), ROUNDING)]


def ratio_mass(policy_logits: Any, reference_logits: Any, *, vocab: int | None = None) -> Float64[np.ndarray, "N"]:
    """sum_v ref(v) e^d'(v), d' = log pi - log ref: 1 at every position whatever the two models are, [N, V] -> [N].

    Tokens that both exclude (-inf) count for nothing; one that the reference alone excludes is missing from the sum.
    vocab: columns of the shared tokenizer. Raises ValueError for shapes that differ.
    """
    policy, reference = (as_float64(z)[..., :vocab] for z in (policy_logits, reference_logits))
    if policy.shape != reference.shape or policy.ndim != 2:
        raise ValueError(f"logits of shapes {policy.shape} and {reference.shape}: expected both [N, V]")
    excluded = np.isneginf(reference)
    with np.errstate(invalid="ignore"):
        d = np.where(excluded, -np.inf, policy - reference)
    change = d - (logsumexp(policy, axis=-1) - logsumexp(reference, axis=-1))[:, None]
    log_reference = np.where(excluded, 0.0, log_softmax(reference, axis=-1))
    return np.asarray(np.exp(logsumexp(log_reference + change, axis=-1)))


def failed(identities: Iterable[Identity]) -> list[Identity]:
    """Those that do not hold; one that could not be judged is not among them."""
    return [row for row in identities if row.ok is False]


def blanked(estimates: Mapping[str, Estimate], identities: Iterable[Identity]) -> dict[str, Estimate]:
    """The estimates as they are, or all null with the reason where an identity fails."""
    names = ", ".join(row.name for row in failed(identities))
    if not names:
        return dict(estimates)
    gone = {"value": None, "low": None, "high": None, "reason": f"an identity fails: {names}"}
    return {name: estimate.model_copy(update=gone) for name, estimate in estimates.items()}


def identity_table(identities: Iterable[Identity]) -> pd.DataFrame:
    """name, value, bound, ok, n, standard_error, reason: a row an identity; ok is "yes", "no" or "not judged"."""
    said = {True: "yes", False: "no", None: "not judged"}
    rows = [(r.name, r.value, r.bound, said[r.ok], r.n, r.standard_error, r.reason or "") for r in identities]
    names = ["name", "value", "bound", "ok", "n", "standard_error", "reason"]
    return pd.DataFrame(rows, columns=names).astype(
        {"name": str, "value": float, "bound": float, "ok": str, "n": int, "standard_error": float, "reason": str}
    )


def unknown(name: str, bound: float, reason: str, *, n: int = 0) -> Identity:
    """A row that could not be judged."""
    return Identity(name=name, value=None, bound=bound, ok=None, n=n, reason=reason)


def _highest(
    name: str, values: Float64[np.ndarray, "n"] | None, bound: float, *, absent: str = NO_POSITION
) -> Identity:
    """The largest value, which is at most the bound; a value that is no number fails."""
    if values is None or not len(values):
        return unknown(name, bound, NO_POSITION if values is not None else absent)
    bad = int(np.isnan(values).sum())
    if bad:
        return Identity(name=name, value=None, bound=bound, ok=False, n=len(values), reason=f"{bad} are not a number")
    worst = float(values.max())
    return Identity(name=name, value=worst, bound=bound, ok=worst <= bound, n=len(values))


def _lowest(name: str, values: Float64[np.ndarray, "n"], bound: float) -> Identity:
    """The smallest value, which is at least the bound."""
    row = _highest(name, -values, -bound)
    return replace(row, bound=bound, value=None if row.value is None else -row.value)


def _apart(first: Float64[np.ndarray, "N"], second: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
    """|a - b|, relative above 1; two infinities are equal."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(first - second) / np.maximum(1.0, np.abs(first))
    return np.where(first == second, 0.0, apart)
