"""Put a PEFT adapter on a base, and prove that every tensor of it found its place."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .adapter_states import is_merged
from .checkpoint_files import CheckpointFiles, adapter_base
from .fingerprint import state_hash
from .opening import adapter_state
from .quiet import quiet_loading

ADAPTER_NAME = "default"
_SHOWN = 4
TUNER_PARTS = ("lora_", "ia3_", "hada_", "lokr_", "oft_", "boft_", "vera_", "adaption_")


def require_base(adapter: CheckpointFiles, base: Any) -> str:
    """The base to load: as given, else the path in the adapter's config. Raises InputError naming --base."""
    if base is not None:
        return str(base)
    found = adapter_base(adapter.folder)
    if found is not None:
        return found
    named = adapter.config.get("base_model_name_or_path")
    raise InputError(
        f"{adapter.name}: an adapter needs the model it was trained on; its config names '{named}', "
        "which is no path here. Give the base with --base (in Python: load(BASE, adapter=DIR))"
    )


def attach(
    model: Any, adapter: CheckpointFiles, *, base_name: str, as_name: str = ADAPTER_NAME
) -> tuple[Any, dict[str, Any]]:
    """The PEFT model (adapter on, frozen, evaluation mode) and facts about the adapter.

    `model` is changed in place; on a PEFT model this adapter becomes the active one. Raises InputError where the
    adapter was made for another width, depth or vocabulary, where a tensor of it finds no place or is missing, or where
    its kind cannot be measured (prompt tuning).
    """
    from peft import PeftConfig, PeftModel, get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    with quiet_loading(offline=True):
        try:
            config = PeftConfig.from_pretrained(str(adapter.folder))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{adapter.name}: adapter_config.json cannot be read by peft: {error}") from error
        _refuse_virtual_tokens(config, adapter.name)
        state = adapter_state(adapter)
        bad = sorted(key for key, value in state.items() if not torch.isfinite(value).all())
        if bad:
            raise InputError(f"{adapter.name}: NaN or infinite values in {_shown(bad)}; use an earlier checkpoint")
        config.inference_mode = True
        try:
            if isinstance(model, PeftModel):
                peft_model: Any = model
                peft_model.add_adapter(as_name, config)
                peft_model.set_adapter(as_name)
            else:
                peft_model = get_peft_model(model, config, adapter_name=as_name)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{adapter.name}: the adapter does not fit on {base_name}: {error}") from error
        needed = set(get_peft_model_state_dict(peft_model, adapter_name=as_name, save_embedding_layers=False))
        with_embeddings = not state.keys() <= needed  # a file may also bring the whole (resized) embedding
        places = get_peft_model_state_dict(peft_model, adapter_name=as_name, save_embedding_layers=with_embeddings)
        _require_fit(state, places, needed, adapter.name, base_name)
        set_peft_model_state_dict(peft_model, state, adapter_name=as_name)
        placed = get_peft_model_state_dict(peft_model, adapter_name=as_name, save_embedding_layers=with_embeddings)
    lost = [key for key, value in state.items() if not torch.equal(placed[key].cpu(), value.to(placed[key].dtype))]
    if lost:
        raise InputError(f"{adapter.name}: peft did not place {_shown(sorted(lost))}; was it saved by another version?")
    peft_model.eval().requires_grad_(False)
    return peft_model, _adapter_facts(adapter.name, config, state) | {
        "adapter_base_named": adapter.config.get("base_model_name_or_path")  # peft overwrites its copy
    }


def adapter_effect(model: Any, peft_model: Any, before: Tensor, ids: Tensor) -> tuple[float, float]:
    """Largest change of a logit by the adapter (on), and what is left of it with the adapter off (0: exactly gone)."""
    after = probe_logits(model, ids)
    with quiet_loading(offline=True), peft_model.disable_adapter():  # peft warns of biases; here they are measured
        off = probe_logits(model, ids)
    return float((after - before).abs().max()), float((off - before).abs().max())


def probe_logits(model: Any, ids: Tensor) -> Tensor:
    """Logits of one short row, float32, on the CPU: what two states of one model are compared by."""
    with torch.no_grad():
        return model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()


