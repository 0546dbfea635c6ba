"""What are side effects measured on? Texts, benign prompts and questions as ids, all refused before the model runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import InputError
from ...probes.encoding import Encoder, TextPolicy
from ...probes.inputs import Source, read_prompts
from ...probes.pair_rows import Invalid
from ...probes.scored_rows import TokenSequence
from ...probes.subject import Subject
from ..encoded import quadruple_encoder
from ..quadruples import QuadrupleFile
from .asked import AskedFile, encoded, read_asked
from .choices import Question, letter_forms, question_ids, read_choices
from .refusals import NEW_TOKENS, OPENINGS, Openings, first_tokens, openings_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EffectInputs:
    """Rows as ids; asked: benign prompts, None where none were given; questions: empty where none were given.

    counts: rows used, and set aside by reason.
    """

    encoder: Encoder  # of prompts and questions; texts are read raw
    texts: Mapping[int, TokenSequence]  # by row
    asked: AskedFile | None
    openings: Openings
    built_in: bool  # the openings are ours
    questions: tuple[Question, ...]
    max_tokens: int
    max_new_tokens: int
    counts: Mapping[str, int]


def read_effects(
    subject: Subject,
    *,
    texts: Source,
    benign: Source | None = None,
    choices: Source | None = None,
    openings: Openings | Source | QuadrupleFile | None = None,
    max_tokens: int = 256,
    max_new_tokens: int = NEW_TOKENS,
    template: str | None = None,
) -> EffectInputs:
    """All inputs of `side_effects`, read and encoded; runs nothing.

    Raises InputError for a file of which nothing can be used; for openings of which no first token is left, where
    there are benign prompts; and for letters that the tokenizer does not tell apart (see letter_forms).
    """
    encoder = quadruple_encoder(subject, template, "none", "prompts")
    rows, counts = _texts(subject, texts, max_tokens)
    given = OPENINGS if openings is None else openings if isinstance(openings, Openings) else openings_of(openings)
    asked = None
    if benign is not None:
        asked = encoded(read_asked(benign), encoder, max_new_tokens)
        first_tokens(encoder, given)
        counts |= {"benign_prompts": len(asked.prompts)} | {f"benign_{name}": n for name, n in asked.reasons.items()}
    questions: tuple[Question, ...] = ()
    if choices is not None:
        questions, unread = _readable(choices, encoder)
        letter_forms(encoder, questions)
        counts |= {f"questions_{name}": n for name, n in unread.items()}
    return EffectInputs(
        encoder=encoder,
        texts=rows,
        asked=asked,
        openings=given,
        built_in=openings is None,
        questions=questions,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        counts=counts,
    )


def _texts(subject: Subject, texts: Source, max_tokens: int) -> tuple[dict[int, TokenSequence], dict[str, int]]:
    if max_tokens < 2:
        raise InputError(f"max_tokens={max_tokens}: expected 2 or more, one to predict from")
    file = read_prompts(texts)
    encoder = Encoder(subject.tokenizer, TextPolicy("none", "none"), vocab_rows=subject.vocab_size, source=file.source)
    longest = min(max_tokens, subject.limit or max_tokens)
    rows: dict[int, TokenSequence] = {}
    for prompt in file:
        ids = encoder.encode_prompt(prompt)
        start = max(1, len(encoder.prefix))
        if not isinstance(ids, Invalid) and len(ids) > start:
            rows[prompt.row] = TokenSequence(ids[:longest], start)
    if not rows:
        raise InputError(f"{file.source}: no text of two tokens")
    return rows, {"texts": len(rows), "texts_set_aside": file.n_rows - len(rows)}


def _readable(choices: Source, encoder: Encoder) -> tuple[tuple[Question, ...], dict[str, int]]:
    """The questions that the model can read, and how many it can and cannot."""
    file = read_choices(choices)
    kept = tuple(question for question in file.questions if not isinstance(question_ids(encoder, question), Invalid))
    if not kept:
        raise InputError(f"{file.source}: the model can read none of {len(file.questions)} questions")
    return kept, {"used": len(kept), "unreadable": len(file.questions) - len(kept), **file.reasons}
