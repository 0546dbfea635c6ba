"""What did training do to the weights themselves? Spectrum and change of every matrix of every block; no prompts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InputError
from ..probes.block_weights import BlockWeight, block_weights
from .doctor_weights import grid_share
from .naming import short_name
from .weight_matrices import Change, change, eigenvalues, tail_fit

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch

    from ..probes.subject import Subject
    from .report import SectionResult

IDENTICAL = "identical weights"
IDENTICAL_BLOCKS = "identical weights in every block (embeddings, final norm and head are not compared)"
ONLY_VECTORS = "no matrix of the blocks differs, only biases or norm gains"
ROUNDING = {"bfloat16": 0.0017, "float16": 0.0002}  # |rounded W - W| / |W| of Gaussian numbers
ON_GRID = 0.5  # share of blocks with few distinct values from which weights are called quantised


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightSpectrum:
    """Spectra of one model's block matrices, and how they differ from the reference's where one was given.

    `frame`: a row a matrix; `blocks`: a row a block (`block_changes`), None without a reference.
    """

    names: tuple[str, str | None]  # the model and its reference
    frame: pd.DataFrame
    blocks: pd.DataFrame | None
    warnings: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def reason(self) -> str | None:
        """Why there is no difference to speak of; None where there is one."""
        if self.blocks is None:
            return "no reference given"
        reasons = self.blocks.reason.dropna()
        return str(reasons.iloc[0]) if len(reasons) and self.blocks.share.isna().all() else None

    def to_frame(self) -> pd.DataFrame:
        """A row a matrix."""
        return self.frame.copy()

    def section(self) -> "SectionResult":
        """The report's section "weights"."""
        from .weight_section import weight_section

        return weight_section(self)

    def summary(self) -> str:
        """One to three sentences that a non-author can quote."""
        return self.section().section.summary

    def figure(self) -> "go.Figure":
        """Where the weights changed, a cell a block and matrix; without a change, the exponents of the matrices."""
        figures = self.figures()
        if not figures:
            raise InputError(f"{self.names[0]}: nothing to draw: no difference, and no matrix with an exponent")
        return figures.get("delta_share") or figures["alpha"]

    def figures(self) -> "dict[str, go.Figure]":
        """The figures of this section by name."""
        from ..dashboards.weight_figures import weight_figures

        result = self.section()
        return weight_figures(result.tables, result.section.estimates)


def weight_spectrum(subject: "Subject", reference: "Subject | None" = None) -> WeightSpectrum:
    """Spectrum of every matrix of every block, and its difference from the reference's. Deterministic; no prompts.

    A row a matrix: `alpha_lambda_pdf` (Clauset's exponent of sigma^2) and `alpha_weighted` (times log10 lambda_max) of
    the model, and with suffix `_reference` and `_difference` of the other two; `delta_share` = |dW| / |W_reference|
    (Frobenius), `delta_top` = s_1^2 / sum s^2 of dW, its Gaussian null and their ratio. Fused q, k, v are taken apart
    where the model type is known. An adapter needs no merging: its effective weights are read one at a time.
    Raises InputError where the two models do not have the same matrices, where weights are packed (low-bit), and for
    carriers whose weights cannot be read. Definitions: docs/weights.md (ours but for the exponents).
    """
    pairs = _alone(subject) if reference is None else _paired(subject, reference)
    rows = [_row(own, other) for own, other in pairs]
    if not rows:
        raise InputError(f"{subject.name}: its blocks hold no weights")
    frame = pd.DataFrame([row for row in rows if row["is_matrix"]]).drop(columns="is_matrix")
    if not len(frame):
        raise InputError(f"{subject.name}: its blocks hold no weight matrix")
    blocks = None
    if reference is not None:
        blocks = _block_table(rows, _same_weights(subject, reference))
        identical = blocks.share.isna().all()
        if identical:
            frame["delta_reason"] = blocks.reason.iloc[0]
            frame["delta_share"] = math.nan
    else:
        frame = frame.drop(columns="delta_norm")
    return WeightSpectrum(
        names=(subject.name, None if reference is None else reference.name),
        frame=frame,
        blocks=blocks,
        warnings=tuple(_warnings(subject, reference, frame)),
        settings={
            "model": subject.fingerprint,
            "reference": None if reference is None else reference.fingerprint,
            "x_min": "smallest Kolmogorov-Smirnov distance",
            "dtype": subject.dtype,
        },
    )


