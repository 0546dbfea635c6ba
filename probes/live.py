"""Measure a live module and leave it as it was found: mode, requires_grad, adapter state."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside (dropout off); afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def adapter_off(peft_model: Any) -> Iterator[None]:
    """The base model inside. Switching sets requires_grad of the adapter's tensors, which is put back."""
    needs_grad = [(parameter, parameter.requires_grad) for parameter in peft_model.parameters()]
    try:
        with peft_model.disable_adapter():
            yield
    finally:
        for parameter, needed in needs_grad:
            parameter.requires_grad_(needed)
