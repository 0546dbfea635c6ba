"""How far apart are the read-outs of two models at the same layer, prompt and position?"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from ..errors import InputError
from ..probes.shards import item_key
from .spinal_lens import lens_between, mass_outside
from .spinal_reading import READING_VERSION, TORN, Folder, Progress, opened, read_arrays, write_arrays
from .spinal_trace import SpinalTrace

if TYPE_CHECKING:
    from ..probes.subject import Subject

DISTANCE_VERSION = 2  # raise it when a change moves a distance: those kept before are then not used
BLOCK = 64  # prompts whose read-outs are compared at a time

NOT_LOGIT = "read through another lens: trace with lens='logit' for it"

Subjects = tuple["Subject", "Subject"]
Distance = Float[np.ndarray, "layers N"]


def base_distance(
    base: SpinalTrace,
    aligned: SpinalTrace,
    subjects: Subjects | None,
    *,
    identical: bool,
    warnings: list[str],
    readout: str = "own",
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> tuple[Distance | None, str | None]:
    """2 arccos sum sqrt(p q) of the last token in radians, a layer and kept prompt; or why there is none.

    readout: "own" (each model through its own final norm and head) or "base" (both through the base's, which leaves a
    changed head or norm out). What must be said of the vocabulary goes to `warnings`.
    Raises InputError where `subjects` are not the two traced models in the order (base, aligned).
    """
    kept = np.flatnonzero(base.kept)
    if identical:
        return np.zeros((base.model.n_layers + 1, len(kept))), None
    if subjects is None:
        return None, "models not given"
    if base.settings["lens"] != "logit":
        return None, NOT_LOGIT
    for subject, trace in zip(subjects, (base, aligned), strict=True):
        if subject.fingerprint != trace.model.fingerprint:
            raise InputError(
                f"subjects: {subject.name} ({subject.fingerprint[:12]}) is not the model that was traced as "
                f"{trace.model.name} ({trace.model.fingerprint[:12]}); the order is (base, aligned)"
            )
    if base.token_hash != aligned.token_hash:
        return None, "different token ids: the read-outs are over different vocabularies"
    if readout == "base":
        if base.model.d_model != aligned.model.d_model:
            return None, f"the head of the base reads {base.model.d_model} columns, not {aligned.model.d_model}"
        subjects = (subjects[0], subjects[0])
    vocab = base.model.vocab if readout == "base" else min(base.model.vocab, aligned.model.vocab)
    if base.model.vocab != aligned.model.vocab and readout == "own":
        warnings.append(_left_out(base, aligned, subjects, kept))
    temperature = base.settings["temperature"]
    models = [(trace.model.fingerprint, trace.model.dtype) for trace in (base, aligned)]
    parts = (models, base.token_hash, vocab, temperature, readout, kept.tolist())
    key = item_key(DISTANCE_VERSION, READING_VERSION, *parts)
    path = None if shards is None else opened(shards) / f"base_distance_{key[:16]}.npz"
    found = None if path is None else _read(path)
    if found is None:
        stage = "same-layer distance" if readout == "own" else "same-layer distance, one head"
        found = _distance(
            base, aligned, subjects, kept, vocab, None if progress is None else lambda *n: progress(stage, *n)
        )
        if path is not None:
            write_arrays(path, {"distance": found})
    return found, None


def _distance(
    base: SpinalTrace,
    aligned: SpinalTrace,
    subjects: Subjects,
    kept: Int[np.ndarray, "N"],
    vocab: int,
    progress: Callable[[int, int], None] | None,
) -> Distance:
    blocks = [kept[i : i + BLOCK] for i in range(0, len(kept), BLOCK)]
    parts = []
    for done, block in enumerate(blocks):
        rows = [torch.from_numpy(trace.readings.rows[:, block]) for trace in (base, aligned)]
        parts.append(lens_between(*subjects, *rows, vocab=vocab, temperature=base.settings["temperature"]))
        if progress is not None:
            progress(sum(map(len, blocks[: done + 1])), len(kept))
    return np.concatenate(parts, 1)


@torch.no_grad()
def same_head(base: "Subject", aligned: "Subject", rows: Float[np.ndarray, "N d"]) -> bool:
    """Whether both models turn the same residual rows into the same distribution: equal norm, head and bias."""
    if base.d_model != aligned.d_model or base.vocab_size != aligned.vocab_size:
        return False
    probe = torch.from_numpy(rows[:2])
    first, second = (subject.readout(probe.to(subject.device)[None]).cpu() for subject in (base, aligned))
    return torch.equal(first, second)


def _left_out(base: SpinalTrace, aligned: SpinalTrace, subjects: Subjects, kept: Int[np.ndarray, "N"]) -> str:
    """What is lost where only the first entries of the larger vocabulary are compared."""
    sizes = base.model.vocab, aligned.model.vocab
    larger, subject = (base, subjects[0]) if sizes[0] > sizes[1] else (aligned, subjects[1])
    rows = torch.from_numpy(larger.readings.rows[-1, kept])
    mass = mass_outside(
        subject, rows, first=min(sizes), vocab=max(sizes), temperature=base.settings["temperature"]
    ).mean()
    return (
        f"the vocabularies have {sizes[0]} and {sizes[1]} entries: same-layer distances are over the first "
        f"{min(sizes)}, renormalised; left out are {1 - min(sizes) / max(sizes):.2%} of the head rows of "
        f"{larger.model.name}, with {mass:.2%} of its probability after the last block"
    )


def _read(path: Path) -> Distance | None:
    """A distance kept before; None where there is none, or a torn one."""
    try:
        return read_arrays(path)["distance"]
    except TORN:
        return None
