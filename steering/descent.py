"""The steps under every trained vector: AdamW, a rate that falls to 0 at the last of them, clipped gradients."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..probes.shards import DETAIL, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """An entry a step: the loss of its minibatch before it, and the norm of the gradient before the clip."""

    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]

    def history(self) -> list[dict[str, float | int]]:
        """For SteeringVector.history."""
        return [
            {"step": step, "loss": loss, "gradient_norm": norm}
            for step, (loss, norm) in enumerate(zip(self.losses, self.gradient_norms, strict=True), start=1)
        ]


def descend(
    parameters: Sequence[Tensor],
    terms: Callable[[Tensor], Iterable[Tensor]],
    batches: Sequence[Tensor],
    *,
    lr: float | int,
    grad_clip: float | int,
    stage: str,
    retract: Callable[[], None] | None = None,
    observe: Callable[[int], bool | None] | None = None,
    progress: Progress | None = None,
) -> Descent:
    """Minimise the sum of `terms(rows)`, whose graphs live one after the other; one step for the rows of each batch.

    AdamW without weight decay, rate lr (1 - step / steps), norm of the whole gradient clipped at grad_clip. `.grad` is
    written on the parameters alone. retract: called after every step, without gradient, to bring them back to what they
    have to be. observe(step): before the first step (0) and after each one; True ends the descent. progress: told the
    loss too.
    Raises ValueError where a loss or a gradient is not finite.
    """
    steps = len(batches)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses: list[float] = []
    norms: list[float] = []
    if observe is not None:
        observe(0)
    for step, rows in enumerate(batches, start=1):
        losses.append(_gradient(parameters, terms, rows))
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, float(grad_clip))))
        if not math.isfinite(losses[-1] + norms[-1]):
            found = f"loss {losses[-1]:g}, gradient norm {norms[-1]:g}"
            raise ValueError(f"{found} at step {step} of {steps}: lower lr ({lr:g}), or look at what readout gives")
        optimizer.step()
        schedule.step()
        if retract is not None:
            with torch.no_grad():
                retract()
        ends = observe is not None and observe(step)
        if progress is not None:
            progress(f"{stage}{DETAIL}loss {losses[-1]:.3g}", step, step if ends else steps)
        if ends:
            break
    return Descent(losses=tuple(losses), gradient_norms=tuple(norms))


def _gradient(parameters: Sequence[Tensor], terms: Callable[[Tensor], Iterable[Tensor]], rows: Tensor) -> float:
    """The sum of the terms; its gradient is put on the parameters, of the model none gets one."""
    value = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with torch.enable_grad():
        for term in terms(rows):
            for parameter, gradient in zip(parameters, torch.autograd.grad(term, parameters), strict=True):
                assert parameter.grad is not None
                parameter.grad += gradient
            value += term.item()
    return value


def required_settings(*, lr: float | int, grad_clip: float | int, epochs: int, batch_size: int) -> dict[str, Any]:
    """By name. InputError for a rate or a clip that is no number above 0, epochs or batch_size that are no count."""
    for name, value in (("lr", lr), ("grad_clip", grad_clip)):
        if not isinstance(value, Real) or not 0 < value < math.inf:
            raise InputError(f"{name}={value}: expected a number above 0")
    for name, count in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(count, Integral) or count < 1:
            raise InputError(f"{name}={count}: expected 1 or more, a whole number")
    return {"lr": lr, "epochs": int(epochs), "batch_size": int(batch_size), "grad_clip": grad_clip}
