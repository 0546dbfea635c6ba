"""What is done to a hidden state: add a vector, or set its coordinates in a subspace.

Rows of h are hidden states [..., d]; S [k, d] orthonormal. Arithmetic in float32 or wider, cast back at the end; the
result is a new tensor, equal to h to the bit where `where` is False.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..probes.anatomy import at_least_float32
from ..probes.fingerprint import state_hash
from ..probes.kernels.eager import exact_products
from ..probes.shards import item_key
from ..probes.subject import EditPositions
from ..probes.token_positions import per_row
from .positions import Positions
from .subspace import Subspace, require_width

MODES = ("set", "min", "max")
Rows = Bool[Tensor, "B"] | None  # rows of the batch that are edited; None: all


def clamped(
    h: Float[Tensor, "*batch d"], basis: Float[Tensor, "k d"], target: Float[Tensor, "*rows k"]
) -> Float[Tensor, "*batch d"]:
    """h + (target - h S^T) S: coordinates in S become `target`, the orthogonal part stays. Differentiable.

    target broadcasts against h S^T [..., k]. arXiv 2602.05234.
    """
    return h + (target - h @ basis.T) @ basis


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """h + strength * vector. strength: a number, or [B], one a row of the batch."""

    vector: Float[Tensor, "d"]
    strength: float | int | Float[Tensor, "B"] = 1.0
    positions: EditPositions = field(default_factory=Positions)
    rows: Rows = None

    def __post_init__(self) -> None:
        _require_finite(self.vector, "vector")

    @property
    def key(self) -> str:
        return _key(self, strength=self.strength, vector=self.vector)

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        require_width(h, len(self.vector))

        def shifted(wide: Tensor) -> Tensor:
            strength = self.strength
            if isinstance(strength, Tensor):
                strength = _beside(strength[:, None].to(wide), wide)
            return wide + strength * self.vector.to(wide)

        return _applied(h, where, self.rows, shifted)


@dataclass(frozen=True, slots=True, eq=False)
class Clamp:
    """h + (f - h S^T) S: the coordinates of h in S become f [k], or f [B, k], one a row of the batch; idempotent.

    mode: "set", or of rank 1 "min" (only raises a coordinate to f) or "max" (only lowers it) [reconstructed].
    Raises ValueError for f of another shape or not finite, and for "min" and "max" of a higher rank.
    """

    subspace: Subspace
    target: float | int | Float[Tensor, "k"] | Float[Tensor, "B k"]
    mode: str = "set"
    positions: Positions = field(default_factory=Positions)
    rows: Rows = None

    def __post_init__(self) -> None:
        target, rank = torch.as_tensor(self.target), self.subspace.rank
        _require_finite(target, "target")
        if (target.shape[-1] if target.ndim else 1) != rank or target.ndim > 2:
            raise ValueError(f"target of shape {tuple(target.shape)}: expected [{rank}] or [rows, {rank}]")
        if self.mode not in MODES:
            raise ValueError(f"mode '{self.mode}': expected one of {', '.join(MODES)}")
        if self.mode != "set" and rank != 1:
            raise ValueError(f"mode '{self.mode}' orders coordinates, so it is for rank 1, got rank {rank}")

    @property
    def key(self) -> str:
        return _key(self, mode=self.mode, basis=self.subspace.basis, target=torch.as_tensor(self.target))

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        require_width(h, self.subspace.width)

        def moved(wide: Tensor) -> Tensor:
            basis = self.subspace.basis.to(wide)
            target = _beside(torch.as_tensor(self.target).reshape(*self._shape()).to(wide), wide)
            if self.mode != "set":
                choose = torch.maximum if self.mode == "min" else torch.minimum
                target = choose(wide @ basis.T, target)
            return clamped(wide, basis, target)

        return _applied(h, where, self.rows, moved)

    def as_affine(self) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d"]]:
        """(I - S^T S, f S): h matrix + bias is the clamped h, for engines that know affine maps only; float32.

        ValueError for "min" and "max", which are not affine, and for a target a row.
        """
        if self.mode != "set" or torch.as_tensor(self.target).ndim > 1:
            raise ValueError("only a clamp that sets one target for all rows is one affine map")
        basis = self.subspace.basis
        target = torch.as_tensor(self.target).reshape(-1).to(basis)
        return torch.eye(self.subspace.width).to(basis) - basis.T @ basis, target @ basis

    def _shape(self) -> tuple[int, ...]:
        target = torch.as_tensor(self.target)
        return tuple(target.shape) if target.ndim else (1,)


@dataclass(frozen=True, slots=True, eq=False)
class Ablate:
    """h - (h S^T) S: coordinates in S become 0. Clamp at 0."""

    subspace: Subspace
    positions: Positions = field(default_factory=Positions)
    rows: Rows = None

    @property
    def key(self) -> str:
        return self._clamp().key

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        return self._clamp()(h, where)

    def _clamp(self) -> Clamp:
        zero = torch.zeros(self.subspace.rank)
        return Clamp(self.subspace, zero, positions=self.positions, rows=self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Interchange:
    """h + (s S^T - h S^T) S: coordinates in S become those of another run's state s; source [B, d], one a row, or [d].

    Clamp with a target from another run. Gradient reaches S through both projections.
    """

    subspace: Subspace
    source: Float[Tensor, "B d"] | Float[Tensor, "d"]
    positions: Positions = field(default_factory=Positions)
    rows: Rows = None

    def __post_init__(self) -> None:
        require_width(self.source, self.subspace.width)

    @property
    def key(self) -> str:
        return self._clamp().key

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        return self._clamp()(h, where)

    def _clamp(self) -> Clamp:
        target = self.subspace.project(self.source)
        return Clamp(self.subspace, target, positions=self.positions, rows=self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """h + (h W^T + b - h S^T) S: coordinates in S become an affine function of h. Source: LoReFT, arXiv 2404.03592.

    weight: W [k, d]; bias: b [k]. W = S, b = 0 changes nothing; W = 0 is a clamp at b.
    """

    subspace: Subspace
    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, "k"]
    positions: EditPositions = field(default_factory=Positions)
    rows: Rows = None

    def __post_init__(self) -> None:
        k, d = self.subspace.rank, self.subspace.width
        if self.weight.shape != (k, d) or self.bias.shape != (k,):
            found = f"{tuple(self.weight.shape)} and {tuple(self.bias.shape)}"
            raise ValueError(f"weight and bias of shapes {found}: expected [{k}, {d}] and [{k}]")
        _require_finite(self.weight, "weight")
        _require_finite(self.bias, "bias")

    @property
    def key(self) -> str:
        return _key(self, basis=self.subspace.basis, weight=self.weight, bias=self.bias)

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        require_width(h, self.subspace.width)

        def moved(wide: Tensor) -> Tensor:
            target = wide @ self.weight.to(wide).T + self.bias.to(wide)
            return clamped(wide, self.subspace.basis.to(wide), target)

        return _applied(h, where, self.rows, moved)


def _applied(h: Tensor, where: Bool[Tensor, "*batch"] | None, rows: Rows, change: Callable[[Tensor], Tensor]) -> Tensor:
    """change(h in float32 or wider), cast back, where and in the rows in which it is wanted."""
    with exact_products(h.device):
        new = change(at_least_float32(h)).to(h.dtype)
    if rows is not None:
        if h.ndim < 2:
            raise ValueError(f"rows to edit, and one hidden state of shape {tuple(h.shape)}")
        asked = per_row(rows.to(h.device), len(h), "rows to edit").reshape(-1, *[1] * (h.ndim - 2))
        where = asked.expand(h.shape[:-1]) if where is None else where & asked
    return new if where is None else torch.where(where[..., None], new, h)


def _beside(value: Tensor, h: Tensor) -> Tensor:
    """A value [B, k] a row of the batch h [B, ..., d], in the shape that broadcasts; [k] as it is."""
    if value.ndim == 1:
        return value
    if h.ndim == 1:
        if len(value) > 1:
            raise ValueError(f"values for {len(value)} rows, and one hidden state of shape {tuple(h.shape)}")
        return value[0]
    value = per_row(value, len(h), "an edit with values")
    return value.reshape(len(h), *[1] * (h.ndim - 2), value.shape[-1])


def _require_finite(value: Tensor, name: str) -> None:
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} of shape {tuple(value.shape)} holds values that are not finite")


def _key(edit: Any, **parts: Any) -> str:
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    if edit.rows is not None:
        tensors["rows"] = edit.rows
    plain = {name: part for name, part in parts.items() if not isinstance(part, Tensor)}
    return item_key(type(edit).__name__, state_hash(tensors), plain, repr(edit.positions))
