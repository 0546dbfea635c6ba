"""Which file holds a vector, and which can it become? Every format by the name that the command line gives it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ..errors import InputError
from ..probes.subject import Subject
from .files import ENDING, load_vector, save_vector
from .formats.control_vector import control_directions, read_control_vector, write_control_vector
from .formats.directions import Export, directions
from .formats.svec import read_svec, write_svec
from .formats.torch_files import is_axbench, read_axbench, read_layer_activations, write_layer_activations
from .model_fit import model_fingerprint, require_fit
from .set_files import CARD, is_set, load_set, read_card
from .sets import SteeringSet
from .vector import PathLike, SteeringVector

OWN, SET, AXBENCH = "safetensors", "set", "axbench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of file: its endings (none: told by its content), what reads and writes all vectors of one, what refuses
    those that it cannot hold.
    """

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


def _read_only(vectors: Sequence[SteeringVector], path: PathLike) -> NoReturn:
    raise InputError(f"{os.fspath(path)}: a set or weights of AxBench are there: only read; name another file")


FORMATS: Mapping[str, Format] = {
    OWN: Format(endings=(ENDING,), read=_read_own, write=_write_own, refuse=_refuse_own),
    "gguf": Format(endings=(".gguf",), read=read_control_vector, write=write_control_vector, refuse=control_directions),
    "svec": Format(endings=(".svec",), read=read_svec, write=write_svec, refuse=_refuse_directions),
    "steering-vectors": Format(
        endings=(".pt", ".pth"), read=read_layer_activations, write=write_layer_activations, refuse=_refuse_directions
    ),
    AXBENCH: Format(endings=(), read=lambda path: [read_axbench(path, None)], write=_read_only, refuse=_read_only),
    SET: Format(endings=(), read=lambda path: list(load_set(path).vectors), write=_read_only, refuse=_read_only),
}


def format_of(path: PathLike, name: str | None = None) -> str:
    """The format that a file's ending stands for, that a folder is of, or `name`. InputError for others."""
    if name is not None:
        written = [known for known, kind in FORMATS.items() if kind.endings]
        if name not in written:
            raise InputError(f"format '{name}': expected one of {', '.join(written)}")
        return name
    file = Path(path)
    if is_set(file):
        return SET
    if is_axbench(file):
        return AXBENCH
    if file.is_dir():
        raise InputError(
            f"{file}: a folder that holds neither a set of vectors ({CARD}) nor AxBench's {{Method}}_weight.pt; name a "
            "file in it"
        )
    for known, kind in FORMATS.items():
        if file.suffix.lower() in kind.endings:
            return known
    endings = ", ".join(ending for kind in FORMATS.values() for ending in kind.endings)
    raise InputError(f"{file}: its ending says no format; expected one of {endings}, or name the format")


def require_own(file: Path) -> None:
    """InputError for a set, saying what reads it, and for another tool's, saying how to make a vector of it."""
    if is_set(file):
        raise InputError(
            f"{file}: a set of vectors, expected one; name a file in it, or read it with SteeringSet.load (steer apply "
            "and inspect take sets)"
        )
    kinds = [name for name, kind in FORMATS.items() if file.suffix.lower() in kind.endings and name != OWN]
    kinds = [AXBENCH] if is_axbench(file) else kinds if file.is_file() else []
    if kinds:
        raise InputError(
            f"{file}: a file of another tool ({kinds[0]}); make a vector of it with alignscope steer convert {file} "
            f"{file.with_suffix(ENDING)} --model MODEL"
        )


def read_vectors(path: PathLike, *, layer: int | None = None, concept: int | str | None = None) -> list[SteeringVector]:
    """All vectors of a file, by its ending: ours holds one, other tools' files one to add a layer; or that of `layer`.

    The folder of a set holds several. Of AxBench's weights one row is read: `concept`, its number or text, where there
    are several (see SteeringVector.from_axbench). Raises InputError for another ending, a layer that is not in it, a
    concept of another format, and as the format's reader does.
    """
    kind = format_of(path)
    if concept is not None and kind != AXBENCH:
        raise InputError(f"{os.fspath(path)}: {kind}, and only AxBench's weights have rows to choose ({concept!r})")
    found = FORMATS[kind].read(path) if concept is None else [read_axbench(path, concept)]
    chosen = [vector for vector in found if layer is None or vector.site.layer == layer]
    if not chosen:
        there = ", ".join(str(vector.site.layer) for vector in found)
        raise InputError(f"{os.fspath(path)}: no vector of layer {layer}; it holds those of {there}")
    return chosen


def read_together(paths: Sequence[PathLike], *, layer: int | None = None, joint: bool | None = None) -> SteeringSet:
    """The vectors of several files or sets, in order, as one set. layer: of the first path, see `read_vectors`.

    joint None: as the sets among them were saved; of files, True. Raises InputError as SteeringSet and `read_vectors`
    do, and where joint is None and the sets among the paths do not say the same.
    """
    named = ", ".join(str(path) for path in paths)
    if joint is None:
        said = {read_card(Path(path))[0] if is_set(path) else True for path in paths}
        if len(said) > 1:
            raise InputError(
                f"{named}: one is a sequential set and another is not; say joint=False "
                "(--sequential) for all, or apply the set alone"
            )
        joint = said.pop() if said else True
    found = [vector for i, path in enumerate(paths) for vector in read_vectors(path, layer=None if i else layer)]
    try:
        return SteeringSet(found, joint)
    except InputError as error:
        raise InputError(f"{named}: {error}") from error


def write_vectors(vectors: Sequence[SteeringVector], path: PathLike, *, name: str | None = None) -> Export:
    """One file of all vectors, in the format `name` or that of the ending; says what was lost.

    Raises InputError for what the format cannot hold: clamps of a higher rank, ablations, other components than
    resid_post; in our own format several vectors, and one without a fingerprint (see `bound`). AxBench's weights and
    sets are not written here.
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
