"""Which saves does a series hold, and at which training steps? Folder names end in the step, or --steps says it."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..errors import InputError
from ..probes.checkpoint_files import locate
from ..probes.fingerprint import weights_hash
from ..probes.shards import item_key

_STEP = re.compile(r"(?:^|[-_])(?:checkpoint|step|global_step|iter|epoch)?[-_]?(\d+)$")
_NOT_IDENTITY = ("base_model_name_or_path", "_name_or_path", "transformers_version", "peft_version", "revision")
_CHILD = re.compile(r"^(checkpoint|step|global_step)[-_]?\d+$")


def save_hash(save: "Save") -> str:
    """What tells a save from one trained again in the same place: its weights and configuration, from its files.

    Raises InputError where it holds no checkpoint, before any save is read.
    """
    files = locate(save.path)
    config = {key: value for key, value in sorted(files.config.items()) if key not in _NOT_IDENTITY}
    return item_key(weights_hash(files.weights), json.dumps(config, sort_keys=True, default=str))


@dataclass(frozen=True, slots=True)
class Save:
    """A checkpoint and the training step at which it was written."""

    step: int
    path: str


def saves(folders: Sequence[str | os.PathLike[str]], steps: Sequence[int] | None = None) -> list[Save]:
    """The saves in the order of training; step 0 is the reference and not among them.

    folders: checkpoints whose names end in the step (`step_006`, `checkpoint-500`), or one folder that holds such
    folders, as a trainer leaves it. steps: the steps of `folders`, where names do not say.
    Raises InputError for a name without a step, a step that stands twice or is 0, or another number of steps.
    """
    paths = [os.fspath(folder) for folder in folders]
    if not paths:
        raise InputError("no checkpoint was given: name the saves of a run, or the folder that holds them")
    if len(paths) == 1 and steps is None:
        paths = _children(paths[0]) or paths
    if steps is None:
        numbers = [_step_of(path) for path in paths]
    else:
        if len(steps) != len(paths):
            raise InputError(f"--steps: {len(steps)} numbers for {len(paths)} checkpoints; one each is expected")
        numbers = list(steps)
    found = sorted((Save(step, path) for step, path in zip(numbers, paths, strict=True)), key=lambda save: save.step)
    if found[0].step < 1:
        raise InputError(f"{found[0].path}: step {found[0].step}; step 0 is the reference, saves come after it")
    for first, second in pairwise(found):
        if first.step == second.step:
            raise InputError(f"{first.path} and {second.path} are both step {first.step}; give --steps")
    return found


def _children(folder: str) -> list[str]:
    """Sub-folders `checkpoint-*` or `step_*` of a run folder; its final model, which trainers leave there, is none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        return []
    return [str(child) for child in sorted(path.iterdir()) if child.is_dir() and _CHILD.match(child.name)]


def _step_of(path: str) -> int:
    match = _STEP.search(Path(path).name.removesuffix(".gguf"))
    if match is None:
        raise InputError(
            f"{path}: its name does not end in a training step (as step_006 or checkpoint-500 do), and it holds no "
            "folders checkpoint-* or step_*; give --steps 6,12,..."
        )
    return int(match[1])
