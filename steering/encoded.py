"""Which tokens are the two runs of a quadruple made of? Prompt and response tokenised apart, the source token found.

The same response follows both prompts, so its j-th token in the base run stands against its j-th in the source run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..probes.encoding import Encoder, Ids, TextPolicy
from ..probes.pair_rows import Invalid, RowError, Text
from ..probes.scored_rows import TokenSequence
from ..probes.subject import Subject
from .quadruples import Quadruple, QuadrupleFile

PROMPT_LAST = "prompt_last"
DIRECTIONS = ("both", "elicit", "suppress")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedQuadruple:
    """A quadruple as ids; responses are cut to so many tokens, never decoded again."""

    row: int
    negative: Ids  # x, with template and generation header
    positive: Ids  # x_c
    negative_response: Ids  # y
    positive_response: Ids  # y_c
    negative_place: int  # of the source token in x
    positive_place: int  # and in x_c


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPair:
    """A base run, and the source run whose words it is to say: two prompts, one response. ValueError for two."""

    base: TokenSequence
    source: TokenSequence
    place: int  # of the source token in the source run
    elicit: bool  # base x, source x_c, response y_c; else base x_c, source x, response y
    row: int | None = None  # of the quadruple in its file, from 1

    def __post_init__(self) -> None:
        if self.base.ids[self.base.start :] != self.source.ids[self.source.start :]:
            raise ValueError("the responses of base and source run are not the same ids")


def run_pairs(rows: Sequence[EncodedQuadruple], directions: str) -> list[RunPair]:
    """Pairs that elicit, a row each, then those that suppress. InputError for another name."""
    if directions not in DIRECTIONS:
        raise InputError(f"directions '{directions}': expected one of {', '.join(DIRECTIONS)}")
    elicit = [
        RunPair(
            base=_run(row.negative, row.positive_response),
            source=_run(row.positive, row.positive_response),
            place=row.positive_place,
            elicit=True,
            row=row.row,
        )
        for row in rows
        if directions != "suppress"
    ]
    suppress = [
        RunPair(
            base=_run(row.positive, row.negative_response),
            source=_run(row.negative, row.negative_response),
            place=row.negative_place,
            elicit=False,
            row=row.row,
        )
        for row in rows
        if directions != "elicit"
    ]
    return elicit + suppress


def quadruple_encoder(subject: Subject, template: str | None, eos: str, source: str) -> Encoder:
    """template None: strings as one user turn where the tokenizer has a chat template, as they stand where not."""
    own = bool(getattr(subject.tokenizer, "chat_template", None))
    policy = TextPolicy(template=template if template is not None else "chat" if own else "none", eos=eos)
    return Encoder(subject.tokenizer, policy, vocab_rows=subject.vocab_size, limit=subject.limit, source=source)


def encode_quadruples(
    encoder: Encoder, file: QuadrupleFile, *, source: str, max_response_tokens: int
) -> tuple[dict[int, EncodedQuadruple], QuadrupleFile]:
    """Row -> ids, and the file without the rows that the tokenizer or the model's context refuse.

    source: "prompt_last", or a string whose last token is taken, searched by ids from the right in either prompt.
    Raises InputError, naming the row, for a prompt without that string, and for max_response_tokens below 1.
    """
    if max_response_tokens < 1:
        raise InputError(f"max_response_tokens={max_response_tokens}: expected 1 or more")
    needles = None if source == PROMPT_LAST else _needles(encoder, source)
    found: dict[int, EncodedQuadruple] = {}
    aside: list[Invalid] = []
    for row in file:
        try:
            found[row.row] = _encoded(encoder, file.source, row, source, needles, max_response_tokens)
        except RowError as error:
            aside.append(Invalid(row=row.row, reason=error.reason, detail=error.detail, name=row.quadruple_id))
    return found, file.setting_aside(aside)


def _encoded(
    encoder: Encoder, file: str, row: Quadruple, source: str, needles: list[Ids] | None, longest: int
) -> EncodedQuadruple:
    negative, negative_response = _side(encoder, row, row.negative_output)
    positive, positive_response = _side(encoder, row, row.positive_output, first="positive")
    responses = negative_response[:longest], positive_response[:longest]
    total = max(len(negative), len(positive)) + max(map(len, responses))
    if encoder.max_length is not None and total > encoder.max_length:
        raise RowError("too_long", f"{total} tokens of prompt and response, the model reads {encoder.max_length}")
    places = [
        len(prompt) - 1 if needles is None else _place(prompt, needles, f"{file}, row {row.row}: `{name}`", source)
        for name, prompt in (("negative_input", negative), ("positive_input", positive))
    ]
    return EncodedQuadruple(
        row=row.row,
        negative=negative,
        positive=positive,
        negative_response=responses[0],
        positive_response=responses[1],
        negative_place=places[0],
        positive_place=places[1],
    )


def _side(encoder: Encoder, row: Quadruple, output: Text, *, first: str = "negative") -> tuple[Ids, Ids]:
    """The ids of one input, and those of the output behind it; RowError where they are others behind the other one."""
    inputs = (row.negative_input, row.positive_input)
    own, other = inputs if first == "negative" else inputs[::-1]
    prompt, response = encoder.encode_apart(own, output, row.row)
    if encoder.encode_apart(other, output, row.row)[1] != response:
        raise RowError("response_differs", "the template writes the response otherwise behind the other input")
    return prompt, response


def _needles(encoder: Encoder, source: str) -> list[Ids]:
    """The ids of a string, at the beginning of a text and behind a blank: tokenizers write a word in two ways."""
    texts = (source, f" {source}")
    found = [tuple(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    if not found[0]:
        raise InputError(f"source={source!r}: no token; expected '{PROMPT_LAST}', or a text that every prompt holds")
    return found


def _place(prompt: Ids, needles: list[Ids], where: str, source: str) -> int:
    for end in range(len(prompt), 0, -1):
        if any(prompt[max(0, end - len(needle)) : end] == needle for needle in needles):
            return end - 1
    raise InputError(f"{where} does not hold the tokens of source={source!r}; expected them in every prompt")


def _run(prompt: Ids, response: Ids) -> TokenSequence:
    return TokenSequence(ids=(*prompt, *response), start=len(prompt))
