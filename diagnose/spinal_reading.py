"""Which rows of the residual stream does a trace rest on? Prompts to ids, ids to rows and read-outs, batch by batch.

Prompts are kept in the order of a hash of their text, and batches hold prompts of like length: neither the order of the
file nor the batch size changes a number. Finished batches are kept as shards, so that a killed run repeats one at most.
"""

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..errors import InputError
from ..probes.encoding import Encoder
from ..probes.inputs import Invalid, PromptFile
from ..probes.kernels.lens_state import Pairs
from ..probes.shards import item_key
from .naming import short_name
from .spinal_lens import LensSteps, lens_steps
from .spinal_readings import MIN_WINDOW as MIN_WINDOW  # these are read from here, too
from .spinal_readings import Readings, layer_pairs, reading_arrays, readings_from, rows_of
from .spinal_readings import last_third as last_third
from .spinal_rows import TracedPrompt, captured, traced_prompt
from .spinal_rows import sampled_positions as sampled_positions  # read from here beside what uses it
from .spinal_settings import FINAL_ONLY, TopTokens, top_tokens
from .spinal_vocabulary import reduced_steps

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from ..probes.tuned_lens import TunedLens

READING_VERSION = 2  # raise it when a change moves a reading: shards of before are then not used
Folder = str | os.PathLike[str]
TORN = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)  # what reading a damaged file raises
Progress = Callable[[str, int, int], None]


def prepare_prompts(
    file: PromptFile,
    encoder: Encoder,
    *,
    max_tokens: int,
    lens_positions: int | str,
    seed: int,
    positions: int | str = "last",
) -> tuple[list[TracedPrompt], list[Invalid], int]:
    """Prompts to trace, those that have no token to measure, and how many were dropped as the same ids as another.

    lens_positions, positions: see `traced_prompt`.
    """
    kept: dict[tuple[int, ...], TracedPrompt] = {}
    invalid = []
    for prompt in file:
        found = traced_prompt(
            prompt, encoder, max_tokens=max_tokens, lens_positions=lens_positions, positions=positions, seed=seed
        )
        if isinstance(found, Invalid):
            invalid.append(found)
        elif found.key not in kept or _precedes(found, kept[found.key]):
            kept[found.key] = found
    prompts = sorted(kept.values(), key=lambda p: p.digest)
    return prompts, invalid, len(file) - len(invalid) - len(prompts)