def block_changes(base: "Subject", policy: "Subject") -> pd.DataFrame:
    """How far each block's matrices moved: share n_l = |W_policy - W_base| / |W_base|, Frobenius, block l = 1..L.

    Norms run over all weight matrices of the block (experts included); biases, norm gains and convolutions stay out of
    `share`, and have their own `share_vectors`. Columns: block, n_matrices, base_norm, delta_norm, share,
    share_vectors, reason. Where no matrix of any block differs, every share is null with the reason "identical weights"
    (or what differs instead). Raises InputError as `weight_spectrum` does.
    """
    rows = [_norms(own, other) for own, other in _paired(policy, base)]
    if not rows:
        raise InputError(f"{policy.name}: its blocks hold no weights")
    return _block_table(rows, _same_weights(policy, base))


def _alone(subject: "Subject") -> Iterator[tuple[BlockWeight, None]]:
    for weight in block_weights(subject):
        yield weight, None


def _paired(subject: "Subject", reference: "Subject") -> Iterator[tuple[BlockWeight, BlockWeight]]:
    """The same weight of both, in lockstep, so that one of each is in memory."""
    if subject.n_layers != reference.n_layers:
        raise InputError(
            f"{subject.name} has {subject.n_layers} blocks, {reference.name} {reference.n_layers}; weights can only be "
            "compared between models of one architecture"
        )
    others = block_weights(reference)
    for own in block_weights(subject):
        other = next(others, None)
        if other is None or (own.block, own.name) != (other.block, other.name):
            found = "nothing" if other is None else f"block {other.block}, {other.name}"
            raise InputError(
                f"{subject.name}: block {own.block}, {own.name} has no counterpart in {reference.name} ({found} there)"
            )
        if own.value.shape != other.value.shape:
            raise InputError(
                f"block {own.block}, {own.name}: shape {tuple(own.value.shape)} in {subject.name}, "
                f"{tuple(other.value.shape)} in {reference.name}; the models differ in width"
            )
        yield own, other
    if (other := next(others, None)) is not None:
        raise InputError(
            f"{reference.name}: block {other.block}, {other.name} has no counterpart in {subject.name} (nothing there)"
        )


def _norms(own: BlockWeight, other: BlockWeight | None) -> dict[str, Any]:
    """What the table of blocks needs of a weight."""
    before = own if other is None else other
    return {
        "block": own.block,
        "is_matrix": own.value.ndim == 2,
        "norm": float(before.value.norm()),
        "delta_norm": 0.0 if other is None else float((own.value - _beside(own, other)).norm()),
    }


def _row(own: BlockWeight, other: BlockWeight | None) -> dict[str, Any]:
    norms = _norms(own, other)
    if own.value.ndim != 2:
        return norms
    row = norms | {
        "matrix": own.name,
        "kind": own.kind,
        "rows": own.value.shape[0],
        "columns": own.value.shape[1],
        "note": own.note,
    }
    fit = tail_fit(eigenvalues(own.value))
    row |= fit.columns()
    if other is None:
        return row
    reference = _beside(own, other)
    moved, values = change(own.value, reference)
    fit_before = fit if moved.delta_rank == 0 else tail_fit(eigenvalues(reference))
    row |= fit_before.columns("_reference") | moved.columns() | _low_rank(own, moved)
    difference = tail_fit(values).columns("_difference")
    if moved.delta_rank == 0:
        difference["alpha_reason_difference"] = moved.reason
    return row | difference


