"""Low-rank changes of weights, of any strength: what LoRA learns. No direction of hidden states, so no vector."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import InputError
from ..probes.fingerprint import state_hash
from ..probes.quiet import quiet_loading
from ..probes.shards import item_key
from ..probes.subject import Site, Subject
from .factors import finite, numbers_of
from .model_fit import require_fit
from .positions import Positions
from .vector import PathLike, Strength

ADAPTER = "steering"  # its name on the model
Pair = tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]  # A and B of a linear layer, float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraSteering:
    """W + strength (alpha / rank) B A in linear layers; `applied` puts that on the model it was trained on.

    weights: by the path of the layer in the model. metadata, history: as of SteeringVector. arXiv 2106.09685.
    """

    weights: Mapping[str, Pair]
    layers: tuple[int, ...]  # the blocks they belong to
    alpha: float
    method: str = "lora"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if not self.weights or not self.layers:
            raise InputError("no weights: expected a linear layer at least")

    def __repr__(self) -> str:
        return f"LoraSteering(rank {self.rank} in {len(self.weights)} linear layers of {_blocks(self.layers)})"

    @property
    def rank(self) -> int:
        """k"""
        return next(iter(self.weights.values()))[0].shape[0]

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What is known of the model it was made on."""
        return self.metadata.get("fingerprint") or {}

    @property
    def key(self) -> str:
        """Names all that it does at any strength."""
        return item_key("lora", self.alpha, state_hash(self._tensors()))

    def applied(
        self, subject: Subject, strength: Strength = 1.0, *, allow_other_weights: bool = False
    ) -> AbstractContextManager[None]:
        """A context in which the model has the changed weights. Strength 0 is off: logits equal to the bit.

        Raises InputError where it does not belong on this model (see SteeringVector.load), where that has an adapter
        of its own, and for a sequence of strengths: weights are those of all rows.
        """
        given = numbers_of(strength)
        if isinstance(given, list):
            raise InputError(f"{self!r}: its weights are those of all rows of a batch; expected one strength")
        scale = finite(given)
        first = Site(self.layers[0])
        require_fit(first, subject.d_model, self.fingerprint, subject, allow_other_weights=allow_other_weights)
        if scale == 0:
            return subject.editing({})
        _require_shapes(subject, self.weights)
        return self._worn(subject, scale)

    @contextmanager
    def _worn(self, subject: Subject, scale: float) -> Iterator[None]:
        named = {Site(self.layers[0]): _Named(item_key(self.key, scale))}  # so that no cache takes its scores for plain
        with wearing(subject, list(self.weights), rank=self.rank, alpha=self.alpha * scale) as worn:
            with torch.no_grad():
                for name, pair in self.weights.items():
                    for own, value in zip(worn[name], pair, strict=True):
                        own.copy_(value)
            with subject.editing(named):
                yield

    def notices(self) -> tuple[str, ...]:
        """What a user should know before trusting it."""
        return tuple(self.metadata.get("notices", ()))

    def save(self, folder: PathLike) -> Path:
        """Write it as an adapter of PEFT, which `alignscope audit --policy` and PeftModel.from_pretrained open.

        Raises InputError where something is there already, or cannot be written.
        """
        from safetensors.torch import save_file

        at = Path(folder)
        if at.exists():
            raise InputError(f"{at}: is there already; name a new folder")
        try:
            at.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{at}: cannot be written ({error.strerror})") from error
        try:
            _config(list(self.weights), self.rank, self.alpha).save_pretrained(str(at))
            save_file(self._tensors(), at / "adapter_model.safetensors", metadata={"format": "pt"})
        except OSError as error:
            shutil.rmtree(at, ignore_errors=True)
            raise InputError(f"{at}: cannot be written ({error.strerror})") from error
        return at

    def _tensors(self) -> dict[str, Tensor]:
        """By the names that PEFT gives them."""
        return {
            f"base_model.model.{name}.lora_{part}.weight": value.contiguous()
            for name, pair in self.weights.items()
            for part, value in zip("AB", pair, strict=True)
        }


@contextmanager
def wearing(
    subject: Subject, names: Sequence[str], *, rank: int, alpha: float, seed: int = 0
) -> Iterator[dict[str, tuple[nn.Parameter, nn.Parameter]]]:
    """Inside, these linear layers have A (random, from `seed`) and B (zeros) of PEFT; afterwards they are as found.

    Gives A and B by name, float32. Raises InputError for a model that has an adapter already.
    """
    from peft import LoraModel
    from peft.tuners.tuners_utils import cast_adapter_dtype

    model: Any = getattr(subject, "model")  # noqa: B009  the protocol does not promise one
    _require_plain(subject)
    needed = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with quiet_loading(offline=True):  # puts torch's random state back too
            torch.manual_seed(seed)
            try:
                LoraModel(model, {ADAPTER: _config(names, rank, alpha)}, ADAPTER)
            except ValueError as error:
                raise InputError(f"{subject.name}: LoRA cannot be had of its layers: {error}") from error
        cast_adapter_dtype(model, ADAPTER)
        layers = {name: model.get_submodule(name) for name in names}
        yield {name: (one.lora_A[ADAPTER].weight, one.lora_B[ADAPTER].weight) for name, one in layers.items()}
    finally:
        _unload(model)
        for parameter, own in needed:
            parameter.requires_grad_(own)


def linear_layers(subject: Subject, layers: Sequence[int]) -> list[str]:
    """Paths of the linear layers in these blocks. InputError where a block has none."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's, with its weight turned round

    anatomy: Any = getattr(subject, "anatomy", None)
    if anatomy is None:
        raise InputError(f"{subject.name}: LoRA needs a transformers model; load or wrap it")
    found: list[str] = []
    for layer in layers:
        block = f"{anatomy.blocks_path}.{layer}"
        parts = anatomy.blocks[layer].named_modules()
        own = [f"{block}.{name}" for name, module in parts if isinstance(module, nn.Linear | Conv1D)]
        if not own:
            raise InputError(f"{subject.name}: block {layer} has no linear layer that LoRA could change")
        found += own
    return found


class _Named:
    """An edit that changes nothing, so that what reads the model's fingerprint sees that it is another model."""

    positions = Positions()

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        return h.clone()


def _unload(model: Any) -> None:
    """Put every layer that carries an adapter back; PEFT may have refused after the first few."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    vars(model).pop("peft_config", None)


def _config(names: Sequence[str], rank: int, alpha: float) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names), lora_dropout=0.0, task_type="CAUSAL_LM")


def _require_plain(subject: Subject) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model: Any = getattr(subject, "model")  # noqa: B009
    if subject.facts.get("adapter") or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError(f"{subject.name}: it has an adapter already, and LoRA would be a second one; merge it first")


def _require_shapes(subject: Subject, weights: Mapping[str, Pair]) -> None:
    model: Any = getattr(subject, "model")  # noqa: B009
    there = dict(model.named_modules())
    for name, (a, b) in weights.items():
        if name not in there:
            raise InputError(f"{subject.name}: it has no {name}, which the adapter changes")
        shape = there[name].weight.shape
        if sorted(shape) != sorted((b.shape[0], a.shape[1])):
            raise InputError(f"{subject.name}: {name} is {tuple(shape)}, the adapter is for {(len(b), a.shape[1])}")


def _blocks(layers: Sequence[int]) -> str:
    return f"block {layers[0]}" if len(layers) == 1 else f"blocks {', '.join(map(str, layers))}"
