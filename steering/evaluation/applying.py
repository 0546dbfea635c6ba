"""Put a vector on its model many times, and ask once whether it belongs there: of a live model that hashes weights."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from ...probes.subject import Subject
from ..sets import SteeringSet
from ..vector import SteeringVector

Steering = SteeringVector | SteeringSet
Applied = Callable[[float | int | Sequence[float]], AbstractContextManager[None]]


def applying(subject: Subject, vector: Steering | None) -> Applied:
    """strength -> the context in which the subject is steered, as `vector.applied`; None: never.

    Raises InputError where the vector does not belong on the subject.
    """
    if vector is None:
        return lambda strength: subject.editing({})
    if isinstance(vector, SteeringSet):
        several = vector
        return lambda strength: several.applied(subject, strength)
    one = vector
    one.applied(subject, 0)  # refuses what does not fit

    def applied(strength: float | int | Sequence[float]) -> AbstractContextManager[None]:
        edit = one.edit_for(strength)
        return subject.editing({} if not isinstance(strength, Sequence) and strength == 0 else {one.site: edit})

    return applied
