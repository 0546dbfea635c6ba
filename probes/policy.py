"""Which models an audit compares: naming rules for policy, reference, reward and the base of an adapter."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .loading import adapter_base, load
from .reward import load_reward

if TYPE_CHECKING:
    from .subject import Subject

Named = str | os.PathLike[str]
ADAPTER_DISABLED = "adapter-disabled"


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
    Raises InputError where an adapter has no base, `reference='adapter-disabled'` meets a policy without adapter, or
    `base` is given and nothing takes it.
    """
    if base is not None and not is_adapter(policy) and not is_adapter(reference):
        raise InputError(f"--base {base}: neither policy nor reference is an adapter folder, so neither takes a base")
    subject = _load_policy(policy, reference, base, dtype, device)
    if reference is None:
        return subject, None
    if not isinstance(reference, str | os.PathLike):
        return subject, reference
    if os.fspath(reference) == ADAPTER_DISABLED:
        if not subject.facts.get("adapter"):
            raise InputError(
                f"--reference adapter-disabled: the policy {subject.name} has no adapter; name the reference model"
            )
        return subject, subject.without_adapter()
    own_base = is_adapter(policy) and _same_model(_base_of(policy, reference, base), reference)
    if own_base and not is_adapter(reference) and not subject.facts.get("adapter_off_refused"):
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
    return _load_policy(control, reference, base if is_adapter(control) else None, dtype, device)


def load_judge(reward: Any, *, base: Any, reference: Any, dtype: str = "float32", device: str = "auto") -> Any:
    """The reward model of a folder; a Subject or function as it is, None for None.

    The base of a reward adapter is `base`, else the path in its config if that exists, else the reference.
    """
    if not isinstance(reward, str | os.PathLike):
        return reward
    found = None
    if is_adapter(reward):
        named = reference if isinstance(reference, str | os.PathLike) and reference != ADAPTER_DISABLED else None
        found = base or adapter_base(reward) or (None if is_adapter(named) else named)
    return load_reward(reward, base=found, dtype=dtype, device=device)


def is_adapter(model: object) -> bool:
    """True for a folder that holds a PEFT adapter."""
    return isinstance(model, str | os.PathLike) and (Path(model).expanduser() / "adapter_config.json").is_file()


def _load_policy(
    policy: "Named | Subject", reference: "Named | Subject | None", base: Named | None, dtype: str, device: str
) -> "Subject":
    if not isinstance(policy, str | os.PathLike):
        return policy
    if not is_adapter(policy):
        return load(policy, dtype=dtype, device=device)
    return load(policy, base=_base_of(policy, reference, base), dtype=dtype, device=device)


def _base_of(policy: object, reference: object, base: Named | None) -> Named | None:
    """`base`, else None where the adapter's own config names a path that exists (load finds it), else the reference."""
    if base is not None:
        return base
    assert isinstance(policy, str | os.PathLike)
    own = adapter_base(policy)
    if own is not None:
        return own
    if isinstance(reference, str | os.PathLike) and os.fspath(reference) != ADAPTER_DISABLED:
        return reference
    return None


def _same_model(first: Named | None, second: Named) -> bool:
    if first is None:
        return False
    here, there = Path(first).expanduser(), Path(second).expanduser()
    if here.exists() and there.exists():
        return here.resolve() == there.resolve()
    return os.fspath(first) == os.fspath(second)
