"""The SPINAL of one model: contraction, transport and entropy by layer, with intervals and gates.

`analyse` turns readings into a `SpinalTrace`; it knows no model, so that a comparison can redo it on fewer prompts.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats

from ..errors import InputError
from .effective_rows import effective_rows
from .run_directory import write_atomically
from .spinal_gates import RANK_MEASURES, LayerFit, fit_layer, local_slopes, rank_measures
from .spinal_options import SpectrumOptions, exponents_with, scaled
from .spinal_reading import TORN, Folder, opened, read_arrays, write_arrays
from .spinal_readings import Readings, reading_arrays, readings_from
from .spinal_rows import TracedPrompt
from .spinal_sensitivity import add_options
from .spinal_spectra import all_layers, group_labels, half_rows, half_samples, rounding_floor
from .spinal_warnings import ROWS_A_COLUMN, trace_warnings
from .statistics import cluster_bootstrap, delete_group_jackknife

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from .report import SectionResult

TRACE_VERSION = 6
DRAWS = 10_000  # of the cluster bootstrap
REDUCED = ("angle_bucketed", "angle_renormalised", "angle_dropped")  # of the reduced vocabulary, last token
SAMPLING_ONLY = "covers sampling, not finite-N bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedModel:
    """What a comparison must know of a model."""

    name: str
    fingerprint: str
    tokenizer: str | None  # fingerprint of the tokenizer
    dtype: str
    n_layers: int
    d_model: int
    vocab: int  # entries of the head that belong to a token


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpinalTrace:
    """Layers 0 (embeddings) to L and steps l -> l + 1 of one model on N prompts. Angles in radians, entropies in nats.

    `layers`, `steps`: tables, a row a layer (section() says what each column is). Arrays keep the prompts' own order.
    """

    model: TracedModel
    prompts: tuple[TracedPrompt, ...]
    readings: Readings
    kept: Bool[np.ndarray, "N"]  # prompts that enter the numbers; the others had a NaN or infinity
    layers: pd.DataFrame
    steps: pd.DataFrame
    local_slopes: pd.DataFrame  # alpha(k): model, layer, rank, slope
    spectra: Float[np.ndarray, "layers k"]  # singular values of centred rows, padded with 0
    jackknife_spectra: Float[np.ndarray, "G layers k"]  # without each group; G = 0 with fewer prompts than groups
    token_hash: str  # of all ids, in order
    text_hash: str
    settings: dict[str, Any]
    counts: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def n(self) -> int:
        """Prompts that enter the numbers."""
        return int(self.kept.sum())

    @property
    def used(self) -> Readings:
        """The readings of the prompts that enter the numbers; no copy where all do."""
        return self.readings if self.kept.all() else self.readings.take(self.kept)

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        """A number for the cluster of each prompt that enters the numbers."""
        return cluster_codes([prompt for prompt, keep in zip(self.prompts, self.kept, strict=True) if keep])

    @property
    def jackknife(self) -> Float[np.ndarray, "G layers"]:
        """Exponents without each group, at the ranks of the full sample; NaN where the layer has none."""
        return jackknife_exponents(self.jackknife_spectra, self.layers, SpectrumOptions.of(self.settings).estimator)

    @property
    def gates(self) -> pd.DataFrame:
        """Figures and verdict of the gates, a row a layer."""
        names = ["n_points", "r_squared", "curvature", "alpha_head", "alpha_tail", "half_sample_ratio"]
        return self.layers[["layer", "alpha", *names, "jitter", "floor_ratio", "gates_passed", "reason"]].copy()

    @property
    def per_prompt(self) -> pd.DataFrame:
        """Entropy of every layer and angle of the step that leaves it, a row a prompt and layer (last token)."""
        n_layers, n = self.readings.entropy.shape
        angle = np.vstack([self.readings.angle, np.full((1, n), np.nan)])  # no step leaves the last layer
        return pd.DataFrame(
            {
                "row": np.repeat([prompt.row for prompt in self.prompts], n_layers),
                "prompt_id": np.repeat(np.array([prompt.prompt_id for prompt in self.prompts], object), n_layers),
                "kept": np.repeat(self.kept, n_layers),
                "layer": np.tile(np.arange(n_layers), n),
                "entropy": self.readings.entropy.T.ravel(),
                "angle": angle.T.ravel(),
            }
        )

    def restricted(self, kept: Bool[np.ndarray, "N"]) -> "SpinalTrace":
        """The same trace on fewer prompts."""
        return analyse(self.model, self.prompts, self.readings, kept, self.settings, self.counts)

    def to_frame(self) -> pd.DataFrame:
        """A row a layer."""
        return self.layers.copy()

    def section(self) -> "SectionResult":
        """The report's section "spinal_trace"."""
        from .spinal_section import trace_section

        return trace_section(self)

    def summary(self) -> str:
        """One to three sentences that a non-author can quote."""
        return self.section().section.summary

    def figure(self) -> "go.Figure":
        """Of the figures of this section transport over layers; `figures()` gives all."""
        return self.figures()["angle"]

    def figures(self) -> "dict[str, go.Figure]":
        """The figures of this section by name."""
        from ..dashboards.figures import spinal_figures

        result = self.section()
        return spinal_figures(result.tables, result.section.estimates)

    def save(self, folder: Folder) -> Path:
        """Write the trace so that `load` gives it back exactly; `trace.json` comes last, so what loads is whole."""
        path = opened(folder)
        (path / "trace.json").unlink(missing_ok=True)
        arrays = reading_arrays(self.readings)
        arrays |= {"kept": self.kept, "spectra": self.spectra, "jackknife_spectra": self.jackknife_spectra}
        write_arrays(path / "arrays.npz", arrays)
        for name in ("layers", "steps", "local_slopes"):
            getattr(self, name).to_parquet(path / f"{name}.parquet", index=False)
        facts = {name: getattr(self, name) for name in ("token_hash", "text_hash", "settings", "counts", "warnings")}
        prompts = [asdict(prompt) for prompt in self.prompts]
        content = {"trace_version": TRACE_VERSION, "model": asdict(self.model), **facts, "prompts": prompts}
        write_atomically(path / "trace.json", json.dumps(content))
        return path

    @classmethod
    def load(cls, folder: Folder) -> "SpinalTrace":
        """Read what `save` wrote. Raises InputError where the folder holds no trace, a torn one, or another version."""
        path = Path(folder)
        try:
            content = json.loads((path / "trace.json").read_text(encoding="utf-8"))
            found = content.get("trace_version")
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: no readable trace.json; expected the folder that save() wrote") from error
        if found != TRACE_VERSION:
            raise InputError(f"{path}: trace version {found}, this alignscope reads {TRACE_VERSION}; trace again")
        try:
            return cls._from_files(path, content)
        except TORN as error:
            raise InputError(f"{path}: a file of the trace is missing or torn ({error}); trace again") from error

    @classmethod
    def _from_files(cls, path: Path, content: dict[str, Any]) -> "SpinalTrace":
        arrays = read_arrays(path / "arrays.npz")
        settings = content["settings"]
        settings |= {} if settings["window"] == "auto" else {"window": tuple(settings["window"])}
        prompts = [
            TracedPrompt(**{**prompt, **{name: tuple(prompt[name]) for name in ("ids", "positions", "rows")}})
            for prompt in content["prompts"]
        ]
        return cls(
            model=TracedModel(**content["model"]),
            prompts=tuple(prompts),
            readings=readings_from(arrays),
            kept=arrays["kept"],
            layers=pd.read_parquet(path / "layers.parquet"),
            steps=pd.read_parquet(path / "steps.parquet"),
            local_slopes=pd.read_parquet(path / "local_slopes.parquet"),
            spectra=arrays["spectra"],
            jackknife_spectra=arrays["jackknife_spectra"],
            token_hash=content["token_hash"],
            text_hash=content["text_hash"],
            settings=settings,
            counts=content["counts"],
            warnings=tuple(content["warnings"]),
        )


