"""A pair table made in one go: models named, pairs scored in shards that survive a kill, the table written whole."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .encoding import TextPolicy
from .explicit_scores import RewardFunction
from .inputs import PairFile, check_invalid, read_pairs
from .pair_table import PairScores
from .pair_table_checks import require_rows
from .pair_table_files import table_suffix
from .policy import is_adapter, load_judge, load_policy_and_reference
from .rendering import template_file_hash
from .scoring import score_pairs

if TYPE_CHECKING:
    from .subject import RewardSubject, Subject

Named = str | os.PathLike[str]


def score_table(
    policy: "Named | Subject",
    reference: "Named | Subject | None",
    pairs: "Named | Iterable[Any] | PairFile",
    out: Named,
    *,
    base: Named | None = None,
    reward: "Named | RewardSubject | RewardFunction | None" = None,
    dtype: str = "float32",
    device: str = "auto",
    max_invalid: float = 0.05,
    overwrite: bool = False,
    **options: Any,
) -> PairScores:
    """Score pairs under models named as in `audit`, and write the table to `out` (.parquet, .csv or .jsonl).

    Finished shards lie in `<out>.shards` until the table is written: the same call continues a killed one.
    options: template, eos, boundary, max_length, over_length, batch_tokens, share_prefix, states, mismatched, cache and
    progress of `score_pairs`. Raises InputError where `out` exists (unless overwrite) and for all that `score_pairs`
    refuses.
    """
    place = _free(out, overwrite, pairs)
    TextPolicy(**{name: options[name] for name in _TEXT if name in options})  # a bad value before a model is loaded
    template_file_hash(options.get("template", "auto"))
    file = read_pairs(pairs)
    check_invalid(file, max_invalid)
    adapters = [is_adapter(model) for model in (policy, reference, reward)]
    if base is not None and not any(adapters):
        raise InputError(f"--base {base}: no adapter folder among policy, reference and reward: nothing takes a base")
    subject, other = load_policy_and_reference(
        policy, reference, base=base if any(adapters[:2]) else None, dtype=dtype, device=device
    )
    judge = load_judge(reward, base=base, reference=reference, dtype=dtype, device=device)
    shards = place.with_name(f"{place.name}.shards")
    scores = score_pairs(subject, other, file, reward=judge, max_invalid=max_invalid, shards=shards, **options)
    scores.save(place)
    _remove(shards)
    return scores


def join_tables(
    policy: Named,
    reference: Named | None,
    explicit: Named | None,
    out: Named,
    *,
    max_invalid: float = 0.05,
    overwrite: bool = False,
) -> PairScores:
    """The policy's table with the reference and explicit scores of two others, written to `out`.

    Raises InputError where `out` exists (unless overwrite), for a table that lost more of its rows than the share
    max_invalid, and for tables that do not belong together: see `PairScores.with_reference` and `with_explicit`.
    """
    place = _free(out, overwrite, policy, reference, explicit)
    scores = _read(policy, max_invalid)
    if reference is not None:
        scores = scores.with_reference(_read(reference, max_invalid), max_invalid=max_invalid)
    if explicit is not None:
        scores = scores.with_explicit(_read(explicit, max_invalid), max_invalid=max_invalid)
    scores.save(place)
    return scores


def _read(table: Named, max_invalid: float) -> PairScores:
    scores = PairScores.read(table)
    require_rows(scores, str(table), max_invalid)
    return scores


_TEXT = ("template", "eos", "boundary", "max_length", "over_length")


def _free(out: Named, overwrite: bool, *read: object) -> Path:
    """The place of the table. Raises InputError where something is there that must not be lost."""
    place = Path(out)
    table_suffix(place)
    if place.is_dir():
        raise InputError(f"{place}: a folder; name a file for the table, as in {place / 'scores.parquet'}")
    if not place.exists():
        return place
    if any(isinstance(source, str | os.PathLike) and _same_file(place, Path(source)) for source in read):
        raise InputError(f"{place}: this is a file that is read; write the table to another one")
    if not overwrite:
        raise InputError(f"{place}: there already; --overwrite (overwrite=True) replaces it, or choose another name")
    return place


def _same_file(first: Path, second: Path) -> bool:
    return second.exists() and first.samefile(second)


def _remove(shards: Path) -> None:
    """Shards that are no longer needed; whatever else lies in their folder stays, and the folder with it."""
    for file in (*shards.glob("*.json"), *shards.glob(".*.tmp")):
        file.unlink(missing_ok=True)
    if shards.is_dir() and not any(shards.iterdir()):
        shards.rmdir()
