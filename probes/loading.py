"""From a path to a Subject: checkpoint folder, adapter on its base, GGUF file, hub id, or a live model."""

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import InputError
from .adapter_states import AdapterState, in_place, off, require_adapter
from .adapters import (
    adapter_effect,
    adapter_setting,
    attach,
    base_state,
    integrated_adapter,
    live_adapter,
    probe_ids,
    probe_logits,
    require_base,
    require_switched_on,
)
from .checkpoint_files import CheckpointFiles, adapter_base, adapters_in, locate
from .fingerprint import fingerprint, state_hash, state_mark, weights_hash, with_adapter
from .huggingface import HuggingFaceSubject
from .opening import Opened, open_model, require_finite, require_known_model
from .subject import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["adapter_base", "load", "wrap"]

_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
_OTHER_CARRIERS = ("transformer_lens", "nnsight")


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    device: str = "auto",
    adapter: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    beside: str | None = None,
    revision: str | None = None,
    carrier: str = "huggingface",
    allow_pickle: bool = False,
) -> HuggingFaceSubject:
    """Load a causal language model for measuring: frozen, evaluation mode, its read-out probed and proved.

    path: checkpoint folder, adapter folder, .gguf file (or folder with one) or hub id; a local path never asks a hub.
    dtype: of weights and computation, float32 unless told; GGUF files are unpacked to it.
    adapter: an adapter folder to put on `path`. base: the base of `path`, where that is an adapter folder.
    beside: a subfolder of the adapter folder with a second adapter to keep at hand, as the `ref` that TRL saves:
        `subject.with_adapter("ref")` is then that one on the same base.
    revision: of a hub id. allow_pickle: read .bin weights, which can run code.
    Raises InputError for anything that cannot be measured as it is: no such folder, no or pickled weights, tensors
    missing, damaged, of another shape or not finite, no tokenizer, another kind of model, an adapter that does not fit.

        subject = alignscope.load("runs/dpo")                       # a folder
        policy = alignscope.load("base", adapter="runs/lora")       # reference: policy.without_adapter()
    """
    if carrier != "huggingface":
        raise InputError(f"carrier '{carrier}' is not available; expected 'huggingface'")
    files = locate(path, revision=revision, allow_pickle=allow_pickle)
    if files.kind == "adapter":
        if adapter is not None:
            raise InputError(f"{path}: an adapter folder cannot carry another adapter ({adapter}); give the base first")
        under = locate(require_base(files, base), allow_pickle=allow_pickle)
        return _load_adapter(files, under, dtype, device, beside, allow_pickle)
    if base is not None:
        raise InputError(f"{path}: not an adapter folder, so it takes no base (--base {base}); leave --base out")
    if adapter is None:
        if beside is not None:
            raise InputError(f"{path}: not an adapter folder, so it keeps no adapter '{beside}' beside its own")
        return _load_model(files, dtype, device)
    on = locate(adapter, allow_pickle=allow_pickle, role="adapter")
    if on.kind != "adapter":
        raise InputError(f"{adapter}: no adapter_config.json in it; expected a PEFT adapter folder")
    return _load_adapter(on, files, dtype, device, beside, allow_pickle)


