"""A run directory: made once, continued by the same command, refused by any other.

`run.json` holds what the numbers depend on (settings, data hashes, fingerprints). `stages/` holds finished work:
shards of scores and traces. Everything is written to a temporary name first and renamed, so what exists is whole.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..probes.shards import Progress
from .report import Cost

RUN_VERSION = 1
TICK_SECONDS = 1.0  # between two records of the time that a stage has taken


def write_atomically(path: Path, text: str) -> None:
    """Write through a temporary file in the same folder: readers see the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Stopwatch:
    """Wall seconds a stage; with a file, summed over every run that wrote to it, a killed one included.

    A kill leaves no time to write, so the file is also written while a stage runs, at each `tick` (once a second at
    most): what is lost is the time since the last tick. A damaged file starts at 0: it holds no result.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.seconds = {} if file is None else _read_seconds(file)
        self._running: tuple[str, float, float] | None = None  # stage, start, last written

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the body to the stage, also when the body raises."""
        start = time.perf_counter()
        self._running = stage, start, start
        try:
            yield
        finally:
            self._running = None
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            self._write(self.seconds)

    def tick(self) -> None:
        """Write down the time of the stage so far, if the last time was over a second ago; outside of one nothing."""
        now = time.perf_counter()
        if self._running is None or now - self._running[2] < TICK_SECONDS:
            return
        stage, start, _ = self._running
        self._running = stage, start, now
        self._write(self.seconds | {stage: self.seconds.get(stage, 0.0) + now - start})

    def ticking(self, progress: Progress | None) -> Progress:
        """A `progress` that ticks, then reports to the one given."""

        def report(stage: str, done: int, total: int) -> None:
            self.tick()
            if progress is not None:
                progress(stage, done, total)

        return report

    def _write(self, seconds: Mapping[str, float]) -> None:
        if self.file is not None:
            write_atomically(self.file, json.dumps(seconds))

    def cost(self, stage: str) -> Cost:
        return Cost(seconds=round(self.seconds.get(stage, 0.0), 3), peak_memory_mb=peak_memory_mb())

    def total(self) -> float:
        return round(sum(self.seconds.values()), 3)


class RunDirectory:
    """Opens `path` for a run with these `settings` (JSON values), or raises InputError naming what differs."""

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.stages = self.path / "stages"
        wanted = {"run_version": RUN_VERSION, **_flat(json.loads(json.dumps(settings)))}
        try:
            self.stages.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another --out") from error
        if not os.access(self.stages, os.W_OK):
            raise InputError(f"{self.path}: cannot be written (no permission); choose another --out")
        marker = self.path / "run.json"
        if marker.exists():
            _require_same(marker, wanted)
        elif (self.path / "report.json").exists():
            raise InputError(
                f"{self.path}: holds a report but no run.json, so it cannot continue; choose another --out"
            )
        else:
            write_atomically(marker, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        self.watch = Stopwatch(self.stages / "seconds.json")

    @property
    def finished(self) -> bool:
        return (self.path / "report.json").exists()

    def stage(self, name: str) -> Path:
        """The folder where a stage keeps its finished shards."""
        folder = self.stages / name
        folder.mkdir(exist_ok=True)
        return folder


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB (2**20 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10, 1)  # macOS counts bytes, Linux kB


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _require_same(marker: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # ValueError: neither JSON nor UTF-8
        raise InputError(f"{marker}: not JSON ({error}); choose another --out, or delete the folder") from error
    if not isinstance(found, dict) or "run_version" not in found:
        raise InputError(f"{marker}: not the settings of an alignscope run; choose another --out, or delete the folder")
    differ = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    if differ:
        shown = "; ".join(f"{key}: there {_short(found.get(key))}, now {_short(wanted.get(key))}" for key in differ[:4])
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise InputError(
            f"{marker.parent}: holds a run with other settings ({shown}{more}). "
            "Choose another --out, or give the same settings to continue it"
        )


def _read_seconds(file: Path) -> dict[str, float]:
    """Seconds a stage; empty where the file is not there or not what we write."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        return {}
    sound = isinstance(found, dict) and all(type(value) is float and 0 <= value < math.inf for value in found.values())
    return found if sound else {}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
