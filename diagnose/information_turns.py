"""How do both models of an update come to lie on disk? One after the other, and where asked one at a time in memory."""

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..probes.encoding import Encoder, TextPolicy
from ..probes.next_tokens import end_ids
from ..probes.policy import is_adapter, load_control, load_policy_and_reference, shares_weights
from ..probes.scored_models import ScoredModels, scored_models
from ..probes.subject import Fingerprint
from .history_sets import HistoryInput, HistorySet, encoded_histories
from .information_sides import Side, Sides

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..probes.subject import Subject

Named = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadModel:
    """What is still asked of a model that was read and is gone: all that a `Subject` says of itself, no weights."""

    name: str
    vocab_size: int
    limit: int | None
    dtype: str
    device: str
    tokenizer: "PreTrainedTokenizerBase"
    fingerprints: Fingerprint
    facts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.fingerprints.combined

    @classmethod
    def of(cls, subject: "Subject") -> "ReadModel":
        return cls(
            name=subject.name,
            vocab_size=subject.vocab_size,
            limit=subject.limit,
            dtype=subject.dtype,
            device=subject.device,
            tokenizer=subject.tokenizer,
            fingerprints=subject.fingerprints,
            facts=dict(subject.facts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What is read and how it becomes ids, before a model is known."""

    given: HistoryInput
    text: TextPolicy
    source: str
    max_invalid: float

    def encoded(self, models: ScoredModels) -> tuple[Encoder, HistorySet]:
        encoder = models.encoder(self.text, self.source)
        found = encoded_histories(self.given, encoder, vocab_rows=models.vocab, max_invalid=self.max_invalid)
        return encoder, replace(found, end_ids=end_ids(models.policy))


@dataclass(slots=True, kw_only=True)
class BothRead:
    """Both models' states, and what read them. In turns, `models.policy` is a `ReadModel`."""

    models: ScoredModels
    reading: Sides
    ours: Side
    theirs: Side

    @property
    def reference(self) -> "Subject":
        assert self.models.reference is not None  # both were read
        return self.models.reference

    def let_go(self) -> None:
        """Keep of the reference, too, what it says of itself alone, unless it has to read its states itself."""
        if self.theirs[1].subject is None:
            card: Any = ReadModel.of(self.reference)
            self.models = replace(self.models, reference=card)
            gc.collect()


def read_both(
    policy: Any,
    reference: Any,
    texts: Texts,
    folders: tuple[Path, Path],
    *,
    base: Named | None,
    dtype: str,
    device: str,
    **how: Any,
) -> BothRead:
    """Both models in memory, their states on disk in `folders` (policy, reference); `how` is the rest of `Sides`."""
    if reference is None:
        raise InputError("the information of an update needs the model it began with: give the reference (--reference)")
    under = base if is_adapter(policy) or is_adapter(reference) else None  # else it is that of saves between them
    models = scored_models(*load_policy_and_reference(policy, reference, base=under, dtype=dtype, device=device))
    encoder, found = texts.encoded(models)
    reading = Sides(given=found, encoder=encoder, vocab=models.vocab, **how)
    ours, theirs = (reading.read(model, at) for model, at in zip(models.by_role.values(), folders, strict=True))
    return BothRead(models=models, reading=reading, ours=ours, theirs=theirs)


def read_in_turn(
    policy: Named,
    reference: Named,
    texts: Texts,
    folders: tuple[Path, Path],
    *,
    base: Named | None,
    dtype: str,
    device: str,
    **how: Any,
) -> BothRead:
    """The same numbers: the policy leaves its states and its head and is gone before the reference is loaded.

    Raises InputError for a policy whose head is not simple (it reads its states itself), or texts that the reference
    cannot all read, which the policy has then read already.
    """
    card, reading, ours = _states_of(policy, texts, folders[0], base, dtype, device, how)
    gc.collect()  # hooks and modules refer to each other
    models = scored_models(card, load_control(reference, None, base=base, dtype=dtype, device=device))
    assert models.reference is not None
    if (models.rows, models.vocab, models.limit) != (card.vocab_size, reading.vocab, card.limit):
        reading.encoder, found = texts.encoded(models)
        found = replace(found, end_ids=reading.given.end_ids)  # the policy that said them is gone
        if found.histories != reading.given.histories:
            raise InputError(
                f"the reference {models.reference.name} reads at most {models.limit} tokens and has {models.rows} head "
                "rows, so that fewer texts stay than the policy has read: give max_length (--max-length), or load both "
                "at once (without one_at_a_time)"
            )
    reading.vocab = models.vocab
    theirs = reading.read(models.reference, folders[1])
    return BothRead(models=models, reading=reading, ours=ours, theirs=theirs)


def read_models(
    policy: Named, reference: Named, *, base: Named | None, dtype: str, device: str
) -> tuple[ReadModel, ReadModel]:
    """What both say of themselves, loaded one after the other and let go."""

    def read(checkpoint: Named) -> ReadModel:
        found = ReadModel.of(load_control(checkpoint, None, base=base, dtype=dtype, device=device))
        gc.collect()
        return found

    return read(policy), read(reference)


def require_in_turn(policy: Any, reference: Any, *, base: Named | None, whole_sequences: bool) -> None:
    """Raises InputError for what cannot be read one model at a time."""
    problem = None
    if not (isinstance(policy, str | os.PathLike) and isinstance(reference, str | os.PathLike)):
        problem = "both models are given as paths then; a loaded model cannot be let go here"
    elif shares_weights(policy, reference, base=base):
        problem = f"{policy} and {reference} are one set of weights with an adapter on it: one load is enough"
    elif whole_sequences:
        problem = "the entropy over whole sequences draws from both models at once: leave sequence and paper_style out"
    if problem is not None:
        raise InputError(f"one_at_a_time (--one-at-a-time): {problem}")


def _states_of(
    policy: Named, texts: Texts, folder: Path, base: Named | None, dtype: str, device: str, how: dict[str, Any]
) -> tuple[ReadModel, Sides, Side]:
    """No reference to the model leaves this function."""
    alone = scored_models(load_control(policy, None, base=base, dtype=dtype, device=device), None)
    if alone.policy.head() is None:
        raise InputError(
            f"one_at_a_time (--one-at-a-time): the head of {alone.policy.name} is not simple, so that the model itself "
            "has to read its states; load both at once"
        )
    encoder, found = texts.encoded(alone)
    reading = Sides(given=found, encoder=encoder, vocab=alone.vocab, **how)
    return ReadModel.of(alone.policy), reading, reading.read(alone.policy, folder)
