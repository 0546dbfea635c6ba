"""Policy and reference as a scorer needs them: opened, of one tokenizer, with the text policy that both read under."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .encoding import Encoded, Encoder, TextPolicy
from .vocabulary import real_vocabulary, require_same_tokenizer

if TYPE_CHECKING:
    from .subject import Subject

MAX_SHIFTED = 0.05  # share of rows whose boundary may shift before the run stops


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredModels:
    """Both models, the kind of reference, and the vocabulary they share."""

    policy: "Subject"
    reference: "Subject | None"
    kind: str  # see policy.reference_kind
    rows: int  # of the smaller head
    vocab: int  # of them those that belong to a token

    @property
    def by_role(self) -> "dict[str, Subject]":
        return {"policy": self.policy} | ({} if self.reference is None else {"reference": self.reference})

    @property
    def limit(self) -> int | None:
        """Longest input that both read, tokens."""
        return min((model.limit for model in self.by_role.values() if model.limit is not None), default=None)

    def encoder(self, text: TextPolicy, source: str) -> Encoder:
        return Encoder(self.policy.tokenizer, text, vocab_rows=self.rows, limit=self.limit, source=source)

    def facts(self) -> dict[str, Any]:
        """Who was scored, for settings."""
        from .policy import passed_over

        other = self.reference
        return {
            "policy": self.policy.name,
            "policy_fingerprint": self.policy.fingerprint,
            "reference": None if other is None else other.name,
            "reference_fingerprint": None if other is None else other.fingerprint,
            "reference_kind": self.kind,
            "reference_notice": passed_over(self.policy, other),
            "dtype": self.policy.dtype,
            "tokenizer_hash": self.policy.fingerprints.tokenizer,
            "vocabulary": self.vocab,
            "masked_head_rows": max(model.vocab_size for model in self.by_role.values()) - self.vocab,
        }


def scored_models(policy: Any, reference: Any) -> ScoredModels:
    """Open both (Subjects are taken as they are). Raises InputError for models that read other ids."""
    from .policy import load_policy_and_reference, reference_kind

    subject, other = load_policy_and_reference(policy, reference)
    if other is not None:
        require_same_tokenizer(subject, other)
    rows = min(model.vocab_size for model in (subject, other) if model is not None)
    return ScoredModels(
        policy=subject,
        reference=other,
        kind=reference_kind(subject, other),
        rows=rows,
        vocab=min(rows, real_vocabulary(subject.tokenizer)),
    )


def require_boundaries(encoded: "list[Any]", encoder: Encoder, source: str, *, what: str = "pairs") -> None:
    """Raises InputError naming a row where over 5 % of the boundaries shift, unless the text policy accepts them."""
    shifted: list[Encoded] = [row for row in encoded if row.boundary_shift]
    if encoder.policy.boundary == "accept" or len(shifted) <= MAX_SHIFTED * len(encoded):
        return
    first = shifted[0]
    raise InputError(
        f"{source}, row {first.row}: the prompt's last token merges with a completion (only {first.start} of "
        f"{first.n_prompt} prompt tokens survive): {encoder.pieces(first)}. It happens in {len(shifted)} of "
        f"{len(encoded)} {what}. End the prompts at a token boundary, most simply a newline, or pass boundary='accept' "
        "(--boundary accept), which scores the merged token with the completion"
    )


def score_facts(encoder: Encoder) -> dict[str, Any]:
    """What of the text policy enters a score's key."""
    # whether a shifted boundary stops the run moves no score: a run that goes on with `accept` finds what is there
    return {name: fact for name, fact in encoder.facts().items() if name != "boundary"}
