"""A scorer that asks nobody: the unsteered model says whether an answer shows the concept, fits and reads well.

All three rules are ours [reconstructed]; ratings compare between strengths of one model, not between models.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from ...errors import InputError
from ...probes.encoding import Encoder, Ids
from ...probes.inputs import Prompt, Source
from ...probes.pair_rows import Invalid, RowError, Text
from ...probes.sequence_scores import TokenSequence, score_sequences
from ...probes.shards import item_key
from ...probes.subject import Subject
from ...probes.token_positions import unedited
from ..encoded import quadruple_encoder
from ..quadruple_rows import Template, asking, filling
from ..quadruples import Quadruple, QuadrupleFile, read_quadruples
from .asked import AskedPrompt
from .candidates import ELICIT
from .generating import Wanted, generate_steered
from .ratings import Ratings

FOREIGN = 8  # prompts that an answer is held against
COMMON = 95.0  # percentile of the unsteered losses up to which an answer reads like them
REPEATS = 3  # times that four tokens in a row may occur
EMPTY: Ratings = (0.0, 0.0, 0.0)
ABSENT: Ratings = (None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OfflineScorer:
    """Ratings by the unsteered model [reconstructed]; made by `fit`. Log-probabilities in nats, of the whole answer.

    concept: e = (log p(out | x_c) - log p(out | x)) / tokens: 0 if e <= 0, 2 if e >= `expected`, its median on the
        training answers y_c, else 1. Where x and x_c are unrelated requests that is which of them is answered.
    instruction: how many of 8 foreign prompts make the answer likelier than its own (equal ones half): none 2, fewer
        than half 1, else 0.
    fluency: loss = -log p(out) / tokens behind x or x_c, whichever makes it likelier, so that an answer does not read
        badly for showing the concept: 2 up to `usual`, the 95th percentile of unsteered answers, 0 beyond twice it or
        where four tokens in a row occur more than 3 times, else 1.
    x and x_c of a prompt: see `paired`; of one that no quadruple holds x_c is built from x with the concept's text, and
    without such a text the concept's rating is missing. An answer without a token is rated 0 in all; one too long for
    the model is missing.
    """

    subject: Subject
    encoder: Encoder
    expected: float  # nats a token
    usual: float  # nats a token
    prompts: tuple[Text, ...]  # plain ones, foreign to each other
    partners: Mapping[str, tuple[Text, Text]]  # prompt with its concept, and the prompt alone -> (x, x_c)
    template: Template | None = None
    seed: int = 0
    reconstructed: bool = True
    name: str = "offline, by the unsteered model"

    @classmethod
    def fit(
        cls,
        subject: Subject,
        quadruples: Source | QuadrupleFile,
        *,
        unsteered: Iterable[tuple[Text, str]] | None = None,
        max_new_tokens: int = 128,
        temperature: float | int = 1.0,
        template: str | None = None,
        x_c_template: Template | None = None,
        seed: int = 0,
        batch_size: int = 16,
    ) -> "OfflineScorer":
        """Learn what is usual from training quadruples; unsteered: (prompt, answer), by default made for at most 64 x.

        The unsteered answers should be made as those that are rated: max_new_tokens, temperature, template as of
        `sweep`. x_c_template: how the x_c of a prompt is built that no quadruple holds, as of read_quadruples.
        Raises InputError for fewer than 9 distinct plain prompts, no answer that can be read, or answers y_c that
        x_c makes no likelier (a median of e of 0 or less): the model cannot tell the concept.
        """
        file = read_quadruples(quadruples)
        encoder = quadruple_encoder(subject, template, "none", file.source)
        plain = tuple({_key(row.negative_input): row.negative_input for row in file}.values())
        if len(plain) <= FOREIGN:
            raise InputError(f"{file.source}: {len(plain)} distinct plain inputs; the scorer needs {FOREIGN + 1}")
        pairs = [(row.concept or "", row.negative_input, row.positive_input) for row in file]
        with unedited():
            given = list(unsteered) if unsteered is not None else _answers(
                subject, encoder, plain[:64], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
                batch_size=batch_size,
            )  # fmt: skip
            expected = _expected(subject, encoder, file.quadruples)
            losses = [-total / n for total, n in _scored(subject, encoder, given) if n]
        if not losses:
            raise InputError(f"{file.source}: no unsteered answer can be read, so nothing says what is usual")
        if not expected > 0:
            raise InputError(
                f"{file.source}: the answers that show the concept are no likelier behind x_c than behind x (median "
                f"{expected:.3g} nats a token), so this model cannot tell the concept; use another scorer"
            )
        return cls(
            subject=subject,
            encoder=encoder,
            expected=expected,
            usual=float(np.percentile(losses, COMMON)),
            prompts=plain,
            partners=_partners(pairs),
            template=x_c_template,
            seed=seed,
        )

    def paired(self, prompts: Iterable[AskedPrompt]) -> "OfflineScorer":
        """The same, knowing the partners of these prompts too: it was fitted on other quadruples than it rates."""
        pairs = [
            (one.concept, *((one.text, one.partner) if one.direction == ELICIT else (one.partner, one.text)))
            for one in prompts
            if one.partner is not None
        ]
        return replace(self, partners={**self.partners, **_partners(pairs)})

    def __call__(self, prompt: Text, output: str, concept: str) -> Ratings:
        if not output.strip():
            return EMPTY
        pair = self.partners.get(_key(prompt, concept)) or self.partners.get(_key(prompt))
        known = pair is not None or bool(concept.strip())
        x, x_c = pair or (prompt, self._built(prompt, concept) if known else prompt)
        behind = [x, x_c, prompt, *self._foreign(prompt, x, x_c)]
        with unedited():
            found = _scored(self.subject, self.encoder, [(text, output) for text in behind])
        if any(n is None for _, n in found):
            return ABSENT
        n = found[0][1]
        if not n:
            return EMPTY
        plain, asked, own, *others = (total for total, _ in found)
        response = self.encoder.encode_apart(prompt, output, 0)[1]
        return (
            concept_rating((asked - plain) / n, self.expected) if known else None,
            instruction_rating(own, others),
            fluency_rating(-max(plain, asked) / n, self.usual, response),
        )

    def _built(self, prompt: Text, concept: str) -> Text:
        make = filling(self.template)
        return asking(prompt, lambda turn: make(turn, concept))

    def _foreign(self, prompt: Text, x: Text, x_c: Text) -> list[Text]:
        """8 plain prompts that are neither this one nor its partner; the same for every answer to it."""
        own = {_key(text) for text in (prompt, x, x_c)}
        others = [text for text in self.prompts if _key(text) not in own]
        return Random(int(item_key(self.seed, _key(prompt))[:15], 16)).sample(others, min(FOREIGN, len(others)))


def require_pairs(prompts: Iterable[AskedPrompt], quadruples: QuadrupleFile) -> None:
    """InputError, naming the row, for a prompt whose answers x and x_c cannot rate: no quadruple holds it, and it
    is to suppress, so that its x is not known, or has no concept to build x_c with.
    """
    held = {_key(text) for row in quadruples for text in (row.negative_input, row.positive_input)}
    for one in prompts:
        if one.partner is not None or _key(one.text) in held or (one.direction == ELICIT and one.concept.strip()):
            continue
        lacks = "no concept" if one.direction == ELICIT else "no x to compare its answers with"
        raise InputError(
            f"prompt {one.prompt_id} (row {one.row}), to {one.direction}: it has {lacks}; the offline scorer wants "
            "quadruples, or plain prompts to elicit with --concept (concept=)"
        )


def concept_rating(e: float, expected: float) -> float:
    """0 if e <= 0, 2 if e >= expected, else 1 [reconstructed]; nats a token.

    >>> [concept_rating(e, 0.5) for e in (-0.1, 0.0, 0.2, 0.5)]
    [0.0, 0.0, 1.0, 2.0]
    """
    return 0.0 if e <= 0 else 2.0 if e >= expected else 1.0


def instruction_rating(own: float, others: Sequence[float]) -> float:
    """2 where no foreign prompt makes the answer likelier, 1 where fewer than half do (equal: half), else 0.

    >>> [instruction_rating(-5.0, [-9.0] * (8 - k) + [-1.0] * k) for k in (0, 3, 4)]
    [2.0, 1.0, 0.0]
    """
    above = sum(1.0 if other > own else 0.5 if other == own else 0.0 for other in others)
    return 2.0 if above == 0 else 1.0 if above < len(others) / 2 else 0.0


def fluency_rating(loss: float, usual: float, ids: Sequence[int]) -> float:
    """2 up to the usual loss, 0 beyond twice it or where a 4-gram occurs more than 3 times, else 1; nats a token.

    >>> fluency_rating(1.0, 1.0, range(9)), fluency_rating(1.5, 1.0, range(9)), fluency_rating(1.0, 1.0, [7] * 7)
    (2.0, 1.0, 0.0)
    """
    grams: dict[tuple[int, ...], int] = {}
    for i in range(len(ids) - 3):
        gram = tuple(ids[i : i + 4])
        grams[gram] = grams.get(gram, 0) + 1
    if loss > 2 * usual or max(grams.values(), default=0) > REPEATS:
        return 0.0
    return 2.0 if loss <= usual else 1.0


def _expected(subject: Subject, encoder: Encoder, rows: Sequence[Quadruple]) -> float:
    """Median over the answers y_c of what x_c adds, nats a token."""
    texts = [(text, row.positive_output) for row in rows for text in (row.positive_input, row.negative_input)]
    found = _scored(subject, encoder, texts)
    added = [
        (asked[0] - plain[0]) / asked[1]
        for asked, plain in zip(found[::2], found[1::2], strict=True)
        if asked[1] and plain[1]
    ]
    return float(np.median(added)) if added else 0.0


def _scored(subject: Subject, encoder: Encoder, texts: Sequence[tuple[Text, Text]]) -> list[tuple[float, int | None]]:
    """(log-probability, tokens) of every answer behind its prompt; tokens None where it cannot be read, 0 if empty."""
    sequences: dict[int, TokenSequence] = {}
    found: list[tuple[float, int | None]] = []
    for i, (prompt, answer) in enumerate(texts):
        try:
            before, after = encoder.encode_apart(prompt, answer, i)
        except RowError as error:
            found.append((0.0, 0 if error.reason == "no_scored_token" else None))
            continue
        fits = encoder.max_length is None or len(before) + len(after) <= encoder.max_length
        found.append((0.0, None))
        if fits:
            sequences[i] = TokenSequence((*before, *after), len(before))
    for i, score in zip(sequences, score_sequences(subject, list(sequences.values())), strict=True):
        found[i] = score
    return found


def _answers(subject: Subject, encoder: Encoder, prompts: Sequence[Text], **options: Any) -> list[tuple[Text, str]]:
    wanted: list[tuple[Text, Ids]] = []
    for row, text in enumerate(prompts):
        ids = encoder.encode_prompt(Prompt(row=row, text=text))
        if not isinstance(ids, Invalid) and ids:
            wanted.append((text, ids))
    made = generate_steered(subject, None, [Wanted(ids) for _, ids in wanted], **options)
    return [(text, answer.text) for (text, _), answer in zip(wanted, made, strict=True) if answer.text.strip()]


def _partners(pairs: Iterable[tuple[str, Text, Text]]) -> dict[str, tuple[Text, Text]]:
    """(concept, x, x_c) by either text: with its concept, as one x may stand with several, and alone: the first one."""
    found: dict[str, tuple[Text, Text]] = {}
    for concept, x, x_c in pairs:
        for text in (x, x_c):
            found[_key(text, concept)] = (x, x_c)
            found.setdefault(_key(text), (x, x_c))
    return found


def _key(text: Text, concept: str | None = None) -> str:
    return item_key(text) if concept is None else item_key(text, concept)
