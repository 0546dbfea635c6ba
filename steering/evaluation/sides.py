"""What do the rows say of several ways to edit, in one direction? Teacher-forced KL, resampled by prompt."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import numpy as np

from ...diagnose.statistics import LEVEL
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..encoded import run_pairs
from ..reading import BATCH_TOKENS
from .candidates import Candidate
from .evaluated_rows import EvaluatedRows
from .forced import Edit, forced_kl
from .shares import DirectionShares

NO_EDIT = "no edit"


def forced_side(
    subject: Subject,
    data: EvaluatedRows,
    direction: str,
    methods: Mapping[str, Candidate],
    *,
    batch_tokens: int = BATCH_TOKENS,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
    mean_of: Mapping[str, tuple[str, ...]] | None = None,
    progress: Progress | None = None,
) -> DirectionShares:
    """KL of no edit, and of all methods that have a strength in this direction; mean_of: name -> methods averaged."""
    able = {name: one for name, one in methods.items() if one.strength(direction) is not None}
    edits: list[Edit] = [nullcontext, *(partial(one.context, subject, direction) for one in able.values())]
    read = forced_kl(subject, run_pairs(data.encoded, direction), edits, batch_tokens=batch_tokens, progress=progress)
    names, sums = [NO_EDIT, *able], read.sums.numpy()
    for name, several in (mean_of or {}).items():
        mean = sums[:, [names.index(one) for one in several]].mean(1, keepdims=True)
        names, sums = [*names, name], np.concatenate([sums, mean], axis=1)
    counts = read.n_tokens.numpy()
    return DirectionShares.resampled(names, sums, counts, data.clusters, resamples=resamples, seed=seed, level=level)
