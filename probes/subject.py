"""What every carrier of a model offers to the diagnostics: the Subject protocol and the small types around it."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# (layer, residual stream h[B, T, d], attention mask [B, T]) -> what to keep of it. Runs inside the hook, under no_grad,
# and must not write into h. Layer 0 is the embeddings (input of block 0), layer k the output of block k-1.
Reducer = Callable[[int, Tensor, Tensor], Any]


@dataclass(frozen=True, slots=True)
class Trace:
    """What a reducer kept, a value a layer: `trace[0]` is the embeddings, `trace[n_layers]` the last residual."""

    values: Mapping[int, Any]

    def __getitem__(self, layer: int) -> Any:
        return self.values[layer]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Rows that hold more than one sequence: where every token stands in its own, and which tokens it may see."""

    position_ids: Int[Tensor, "B T"]
    visible: Bool[Tensor, "B T T"]  # [row, token that looks, token looked at]; every token sees itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The read-out in the simple form that the fused kernels need; the tail (`norm`) comes before it.

    logits = softcap * tanh(scale * (norm(h) @ weight.T + bias) / softcap), without the tanh where softcap is None.
    Rows of `weight` from `vocab` on are padding of the embedding matrix and belong to no token.
    """

    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, "V"] | None
    softcap: float | None
    scale: float
    norm: Callable[[Tensor], Tensor]
    vocab: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """sha256 (hex) of the parts of a checkpoint; `combined` identifies it. Never depends on a path or on sharding."""

    weights: str
    config: str
    tokenizer: str | None
    template: str | None
    combined: str


COMPONENTS = ("resid_pre", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the residual stream of a model. Raises InputError for a negative layer or an unknown component.

    layer: block, 0-based. resid_pre: what goes into the block (trace index `layer`); resid_post: what comes out of it
    (trace index `layer + 1`); attn_out, mlp_out: what its attention or its MLP returns.
    """

    layer: int
    component: str = "resid_post"

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise InputError(f"layer {self.layer}: expected a block, 0 or higher")
        if self.component not in COMPONENTS:
            raise InputError(f"component '{self.component}': expected one of {', '.join(COMPONENTS)}")

    def __str__(self) -> str:
        return f"{self.layer}.{self.component}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Which tokens a forward pass reads: the place of each among the real ones of its row, from mask and cache."""

    index: Int[Tensor, "B T"]  # 0 for the first real token of a row; -1 at padding
    prompt: Int[Tensor, "B"]  # real tokens of a row's prompt


@runtime_checkable
class EditPositions(Protocol):
    """The tokens that an edit changes; `steering.Positions` is the one there is."""

    def at(self, tokens: Tokens) -> Bool[Tensor, "B T"]: ...

    def resolved(self, subject: "Subject") -> "EditPositions": ...  # what depends on the tokenizer settled


@runtime_checkable
class Edit(Protocol):
    """A change of hidden states: `edit(h, where)` is a new tensor, equal to h to the bit where `where` is False."""

    @property
    def positions(self) -> EditPositions: ...

    @property
    def key(self) -> str: ...  # sha256 of all that the edit does: a cache must not take edited scores for plain ones

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]: ...


@runtime_checkable
class Subject(Protocol):
    """A causal language model that diagnostics may read. Carriers: probes/huggingface.py, later others."""

    @property
    def name(self) -> str: ...

    @property
    def n_layers(self) -> int: ...

    @property
    def d_model(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...  # rows of the head, padding included

    @property
    def fingerprint(self) -> str: ...  # Fingerprint.combined

    @property
    def fingerprints(self) -> Fingerprint: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...  # for the manifest: dtypes, quantisation, adapter, anatomy error

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def limit(self) -> int | None: ...  # longest input in tokens; None where the model states none

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase": ...  # raises NoTokenizerError where it was wrapped without one

    def trace(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        *,
        reduce: Reducer,
        layers: Iterable[int] | None = None,
        layout: Layout | None = None,
    ) -> Trace: ...

    def layout_problem(self, longest: int) -> str | None: ...  # why `trace` takes no layout of sequences that long

    def normed(self, residual: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_head"]: ...  # input of the head

    def readout(self, residual: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch V"]: ...

    def head(self) -> Head | None: ...

    def logits(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        positions: Int[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B P V"]: ...

    def editing(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]: ...  # inside, hidden states change

    def generate(self, prompts: list[str], **kwargs: Any) -> list[str]: ...

    def without_adapter(self) -> "Subject": ...

    def with_adapter(self, name: str) -> "Subject": ...


@runtime_checkable
class RewardSubject(Protocol):
    """A sequence classifier with one scalar output: an explicit reward model."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def fingerprints(self) -> Fingerprint: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def limit(self) -> int | None: ...

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase": ...

    def rewards(self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"]) -> Float[Tensor, "B"]: ...
