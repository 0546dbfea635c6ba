"""Explicit reward models: one number a text, read by a head at one token. Which head, and which token?"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import InputError
from .adapters import attach, require_base
from .checkpoint_files import CheckpointFiles, locate
from .fingerprint import tensor_shapes, weights_hash, with_adapter
from .opening import Opened, architectures, open_model, require_known_model
from .subject import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RewardIndex = int | tuple[int, int]
_HEADS = ("score", "classifier")
_INSTEAD = "or give its scores as columns explicit_chosen and explicit_rejected of the pairs file"


def load_reward(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    reward_index: RewardIndex | None = None,
    readout: Literal["model", "last"] = "model",
    dtype: str = "float32",
    device: str = "auto",
) -> "RewardModel":
    """Load a sequence classifier as an explicit reward model; scores compare within a prompt only.

    path: folder of the classifier, or an adapter folder that brings its head (`modules_to_save`) onto `base`.
    reward_index: which output is the reward where there are several: i, or (pos, neg) for their difference.
    readout: 'model' reads where the model's own code reads, the last token that is not its pad token; 'last' the last
        real token. They differ where pad = eos and the text ends with EOS: 'model' then reads the token before it.
    Raises InputError where the head would be random (a language-model folder), has several outputs and no
    reward_index, or cannot be read as described (custom code, value-head and generative judges).

        judge = alignscope.load_reward("runs/rm")
        judge.rewards(input_ids, attention_mask)                    # float32 [B]
    """
    if readout not in ("model", "last"):
        raise InputError(f"readout '{readout}' is unknown; expected 'model' or 'last'")
    files = locate(path, role="reward model")
    adapter = None
    if files.kind == "adapter":
        adapter = files
        task = adapter.config.get("task_type")
        if task not in (None, "SEQ_CLS"):
            raise InputError(f"{path}: an adapter for {task}, where a reward model (SEQ_CLS) is wanted; {_INSTEAD}")
        files = locate(require_base(adapter, base), role="base of the reward model")
    elif base is not None:
        raise InputError(f"{path}: not an adapter folder, so it takes no base ({base}); leave base out")
    require_known_model(files)
    n_labels = _head_rows(files, adapter)
    index = _chosen_index(reward_index, n_labels, files.config, os.fspath(path))
    opened = _open(files, adapter, n_labels, dtype, device)
    model, facts, fingerprints = opened.model, opened.facts, opened.fingerprints
    if adapter is not None:
        _, adapter_facts = attach(model, adapter, base_name=files.name)
        fingerprints = with_adapter(fingerprints, weights=weights_hash(adapter.weights), config=adapter.config)
        facts |= adapter_facts | {"source": "adapter on its base", "base": files.name}
    return RewardModel(
        model,
        opened.tokenizer,
        name=os.fspath(path),
        fingerprints=fingerprints,
        facts=facts,
        index=index,
        readout=readout,
    )


class RewardModel:
    """A sequence classifier that gives a scalar; a carrier of `RewardSubject`. Build it with `load_reward`."""

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        name: str,
        fingerprints: Fingerprint,
        facts: Mapping[str, Any],
        index: RewardIndex = 0,
        readout: Literal["model", "last"] = "model",
    ) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprints = fingerprints
        self.limit: int | None = getattr(config, "max_position_embeddings", None)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self.index = index
        self.readout_rule = readout
        self.pad_id: int | None = config.pad_token_id
        self._backbone, self._head = _parts(model)
        if self._head is None and readout == "last":
            raise InputError(f"{name}: {type(model).__name__} does not read one token, so readout='last' means nothing")
        self.facts: dict[str, Any] = dict(facts) | {
            "reward_index": index,
            "readout": readout,
            "readout_token": self._rule(),
            "pad_is_eos": self.pad_id is not None and self.pad_id == tokenizer.eos_token_id,
        }
        if self._head is not None:
            self._prove()
            self._head.float()  # from here on the head computes in float32 whatever the backbone does

    @property
    def fingerprint(self) -> str:
        return self.fingerprints.combined

    def rewards(self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"]) -> Float[Tensor, "B"]:
        """Rewards of right-padded rows, float32, in the model's own units; the batch a row is in never moves its own.

        What stands in the padding does not matter. Raises ValueError naming the row for an empty row, an id the model
        has no embedding for, or a row longer than the model's limit.
        """
        self._check(input_ids, attention_mask)
        device = next(self.model.parameters()).device
        ids, mask = input_ids.to(device), attention_mask.to(device)
        ids = ids.masked_fill(mask == 0, 0)  # any id that has an embedding; -100 has none
        with torch.no_grad():
            if self._head is None:
                outputs = self.model(input_ids=ids, attention_mask=mask).logits.float()
            else:
                hidden = self._backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                rows = torch.arange(len(ids), device=device)
                outputs = self._head(hidden[rows, self.readout_positions(ids, mask)].float())
        outputs = outputs.cpu()
        if isinstance(self.index, tuple):
            positive, negative = self.index
            return outputs[:, positive] - outputs[:, negative]
        return outputs[:, self.index]

    def readout_positions(self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """The token each row is read at: the rightmost real one, under the model's rule the rightmost not the pad id.

        A row of nothing but pad ids is read at its first token, as transformers does.
        """
        wanted = attention_mask > 0
        if self.readout_rule == "model" and self.pad_id is not None:
            wanted = wanted & (input_ids != self.pad_id)
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        return (steps * wanted).argmax(-1)

    def _check(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        lengths = attention_mask.sum(-1)
        real = input_ids.masked_fill(attention_mask.to(input_ids.device) == 0, 0)
        if (lengths == 0).any():
            raise ValueError(f"row {int((lengths == 0).nonzero()[0])}: no token to read a reward from")
        if self.limit is not None and lengths.max() > self.limit:
            row = int(lengths.argmax())
            raise ValueError(f"row {row}: {int(lengths[row])} tokens, {self.name} takes at most {self.limit}")
        outside = ((real >= self.vocab_size) | (real < 0)).any(-1)
        if outside.any():
            row = int(outside.nonzero()[0])
            bad = real[row][(real[row] < 0) | (real[row] >= self.vocab_size)]
            raise ValueError(
                f"row {row}: id {int(bad[0])} has no embedding in {self.name} (it has {self.vocab_size}); "
                "was the text encoded with another model's tokenizer?"
            )

    def _rule(self) -> str:
        if self._head is None:
            return "the model's own pooling"
        if self.readout_rule == "last" or self.pad_id is None:
            return "the last real token"
        return f"the last token that is not the pad id {self.pad_id}"

    def _prove(self) -> None:
        """Our reading of one row equals the model's own forward, whose rule we copied; else refuse."""
        ids = (torch.arange(1, 7) * self.vocab_size // 8)[None]
        if self.pad_id is not None:
            ids = ids[:, (ids != self.pad_id)[0]]
        device = next(self.model.parameters()).device
        with torch.no_grad():
            own = self.model(input_ids=ids.to(device), attention_mask=torch.ones_like(ids).to(device)).logits[0].float()
            hidden = self._backbone(input_ids=ids.to(device), use_cache=False).last_hidden_state[0, -1]
            ours = self._head(hidden).float()  # type: ignore[misc]
        error = float((own - ours).abs().max())
        full = self.model.dtype in (torch.float32, torch.float64)
        allowed = (1e-5 if full else 3e-2) * max(1.0, float(own.abs().max()))
        self.facts["readout_error"] = error
        if not error <= allowed:
            raise InputError(
                f"{self.name}: {type(self.model).__name__} gives {own.tolist()} where head(backbone) gives "
                f"{ours.tolist()}; its reward cannot be read token by token. Use a plain classifier, {_INSTEAD}"
            )


def _open(files: CheckpointFiles, adapter: CheckpointFiles | None, n_labels: int, dtype: str, device: str) -> Opened:
    from transformers import AutoModelForSequenceClassification

    return open_model(
        files,
        AutoModelForSequenceClassification,
        dtype=dtype,
        device=device,
        tokenizer_from=adapter if adapter is not None and adapter.has_tokenizer else None,
        may_miss=tuple(f"{head}." for head in _HEADS) if adapter is not None else (),
        num_labels=n_labels,
    )


def _head_rows(files: CheckpointFiles, adapter: CheckpointFiles | None) -> int:
    """Outputs of the head, from the shape on disk: a config may name none, and transformers then makes two."""
    for holder in (adapter, files):
        if holder is None or holder.kind == "gguf" or holder.pickled:
            continue
        rows = [
            shape[0]
            for file in holder.weights
            for name, shape in tensor_shapes(file).items()
            if name.endswith(".weight") and len(shape) == 2 and _is_head(name)
        ]
        if rows:
            return rows[-1]  # of several layers of one head the last
    if adapter is not None:
        raise InputError(
            f"{adapter.name}: no head in the adapter and none in its base {files.name}; a reward adapter brings it "
            f"(modules_to_save=['score']), {_INSTEAD}"
        )
    found = "GGUF file" if files.kind == "gguf" else architectures(files.config)
    raise InputError(
        f"{files.name}: no reward head in it ({found}): score.weight is missing, and a language model loaded as a "
        f"classifier would get a random head. Give a sequence classifier (...ForSequenceClassification), {_INSTEAD}"
    )


def _is_head(name: str) -> bool:
    parts = name.split(".")
    return any(head in parts for head in _HEADS) and "lora_A" not in parts and "lora_B" not in parts


def _chosen_index(index: RewardIndex | None, n_labels: int, config: dict[str, Any], name: str) -> RewardIndex:
    labels = ", ".join(f"{i}: {label}" for i, label in sorted((config.get("id2label") or {}).items()))
    if index is None:
        if n_labels == 1:
            return 0
        raise InputError(
            f"{name}: {n_labels} outputs{f' ({labels})' if labels else ''}; say which is the reward with "
            "reward_index=i, or reward_index=(pos, neg) for a difference"
        )
    wanted = index if isinstance(index, tuple) else (index,)
    if any(not 0 <= i < n_labels for i in wanted):
        raise InputError(f"{name}: reward_index={index}, but the outputs are 0 to {n_labels - 1}")
    return index


def _parts(model: Any) -> tuple[Any, nn.Module | None]:
    """Backbone and head where the model reads one token of the last residual; (model, None) for pooling encoders."""
    head = getattr(model, "score", None)
    backbone = getattr(model, model.base_model_prefix, None)
    if head is None or backbone is None:
        return model, None
    return backbone, head
