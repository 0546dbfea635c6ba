"""How does a vector elicit, and how does it suppress? The strength that each direction is tried at."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ...errors import InputError
from ...probes.subject import Subject
from ..encoded import DIRECTIONS
from ..factors import finite
from ..sets import SteeringSet

ELICIT, SUPPRESS = WAYS = tuple(name for name in DIRECTIONS if name != "both")
DEFAULT: Mapping[str, float] = {ELICIT: 1.0, SUPPRESS: -1.0}  # f+ and f- of a clamp

Strengths = Mapping[str, float | int | None] | float | int


@runtime_checkable
class Steering(Protocol):
    """What can be evaluated: SteeringVector, SteeringSet, or another object that can be put on a model."""

    def applied(self, subject: Subject, strength: Any, /) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A vector, and its strength in either direction, in its own scale; None: it does not work in that direction.

    Raises InputError for a strength that is not finite, and where both are None.
    """

    vector: Steering
    elicit: float | int | None = DEFAULT[ELICIT]
    suppress: float | int | None = DEFAULT[SUPPRESS]

    def __post_init__(self) -> None:
        if self.elicit is None and self.suppress is None:
            raise InputError("a vector with a strength in neither direction: expected at least one")
        for strength in (self.elicit, self.suppress):
            if strength is not None:
                finite(strength)

    @classmethod
    def of(cls, vector: "Steering | Candidate", strengths: Strengths | None = None) -> "Candidate":
        """strengths: {"elicit": ..., "suppress": ...}, or one number s for s and -s; None: 1 and -1.

        InputError for other names.
        """
        if isinstance(vector, Candidate):
            return vector
        if strengths is None:
            return cls(vector=vector)
        if not isinstance(strengths, Mapping):
            return cls(vector=vector, elicit=strengths, suppress=-strengths)
        if unknown := [name for name in strengths if name not in WAYS]:
            raise InputError(f"strengths of {', '.join(unknown)}: expected {' and '.join(WAYS)}")
        return cls(vector=vector, elicit=strengths.get(ELICIT), suppress=strengths.get(SUPPRESS))

    def strength(self, direction: str) -> float | None:
        """What was asked for in this direction; None where the vector has none.

        An ablation takes away, so it suppresses, with strength 1 (0: off), and elicits nothing.
        """
        asked = self.elicit if direction == ELICIT else self.suppress
        own = [_own(vector, direction, asked) for vector in _vectors(self.vector)]
        if all(strength is None for strength in own):
            return None
        return own[0] if len({*own}) == 1 else asked  # of a set: what all its vectors are set to

    def context(self, subject: Subject, direction: str) -> AbstractContextManager[None]:
        """The model steered in this direction. InputError as `applied`, and where there is no strength."""
        asked = self.elicit if direction == ELICIT else self.suppress
        own = [_own(vector, direction, asked) for vector in _vectors(self.vector)]
        if all(strength is None for strength in own):
            raise InputError(f"no strength to {direction} with: {self.absent(direction)}")
        if isinstance(self.vector, SteeringSet):
            return self.vector.applied(subject, [strength or 0.0 for strength in own])
        return self.vector.applied(subject, own[0])

    def absent(self, direction: str) -> str:
        """Why there is no strength in a direction."""
        asked = self.elicit if direction == ELICIT else self.suppress
        return "no strength was given" if asked is None else f"an ablation takes away and cannot {direction}"

    def exchanged(self) -> "Candidate | None":
        """The vector at the strengths of the other direction, the control of its sign; None of one that is one-way."""
        if any(self.strength(name) is None for name in WAYS):
            return None
        return Candidate(vector=self.vector, elicit=self.suppress, suppress=self.elicit)

    @property
    def one_way(self) -> str | None:
        """The label of a vector that was made for one direction only; None of others."""
        made = [name for name in WAYS if self.strength(name) is not None]
        if len(made) == 1:
            return f"one-way: {made[0]} only"
        trained = {settings_of(vector).get("directions", "both") for vector in _vectors(self.vector)}
        return f"one-way: trained to {trained.pop()} only" if len(trained) == 1 and not trained & {"both"} else None


def settings_of(vector: Steering) -> Mapping[str, Any]:
    """What a vector says of how it was made; empty of one from elsewhere."""
    return metadata_of(vector).get("settings") or {}


def metadata_of(vector: Steering) -> Mapping[str, Any]:
    """Its metadata; empty where it has none."""
    metadata: Mapping[str, Any] = getattr(vector, "metadata", {})
    return metadata


def first_vector(vector: Steering) -> Steering:
    """The vector itself; of a set its first."""
    return _vectors(vector)[0]


def _vectors(vector: Steering) -> Sequence[Steering]:
    return vector.vectors if isinstance(vector, SteeringSet) else [vector]


def _own(vector: Steering, direction: str, asked: float | int | None) -> float | None:
    if asked is None or getattr(vector, "edit", None) != "ablate":
        return None if asked is None else float(asked)
    return None if direction == ELICIT else float(asked != 0)
