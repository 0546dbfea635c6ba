"""What does the steered model say? Many prompts at many strengths, in batches, and each as if it were alone.

A row of a batch has a strength of its own. Drawn answers take their noise from a generator of their prompt, so that
neither the batch nor what was made before moves them, and all strengths of a prompt are drawn with the same noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import InputError
from ...probes.encoding import Ids
from ...probes.generation import respects_left_padding, stop_ids
from ...probes.huggingface import HuggingFaceSubject
from ...probes.shards import Progress, item_key
from ...probes.subject import Subject
from ..vector import SteeringVector
from .applying import Steering, applying


@dataclass(frozen=True, slots=True)
class Wanted:
    """An answer to make."""

    ids: Ids  # of the prompt
    strength: float = 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer; its end is left out of text and count."""

    text: str
    n_tokens: int
    finished: bool  # False: cut at the number of new tokens


class PromptNoise:
    """A logits processor: greedy over logits / temperature + Gumbel noise is a draw from the softmax (Gumbel 1954).

    The noise of step t of a row depends on seed and prompt alone.
    """

    def __init__(self, prompts: Sequence[Ids], temperature: float, seed: int) -> None:
        self.temperature = temperature
        seeds = [int(item_key(seed, prompt)[:15], 16) for prompt in prompts]
        self.generators = [torch.Generator().manual_seed(number) for number in seeds]

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        width = scores.shape[1]
        waiting = torch.stack([torch.empty(width).exponential_(generator=one) for one in self.generators])
        tiny = torch.finfo(waiting.dtype).tiny
        return scores / self.temperature - waiting.clamp_min_(tiny).log_().to(scores)


def generate_steered(
    subject: Subject,
    vector: Steering | None,
    wanted: Sequence[Wanted],
    *,
    max_new_tokens: int = 128,
    temperature: float | int = 0.0,
    seed: int = 0,
    batch_size: int = 16,
    clamp: Mapping[str, Any] | None = None,
    keep: Callable[[Sequence[int], Sequence[Generation]], None] | None = None,
    progress: Progress | None = None,
) -> list[Generation]:
    """An answer for everything wanted, in order; temperature 0: greedy. vector None: the model as it is.

    clamp: options of `applying`. keep: told the places and answers of every batch as it is done. Strengths share a
    batch where the vector has an edit a row and the model respects its mask; else a batch has one strength.
    Raises InputError as `vector.applied` does, for settings out of range and for a carrier that generates no ids.
    """
    if max_new_tokens < 1 or batch_size < 1 or not 0 <= temperature < float("inf"):
        raise InputError(
            f"max_new_tokens={max_new_tokens}, batch_size={batch_size}, temperature={temperature}: the first two are "
            "at least 1, the last at least 0"
        )
    if not isinstance(subject, HuggingFaceSubject):
        raise InputError(f"{subject.name}: this carrier generates no ids; load the checkpoint with transformers")
    mixed = isinstance(vector, SteeringVector) and respects_left_padding(subject)
    ends, applied = stop_ids(subject), applying(subject, vector, **(clamp or {}))
    found: dict[int, Generation] = {}
    for batch in _batches(wanted, batch_size, mixed):
        prompts = [wanted[i].ids for i in batch]
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        if temperature > 0:
            options["logits_processor"] = [PromptNoise(prompts, float(temperature), seed)]
        strengths = [wanted[i].strength for i in batch]
        one = len({*strengths}) == 1
        with applied(strengths[0] if one else strengths):
            made = [_generation(subject, ids, ends) for ids in subject.generate_ids(prompts, **options)]
        found |= dict(zip(batch, made, strict=True))
        if keep is not None:
            keep(batch, made)
        if progress is not None:
            progress("generating", len(found), len(wanted))
    return [found[i] for i in range(len(wanted))]


def _batches(wanted: Sequence[Wanted], size: int, mixed: bool) -> Iterator[list[int]]:
    """Places, the longest prompts first; of one strength each unless mixed."""
    parts: dict[float | None, list[int]] = {}
    for i in sorted(range(len(wanted)), key=lambda i: (-len(wanted[i].ids), i)):
        parts.setdefault(None if mixed else wanted[i].strength, []).append(i)
    for order in parts.values():
        for start in range(0, len(order), size):
            yield order[start : start + size]


def _generation(subject: HuggingFaceSubject, ids: Ids, ends: Sequence[int]) -> Generation:
    finished = bool(ids) and ids[-1] in ends
    body = ids[:-1] if finished else ids
    return Generation(subject.tokenizer.decode(body, skip_special_tokens=True), len(body), finished)
