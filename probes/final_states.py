"""The states that a model's head reads, kept on disk: the vocabulary is met later, in pieces, beside another model's.

One model runs at a time. Shards depend on the sequences alone, so those of two models hold the same positions.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from .scored_rows import ScoredRows, TokenSequence, begin_alike, over_batches, residuals
from .sequence_scores import work_order
from .shards import Progress, item_key
from .subject import Subject

STATES_VERSION = 1  # raise it when a change moves a state: shards of before are then not used
SHARD_TOKENS = 4096  # scored positions of a shard: 9 MB at a width of 576 in float32

Folder = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateShards:
    """Where the states of some sequences lie. A shard has a row a scored position, sequence by sequence, in order."""

    folder: Path
    shards: tuple[tuple[int, ...], ...]  # indices of the sequences of each
    normed: bool  # behind the final norm; False: residuals, of a model whose head is not that simple

    def read(self, number: int) -> Float[Tensor, "n d"]:
        """The states of one shard, in the type they were computed in."""
        with safe_open(_file(self.folder, number), framework="pt") as file:
            return file.get_tensor("states")

    def delete(self) -> None:
        """Remove the files, which are large and can be made again."""
        for number in range(len(self.shards)):
            _file(self.folder, number).unlink(missing_ok=True)


def planned_shards(sequences: Sequence[TokenSequence]) -> tuple[tuple[int, ...], ...]:
    """Sequences by shard: pairs that begin alike stay together, longest first, at most 4096 scored positions each."""
    keys = [str(i) for i in range(len(sequences))]  # equal sequences are read again: each has rows of its own
    shards: list[list[int]] = []
    room = 0
    for row in work_order(sequences, keys):
        n = sum(sequences[i].n_scored for i in row)
        if not shards or n > room:
            shards.append([])
            room = SHARD_TOKENS
        shards[-1] += row
        room -= n
    return tuple(tuple(shard) for shard in shards)


@torch.no_grad()
def write_states(
    subject: Subject,
    sequences: Sequence[TokenSequence],
    folder: Folder,
    *,
    share_prefix: bool = False,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    stage: str = "states",
) -> StateShards:
    """The state behind the final norm (before it, where the head is not simple) at every scored position.

    Kept in the type it was computed in, for a second rounding would not be the model's. Shards that lie in `folder`
    already, of the same model and ids, are not made again. share_prefix: two sequences that stand next to each other
    and begin alike are read in one row; only for a model that `choose_way` has tried it on.
    Raises InputError where the folder cannot be written.
    """
    path = Path(folder)
    shards = planned_shards(sequences)
    head = subject.head()
    normed = head is not None
    done, total = 0, sum(len(sequence.ids) for sequence in sequences)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(shards):
            some = [sequences[i] for i in shard]
            key = _key(subject, some, normed, share_prefix)
            if _stored_key(_file(path, number)) != key:
                states = _states(subject, some, share_prefix, batch_tokens)
                states = subject.normed(states) if normed else states
                _save(_file(path, number), states.detach().cpu().contiguous(), key)
            done += sum(len(sequence.ids) for sequence in some)
            if progress is not None:
                progress(stage, done, total)
    except OSError as error:
        raise InputError(f"{path}: states cannot be written ({error.strerror}); finished shards are kept") from error
    return StateShards(folder=path, shards=shards, normed=normed)


def _states(
    subject: Subject, sequences: list[TokenSequence], share_prefix: bool, batch_tokens: int
) -> Float[Tensor, "n d"]:
    """Last residuals of all scored positions, sequence by sequence."""
    groups: list[tuple[TokenSequence, ...]] = []
    for sequence in sequences:
        last = groups[-1] if groups else ()
        if share_prefix and len(last) == 1 and begin_alike(last[0], sequence):
            groups[-1] = (last[0], sequence)
        else:
            groups.append((sequence,))

    def measure(rows: ScoredRows) -> list[Tensor]:
        return list(residuals(subject, rows).cpu().split(rows.counts))

    return torch.cat([states for group in over_batches(groups, batch_tokens, measure) for states in group])


def _key(subject: Subject, sequences: list[TokenSequence], normed: bool, share_prefix: bool) -> str:
    ids = [(sequence.ids, sequence.start) for sequence in sequences]
    how = (subject.fingerprint, subject.dtype, str(subject.device), normed, share_prefix)
    return item_key(STATES_VERSION, *how, ids)


def _file(folder: Path, number: int) -> Path:
    return folder / f"states_{number:05d}.safetensors"


def _save(file: Path, states: Tensor, key: str) -> None:
    """By rename: a file that is there is whole."""
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp")
    save_file({"states": states}, temporary, metadata={"key": key})
    temporary.replace(file)


def _stored_key(file: Path) -> str | None:
    """What the states of a file were computed from; None where there is none, or it is torn."""
    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("key")
    except (OSError, SafetensorError):
        return None
