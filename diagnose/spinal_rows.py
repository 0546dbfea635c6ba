"""Which positions of a prompt are read, and which of them enter the spectrum? Prompts as ids with their positions.

No position is BOS or anything else that the tokenizer put before the text.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from ..probes.capture import means_at, rows_at
from ..probes.encoding import Encoder, TextPolicy
from ..probes.inputs import Invalid, Prompt
from ..probes.padding import padded
from ..probes.sample_rows import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from ..probes.subject import Reducer, Subject

NO_RESPONSE = (
    "no `response` beside the prompt and no assistant turn at its end: lens_positions='response' reads the column "
    "`response` of the file of prompts, the last turn of message lists, or the chosen answers of read_pairs(...)"
    ".prompts()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPrompt:
    """A prompt as ids; `positions` are read: the last real token, then the others (never BOS, never the last).

    With lens_positions="response" the ids go on behind the last token of the prompt: with the response.
    """

    row: int  # data row in its file, from 1
    prompt_id: str | None
    digest: str  # sha256 of the text
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    rows: tuple[int, ...] = ()  # that enter the spectrum, ascending; () where that is the last token alone

    @property
    def key(self) -> tuple[int, ...]:
        """The ids up to the last token of the prompt: prompts with the same are repeated."""
        return self.ids[: self.positions[0] + 1]


def text_policy(
    template: str, eos: str, lens_positions: int | str, *, max_tokens: int, limit: int | None
) -> TextPolicy:
    """How the text of a trace becomes ids: prompt and response are cut as one text, a prompt alone by its encoder."""
    if lens_positions != "response":
        return TextPolicy(template, eos)
    longest = max_tokens if limit is None else min(max_tokens, limit)
    return TextPolicy(template, eos, max_length=longest, over_length="prompt_left")


def traced_prompt(
    prompt: Prompt,
    encoder: Encoder,
    *,
    max_tokens: int,
    lens_positions: int | str,
    positions: int | str,
    seed: int,
) -> TracedPrompt | Invalid:
    """A prompt as ids with its positions, or why it cannot be traced.

    lens_positions: n sampled ones, "all" measured ones beside the last, or those of the "response". positions: that
    enter the spectrum, "last", "mean" or "all" measured ones of the prompt, or m: the last and m - 1 sampled.
    """
    if lens_positions == "response":
        found = _with_response(prompt, encoder)
    else:
        ids = encoder.encode_prompt(prompt, max_tokens)
        found = ids if isinstance(ids, Invalid) else (ids, len(ids), prompt.text)
    if isinstance(found, Invalid):
        return found
    ids, end, said = found
    first = _first_measured(ids, encoder)
    if end <= first:
        return Invalid(row=prompt.row, reason="no_token", detail="no token but the one added before it")
    if isinstance(lens_positions, int):
        inside = sampled_positions(ids, first, lens_positions, seed)
    else:
        inside = tuple(range(first, end - 1)) if lens_positions == "all" else tuple(range(end, len(ids)))
    return TracedPrompt(
        row=prompt.row,
        prompt_id=prompt.prompt_id,
        digest=hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
        ids=ids,
        positions=(end - 1, *inside),
        rows=_spectrum_positions(ids[:end], first, positions, seed),
    )


def sampled_positions(ids: Sequence[int], first: int, n: int, seed: int) -> tuple[int, ...]:
    """At most n positions of first..len(ids)-2, one from each of n equal strata; seeded by the ids themselves."""
    room = len(ids) - 1 - first
    if n == 0:
        return ()
    if room <= n:
        return tuple(range(first, first + max(room, 0)))
    digest = hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()
    random = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    bounds = [first + i * room // n for i in range(n + 1)]
    return tuple(int(random.integers(low, high)) for low, high in pairwise(bounds))


def _spectrum_positions(ids: Sequence[int], first: int, positions: int | str, seed: int) -> tuple[int, ...]:
    if positions == "last":
        return ()
    if isinstance(positions, int):
        return (*sampled_positions(ids, first, positions - 1, seed), len(ids) - 1)
    return tuple(range(first, len(ids)))


def _with_response(prompt: Prompt, encoder: Encoder) -> tuple[tuple[int, ...], int, Any] | Invalid:
    """Ids of prompt and response, without an end of sequence; how many of them are the prompt's; both as text."""
    text, response, name = prompt.text, prompt.response, prompt.prompt_id or ""
    if response is None and not isinstance(text, str) and len(text) > 1 and text[-1]["role"] == "assistant":
        text, response = text[:-1], text[-1:]
    if response is None:
        return Invalid(row=prompt.row, reason="no_response", detail=NO_RESPONSE, name=name)
    sample = Sample(row=prompt.row, sample_id=name, prompt=text, completion=response, finished=False)
    found = encoder.encode_sample(sample)
    return found if isinstance(found, Invalid) else (found.ids, found.start, [text, response])


def _first_measured(ids: tuple[int, ...], encoder: Encoder) -> int:
    """The first position that is no BOS and nothing else the tokenizer put before the text."""
    prefix = encoder.prefix
    if prefix and ids[: len(prefix)] == prefix:
        return len(prefix)
    return int(bool(ids) and ids[0] == encoder.bos_id)


class Captured(NamedTuple):
    """Residual rows of one forward pass, float32, on the CPU."""

    rows: Float[torch.Tensor, "layers n d"]  # at the prompts' positions
    owner: Int[np.ndarray, "n"]  # whose row each is
    first: Int[np.ndarray, "N"]  # each prompt's first one, the last token
    pooled: Float[torch.Tensor, "layers M d"] | None  # at the rows that enter the spectrum, or their mean a prompt


def captured(subject: "Subject", prompts: Sequence[TracedPrompt], *, mean: bool = False) -> Captured:
    """Residual rows at the positions of the prompts, and at their `rows`; mean: one row a prompt, the mean of those."""
    ids, mask = padded([prompt.ids for prompt in prompts], 0)
    owner, columns = _places([prompt.positions for prompt in prompts])
    reducers = [rows_at(owner, columns)]
    if prompts[0].rows:
        reducers.append((means_at if mean else rows_at)(*_places([prompt.rows for prompt in prompts])))
    trace = subject.trace(ids.to(subject.device), mask.to(subject.device), reduce=_each(reducers))
    stacks = [
        torch.stack([trace[layer][part].float().cpu() for layer in range(subject.n_layers + 1)])
        for part in range(len(reducers))
    ]
    counts = torch.tensor([len(prompt.positions) for prompt in prompts])
    first = (counts.cumsum(0) - counts).numpy()
    return Captured(stacks[0], owner.numpy(), first, stacks[1] if len(stacks) > 1 else None)


def _each(reducers: "Sequence[Reducer]") -> "Reducer":
    return lambda layer, h, mask: [reduce(layer, h, mask) for reduce in reducers]


def _places(positions: Sequence[tuple[int, ...]]) -> "tuple[Int[Tensor, 'n'], Int[Tensor, 'n']]":
    """Row of the batch and column of every position."""
    counts = torch.tensor([len(some) for some in positions])
    owner = torch.repeat_interleave(torch.arange(len(positions)), counts)
    return owner, torch.tensor([position for some in positions for position in some])
