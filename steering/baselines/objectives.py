"""What is a vector trained to do to given responses? The losses of the trained baselines, in nats."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..runs import Edits, Runs
from .choices import Choices

Steering = Callable[[Tensor], Edits]  # strengths [B], one a run -> edits


@runtime_checkable
class Objective(Protocol):
    """Rows of quadruples, and what edits make of them."""

    @property
    def directions(self) -> tuple[str, ...]: ...

    def losses(self, rows: Sequence[int], factors: Tensor) -> Iterator[Tensor]:
        """For each direction, in order, values whose mean counts; factors [B]: the strength of each row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LanguageLoss:
    """-log pi(y_c | x) under the edits, a value a response token."""

    runs: Runs
    steering: Steering
    directions: tuple[str, ...] = ("elicit",)

    def losses(self, rows: Sequence[int], factors: Float[Tensor, "B"]) -> Iterator[Tensor]:
        yield -torch.cat(self.runs.token_log_probs(self.steering(factors), rows))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BidirectionalPreference:
    """BiPO, behind x: y_c over y at strength +1, y over y_c at -1; a value a row. Source: arXiv 2406.00045."""

    choices: Choices
    steering: Steering
    beta: float | int
    directions: tuple[str, ...] = ("elicit", "suppress")

    def losses(self, rows: Sequence[int], factors: Float[Tensor, "B"]) -> Iterator[Tensor]:
        shown, plain = self.choices.reference[:, rows]
        for name in self.directions:
            sign = 1 if name == "elicit" else -1
            found = self.choices.log_probs(self.steering(sign * factors.repeat(2)), rows)
            if name == "elicit":
                yield dpo_loss(found[0], found[1], shown, plain, beta=self.beta)
            else:
                yield dpo_loss(found[1], found[0], plain, shown, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceFreePreference:
    """RePS: behind x y_c over y under h + a v, behind x_c y over y_c under the removal; arXiv 2505.20809."""

    choices: Mapping[str, Choices]  # of each direction
    steering: Steering
    removing: Callable[[], Edits]

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(self.choices)

    def losses(self, rows: Sequence[int], factors: Float[Tensor, "B"]) -> Iterator[Tensor]:
        for name, pairs in self.choices.items():
            found = pairs.log_probs(self.steering(factors.repeat(2)) if name == "elicit" else self.removing(), rows)
            yield reps_loss(*found, *pairs.reference[:, rows], *pairs.lengths[:, rows])


def dpo_loss(
    wanted: Float[Tensor, "n"],
    other: Float[Tensor, "n"],
    reference_wanted: Float[Tensor, "n"],
    reference_other: Float[Tensor, "n"],
    *,
    beta: float | int,
) -> Float[Tensor, "n"]:
    """-log sigmoid(beta ((wanted - reference_wanted) - (other - reference_other))), of summed log-probabilities, nats.

    log 2 where nothing has changed. Differentiable; of tables, see diagnose/objective_losses.py. arXiv 2305.18290.
    """
    return -logsigmoid(beta * ((wanted - reference_wanted) - (other - reference_other)))


def reps_loss(
    wanted: Float[Tensor, "n"],
    other: Float[Tensor, "n"],
    reference_wanted: Float[Tensor, "n"],
    reference_other: Float[Tensor, "n"],
    n_wanted: Float[Tensor, "n"],
    n_other: Float[Tensor, "n"],
) -> Float[Tensor, "n"]:
    """-log sigmoid(max(reference_other - reference_wanted, 1) / n_wanted * wanted - other / n_other).

    Summed log-probabilities, nats; n: tokens. The wanted response weighs more, the more the unsteered model prefers the
    other. Formula from the code of arXiv 2505.20809.
    """
    weight = (reference_other - reference_wanted).clamp(min=1.0)
    return -logsigmoid(weight / n_wanted * wanted - other / n_other)