def analyse(
    model: TracedModel,
    prompts: Sequence[TracedPrompt],
    readings: Readings,
    kept: Bool[np.ndarray, "N"],
    settings: dict[str, Any],
    counts: dict[str, int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> SpinalTrace:
    """Spectra, fits, gates and intervals of readings. `settings`: window, groups, seed are read; all are kept.

    Groups and halves of the prompts take all rows of a prompt, and all prompts of a cluster, together.
    """
    seed, window = settings["seed"], settings["window"]
    used = readings if kept.all() else readings.take(kept)
    n = used.rows.shape[1]
    clusters = cluster_codes([prompt for prompt, keep in zip(prompts, kept, strict=True) if keep])
    n_groups = settings["groups"] if len(np.unique(clusters)) >= settings["groups"] else 0
    owner = used.owner
    groups = group_labels(clusters, max(n_groups, 1), seed)[owner]
    options = SpectrumOptions.of(settings)
    halves = half_rows(clusters, owner, seed) if options.pooled else half_samples(n, seed) if n >= 4 else []
    rows = scaled(used.spectrum_rows, options.row_scale)
    full, jackknife_spectra, halved = all_layers(
        rows, groups, n_groups, halves=halves, center=options.center, downdate=options.pooled, progress=progress
    )

    fits = []
    for layer, sigma in enumerate(full):
        fits.append(
            fit_layer(
                sigma,
                n=len(owner),
                width=model.d_model,
                window=window,
                halves=halved[layer],
                floor=rounding_floor(used.spectrum_rows[layer], model.dtype) if options.row_scale is None else 0.0,
                dtype=model.dtype,
                estimator=options.estimator,  # type: ignore[arg-type]
                rows="rows" if options.pooled else "prompts",
                refused=settings.get("no_exponents"),
            )
        )
    spectra = np.zeros(jackknife_spectra.shape[1:])
    for layer, sigma in enumerate(full):
        spectra[layer, : len(sigma)] = sigma
    layers = _layers_table(model, n, fits, spectra, jackknife_spectra, options.estimator)
    if options.pooled:
        _add_effective_rows(layers, rows, owner, model.d_model)
    add_options(layers, rows, clusters[owner], window, options, seed)
    inner = np.full_like(used.entropy, np.nan)
    inner[2 : 2 + len(used.turning)] = used.turning
    by_prompt = {"entropy": used.entropy, "entropy_sampled": used.entropy_sampled, "turning": inner}
    for name, values in by_prompt.items():
        for suffix, column in zip(("", "_low", "_high"), bootstrap_means(values, clusters, seed), strict=True):
            layers[name + suffix] = column
    layers["n_sampled"], layers["n_turning"] = (np.isfinite(x).sum(1) for x in (used.entropy_sampled, inner))
    slopes = [
        {"model": model.name, "layer": layer, "rank": rank, "slope": slope}
        for layer, sigma in enumerate(full)
        for rank, slope in (local_slopes(sigma[: fits[layer].n_ranks]) if math.isfinite(fits[layer].alpha) else [])
    ]
    return SpinalTrace(
        model=model,
        prompts=tuple(prompts),
        readings=readings,
        kept=kept,
        layers=layers,
        steps=_steps_table(model.name, used, clusters, seed),
        local_slopes=pd.DataFrame(slopes, columns=["model", "layer", "rank", "slope"]),
        spectra=spectra,
        jackknife_spectra=jackknife_spectra,
        token_hash=_hash(prompt.ids for prompt in prompts),
        text_hash=_hash(prompt.digest for prompt in prompts),
        settings=settings,
        counts=counts | {"prompts": n, "nonfinite_rows": len(prompts) - n},
        warnings=trace_warnings(n, model, layers, settings, counts.get("duplicate_prompts", 0)),
    )


def cluster_codes(prompts: Sequence[TracedPrompt]) -> Int[np.ndarray, "N"]:
    """A number for every cluster: prompts that share a `prompt_id` are one, a prompt without is its own."""
    keys = [f"row {i}" if prompt.prompt_id is None else f"id {prompt.prompt_id}" for i, prompt in enumerate(prompts)]
    return np.unique(np.array(keys, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def bootstrap_means(
    values: Float[np.ndarray, "K N"], clusters: Int[np.ndarray, "N"], seed: int
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
    """Mean over prompts, and the ends of its percentile interval from a cluster bootstrap; NaN where there is none."""
    mean, low, high = (np.full(len(values), np.nan) for _ in range(3))
    some = np.isfinite(values).any(1)
    if some.any():
        boot = cluster_bootstrap(values[some].T, clusters, draws=DRAWS, seed=seed)
        mean[some], low[some], high[some] = boot.mean, boot.low, boot.high
    return mean, low, high


def jackknife_exponents(
    spectra: Float[np.ndarray, "G layers k"], layers: pd.DataFrame, estimator: str = "ols"
) -> Float[np.ndarray, "G layers"]:
    """Exponents of delete-group spectra at each layer's full-sample ranks; NaN where the layer has no exponent."""
    found = np.full(spectra.shape[:2], np.nan)
    for layer, (alpha, first, last) in enumerate(zip(layers.alpha, layers.first_rank, layers.last_rank, strict=True)):
        if math.isfinite(alpha):
            found[:, layer] = exponents_with(spectra[:, layer], int(first), int(last), estimator)
    return found


def jackknife_se(theta: Float[np.ndarray, "G *rest"]) -> Float[np.ndarray, "*rest"]:
    """Delete-group standard error, (G-1)/G sum (theta_g - mean)^2 under the root; NaN without groups."""
    if len(theta) < 2:
        return np.full(theta.shape[1:], np.nan)
    return np.asarray(delete_group_jackknife(theta))


def student(groups: int) -> float:
    """The 97.5 % point of t with groups - 1 degrees of freedom: 2.131 for 16."""
    return float(stats.t.ppf(0.975, groups - 1)) if groups > 1 else math.nan


def _layers_table(
    model: TracedModel,
    n: int,
    fits: list[LayerFit],
    spectra: Float[np.ndarray, "layers k"],
    jackknife: Float[np.ndarray, "G layers k"],
    estimator: str,
) -> pd.DataFrame:
    rows = [asdict(fit) | {"failed": ", ".join(fit.failed), "gates_passed": fit.gates_passed} for fit in fits]
    table = pd.DataFrame(rows).rename(columns={"failed": "gates_failed"})
    table.insert(0, "model", model.name)
    table.insert(1, "layer", np.arange(len(fits)))
    table.insert(2, "n", n)
    table.insert(list(table).index("alpha") + 1, "rows_per_column", n / model.d_model)
    factor = student(len(jackknife))
    reach = {"alpha": jackknife_se(jackknife_exponents(jackknife, table, estimator)) * factor}
    for measure, values in rank_measures(spectra).items():
        table[measure] = values
    for measure, values in rank_measures(jackknife).items():
        reach[measure] = jackknife_se(values) * factor
    for column in ("alpha", *RANK_MEASURES):
        table[f"{column}_low"] = table[column] - reach[column]
        table[f"{column}_high"] = table[column] + reach[column]
    return table


def _add_effective_rows(
    layers: pd.DataFrame, rows: Float[np.ndarray, "layers rows d"], owner: Int[np.ndarray, "rows"], width: int
) -> None:
    """Columns n_rows, n_eff (NaN where nothing varies) and whether that is under 4 a column; in place."""
    found = [effective_rows(layer, owner).n_eff for layer in rows]
    layers["n_rows"] = len(owner)
    layers["n_eff"] = np.array([math.nan if n_eff is None else n_eff for n_eff in found])
    layers["few_effective_rows"] = layers.n_eff < ROWS_A_COLUMN * width
    layers["rows_per_column"] = len(owner) / width


def _steps_table(name: str, used: Readings, clusters: Int[np.ndarray, "N"], seed: int) -> pd.DataFrame:
    table = pd.DataFrame({"model": name, "layer": np.arange(len(used.angle))})
    reduced = {name: values for name, values in reading_arrays(used).items() if name in REDUCED}
    for column, values in {"angle": used.angle, "angle_sampled": used.angle_sampled, **reduced}.items():
        for suffix, numbers in zip(("", "_low", "_high"), bootstrap_means(values, clusters, seed), strict=True):
            table[column + suffix] = numbers
    table["n"] = used.angle.shape[1]
    table["n_sampled"] = np.isfinite(used.angle_sampled).sum(1)
    return table


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()