def wrap(model: Any, tokenizer: "PreTrainedTokenizerBase | None" = None) -> HuggingFaceSubject:
    """Measure a live transformers or PEFT model. It is left as found: mode, requires_grad, hooks.

    Without a tokenizer ids can be measured, text cannot. A PEFT model's reference is `without_adapter()`, or
    `with_adapter(name)` where another adapter on it is what the active one was trained from.
    Raises InputError for another carrier's object, an encoder-decoder, prompt tuning or non-finite weights.
    """
    for kind in type(model).__mro__:
        if kind.__module__.split(".")[0] in _OTHER_CARRIERS:
            raise InputError(f"wrap: a {kind.__module__.split('.')[0]} model; wrap the transformers model inside it")
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise InputError(f"wrap: expected a transformers or PEFT model, got {type(model).__name__}")
    peft_model: Any = model if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else None
    inner: Any = model if peft_model is None else peft_model.get_base_model()
    name = type(inner).__name__
    if getattr(inner.config, "is_encoder_decoder", False):
        raise InputError(f"wrap: {name} is an encoder-decoder; expected a decoder-only language model")
    require_finite(model, name)
    scheme = getattr(inner.config, "quantization_config", None)
    config = inner.config.to_dict()
    facts: dict[str, Any] = {
        "source": "live model",
        "dtype_on_disk": None,
        "dtype": str(next(inner.parameters()).dtype).removeprefix("torch."),
        "quantization": None if scheme is None else str(config["quantization_config"].get("quant_method")),
    }
    if peft_model is None:
        integrated = integrated_adapter(inner)  # its tensors then belong to the model: no base can be told apart

        def whole() -> Fingerprint:
            if not integrated:
                return fingerprint(weights=state_hash(base_state(inner)), config=config, tokenizer=tokenizer)
            own = config | {"adapters": adapter_setting(inner)}
            return fingerprint(weights=state_hash(dict(inner.state_dict())), config=own, tokenizer=tokenizer)

        followed = _Followed(inner, whole, setting=adapter_setting)
        return HuggingFaceSubject(inner, tokenizer, name=name, fingerprints=followed, facts=facts | integrated)
    require_switched_on(peft_model)
    own = live_adapter(peft_model)

    def base() -> Fingerprint:
        return fingerprint(weights=state_hash(base_state(inner)), config=config, tokenizer=tokenizer)

    def adapted(other: str | None = None) -> Fingerprint:
        require_switched_on(peft_model)
        adapter = live_adapter(peft_model, other)
        setting = {"setting": adapter_setting(inner, other)}  # a scaling changed by hand is not in the config
        return with_adapter(followed_base(), weights=adapter.weights, config=adapter.config | setting)

    def state(other: str | None) -> AdapterState:
        if other is None:
            label = f"{name} + {own.name} (adapter off)"
            return off(peft_model, name=label, adapter=own.name, fingerprints=followed_base)
        require_adapter(peft_model, other)
        followed = _Followed(inner, partial(adapted, other), setting=adapter_setting)
        facts = live_adapter(peft_model, other).facts
        return in_place(peft_model, other, name=f"{name} + {other}", fingerprints=followed, facts=facts)

    followed_base = _Followed(inner, base)
    return HuggingFaceSubject(
        inner,
        tokenizer,
        name=f"{name} + {own.name}",
        fingerprints=_Followed(inner, adapted, setting=adapter_setting),
        facts=facts | own.facts,
        states=state,
    )


class _Followed:
    """The fingerprint of a live model, made again where its weights, or its adapters' `setting`, have moved since."""

    def __init__(
        self, model: nn.Module, make: Callable[[], Fingerprint], *, setting: Callable[[nn.Module], str] | None = None
    ) -> None:
        self.model, self.make, self.setting = model, make, setting
        self.mark = ""

    def __call__(self) -> Fingerprint:
        mark = state_mark(self.model.state_dict()) + ("" if self.setting is None else self.setting(self.model))
        if mark != self.mark:
            self.value, self.mark = self.make(), mark
        return self.value


def _load_model(files: CheckpointFiles, dtype: str, device: str) -> HuggingFaceSubject:
    opened = _open(files, dtype, device)
    return HuggingFaceSubject(
        opened.model, opened.tokenizer, name=files.name, fingerprints=opened.fingerprints, facts=opened.facts
    )


