"""How large is a gradient in each block? Squared norms of one pair at a time; no gradient outlives its own sum.

Nothing of the model is touched: `.grad` is never written, and requires_grad is put back.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ..errors import InputError
from .adapters import TUNER_PARTS
from .capture import capturing, rows_at
from .kernels.eager import exact_products
from .kernels.logprobs import token_log_probs
from .padding import padded
from .scored_rows import TokenSequence

if TYPE_CHECKING:
    from .subject import Subject

Blocks = Sequence[Sequence[nn.Parameter]]
Objective = Sequence[tuple[TokenSequence, float]]  # a sum of weight * log pi(scored tokens)


def block_weights(subject: "Subject") -> list[list[nn.Parameter]]:
    """The weights of every block, so that the gradient with respect to them is that of the effective matrices.

    Under LoRA, y = W x + s B A x: the gradient of the frozen W is that of W + s B A, and the adapter's own tensors are
    left out. Raises InputError for a carrier without blocks, packed weights, weights that two blocks share, and for
    adapters whose base weight is not simply added to (DoRA, IA3, ...), unless they are switched off.
    """
    found: list[list[nn.Parameter]] = []
    adapter_on = bool(subject.facts.get("adapter"))
    unused = ".original_module." if adapter_on else ".modules_to_save."
    for number, block in enumerate(_blocks(subject), 1):
        weights = []
        for name, parameter in block.named_parameters():
            tuner = next((part for part in name.split(".") if part.startswith(TUNER_PARTS)), None)
            if tuner is None and unused not in f".{name}":
                _require_float(parameter, f"{subject.name}, block {number}: {name}")
                weights.append(parameter)
            elif adapter_on and tuner and (not tuner.startswith("lora_") or tuner == "lora_magnitude_vector"):
                raise InputError(
                    f"{subject.name}, block {number}: {name}: only plain LoRA adds to a weight, so that the gradient "
                    "of the effective matrix can be had; merge this adapter into its base and load the result"
                )
        found.append(weights)
    if len({id(p) for weights in found for p in weights}) < sum(map(len, found)):
        raise InputError(f"{subject.name}: blocks share weights, so a gradient belongs to none of them alone")
    return found


def parameter_squares(
    subject: "Subject", objective: Objective, blocks: Blocks, *, vocab: int
) -> Float64[Tensor, "blocks"]:
    """|d objective / d weights of a block|^2, squared Frobenius norms; the objective in nats.

    One forward pass, one row a sequence, and one backward pass in which every gradient is summed and dropped as soon
    as it is there.
    """
    squares = torch.zeros(len(blocks), dtype=torch.float64)
    weights = [parameter for block in blocks for parameter in block]

    def summed(block: int) -> Any:
        def keep(gradient: Tensor) -> Tensor:
            squares[block] += _square(gradient)
            return gradient.new_zeros(()).expand_as(gradient)  # what is handed back takes no memory

        return keep

    with flowing_to(subject, weights), ExitStack() as stack:
        for number, block in enumerate(blocks):
            for parameter in block:
                stack.callback(parameter.register_hook(summed(number)).remove)
        _backward(subject, _weighted(subject, objective, vocab), weights)
    return squares


def residual_squares(subject: "Subject", objective: Objective, *, vocab: int) -> Float64[Tensor, "blocks"]:
    """|d objective / d h_l|^2, h_l the residual after block l at all positions of all sequences, l = 1 .. L."""
    squares = torch.zeros(subject.n_layers, dtype=torch.float64)
    start: list[Tensor] = []

    def watch(layer: int, h: Tensor, mask: Tensor) -> None:
        if layer == 0:
            start.append(h.requires_grad_())
            return

        def keep(gradient: Tensor) -> None:
            squares[layer - 1] += _square(gradient)

        h.register_hook(keep)

    mask = _batch(objective)[1]
    layers = range(subject.n_layers + 1)
    with flowing_to(subject, []), capturing(_blocks(subject), reduce=watch, attention_mask=mask, layers=layers):
        _backward(subject, _weighted(subject, objective, vocab), start)
    return squares


def lens_squares(
    subject: "Subject", sequence: TokenSequence, blocks: Blocks, *, vocab: int
) -> Float64[Tensor, "blocks"]:
    """|d NLL_l / d weights of block l|^2; NLL_l of the scored tokens, read out after block l, nats; block inputs fixed.

    The read-out of one block is held at a time.
    """
    columns = torch.arange(sequence.start - 1, len(sequence.ids) - 1)
    targets = torch.tensor(sequence.ids[sequence.start :])
    ids, mask = _batch([(sequence, 1.0)])
    squares = torch.zeros(len(blocks), dtype=torch.float64)
    with flowing_to(subject, [parameter for block in blocks for parameter in block]), ExitStack() as stack:
        for module in _blocks(subject):
            stack.callback(module.register_forward_pre_hook(_detached, with_kwargs=True).remove)
        kept = stack.enter_context(
            capturing(
                _blocks(subject),
                reduce=rows_at(torch.zeros_like(columns), columns),
                attention_mask=mask,
                layers=range(1, subject.n_layers + 1),
            )
        )
        with torch.enable_grad():
            subject.logits(ids, mask, positions=torch.zeros(1, 1, dtype=torch.long))
        for number, block in enumerate(blocks):
            with torch.enable_grad():
                z = subject.readout(kept.pop(number + 1))[:, :vocab]
                log_probs = token_log_probs(z, targets.to(z.device)).sum()
            gradients = _backward(subject, log_probs, block)
            squares[number] = sum((_square(part) for part in gradients if part is not None), start=0.0)
    return squares


def _blocks(subject: "Subject") -> nn.ModuleList:
    anatomy: Any = getattr(subject, "anatomy", None)
    if anatomy is None:
        raise InputError(f"{subject.name}: gradients need a transformers model; load or wrap it")
    return anatomy.blocks


def _require_float(parameter: nn.Parameter, where: str) -> None:
    if not parameter.is_floating_point():
        raise InputError(f"{where} is {parameter.dtype}: packed weights have no gradient; load the unpacked model")


@contextmanager
def flowing_to(subject: "Subject", weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside, of all of the model's parameters `weights` alone require a gradient; afterwards all are as found."""
    model: Any = getattr(subject, "model")  # noqa: B009  the protocol does not promise one; _blocks has refused those
    found = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in weights}
    try:
        for parameter, needed in found:
            if needed != (id(parameter) in wanted):
                parameter.requires_grad_(not needed)
        yield
    finally:
        for parameter, needed in found:
            parameter.requires_grad_(needed)


