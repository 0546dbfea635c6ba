"""What is a model called in a sentence or a legend? Its path stands in the manifest; here it has to be read."""

import re
from collections.abc import Sequence
from pathlib import PurePath

from ..errors import InputError

_SAVES = re.compile(r"(step|checkpoint|epoch|iter|global_step)[-_]?\d+|final|last|best|adapter|model", re.IGNORECASE)


def short_name(name: str) -> str:
    """The last part of a path, with the folder above it where the last part alone names only a save.

    >>> short_name("runs/zephyr/dpo/step_100"), short_name("/models/SmolLM2.Q4_1.gguf"), short_name("org/model-1B")
    ('dpo/step_100', 'SmolLM2.Q4_1.gguf', 'model-1B')
    """
    parts = PurePath(name.replace("\\", "/")).parts
    if not parts:
        return name
    kept = 2 if len(parts) > 1 and _SAVES.fullmatch(parts[-1]) and parts[-2] != "/" else 1
    return "/".join(parts[-kept:])


def asked_for(only: Sequence[str] | str | None, known: Sequence[str]) -> list[str] | None:
    """Names of sections, of a list or between commas; None for all. Raises InputError for one that is not known."""
    if only is None:
        return None
    names = [name.strip() for name in only.split(",")] if isinstance(only, str) else list(only)
    unknown = sorted({*names} - {*known})
    if unknown or not names:
        raise InputError(f"--only {','.join(unknown)}: no such section; choose from {', '.join(known)}")
    return names
