"""Files of torch.save: the dictionary of the steering-vectors package, and AxBench's weights. Tensors only are read."""

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import InputError
from ...probes.subject import Site
from ..files import write_bytes
from .directions import Export, added, directions, losses

if TYPE_CHECKING:
    from ..vector import PathLike, SteeringVector

_BLOCK = "decoder_block"  # what steering-vectors calls the residual behind a block
_WEIGHT = "_weight.pt"  # of AxBench: {Method}_weight.pt
_CONFIG, _METADATA = "config.json", "metadata.jsonl"  # beside it
_NAMED = 5  # concepts that an error names
_AXBENCH_COMPONENTS = {"res": "resid_post", "attn": "attn_out", "mlp": "mlp_out"}


def write_layer_activations(vectors: Sequence["SteeringVector"], path: "PathLike") -> Export:
    """{"layer_activations": {layer: vector}, "layer_type": "decoder_block"}. Raises InputError as `directions` does."""
    buffer = io.BytesIO()
    torch.save({"layer_activations": directions(vectors), "layer_type": _BLOCK}, buffer)
    write_bytes(Path(path), buffer.getvalue())
    lost = dict.fromkeys(line for vector in vectors for line in losses(vector, metadata=False))
    return Export(path=Path(path), lost=tuple(lost))


def read_layer_activations(path: "PathLike") -> list["SteeringVector"]:
    """A vector to add for every layer; the dictionary may also be the bare {layer: vector}.

    Raises InputError for a file that holds anything but tensors, and for another layer type than decoder_block.
    """
    file = Path(path)
    content = _tensors_only(file)
    found = content.get("layer_activations", content) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping) or not all(
        isinstance(layer, int) and isinstance(values, Tensor) for layer, values in found.items()
    ):
        weight = f"; AxBench's {{Method}}{_WEIGHT} has {_CONFIG} beside it" if isinstance(content, Tensor) else ""
        raise InputError(f"{file}: expected a dictionary {{layer: tensor}}, or one under `layer_activations`{weight}")
    kind = content.get("layer_type", _BLOCK)
    if kind != _BLOCK:
        raise InputError(f"{file}: layer type '{kind}'; expected '{_BLOCK}'")
    plain = {layer: values.float() for layer, values in found.items()}
    return added(plain, {}, file, source_format="steering-vectors")


def is_axbench(path: "PathLike") -> bool:
    """Whether it is a folder with a {Method}_weight.pt, or such a file with config.json beside it."""
    file = Path(path)
    if file.is_dir():
        return any(file.glob(f"*{_WEIGHT}"))
    return file.name.endswith(_WEIGHT) and file.is_file() and (file.parent / _CONFIG).is_file()


def read_axbench(path: "PathLike", concept: int | str | None, method: str | None = None) -> "SteeringVector":
    """A row of {Method}_weight.pt [n, d] as a vector to add, with its line of metadata.jsonl.

    path: the folder, or the file in it. concept: the row from 0, or the text of the concept; None: the only row.
    AxBench multiplies it by a largest activation, which these files do not hold: strengths are in other units.
    Raises InputError where a file or the row is missing, no row or several are of that concept, or `method` is not the
    name of a file.
    """
    from ..vector import SteeringVector

    given = Path(path)
    root = given.parent if given.is_file() else given
    there = [given] if given.is_file() else sorted(root.glob(f"*{_WEIGHT}"))
    files = {file.name.removesuffix(_WEIGHT): file for file in there}
    chosen = method or next(iter(files), "")
    if chosen not in files or (method is None and len(files) > 1):
        raise InputError(
            f"{root}: name one method, or its file in place of the folder; files {{method}}{_WEIGHT} are there for: "
            f"{', '.join(files) or '-'}"
        )
    config = _json(root / _CONFIG)
    weight = _tensors_only(files[chosen])
    row = _axbench_row(weight, concept, files[chosen])
    component = _AXBENCH_COMPONENTS.get(str(config.get("component")), str(config.get("component")))
    if not isinstance(config.get("layer"), int):
        raise InputError(f"{root / _CONFIG}: no layer in it")
    values = weight[row].float()
    if not torch.isfinite(values).all() or not values.any():
        raise InputError(f"{files[chosen]}, row {row}: not a direction (expected finite numbers, not all 0)")
    return SteeringVector.adding(
        values.clone(),
        Site(config["layer"], component),
        method=chosen,
        metadata={
            "source_format": "axbench",
            "model_hint": config.get("model_name"),
            "concept": next(iter(_lines(root / _METADATA)[row : row + 1]), None),
            "strength_unit": "rows of the file; AxBench's own is a largest activation, which the file does not hold",
        },
    )


def _tensors_only(file: Path) -> Any:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise InputError(f"{file}: not a torch file of tensors alone; anything else could run code") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content


def _axbench_row(weight: Any, concept: int | str | None, file: Path) -> int:
    """The row that is asked for. InputError for a weight of another shape, and where it is not one of its rows."""
    n = len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else 0
    wanted = concept if isinstance(concept, int) else 0
    if not 0 <= wanted < n:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(f"{file}: {shape}; expected [concepts, d] with a row {wanted}")
    if isinstance(concept, int):
        return concept
    lines = _lines(file.parent / _METADATA)[:n]
    texts = [line.get("concept") if isinstance(line, dict) else None for line in lines]
    found = [i for i, text in enumerate(texts) if text == concept] if concept is not None else [*range(n)]
    if len(found) == 1:
        return found[0]
    named = [f"{i} '{text:.40}'" for i, text in enumerate(texts) if isinstance(text, str)]
    shown = ", ".join([*named[:_NAMED], *(["..."] if len(named) > _NAMED else [])]) or f"{_METADATA} names none"
    told = f"{n} rows" if concept is None else f"{len(found)} of {n} rows are of the concept '{concept}'"
    raise InputError(
        f"{file}: {told}; choose one with concept= (steer convert --row N or --concept TEXT); rows: {shown}"
    )


def _lines(file: Path) -> list[Any]:
    """The JSON lines of metadata; none where there is no such file."""
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise InputError(f"{file}, line {number}: not JSON") from error
    return found
