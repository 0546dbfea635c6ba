"""Which models an audit compares: naming rules for policy, reference, reward and the base of an adapter."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .adapter_states import TRL_REFERENCE
from .loading import adapter_base, load
from .reward import load_reward

if TYPE_CHECKING:
    from .subject import Subject

Named = str | os.PathLike[str]
ADAPTER_DISABLED = "adapter-disabled"
ADAPTER = "adapter:"  # and a name: another adapter of the policy


def load_policy_and_reference(
    policy: "Named | Subject",
    reference: "Named | Subject | None",
    *,
    base: Named | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> "tuple[Subject, Subject | None]":
    """Load both models, an adapter and its base only once.

    The base of an adapter is `base`, else the path in its config if that exists, else the reference. Where that base is
    the reference, policy and reference are one set of weights, adapter on and off (two loads where "off" is not the
    base, as with trained biases).
    `reference="adapter:NAME"`: that base with adapter NAME on it, from that subfolder of the policy's folder, or on
    the live PEFT model.
    Raises InputError where an adapter has no base, a reference that is the policy's weights in another state meets a
    policy without adapter, or without one of that name, or `base` is given and nothing takes it.
    """
    if base is not None and not is_adapter(policy) and not is_adapter(reference):
        raise InputError(f"--base {base}: neither policy nor reference is an adapter folder, so neither takes a base")
    beside = adapter_named(reference)
    subject = _load_policy(policy, reference, base, beside, dtype, device)
    if reference is None:
        return subject, None
    if not isinstance(reference, str | os.PathLike):
        return subject, reference
    if is_own_state(reference):
        if not subject.facts.get("adapter"):
            raise InputError(
                f"--reference {reference}: the policy {subject.name} has no adapter; name the reference model"
            )
        return subject, subject.without_adapter() if beside is None else subject.with_adapter(beside)
    if shares_weights(policy, reference, base=base) and not subject.facts.get("adapter_off_refused"):
        return subject, subject.without_adapter()
    return subject, load(reference, base=base if is_adapter(reference) else None, dtype=dtype, device=device)


def load_control(
    control: "Named | Subject",
    reference: "Named | Subject | None",
    *,
    base: Named | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> "Subject":
    """A control checkpoint beside policy and reference; the base of an adapter is found as the policy's is."""
    return _load_policy(control, reference, base if is_adapter(control) else None, None, dtype, device)


def load_judge(reward: Any, *, base: Any, reference: Any, dtype: str = "float32", device: str = "auto") -> Any:
    """The reward model of a folder; a Subject or function as it is, None for None.

    The base of a reward adapter is `base`, else the path in its config if that exists, else the reference.
    """
    if not isinstance(reward, str | os.PathLike):
        return reward
    found = None
    if is_adapter(reward):
        named = reference if isinstance(reference, str | os.PathLike) and not is_own_state(reference) else None
        found = base or adapter_base(reward) or (None if is_adapter(named) else named)
    return load_reward(reward, base=found, dtype=dtype, device=device)


def is_adapter(model: object) -> bool:
    """True for a folder that holds a PEFT adapter."""
    return isinstance(model, str | os.PathLike) and (Path(model).expanduser() / "adapter_config.json").is_file()


def shares_weights(policy: object, reference: object, *, base: Named | None = None) -> bool:
    """Whether the reference is the policy's own weights in another state, or the base that the policy's adapter is on.

    Both are then one load, but where the adapter turns out to have trained what stays when it is off.
    """
    if is_own_state(reference):
        return True
    if not is_adapter(policy) or is_adapter(reference) or not isinstance(reference, str | os.PathLike):
        return False
    return _same_model(_base_of(policy, reference, base), reference)


def adapter_named(reference: object) -> str | None:
    """NAME of `adapter:NAME`, None for any other reference. Raises InputError where no name follows."""
    if not isinstance(reference, str | os.PathLike) or not os.fspath(reference).startswith(ADAPTER):
        return None
    if name := os.fspath(reference).removeprefix(ADAPTER):
        return name
    raise InputError(f"--reference {reference}: name an adapter of the policy, as in adapter:{TRL_REFERENCE}")


def is_own_state(reference: object) -> bool:
    """Whether the reference is named as the policy's own weights, with its adapter off or another one on."""
    return isinstance(reference, str | os.PathLike) and (
        os.fspath(reference) == ADAPTER_DISABLED or adapter_named(reference) is not None
    )


def reference_kind(policy: "Subject", reference: "Subject | None") -> str:
    """none, separate, adapter-disabled or adapter:NAME."""
    if reference is None:
        return "none"
    ours, theirs = (getattr(model, "model", model) for model in (policy, reference))
    if ours is not theirs or policy is reference:
        return "separate"
    other = reference.facts.get("adapter_in_place")
    return ADAPTER_DISABLED if other is None else f"{ADAPTER}{other}"


def passed_over(policy: "Subject", reference: "Subject | None") -> str | None:
    """A sentence where the policy's adapter is switched off, though TRL kept the one that its training began with."""
    beside = policy.facts.get("adapters_beside") or ()
    if TRL_REFERENCE not in beside or reference_kind(policy, reference) != ADAPTER_DISABLED:
        return None
    return (
        f"the reference is the base with the adapter off, but beside the policy's adapter one named `{TRL_REFERENCE}` "
        "is kept: TRL's name for the adapter that training began with and was measured against"
    )


def _load_policy(
    policy: "Named | Subject",
    reference: "Named | Subject | None",
    base: Named | None,
    beside: str | None,
    dtype: str,
    device: str,
) -> "Subject":
    if not isinstance(policy, str | os.PathLike):
        return policy
    if not is_adapter(policy):
        return load(policy, dtype=dtype, device=device)
    return load(policy, base=_base_of(policy, reference, base), beside=beside, dtype=dtype, device=device)


def _base_of(policy: object, reference: object, base: Named | None) -> Named | None:
    """`base`, else None where the adapter's own config names a path that exists (load finds it), else the reference."""
    if base is not None:
        return base
    assert isinstance(policy, str | os.PathLike)
    own = adapter_base(policy)
    if own is not None:
        return own
    if isinstance(reference, str | os.PathLike) and not is_own_state(reference):
        return reference
    return None


def _same_model(first: Named | None, second: Named) -> bool:
    if first is None:
        return False
    here, there = Path(first).expanduser(), Path(second).expanduser()
    if here.exists() and there.exists():
        return here.resolve() == there.resolve()
    return os.fspath(first) == os.fspath(second)
