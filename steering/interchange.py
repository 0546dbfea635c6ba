"""What does the model say when coordinates of its hidden states come from another run? Rows for training and testing.

Everything that needed the model is in tensors, but for `readout`, which runs the blocks above the edited ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .edits import Interchange
from .losses import token_losses, token_weights
from .subspace import Subspace

Readout = Callable[[Tensor, Tensor], Tensor]  # (states[B, T, d], rows[B]) -> logits[B, R, V] of the response tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InterchangeRows:
    """Base runs, and what they should come to say: one row a pair of runs with the same response.

    base [N, T, d]: states of the base run, right-padded; source [N, d]: the source run's state at its one position;
    edit_mask [N, T]: base positions that are edited; target_logits [N, R, V]: the unedited source run's logits of the
    response tokens; response_mask [N, R]: which of them there are; tokens [N, R]: their ids, for the loss "ce".
    Raises ValueError for shapes that do not fit, values that are no numbers, rows with nothing to edit or to read.
    """

    base: Float[Tensor, "N T d"]
    source: Float[Tensor, "rows width"]
    edit_mask: Bool[Tensor, "rows2 columns"]
    target_logits: Float[Tensor, "rows3 R V"]
    readout: Readout
    response_mask: Bool[Tensor, "rows4 R4"]
    tokens: Int[Tensor, "rows5 R5"] | None = None

    def __post_init__(self) -> None:
        n, t, d = self.base.shape
        r = self.target_logits.shape[1]
        expected = {"source": (n, d), "edit_mask": (n, t), "response_mask": (n, r), "tokens": (n, r)}
        shapes = {name: tuple(value.shape) for name in expected if (value := getattr(self, name)) is not None}
        for name, shape in shapes.items():
            if shape != expected[name]:
                raise ValueError(f"{name} of shape {shape}, expected {expected[name]} beside base {(n, t, d)}")
        if len(self.target_logits) != n or n == 0:
            raise ValueError(f"target_logits {tuple(self.target_logits.shape)} for {n} rows of base: expected as many")
        for name, values in (("base", self.base), ("source", self.source)):
            if not torch.isfinite(values).all():
                raise ValueError(f"{name} holds values that are not finite")
        if not (self.target_logits[self.response_mask] < torch.inf).all():  # -inf: a token that is masked
            raise ValueError("target_logits hold NaN or infinity")
        for name, mask in (("edited position", self.edit_mask), ("response token", self.response_mask)):
            if not mask.any(-1).all():
                raise ValueError(f"row {int((~mask.any(-1)).nonzero()[0])} has no {name}")

    def __len__(self) -> int:
        return len(self.base)

    def token_losses(self, subspace: Subspace | None, rows: Int[Tensor, "B"], loss: str) -> Float[Tensor, "n"]:
        """The loss of each response token of these rows, in order, nats; None: of the unedited base run.

        Edited states are h_b + (h_s S^T - h_b S^T) S; the gradient reaches S.
        """
        states, real = self.base[rows], self.response_mask[rows]
        if subspace is not None:
            states = Interchange(subspace, self.source[rows])(states, self.edit_mask[rows])
        logits = self.readout(states, rows)
        expected = (len(rows), *self.target_logits.shape[1:])
        if logits.shape != expected:
            raise ValueError(f"readout gave logits {tuple(logits.shape)}, expected {expected} [B, R, V]")
        tokens = None if self.tokens is None else self.tokens[rows][real]
        return token_losses(loss, logits[real], self.target_logits[rows][real], tokens)

    def weights(self, rows: Int[Tensor, "B"], reduction: str) -> Float[Tensor, "n"]:
        """What each of these rows' response tokens counts in the minibatch's mean; see losses.token_weights."""
        return token_weights(self.response_mask[rows], reduction)

    def row_losses(
        self, subspace: Subspace | None, loss: str = "kl_source", *, batch_size: int = 64
    ) -> Float[Tensor, "N"]:
        """Mean loss of every row over its response tokens, nats, float64; without gradient."""
        found = []
        with torch.no_grad():
            for rows in self._batches(batch_size):
                counts = self.response_mask[rows].sum(-1)
                owner = torch.arange(len(rows), device=counts.device).repeat_interleave(counts)
                values = self.token_losses(subspace, rows, loss).double()
                found.append(values.new_zeros(len(rows)).index_add_(0, owner, values) / counts)
        return torch.cat(found)

    def _batches(self, size: int) -> Iterator[Tensor]:
        return iter(torch.arange(len(self), device=self.base.device).split(size))
