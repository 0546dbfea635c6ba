"""Which ids does the model read, and which of them are scored? One policy for scores, traces and information.

The prompt is tokenised alone and with each completion. Scoring starts where the common ids end, at the same position
for both completions, so that both are conditioned on the same ids.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .pair_rows import Invalid, Pair, RowError, Text, require_encodable
from .rendering import FIXED_DATE, Rendered, Renderer
from .sample_rows import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .inputs import Prompt

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextPolicy:
    """How text becomes ids. Raises InputError for a value that is none of those listed.

    template: "auto" (messages through the tokenizer's chat template, strings raw), "chat" (strings too, as one user
        turn), "none" (strings only, raw), or the path of a Jinja file (as "chat", with that template).
    eos: "auto" (raw text gets one end-of-sequence id, templated text what its template writes), "append" or "none".
    boundary: "refuse" stops where the prompt's last token merges with the completion in over 5 % of pairs; or "accept".
    max_length: longest sequence in tokens; None takes the model's own limit.
    over_length: "drop" sets longer pairs aside; "prompt_left" cuts the prompt's beginning, the same for both sides.
    """

    template: str = "auto"
    eos: str = "auto"
    boundary: str = "refuse"
    max_length: int | None = None
    over_length: str = "drop"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("eos", ("auto", "append", "none")),
            ("boundary", ("refuse", "accept")),
            ("over_length", ("drop", "prompt_left")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"max_length={self.max_length}: at least 2 tokens are needed, one to predict from")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPair:
    """A pair as ids. Position t of a completion, t >= start, is predicted from position t - 1."""

    pair: Pair
    prompt_text: str  # as rendered
    chosen_ids: Ids  # prompt and completion
    rejected_ids: Ids
    start: int  # chosen_ids[:start] == rejected_ids[:start]: what both are conditioned on
    n_prompt: int  # tokens of the prompt alone
    boundary_shift: bool  # the prompt's last token merged with a completion: start < n_prompt
    truncated: bool  # the prompt's beginning was cut, on both sides alike
    special_in_text: bool  # the text itself spells a special token
    raw_on_template_model: bool  # a raw string, though the tokenizer has a chat template (template="auto")

    @property
    def row(self) -> int:
        return self.pair.row

    @property
    def prompt(self) -> Text:
        return self.pair.prompt

    @property
    def sides(self) -> tuple[Ids, ...]:
        return self.chosen_ids, self.rejected_ids

    @property
    def n_chosen(self) -> int:
        return len(self.chosen_ids) - self.start

    @property
    def n_rejected(self) -> int:
        return len(self.rejected_ids) - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSample:
    """A prompt with one completion as ids; the fields are those of `EncodedPair`."""

    sample: Sample
    prompt_text: str
    ids: Ids  # prompt and completion
    start: int
    n_prompt: int
    boundary_shift: bool
    truncated: bool
    special_in_text: bool
    raw_on_template_model: bool

    @property
    def row(self) -> int:
        return self.sample.row

    @property
    def prompt(self) -> Text:
        return self.sample.prompt

    @property
    def sides(self) -> tuple[Ids, ...]:
        return (self.ids,)


Encoded = EncodedPair | EncodedSample


def prompt_hash(encoded: Encoded) -> str:
    """Names the prompt as rendered: a merged boundary must not split it."""
    return hashlib.sha256(encoded.prompt_text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Encoder:
    """Turns pairs, samples and prompts into ids under one `TextPolicy`.

    vocab_rows: rows of the model's head; an id beyond them is an InputError. limit: the model's longest input.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        policy: TextPolicy,
        *,
        vocab_rows: int,
        limit: int | None = None,
        source: str = "pairs",
    ) -> None:
        if policy.max_length is not None and limit is not None and policy.max_length > limit:
            raise InputError(f"max_length={policy.max_length}: the model reads at most {limit} tokens")
        self.tokenizer = tokenizer
        self.policy = policy
        self.vocab_rows = vocab_rows
        self.max_length = policy.max_length or limit
        self.source = source
        self.renderer = Renderer(tokenizer, policy.template, source=source)
        self._special_ids = _special_ids(tokenizer)
        self.prefix = _added_prefix(
            tokenizer, self._special_ids
        )  # what the tokenizer puts before raw text: BOS mostly, or nothing
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        if policy.eos == "append" and self.eos_id is None:
            raise InputError("eos='append': the tokenizer has no end-of-sequence token; use eos='none'")
        self._special_texts = tuple(text for text in tokenizer.convert_ids_to_tokens(sorted(self._special_ids)) if text)

    def encode_pair(self, pair: Pair) -> EncodedPair | Invalid:
        """The ids of both completions, or why the pair cannot be scored. InputError: double BOS, id beyond the head."""
        try:
            return self._encode_pair(pair)
        except RowError as error:
            return Invalid(row=pair.row, reason=error.reason, detail=error.detail, name=pair.pair_id)

    def encode_sample(self, sample: Sample) -> EncodedSample | Invalid:
        """The ids of one completion, or why it cannot be scored. Raises InputError as `encode_pair` does.

        An unfinished one gets no end: neither an end-of-sequence id nor what the template writes behind the answer.
        An empty one that is finished is its end alone.
        """
        try:
            return self._encode_sample(sample)
        except RowError as error:
            return Invalid(row=sample.row, reason=error.reason, detail=error.detail, name=sample.sample_id)

    def encode_prompt(self, prompt: "Prompt", max_tokens: int | None = None) -> Ids | Invalid:
        """The ids of a prompt, its beginning cut to `max_tokens` (and the model's limit) behind the added BOS.

        Or why template or tokenizer refuse it. Raises InputError for messages without a template, double BOS.
        """
        try:
            rendered = self.renderer.render(prompt.text, None, prompt.row)
            ids = self._ids(rendered.prompt, templated=rendered.templated, row=prompt.row)
        except RowError as error:
            return Invalid(row=prompt.row, reason=error.reason, detail=error.detail, name=prompt.prompt_id or "")
        longest = min((n for n in (max_tokens, self.max_length) if n is not None), default=len(ids))
        if len(ids) <= longest:
            return ids
        kept = min(self._kept_prefix(ids), longest - 1)
        return ids[:kept] + ids[len(ids) - longest + kept :]

    def encode_apart(self, prompt: Text, completion: Text, row: int) -> tuple[Ids, Ids]:
        """The ids of a prompt (with its generation header) and of what follows it, each tokenised alone.

        No boundary merges, so a completion gets the same ids behind every prompt. Its end as of the policy's `eos`.
        Raises RowError where text or template cannot be used, InputError for double BOS and an id beyond the head.
        """
        rendered = self.renderer.render(prompt, completion, row)
        full = rendered.full or ""
        if not full.startswith(rendered.prompt):
            raise RowError("template_refused", "the template writes the prompt otherwise where an answer follows")
        before = self._ids(rendered.prompt, templated=rendered.templated, row=row)
        after = self._ids(full[len(rendered.prompt) :], templated=True, row=row)  # nothing is added before it
        if self.policy.eos == "none" and rendered.templated:
            after = self._without_end(after, 0)
        if not before:
            raise RowError("no_context", "nothing stands before the first token: empty prompt, and no BOS is added")
        if not after:
            raise RowError("no_scored_token", "the completion has no token")
        return before, self._with_end(after) if self._appends_end(rendered) else after

    def pieces(self, encoded: Encoded) -> str:
        """Where a boundary shifted, in words: the pieces of prompt and of prompt + completion from there on."""
        rendered = self.renderer.render(encoded.prompt, None, encoded.row)
        prompt = self._ids(rendered.prompt, templated=rendered.templated, row=encoded.row)
        keep = encoded.n_prompt - encoded.start
        tail = [*self.tokenizer.convert_ids_to_tokens(list(prompt[-keep:]))] if keep else []
        heads = [
            [*self.tokenizer.convert_ids_to_tokens(list(ids[encoded.start : encoded.start + keep + 1]))]
            for ids in encoded.sides
        ]
        return f"the prompt alone ends in {tail}, with what follows it goes on as {' and '.join(map(str, heads))}"

    def facts(self) -> dict[str, Any]:
        """The policy as resolved on this tokenizer, for settings, manifest and cache keys."""
        return {
            "template": self.policy.template,
            "template_origin": self.renderer.origin,
            "template_hash": self.renderer.template_hash,
            "template_date": FIXED_DATE if self.renderer.fixes_date else None,
            "eos": self.policy.eos,
            "eos_id": self.eos_id,
            "added_prefix_ids": list(self.prefix),
            "boundary": self.policy.boundary,
            "max_length": self.max_length,
            "over_length": self.policy.over_length,
        }

    def _encode_pair(self, pair: Pair) -> EncodedPair:
        rendered, prompt, sides, start = self._sides(pair.prompt, (pair.chosen, pair.rejected), pair.row)
        n_prompt, shifted = len(prompt), start < len(prompt)
        if self.policy.eos == "none" and rendered.templated:
            sides = [self._without_end(side, start) for side in sides]
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            if len(side) <= start:
                raise RowError("no_scored_token", f"`{name}` adds no token to the prompt")
        if sides[0] == sides[1]:
            raise RowError("identical_completions", "both completions are the same ids")
        if self._appends_end(rendered):
            sides = [self._with_end(side) for side in sides]
        whole = max(map(len, sides))
        sides, start, n_prompt = self._fit(sides, start, n_prompt, prompt)
        return EncodedPair(
            pair=pair,
            prompt_text=rendered.prompt,
            chosen_ids=sides[0],
            rejected_ids=sides[1],
            start=start,
            n_prompt=n_prompt,
            boundary_shift=shifted,
            truncated=max(map(len, sides)) < whole,
            special_in_text=any(self._spells_special(text) for text in (pair.prompt, pair.chosen, pair.rejected)),
            raw_on_template_model=self._is_raw_by_default(rendered),
        )

    def _encode_sample(self, sample: Sample) -> EncodedSample:
        rendered, prompt, (ids,), start = self._sides(sample.prompt, (sample.completion,), sample.row)
        n_prompt, shifted = len(prompt), start < len(prompt)
        if rendered.templated and (self.policy.eos == "none" or not sample.finished):
            ids = self._without_end(ids, start)
        elif sample.finished and self._appends_end(rendered):
            ids = self._with_end(ids)
        if len(ids) <= start:
            raise RowError("no_scored_token", "the completion adds no token to the prompt")
        whole = len(ids)
        (ids,), start, n_prompt = self._fit([ids], start, n_prompt, prompt)
        return EncodedSample(
            sample=sample,
            prompt_text=rendered.prompt,
            ids=ids,
            start=start,
            n_prompt=n_prompt,
            boundary_shift=shifted,
            truncated=len(ids) < whole,
            special_in_text=any(self._spells_special(text) for text in (sample.prompt, sample.completion)),
            raw_on_template_model=self._is_raw_by_default(rendered),
        )

    def _sides(self, prompt: Text, completions: Sequence[Text], row: int) -> tuple[Rendered, Ids, list[Ids], int]:
        """The prompt as rendered, its ids, the ids with each completion behind it, and where all of them part."""
        rendered = [self.renderer.render(prompt, completion, row) for completion in completions]
        alone = self._ids(rendered[0].prompt, templated=rendered[0].templated, row=row)
        sides = [self._ids(side.full or "", templated=side.templated, row=row) for side in rendered]
        start = min(_common(alone, side) for side in sides)
        if start == 0:
            raise RowError("no_context", "nothing stands before the first token: empty prompt, and no BOS is added")
        return rendered[0], alone, sides, start

    def _appends_end(self, rendered: Rendered) -> bool:
        return self.policy.eos == "append" or (self.policy.eos == "auto" and not rendered.templated)

    def _is_raw_by_default(self, rendered: Rendered) -> bool:
        return not rendered.templated and self.policy.template == "auto" and self.renderer.has_own

    def _ids(self, text: str, *, templated: bool, row: int) -> Ids:
        require_encodable(text, "the text")
        try:
            plain = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:
            if type(error) is not Exception:  # tokenizers raises it bare for a word that has no id and no unknown token
                raise
            raise RowError("not_encodable", f"the tokenizer refuses the text: {error}") from error
        ids = (*(() if templated else self.prefix), *plain)
        if self.bos_id is not None and len(ids) > 1 and ids[0] == ids[1] == self.bos_id:
            raise InputError(
                f"{self.source}, row {row}: double BOS: the text starts with {self.tokenizer.bos_token!r} and the "
                f"{'template' if templated else 'tokenizer'} adds another; take one of them out"
            )
        if ids and max(ids) >= self.vocab_rows:
            raise InputError(
                f"{self.source}, row {row}: id {max(ids)} ({self.tokenizer.convert_ids_to_tokens(max(ids))!r}) has no "
                f"row in the model's head of {self.vocab_rows}; is this the model's own tokenizer?"
            )
        return ids

    def _fit(self, sides: list[Ids], start: int, n_prompt: int, prompt: Ids) -> tuple[list[Ids], int, int]:
        longest = max(map(len, sides))
        if self.max_length is None or longest <= self.max_length:
            return sides, start, n_prompt
        excess, kept = longest - self.max_length, self._kept_prefix(prompt)
        if self.policy.over_length == "drop":
            raise RowError("too_long", f"{longest} tokens, the limit is {self.max_length}")
        if start - excess < max(kept, 1):
            raise RowError("too_long", f"{longest} tokens with {start} of prompt, the limit is {self.max_length}")
        return [ids[:kept] + ids[kept + excess :] for ids in sides], start - excess, n_prompt - excess

    def _kept_prefix(self, ids: Ids) -> int:
        """Ids at the beginning that a cut spares: what the tokenizer adds, or a template's BOS."""
        if self.prefix and ids[: len(self.prefix)] == self.prefix:
            return len(self.prefix)
        return int(bool(ids) and ids[0] == self.bos_id)

    def _with_end(self, ids: Ids) -> Ids:
        return ids if self.eos_id is None or ids[-1] == self.eos_id else (*ids, self.eos_id)

    def _without_end(self, ids: Ids, start: int) -> Ids:
        """Without the template's end: the last special token of the completion and the white space behind it."""
        for i in range(len(ids) - 1, start - 1, -1):
            if ids[i] in self._special_ids:
                return ids[:i]
            if self.tokenizer.decode([ids[i]]).strip():
                break
        return ids

    def _spells_special(self, text: Text) -> bool:
        parts = [text] if isinstance(text, str) else [message["content"] for message in text]
        return any(special in part for part in parts for special in self._special_texts)


def _common(first: Ids, second: Ids) -> int:
    """Length of the longest common prefix."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


def _added_prefix(tokenizer: "PreTrainedTokenizerBase", special: frozenset[int]) -> Ids:
    """The ids a tokenizer puts before plain text. What it puts behind is left out: the EOS policy decides on that.

    Read off words of its own vocabulary: a tokenizer without an unknown token refuses all others.
    """
    ordinary = (i for i in sorted(tokenizer.get_vocab().values()) if i not in special)
    for text in (tokenizer.decode([i]) for i in islice(ordinary, 64)):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"] if text.strip() else []
        added = tokenizer(text)["input_ids"] if plain else []
        for i in range(len(added) - len(plain) + 1):
            if plain and added[i : i + len(plain)] == plain:
                return tuple(added[:i])
    return ()


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*tokenizer.all_special_ids, *added})
