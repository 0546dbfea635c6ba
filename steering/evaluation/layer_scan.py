"""Behind which block does a direction do most? One vector a block, each tried on rows that none of them saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...diagnose.report import Estimate
from ...diagnose.statistics import LEVEL, MIN_CLUSTERS
from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress, prefixed
from ...probes.subject import Site, Subject
from ..encoded import DIRECTIONS
from ..model_fit import require_layer
from ..quadruples import QuadrupleFile, read_quadruples
from ..reading import SharedReading
from ..training import train_cdas
from ..vector import SteeringVector
from .candidates import WAYS, Candidate
from .evaluated_rows import evaluated_rows
from .shares import NATS, DirectionShares, Ratio, cells, ratio_estimate
from .sides import NO_EDIT, forced_side


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerRow:
    """A block's vector on the held-out rows: KL(q : p) in nats a token and its recovered share, by direction."""

    layer: int
    kl: Mapping[str, Estimate]
    recovered: Mapping[str, Estimate]
    worst: Estimate  # the larger KL of the directions trained, chosen anew in every resample
    times_best: float | None  # share of resamples in which this layer is the choice; None: fewer than 20 prompts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerScan:
    """All layers in order, their vectors, and the one chosen: smallest worst KL on held-out rows, ties to the earlier.

    unedited: KL without an edit, by direction.
    """

    rows: tuple[LayerRow, ...]
    vectors: Mapping[int, SteeringVector]
    chosen: int
    unedited: Mapping[str, Estimate]
    settings: dict[str, Any]
    notices: tuple[str, ...]

    @property
    def vector(self) -> SteeringVector:
        """The vector of the chosen layer."""
        return self.vectors[self.chosen]

    def to_frame(self) -> pd.DataFrame:
        """A line a layer."""
        return pd.DataFrame([{**_line(row), "chosen": row.layer == self.chosen} for row in self.rows])

    def summary(self) -> str:
        best = next(row for row in self.rows if row.layer == self.chosen)
        told = f"Layer {self.chosen} of {len(self.rows)} tried has the smallest worst KL on held-out rows: {best.worst}"
        if best.times_best is not None:
            told += f"; it is the choice in {best.times_best:.0%} of resamples"
        return f"{told}. That KL took part in the choice: test the vector on other rows."


def scan_layers(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    layers: Sequence[int] | None = None,
    *,
    component: str = "resid_post",
    rank: int = 1,
    directions: str = "both",
    holdout: float | int = 0.2,
    resamples: int = 2000,
    bootstrap_seed: int = 0,
    level: float = LEVEL,
    progress: Progress | None = None,
    **options: Any,
) -> LayerScan:
    """`train_cdas` behind each of `layers` (None: all), on the same rows with the same seed; source runs are read once.

    Chosen: the layer with the smallest worst KL, min over layers of max(KL elicit, KL suppress) of clamps at f+ and f-
    on the held-out rows (teacher-forced, see faithfulness); of the direction trained where that is one. options: as of
    train_cdas. A vector is the one that train_cdas gives for that layer.
    Raises InputError without layers, for layers that are not there or named twice, for holdout 0: a choice on the rows
    trained on would favour whatever fits them best; and as train_cdas does.
    """
    chosen = list(range(subject.n_layers)) if layers is None else list(layers)
    _require_layers(chosen, component, subject)
    if directions not in DIRECTIONS:
        raise InputError(f"directions '{directions}': expected one of {', '.join(DIRECTIONS)}")
    if holdout == 0:
        raise InputError("holdout=0: layers are chosen by rows held out of training; expected a share above 0")
    file = read_quadruples(quadruples)
    read = SharedReading(subject, [Site(layer, component) for layer in chosen])
    vectors: dict[int, SteeringVector] = {}
    for layer in chosen:
        vectors[layer] = train_cdas(
            subject,
            file,
            layer=layer,
            component=component,
            rank=rank,
            directions=directions,
            holdout=holdout,
            read=read,
            progress=None if progress is None else prefixed(progress, f"layer {layer}"),
            **options,
        )
    data = evaluated_rows(subject, file, vectors[chosen[0]], rows="held_out")
    methods = {str(layer): Candidate(vector=vector) for layer, vector in vectors.items()}
    sides = {
        way: forced_side(subject, data, way, methods, resamples=resamples, seed=bootstrap_seed, level=level)
        for way in WAYS
    }
    judged = [sides[way] for way in WAYS if directions in ("both", way)]
    worst = {layer: _largest([side.kl(str(layer)) for side in judged]) for layer in sorted(chosen)}
    best = smallest({layer: value for layer, (value, _) in worst.items()})
    times = _times_best([draws for _, draws in worst.values()]) if judged[0].n_clusters >= MIN_CLUSTERS else None
    rows = tuple(
        _row(layer, sides, judged, worst[layer], None if times is None else float(times[number]))
        for number, layer in enumerate(worst)
    )
    return LayerScan(
        rows=rows,
        vectors={layer: vectors[layer] for layer in worst},
        chosen=best,
        unedited={way: side.kl_estimate(NO_EDIT, f"KL unedited, {way}") for way, side in sides.items()},
        settings={
            "layers": sorted(chosen),
            "component": component,
            "bootstrap_seed": bootstrap_seed,
            "resamples": resamples,
            "level": level,
            "training": dict(vectors[best].metadata["settings"]),
        },
        notices=tuple(dict.fromkeys(told for layer in worst for told in vectors[layer].notices())),
    )


