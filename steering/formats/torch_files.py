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
        raise InputError(f"{file}: expected a dictionary {{layer: tensor}}, or one under `layer_activations`")
    kind = content.get("layer_type", _BLOCK)
    if kind != _BLOCK:
        raise InputError(f"{file}: layer type '{kind}'; expected '{_BLOCK}'")
    plain = {layer: values.float() for layer, values in found.items()}
    return added(plain, {}, file, source_format="steering-vectors")


def read_axbench(folder: "PathLike", concept: int, method: str | None) -> "SteeringVector":
    """Row `concept` of {Method}_weight.pt [n, d] as a vector to add, with its row of metadata.jsonl.

    AxBench multiplies it by a largest activation, which these files do not hold: strengths are in other units.
    Raises InputError where a file or the row is missing, or `method` is not the name of one.
    """
    from ..vector import SteeringVector

    root = Path(folder)
    files = {file.name.removesuffix("_weight.pt"): file for file in sorted(root.glob("*_weight.pt"))}
    chosen = method or next(iter(files), "")
    if chosen not in files or (method is None and len(files) > 1):
        raise InputError(
            f"{root}: name one method; files {{method}}_weight.pt are there for: {', '.join(files) or '-'}"
        )
    config = _json(root / "config.json")
    weight = _tensors_only(files[chosen])
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not 0 <= concept < len(weight):
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(f"{files[chosen]}: {shape}; expected [concepts, d] with a row {concept}")
    component = _AXBENCH_COMPONENTS.get(str(config.get("component")), str(config.get("component")))
    if not isinstance(config.get("layer"), int):
        raise InputError(f"{root / 'config.json'}: no layer in it")
    row = weight[concept].float()
    if not torch.isfinite(row).all() or not row.any():
        raise InputError(f"{files[chosen]}, row {concept}: not a direction (expected finite numbers, not all 0)")
    return SteeringVector.adding(
        row.clone(),
        Site(config["layer"], component),
        method=chosen,
        metadata={
            "source_format": "axbench",
            "model_hint": config.get("model_name"),
            "concept": _concept(root / "metadata.jsonl", concept),
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


def _concept(file: Path, number: int) -> Any:
    """The row's metadata; None where the file has no such line."""
    if not file.is_file():
        return None
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        return json.loads(lines[number]) if number < len(lines) else None
    except ValueError as error:
        raise InputError(f"{file}, line {number + 1}: not JSON") from error
