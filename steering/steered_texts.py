"""What does a model say with a vector, and what without? Continuations of prompts, strength by strength."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..probes.encoding import Ids
from ..probes.inputs import Prompt, PromptFile, Source, check_invalid
from ..probes.pair_rows import Invalid, Text
from ..probes.shards import Progress
from ..probes.subject import Subject
from .encoded import quadruple_encoder
from .evaluation.applying import applying
from .evaluation.generating import Generation, Wanted, generate_steered
from .factors import finite
from .plain_inputs import plain_inputs
from .sets import SteeringSet
from .vector import SteeringVector


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeredText:
    """What follows one prompt at one strength; strength None: clamped to the middle between f+ and f-."""

    row: int  # of the prompt in its file, from 1
    prompt: Text
    strength: float | None  # 0: without the vector
    output: str
    n_tokens: int  # generated, the end of the sequence not counted
    finished: bool  # the model ended it; else it was cut


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeredTexts:
    """Prompt by prompt, without the vector first, then the strengths as asked; and the prompts set aside."""

    texts: tuple[SteeredText, ...]
    invalid: tuple[Invalid, ...]

    def __iter__(self) -> Iterator[SteeredText]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def to_rows(self) -> list[dict[str, Any]]:
        """A dictionary a text, of JSON values."""
        rows = [asdict(text) for text in self.texts]
        return [row | {"prompt": row["prompt"] if isinstance(row["prompt"], str) else [*row["prompt"]]} for row in rows]


def steered_texts(
    subject: Subject,
    vectors: Sequence[SteeringVector] | SteeringSet,
    prompts: Source | PromptFile,
    *,
    strengths: Sequence[float | int] = (1.0,),
    neutral: bool = False,
    scale: str = "mid",
    mode: str = "set",
    template: str | None = None,
    max_new_tokens: int = 64,
    temperature: float | int = 0.0,
    seed: int = 0,
    batch_size: int = 16,
    allow_other_weights: bool = False,
    progress: Progress | None = None,
) -> SteeredTexts:
    """Continuations of every prompt without the vectors (strength 0), then at each strength, then at the middle.

    See generate_steered: temperature 0 is greedy, and draws at all strengths of a prompt share their noise. Several
    vectors act together, joint unless they are a set that is not. neutral: also the clamp to the middle. scale, mode:
    of a clamp. template: as the (first) vector was made where None. batch_size: rows a batch.
    Raises InputError where a vector does not belong on the model (see SteeringVector.load), for options that an edit
    does not know, and where over 5 % of the prompts cannot be read.
    """
    each = vectors.vectors if isinstance(vectors, SteeringSet) else vectors
    vector = together(vectors, allow_other_weights)
    options = {name: value for name, value, usual in (("scale", scale, "mid"), ("mode", mode, "set")) if value != usual}
    numbers = [*dict.fromkeys([0.0, *map(finite, strengths)])]
    applied = applying(subject, vector, **options)
    for strength in numbers:  # refused before anything is generated
        applied(strength)
    if neutral:
        applying(subject, vector, **options, neutral=True)(1.0)
    file = plain_inputs(prompts)
    asked, invalid = encoded_prompts(subject, file, each, template=template, room=max_new_tokens)

    def generated(wanted: Sequence[float], clamp: dict[str, Any]) -> list[Generation]:
        rows = [Wanted(ids, strength) for _, ids in asked for strength in wanted]
        return generate_steered(
            subject,
            vector,
            rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            clamp=clamp,
            progress=progress,
        )

    said = [generated(numbers, options), generated([1.0], {**options, "neutral": True}) if neutral else []]
    shown: list[float | None] = [*numbers, *([None] if neutral else [])]
    texts = []
    for k, (prompt, _) in enumerate(asked):
        ours = [*said[0][k * len(numbers) : (k + 1) * len(numbers)], *said[1][k : k + 1]]
        texts += [_text(prompt, strength, one) for strength, one in zip(shown, ours, strict=True)]
    return SteeredTexts(texts=tuple(texts), invalid=invalid)


def together(
    vectors: Sequence[SteeringVector] | SteeringSet, allow_other_weights: bool = False
) -> SteeringVector | SteeringSet:
    """The vectors of one file, or of a set, as what is applied: one, or a set of several. InputError for none."""
    given = vectors if isinstance(vectors, SteeringSet) else SteeringSet(vectors)
    allowed = [replace(v, allow_other_weights=allow_other_weights or v.allow_other_weights) for v in given.vectors]
    return allowed[0] if len(allowed) == 1 else replace(given, vectors=allowed)


def encoded_prompts(
    subject: Subject,
    file: PromptFile,
    vectors: Sequence[SteeringVector],
    *,
    template: str | None = None,
    room: int = 0,
) -> tuple[list[tuple[Prompt, Ids]], tuple[Invalid, ...]]:
    """Prompts as ids, the generation header included, and those that cannot be read. room: tokens to follow.

    template None: the one that the first vector was made with; of other tools' vectors, one user turn where the
    tokenizer has a chat template. InputError where over 5 % cannot be read.
    """
    own = (vectors[0].metadata.get("settings") or {}).get("template")
    encoder = quadruple_encoder(subject, own if template is None else template, "none", file.source)
    found: list[tuple[Prompt, Ids]] = []
    aside: list[Invalid] = []
    for prompt in file:
        ids = encoder.encode_prompt(prompt)
        if not isinstance(ids, Invalid) and not ids:
            ids = Invalid(row=prompt.row, reason="empty_prompt", detail="no token", name=prompt.prompt_id or "")
        elif not isinstance(ids, Invalid) and subject.limit is not None and len(ids) + room > subject.limit:
            told = f"{len(ids)} tokens and {room} to follow, the model reads {subject.limit}"
            ids = Invalid(row=prompt.row, reason="no_room", detail=told, name=prompt.prompt_id or "")
        if isinstance(ids, Invalid):
            aside.append(ids)
        else:
            found.append((prompt, ids))
    check_invalid(file, more=aside)
    return found, (*file.invalid, *aside)


def _text(prompt: Prompt, strength: float | None, said: Generation) -> SteeredText:
    return SteeredText(
        row=prompt.row,
        prompt=prompt.text,
        strength=strength,
        output=said.text,
        n_tokens=said.n_tokens,
        finished=said.finished,
    )