def _batch(objective: Objective) -> tuple[Tensor, Tensor]:
    return padded([sequence.ids for sequence, _ in objective], 0)


def _weighted(subject: "Subject", objective: Objective, vocab: int) -> Tensor:
    """Sum of weight * log pi(scored tokens), nats, with its graph. The head reads predicting positions only."""
    ids, mask = _batch(objective)
    positions = torch.zeros(len(objective), max(sequence.n_scored for sequence, _ in objective), dtype=torch.long)
    for row, (sequence, _) in enumerate(objective):
        positions[row, : sequence.n_scored] = torch.arange(sequence.start - 1, len(sequence.ids) - 1)
    with torch.enable_grad():
        logits = subject.logits(ids, mask, positions)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for row, (sequence, weight) in enumerate(objective):
            targets = torch.tensor(sequence.ids[sequence.start :], device=logits.device)
            total = total + weight * token_log_probs(logits[row, : len(targets), :vocab], targets).sum()
    return total


def _backward(subject: "Subject", value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    with exact_products(torch.device(subject.device)):
        return torch.autograd.grad(value, inputs, allow_unused=True)


def _detached(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a block, floating-point tensors among them cut from what made them."""
    return tuple(_cut(value) for value in args), {key: _cut(value) for key, value in kwargs.items()}


def _cut(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _square(gradient: Tensor) -> float:
    """Squared Frobenius norm, summed in float64 (a bfloat16 sum would stop growing at 256 terms)."""
    return torch.linalg.vector_norm(gradient, dtype=torch.float64).item() ** 2
