"""The span along which an edit acts: an orthonormal basis, whatever the rows it was made of."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..probes.anatomy import at_least_float32
from ..probes.kernels.eager import exact_products

DEFICIENT = 1e-6  # of the largest singular value
ORTHONORMAL = 1e-5  # max |S S^T - I|


class Subspace:
    """A k-dimensional subspace of the residual stream, as orthonormal rows `basis` [k, d], float32.

    Made of any k linearly independent rows (one row may come as [d]): QR of weight^T with the signs of R's diagonal
    positive, so that the first row keeps its direction. Raises ValueError, with the singular values, for rows that are
    not independent (smallest below 1e-6 of the largest) or more than d; for values that are not finite.

    >>> Subspace(torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])).basis
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """

    basis: Tensor  # [k, d]

    def __init__(self, weight: Float[Tensor, "k d"] | Float[Tensor, "d"]) -> None:
        self.basis = _orthonormal_rows(weight.detach().reshape(-1, weight.shape[-1]))

    @classmethod
    def orthonormal(cls, basis: Float[Tensor, "k d"], *, tolerance: float = ORTHONORMAL) -> "Subspace":
        """The subspace of rows that are orthonormal already: taken to the bit, with their gradient.

        Raises ValueError where max |S S^T - I| is above `tolerance`.
        """
        if not torch.isfinite(basis).all():
            raise ValueError("a basis with values that are not finite")
        off = float((basis @ basis.T - torch.eye(len(basis)).to(basis)).detach().abs().max())
        if off > tolerance:
            raise ValueError(f"rows are not orthonormal: max |S S^T - I| is {off:.3g}, expected at most {tolerance:g}")
        found = object.__new__(cls)
        found.basis = basis.float()
        return found

    def __repr__(self) -> str:
        return f"Subspace(rank {self.rank} of {self.width})"

    @property
    def rank(self) -> int:
        """k"""
        return self.basis.shape[0]

    @property
    def width(self) -> int:
        """d"""
        return self.basis.shape[1]

    def project(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """Coordinates h S^T in the basis, float32 or wider; in the units of h. ValueError for another width."""
        require_width(h, self.width)
        wide = at_least_float32(h)
        with exact_products(h.device):
            return wide @ self.basis.to(wide).T

    def cosine(self, other: "Subspace") -> float:
        """Largest |cos| of a direction in one with a direction in the other: the top singular value of S1 S2^T."""
        require_width(other.basis, self.width)
        return float(torch.linalg.matrix_norm(self.basis.detach() @ other.basis.detach().T, ord=2).clamp(max=1.0))


def require_width(h: Tensor, width: int) -> None:
    """ValueError unless the last axis has `width`."""
    if h.shape[-1] != width:
        raise ValueError(f"hidden states of shape {tuple(h.shape)}: expected a width of {width}")


def _orthonormal_rows(weight: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    k, d = weight.shape
    if not torch.isfinite(weight).all():
        raise ValueError(f"weight of shape {(k, d)} holds values that are not finite")
    if k == 0:
        raise ValueError("a subspace needs at least one row")
    values = torch.linalg.svdvals(weight.double())
    if k > d or values[-1] <= DEFICIENT * values[0]:
        shown = ", ".join(f"{value:.3g}" for value in values.tolist())
        raise ValueError(f"{k} rows of width {d} are not linearly independent; their singular values: {shown}")
    q, r = torch.linalg.qr(weight.double().T)
    return (q * r.diagonal().sign()).T.float().contiguous() + 0.0  # no negative zeros
