"""A run in steps: what each save changed since the reference and since the save before, over the same histories."""

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..probes.histories import bucket_names
from ..probes.policy import load_control
from ..probes.vocabulary import require_same_tokenizer
from .information_analysis import Resampling, update_rows
from .information_reading import InformationReading
from .information_sides import Side
from .information_turns import BothRead
from .naming import short_name

if TYPE_CHECKING:
    from ..probes.subject import Subject

UPDATES = ["from", "to", "source", "bucket", "measure", "value", "low", "high", "n", "n_prompts", "unit", "reason"]


def chain_updates(
    via: "Mapping[str, str | os.PathLike[str] | Subject]",
    base: "str | os.PathLike[str] | None",
    both: BothRead,
    main: InformationReading,
    folder: Path,
    resampling: Resampling,
) -> pd.DataFrame:
    """Rates of reference -> each save, of each save -> the next, and of reference -> policy; no row without saves.

    By bucket of positions too; rates of steps do not add up.
    """
    models, reading = both.models, both.reading
    first, last = short_name(both.reference.name), short_name(models.policy.name)
    if first == last:  # two live models of one class
        first, last = "reference", "policy"
    names = bucket_names(reading.buckets)
    rows: list[dict[str, Any]] = []
    before: tuple[str, Side] | None = None
    for name, checkpoint in via.items():
        subject = load_control(
            checkpoint, _under(both.reference), base=base, dtype=models.policy.dtype, device=models.policy.device
        )
        require_same_tokenizer(both.reference, subject)
        side = reading.read(subject, folder / f"via_{name}")
        rows += update_rows(reading.between(side, both.theirs).positions, first, name, resampling, names)
        if before is not None:
            rows += update_rows(reading.between(side, before[1]).positions, before[0], name, resampling, names)
            before[1][0].delete()
        before = name, side
        del subject
        gc.collect()
    if before is not None:
        rows += update_rows(reading.between(both.ours, before[1]).positions, before[0], last, resampling, names)
        before[1][0].delete()
        rows += update_rows(main.positions, first, last, resampling, names)
    return pd.DataFrame(rows, columns=UPDATES)


def _under(reference: "Subject") -> str | None:
    """What an adapter among the saves is on, where nothing else says so: the reference, or its base; else None."""
    if reference.facts.get("source") == "live model":
        return None
    return reference.facts.get("base") or reference.name