def _precedes(first: TracedPrompt, second: TracedPrompt) -> bool:
    """Whether the first of two prompts with the same ids is kept: smaller digest, then smaller prompt_id."""
    keys = [(p.digest, p.prompt_id is None, p.prompt_id or "") for p in (first, second)]
    return keys[0] < keys[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What is read beside, or in place of, the last token of every layer over the whole vocabulary."""

    mean: bool = False  # the spectrum is that of the means of the prompts' rows
    top: TopTokens | None = None  # angles on a reduced vocabulary, too
    final_only: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "ReadOptions":
        """From the settings of a trace; those of before the options are the defaults."""
        return cls(
            mean=settings.get("positions") == "mean",
            top=top_tokens(settings.get("angle_vocabulary", "full")),
            final_only=settings.get("lens") == FINAL_ONLY,
        )

    def key(self) -> list[str]:
        """Parts of a shard's key; none under the defaults."""
        return [] if self == ReadOptions() else [repr(self)]


def read_prompts_of(
    subject: "Subject",
    prompts: Sequence[TracedPrompt],
    *,
    vocab: int,
    temperature: float,
    batch_size: int,
    lens: "TunedLens | None" = None,
    options: ReadOptions | None = None,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> Readings:
    """Forward passes and read-outs of all prompts, longest first; the readings stand in the order of `prompts`.

    lens: residuals are read out through its translators; their rows, and so their spectra, stay as they are.
    """
    options = options or ReadOptions()
    n_pooled = np.array([len(prompt.rows) for prompt in prompts])
    n_pooled = np.minimum(n_pooled, 1) if options.mean else n_pooled
    _require_memory(subject, len(prompts), int(n_pooled.sum()))
    batches = batches_of(prompts, batch_size)
    folder = None if shards is None else opened(shards)
    stage, done, total = f"tracing {short_name(subject.name)}", 0, sum(len(prompt.ids) for prompt in prompts)
    whole: Readings | None = None
    for number, batch in enumerate(batches):
        some = [prompts[i] for i in batch]
        ids = [(prompt.ids, prompt.positions, *([prompt.rows] if prompt.rows else [])) for prompt in some]
        how = (subject.fingerprint, subject.dtype, subject.device, vocab, temperature)
        more = [*([] if lens is None else [lens.fingerprint]), *options.key()]
        key = item_key(READING_VERSION, *how, ids, *more)
        path = None if folder is None else folder / f"batch_{number:05d}.npz"
        part = None if path is None else _read_shard(path, key)
        if part is None:
            part = _read_batch(subject, some, vocab, temperature, lens, options)
            if path is not None:
                write_arrays(path, {"key": np.array(key), **reading_arrays(part)})
        if whole is None:
            whole = _empty(part, len(prompts), n_pooled)
        _fill(whole, part, np.array(batch), n_pooled)
        done += sum(len(prompt.ids) for prompt in some)
        if progress is not None:
            progress(stage, done, total)
    assert whole is not None  # the caller refuses an empty list of prompts
    return whole


def _read_batch(
    subject: "Subject",
    prompts: list[TracedPrompt],
    vocab: int,
    temperature: float,
    lens: "TunedLens | None",
    options: ReadOptions,
) -> Readings:
    found = captured(subject, prompts, mean=options.mean)
    rows, owner, first = found.rows, found.owner, found.first
    sampled = np.setdiff1d(np.arange(len(owner)), first)
    last_rows, inner_rows = rows[:, torch.from_numpy(first)], rows[:, torch.from_numpy(sampled)]
    read = [last_rows, inner_rows] if lens is None else [lens.translate(part) for part in (last_rows, inner_rows)]
    how: dict[str, Any] = {"vocab": vocab, "temperature": temperature}
    steps = _last_steps if options.final_only else lens_steps
    last = steps(subject, read[0], **how, pairs=layer_pairs(subject.n_layers))
    inside = steps(subject, read[1], **how)
    more: dict[str, Any] = {}
    if found.pooled is not None:
        more["pooled"] = found.pooled.numpy()
        more["n_pooled"] = np.array([1 if options.mean else len(prompt.rows) for prompt in prompts])
    if options.top is not None:
        reduced = reduced_steps(subject, read[0][-2:] if options.final_only else read[0], top=options.top, **how)
        above = len(rows) - 1 - len(reduced.bucketed)
        more |= {f"angle_{name}": _below(angle, above) for name, angle in reduced._asdict().items()}
    return Readings(
        rows=last_rows.numpy(),
        angle=last.angle,
        entropy=last.entropy,
        angle_sampled=_means(inside.angle, owner[sampled], len(prompts)),
        entropy_sampled=_means(inside.entropy, owner[sampled], len(prompts)),
        across=last.pair_angle,
        final_only=options.final_only,
        **more,
    )


def _last_steps(
    subject: "Subject", rows: Float[torch.Tensor, "layers n d"], *, vocab: int, temperature: float, pairs: Pairs = ()
) -> LensSteps:
    """The step into the last layer and the entropy of that layer; NaN for all others, which are not read out."""
    found = lens_steps(subject, rows[-2:], vocab=vocab, temperature=temperature)
    n = len(rows)
    return LensSteps(
        _below(found.angle, n - 2), _below(found.entropy[1:], n - 1), np.full((len(pairs), rows.shape[1]), np.nan)
    )


def _below(values: Float[np.ndarray, "K n"], above: int) -> Float[np.ndarray, "layers n"]:
    """The values behind `above` rows of NaN."""
    return np.concatenate([np.full((above, values.shape[1]), np.nan), values])


def batches_of(prompts: Sequence[TracedPrompt], batch_size: int) -> list[list[int]]:
    """Indices of prompts of like length together, the longest first."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _means(values: Float[np.ndarray, "K n"], owners: Int[np.ndarray, "n"], n: int) -> Float[np.ndarray, "K N"]:
    """Mean over each owner's places; NaN for an owner without one."""
    member = np.zeros((len(owners), n))
    member[np.arange(len(owners)), owners] = 1.0
    counts = member.sum(0)
    means = np.full((len(values), n), np.nan)
    for owner in counts.nonzero()[0]:  # not values @ member: 0 * NaN of one prompt would reach all
        means[:, owner] = values[:, owners == owner].mean(1)
    return means


def _empty(part: Readings, n: int, n_pooled: Int[np.ndarray, "N"]) -> Readings:
    """Room for n prompts, shaped like `part`."""
    room: dict[str, Any] = {"final_only": part.final_only}
    for name, a in reading_arrays(part).items():
        if name == "n_pooled":
            room[name] = n_pooled
        elif name != "final_only":
            room[name] = np.empty((len(a), int(n_pooled.sum()) if name == "pooled" else n, *a.shape[2:]), dtype=a.dtype)
    return Readings(**room)


def _fill(whole: Readings, part: Readings, batch: Int[np.ndarray, "B"], n_pooled: Int[np.ndarray, "N"]) -> None:
    """Put the readings of the prompts `batch` in their places."""
    for name, a in reading_arrays(part).items():
        if name not in ("n_pooled", "final_only"):
            getattr(whole, name)[:, rows_of(batch, n_pooled) if name == "pooled" else batch] = a


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
        return readings_from(arrays)
    except TORN:
        return None


def _require_memory(subject: "Subject", n: int, more: int = 0) -> None:
    """Refuse before the first forward pass what would swap at the end. more: rows of the spectrum beside n last ones.

    Rows are held, not second moments of every layer and jackknife group: those are smaller only from about 34 d rows on
    (17 float64 matrices of d x d against rows of d float32), and halves of the prompts need the rows once more.
    """
    needed = 4 * (subject.n_layers + 1) * (n + more) * subject.d_model
    free = available_bytes()
    if free is not None and 2.5 * needed > free:  # rows, a copy of those in use, and scratch of one layer
        also, advice = (f" and {more} rows of theirs", ", or positions=m for m rows a prompt") if more else ("", "")
        raise InputError(
            f"{n} prompts{also} x {subject.n_layers + 1} layers x {subject.d_model} columns of float32 are "
            f"{needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB of memory are free: give fewer prompts{advice}"
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
