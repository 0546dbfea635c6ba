"""Which rows of the residual stream does a trace rest on? Prompts to ids, ids to rows and read-outs, batch by batch.

Prompts are kept in the order of a hash of their text, and batches hold prompts of like length: neither the order of the
file nor the batch size changes a number. Finished batches are kept as shards, so that a killed run repeats one at most.
"""

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ..errors import InputError
from ..probes.capture import rows_at
from ..probes.encoding import Encoder
from ..probes.inputs import Invalid, PromptFile
from ..probes.padding import padded
from ..probes.shards import item_key
from .naming import short_name
from .spinal_geometry import geodesic_efficiency, turning
from .spinal_lens import lens_steps

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from ..probes.tuned_lens import TunedLens

READING_VERSION = 2  # raise it when a change moves a reading: shards of before are then not used
MIN_WINDOW = 3  # blocks of a terminal window
Folder = str | os.PathLike[str]
TORN = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)  # what reading a damaged file raises
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPrompt:
    """A prompt as ids; `positions` are read: the last real token, then the sampled ones (never BOS, never the last)."""

    row: int  # data row in its file, from 1
    prompt_id: str | None
    digest: str  # sha256 of the text
    ids: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """What one model gave on N prompts. Layer 0 is the embeddings; a step l goes from layer l to l + 1."""

    rows: Float[np.ndarray, "layers N d"]  # residual at the last token, before the final norm, float32
    angle: Float[np.ndarray, "steps N"]  # of the last token, radians
    entropy: Float[np.ndarray, "layers N"]  # of the last token, nats
    angle_sampled: Float[np.ndarray, "steps N"]  # mean over the prompt's sampled positions; NaN where it has none
    entropy_sampled: Float[np.ndarray, "layers N"]
    across: Float[np.ndarray, "pairs N"]  # angles of `layer_pairs` at the last token, radians

    @property
    def finite(self) -> Bool[np.ndarray, "N"]:
        """Prompts without a NaN or infinity at the last token, in any layer."""
        return np.isfinite(self.rows).all((0, 2)) & np.isfinite(self.angle).all(0) & np.isfinite(self.entropy).all(0)

    def first_nonfinite(self, prompt: int) -> int:
        """The first layer that is not finite at this prompt's last token."""
        bad = ~np.isfinite(self.rows[:, prompt]).all(1) | ~np.isfinite(self.entropy[:, prompt])
        return int(bad.argmax())

    def take(self, prompts: Int[np.ndarray, "M"] | Bool[np.ndarray, "N"]) -> "Readings":
        """The readings of some prompts."""
        return Readings(**{field.name: getattr(self, field.name)[:, prompts] for field in fields(self)})

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


def prepare_prompts(
    file: PromptFile, encoder: Encoder, *, max_tokens: int, lens_positions: int, seed: int
) -> tuple[list[TracedPrompt], list[Invalid], int]:
    """Prompts to trace, those that have no token to measure, and how many were dropped as the same ids as another."""
    kept: dict[tuple[int, ...], TracedPrompt] = {}
    invalid = []
    for prompt in file:
        ids = encoder.encode_prompt(prompt, max_tokens)
        if isinstance(ids, Invalid):
            invalid.append(ids)
            continue
        first = _first_measured(ids, encoder)
        if len(ids) <= first:
            invalid.append(Invalid(row=prompt.row, reason="no_token", detail="no token but the one added before it"))
            continue
        digest = hashlib.sha256(json.dumps(prompt.text, sort_keys=True).encode()).hexdigest()
        found = TracedPrompt(
            row=prompt.row,
            prompt_id=prompt.prompt_id,
            digest=digest,
            ids=ids,
            positions=(len(ids) - 1, *sampled_positions(ids, first, lens_positions, seed)),
        )
        if ids not in kept or _precedes(found, kept[ids]):
            kept[ids] = found
    prompts = sorted(kept.values(), key=lambda p: p.digest)
    return prompts, invalid, len(file) - len(invalid) - len(prompts)


