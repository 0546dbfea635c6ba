"""What does a model say with a vector, and what without? Continuations of prompts, strength by strength."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import InputError
from ..probes.encoding import Ids
from ..probes.generation import respects_left_padding, stop_ids
from ..probes.huggingface import HuggingFaceSubject
from ..probes.inputs import Prompt, PromptFile, Source, check_invalid
from ..probes.pair_rows import Invalid, Text
from ..probes.shards import Progress
from ..probes.subject import Site, Subject
from .encoded import quadruple_encoder
from .factors import finite
from .model_fit import require_fit
from .plain_inputs import plain_inputs
from .runs import Edits
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """Vectors at different sites that act together, with the options of a clamp; see SteeringVector.edit_for."""

    vectors: Sequence[SteeringVector]
    scale: str = "mid"
    mode: str = "set"

    def edits(self, strengths: Sequence[float | None], rows: int) -> Edits:
        """Of strengths, `rows` rows each; none where the one strength is 0. None, the middle, stands alone."""
        if list(strengths) == [0.0]:
            return {}
        known = [s for s in strengths if s is not None]
        neutral = not known
        if len(known) > 1:  # else one value for all rows, however the batch is cut
            return {v.site: v.edit_for(known, rows, scale=self.scale, mode=self.mode) for v in self.vectors}
        strength = 1.0 if neutral else known[0]
        return {v.site: v.edit_for(strength, neutral=neutral, scale=self.scale, mode=self.mode) for v in self.vectors}


def steered_texts(
    subject: Subject,
    vectors: Sequence[SteeringVector],
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

    temperature 0: greedy, the strengths of a prompt as rows of one batch. Above: drawn from softmax(logits /
    temperature), a batch a strength, all from the same seed, so that strength 0 is the model as it is.
    neutral: also the clamp to the middle. scale, mode: of a clamp. template: as the vector was made where None.
    batch_size: rows a batch.
    Raises InputError where a vector does not belong on the model (see SteeringVector.load), for two at one site,
    options that an edit does not know, and where over 5 % of the prompts cannot be read.
    """
    steering = Steering(vectors=vectors, scale=scale, mode=mode)
    carrier = carrier_of(subject, vectors, allow_other_weights)
    _require_sizes(max_new_tokens, batch_size, temperature)
    wanted: list[float | None] = [*dict.fromkeys([0.0, *map(finite, strengths)]), *([None] if neutral else [])]
    steering.edits([s for s in wanted if s is not None], 1)  # refused before anything is generated
    steering.edits(wanted[-1:], 1)
    file = plain_inputs(prompts)
    asked, invalid = encoded_prompts(subject, file, vectors, template=template, room=max_new_tokens)
    together = not temperature and respects_left_padding(carrier)
    groups = _groups(wanted, together)
    size = max(1, batch_size // max(map(len, groups)))
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if temperature:
        options |= {"do_sample": True, "temperature": float(temperature), "top_k": 0, "top_p": 1.0}
    found: dict[tuple[int, float | None], Ids] = {}
    for start in range(0, len(asked), size):
        some = asked[start : start + size]
        for group in groups:
            rows = [ids for _ in group for _, ids in some]
            with torch.random.fork_rng(), subject.editing(steering.edits(group, len(some))):
                torch.manual_seed(seed + start)
                drawn = carrier.generate_ids(rows, **options)
            keys = [(start + k, strength) for strength in group for k in range(len(some))]
            found.update(zip(keys, drawn, strict=True))
        if progress is not None:
            progress(f"generating with {subject.name}", start + len(some), len(asked))
    ends = stop_ids(carrier)
    texts = [
        _text(carrier, prompt, strength, found[k, strength], ends)
        for k, (prompt, _) in enumerate(asked)
        for strength in wanted
    ]
    return SteeredTexts(texts=tuple(texts), invalid=invalid)


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


def carrier_of(subject: Subject, vectors: Sequence[SteeringVector], allow_other_weights: bool) -> HuggingFaceSubject:
    """The subject, which can generate ids and on which the vectors belong."""
    if not vectors:
        raise InputError("no vectors: expected one at least")
    sites: set[Site] = set()
    for vector in vectors:
        allowed = allow_other_weights or vector.allow_other_weights
        require_fit(vector.site, vector.subspace.width, vector.fingerprint, subject, allow_other_weights=allowed)
        if vector.site in sites:
            raise InputError(f"two vectors at {vector.site}: use alignscope.steering.SteeringSet")
        sites.add(vector.site)
    if not isinstance(subject, HuggingFaceSubject):
        raise InputError(f"{subject.name}: this carrier generates no ids; load it with carrier='huggingface'")
    return subject


def _require_sizes(max_new_tokens: int, batch_size: int, temperature: float | int) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}, batch_size={batch_size}: expected 1 or more")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature={temperature}: expected 0 (greedy) or a number above")


def _groups(wanted: Sequence[float | None], together: bool) -> list[list[float | None]]:
    """The strengths of one generate; the middle, which is an option and no strength, has its own."""
    numbers = [strength for strength in wanted if strength is not None]
    middle: list[list[float | None]] = [[None]] if None in wanted else []
    return [[*numbers], *middle] if together else [[strength] for strength in numbers] + middle


def _text(
    subject: HuggingFaceSubject, prompt: Prompt, strength: float | None, ids: Ids, ends: Sequence[int]
) -> SteeredText:
    finished = bool(ids) and ids[-1] in ends
    body = ids[:-1] if finished else ids
    return SteeredText(
        row=prompt.row,
        prompt=prompt.text,
        strength=strength,
        output=subject.tokenizer.decode(list(body), skip_special_tokens=True),
        n_tokens=len(body),
        finished=finished,
    )
