"""Long work in shards: finished ones are kept, so that a killed run repeats at most one of them.

A shard is a small JSON file that appears whole (by rename) and says which items it holds. A cache keeps the same values
by item, for other runs on the same model.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

from ..errors import InputError

Progress = Callable[[str, int, int], None]  # stage, done, total; see DETAIL
DETAIL = " | "  # what follows it in a stage says how it stands (a loss), may change, and makes no other stage
Value = TypeVar("Value", float, list[float])  # of an item: a number, or a few


def prefixed(progress: Progress, name: str) -> Progress:
    """Tells stages as "name: stage"."""
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def detailed(progress: Progress, text: Callable[[], str]) -> Progress:
    """Tells stages with the text as it is then."""

    def told(stage: str, done: int, total: int) -> None:
        progress(f"{stage}{', ' if DETAIL in stage else DETAIL}{now}" if (now := text()) else stage, done, total)

    return told


class ScoreCache:
    """Values by item key, appended to one file a model; a torn line, left by a kill, is skipped when read.

    Where the file cannot be read or written, `problem` says so and values stay in memory: a cache costs time, not the
    run. Only a folder that cannot be made is an InputError: then another one was meant.
    """

    def __init__(self, folder: str | os.PathLike[str], model_key: str) -> None:
        self.file = Path(folder) / "scores" / f"{model_key[:32]}.jsonl"
        self.values: dict[str, float | list[float]] = {}
        self.problem: str | None = None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.file.parent}: the cache cannot be used, as no such folder can be made ({error.strerror}); let "
                "ALIGNSCOPE_CACHE name another folder (in Python cache=), or do without (--no-cache, cache=None)"
            ) from error
        try:
            content = self.file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            self.problem = f"{self.file}: the cache cannot be read ({error.strerror}); scores are not kept"
            return
        for line in content.splitlines():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict):
                self.values.update({key: value for key, value in values.items() if _is_value(value)})

    def add(self, values: Mapping[str, float] | Mapping[str, list[float]]) -> None:
        """Keep values; one write, so that two runs on one cache do not mix their lines."""
        new = {key: value for key, value in values.items() if key not in self.values}
        if not new:
            return
        self.values.update(new)
        if self.problem is not None:
            return
        try:
            with self.file.open("ab", buffering=0) as file:
                file.write(f"\n{json.dumps(new)}\n".encode())
        except OSError as error:  # a full disk, a folder that may only be read
            self.problem = f"{self.file}: the cache cannot be written ({error.strerror}); scores are not kept"


def run_in_shards(
    keys: Sequence[str],
    lengths: Sequence[int],
    compute: Callable[[list[int]], list[Value]],
    *,
    stage: str,
    shard_size: int,
    folder: str | os.PathLike[str] | None = None,
    cache: ScoreCache | None = None,
    progress: Progress | None = None,
    order: Sequence[tuple[int, ...]] | None = None,
) -> list[Value]:
    """One value an item, in the order of `keys`; compute(indices) gives the values of some of them.

    Equal keys are computed once. Shards go from the longest items to the shortest, so each holds items of like length
    and memory is needed most at the start. They depend on keys and lengths alone: a run that continues makes the same.
    folder: finished shards are kept there as `<stage>_<number>.json`, and read where they hold these very items.
    progress: called as progress(stage, tokens done, tokens in all) before the first shard and after each.
    order: every distinct key's first index once, in another order of work; what stands in one tuple is in one shard.
    """
    if order is None:
        order = [(i,) for i in sorted(distinct(keys).values(), key=lambda i: (-lengths[i], i))]
    shards = _shards(order, shard_size)
    kept = None if folder is None else _opened(Path(folder))
    values: dict[str, Value] = {}
    done, total = 0, sum(lengths[i] for shard in shards for i in shard)
    missing: list[tuple[int, list[int]]] = []
    for number, shard in enumerate(shards):
        found = None if kept is None else _read(kept / _file_name(stage, number), [keys[i] for i in shard])
        if found is None:
            missing.append((number, shard))
        else:
            values.update(cast("dict[str, Value]", found))
            done += sum(lengths[i] for i in shard)
    if progress is not None and total:
        progress(stage, done, total)
    for number, shard in missing:
        known = {} if cache is None else {keys[i]: cache.values[keys[i]] for i in shard if keys[i] in cache.values}
        cached = cast("dict[str, Value]", known)
        wanted = [i for i in shard if keys[i] not in cached]
        fresh = dict(zip((keys[i] for i in wanted), compute(wanted) if wanted else [], strict=True))
        if cache is not None:
            cache.add(fresh)
        either = cached | fresh
        finished = {keys[i]: either[keys[i]] for i in shard}
        if kept is not None:
            _write(kept / _file_name(stage, number), finished)
        values.update(finished)
        done += sum(lengths[i] for i in shard)
        if progress is not None:
            progress(stage, done, total)
    return [values[key] for key in keys]


def distinct(keys: Sequence[str]) -> dict[str, int]:
    """Key -> its first index."""
    return {key: i for i, key in reversed(list(enumerate(keys)))}


def _shards(order: Sequence[tuple[int, ...]], shard_size: int) -> list[list[int]]:
    """At most `shard_size` items each, or one tuple."""
    shards: list[list[int]] = []
    for row in order:
        if not shards or len(shards[-1]) + len(row) > shard_size:
            shards.append([])
        shards[-1].extend(row)
    return shards


def item_key(*parts: object) -> str:
    """sha256 (hex) of the parts' JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _file_name(stage: str, number: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', stage).strip('_')}_{number:05d}.json"


def _opened(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    return folder


def _is_value(value: object) -> bool:
    return type(value) is float or (isinstance(value, list) and all(type(part) is float for part in value))


def _read(path: Path, keys: Iterable[str]) -> dict[str, float | list[float]] | None:
    """The values of a shard; None where it is not there, torn, or holds other items."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) and list(values) == list(keys) else None


def _write(path: Path, values: Mapping[str, float] | Mapping[str, list[float]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(values), encoding="utf-8")  # repr of a float: exact
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); finished shards are kept") from error
