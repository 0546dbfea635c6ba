"""How does an organism come into its folder? Whole or not at all, and the one that is there is not built again."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError

CARD = "organism.json"  # written last: its presence means complete


def build_once(path: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> None:
    """Have `build(folder)` fill a folder that appears at `path` when it is done, with a card: key and what it returns.

    Nothing is done where an organism of this key is there. A killed build leaves nothing that could be taken for one.
    Raises InputError where the place holds something else, or an organism of another key, or cannot be written.
    """
    if _is_there(path, key):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        card = {"key": key, **build(partial)}
        (partial / CARD).write_text(json.dumps(card, indent=2), encoding="utf-8")
        _publish(partial, path, key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_card(path: Path) -> dict[str, Any] | None:
    """What the build wrote of the organism in the folder; None where there is none. InputError where it is not JSON."""
    try:
        return json.loads((path / CARD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{path / CARD}: is not JSON; delete the folder and build the organism again") from error


def _is_there(path: Path, key: str) -> bool:
    """Whether the finished organism stands at `path`; False where the place is free."""
    card = read_card(path)
    if card is not None and card.get("key") == key:
        return True
    if card is not None:
        raise InputError(f"{path}: holds an organism of another recipe or seed; choose another folder or delete it")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path}: is not empty and holds no organism; choose a new folder")
    return False


def _publish(partial: Path, path: Path, key: str) -> None:
    """Move the finished folder into place; a build that finished there meanwhile has the same content and wins."""
    partial.chmod(0o755)  # mkdtemp makes it private
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()  # os.replace onto an empty folder fails on Windows
    try:
        os.replace(partial, path)
    except OSError as error:
        if not _is_there(path, key):
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
