"""Answers of a sweep on disk: a line each, so that a run that was killed goes on, and a longer grid costs what it adds.

The first line says what made them. A torn line, left by a kill, is made again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...probes.shards import item_key
from ..vector import SteeringVector
from .applying import Steering, Undirected
from .generating import Generation, Wanted

FILE = "generations.jsonl"


class KeptGenerations:
    """The answers in a folder, by prompt ids and strength; they do not depend on grid, batches or other prompts.

    Raises InputError where the folder cannot be used, or its answers were made with other settings (naming them).
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.file = Path(folder) / FILE
        self.known: dict[str, Generation] = {}
        settings = json.loads(json.dumps(settings))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.file}: cannot be used for answers ({error}); choose another folder") from error
        rows = [row for line in lines if (row := _object(line)) is not None]
        if not rows:
            self._write([{"settings": settings}])
            return
        found = rows[0].get("settings")
        if found != settings:
            known = found if isinstance(found, dict) else {}
            other = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
            raise InputError(f"{self.file}: made with other {', '.join(other)}; name another folder, or delete it")
        for row in rows[1:]:
            if {"key", "text", "n_tokens", "finished"} <= row.keys():
                self.known[row["key"]] = Generation(row["text"], row["n_tokens"], row["finished"])

    def get(self, wanted: Wanted) -> Generation | None:
        return self.known.get(_key(wanted))

    def add(self, wanted: Sequence[Wanted], made: Sequence[Generation]) -> None:
        """Keep answers; one write a batch."""
        rows = []
        for one, answer in zip(wanted, made, strict=True):
            self.known[_key(one)] = answer
            row = {"key": _key(one), "strength": one.strength, "text": answer.text}
            rows.append(row | {"n_tokens": answer.n_tokens, "finished": answer.finished})
        self._write(rows)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            with self.file.open("ab", buffering=0) as file:
                file.write("".join(f"{json.dumps(row)}\n" for row in rows).encode())
        except OSError as error:
            raise InputError(f"{self.file}: cannot be written ({error.strerror}); what is there is kept") from error


def vector_key(vector: Steering) -> str:
    """Names all that a vector does at any strength: sites, directions, factors, tokens."""
    if isinstance(vector, SteeringVector):
        strengths = (1.0,) if vector.edit == "ablate" else (1.0, -1.0)
        return item_key(str(vector.site), [vector.edit_for(s).key for s in strengths])
    if isinstance(vector, Undirected):
        return vector.key
    return item_key(vector.joint, [vector_key(part) for part in vector.vectors])


def _key(wanted: Wanted) -> str:
    return item_key(wanted.ids, float(wanted.strength))[:32]


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
