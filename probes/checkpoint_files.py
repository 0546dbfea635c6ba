"""What lies at a path: a checkpoint, an adapter or a GGUF file? Decided by the files, before any library is called."""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError

_VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_VOCABULARY_SUFFIXES = (".tiktoken", "bpe.model")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")  # a Trainer leaves them


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """A model on disk. `weights` are the files that hold its tensors, in no particular order."""

    kind: Literal["checkpoint", "adapter", "gguf"]
    name: str  # as the user named it
    folder: Path
    weights: tuple[Path, ...]
    config: dict[str, Any]  # config.json or adapter_config.json; empty for GGUF, which carries its own
    hub: str | None = None  # id and commit, where it came from a hub

    @property
    def has_tokenizer(self) -> bool:
        """GGUF files carry their tokenizer."""
        return self.kind == "gguf" or vocabulary_files(self.folder) != []

    @property
    def pickled(self) -> bool:
        return any(file.suffix in _PICKLE_SUFFIXES for file in self.weights)


def locate(
    path: str | os.PathLike[str], *, revision: str | None = None, allow_pickle: bool = False, role: str = "model"
) -> CheckpointFiles:
    """Find the files of a model. Raises InputError where there is none, saying what was found instead.

    Order: `adapter_config.json` makes an adapter; a `.gguf` file, or a folder that holds nothing else, a GGUF model;
    `config.json` a checkpoint. What looks like a path and does not exist is never taken for a hub id.
    """
    text = os.fspath(path)
    if not text:
        raise InputError(f"the name of the {role} is empty; give a folder, a .gguf file or a hub id")
    place = Path(text).expanduser()
    if place.is_file():
        return _single_file(place, text)
    if place.is_dir():
        return _folder(place, text, allow_pickle=allow_pickle)
    if looks_like_path(path):
        what = "file" if place.suffix == ".gguf" else "folder"
        near = f"; {place.parent} holds: {_listing(place.parent)}" if place.parent.is_dir() else ""
        raise InputError(f"{text}: no such {what}{near}. Check the spelling of the {role}'s path")
    found, commit = _fetch(text, revision, allow_pickle)
    if found.is_file():
        return replace(_single_file(found, text), hub=f"{text}@{commit}")
    return _folder(found, text, allow_pickle=allow_pickle, hub=f"{text}@{commit}")


def looks_like_path(path: str | os.PathLike[str]) -> bool:
    """A hub id is `name` or `owner/name`; anything else, and `a/b` where the folder a exists here, is a path."""
    if not isinstance(path, str):
        return True
    if not _HUB_ID.fullmatch(path) or path.endswith((".gguf", ".safetensors")) or "--" in path or ".." in path:
        return True
    owner, slash, _ = path.partition("/")
    return bool(slash) and Path(owner).is_dir()


def adapter_base(path: str | os.PathLike[str]) -> str | None:
    """The base that the adapter's config names, where such a path exists here (also beside the adapter); else None."""
    folder = Path(path).expanduser()
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        return None
    for candidate in (Path(named).expanduser(), folder / named):
        if candidate.exists():
            return str(candidate)
    return None


def adapters_in(folder: Path) -> list[str]:
    """Names of the subfolders that hold an adapter: PEFT saves all but the one called default in one of its own."""
    return sorted(file.parent.name for file in folder.glob("*/adapter_config.json"))


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError naming the file where it is missing or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def vocabulary_files(folder: Path) -> list[str]:
    """Names of the files from which a tokenizer can be made."""
    return sorted(f.name for f in folder.iterdir() if f.name in _VOCABULARY or f.name.endswith(_VOCABULARY_SUFFIXES))


def _single_file(file: Path, name: str) -> CheckpointFiles:
    if file.suffix == ".gguf":
        return CheckpointFiles(kind="gguf", name=name, folder=file.parent, weights=(file,), config={})
    if file.suffix in _PICKLE_SUFFIXES:
        raise InputError(f"{name}: a pickle file, which can run code when it is read; give a safetensors folder")
    raise InputError(f"{name}: a file, but no .gguf file; give the folder that holds config.json and the weights")


