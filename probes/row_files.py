"""Which rows does a file hold? JSONL, JSON, CSV, Parquet or a list in memory, as dictionaries in their order."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_FIELD_LIMIT = 2**31 - 1  # characters of a CSV cell; the default of 131,072 is less than a long dialogue


@dataclass(frozen=True, slots=True)
class Rows:
    """The data rows of one source. A row that is no dictionary stands as the string that says what is wrong with it."""

    source: str
    sha256: str  # of the file's bytes; of the JSON text for a list
    rows: tuple[dict[str, Any] | str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every key that occurs, in order of first occurrence."""
        return tuple(dict.fromkeys(key for row in self.rows if isinstance(row, dict) for key in row))


def read_rows(source: str | os.PathLike[str] | Iterable[Any], *, what: str, bare: str | None = None) -> Rows:
    """Read all rows of a file or list.

    what: "pairs" or "prompts", for messages. bare: the column that a plain string among the rows stands for.
    Raises InputError for a file that is missing, empty, unreadable or of an unknown kind.
    """
    if isinstance(source, str | os.PathLike):
        rows = _from_file(Path(source), what, bare)
    elif isinstance(source, Mapping):
        raise InputError(f"{what}: a single dictionary was given; expected a file, or a list with a dictionary a row")
    else:
        items = list(source)
        text = json.dumps([_plain(item) for item in items], ensure_ascii=False, default=str)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        rows = Rows(f"list of {len(items)} rows", digest, tuple(_row(item, bare) for item in items))
    if not rows.rows:
        raise InputError(f"{rows.source}: no rows; expected at least one row of {what}")
    return rows


def _from_file(path: Path, what: str, bare: str | None) -> Rows:
    suffix = path.suffix.lower()
    if path.is_dir():
        raise InputError(f"{path}: a folder; expected a file of {what} ({', '.join(SUFFIXES)})")
    if not path.exists():
        raise InputError(f"{path}: no such file; expected a file of {what} ({', '.join(SUFFIXES)})")
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file '{suffix}'; expected one of {', '.join(SUFFIXES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not content.strip():
        raise InputError(f"{path}: the file is empty; expected at least one row of {what}")
    if suffix == ".parquet":
        items = _parquet(path)
    else:
        text = _decoded(path, content)
        items = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv_rows}[suffix](path, text)
    rows = tuple(item if suffix == ".jsonl" and isinstance(item, str) else _row(item, bare) for item in items)
    return Rows(str(path), hashlib.sha256(content).hexdigest(), rows)


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte {error.start}); convert the file to UTF-8") from error


def _json_lines(path: Path, text: str) -> list[Any]:
    lines = [line for line in text.split("\n") if line.strip()]  # not splitlines: U+2028 may stand inside a string
    rows = [_json_line(line) for line in lines]
    if lines and not any(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: no line is a JSON object ({rows[0]}); expected one object a line")
    return rows


def _json_line(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"not JSON: {error}"
    except RecursionError:
        return "not readable JSON: nested too deeply"
    return row if isinstance(row, dict) else f"not a JSON object but {type(row).__name__}"


def _json_list(path: Path, text: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); a file with one object a line is named .jsonl") from error
    except RecursionError:
        raise InputError(f"{path}: JSON nested too deeply to be read; expected a list with an entry a row") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: a JSON {type(rows).__name__}; expected a list with an entry a row")
    return rows


def _csv_rows(path: Path, text: str) -> list[Any]:
    old = csv.field_size_limit(_FIELD_LIMIT)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error}); expected a header line and quoted text") from error
    finally:
        csv.field_size_limit(old)
    header, *lines = [line for line in table if line]
    if len(set(header)) < len(header):
        raise InputError(f"{path}: a column name occurs twice in the header ({', '.join(header)})")
    return [
        dict(zip(header, line, strict=True)) if len(line) == len(header)
        else _WrongWidth(f"{len(line)} fields where the header has {len(header)}")
        for line in lines
    ]  # fmt: skip


def _parquet(path: Path) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); write it again") from error


class _WrongWidth(str):
    """The complaint about a CSV line, told apart from a bare text."""


def _row(item: Any, bare: str | None) -> dict[str, Any] | str:
    if isinstance(item, Mapping):
        return {str(key): value for key, value in item.items()}
    if isinstance(item, str) and not isinstance(item, _WrongWidth) and bare is not None:
        return {bare: item}
    return str(item) if isinstance(item, _WrongWidth) else f"not a dictionary but {type(item).__name__}"


def _plain(item: Any) -> Any:
    return dict(item) if isinstance(item, Mapping) else item
