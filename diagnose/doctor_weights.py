"""What the weights are: precision of the file, adapter, memory, and whether the reference is the right one."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..probes.noise_floor import FULL, float32_copy, no_float32_copy
from ..probes.opening import DTYPES
from ..probes.padding import padded
from ..probes.vocabulary import same_ids
from .doctor_checks import Check
from .probe_rows import ProbeRows, row_scores
from .run_directory import peak_memory_mb

if TYPE_CHECKING:
    from ..probes.subject import Subject

BLOCK = 32  # values that share a scale in the common 4-bit formats
LEVELS = 16  # distinct values that 4 bits can give
_SAMPLED_BLOCKS = 1024  # a matrix
_TOKENS = 8192  # padded tokens of a scoring batch, as score_pairs' default


def loading_check(subject: "Subject") -> Check:
    """Missing, mismatched and non-finite tensors are refused on load; what is left to say is what was not used."""
    unused = list(subject.facts.get("unexpected_keys") or [])
    return Check(
        check="loading",
        value=f"0 missing, {len(unused)} unused",
        unit="tensors",
        threshold="0 missing, 0 not finite",
        verdict="notice" if unused else "ok",
        advice=f"not part of the model, ignored: {', '.join(unused[:4])}{' ...' if len(unused) > 4 else ''}"
        if unused
        else "every tensor found its place and is finite",
        number=float(len(unused)),
    )


def precision_check(subject: "Subject", reference: "Subject | None") -> Check:
    """Dtype on disk, quantisation and grid share of the file, beside the reference's.

    Two roundings of the same weights differ, so a pair stored in two of them shows a change that no training made.
    """
    own, other = _precision(subject), None if reference is None else _precision(reference)
    share = grid_share(getattr(subject, "model", None))
    stored, scheme = own
    coarse = scheme is not None or (stored is not None and any(part not in FULL for part in stored.split(", ")))
    on_grid = share is not None and share > 0.5
    differs = other is not None and (other[1] != scheme or _rounded_otherwise(stored, other[0]))
    if differs:
        advice = f"the reference is stored as {_described(other)}: rounding would count as training; use one scheme"
    elif scheme or on_grid:
        advice = "weights lie on a grid: activations are fair to compare, weight spectra and weight differences are not"
    elif coarse:
        advice = f"computed in {subject.dtype}; weights were rounded when they were saved"
    else:
        advice = f"computed in {subject.dtype}"
    return Check(
        check="precision of the file",
        value=_described(own) + ("" if share is None else f", grid share {share:.2f}"),
        threshold="float32, no grid",
        verdict="alarm" if differs else "notice" if coarse or on_grid else "ok",
        advice=advice,
        number=share,
    )


def precision_floor_check(subject: "Subject", probe: ProbeRows, pad: int) -> Check | None:
    """How far scores move where computed below float32, against a float32 copy of the same weights; else None."""
    if no_float32_copy(subject) is not None or subject.facts.get("adapter"):
        return None
    full = float32_copy(subject)
    ids, mask = padded(probe.rows, pad)
    moved = (row_scores(subject, ids, mask) - row_scores(full, ids, mask)).abs()
    median, high = (float(moved.quantile(q)) for q in (0.5, 0.95))
    return Check(
        check="precision floor",
        value=f"{high:.2g}",
        unit="nats a text, 95 % are below",
        threshold="0 in float32",
        verdict="notice",
        advice=f"{subject.dtype} against float32 on {len(probe.rows)} texts: median {median:.2g}, largest "
        f"{float(moved.max()):.2g}; margins below that are ties. Load with --dtype float32",
        number=high,
        n=len(probe.rows),
    )


def grid_share(model: Any) -> float | None:
    """Share of 32-value blocks of the weight matrices with at most 16 distinct values; 1 for 4-bit files, 0 for floats.

    Mean over matrices of at least one block a row; at most 1024 evenly spaced blocks of each. None without such.
    """
    if model is None:
        return None
    shares = [
        _matrix_share(parameter.detach())
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
        and parameter.shape[1] % BLOCK == 0
        and parameter.is_floating_point()
        and "lora_" not in name
    ]
    return sum(shares) / len(shares) if shares else None


def _matrix_share(matrix: Tensor) -> float:
    blocks = matrix.reshape(-1, BLOCK)
    step = max(1, len(blocks) // _SAMPLED_BLOCKS)
    ordered = blocks[::step].float().sort(-1).values
    distinct = (ordered.diff(dim=-1) != 0).sum(-1) + 1
    return float((distinct <= LEVELS).double().mean())


def adapter_check(subject: "Subject", probe: ProbeRows, pad: int) -> Check | None:
    """Does the adapter do anything, and can it be switched off? None where there is none."""
    facts = subject.facts
    if not facts.get("adapter"):
        return None
    refused = facts.get("adapter_off_refused")
    if refused:
        return Check(
            check="adapter",
            value=str(facts["adapter"]),
            verdict="notice",
            advice=f"cannot serve as its own reference: {refused}. Give --reference",
        )
    change = mean_log_ratio(subject, subject.without_adapter(), probe, pad)
    return Check(
        check="adapter",
        value=f"{change:.3g}",
        unit="nats a text, mean |log-ratio| to the base",
        threshold="> 0",
        verdict="ok" if change > 0 else "alarm",
        advice=f"{facts.get('adapter_tensors', '?')} tensors placed, switched off bit-equal to the base"
        if change > 0
        else "the adapter changes nothing: an untrained adapter, or the wrong folder",
        number=change,
        n=len(probe.rows),
    )


def mean_log_ratio(subject: "Subject", other: "Subject", probe: ProbeRows, pad: int) -> float:
    """Mean over the probe rows of |log p_subject(row) - log p_other(row)|, nats."""
    ids, mask = padded(probe.rows, pad)
    return float((row_scores(subject, ids, mask) - row_scores(other, ids, mask)).abs().mean())


def reference_checks(subject: "Subject", reference: "Subject", probe: ProbeRows, pad: int) -> list[Check]:
    """Tokenizer, template and head width beside the reference's, and how far apart the two models are."""
    mine, theirs = subject.fingerprints, reference.fingerprints
    rows = [
        _same("tokenizer of the reference", same_ids(subject, reference), "text becomes other ids in each model"),
        _same("template of the reference", mine.template == theirs.template, "prompts differ unless --template none"),
        _same(
            "head of the reference",
            subject.vocab_size == reference.vocab_size,
            f"{subject.vocab_size} rows against {reference.vocab_size}: another vocabulary, or padded differently",
        ),
    ]
    if max(max(row) for row in probe.rows) >= reference.vocab_size:
        return rows
    distance = mean_log_ratio(subject, reference, probe, pad)
    return [
        *rows,
        Check(
            check="distance to the reference",
            value=f"{distance:.3g}",
            unit="nats a text, mean |log-ratio|",
            threshold="> 0",
            verdict="ok" if distance > 0 else "notice",
            advice="the models differ" if distance > 0 else "same weights: every difference between them will be 0",
            number=distance,
            n=len(probe.rows),
        ),
    ]


