"""The base with random weights added, as large as an update: a control of a contrast, what any such change shows."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Bool

from ..errors import InputError
from ..probes.block_noise import NoiseLostError, changed_blocks, noisy_blocks
from .spinal_distance import NOT_LOGIT
from .spinal_effects import Blocks, Effects, effects
from .spinal_nulls import Control
from .spinal_reading import Folder, Progress
from .spinal_retrace import read_again, subfolder
from .spinal_trace import SpinalTrace

if TYPE_CHECKING:
    from ..probes.subject import Subject

Size = TypeVar("Size")


def noise_control(
    trace: SpinalTrace,
    subjects: "tuple[Subject, Subject] | None",
    window: Blocks,
    *,
    seeds: int,
    seed: int,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> Control:
    """The base with Gaussian noise on every matrix that training changed, as large as that change; effects a seed."""

    def moved(start: SpinalTrace, again: SpinalTrace, _: "Subject") -> tuple[Bool[np.ndarray, "N"], Effects]:
        return again.kept, effects(start, again, window)

    found = of_noise(trace, subjects, moved, seeds=seeds, seed=seed, shards=shards, progress=progress)
    if isinstance(found, str):
        return Control(name="noise", kind="noise", reason=found)
    return Control(name="noise", kind="noise", effects=tuple(one for _, one in found), kept=found[0][0])


def of_noise(
    trace: SpinalTrace,
    subjects: "tuple[Subject, Subject] | None",
    measure: "Callable[[SpinalTrace, SpinalTrace, Subject], Size]",
    *,
    seeds: int,
    seed: int,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> list[Size] | str:
    """`measure(trace of the base, trace under noise, noisy model)` of every seed, or why there is no noise control.

    Noise: Gaussian on every matrix of a block that training changed, as large as that change. One noisy trace is held
    at a time: memory does not grow with the seeds. A prompt that is not finite under one seed leaves all of them.
    """
    if subjects is None or trace.settings["lens"] != "logit":
        return "models not given" if subjects is None else NOT_LOGIT
    base, aligned = subjects
    try:
        norms = changed_blocks(base, aligned)
    except InputError as error:
        return str(error)
    if not norms:
        return "no matrix of a block changed: there is no size to match"
    kept, found = trace.kept, list[Size]()
    while len(found) < seeds:  # again from the first seed where one has lost a prompt: traces of before are gone
        number = len(found)
        folder = subfolder(shards, f"noise_{number}")
        try:
            with noisy_blocks(base, norms, seed=[seed, 7, number]) as noisy:
                again = read_again(trace, noisy, f"noise seed {number}", kept, folder, progress)
                if isinstance(again, str):
                    return again
                if (again.kept == kept).all():
                    found.append(measure(trace, again, noisy))
                else:
                    kept, found = again.kept, []
                    trace = trace.restricted(kept)
                del again  # its rows, before the next trace is made
        except NoiseLostError as error:
            return str(error)
    return found
