"""Which rates are rounding? The reference beside itself: in another dtype, and in batches of one sequence."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..probes.final_states import write_states
from ..probes.histories import History
from ..probes.noise_floor import FULL
from .information_rates import PANEL, counted, prompt_means
from .information_reading import Tail, read_information

if TYPE_CHECKING:
    from ..probes.shards import Progress
    from ..probes.subject import Subject

ROUNDING = 2e-3  # nats a token: what bfloat16 logits of size 32 with kernel noise can give, see the spec's section 6
MEASURED = 32  # histories
JUDGED = ("information", "plausible_information", "kl")  # what is held against the floor


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloor:
    """Rates under `effective` say "no measurable change".

    measured: rates of the reference against itself by way ("bfloat16", "batches of one") and measure, nats a token.
    reason: why a way was not measured.
    """

    effective: float
    measured: dict[str, dict[str, float]]
    n_histories: int
    reason: str | None = None

    def facts(self) -> dict[str, Any]:
        """For settings."""
        return {
            "effective": self.effective,
            "rounding": ROUNDING,
            "measured": self.measured,
            "n_histories": self.n_histories,
            "reason": self.reason,
        }


def measured_floor(
    subject: "Subject",
    histories: Sequence[History],
    *,
    vocab: int,
    plausible: float | str = 1e-4,
    batch_tokens: int = 8192,
    seed: int = 0,
    progress: "Progress | None" = None,
) -> NoiseFloor:
    """max(2e-3, what the model in another dtype differs from itself by) on 32 histories drawn with the seed.

    Other dtype: bfloat16 for a model in float32 or float64, else float32. A copy of the model is made for it; where
    none can be (quantised weights, an adapter switched off, another carrier), the reason is given and 2e-3 stands.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(histories))[:MEASURED])
    some = [histories[i] for i in chosen]
    sequences = [history.sequence for history in some]
    other, reason = _copy(subject)
    ways: dict[str, tuple[Subject, int]] = {"batches of one": (subject, 1)}
    if other is not None:
        ways[other.dtype] = (other, batch_tokens)
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = write_states(subject, sequences, f"{folder}/plain", batch_tokens=batch_tokens), Tail.of(subject)
        for number, (way, (model, tokens)) in enumerate(ways.items()):
            there = write_states(model, sequences, f"{folder}/{number}", batch_tokens=tokens), Tail.of(model)
            reading = read_information(there, plain, some, vocab=vocab, plausible=plausible)
            usable = counted(reading.positions)
            if len(usable):
                means = prompt_means(usable, PANEL).frame.mean()
                measured[way] = {name: float(means[name]) for name in PANEL}
            else:
                reason = f"{way}: no position of the {len(some)} responses has finite logits"
            if progress is not None:
                progress("noise floor", number + 1, len(ways))
    if len(some) < MEASURED:
        few = f"measured on {len(some)} histories, all there are; {MEASURED} are meant"
        reason = few if reason is None else f"{reason}; {few}"
    largest = max((values[name] for values in measured.values() for name in JUDGED), default=0.0)
    return NoiseFloor(effective=max(ROUNDING, largest), measured=measured, n_histories=len(some), reason=reason)


def _copy(subject: "Subject") -> "tuple[Subject | None, str | None]":
    """The same weights in another dtype, or why there is none."""
    from ..probes.loading import wrap

    model: Any = getattr(subject, "model", None)
    if model is None:
        return None, "the carrier holds no module that could be copied"
    if subject.facts.get("adapter_in_place"):
        return None, "no copy is made of a model with another adapter in place"
    if getattr(model, "is_quantized", False) or not all(weight.is_floating_point() for weight in model.parameters()):
        return None, "quantised weights have no copy in another dtype"
    dtype = torch.bfloat16 if subject.dtype in FULL else torch.float32
    copied = copy.deepcopy(model).to(dtype)
    if subject.facts.get("adapter_switched_off"):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in copied.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.enable_adapters(False)
    return wrap(copied, subject.tokenizer), None
