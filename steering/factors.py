"""How far along its direction does a vector push? The mean coordinates of prompts with and without the concept."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError

SEPARATED = 1e-3  # of the pooled standard deviation
SCALES = ("mid", "zero")


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Mean coordinates h[p] S^T over prompts that call for the concept and that do not; in the units of h, float32.

    std: standard deviations, positive and negative. n: prompts of each kind. auroc: of the coordinate (rank 1) on
    held-out prompts, positive against negative, ties half. None where not measured.
    Raises InputError for shapes that do not fit and values that are not finite.
    """

    positive: Float[Tensor, "k"]
    negative: Float[Tensor, "k"]
    std: Float[Tensor, "2 k"] | None = None
    n: int | None = None
    auroc: float | None = None

    def __post_init__(self) -> None:
        require_shapes(self.positive, self.negative, self.std)
        parts = (self.positive, self.negative, *(() if self.std is None else (self.std,)))
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise InputError("factors hold values that are not finite")

    @property
    def mid(self) -> Float[Tensor, "k"]:
        """(f+ + f-) / 2"""
        return (self.positive + self.negative) / 2

    @property
    def half(self) -> Float[Tensor, "k"]:
        """(f+ - f-) / 2"""
        return (self.positive - self.negative) / 2

    def target(self, strength: float | int, *, scale: str = "mid") -> Float[Tensor, "k"]:
        """The coordinates to clamp to. mid: mid + strength * half, so +1 is f+ and -1 is f-.

        zero, as the released code of CDAS: |strength| times f+ or, for a negative strength, f-; +1 and -1 are the same
        in both. Here 0 is the middle, or zero; that strength 0 switches an edit off is `applied`'s business.
        Raises InputError for another scale or a strength that is not finite.

        >>> factors = Factors(torch.tensor([3.0]), torch.tensor([1.0]))
        >>> [factors.target(s).item() for s in (-2, -1, 1, 2)]
        [0.0, 1.0, 3.0, 4.0]
        >>> factors.target(2, scale="zero").item(), factors.target(-2, scale="zero").item()
        (6.0, 2.0)
        """
        if scale not in SCALES:
            raise InputError(f"scale '{scale}': expected one of {', '.join(SCALES)}")
        strength = finite(strength)
        if scale == "mid":
            return self.mid + strength * self.half
        return abs(strength) * (self.negative if strength < 0 else self.positive)

    def strength_of(self, multiplier: float | int) -> Float[Tensor, "k"]:
        """The strength (scale mid) that a strength of scale zero stands for: (m f - mid) / half, for each coordinate.

        Published multipliers are of scale zero. InputError where f+ equals f-.
        """
        if (self.half == 0).any():
            raise InputError("f+ equals f-: no strength of scale mid reaches another target")
        return (self.target(multiplier, scale="zero") - self.mid) / self.half

    def notices(self) -> tuple[str, ...]:
        """What a user should know before trusting them."""
        if self.std is None:
            return ()
        pooled = self.std.square().mean(0).sqrt()
        close = (self.positive - self.negative).abs() < SEPARATED * pooled
        return ("direction does not separate the prompts: f+ and f- are as good as equal",) if close.all() else ()

    def swapped(self) -> "Factors":
        """f+ and f- exchanged."""
        std = None if self.std is None else self.std.flip(0)
        auroc = None if self.auroc is None else 1 - self.auroc
        return Factors(self.negative, self.positive, std, self.n, auroc)

    def negated(self) -> "Factors":
        """Those of the same states along the basis -S."""
        auroc = None if self.auroc is None else 1 - self.auroc
        return Factors(0.0 - self.positive, 0.0 - self.negative, self.std, self.n, auroc)  # no negative zeros


def require_shapes(positive: Tensor, negative: Tensor, std: Tensor | None) -> None:
    """InputError unless factors are [k] and [k], their standard deviations [2, k]."""
    shape = tuple(positive.shape)
    if len(shape) != 1 or shape != tuple(negative.shape):
        raise InputError(f"factors of shapes {shape} and {tuple(negative.shape)}: expected [k] and [k]")
    if std is not None and tuple(std.shape) != (2, *shape):
        raise InputError(f"standard deviations of factors of shape {tuple(std.shape)}: expected [2, {shape[0]}]")


def finite(strength: object) -> float:
    """A number as it is, a tensor or array of one too. InputError unless it is finite; text is no number."""
    if isinstance(strength, Tensor | np.ndarray) and strength.ndim == 0:
        strength = strength.item()
    if not isinstance(strength, Real) or not abs(value := float(strength)) < float("inf"):
        raise InputError(f"strength={strength!r}: expected a finite number")
    return value


def numbers_of(strength: object) -> float | list[float]:
    """One strength, or those of a sequence, array or tensor [n]. InputError unless all are finite numbers."""
    if isinstance(strength, Tensor | np.ndarray) and strength.ndim:
        strength = strength.tolist()
    if isinstance(strength, Sequence) and not isinstance(strength, str | bytes):
        return [finite(value) for value in strength]
    return finite(strength)
