"""Which models can one module be? Its adapter on, off, or another one in its place: one set of weights, no copy.

TRL keeps the adapter that training continued under the name `ref`, beside the trained one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import InputError
from .subject import Fingerprint

TRL_REFERENCE = "ref"  # what TRL calls its frozen copy of the starting adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterState:
    """A model that shares its module with another one: how to switch to it, and which model it then is."""

    name: str
    fingerprints: Fingerprint | Callable[[], Fingerprint]  # of a live model a function
    facts: dict[str, Any]  # about its adapter
    switch: Callable[[], AbstractContextManager[None]]  # inside, the module is this model


def off(peft_model: Any, *, name: str, adapter: Any, fingerprints: Any) -> AdapterState:
    """The base model under `adapter`."""
    facts = {"adapter": None, "adapter_switched_off": adapter}
    return AdapterState(name=name, fingerprints=fingerprints, facts=facts, switch=partial(_off, peft_model))


def in_place(peft_model: Any, adapter: str, *, name: str, fingerprints: Any, facts: dict[str, Any]) -> AdapterState:
    """The base model with `adapter` on it, in place of the one that is active; see `require_adapter`."""
    return AdapterState(
        name=name,
        fingerprints=fingerprints,
        facts=facts | {"adapter_in_place": adapter},
        switch=partial(_in_place, peft_model, adapter),
    )


def require_adapter(peft_model: Any, adapter: str) -> None:
    """Raises InputError where there is no such adapter, it is the active one, or the base is not what it was."""
    known = sorted(peft_model.peft_config)
    if adapter not in known:
        raise InputError(f"adapter:{adapter}: no such adapter on the model; those there are: {', '.join(known)}")
    if adapter in peft_model.active_adapters:
        raise InputError(f"adapter:{adapter}: this is the active adapter, the policy itself; name another one")
    _require_unmerged(peft_model, adapter)
    biased = [name for name in known if getattr(peft_model.peft_config[name], "bias", "none") != "none"]
    if biased:
        raise InputError(
            f"adapter:{adapter}: adapter {biased[0]} trained biases of the base, which both would share; load the two "
            "apart (--reference FOLDER)"
        )


def is_merged(peft_model: Any) -> bool:
    """Whether an adapter is in the weights themselves."""
    return any(getattr(module, "merged", False) for module in peft_model.modules())


@contextmanager
def _off(peft_model: Any) -> Iterator[None]:
    with _gradients_as_found(peft_model), peft_model.disable_adapter():
        yield


@contextmanager
def _in_place(peft_model: Any, adapter: str) -> Iterator[None]:
    """Every layer goes back to the adapters it had, which need not be the same in all of them."""
    _require_unmerged(peft_model, adapter)  # a live model: it may have been merged since
    holders = [module for module in peft_model.modules() if "_active_adapter" in vars(module)]
    found = [(holder, "_active_adapter", holder._active_adapter) for holder in holders]
    found += [(model, "active_adapter", model.active_adapter) for model in (peft_model, peft_model.base_model)]
    with _gradients_as_found(peft_model):
        try:
            peft_model.set_adapter(adapter)
            yield
        finally:
            for holder, attribute, value in found:
                setattr(holder, attribute, value)


@contextmanager
def _gradients_as_found(peft_model: Any) -> Iterator[None]:
    """Switching sets requires_grad of the adapters' tensors, which is put back."""
    needs_grad = [(parameter, parameter.requires_grad) for parameter in peft_model.parameters()]
    try:
        yield
    finally:
        for parameter, needed in needs_grad:
            parameter.requires_grad_(needed)


def _require_unmerged(peft_model: Any, adapter: str) -> None:
    if is_merged(peft_model):  # peft would take it out again, with a warning, and leave the weights rounded
        raise InputError(
            f"adapter:{adapter}: an adapter is merged into the weights, so the base under it is gone up to rounding; "
            "load it without merging"
        )
