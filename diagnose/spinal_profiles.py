"""Several traces side by side by relative depth, for models whose layers are not each other's: curves, no contrast.

spinal_profiles([small, large]).figure()
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import InputError
from .spinal_trace import SpinalTrace

if TYPE_CHECKING:
    import plotly.graph_objects as go

CURVES = ("alpha", "entropy", "rankme", "turning")
NO_CONTRAST = (
    "curves by relative depth are no contrast: widths, numbers of rows and vocabularies move exponents and entropies "
    "by themselves; read shapes, not differences"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpinalProfiles:
    """A row a model and layer: relative depth l / L (0 = embeddings, 1 = last block), curves with intervals, n."""

    frame: pd.DataFrame
    names: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        return self.frame.copy()

    def summary(self) -> str:
        """Where each model's step is longest, in relative depth."""
        parts = []
        for name in self.names:
            rows = self.frame[(self.frame.model == name) & self.frame.angle.notna() & (self.frame.layer > 0)]
            if len(rows):
                top = rows.iloc[int(rows.angle.to_numpy().argmax())]
                parts.append(f"{name} at {top.relative_depth:.2f} ({top.angle:.3g} rad)")
        longest = f"The longest step of the read-out: {', '.join(parts)}. " if parts else ""
        return f"{longest}{NO_CONTRAST[0].upper()}{NO_CONTRAST[1:]}."

    def figure(self) -> "go.Figure":
        """Transport by relative depth, a line a model."""
        from ..dashboards.spinal_figures import profile_figure

        return profile_figure(self.frame)


def spinal_profiles(traces: Sequence[SpinalTrace]) -> SpinalProfiles:
    """Curves of two or more traces over l / L, of models of any depth and width. Reconstructed: no source compares so.

    Columns: model, layer, n_layers, d_model, relative_depth, alpha, entropy, rankme, turning, and angle (of the step
    that leaves the layer, at its start), each with _low and _high where the trace has them, n (prompts).
    Raises InputError for fewer than two traces, or two of one name.
    """
    if len(traces) < 2:
        raise InputError(f"{len(traces)} traces: two or more are expected")
    names = tuple(trace.model.name for trace in traces)
    if len(set(names)) < len(names):
        raise InputError(f"two traces are named {max(names, key=names.count)}: rename one (replace its model's name)")
    frames, warnings = [], [NO_CONTRAST]
    if len({trace.text_hash for trace in traces}) > 1:
        warnings.append("the traces are of different prompts")
    for trace in traces:
        wanted = [c for name in CURVES for c in (name, f"{name}_low", f"{name}_high") if c in trace.layers]
        rows = trace.layers[["model", "layer", "n", *wanted]].merge(
            trace.steps[["layer", "angle", "angle_low", "angle_high"]], on="layer", how="left"
        )
        rows["n_layers"], rows["d_model"] = trace.model.n_layers, trace.model.d_model
        rows["relative_depth"] = np.arange(len(rows)) / trace.model.n_layers
        frames.append(rows)
    return SpinalProfiles(frame=pd.concat(frames, ignore_index=True), names=names, warnings=tuple(warnings))