def _folder(folder: Path, name: str, *, allow_pickle: bool, hub: str | None = None) -> CheckpointFiles:
    if (folder / "adapter_config.json").is_file():
        weights = _weights(folder, name, "adapter_model", allow_pickle)
        config = read_json(folder / "adapter_config.json")
        return CheckpointFiles(kind="adapter", name=name, folder=folder, weights=weights, config=config, hub=hub)
    if (folder / "config.json").is_file():
        weights = _weights(folder, name, "model", allow_pickle)
        config = read_json(folder / "config.json")
        return CheckpointFiles(kind="checkpoint", name=name, folder=folder, weights=weights, config=config, hub=hub)
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return CheckpointFiles(kind="gguf", name=name, folder=folder, weights=(files[0],), config={}, hub=hub)
    if files:
        raise InputError(f"{name}: {len(files)} GGUF files ({', '.join(f.name for f in files)}); give one of them")
    raise InputError(
        f"{name}: no model in this folder; expected config.json, adapter_config.json or a .gguf file, "
        f"found: {_listing(folder)}"
    )


def _weights(folder: Path, name: str, stem: str, allow_pickle: bool) -> tuple[Path, ...]:
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return (whole,)
    if index.is_file():
        return _shards(folder, name, index)
    pickles = sorted(f for f in folder.iterdir() if f.suffix in _PICKLE_SUFFIXES and f.name not in _NOT_WEIGHTS)
    if pickles and allow_pickle:
        return tuple(pickles)
    if pickles:
        raise InputError(
            f"{name}: the weights are pickled ({', '.join(f.name for f in pickles)}), and reading a pickle can run "
            "code; save the model as safetensors (save_pretrained does), or, if you trust its source, "
            "load(..., allow_pickle=True)"
        )
    raise InputError(
        f"{name}: a folder without weights; expected {whole.name} or {index.name}, found: {_listing(folder)}"
    )


def _shards(folder: Path, name: str, index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no weight_map in it; copy the file again")
    shards = sorted({str(shard) for shard in weight_map.values()})
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(f"{name}: {len(missing)} of {len(shards)} weight files missing: {', '.join(missing)}")
    return tuple(folder / shard for shard in shards)


def _fetch(name: str, revision: str | None, allow_pickle: bool) -> tuple[Path, str]:
    """Folder (of a GGUF model the file) and commit of a hub id: from the local hub cache, or downloaded into it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    weights = ["*.safetensors", *(["*.bin"] if allow_pickle else [])]
    patterns = [*weights, "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if any(file for pattern in weights for file in folder.glob(pattern)):
            return folder, folder.name
        files = _gguf_files(name, revision, folder)
        if len(files) == 1:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns, files[0]]))
            return folder / files[0], folder.name
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"{name}: no such folder here, and no model of that name{at} could be had from the hub "
            f"({type(error).__name__}). For a local model give its path"
        ) from error
    if files:
        shown = ", ".join(files[:8]) + (" ..." if len(files) > 8 else "")
        raise InputError(f"{name}: {len(files)} GGUF files there ({shown}); download one of them and give its path")
    return folder, folder.name


def _gguf_files(name: str, revision: str | None, folder: Path) -> list[str]:
    """GGUF files of a hub id, on the hub or, where it cannot be asked, in the local copy.

    Asked before any is downloaded: such a repository often holds a dozen quantisations of gigabytes each.
    """
    import httpx
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(name, revision=revision)
    except (OSError, httpx.HTTPError):
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
    return sorted(file for file in files if file.endswith(".gguf"))


def _listing(folder: Path, limit: int = 8) -> str:
    names = sorted(f.name for f in folder.iterdir())
    return (", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")) or "nothing"
