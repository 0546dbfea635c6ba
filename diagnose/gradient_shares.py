"""How is a gradient spread over blocks? Norms, shares and concentration in a window, from squared norms by pair."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Shaped

from ..errors import InputError
from ..probes.encoding import EncodedPair
from ..probes.scoring import prompt_ids
from ..probes.shards import item_key
from .report import Estimate
from .spinal_components import concentration
from .spinal_contrast import terminal_window
from .spinal_spectra import group_labels
from .statistics import LEVEL, cluster_codes, jackknife_interval

MAX_GROUPS = 32  # of the jackknife: every prompt is one where there are no more
MIN_GROUPS = 16  # prompts below which there is no interval
NO_GRADIENT = "every gradient is 0"
Terminal = str | tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GradientConcentration:
    """Gradient norms of L blocks over n pairs. Intervals: delete-group jackknife over prompts, 95 %.

    frame: a row a block: layer (1..L), parameters (entries measured), norm n_l, share n_l / sum n_l, n, both with
        _low and _high (NaN with the `reason`). Norms have the unit of the loss (nats) per unit of a weight or residual.
    """

    frame: pd.DataFrame
    squares: Float64[np.ndarray, "pairs blocks"]  # squared norms; by number of weights where blocks differ in it
    pair_ids: tuple[str, ...]
    clusters: Shaped[np.ndarray, "pairs"]  # prompt of every pair
    token_hash: str  # of all ids: a contrast needs the same pairs
    settings: dict[str, Any]
    counts: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def n(self) -> int:
        """Pairs that enter the numbers."""
        return len(self.squares)

    @property
    def squared(self) -> bool:
        """Whether n_l is the mean squared norm (lens_local) and not its root."""
        return bool(self.settings["of"] == "lens_local")

    def to_frame(self) -> pd.DataFrame:
        return self.frame.copy()

    def pair_shares(self) -> Float64[np.ndarray, "pairs blocks"]:
        """Share of every block in each pair's own gradient, rows sum to 1; NaN for a pair whose gradients are all 0."""
        return shares(np.stack([block_norms(row[None], squared=self.squared) for row in self.squares]))

    def group_norms(self) -> Float64[np.ndarray, "G blocks"] | None:
        """Norms without each jackknife group of prompts in turn; None under 16 prompts, which have no interval."""
        groups, reason = _groups(self.clusters, int(self.settings["seed"]))
        return None if reason else _without_each(self.squares, groups, squared=self.squared)

    def concentration(self, terminal: Terminal = "last_third") -> Estimate:
        """G = sum_W n_l / sum_l n_l - |W| / L over the blocks W; 0 = uniform, in (-1, 1). Reconstructed."""
        return _estimate([self], terminal, f"gradient concentration of {self.settings['policy']}")

    def summary(self) -> str:
        whole = len(self.frame)
        found = self.concentration() if whole >= 3 else self.concentration((1, whole))
        top = self.frame.sort_values("share", ascending=False).iloc[0]
        largest = "" if found.value is None else f"; the largest share is {top.share:.1%}, in block {int(top.layer)}"
        return (
            f"Share of the gradient in the last third of the blocks, minus its share of blocks: {found}, over "
            f"{self.n} pairs (reconstructed){largest}."
        )


def concentration_difference(
    base: GradientConcentration, aligned: GradientConcentration, terminal: Terminal = "last_third"
) -> Estimate:
    """G of aligned minus G of base, both on the same pairs and resampled together. Reconstructed.

    Raises InputError where pairs, ids, loss or place differ.
    """
    for name in ("loss", "of", "beta", "per_parameter"):
        if base.settings[name] != aligned.settings[name]:
            raise InputError(
                f"gradient concentration: {name} is {base.settings[name]!r} of the base and "
                f"{aligned.settings[name]!r} of the aligned model; measure both alike"
            )
    if base.token_hash != aligned.token_hash:
        raise InputError(
            f"gradient concentration: other pairs or ids ({base.n} and {aligned.n} pairs); measure both models on the "
            "same file with the same seed, and look for pairs set aside as nonfinite"
        )
    return _estimate([base, aligned], terminal, "gradient concentration, aligned minus base")


def block_norms(squares: Float[np.ndarray, "N L"], *, squared: bool = False) -> Float64[np.ndarray, "L"]:
    """n_l = sqrt(mean_i s_il) of squared norms s; with `squared` the mean itself."""
    mean = squares.astype(np.float64).mean(0)
    return mean if squared else np.sqrt(mean)


def shares(norms: Float[np.ndarray, "*rest L"]) -> Float64[np.ndarray, "*rest L"]:
    """n_l / sum_l n_l; NaN where all are 0."""
    total = norms.sum(-1, keepdims=True)
    return np.divide(norms, total, out=np.full(norms.shape, np.nan), where=total > 0)


