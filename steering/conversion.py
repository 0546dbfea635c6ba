"""Which file holds a vector, and which can it become? Every format by the name that the command line gives it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..probes.subject import Subject
from .files import ENDING, load_vector, save_vector
from .formats.control_vector import control_directions, read_control_vector, write_control_vector
from .formats.directions import Export, directions
from .formats.svec import read_svec, write_svec
from .formats.torch_files import read_layer_activations, write_layer_activations
from .model_fit import model_fingerprint, require_fit
from .vector import PathLike, SteeringVector

OWN = "safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of file: its endings, what reads and writes all vectors of one, and what refuses those it cannot hold."""

    endings: tuple[str, ...]
    read: Callable[[PathLike], list[SteeringVector]]
    write: Callable[[Sequence[SteeringVector], PathLike], Export]
    refuse: Callable[[Sequence[SteeringVector], PathLike], object]


def _read_own(path: PathLike) -> list[SteeringVector]:
    return [load_vector(path)]


def _write_own(vectors: Sequence[SteeringVector], path: PathLike) -> Export:
    _refuse_own(vectors, path)
    return Export(path=save_vector(vectors[0], path), lost=())


def _refuse_own(vectors: Sequence[SteeringVector], path: PathLike) -> None:
    """InputError for several vectors, and for one that does not say which model it belongs to."""
    file = Path(path)
    if len(vectors) > 1:
        layers = ", ".join(str(vector.site.layer) for vector in vectors)
        raise InputError(f"{file}: holds one vector, got those of layers {layers}; choose one with layer= (--layer)")
    if not vectors[0].fingerprint:
        raise InputError(
            f"{file}: what was read does not say which model it belongs to, and a file of this tool does: give the "
            "model (--model), whose fingerprint is then written down"
        )


def _refuse_directions(vectors: Sequence[SteeringVector], path: PathLike) -> None:
    directions(vectors)


FORMATS: Mapping[str, Format] = {
    OWN: Format(endings=(ENDING,), read=_read_own, write=_write_own, refuse=_refuse_own),
    "gguf": Format(endings=(".gguf",), read=read_control_vector, write=write_control_vector, refuse=control_directions),
    "svec": Format(endings=(".svec",), read=read_svec, write=write_svec, refuse=_refuse_directions),
    "steering-vectors": Format(
        endings=(".pt", ".pth"), read=read_layer_activations, write=write_layer_activations, refuse=_refuse_directions
    ),
}


def format_of(path: PathLike, name: str | None = None) -> str:
    """The format that a file's ending stands for, or `name`. InputError for others."""
    if name is not None:
        if name not in FORMATS:
            raise InputError(f"format '{name}': expected one of {', '.join(FORMATS)}")
        return name
    file = Path(path)
    for known, kind in FORMATS.items():
        if file.suffix.lower() in kind.endings:
            return known
    endings = ", ".join(ending for kind in FORMATS.values() for ending in kind.endings)
    raise InputError(f"{file}: its ending says no format; expected one of {endings}, or name the format")


def require_own(file: Path) -> None:
    """InputError, saying how to make a vector of it, for a file that is there with the ending of another tool's."""
    kinds = [name for name, kind in FORMATS.items() if file.suffix.lower() in kind.endings and name != OWN]
    if kinds and file.is_file():
        raise InputError(
            f"{file}: a file of another tool ({kinds[0]}); make a vector of it with alignscope steer convert {file} "
            f"{file.with_suffix(ENDING)} --model MODEL"
        )


def read_vectors(path: PathLike, *, layer: int | None = None) -> list[SteeringVector]:
    """All vectors of a file, by its ending: ours holds one, other tools' files one to add a layer; or that of `layer`.

    Raises InputError for another ending, a layer that is not in it, and as the format's reader does.
    """
    found = FORMATS[format_of(path)].read(path)
    chosen = [vector for vector in found if layer is None or vector.site.layer == layer]
    if not chosen:
        there = ", ".join(str(vector.site.layer) for vector in found)
        raise InputError(f"{os.fspath(path)}: no vector of layer {layer}; it holds those of {there}")
    return chosen


def write_vectors(vectors: Sequence[SteeringVector], path: PathLike, *, name: str | None = None) -> Export:
    """One file of all vectors, in the format `name` or that of the ending; says what was lost.

    Raises InputError for what the format cannot hold: clamps of a higher rank, ablations, other components than
    resid_post; in our own format several vectors, and one without a fingerprint (see `bound`).
    """
    return FORMATS[format_of(path, name)].write(vectors, path)


def require_writable(vectors: Sequence[SteeringVector], path: PathLike, *, name: str | None = None) -> None:
    """What write_vectors would refuse, before anything is measured or written. Raises InputError as it does."""
    FORMATS[format_of(path, name)].refuse(vectors, path)


def bound(vector: SteeringVector, subject: Subject, *, allow_other_weights: bool = False) -> SteeringVector:
    """The vector with the subject's fingerprint, where it has none. InputError where it does not belong on it."""
    known = vector.fingerprint
    require_fit(vector.site, vector.subspace.width, known, subject, allow_other_weights=allow_other_weights)
    if known:
        return replace(vector, allow_other_weights=allow_other_weights)
    return replace(vector, metadata={**vector.metadata, "fingerprint": model_fingerprint(subject)})
