"""Which differences between log-probabilities are rounding? A model computed below float32 beside its float32 copy."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .scored_rows import TokenSequence
from .sequence_scores import score_sequences

if TYPE_CHECKING:
    from .huggingface import HuggingFaceSubject
    from .subject import Subject

FULL = ("float32", "float64")
RESCORED = 32  # pairs
SEED = 0


def no_float32_copy(subject: "Subject") -> str | None:
    """Why there is nothing to compare with in float32; None where `float32_copy` makes it."""
    model: Any = getattr(subject, "model", None)
    if subject.dtype in FULL:
        return f"computed in {subject.dtype}"
    if model is None:
        return "the carrier holds no module whose weights could be widened"
    if subject.facts.get("adapter_switched_off"):
        return "no float32 copy is made of a model with its adapter switched off"
    if getattr(model, "is_quantized", False) or not all(weight.is_floating_point() for weight in model.parameters()):
        return "quantised weights have no float32 copy"
    return None


def float32_copy(subject: "Subject") -> "HuggingFaceSubject":
    """The same weights, computed in float32: they are widened, not read again, so both hold the same numbers."""
    from .loading import wrap

    model: Any = getattr(subject, "model")  # noqa: B009  # the protocol has none: no_float32_copy asks first
    return wrap(copy.deepcopy(model).float())


def noise_floor(
    subject: "Subject", sequences: Sequence[TokenSequence], totals: Sequence[float], **options: Any
) -> dict[str, Any]:
    """Settings `noise_floor` and `noise_floor_reason`, one of them None; chosen and rejected in turn.

    noise_floor: p95, the 95th percentile of |margin - margin in float32| over n = 32 pairs drawn with a fixed seed,
    nats a pair; share_inside, the share of all pairs whose |margin| is below it. options: of score_sequences. Nothing
    is kept: the copy of a model with an adapter has the fingerprint of its base.
    """
    margins = np.asarray(totals[::2], dtype=np.float64) - np.asarray(totals[1::2], dtype=np.float64)
    usable = np.flatnonzero(np.isfinite(margins))
    reason = no_float32_copy(subject) or (None if len(usable) else "no pair has a finite margin")
    if reason:
        return {"noise_floor": None, "noise_floor_reason": reason}
    drawn = np.sort(np.random.default_rng(SEED).permutation(usable)[:RESCORED])
    again = [sequences[k] for i in drawn for k in (2 * i, 2 * i + 1)]
    exact = [total for total, _ in score_sequences(float32_copy(subject), again, stage="noise floor", **options)]
    moved = np.abs(margins[drawn] - (np.asarray(exact[::2]) - np.asarray(exact[1::2])))
    floor = float(np.quantile(moved, 0.95))
    inside = float((np.abs(margins[usable]) < floor).mean())
    return {"noise_floor": {"p95": floor, "n": len(drawn), "share_inside": inside}, "noise_floor_reason": None}
