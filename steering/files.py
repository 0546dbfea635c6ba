"""A steering vector as one safetensors file: float32 tensors, and one JSON string, `alignscope`, with all the rest."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..probes.fingerprint import tensor_shapes
from ..probes.subject import Site
from .factors import Factors, require_shapes
from .header_kinds import require_keys, require_kinds
from .model_fit import require_complete, require_layer
from .positions import Positions
from .subspace import Subspace

if TYPE_CHECKING:
    from .vector import PathLike, SteeringVector

FORMAT, VERSION = "alignscope steering vector", 1
KEY = "alignscope"  # in the metadata of the file
ENDING = ".safetensors"
ORTHONORMAL = 1e-4  # max |S S^T - I| of a basis that is read
_OWN = ("format", "version", "edit", "positions", "prefix", "method", "history", "factors")  # the rest is metadata
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save_vector(vector: "SteeringVector", path: "PathLike") -> Path:
    """Write `path` by rename. InputError for metadata that is no JSON, and where it cannot be written."""
    from safetensors.torch import save  # save_file would let nobody else read the file

    file = Path(path) if Path(path).name.endswith(ENDING) else Path(f"{os.fspath(path)}{ENDING}")
    require_complete(vector.fingerprint, file)
    text = header_text(vector)
    name = str(vector.site)
    tensors = {f"{name}.basis": vector.subspace.basis}
    if vector.vector is not None:
        tensors[f"{name}.vector"] = vector.vector
    if vector.factors is not None:
        tensors[f"{name}.factor_positive"] = vector.factors.positive
        tensors[f"{name}.factor_negative"] = vector.factors.negative
        if vector.factors.std is not None:
            tensors[f"{name}.factor_std"] = vector.factors.std
    plain = {key: tensor.detach().float().cpu().contiguous().clone() for key, tensor in tensors.items()}
    write_bytes(file, save(plain, metadata={KEY: text}))
    return file


def write_bytes(file: Path, content: bytes) -> None:
    """By rename: a file that exists is whole. InputError where it cannot be written."""
    with written(file) as temporary:
        temporary.write_bytes(content)


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """A path beside `file`, of this process alone, that becomes it at the end; after an error nothing of it is left.

    InputError where it cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        with suppress(OSError):  # it is not there: renamed, or never begun
            temporary.unlink()


def load_vector(path: "PathLike") -> "SteeringVector":
    """Read what `save_vector` wrote; see SteeringVector.load for what is refused."""
    from .conversion import require_own
    from .vector import SteeringVector

    file = Path(path)
    require_own(file)
    if not file.is_file() and not file.name.endswith(ENDING):
        file = Path(f"{os.fspath(path)}{ENDING}")
    header, tensors = _read(file)
    site = _site(file, tensors)
    parts = {key.rsplit(".", 1)[1]: tensor for key, tensor in tensors.items()}
    require_parts(file, header, parts)
    known = header.get("fingerprint") or {}
    require_complete(known, file)
    width, layers = known.get("hidden_size"), known.get("n_layers")
    if width is not None and parts["basis"].shape[-1] != width:
        raise InputError(f"{file}: a basis of width {parts['basis'].shape[-1]} for a hidden size of {width}")
    if layers is not None:
        require_layer(site, layers, str(file))
    try:
        subspace = Subspace.orthonormal(parts["basis"], tolerance=ORTHONORMAL)
        return SteeringVector(
            site=site,
            subspace=subspace,
            vector=parts.get("vector"),
            factors=_factors(header, parts),
            from_file=True,
            **header_fields(header),
        )
    except (ValueError, RuntimeError) as error:  # torch raises RuntimeError for shapes that do not fit
        raise InputError(f"{file}: {error}") from error


def header_text(vector: "SteeringVector", **more: Any) -> str:
    """Everything of a vector that is no tensor, as one JSON string."""
    taken = [key for key in vector.metadata if key in _OWN]
    if taken:
        raise InputError(f"metadata '{taken[0]}' has a place of its own; give it another name")
    positions = vector.positions.to_dict()
    factors = vector.factors
    header = {
        **vector.metadata,
        "format": FORMAT,
        "version": VERSION,
        "edit": vector.edit,
        "prefix": positions.pop("prefix"),
        "positions": positions,
        "method": vector.method,
        "factors": None if factors is None else {"n": factors.n, "auroc": factors.auroc},
        "history": [dict(step) for step in vector.history],
        **more,
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"metadata and history must be JSON values: {error}") from error
    require_kinds(json.loads(text), vector)
    return text


def read_header(text: str | None, where: object) -> dict[str, Any]:
    """The JSON of `header_text`. InputError where it is none, of a newer version, or its fields are not ours."""
    try:
        header = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its '{KEY}' metadata is not JSON; is it a file of this tool?") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{where}: not a steering vector of this tool (no '{FORMAT}' in its metadata)")
    version = header.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise InputError(f"{where}: version {version}, this alignscope reads up to {VERSION}; update it")
    require_kinds(header, where)
    require_keys(header, where)
    return header


def header_fields(header: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a SteeringVector that a whole header holds (see require_keys), tensors apart."""
    return {
        "edit": header["edit"],
        "positions": Positions.from_dict({**header["positions"], "prefix": header["prefix"]}),
        "method": header["method"],
        "metadata": {key: value for key, value in header.items() if key not in _OWN},
        "history": tuple(header["history"]),
    }


def refuse_pickle(file: Path) -> None:
    """InputError where there is no such file, or it is a pickle."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with file.open("rb") as opened:
        if opened.read(4).startswith(_PICKLES):
            raise InputError(f"{file}: a pickle, which can run code when it is read; expected safetensors")


def require_parts(file: Path, header: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
    """InputError for missing tensors and values that are not finite."""
    needed = ["basis", *(["vector"] if header["edit"] == "add" else [])]
    if header["edit"] == "clamp" or header["factors"] is not None:
        needed += ["factor_positive", "factor_negative"]
    missing = [name for name in needed if name not in parts]
    if missing:
        raise InputError(f"{file}: no tensor {', '.join(missing)} in it; copy the file again")
    for name, tensor in parts.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise InputError(f"{file}: {name} holds values that are not finite numbers")
    if parts["basis"].ndim != 2:
        raise InputError(f"{file}: a basis of shape {tuple(parts['basis'].shape)}; expected [k, d]")


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import safe_open

    refuse_pickle(file)
    names = tensor_shapes(file)  # refuses a damaged file with its name
    with safe_open(file, framework="pt") as handle:
        header = read_header((handle.metadata() or {}).get(KEY), file)
        return header, {name: handle.get_tensor(name) for name in names}


def _site(file: Path, tensors: Mapping[str, Tensor]) -> Site:
    sites = {name.rsplit(".", 1)[0] for name in tensors}
    found = [site.split(".") for site in sites]
    if len(found) != 1 or len(found[0]) != 2 or not found[0][0].isdecimal():
        raise InputError(f"{file}: tensors {', '.join(sorted(tensors)) or 'none'}; expected those of one site")
    try:
        return Site(int(found[0][0]), found[0][1])
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error


def _factors(header: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Factors | None:
    if "factor_positive" not in parts:
        return None
    kept = header.get("factors") or {}
    tensors = parts["factor_positive"], parts["factor_negative"], parts.get("factor_std")
    require_shapes(*tensors)
    return Factors(*tensors, kept.get("n"), kept.get("auroc"))