def smallest(values: Mapping[int, float]) -> int:
    """The layer with the smallest value, the earlier of equals.

    >>> smallest({2: 0.5, 1: 0.5, 0: 0.7})
    1
    """
    return min(sorted(values), key=values.__getitem__)


def _require_layers(layers: Sequence[int], component: str, subject: Subject) -> None:
    if not layers:
        raise InputError("no layers to scan: name one or more")
    if len(set(layers)) < len(layers):
        raise InputError(f"layers {', '.join(map(str, layers))}: expected each once")
    for layer in layers:
        require_layer(Site(layer, component), subject.n_layers, subject.name)


def _largest(ratios: Sequence[Ratio]) -> Ratio:
    """The larger value, and the larger one of every draw."""
    return max(value for value, _ in ratios), np.max([draws for _, draws in ratios], axis=0)


def _times_best(draws: Sequence[Float[np.ndarray, "B"]]) -> Float[np.ndarray, "L"]:
    """How often each layer has the smallest value, as a share of the draws; the earlier of equals."""
    return np.bincount(np.argmin(np.stack(draws), axis=0), minlength=len(draws)) / len(draws[0])


def _row(
    layer: int,
    sides: Mapping[str, DirectionShares],
    judged: Sequence[DirectionShares],
    worst: Ratio,
    times_best: float | None,
) -> LayerRow:
    name = str(layer)
    n = sum(int(side.n_tokens.sum()) for side in judged)
    return LayerRow(
        layer=layer,
        kl={way: side.kl_estimate(name, f"KL of layer {layer}, {way}") for way, side in sides.items()},
        recovered={
            way: side.recovered_estimate(name, f"recovered share of layer {layer}, {way}")
            for way, side in sides.items()
        },
        worst=ratio_estimate(judged[0].boot, worst, n, label=f"worst KL of layer {layer}", unit=NATS),
        times_best=times_best,
    )


def _line(row: LayerRow) -> dict[str, Any]:
    found: dict[str, Any] = {"layer": row.layer}
    for way in WAYS:
        found |= cells(f"kl_{way}", row.kl[way]) | cells(f"recovered_{way}", row.recovered[way])
    worst = cells("worst_kl", row.worst)
    first = row.kl[WAYS[0]]
    sizes = {"n_tokens": row.worst.n, "n_prompts": first.n_clusters}
    return found | worst | {"times_best": row.times_best, **sizes, "reason": row.worst.reason}
