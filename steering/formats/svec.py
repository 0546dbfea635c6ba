"""The .svec files of activation-steering (IBM): JSON with a list of numbers a layer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import InputError
from ..files import header_text, write_bytes
from .directions import Export, added, directions, losses, own_headers

if TYPE_CHECKING:
    from ..vector import PathLike, SteeringVector

OURS = "alignscope"


def write_svec(vectors: Sequence["SteeringVector"], path: "PathLike") -> Export:
    """{model_type, directions: {layer: list}, explained_variances: {layer: null}}, and our JSON under `alignscope`.

    Explained variances are null: they are of a PCA, which made none of these. Raises InputError as `directions` does.
    """
    file = Path(path)
    found = directions(vectors)
    content = {
        "model_type": str(vectors[0].fingerprint.get("model_type") or "unknown"),
        "directions": {str(layer): values.tolist() for layer, values in found.items()},
        "explained_variances": {str(layer): None for layer in found},
        OURS: {str(vector.site.layer): json.loads(header_text(vector)) for vector in vectors},
    }
    write_bytes(file, (json.dumps(content, allow_nan=False) + "\n").encode())
    lost = dict.fromkeys(line for vector in vectors for line in losses(vector))
    return Export(path=file, lost=tuple(lost))


def read_svec(path: "PathLike") -> list["SteeringVector"]:
    """A vector to add for every layer. Raises InputError where the file is no such JSON."""
    file = Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = {int(layer): torch.tensor(values).float() for layer, values in content["directions"].items()}
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not a .svec file; expected JSON with `directions`: {{layer: numbers}}") from error
    headers = own_headers(content.get(OURS), file)
    return added(found, headers, file, source_format="svec", model_hint=content.get("model_type"))
