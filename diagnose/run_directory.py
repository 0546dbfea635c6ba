"""A run directory: made once, continued by the same command, refused by any other.

`run.json` holds what the numbers depend on (settings, data hashes, fingerprints). `stages/` holds finished work:
shards of scores and traces. Everything is written to a temporary name first and renamed, so what exists is whole.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .report import Cost

RUN_VERSION = 1


def write_atomically(path: Path, text: str) -> None:
    """Write through a temporary file in the same folder: readers see the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Stopwatch:
    """Wall seconds a stage; with a file, summed over every run that wrote to it."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the body to the stage, also when the body raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            if self.file is not None:
                write_atomically(self.file, json.dumps(self.seconds))

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
    except json.JSONDecodeError as error:
        raise InputError(f"{marker}: not JSON ({error}); choose another --out, or delete the folder") from error
    differ = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    if differ:
        shown = "; ".join(f"{key}: there {_short(found.get(key))}, now {_short(wanted.get(key))}" for key in differ[:4])
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise InputError(
            f"{marker.parent}: holds a run with other settings ({shown}{more}). "
            "Choose another --out, or give the same settings to continue it"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
