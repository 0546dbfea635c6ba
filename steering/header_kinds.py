"""Does a file's header hold what `files.header_text` writes? A kind of value a field, before anything is made of it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InputError

# how it is told, and whether a value is one
Kind = tuple[str, Callable[[Any], bool]]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _text(value: Any) -> bool:
    return isinstance(value, str)


_TEXT: Kind = ("text", _text)
_WHOLE: Kind = ("a whole number", _whole)
_PREFIX: Kind = ("a whole number or 'auto'", lambda value: _whole(value) or value == "auto")
_NUMBER: Kind = ("a finite number", lambda value: _whole(value) or (isinstance(value, float) and math.isfinite(value)))
_SPAN: Kind = ("two whole numbers", lambda value: _all(value, _whole) and len(value) == 2)
_OBJECT: Kind = ("an object", _object)
_OBJECTS: Kind = ("a list of objects", lambda value: _all(value, _object))
_TEXTS: Kind = ("a list of texts", lambda value: _all(value, _text))

# an object stands before its fields; what is null or not there is as if it were not asked for
_KINDS: Mapping[str, Kind] = {
    "edit": _TEXT,
    "method": _TEXT,
    "prefix": _PREFIX,
    "positions": _OBJECT,
    "positions.where": _TEXT,
    "positions.last": _WHOLE,
    "positions.span": _SPAN,
    "factors": _OBJECT,
    "factors.n": _WHOLE,
    "factors.auroc": _NUMBER,
    "history": _OBJECTS,
    "fingerprint": _OBJECT,
    "fingerprint.model_type": _TEXT,
    "fingerprint.hidden_size": _WHOLE,
    "fingerprint.n_layers": _WHOLE,
    "fingerprint.vocab_size": _WHOLE,
    "fingerprint.tokenizer": _TEXT,
    "fingerprint.template": _TEXT,
    "fingerprint.weights": _TEXT,
    "fingerprint.dtype": _TEXT,
    "settings": _OBJECT,
    "settings.directions": _TEXT,
    "data": _OBJECT,
    "data.n_held_out": _WHOLE,
    "metrics": _OBJECT,
    "metrics.held_out": _OBJECTS,
    "notices": _TEXTS,
}


# what every header says; without one of them a vector would act otherwise than it was made to
_WRITTEN = ("edit", "prefix", "positions", "method", "factors", "history")
_OF_POSITIONS = ("where", "last", "span")
_NULLABLE = ("factors", "positions.last", "positions.span")


def require_keys(header: Mapping[str, Any], where: object) -> None:
    """InputError, naming them, for fields that a header (of known kinds) lacks, or has null where none can be."""
    positions = header.get("positions") or {}
    found = {name: name in header for name in _WRITTEN}
    found |= {f"positions.{name}": name in positions for name in _OF_POSITIONS if "positions" in header}
    values = {**header, **{f"positions.{name}": value for name, value in positions.items()}}
    lacking = [name for name, there in found.items() if not there or (values[name] is None and name not in _NULLABLE)]
    if lacking:
        raise InputError(f"{where}: its header lacks {', '.join(lacking)}; copy or export the file again")


def require_kinds(header: Mapping[str, Any], where: object) -> None:
    """InputError, naming the field, where one of a header (JSON values) is of another kind than this tool writes."""
    for name, (told, fits) in _KINDS.items():
        value: Any = header
        for key in name.split("."):
            value = None if value is None else value.get(key)
        if value is not None and not fits(value):
            raise InputError(f"{where}: {name} in its header is {value!r:.60}, expected {told}")
