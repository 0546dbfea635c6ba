"""A transformers model as a Subject: plain forward hooks, right positions, nothing of it changed.

Policy and reference of a PEFT model are two subjects over one module; a lock keeps the switch between adapters, which
is global to the module, from being thrown in the middle of a forward pass.
"""

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import InputError, NoTokenizerError
from .adapter_states import AdapterState
from .anatomy import Anatomy, at_least_float32
from .capture import capturing
from .editing import edited_fingerprint, editing
from .generation import generate, generated_ids
from .kernels.eager import exact_products
from .live import evaluating
from .subject import Edit, Fingerprint, Head, Layout, Reducer, Site, Subject, Trace
from .vocabulary import real_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LIMITS = ("max_position_embeddings", "max_seq_len", "context_length")  # what configurations call the longest input
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")  # and how far it looks
_MASKED = ("sdpa", "eager")  # attention that takes a mask of rows x columns


class HuggingFaceSubject:
    """A carrier of `Subject` (probes/subject.py). Build it with `alignscope.load` or `alignscope.wrap`."""

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase | None",
        *,
        name: str,
        fingerprints: Fingerprint | Callable[[], Fingerprint],
        facts: Mapping[str, Any],
        states: Callable[[str | None], AdapterState] | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self._fingerprints = fingerprints  # of a live model a function: its weights may move on
        self._tokenizer = tokenizer
        self._states = states  # what the module is with another adapter in place of its own (by name), or none (None)
        self._switch: Callable[[], AbstractContextManager[None]] = nullcontext
        self._lock = threading.RLock()
        self._accepts = set(inspect.signature(model.forward).parameters)
        with self._measuring():
            self.anatomy = Anatomy.probe(model)
        self.n_layers = len(self.anatomy.blocks)
        self.d_model = self.anatomy.d_model
        self.vocab_size = self.anatomy.vocab_size
        config = model.config.get_text_config()
        self.limit: int | None = next((n for key in _LIMITS if (n := getattr(config, key, None))), None)
        self._head: Head | None = None
        self._head_is_known = False
        self.facts: dict[str, Any] = {
            "model_type": model.config.model_type,
            "carrier": "huggingface",
            "attention": getattr(model.config, "_attn_implementation", None),
            **facts,
            "anatomy_error": self.anatomy.error,
            "after_head": str(self.anatomy.transform) if self.anatomy.transform else None,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.n_layers} blocks, width {self.d_model}, {self.dtype}>"

    @property
    def fingerprints(self) -> Fingerprint:
        """Of what the model is now: inside `editing`, `combined` is another one, the parts are those of the weights."""
        own = self._fingerprints() if callable(self._fingerprints) else self._fingerprints
        return edited_fingerprint(self.model, own)

    @property
    def fingerprint(self) -> str:
        return self.fingerprints.combined

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Raises NoTokenizerError (an InputError) where the model was wrapped without one."""
        if self._tokenizer is None:
            raise NoTokenizerError(
                f"{self.name}: wrapped without a tokenizer, it reads ids only; use wrap(model, tokenizer)"
            )
        return self._tokenizer

    @property
    def dtype(self) -> str:
        return str(self.anatomy.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self.model.device)

    def trace(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        *,
        reduce: Reducer,
        layers: Iterable[int] | None = None,
        layout: Layout | None = None,
    ) -> Trace:
        """reduce(layer, h[B, T, d], attention_mask) of every layer, called inside the forward pass, without gradients.

        layers: 0 (embeddings) to n_layers (last residual, before the final norm); None is all. The head runs on one
        position only. layout: for rows of several sequences; ask `layout_problem` first, and check that it holds.
        Raises ValueError for a layer that does not exist, InputError as `logits` does.
        """
        wanted = list(range(self.n_layers + 1)) if layers is None else sorted(set(layers))
        outside = [layer for layer in wanted if not 0 <= layer <= self.n_layers]
        if outside:
            raise ValueError(f"{self.name}: layer {outside[0]} is not in 0 .. {self.n_layers} (0 = embeddings)")
        ids, mask = self._checked(input_ids, attention_mask, layout)
        with (
            torch.no_grad(),
            self._measuring(),
            _head_input(self.anatomy.head, lambda h: h[:, :1]),
            capturing(self.anatomy.blocks, reduce=reduce, attention_mask=mask, layers=wanted) as kept,
        ):
            self._run(ids, mask, layout)
        return Trace({layer: kept[layer] for layer in wanted})

    def layout_problem(self, longest: int) -> str | None:
        """Why `trace` takes no layout of sequences of up to `longest` tokens; None where nothing is known against it.

        A mask of rows x columns takes the place of the model's own, and with it of a window.
        """
        config = self.model.config.get_text_config()
        attention = getattr(self.model.config, "_attn_implementation", None)
        if "position_ids" not in self._accepts:
            return "the model takes no position ids"
        if attention not in _MASKED:
            return f"attention {attention} takes no mask of rows x columns"
        windows = [n for key in _WINDOWS if isinstance(n := getattr(config, key, None), int) and n]
        if longest > (window := min(windows, default=longest)):
            return f"sequences of {longest} tokens reach beyond the attention window of {window}"
        return None

    def normed(self, residual: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_head"]:
        """The residual after the final norm, and after a projection where one follows it: what the head reads."""
        with self._measuring():
            return self.anatomy.normed(residual.to(self.model.device))

    def readout(self, residual: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch V"]:
        """Logits of residuals through the model's own final norm, head, bias, soft-cap and scale; float32 or wider."""
        with self._measuring():
            return self.anatomy.readout(residual.to(self.model.device))

    def head(self) -> Head | None:
        """The read-out in the form the fused kernels need; None where the head is more than weight and bias."""
        if not self._head_is_known:
            with torch.no_grad(), self._measuring():
                self._head = _simple_head(self.anatomy, self.normed, self._vocabulary())
            self._head_is_known = True
        return self._head

    def logits(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        positions: Int[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B P V"]:
        """The model's logits, float32 or wider, at all positions or at the columns `positions` of every row.

        Padding may stand on either side: mask and positions are given to the model. What the padding holds does not
        matter. Follows the caller's gradient mode. Raises InputError naming the row for an id without an embedding, a
        row longer than the model's limit, or one without a token.
        """
        ids, mask = self._checked(input_ids, attention_mask)
        with self._measuring(), ExitStack() as stack:
            if positions is not None:
                columns = positions.to(ids.device)[:, :, None]
                stack.enter_context(
                    _head_input(self.anatomy.head, lambda h: h.gather(1, columns.expand(-1, -1, h.shape[-1])))
                )
            return at_least_float32(self._run(ids, mask))

    def continued(self, input_ids: Int[Tensor, "B T"], past: Any, length: int) -> tuple[Float[Tensor, "B V"], Any]:
        """Logits after the last of `input_ids`, which end rows of `length` tokens; `past` is the cache of those before.

        past: None for whole rows. Returned beside the logits it holds the new tokens too, and is the object that came
        in; None where the model keeps none. Without padding and gradients; whether the logits are those of `logits` is
        for the caller to try.
        """
        ids, _ = self._checked(input_ids, torch.ones_like(input_ids))
        arguments: dict[str, Any] = {"input_ids": ids, "past_key_values": past}
        if "position_ids" in self._accepts:
            arguments["position_ids"] = torch.arange(length - ids.shape[1], length, device=ids.device)[None]
        arguments["attention_mask"] = torch.ones(len(ids), length, dtype=torch.long, device=ids.device)
        with torch.no_grad(), self._measuring(), _head_input(self.anatomy.head, lambda h: h[:, -1:]):
            made = self.model(**arguments, use_cache=True)
        return at_least_float32(made.logits[:, -1]), getattr(made, "past_key_values", None)

    def editing(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Inside, hidden states are changed at the sites given; contexts nest, the inner acts on the outer's result.

        The edits are on the module, for whoever calls it: other subjects that share it read edited states too. Hooks
        that are not ours stay; ours are gone afterwards, whatever happens inside. The modules of attn_out and mlp_out
        are found by two short forward passes, when this is called. See probes/editing.py.
        Raises InputError for a layer or component that the model does not have.
        """
        return editing(self, edits)

    def generate(self, prompts: list[str], **kwargs: Any) -> list[str]:
        """Continuations of raw prompts, greedy unless told otherwise; keyword arguments as of transformers' generate.

        Sampling settings that the checkpoint brings along (repetition_penalty, temperature) are left out: only what is
        given here holds. Default: 64 new tokens.
        """
        with torch.no_grad(), self._measuring():
            return generate(self, prompts, **kwargs)

    def generate_ids(self, rows: Sequence[Sequence[int]], **kwargs: Any) -> list[tuple[int, ...]]:
        """The ids that follow each row, an end-of-sequence id included; otherwise as `generate`."""
        with torch.no_grad(), self._measuring():
            return generated_ids(self, rows, **kwargs)

    def under(self, name: str, fingerprints: Fingerprint) -> "HuggingFaceSubject":
        """The same module under another name and fingerprint: for as long as its weights are changed on purpose."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.name, other._fingerprints = name, fingerprints
        other._head, other._head_is_known = None, False
        return other

    def without_adapter(self) -> "HuggingFaceSubject":
        """The reference of an adapter: the same weights with the adapter off, and the base's own fingerprint.

        Raises InputError where there is no adapter, or where "off" is not the base (merged, or it trained biases).
        """
        if refused := self.facts.get("adapter_off_refused"):
            raise InputError(f"{self.name}: cannot serve as its own reference: {refused}. Give --reference")
        return self._in_state(None)

    def with_adapter(self, name: str) -> "HuggingFaceSubject":
        """The same weights with adapter `name` in place of the active one, as TRL's frozen copy `ref`.

        Raises InputError where there is none of that name (naming those there are), where it is the active one, or
        where the base under both is not the untrained one (merged, or one of them trained biases).
        """
        return self._in_state(name)

    def switched(self) -> AbstractContextManager[None]:
        """Inside, the module carries the adapter of this subject, or none: for reading its weights."""
        return self._switch()

    def _in_state(self, adapter: str | None) -> "HuggingFaceSubject":
        if self._states is None:
            raise InputError(f"{self.name}: no adapter on it; name the reference model with --reference")
        state = self._states(adapter)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        own = {key: value for key, value in self.facts.items() if not key.startswith("adapter")}
        other.name, other._fingerprints, other._switch = state.name, state.fingerprints, state.switch
        other.facts = own | state.facts
        other._head, other._head_is_known = None, False
        return other

    def _run(self, ids: Tensor, mask: Tensor, layout: Layout | None = None) -> Tensor:
        arguments = {"input_ids": ids, "attention_mask": mask}
        if layout is not None:
            arguments["attention_mask"] = _additive(layout.visible.to(ids.device), self.model.dtype)
            arguments["position_ids"] = layout.position_ids.to(ids.device)
        elif "position_ids" in self._accepts:
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return self.model(**arguments, use_cache=False).logits

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """The module in evaluation mode, switched to the adapter of this subject; left as it was found."""
        with self._lock, ExitStack() as stack:
            stack.enter_context(exact_products(self.model.device))
            stack.enter_context(evaluating(self.model))
            stack.enter_context(self._switch())
            yield

    def _vocabulary(self) -> int:
        if self._tokenizer is None:
            return self.vocab_size
        return min(self.vocab_size, max(2, real_vocabulary(self._tokenizer)))

    def _checked(
        self, input_ids: Tensor, attention_mask: Tensor, layout: Layout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask on the model's device; padding replaced by an id that has an embedding."""
        if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
            raise InputError(
                f"{self.name}: input_ids and attention_mask are [rows, tokens] of one shape, got "
                f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
            )
        mask = attention_mask.to(self.model.device).long()
        ids = input_ids.to(self.model.device).masked_fill(mask == 0, 0)
        lengths = mask.sum(-1)
        if (lengths == 0).any():
            raise InputError(f"{self.name}: row {int((lengths == 0).nonzero()[0])} holds no token")
        if layout is not None:
            lengths = layout.position_ids.amax(-1) + 1
        if self.limit is not None and lengths.max() > self.limit:
            row = int(lengths.argmax())
            raise InputError(f"{self.name}: row {row} has {int(lengths[row])} tokens; the model reads {self.limit}")
        rows = self.model.get_input_embeddings().weight.shape[0]
        outside = ((ids < 0) | (ids >= rows)).any(-1)
        if outside.any():
            row = int(outside.nonzero()[0])
            bad = ids[row][(ids[row] < 0) | (ids[row] >= rows)]
            raise InputError(
                f"{self.name}: row {row} holds id {int(bad[0])}, which has no embedding (the model has {rows}); "
                "was the text encoded with another model's tokenizer?"
            )
        return ids, mask


# isinstance looks at every attribute on Python 3.11, and one without a tokenizer lacks that one
Subject.register(HuggingFaceSubject)


@contextmanager
def _head_input(head: nn.Module, change: Any) -> Iterator[None]:
    """Inside, the head gets change(h[B, T, d]): fewer positions, and with them fewer logits."""
    handle = head.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _additive(visible: Bool[Tensor, "B T T"], dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """What attention adds to its scores, the same for every head: 0 where a token is seen, else the lowest number."""
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return hidden.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _simple_head(anatomy: Anatomy, normed: Any, vocab: int) -> Head | None:
    """Weight and bias, only where head(x) == x W^T + b on random x: a LoRA head, Linear by name too, fails this."""
    linear = anatomy.head
    if type(linear) is not nn.Linear or not linear.weight.is_floating_point():
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, linear.in_features, generator=generator).to(linear.weight.device, linear.weight.dtype)
    plain = x.float() @ linear.weight.float().T + (0 if linear.bias is None else linear.bias.float())
    tolerance = 1e-5 if linear.weight.dtype in (torch.float32, torch.float64) else 2e-2
    largest = float(plain.abs().nan_to_num(0.0, 0.0).max())  # a row of the weight may be broken
    if not torch.allclose(linear(x).float(), plain, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
        return None
    transform = anatomy.transform
    return Head(
        weight=linear.weight,
        bias=linear.bias,
        softcap=transform.value if transform and transform.kind == "softcap" else None,
        scale=transform.value if transform and transform.kind == "scale" else 1.0,
        norm=normed,
        vocab=vocab,
    )