def _low_rank(own: BlockWeight, moved: Change) -> dict[str, Any]:
    """Beside 1/rank, the least that delta_top can be; only where the difference is what the adapter adds."""
    known = own.adapter_rank is not None and 0 < moved.delta_rank <= own.adapter_rank
    return {
        "adapter_rank": float(own.adapter_rank) if known and own.adapter_rank else math.nan,
        "delta_top_times_rank": moved.delta_top * own.adapter_rank
        if known and moved.delta_top and own.adapter_rank
        else math.nan,
    }


def _beside(own: BlockWeight, other: BlockWeight) -> "torch.Tensor":
    return other.value.to(own.value.device)


def _block_table(rows: list[dict[str, Any]], same: bool) -> pd.DataFrame:
    """Norms by block, over matrices and over everything else."""
    table = pd.DataFrame([{key: row[key] for key in ("block", "is_matrix", "norm", "delta_norm")} for row in rows])
    squares = table.assign(norm=table.norm**2, delta_norm=table.delta_norm**2)
    found = {}
    for is_matrix in (True, False):
        some = squares[squares.is_matrix == is_matrix].groupby("block")[["norm", "delta_norm"]].sum()
        found[is_matrix] = some.pow(0.5).reindex(sorted(table.block.unique()))
    matrices, vectors = found[True], found[False]
    n = table[table.is_matrix].groupby("block").size().reindex(matrices.index, fill_value=0)
    moved, moved_vectors = bool((matrices.delta_norm > 0).any()), bool((vectors.delta_norm > 0).any())
    reason = None if moved else ONLY_VECTORS if moved_vectors else IDENTICAL if same else IDENTICAL_BLOCKS
    zero = matrices.norm.isna() | (matrices.norm == 0)
    return pd.DataFrame(
        {
            "block": matrices.index.to_numpy(),
            "n_matrices": n.to_numpy(),
            "base_norm": matrices.norm.to_numpy(),
            "delta_norm": matrices.delta_norm.to_numpy(),
            "share": np.where(zero | (not moved), np.nan, matrices.delta_norm / matrices.norm.where(~zero, 1.0)),
            "share_vectors": (vectors.delta_norm / vectors.norm.where(vectors.norm > 0)).to_numpy(),
            "reason": [reason or ("no matrix in the base, or all of it 0" if none else None) for none in zero],
        }
    )


def _same_weights(subject: "Subject", reference: "Subject") -> bool:
    return subject.fingerprints.weights == reference.fingerprints.weights


def _warnings(subject: "Subject", reference: "Subject | None", frame: pd.DataFrame) -> list[str]:
    found = []
    for model in [subject] if reference is None else [subject, reference]:
        scheme, share = model.facts.get("quantization"), grid_share(getattr(model, "model", None))
        if scheme or (share is not None and share > ON_GRID):
            how = scheme or "at most 16 values in most blocks of 32"
            found.append(
                f"{short_name(model.name)}: quantised weights ({how}): their spectrum shows the grid that they were "
                "rounded to; what an adapter adds to them is exact"
            )
    if reference is not None:
        found += _rounding(subject, reference, frame)
    for note, rows in frame[frame.note.notna()].groupby("note"):
        found.append(f"{', '.join(dict.fromkeys(rows.kind))}: {note}")
    return found


def _rounding(subject: "Subject", reference: "Subject", frame: pd.DataFrame) -> list[str]:
    """What of a difference may be rounding; nothing where it is what an adapter adds."""
    changed = frame[frame.delta_rank > 0]
    if not len(changed) or changed.adapter_rank.notna().all():
        return []
    stored = [str(model.facts.get("dtype_on_disk") or model.dtype) for model in (subject, reference)]
    schemes = [model.facts.get("quantization") for model in (subject, reference)]
    found = []
    if schemes[0] != schemes[1]:
        found.append(
            f"the models were quantised differently ({schemes[0] or 'not at all'} and {schemes[1] or 'not at all'}): "
            "part of the difference is rounding"
        )
    for dtype, share in ROUNDING.items():
        if any(dtype in text for text in stored):
            found.append(
                f"weights stored in {dtype}: rounding alone moves a matrix by a share of about {share:g}, spread over "
                "all directions"
            )
    return found
