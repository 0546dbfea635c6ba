"""Put a vector on its model many times, and ask once whether it belongs there: of a live model that hashes weights."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ...errors import InputError
from ...probes.subject import Subject
from ..affine import AffineSteering
from ..lora import LoraSteering
from ..sets import SteeringSet
from ..vector import SteeringVector

Undirected = AffineSteering | LoraSteering  # on or off, and no direction of hidden states
Steering = SteeringVector | SteeringSet | Undirected
Applied = Callable[[float | int | Sequence[float]], AbstractContextManager[None]]


def applying(subject: Subject, vector: Steering | None, **options: Any) -> Applied:
    """strength -> the context in which the subject is steered, as `vector.applied`; None: never.

    options: neutral, scale, mode of a clamp; neutral acts at strength 0 too. Raises InputError where the vector does
    not belong on the subject, and for options of a set.
    """
    if vector is None:
        return lambda strength: subject.editing({})
    if not isinstance(vector, SteeringVector):
        if options:
            raise InputError(f"{', '.join(options)}: options of one clamp, and this is {vector!r}")
        several = vector
        return lambda strength: several.applied(subject, strength)
    one = vector
    one.applied(subject, 0)  # refuses what does not fit

    def applied(strength: float | int | Sequence[float]) -> AbstractContextManager[None]:
        edit = one.edit_for(strength, **options)
        off = not options.get("neutral") and not isinstance(strength, Sequence) and strength == 0
        return subject.editing({} if off else {one.site: edit})

    return applied
