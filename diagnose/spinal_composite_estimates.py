"""How sure are the composite and its parts? A delete-group jackknife of the whole computation, scales held."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .report import Estimate
from .spinal_components import Curves, coherence, combined, concentration, contrast, transport_share
from .spinal_composite import COMPONENTS, LABELS, NOT_COMPARABLE, SIDES, Composite, Part
from .spinal_estimates import estimate, ours
from .spinal_trace import SAMPLING_ONLY, student
from .statistics import delete_group_jackknife

NO_GROUPS = "fewer prompts than jackknife groups"
GROUP_WITHOUT = "without one of the groups of prompts a layer of the window has no value"
NO_NORM_GROUPS = "the norms came without those of delete-group samples of pairs"
NO_EFFICIENCY_GROUPS = "the efficiency came without its delete-group means"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Spread:
    """Where the interval of a part comes from: delete-group values of independent samples, or why there are none."""

    samples: tuple[Float[np.ndarray, "_"], ...] = ()
    method: str
    reason: str | None = None
    exact: bool = False


def delete_group_means(
    values: Float[np.ndarray, "K N"], groups: Int[np.ndarray, "N"], n_groups: int
) -> Float[np.ndarray, "G K"]:
    """Row means over the prompts outside each group in turn, for instance of angles [L, N]; prompts weigh the same.

    groups: 0..n_groups-1 a prompt, whole clusters together (`spinal_spectra.group_labels`). A NaN leaves its prompt out
    of that row alone; NaN where no prompt is left. Raises ValueError for a label outside the range.
    """
    if len(groups) and (groups.min() < 0 or groups.max() >= n_groups):
        raise ValueError(f"groups {groups.min()} to {groups.max()}: expected 0 to {n_groups - 1}")
    outside = (groups[None] != np.arange(n_groups)[:, None]).astype(float)  # [G, N]
    present = np.isfinite(values)
    count = outside @ present.T.astype(float)
    total = outside @ np.where(present, values, 0.0).T
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def composite_estimates(
    found: Composite,
    *,
    alpha_groups: tuple[Float[np.ndarray, "G layers"], Float[np.ndarray, "G_aligned layers"]],
    angle_groups: tuple[Float[np.ndarray, "G steps"], Float[np.ndarray, "G_aligned steps"]],
    n: int,
    n_clusters: int,
    efficiency_groups: tuple[Float[np.ndarray, "G"] | None, Float[np.ndarray, "G"] | None] = (None, None),
    norm_groups: tuple[Float[np.ndarray, "H L"] | None, Float[np.ndarray, "H_aligned L"] | None] = (None, None),
    n_pairs: int = 0,
) -> dict[str, Estimate]:
    """Delta, S_coh, G, score and efficiency with intervals, and each model's own S_coh beside; all `reconstructed`.

    SE^2 = (G-1)/G sum (theta_g - mean)^2, theta_g = the whole computation on the curves without group g, window and
    scales those of the full sample; interval value +- t_(G-1) SE.
    alpha_groups: exponents [G, L + 1] of base and aligned without each group, at the full sample's ranks. angle_groups:
        mean angles [G, L] over the prompts outside each group (`delete_group_means`). The same groups in both models,
        as the contrast is paired. efficiency_groups: mean efficiencies [G], the same way.
    norm_groups: block norms [H, L] without each of H groups of the pairs they come from, n_pairs in all; those pairs
        are another sample than the prompts: its variance is added. G of `weight_share` rests on weights alone: exact.
    n, n_clusters: prompts, and clusters of them. Fewer than 2 groups, or a group without a value: no interval, with
    the reason. Raises ValueError where the numbers of groups or layers differ.
    """
    base, aligned = (Curves(alpha=a, angle=b) for a, b in zip(alpha_groups, angle_groups, strict=True))
    if base.angle.shape != aligned.angle.shape or base.n_layers != found.given.base.n_layers:
        raise ValueError(
            f"delete-group angles of shape {base.angle.shape} and {aligned.angle.shape}: expected the same groups in "
            f"both, and {found.given.base.n_layers} steps"
        )
    spreads = _spreads(found, base, aligned, efficiency_groups, norm_groups)
    counts = {"n": n, "n_clusters": n_clusters}
    of_pairs = {"n": n_pairs, "n_clusters": n_pairs}
    estimates = {}
    for name, spread in spreads.items():
        about_pairs = name.startswith("concentration") and found.given.gradient != "transport_share"
        held = of_pairs if about_pairs and not spread.exact else counts
        estimates[name] = _estimate(name, found.parts[name], spread, held, found.given.base.n_layers)
    return estimates


def _spreads(
    found: Composite,
    base: Curves,
    aligned: Curves,
    efficiency_groups: tuple[Float[np.ndarray, "G"] | None, Float[np.ndarray, "G"] | None],
    norm_groups: tuple[Float[np.ndarray, "H L"] | None, Float[np.ndarray, "H_aligned L"] | None],
) -> dict[str, _Spread]:
    given = found.given
    n_groups = len(base.angle)
    method = (
        f"delete-group jackknife of the whole computation, {n_groups} random groups of prompts shared by both models, "
        "window and scales held; exponents and mean angles of a group are those of the prompts outside it; "
        f"{SAMPLING_ONLY}; {NOT_COMPARABLE}"
    )

    def over_prompts(theta: Float[np.ndarray, "G"]) -> _Spread:
        reason = NO_GROUPS if n_groups < 2 else None if np.isfinite(theta).all() else GROUP_WITHOUT
        return _Spread(samples=(theta,), method=method, reason=reason)

    def over_both(name: str, values: Sequence[Float[np.ndarray, "G"] | None], lost: str) -> dict[str, _Spread]:
        """Of each model and of their difference."""
        keys = [f"{name}_{side}" for side in SIDES]
        spreads = [_Spread(method=method, reason=lost) if v is None else over_prompts(v) for v in values]
        first, second = values
        both = None if first is None or second is None else second - first
        spreads.append(_Spread(method=method, reason=lost) if both is None else over_prompts(both))
        return dict(zip([name, *keys], [spreads[2], *spreads[:2]], strict=True))

    nothing = np.full(n_groups, np.nan)
    spreads = {
        "delta": over_prompts(
            nothing if found.delta.value is None else contrast(base, aligned, given.window, given.size, given.delta)
        )
    }
    if given.coherence == "efficiency":
        spreads |= over_both("coherence", efficiency_groups, NO_EFFICIENCY_GROUPS)
    else:
        curves = [
            nothing if found.parts[f"coherence_{side}"].value is None
            else coherence(model, given.window, given.size, given.coherence)
            for side, model in zip(SIDES, (base, aligned), strict=True)
        ]  # fmt: skip
        spreads |= over_both("coherence", curves, GROUP_WITHOUT)
    if given.gradient == "weight_share":
        exact = f"exact: rests on the weights, not on prompts; {NOT_COMPARABLE}"
        spreads["concentration"] = _Spread(method=exact, exact=True)
    elif given.gradient == "transport_share":
        spreads["concentration"] = over_prompts(
            nothing if found.concentration.value is None else transport_share(base, aligned, given.window)
        )
    else:
        spreads |= _over_pairs(found, norm_groups)
    spreads |= over_both("efficiency", efficiency_groups, NO_EFFICIENCY_GROUPS)
    spreads["score"] = _of_score([spreads[name] for name in COMPONENTS], given.weights, given.gradient, method)
    return spreads


def _over_pairs(
    found: Composite, norm_groups: tuple[Float[np.ndarray, "H L"] | None, Float[np.ndarray, "H_aligned L"] | None]
) -> dict[str, _Spread]:
    """G of each model and their difference, from norms without each group of pairs."""
    first, last = found.given.window
    names = ["concentration", *(f"concentration_{side}" for side in SIDES)]
    base, aligned = norm_groups
    if base is None or aligned is None:
        missing = _Spread(method=f"no interval; {NOT_COMPARABLE}", reason=NO_NORM_GROUPS)
        return dict.fromkeys(names, missing)
    if base.shape != aligned.shape or base.shape[1] != found.given.base.n_layers:
        raise ValueError(
            f"delete-group norms of shape {base.shape} and {aligned.shape}: expected the same groups in both, and "
            f"{found.given.base.n_layers} blocks"
        )
    method = (
        f"delete-group jackknife, {len(base)} groups of pairs shared by both models; norms of a group are those of the "
        f"pairs outside it; {NOT_COMPARABLE}"
    )
    values = [concentration(norms, range(first - 1, last)) for norms in (base, aligned)]
    spreads = []
    for theta in (values[1] - values[0], *values):
        reason = "fewer pairs than jackknife groups" if len(base) < 2 else None
        reason = reason or (None if np.isfinite(theta).all() else "without one of the groups of pairs all norms are 0")
        spreads.append(_Spread(samples=(theta,), method=method, reason=reason))
    return dict(zip(names, spreads, strict=True))


def _of_score(components: list[_Spread], weights: Sequence[float], gradient: str, method: str) -> _Spread:
    """What the prompts move together is jackknifed together; G from pairs is another sample and adds its variance."""
    reason = next((spread.reason for spread in components if spread.reason), None)
    if reason:
        return _Spread(method=method, reason=reason)
    delta, coherent, share = components
    still = np.zeros_like(delta.samples[0])
    by_prompts = share.samples[0] if gradient == "transport_share" else still
    together = combined([delta.samples[0], coherent.samples[0], by_prompts], weights)
    if gradient in ("weight_share", "transport_share"):
        return _Spread(samples=(together,), method=method)
    return _Spread(
        samples=(together, weights[2] * share.samples[0]),
        method=f"{method}; variance of G added, from a {share.method.removesuffix(f'; {NOT_COMPARABLE}')}",
    )


def _estimate(name: str, part: Part, spread: _Spread, counts: dict[str, int], n_blocks: int) -> Estimate:
    if spread.exact:
        return Estimate(
            label=LABELS[name],
            value=part.value,
            level=None,
            n=n_blocks,
            method=spread.method,
            reason=part.reason,
            null_value=0.0,
            reconstructed=True,
        )
    value, reach = math.nan if part.value is None else part.value, math.nan
    if part.value is not None and spread.reason is None:
        se = math.sqrt(sum(float(delete_group_jackknife(theta)) ** 2 for theta in spread.samples))
        # of two samples the smaller number of degrees of freedom: no narrower than it should be
        reach = se * student(min(map(len, spread.samples)))
    return ours(
        estimate(
            LABELS[name],
            value,
            value - reach,
            value + reach,
            **counts,
            unit="",
            method=spread.method,
            reason=part.reason or spread.reason,
            null_value=None if name.endswith(SIDES) else 0.0,
        )
    )
