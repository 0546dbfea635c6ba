"""GGUF files: what they hold, read with the gguf package, not guessed from what transformers made of it."""

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError

_ONE_AT_A_TIME = threading.RLock()  # `alone` swaps a name in a module that all threads share
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_gguf(file: Path) -> Any:
    """The file's reader (fields and tensors, memory-mapped). Raises InputError where it is damaged or cut short."""
    import gguf

    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, OverflowError, KeyError, OSError, UnicodeDecodeError) as error:
        size = file.stat().st_size
        raise InputError(
            f"{file}: not a readable GGUF file ({error}); damaged or cut short at {size} bytes? Copy it again"
        ) from error
    if not reader.tensors:
        raise InputError(f"{file}: a GGUF file without tensors (vocabulary only); give one with weights")
    return reader


def tensor_types(reader: Any) -> dict[str, int]:
    """How many tensors the file holds of each type, most first: {'Q4_1': 210, 'F32': 61, 'Q8_0': 1}."""
    return dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common())


def quantised_types(types: dict[str, int]) -> list[str]:
    """The types among them that round weights to a grid; empty for a float file."""
    return [name for name in types if name not in _FLOATS]


def gguf_config(reader: Any) -> dict[str, Any]:
    """The metadata that describes the model; tokenizer and file header apart, names and licences left out."""
    kept = {}
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "tokenizer.")) or (name.startswith("general.") and name != "general.architecture"):
            continue
        kept[name] = field.contents()
    return kept


@contextmanager
def alone(file: Path, reader: Any) -> Iterator[Path]:
    """A folder in which transformers finds this file and nothing else (an adapter beside it would redirect it).

    Inside, whoever opens the file with gguf gets `reader`: transformers parses its 50,000 tokens three times else.
    One thread at a time, others wait.
    """
    import gguf

    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory(prefix="alignscope-") as folder:
        original = gguf.GGUFReader

        def shared(path: Any, *arguments: Any, **options: Any) -> Any:
            return reader if Path(path).resolve() == file.resolve() else original(path, *arguments, **options)

        (Path(folder) / file.name).symlink_to(file.resolve())
        gguf.GGUFReader = shared
        try:
            yield Path(folder)
        finally:
            gguf.GGUFReader = original