def probe_ids(rows: int, length: int = 8) -> Tensor:
    """One row of ids spread over a vocabulary of `rows` entries."""
    return ((torch.arange(1, length + 1) * rows) // (length + 1)).clamp(max=rows - 1)[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAdapter:
    name: str
    weights: str  # sha256 of its tensors
    config: dict[str, Any]
    facts: dict[str, Any]


def live_adapter(peft_model: Any, name: str | None = None) -> LiveAdapter:
    """An adapter of a live PEFT model, the active one by default.

    Raises InputError for prompt tuning, or several active adapters at once.
    """
    from peft.utils import get_peft_model_state_dict

    active = list(peft_model.active_adapters)
    if len(active) != 1:
        raise InputError(f"wrap: {len(active)} adapters are active ({', '.join(active) or 'none'}); activate one")
    name = name or active[0]
    config = peft_model.peft_config[name]
    _refuse_virtual_tokens(config, "wrap")
    with quiet_loading(offline=True):
        state = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    facts = _adapter_facts(name, config, state)
    facts["adapters_beside"] = sorted({*peft_model.peft_config} - {name})
    if is_merged(peft_model):
        facts["adapter_off_refused"] = "the adapter is merged into the weights, so the base is gone up to rounding"
    return LiveAdapter(name=name, weights=state_hash(state), config=config.to_dict(), facts=facts)


def integrated_adapter(model: nn.Module) -> dict[str, Any]:
    """Facts of an adapter inside a transformers model (from_pretrained of an adapter folder); empty without one."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return {}
    require_switched_on(model)
    return {
        "adapter": ", ".join(getattr(model, "peft_config", {"adapter": None})),
        "adapter_off_refused": "it is part of the transformers model; use PeftModel.from_pretrained and wrap that",
    }


def adapter_setting(model: nn.Module, only: str | None = None) -> str:
    """Which adapters are active, on and merged, and with what scaling, over all layers that carry one; "" without.

    only: as it would be with this adapter the active one.
    """
    found = set()
    for module in model.modules():
        if isinstance(getattr(module, "disable_adapters", None), bool):
            scaling = sorted((getattr(module, "scaling", None) or {}).items())
            active = module.active_adapters if only is None else [only]
            found.add(str([active, module.disable_adapters, getattr(module, "merged", False), scaling]))
    return "; ".join(sorted(found))


def require_switched_on(model: nn.Module) -> None:
    """Raises InputError where an adapter is on the model but off: it would be measured as what it is not."""
    if any(getattr(module, "disable_adapters", False) is True for module in model.modules()):
        raise InputError("wrap: an adapter of the model is switched off; switch it on, or wrap the base model")


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict of a live model under the names of its base: adapter tensors left out, a tied tensor once."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    kept = {}
    for key, tensor in model.state_dict().items():
        if ".modules_to_save." in key or any(part.startswith(TUNER_PARTS) for part in key.split(".")):
            continue
        name = key.replace(".base_layer.", ".").replace(".original_module.", ".")
        if name not in tied:
            kept[name] = tensor
    return kept


def _adapter_facts(name: str, config: Any, state: dict[str, Tensor]) -> dict[str, Any]:
    bias = getattr(config, "bias", "none")
    facts = {
        "adapter": name,
        "adapter_type": config.peft_type.value,
        "adapter_tensors": len(state),
        "adapter_parameters": sum(value.numel() for value in state.values()),
        "adapter_base_named": config.base_model_name_or_path,
        "adapter_off_refused": None,
    }
    if bias != "none":
        facts["adapter_off_refused"] = f"it was trained with bias='{bias}', and its biases stay when it is switched off"
    return facts


def _refuse_virtual_tokens(config: Any, name: str) -> None:
    if config.is_prompt_learning:
        raise InputError(
            f"{name}: {config.peft_type.value.lower().replace('_', ' ')} prepends virtual tokens, so that positions "
            "and residuals no longer belong to the input; only adapters on the weights can be measured"
        )


def _require_fit(
    state: dict[str, Tensor], expected: dict[str, Tensor], needed: set[str], name: str, base_name: str
) -> None:
    shapes = [
        f"{key} (adapter {tuple(state[key].shape)}, base {tuple(expected[key].shape)})"
        for key in sorted(state.keys() & expected.keys())
        if state[key].shape != expected[key].shape
    ]
    if shapes:
        raise InputError(
            f"{name}: made for a model of another width or vocabulary than {base_name}: {_shown(shapes)}; "
            "give the model it was trained on with --base"
        )
    surplus = sorted(state.keys() - expected.keys())
    if surplus:
        raise InputError(
            f"{name}: {len(surplus)} of {len(state)} adapter tensors have no place in {base_name}: {_shown(surplus)}; "
            "it was trained on another (deeper?) model: give that with --base"
        )
    absent = sorted(needed - state.keys())
    if absent:
        raise InputError(
            f"{name}: {base_name} expects {len(absent)} adapter tensors that the file lacks: {_shown(absent)}; "
            "it was trained on another (shallower?) model: give that with --base"
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
