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
            raise InputError(f"{self.path}: holds a report without run.json, so it cannot be continued; choose another --out")
        else:
            write_atomically(marker, json.dumps(wanted, indent=2, sort_keys=True) + "\n")

    @property
    def finished(self) -> bool:
        return (self.path / "report.json").exists()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the body to the stage's cost, also when the body raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            costs = self._costs()
            costs[stage] = costs.get(stage, 0.0) + time.perf_counter() - start
            write_atomically(self.stages / "seconds.json", json.dumps(costs))

    def cost(self, *stages: str) -> Cost:
        """Wall time of these stages over all resumed runs, and the peak memory of this process."""
        costs = self._costs()
        return Cost(seconds=round(sum(costs.get(stage, 0.0) for stage in stages), 3), peak_memory_mb=peak_memory_mb())

    def total_seconds(self) -> float:
        return round(sum(self._costs().values()), 3)

    def _costs(self) -> dict[str, float]:
        file = self.stages / "seconds.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


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
        raise InputError(f"{marker.parent}: holds a run with other settings ({shown}{more}). "
                         "Choose another --out, or give the same settings to continue it")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