def window_share(norms: Float[np.ndarray, "*rest L"], first: int, last: int) -> Float64[np.ndarray, "*rest"]:
    """G = sum_W n_l / sum_l n_l - |W| / L over the blocks W = first..last, counted from 1; 0 where all are alike.

    ValueError for a window outside 1..L or a norm below 0. Of n_l = l, L = 30, W = 21..30: 255/465 - 1/3 = .215054.
    """
    n_blocks = norms.shape[-1]
    if not 1 <= first <= last <= n_blocks:
        raise ValueError(f"window {first}..{last}: expected 1 <= first <= last <= {n_blocks}")
    return concentration(norms, range(first - 1, last)).astype(np.float64)


def summarise(
    squares: Float[np.ndarray, "pairs blocks"],
    pairs: list[EncodedPair],
    *,
    sizes: Shaped[np.ndarray, "blocks"],
    settings: dict[str, Any],
    counts: dict[str, int],
) -> GradientConcentration:
    """The table of blocks from squared norms. Pairs with a NaN or infinite gradient are left out, counted."""
    finite = np.isfinite(squares).all(1)
    if not finite.any():
        raise InputError(f"{settings['policy']}: the gradients of all {len(pairs)} pairs hold NaN or infinity")
    used = [pair for pair, kept in zip(pairs, finite, strict=True) if kept]
    squares, clusters = squares[finite], np.array(prompt_ids(used))
    squared = settings["of"] == "lens_local"
    groups, reason = _groups(clusters, int(settings["seed"]))
    warnings = []
    if not finite.all():
        warnings.append(f"{int((~finite).sum())} pairs were left out: NaN or infinity in their gradients")
    if len(used) < settings["n"]:
        warnings.append(f"{len(used)} pairs where {settings['n']} were asked for")
    norms = block_norms(squares, squared=squared)
    frame = pd.DataFrame({"layer": np.arange(1, len(norms) + 1), "parameters": sizes})
    left_out = _without_each(squares, groups, squared=squared)
    for name, value, theta in (("norm", norms, left_out), ("share", shares(norms), shares(left_out))):
        low, high = np.full((2, len(norms)), np.nan) if reason else jackknife_interval(value, theta)
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = value, np.maximum(low, 0.0), high
    frame["n"] = len(used)
    frame["reason"] = NO_GRADIENT if not norms.any() else reason
    return GradientConcentration(
        frame=frame,
        squares=squares,
        pair_ids=tuple(pair.pair.pair_id for pair in used),
        clusters=clusters,
        token_hash=item_key([(pair.start, pair.chosen_ids, pair.rejected_ids) for pair in used]),
        settings=settings,
        counts=counts | {"pairs": len(used), "prompts": len(set(clusters)), "nonfinite": int((~finite).sum())},
        warnings=tuple(warnings),
    )


def _groups(clusters: Shaped[np.ndarray, "pairs"], seed: int) -> tuple[Shaped[np.ndarray, "pairs"], str | None]:
    """Group of every pair for the jackknife, prompts whole, and why there is no interval, if so."""
    codes, n_clusters = cluster_codes(clusters)
    reason = None if n_clusters >= MIN_GROUPS else f"{n_clusters} prompts: a jackknife interval needs {MIN_GROUPS}"
    return group_labels(codes, min(MAX_GROUPS, n_clusters), seed), reason


def _without_each(
    squares: Float[np.ndarray, "pairs L"], groups: Shaped[np.ndarray, "pairs"], *, squared: bool
) -> Float64[np.ndarray, "G L"]:
    """Norms without each group in turn; of a single group the norms of all."""
    found = [squares[groups != group] for group in np.unique(groups)]
    return np.stack([block_norms(part if len(part) else squares, squared=squared) for part in found])


def _estimate(parts: list[GradientConcentration], terminal: Terminal, label: str) -> Estimate:
    """G of one model, or of the second minus the first."""
    last = parts[-1]
    window = terminal_window(terminal, len(last.frame))
    groups, reason = _groups(last.clusters, int(last.settings["seed"]))
    values, thetas = [], []
    for part in parts:
        values.append(window_share(block_norms(part.squares, squared=part.squared), *window))
        thetas.append(window_share(_without_each(part.squares, groups, squared=part.squared), *window))
    value, theta = (np.asarray(x[-1] - x[0] if len(parts) > 1 else x[0]) for x in (values, thetas))
    known = bool(np.isfinite(value))
    if known and np.isnan(theta).any():
        reason = "without one group of prompts every gradient is 0"
    low, high = (None, None) if reason or not known else map(float, jackknife_interval(value, theta))
    return Estimate(
        label=f"{label}, blocks {window[0]}-{window[1]}",
        value=float(value) if known else None,
        low=low,
        high=high,
        level=LEVEL,
        n=last.n,
        n_clusters=len(np.unique(last.clusters)),
        unit="share difference",
        method=f"delete-group jackknife over prompts, {len(np.unique(groups))} groups",
        reason=None if known and not reason else (reason if known else NO_GRADIENT),
        null_value=0.0,
        reconstructed=True,
    )
