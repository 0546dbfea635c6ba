"""GGUF control vectors of llama.cpp and repeng: tensors `direction.N`, added behind block N (0-based)."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import InputError
from ...probes.gguf_file import read_gguf
from ..files import header_text, written
from .directions import Directions, Export, added, directions, losses, own_headers

if TYPE_CHECKING:
    from ..vector import PathLike, SteeringVector

ARCHITECTURE = "controlvector"
OURS = f"{ARCHITECTURE}.alignscope"  # a string that llama.cpp does not read and keeps
_PREFIX = "direction."


def write_control_vector(vectors: Sequence["SteeringVector"], path: "PathLike") -> Export:
    """One file with a direction a vector, and our JSON beside them.

    An add goes without loss but for its positions: llama.cpp adds at every one. A clamp becomes (f+ - f-) w.
    Raises InputError for what is no direction (see `direction`), and for layer 0, which llama.cpp rejects.
    """
    import gguf

    file = Path(path)
    found = control_directions(vectors, file)
    lost = {str(vector.site.layer): losses(vector) for vector in vectors}
    headers = {str(v.site.layer): json.loads(header_text(v, lost=lost[str(v.site.layer)])) for v in vectors}
    hint = vectors[0].fingerprint.get("model_type")
    with written(file) as temporary, closing(gguf.GGUFWriter(str(temporary), ARCHITECTURE)) as writer:
        writer.add_string(f"{ARCHITECTURE}.model_hint", str(hint or "unknown"))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(found))
        writer.add_string(OURS, json.dumps(headers, allow_nan=False))
        for layer, values in found.items():
            writer.add_tensor(f"{_PREFIX}{layer}", values.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return Export(path=file, lost=tuple(dict.fromkeys(line for lines in lost.values() for line in lines)))


def control_directions(vectors: Sequence["SteeringVector"], path: "PathLike") -> Directions:
    """Layer -> what `write_control_vector` would add there. InputError as it raises; writes nothing."""
    found = directions(vectors)
    if 0 in found:
        raise InputError(f"{Path(path)}: layer 0: llama.cpp rejects direction.0; choose a vector of a later block")
    return found


def read_control_vector(path: "PathLike") -> list["SteeringVector"]:
    """A vector to add for every direction of the file, with what we wrote about it where we wrote the file.

    Raises InputError for another kind of GGUF file, and for directions that are no float vectors.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    reader = read_gguf(file)
    kind = _string(reader, "general.architecture")
    if kind != ARCHITECTURE:
        raise InputError(f"{file}: a GGUF file of architecture {kind}, expected {ARCHITECTURE}")
    found: dict[int, torch.Tensor] = {}
    for tensor in reader.tensors:
        number = tensor.name.removeprefix(_PREFIX)
        if not tensor.name.startswith(_PREFIX) or not number.isdecimal() or tensor.tensor_type.name != "F32":
            raise InputError(f"{file}: tensor {tensor.name} ({tensor.tensor_type.name}); expected direction.N in F32")
        found[int(number)] = torch.from_numpy(tensor.data.copy())
    try:
        ours = json.loads(_string(reader, OURS) or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: its {OURS} is not JSON; write the file again") from error
    headers = own_headers(ours, file)
    hint = _string(reader, f"{ARCHITECTURE}.model_hint")
    return added(found, headers, file, source_format="gguf", model_hint=hint)


def _string(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else str(field.contents())
