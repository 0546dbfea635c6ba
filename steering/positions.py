"""Which tokens of a row does an edit change? Counted among real tokens, never by column."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import InputError
from ..probes.encoding import Encoder, TextPolicy
from ..probes.inputs import Prompt
from ..probes.pair_rows import Invalid
from ..probes.subject import Subject, Tokens
from ..probes.token_positions import per_row, real_index

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHERE = ("all", "prompt", "generation")


@dataclass(frozen=True, slots=True)
class Positions:
    """The real tokens of a row that an edit changes: those that pass every condition given.

    where: "all", "prompt", or "generation" (what follows the prompt).
    prefix: so many leading tokens are left alone; "auto": those that every templated prompt shares (`resolved`).
    last: only the last n tokens of the prompt. span: only real tokens start .. stop - 1.
    prompt: tokens of each row's prompt where prompt and completion are read together, as in training. None: the prompt
        is what is read before anything is cached, or what `Subject.generate` was given.
    Raises InputError for values out of range, and for `last` with "generation".
    """

    where: str = "all"
    prefix: int | str = 0
    last: int | None = None
    span: tuple[int, int] | None = None
    prompt: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.where not in _WHERE:
            raise InputError(f"positions '{self.where}': expected one of {', '.join(_WHERE)}")
        if self.prefix != "auto" and (not isinstance(self.prefix, int) or self.prefix < 0):
            raise InputError(f"prefix={self.prefix!r}: expected a number of tokens, 0 or more, or 'auto'")
        if self.last is not None and (self.last < 1 or self.where == "generation"):
            raise InputError(f"last={self.last}: expected 1 or more tokens of the prompt, not where='{self.where}'")
        if self.span is not None and not 0 <= self.span[0] < self.span[1]:
            raise InputError(f"span={self.span}: expected (start, stop) with 0 <= start < stop")

    def mask(self, attention_mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"], past: int = 0) -> Bool[Tensor, "B T"]:
        """Whether each token is edited; attention_mask covers cache and input, `past` of its columns are in the cache.

        T = S - past. What is cached is the prompt then, unless `prompt` says otherwise. Padding is never edited.
        ValueError where no column is left.
        """
        if not 0 <= past < attention_mask.shape[1]:
            raise ValueError(f"past={past}: expected fewer than the {attention_mask.shape[1]} columns of the mask")
        index = real_index(attention_mask)
        cached = attention_mask[:, :past] if past else attention_mask
        return self.at(Tokens(index=index[:, past:], prompt=(cached != 0).sum(-1)))

    def at(self, tokens: Tokens) -> Bool[Tensor, "B T"]:
        """As `mask`, from the places of the tokens among the real ones of their rows."""
        if isinstance(self.prefix, str):
            raise ValueError("prefix='auto' depends on the tokenizer: positions.resolved(subject) first")
        index = tokens.index
        edited = (index >= 0) & (index >= self.prefix)
        if self.where != "all" or self.last is not None:
            lengths = tokens.prompt
            if self.prompt is not None:
                lengths = per_row(torch.tensor(self.prompt, device=index.device), len(index), "prompt lengths")
            prompt = lengths.to(index.device)[:, None]
            if self.where != "all":
                edited &= (index < prompt) == (self.where == "prompt")
            if self.last is not None:
                edited &= (index >= prompt - self.last) & (index < prompt)
        if self.span is not None:
            edited &= (index >= self.span[0]) & (index < self.span[1])
        return edited

    def resolved(self, subject: Subject) -> "Positions":
        """The same with the number of tokens that `prefix="auto"` stands for on this subject's tokenizer."""
        if self.prefix != "auto":
            return self
        return replace(self, prefix=shared_prefix_length(subject.tokenizer, vocab_rows=subject.vocab_size))

    def to_dict(self) -> dict[str, Any]:
        """For a file; InputError where `prompt` belongs to one batch."""
        if self.prompt is not None:
            raise InputError("positions with the prompt lengths of one batch cannot be kept in a file")
        span = None if self.span is None else list(self.span)
        return {"where": self.where, "prefix": self.prefix, "last": self.last, "span": span}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Positions":
        span = content.get("span")
        return cls(
            where=content.get("where", "all"),
            prefix=content.get("prefix", 0),
            last=content.get("last"),
            span=None if span is None else (span[0], span[1]),
        )


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The tokens that one or another of several positions names."""

    parts: tuple[Positions, ...]

    def at(self, tokens: Tokens) -> Bool[Tensor, "B T"]:
        return torch.stack([part.at(tokens) for part in self.parts]).any(0)

    def resolved(self, subject: Subject) -> "AnyOf":
        return AnyOf(tuple(part.resolved(subject) for part in self.parts))


def prompt_ends(text: str, prefix: int) -> AnyOf:
    """ "f5+l5": the first 5 tokens of the prompt behind `prefix`, and its last 5; "f3" or "l1" alone: one of them.

    The notation of pyreft. InputError for another text, and for 0 tokens.
    """
    found = re.fullmatch(r"(?:f([1-9]\d*))?\+?(?:l([1-9]\d*))?", text)
    if not found or not any(found.groups()) or ("+" in text) != all(found.groups()):
        raise InputError(f"positions '{text}': expected the first and the last tokens of a prompt, such as f5+l5 or l1")
    first, last = found.groups()
    parts = []
    if first:
        parts.append(Positions("prompt", prefix=prefix, span=(prefix, prefix + int(first))))
    if last:
        parts.append(Positions("prompt", prefix=prefix, last=int(last)))
    return AnyOf(tuple(parts))


def shared_prefix_length(tokenizer: "PreTrainedTokenizerBase", *, vocab_rows: int) -> int:
    """Leading ids that the templated prompts of two different one-letter user messages share.

    Without a chat template: 1 if the tokenizer puts a BOS before text, else 0.
    """
    encoder = Encoder(tokenizer, TextPolicy(), vocab_rows=vocab_rows, source="prefix='auto'")
    if encoder.renderer.template is None:
        return int(encoder.bos_id is not None and encoder.prefix[:1] == (encoder.bos_id,))
    for letters in ("ab", "AB", "01"):
        rows = [encoder.encode_prompt(Prompt(row=0, text=({"role": "user", "content": one},))) for one in letters]
        for row in rows:
            if isinstance(row, Invalid):
                raise InputError(f"prefix='auto': {row.detail}; give the number of tokens")
        first, second = (row for row in rows if not isinstance(row, Invalid))
        if first != second:
            pairs = enumerate(zip(first, second, strict=False))
            return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    raise InputError("prefix='auto': the tokenizer writes all one-letter messages alike; give the number of tokens")
