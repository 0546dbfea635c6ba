"""A pair table in a file: ours with all that was recorded beside it, or anybody's columns of numbers."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import InputError
from .pair_rows import Invalid
from .pair_table_checks import JOIN_NOTICES, filled
from .row_files import read_rows

if TYPE_CHECKING:
    from .pair_table import PairScores

Named = str | os.PathLike[str]
TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")
METADATA = b"alignscope.pair_scores"


def table_suffix(path: Named) -> str:
    """.parquet (also where there is none), .csv or .jsonl. Raises InputError for any other."""
    suffix = Path(path).suffix.lower() or ".parquet"
    if suffix not in TABLE_SUFFIXES:
        raise InputError(f"{path}: unknown kind of table '{suffix}'; expected one of {', '.join(TABLE_SUFFIXES)}")
    return suffix


def write(scores: "PairScores", path: Path) -> Path:
    """Written beside its place and renamed: a table is there whole or not at all."""
    suffix = table_suffix(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".csv":
            _plain(scores).to_csv(temporary, index=False)
        elif suffix == ".jsonl":
            frame = _plain(scores)
            rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text(lines, encoding="utf-8")
        else:
            _write_parquet(scores, temporary)
        return temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def read_own(path: Named) -> dict[str, Any]:
    """frame, invalid, settings and counts of a table that `write` wrote as Parquet. Raises InputError for others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable pair table ({error}); expected what PairScores.save wrote") from error
    more = (table.schema.metadata or {}).get(METADATA)
    if more is None:
        raise InputError(f"{path}: no pair table but another Parquet file; use PairScores.read, or from_frame")
    parts = json.loads(more)
    parts["invalid"] = tuple(Invalid(**row) for row in parts["invalid"])
    return parts | {"frame": filled(table.to_pandas())}


def is_own(path: Named) -> bool:
    """True for a Parquet file that carries settings of ours. False also where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if Path(path).suffix.lower() not in ("", ".parquet"):
        return False
    try:
        return METADATA in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False  # whoever reads it next says what is wrong


def read_foreign(path: Named) -> pd.DataFrame:
    """The rows of a .parquet, .csv or .jsonl file as they are. Raises InputError naming a row that is none."""
    table_suffix(path)
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; expected a file of pair scores ({', '.join(TABLE_SUFFIXES)})")
    rows = read_rows(path, what="pair scores")
    for number, row in enumerate(rows.rows, start=1):
        if isinstance(row, str):
            raise InputError(f"{path}, row {number}: {row}; mend the file")
    return pd.DataFrame([*rows.rows], columns=[*rows.columns], dtype=object)


def _plain(scores: "PairScores") -> pd.DataFrame:
    """The table with what its joins could not compare in every row, since a plain file holds nothing beside its rows.

    Rows, unlike a file beside the table, still say so when they are copied, cut or put together with others.
    """
    said = scores.settings.get("joined")
    return scores.frame.assign(**{JOIN_NOTICES: "; ".join(said)}) if said else scores.frame


def _write_parquet(scores: "PairScores", path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    more = {"settings": scores.settings, "counts": scores.counts, "invalid": [asdict(row) for row in scores.invalid]}
    table = pa.Table.from_pandas(scores.frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA: json.dumps(more).encode()})
    pq.write_table(table, path)