def _load_adapter(
    adapter: CheckpointFiles, base: CheckpointFiles, dtype: str, device: str, beside: str | None, allow_pickle: bool
) -> HuggingFaceSubject:
    """The adapter's own tokenizer wins where its folder has one: training may have given it a chat template."""
    if base.kind == "adapter":
        raise InputError(f"{base.name}: the base of {adapter.name} is an adapter itself; merge it into its base first")
    task = adapter.config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise InputError(
            f"{adapter.name}: an adapter for {task}, where a language model is wanted; "
            "a reward adapter is given as --reward (in Python: load_reward)"
        )
    kept = adapters_in(adapter.folder)
    if beside is not None and beside not in kept:
        raise InputError(
            f"adapter:{beside}: {adapter.name} holds no such adapter (a folder {beside}/ with adapter_config.json); "
            f"those in it are: {', '.join(kept) or 'none'}"
        )
    tokenizer_from = adapter if adapter.has_tokenizer else None
    opened = _open(base, dtype, device, tokenizer_from)
    ids = probe_ids(opened.model.get_input_embeddings().weight.shape[0])
    before = probe_logits(opened.model, ids)
    states: dict[str | None, AdapterState] = {}
    model = opened.model
    if beside is not None:  # first, so that it can be seen alone
        second = locate(adapter.folder / beside, allow_pickle=allow_pickle)
        model, second_facts = attach(model, second, base_name=base.name, as_name=beside)
        alone = probe_logits(opened.model, ids)
    peft_model, facts = attach(model, adapter, base_name=base.name)
    change, rest = adapter_effect(opened.model, peft_model, before, ids)
    facts |= {"base": base.name, "tokenizer_from": (tokenizer_from or base).name, "adapter_logit_change": change}
    facts |= {"adapter_changes_nothing": change == 0, "adapter_off_difference": rest}
    if rest != 0 and not facts["adapter_off_refused"]:
        facts["adapter_off_refused"] = f"with the adapter off the logits differ from the base's by {rest:.3g}"
    facts["adapters_beside"] = kept
    states[None] = off(peft_model, name=base.name, adapter=adapter.name, fingerprints=opened.fingerprints)
    if beside is not None:
        require_adapter(peft_model, beside)
        states[beside] = in_place(
            peft_model,
            beside,
            name=second.name,
            fingerprints=with_adapter(opened.fingerprints, weights=weights_hash(second.weights), config=second.config),
            facts=second_facts | {"base": base.name},
        )
        with states[beside].switch():
            moved = float((probe_logits(opened.model, ids) - alone).abs().max())
        if moved != 0:
            raise InputError(
                f"adapter:{beside}: with {adapter.name} on the same base its logits differ by {moved:.3g} from those "
                f"it has alone; load the two apart (--reference {second.name})"
            )

    def state(other: str | None) -> AdapterState:
        if other not in states:
            ready = f"; load it with load(..., beside='{other}')" if other in kept else ""
            raise InputError(
                f"adapter:{other}: not loaded with {adapter.name}{ready}; adapters in that folder: "
                f"{', '.join(kept) or 'none'}"
            )
        return states[other]

    return HuggingFaceSubject(
        opened.model,
        opened.tokenizer,
        name=adapter.name,
        fingerprints=with_adapter(opened.fingerprints, weights=weights_hash(adapter.weights), config=adapter.config),
        facts=opened.facts | {"source": "adapter on its base"} | facts,
        states=state,
    )


def _open(files: CheckpointFiles, dtype: str, device: str, tokenizer_from: CheckpointFiles | None = None) -> Opened:
    from transformers import AutoModelForCausalLM

    require_known_model(files)
    named = files.config.get("architectures") or []
    if any(architecture.endswith(_OTHER_HEADS) for architecture in named):
        raise InputError(
            f"{files.name}: {', '.join(named)}, where a language model is wanted; a reward model is given as --reward "
            "(in Python: load_reward)"
        )
    opened = open_model(files, AutoModelForCausalLM, dtype=dtype, device=device, tokenizer_from=tokenizer_from)
    heads = [key for key in opened.facts["unexpected_keys"] if key.startswith(("score.", "classifier."))]
    if heads and not named:  # tied embeddings hide that the language head is not there
        raise InputError(f"{files.name}: holds a classification head ({', '.join(heads)}), no language model head")
    if opened.model.get_output_embeddings() is None:
        raise InputError(f"{files.name}: {type(opened.model).__name__} has no output embeddings; not a language model")
    return opened
