"""Where are the blocks, the final norm and the head of a decoder, and what follows the head? Probed, then proved.

There is no table of architectures. One forward pass with a hook on every module gives the calls in order; from the
head's input the walk goes back through them to the last entry of the list of blocks. What follows the head is read off
amplified logits: in a small model logits sit where a soft-cap is straight, and leaving it out would pass a plain test.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import AnatomyError

MAX_TAIL = 3  # modules between the last block and the head
AMPLITUDE = 100.0  # largest logit of the probe: far into the bend of any soft-cap in use
FULL = (torch.float32, torch.float64)
CAP_WORDS = ("soft", "cap", "logit")  # parts of the config keys that may hold a soft-cap


@dataclass(frozen=True, slots=True)
class Transform:
    """What a model does to the head's output: z = value tanh(z / value), or z = value z."""

    kind: Literal["softcap", "scale"]
    value: float

    def __call__(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.value * torch.tanh(logits / self.value) if self.kind == "softcap" else self.value * logits

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anatomy:
    """The modules that a read-out needs. `error`: largest |readout - logits| of the proof, over the largest |logit|."""

    blocks: nn.ModuleList
    blocks_path: str
    tail: tuple[nn.Module, ...]  # one norm mostly; norm and projection, or nothing
    head: nn.Module
    transform: Transform | None  # after the head; None: nothing
    d_model: int
    vocab_size: int  # rows of the head, padding included
    dtype: torch.dtype  # of the residual stream
    error: float

    @classmethod
    def probe(cls, model: Any) -> "Anatomy":
        """Find and prove the anatomy of a transformers model in evaluation mode; three short forward passes.

        Raises AnatomyError, with the module lists it found, where no list of blocks leads to the head, where something
        unknown follows the head, or where readout(output of the last block) differs from the logits by more than 1e-4
        of the largest (below float32: where another token comes first, or KL >= 1e-3).
        """
        head = model.get_output_embeddings()
        if head is None:
            raise AnatomyError(f"{type(model).__name__} has no output embeddings; expected a causal language model")
        rows = model.get_input_embeddings().weight.shape[0]
        with torch.no_grad():
            ids = _row(model, [rows // 7, rows // 3, rows // 2])
            path, blocks, tail, residual = _walk(model, head, ids)
            transform, vocab_size = _after_head(model, head, ids)
            found = cls(
                blocks=blocks,
                blocks_path=path,
                tail=tail,
                head=head,
                transform=transform,
                d_model=residual.shape[-1],
                vocab_size=vocab_size,
                dtype=residual.dtype,
                error=math.nan,
            )
            error = _prove(model, found, _row(model, [(i * rows) // 11 for i in range(1, 10)]))
        return replace(found, error=error)

    def normed(self, residual: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_head"]:
        """The residual after the tail: what the head is applied to."""
        h = residual.to(self.dtype)
        for module in self.tail:
            h = module(h)
        return h

    def readout(self, residual: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch V"]:
        """Tail, head with bias, and what follows the head; at least float32 from the head's output on."""
        logits = at_least_float32(self.head(self.normed(residual)))
        return logits if self.transform is None else self.transform(logits)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or model output."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)


@dataclass(frozen=True, slots=True)
class _Call:
    module: nn.Module
    input: Tensor | None
    output: Tensor | None


def _row(model: Any, ids: list[int]) -> Int[Tensor, "1 T"]:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or len(ids)
    return torch.tensor([ids[: max(1, limit)]], device=model.device)


def _logits(model: Any, ids: Int[Tensor, "1 T"]) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def _walk(
    model: Any, head: nn.Module, ids: Int[Tensor, "1 T"]
) -> tuple[str, nn.ModuleList, tuple[nn.Module, ...], Tensor]:
    """Path and list of the blocks, the tail, and the output of the last block."""
    with _recorded(model) as calls:
        _logits(model, ids)
    times = Counter(id(call.module) for call in calls)
    of_head = [call for call in calls if call.module is head and call.input is not None]
    if len(of_head) != 1:
        raise AnatomyError(
            f"{type(model).__name__}: the head ({type(head).__name__}) runs {len(of_head)} times in a forward pass, "
            "expected once"
        )
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    n_blocks = model.config.get_text_config().num_hidden_layers
    for path, blocks in lists:
        if len(blocks) != n_blocks or any(times[id(block)] != 1 for block in blocks):
            continue
        last = next(call.output for call in calls if call.module is blocks[-1])
        tail = None if last is None else _tail(calls, of_head[0].input, last)
        if tail is not None:
            assert last is not None
            return path, blocks, tail, last
    listed = ", ".join(f"{path} [{len(blocks)}]" for path, blocks in lists) or "none"
    raise AnatomyError(
        f"{type(model).__name__}: no list of {n_blocks} blocks (num_hidden_layers) leads to the head's input through "
        f"at most {MAX_TAIL} modules. Module lists found: {listed}"
    )


def _tail(calls: list[_Call], head_input: Tensor | None, last: Tensor) -> tuple[nn.Module, ...] | None:
    """The modules between `last` and the head's input, in order; None where the walk does not reach `last`."""
    current, tail = head_input, list[nn.Module]()
    while current is not None and not _same_memory(current, last):
        before = next((call for call in calls if _leads_to(call, current)), None)
        if before is None or len(tail) == MAX_TAIL:
            return None
        tail.insert(0, before.module)
        current = before.input
    return None if current is None else tuple(tail)


def _leads_to(call: _Call, tensor: Tensor) -> bool:
    return (
        call.output is not None
        and call.input is not None
        and call.input.is_floating_point()
        and _same_memory(call.output, tensor)
        and not _same_memory(call.input, tensor)
    )


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Call]]:
    """Every call inside, innermost first. The tensors are kept alive: their memory is compared."""
    calls: list[_Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_Call(module, first_tensor([*args, *kwargs.values()]), first_tensor(output)))

    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in model.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _after_head(model: Any, head: nn.Module, ids: Int[Tensor, "1 T"]) -> tuple[Transform | None, int]:
    """What follows the head, and the width of the logits."""
    amplified: list[Tensor] = []

    def amplify(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        amplified.append(output * (AMPLITUDE / output.abs().max().clamp(min=1e-12)).to(output.dtype))
        return amplified[-1]

    handle = head.register_forward_hook(amplify)
    try:
        logits = _logits(model, ids)
    finally:
        handle.remove()
    raw, z = amplified[0].double(), logits.double()
    full = logits.dtype in FULL
    tolerance = 1e-5 if full else 2e-2  # half precision keeps 3 digits

    def agrees(expected: Tensor) -> bool:
        return raw.shape == z.shape and torch.allclose(z, expected, rtol=tolerance, atol=tolerance * AMPLITUDE / 10)

    if agrees(raw):
        return None, z.shape[-1]
    for cap in _caps(model.config):
        if agrees(cap * torch.tanh(raw / cap)):
            return Transform("softcap", cap), z.shape[-1]
    scale = float((z * raw).sum() / (raw * raw).sum()) if raw.shape == z.shape else math.nan
    if agrees(scale * raw):
        return Transform("scale", float(f"{scale:.{7 if full else 3}g}")), z.shape[-1]
    raise AnatomyError(
        f"{type(model).__name__}: something after the head ({type(head).__name__}) is neither a scale nor a soft-cap "
        f"named in config.json (tried {_caps(model.config) or 'none'}); its logits cannot be reproduced layer by layer"
    )


def _caps(config: Any) -> list[float]:
    """Numbers of the config that may be a soft-cap."""
    values = config.get_text_config().to_dict().items()
    named = {
        float(value)
        for key, value in values
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if any(word in key for word in CAP_WORDS)
    }
    return sorted(named)


def _prove(model: Any, anatomy: Anatomy, ids: Int[Tensor, "1 T"]) -> float:
    """Relative error of the read-out on other ids; AnatomyError where it is too large."""
    kept: list[Any] = []
    handle = anatomy.blocks[-1].register_forward_hook(
        lambda module, args, output: kept.append(first_tensor(output))
    )
    try:
        logits = _logits(model, ids).double()
    finally:
        handle.remove()
    ours = anatomy.readout(kept[0]).double()
    if ours.shape != logits.shape:
        raise AnatomyError(
            f"{type(model).__name__}: the read-out has shape {tuple(ours.shape)}, the logits {tuple(logits.shape)}"
        )
    error = float((ours - logits).abs().max() / logits.abs().max().clamp(min=1e-12))
    if anatomy.dtype in FULL:
        proved, bound = error <= 1e-4, "1e-4 of the largest logit"
    else:
        p, q = logits.log_softmax(-1), ours.log_softmax(-1)
        kl = float((p.exp() * (p - q)).sum(-1).max())
        proved, bound = bool((p.argmax(-1) == q.argmax(-1)).all()) and kl < 1e-3, "KL < 1e-3 and the same first token"
    if not proved:
        raise AnatomyError(
            f"{type(model).__name__}: read out through {_described(anatomy)}, the last residual misses the logits by "
            f"{error:.2g} of the largest (allowed: {bound}); the model does something else between blocks and logits"
        )
    return error


def _described(anatomy: Anatomy) -> str:
    names = [type(module).__name__ for module in (*anatomy.tail, anatomy.head)]
    return " + ".join(names) + (f" + {anatomy.transform}" if anatomy.transform else "")
