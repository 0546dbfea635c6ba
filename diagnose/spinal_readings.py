"""What did one model give on N prompts? Rows of the residual stream, angles and entropies, as arrays by prompt."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from .spinal_geometry import geodesic_efficiency, turning

MIN_WINDOW = 3  # blocks of a terminal window


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """What one model gave on N prompts. Layer 0 is the embeddings; a step l goes from layer l to l + 1."""

    rows: Float[np.ndarray, "layers N d"]  # residual at the last token, before the final norm, float32
    angle: Float[np.ndarray, "steps N"]  # of the last token, radians
    entropy: Float[np.ndarray, "layers N"]  # of the last token, nats
    angle_sampled: Float[np.ndarray, "steps N"]  # mean over the prompt's sampled positions; NaN where it has none
    entropy_sampled: Float[np.ndarray, "layers N"]
    across: Float[np.ndarray, "pairs N"]  # angles of `layer_pairs` at the last token, radians
    # of settings other than the default
    pooled: Float[np.ndarray, "layers M d"] | None = None  # rows of the spectrum in the order of prompts; None: `rows`
    n_pooled: Int[np.ndarray, "N"] | None = None  # how many of them a prompt has
    angle_bucketed: Float[np.ndarray, "steps N"] | None = None  # `angle` on a reduced vocabulary: `ReducedAngles`
    angle_renormalised: Float[np.ndarray, "steps N"] | None = None
    angle_dropped: Float[np.ndarray, "steps N"] | None = None
    final_only: bool = False  # only the last step and the entropy of the last layer were read; the others are NaN

    @property
    def spectrum_rows(self) -> Float[np.ndarray, "layers rows d"]:
        """The rows whose spectrum is taken."""
        return self.rows if self.pooled is None else self.pooled

    @property
    def owner(self) -> Int[np.ndarray, "rows"]:
        """Whose prompt's each row of the spectrum is."""
        n = self.rows.shape[1]
        return np.repeat(np.arange(n), 1 if self.n_pooled is None else self.n_pooled)

    @property
    def finite(self) -> Bool[np.ndarray, "N"]:
        """Prompts without a NaN or infinity at the last token, or in a row of the spectrum, in any layer."""
        read = slice(-1, None) if self.final_only else slice(None)
        angle, entropy = np.isfinite(self.angle[read]).all(0), np.isfinite(self.entropy[read]).all(0)
        return np.isfinite(self.rows).all((0, 2)) & angle & entropy & self._pooled_finite().all(0)

    def first_nonfinite(self, prompt: int) -> int:
        """The first layer that is not finite at this prompt's last token or in its rows of the spectrum."""
        bad = ~np.isfinite(self.rows[:, prompt]).all(1) | ~self._pooled_finite()[:, prompt]
        read = slice(-1, None) if self.final_only else slice(None)
        bad[read] |= ~np.isfinite(self.entropy[read, prompt])
        return int(bad.argmax())

    def take(self, prompts: Int[np.ndarray, "chosen"] | Bool[np.ndarray, "N"]) -> "Readings":
        """The readings of some prompts."""
        parts: dict[str, Any] = {
            name: a[..., prompts] if a.ndim == 1 else a[:, prompts]
            for name, a in reading_arrays(self).items()
            if name not in ("pooled", "final_only")
        }
        if self.pooled is not None and self.n_pooled is not None:
            parts["pooled"] = self.pooled[:, rows_of(np.arange(len(self.n_pooled))[prompts], self.n_pooled)]
        return Readings(**parts, final_only=self.final_only)

    def _pooled_finite(self) -> Bool[np.ndarray, "layers N"]:
        if self.pooled is None:
            return np.ones(self.rows.shape[:2], dtype=bool)
        found = np.ones(self.rows.shape[:2], dtype=bool)
        for layer, rows in enumerate(self.pooled):
            found[layer, self.owner[~np.isfinite(rows).all(1)]] = False
        return found

    @property
    def turning(self) -> Float[np.ndarray, "inner N"]:
        """Change of direction at layers 2..L-1, radians; NaN where a step is too short."""
        inner = max(len(self.angle) - 2, 0)  # angle[l] is the step l -> l + 1
        return turning(self.angle[1 : 1 + inner], self.angle[2 : 2 + inner], self.across[:inner])

    def efficiency(self, first: int, last: int) -> Float[np.ndarray, "N"] | None:
        """Geodesic efficiency between two layers a prompt; None for ends that were not compared (`layer_pairs`)."""
        pairs = layer_pairs(len(self.angle))
        if (first, last) not in pairs or last < first + 2:
            return None
        return geodesic_efficiency(self.across[pairs.index((first, last))], self.angle[first:last].sum(0))


def rows_of(prompts: Int[np.ndarray, "some"], n_pooled: Int[np.ndarray, "N"]) -> Int[np.ndarray, "rows"]:
    """Places of the rows of some prompts, where those of all stand one after the other."""
    stop = np.cumsum(n_pooled)
    return np.concatenate([np.arange(stop[i] - n_pooled[i], stop[i]) for i in prompts] or [np.zeros(0, dtype=int)])


def reading_arrays(readings: Readings) -> dict[str, np.ndarray]:
    """The fields that are there, as arrays; `final_only` where it holds."""
    found = {field.name: getattr(readings, field.name) for field in fields(Readings)}
    return {name: np.asarray(a) for name, a in found.items() if a is not None and a is not False}


def readings_from(arrays: Mapping[str, np.ndarray]) -> Readings:
    """What `reading_arrays` gave. Raises TypeError where an array that every reading has is not there."""
    found: dict[str, Any] = {field.name: arrays[field.name] for field in fields(Readings) if field.name in arrays}
    return Readings(**found | {"final_only": bool(found.get("final_only", False))})


def layer_pairs(n_layers: int) -> list[tuple[int, int]]:
    """Layers compared beside the steps: (l - 1, l + 1) for turning at l = 2..L-1, then (1, L) and the last third."""
    pairs = [(layer - 1, layer + 1) for layer in range(2, n_layers)]
    return [*pairs, (1, n_layers), (last_third(n_layers)[0], n_layers)] if n_layers >= MIN_WINDOW else pairs


def last_third(n_layers: int) -> tuple[int, int]:
    """First and last block of the last max(3, ceil(L / 3))."""
    return n_layers - max(MIN_WINDOW, math.ceil(n_layers / 3)) + 1, n_layers