def memory_check(subject: "Subject") -> Check:
    """Weights and one scoring batch; what this process has needed so far."""
    model: Any = getattr(subject, "model", None)
    parameters = () if model is None else tuple(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters) / 2**20
    logits = _TOKENS * subject.vocab_size * 4 / 2**20
    token = (subject.n_layers + 1) * subject.d_model * 4
    return Check(
        check="memory",
        value=f"{weights:.0f}",
        unit="MB of weights",
        advice=f"peak of this process {peak_memory_mb():.0f} MB; all logits of {_TOKENS} tokens would be "
        f"{logits:.0f} MB; the residual stream takes {token} bytes a token where all of it is kept",
        number=weights,
        n=len(parameters),
    )


def _same(check: str, same: bool, consequence: str) -> Check:
    return Check(
        check=check,
        value="same" if same else "differs",
        threshold="same",
        verdict="ok" if same else "alarm",
        advice="" if same else consequence,
    )


def _precision(subject: "Subject") -> tuple[str | None, str | None]:
    return subject.facts.get("dtype_on_disk"), subject.facts.get("quantization")


def _rounded_otherwise(first: str | None, second: str | None) -> bool:
    """Whether most float tensors of two files have different types; False where that is not known of both."""
    kinds = [next((part for part in (stored or "").split(", ") if part in DTYPES), None) for stored in (first, second)]
    return None not in kinds and kinds[0] != kinds[1]


def _described(precision: Any) -> str:
    stored, scheme = precision
    return scheme or stored or "not known (live model)"
