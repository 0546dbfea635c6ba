"""A set of steering vectors as a folder: a file of ours a vector, and `set.json` with their order and sha256."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..probes.subject import Subject
from .files import ENDING, header_text, load_vector, save_vector
from .model_fit import require_complete
from .sets import SteeringSet, require_all_fit
from .vector import PathLike

FORMAT, VERSION = "alignscope steering set", 1
CARD = "set.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A vector's file in the folder of a set."""

    file: Path
    sha256: str  # of its bytes, when the set was saved


def is_set(path: PathLike) -> bool:
    """Whether a folder says that it is a set; not whether it can be read."""
    return (Path(path) / CARD).is_file()


def save_set(vectors: SteeringSet, folder: PathLike, *, overwrite: bool = False) -> Path:
    """Write the folder, which appears whole or not at all; see SteeringSet.save. Returns its path."""
    path = Path(folder)
    _require_place(path, overwrite=overwrite)
    _require_writable(vectors, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            _write(vectors, partial)
            _publish(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # not there: it has become the folder
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    return path


def load_set(folder: PathLike, subject: Subject | None = None, *, allow_other_weights: bool = False) -> SteeringSet:
    """Read what `save_set` wrote; see SteeringSet.load for what is refused."""
    joint, members = read_card(folder)
    for member in members:
        _require_unchanged(member)
    loaded = [replace(load_vector(member.file), allow_other_weights=allow_other_weights) for member in members]
    try:
        found = SteeringSet(tuple(loaded), joint)
    except InputError as error:
        raise InputError(f"{os.fspath(folder)}: {error}") from error
    if subject is not None:
        names = [str(member.file) for member in members]
        require_all_fit(loaded, subject, names, allow_other_weights=allow_other_weights)
    return found


def read_card(folder: PathLike) -> tuple[bool, tuple[Member, ...]]:
    """Whether the set is joint, and its files in order, which need not be there. InputError for what is no set."""
    path = Path(folder)
    if not path.exists():
        raise InputError(f"{path}: no such folder")
    if not is_set(path):
        told = f"a folder without {CARD}" if path.is_dir() else "a file, and a set is a folder"
        raise InputError(f"{path}: not a set of steering vectors ({told}); SteeringSet.save writes one")
    card = path / CARD
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{card}: not JSON; copy the folder again") from error
    except OSError as error:
        raise InputError(f"{card}: not readable ({error.strerror})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{card}: not of a set of steering vectors (no '{FORMAT}' in it)")
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise InputError(f"{card}: version {version}, this alignscope reads up to {VERSION}; update it")
    joint, listed = content.get("joint"), content.get("vectors")
    if not isinstance(joint, bool):
        raise InputError(f"{card}: joint is {joint!r:.60}, expected true or false")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{card}: vectors is {listed!r:.60}, expected a list of files and their sha256")
    return joint, tuple(_member(row, i, card) for i, row in enumerate(listed))


def set_facts(vectors: SteeringSet) -> dict[str, Any]:
    """JSON values: joint, the largest |cos| of every two vectors at one site (by number, from 0), and notices."""
    return {
        "joint": vectors.joint,
        "cosines": [
            {
                "site": {"layer": pair.site.layer, "component": pair.site.component},
                "first": pair.first,
                "second": pair.second,
                "cosine": pair.cosine,
            }
            for pair in vectors.overlaps()
        ],
        "notices": list(vectors.notices()),
    }


def _member(row: Any, number: int, card: Path) -> Member:
    """InputError for a row that is not {file, sha256}, or whose file lies elsewhere than beside the card."""
    name, digest = (row.get("file"), row.get("sha256")) if isinstance(row, dict) else (None, None)
    plain = isinstance(name, str) and name.endswith(ENDING) and not set(name) & set("/\\:\0")
    if not plain or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise InputError(
            f"{card}: vector {number} is {row!r:.120}, expected {{file, sha256}}: the name of a {ENDING} file in this "
            "folder, and 64 hex digits"
        )
    return Member(file=card.parent / str(name), sha256=digest)


def _require_unchanged(member: Member) -> None:
    if not member.file.is_file():
        raise InputError(f"{member.file}: no such file, and {CARD} names it; copy the whole folder again")
    found = _sha256(member.file)
    if found != member.sha256:
        raise InputError(
            f"{member.file}: changed since the set was saved (sha256 {found}, {CARD} says {member.sha256}); copy the "
            "whole folder again, or save the set anew"
        )


def _require_place(path: Path, *, overwrite: bool) -> None:
    """InputError where something stands at `path`; with overwrite only where that is no set, and no empty folder."""
    if path.is_dir() and not overwrite:
        raise InputError(f"{path}: is there already; overwrite=True replaces a set, or choose another folder")
    if path.is_dir():
        names = sorted(one.name for one in path.iterdir())
        members = {member.file.name for member in read_card(path)[1]} if CARD in names else set()
        others = [name for name in names if name != CARD and name not in members]
        if others or (names and CARD not in names):
            raise InputError(f"{path}: holds {(others or names)[0]}, and only a set is replaced; choose another folder")
    elif path.exists():
        raise InputError(f"{path}: a file; a set is a folder, name one")


def _require_writable(vectors: SteeringSet, path: Path) -> None:
    """What save_vector would refuse, by the vector's number; its own words would name a folder that is gone."""
    for i, vector in enumerate(vectors.vectors):
        require_complete(vector.fingerprint, f"{path}, vector {i}")
        try:
            header_text(vector)
        except InputError as error:
            raise InputError(f"{path}, vector {i}: {error}") from error


def _write(vectors: SteeringSet, folder: Path) -> None:
    files = [save_vector(vector, folder / f"vector_{i}{ENDING}") for i, vector in enumerate(vectors.vectors)]
    card = {
        "format": FORMAT,
        "version": VERSION,
        "joint": vectors.joint,
        "vectors": [{"file": file.name, "sha256": _sha256(file)} for file in files],  # in order
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _publish(partial: Path, path: Path) -> None:
    """Move the finished folder into place; the set that was there goes when the new one stands, or comes back."""
    mask = os.umask(0)  # there is no other way to ask for it
    os.umask(mask)
    partial.chmod(0o777 & ~mask)  # mkdtemp makes it private
    if not path.is_dir():
        os.replace(partial, path)
        return
    old = partial.with_name(f"{partial.name}.old")
    os.replace(path, old)  # a folder that is not empty cannot be replaced in one step
    try:
        os.replace(partial, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