def _precedes(first: TracedPrompt, second: TracedPrompt) -> bool:
    """Whether the first of two prompts with the same ids is kept: smaller digest, then smaller prompt_id."""
    keys = [(p.digest, p.prompt_id is None, p.prompt_id or "") for p in (first, second)]
    return keys[0] < keys[1]


def sampled_positions(ids: Sequence[int], first: int, n: int, seed: int) -> tuple[int, ...]:
    """At most n positions of first..len(ids)-2, one from each of n equal strata; seeded by the ids themselves."""
    room = len(ids) - 1 - first
    if n == 0:
        return ()
    if room <= n:
        return tuple(range(first, first + max(room, 0)))
    digest = hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()
    random = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    bounds = [first + i * room // n for i in range(n + 1)]
    return tuple(int(random.integers(low, high)) for low, high in pairwise(bounds))


def read_prompts_of(
    subject: "Subject",
    prompts: Sequence[TracedPrompt],
    *,
    vocab: int,
    temperature: float,
    batch_size: int,
    lens: "TunedLens | None" = None,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> Readings:
    """Forward passes and read-outs of all prompts, longest first; the readings stand in the order of `prompts`.

    lens: residuals are read out through its translators; their rows, and so their spectra, stay as they are.
    """
    _require_memory(subject, len(prompts))
    batches = batches_of(prompts, batch_size)
    folder = None if shards is None else opened(shards)
    stage, done, total = f"tracing {short_name(subject.name)}", 0, sum(len(prompt.ids) for prompt in prompts)
    whole: Readings | None = None
    for number, batch in enumerate(batches):
        some = [prompts[i] for i in batch]
        ids = [(prompt.ids, prompt.positions) for prompt in some]
        how = (subject.fingerprint, subject.dtype, subject.device, vocab, temperature)
        key = item_key(READING_VERSION, *how, ids, *([] if lens is None else [lens.fingerprint]))
        path = None if folder is None else folder / f"batch_{number:05d}.npz"
        part = None if path is None else _read_shard(path, key)
        if part is None:
            part = _read_batch(subject, some, vocab, temperature, lens)
            if path is not None:
                write_arrays(path, {"key": np.array(key), **_arrays(part)})
        if whole is None:
            whole = _empty(part, len(prompts))
        for field in fields(Readings):
            getattr(whole, field.name)[:, batch] = getattr(part, field.name)
        done += sum(len(prompt.ids) for prompt in some)
        if progress is not None:
            progress(stage, done, total)
    assert whole is not None  # the caller refuses an empty list of prompts
    return whole


def _read_batch(
    subject: "Subject", prompts: list[TracedPrompt], vocab: int, temperature: float, lens: "TunedLens | None"
) -> Readings:
    rows, owner, first = captured(subject, prompts)
    sampled = np.setdiff1d(np.arange(len(owner)), first)
    last_rows, inner_rows = rows[:, torch.from_numpy(first)], rows[:, torch.from_numpy(sampled)]
    read = [last_rows, inner_rows] if lens is None else [lens.translate(part) for part in (last_rows, inner_rows)]
    last = lens_steps(subject, read[0], vocab=vocab, temperature=temperature, pairs=layer_pairs(subject.n_layers))
    inside = lens_steps(subject, read[1], vocab=vocab, temperature=temperature)
    return Readings(
        rows=last_rows.numpy(),
        angle=last.angle,
        entropy=last.entropy,
        angle_sampled=_means(inside.angle, owner[sampled], len(prompts)),
        entropy_sampled=_means(inside.entropy, owner[sampled], len(prompts)),
        across=last.pair_angle,
    )


def captured(
    subject: "Subject", prompts: Sequence[TracedPrompt]
) -> tuple[Float[torch.Tensor, "layers n d"], Int[np.ndarray, "n"], Int[np.ndarray, "N"]]:
    """Residual rows at the prompts' positions from one forward pass, whose row each is, and each prompt's first one."""
    ids, mask = padded([prompt.ids for prompt in prompts], 0)
    counts = torch.tensor([len(prompt.positions) for prompt in prompts])
    owner = torch.repeat_interleave(torch.arange(len(prompts)), counts)
    columns = torch.tensor([position for prompt in prompts for position in prompt.positions])
    trace = subject.trace(ids.to(subject.device), mask.to(subject.device), reduce=rows_at(owner, columns))
    rows = torch.stack([trace[layer].float().cpu() for layer in range(subject.n_layers + 1)])
    return rows, owner.numpy(), (counts.cumsum(0) - counts).numpy()


def batches_of(prompts: Sequence[TracedPrompt], batch_size: int) -> list[list[int]]:
    """Indices of prompts of like length together, the longest first."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def layer_pairs(n_layers: int) -> list[tuple[int, int]]:
    """Layers compared beside the steps: (l - 1, l + 1) for turning at l = 2..L-1, then (1, L) and the last third."""
    pairs = [(layer - 1, layer + 1) for layer in range(2, n_layers)]
    return [*pairs, (1, n_layers), (last_third(n_layers)[0], n_layers)] if n_layers >= MIN_WINDOW else pairs


def last_third(n_layers: int) -> tuple[int, int]:
    """First and last block of the last max(3, ceil(L / 3))."""
    return n_layers - max(MIN_WINDOW, math.ceil(n_layers / 3)) + 1, n_layers


def _means(values: Float[np.ndarray, "K n"], owners: Int[np.ndarray, "n"], n: int) -> Float[np.ndarray, "K N"]:
    """Mean over each owner's places; NaN for an owner without one."""
    member = np.zeros((len(owners), n))
    member[np.arange(len(owners)), owners] = 1.0
    counts = member.sum(0)
    means = np.full((len(values), n), np.nan)
    for owner in counts.nonzero()[0]:  # not values @ member: 0 * NaN of one prompt would reach all
        means[:, owner] = values[:, owners == owner].mean(1)
    return means


def _first_measured(ids: tuple[int, ...], encoder: Encoder) -> int:
    """The first position that is no BOS and nothing else the tokenizer put before the text."""
    prefix = encoder.prefix
    if prefix and ids[: len(prefix)] == prefix:
        return len(prefix)
    return int(bool(ids) and ids[0] == encoder.bos_id)


def _empty(part: Readings, n: int) -> Readings:
    """Room for n prompts, shaped like `part`."""
    arrays = _arrays(part).items()
    return Readings(**{name: np.empty((len(a), n, *a.shape[2:]), dtype=a.dtype) for name, a in arrays})


def _arrays(readings: Readings) -> dict[str, np.ndarray]:
    return {field.name: getattr(readings, field.name) for field in fields(Readings)}


def opened(folder: Folder) -> Path:
    """The folder, made where it is not there. Raises InputError where it cannot be written."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    return path


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """An .npz file that appears whole, by rename."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    try:
        np.savez(temporary, **arrays)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); finished shards are kept") from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Raises one of `TORN` where it is missing, cut off or something else."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # np.load leaves a torn file open
        return dict(arrays)


def _read_shard(path: Path, key: str) -> Readings | None:
    """The readings of a shard; None where it is not there, torn, or of other prompts, model or settings."""
    try:
        arrays = read_arrays(path)
        if str(arrays["key"]) != key:
            return None
        return Readings(**{field.name: arrays[field.name] for field in fields(Readings)})
    except TORN:
        return None


def _require_memory(subject: "Subject", n: int) -> None:
    """Refuse before the first forward pass what would swap at the end."""
    needed = 4 * (subject.n_layers + 1) * n * subject.d_model
    free = available_bytes()
    if free is not None and 2.5 * needed > free:  # rows, a copy of those in use, and scratch of one layer
        raise InputError(
            f"{n} prompts x {subject.n_layers + 1} layers x {subject.d_model} columns of float32 are "
            f"{needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB of memory are free: give fewer prompts"
        )


def available_bytes() -> int | None:
    """Memory that can still be had, of the machine or of the control group, whichever is less; None where unknown."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(int(limit) - int(held["anon"]))  # the page cache gives way
    return min(found, default=None)
