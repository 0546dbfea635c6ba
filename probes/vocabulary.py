"""Do two models read the same ids, and how many of a head's rows belong to a token?"""

import json
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .subject import Subject


def real_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Ids up to the largest that a token has; rows of a head beyond them are padding."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def same_ids(first: "Subject", second: "Subject") -> bool:
    """Whether every id that a head has a row for is the same piece of text to both models.

    True for one tokenizer, and for two that differ in entries beyond both heads alone (transformers appends one to GGUF
    files), with equal ids, merges, begin and end: text that spells such an entry is refused when it is encoded. An
    entry that one of the heads has a row for is a difference: that model can give it probability.
    """
    ours, theirs = first.fingerprints.tokenizer, second.fingerprints.tokenizer
    if ours is None or theirs is None or ours == theirs:
        return ours == theirs
    a, b = first.tokenizer, second.tokenizer
    rows = max(first.vocab_size, second.vocab_size)
    vocabularies = [{token: i for token, i in tokenizer.get_vocab().items() if i < rows} for tokenizer in (a, b)]
    if a.get_vocab() == b.get_vocab() or vocabularies[0] != vocabularies[1]:
        return False
    ends = [(tokenizer.bos_token_id, tokenizer.eos_token_id) for tokenizer in (a, b)]
    return ends[0] == ends[1] and _merges(a) is not None and _merges(a) == _merges(b)


def require_same_tokenizer(policy: "Subject", reference: "Subject") -> None:
    """Raises InputError, saying what differs, unless both models are known to read the same ids: see `same_ids`.

    A reference wrapped without a tokenizer passes where its head has as many rows as the policy's.
    """
    ours, theirs = policy.fingerprints.tokenizer, reference.fingerprints.tokenizer
    if ours == theirs:
        return
    if theirs is not None and same_ids(policy, reference):
        return
    if theirs is None:
        if reference.vocab_size == policy.vocab_size:
            return
        raise InputError(
            f"reference {reference.name} has no tokenizer and {reference.vocab_size} head rows where policy "
            f"{policy.name} has {policy.vocab_size}; give the reference its tokenizer"
        )
    raise InputError(
        f"policy {policy.name} and reference {reference.name} have different tokenizers: "
        f"{_difference(policy.tokenizer, reference.tokenizer)}. Log-probabilities of different ids cannot be compared; "
        "save one tokenizer with both checkpoints"
    )


def _merges(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, Any] | None:
    """Kind and merges of the tokenizer's model, as pairs; None where they cannot be read."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    model = json.loads(backend.to_str())["model"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    return str(model.get("type")), merges


def _difference(first: "PreTrainedTokenizerBase", second: "PreTrainedTokenizerBase") -> str:
    a, b = first.get_vocab(), second.get_vocab()
    if a != b:
        only_a, only_b = sorted(a.keys() - b.keys(), key=a.__getitem__), sorted(b.keys() - a.keys(), key=b.__getitem__)
        moved = [token for token in a.keys() & b.keys() if a[token] != b[token]]
        parts = [f"{len(a)} and {len(b)} tokens", _first_apart(a, b)]
        if only_a or only_b:
            parts.append(
                f"{len(only_a)} only in the policy's {only_a[:3]}, {len(only_b)} only in the other {only_b[:3]}"
            )
        if moved:
            token = min(moved, key=a.__getitem__)
            parts.append(f"{len(moved)} with another id (first: {token!r}, {a[token]} and {b[token]})")
        return "; ".join(parts)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = [name for name in names if getattr(first, name, None) != getattr(second, name, None)]
    if special:
        return ", ".join(f"{name} {getattr(first, name)!r} and {getattr(second, name)!r}" for name in special)
    return f"the same {len(a)} tokens, but other merges, normalisation or added special tokens"


def _first_apart(a: dict[str, int], b: dict[str, int]) -> str:
    """The smallest id that is not the same token to both."""
    ours, theirs = ({i: token for token, i in vocabulary.items()} for vocabulary in (a, b))
    first = min(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    said = [repr(tokens[first]) if first in tokens else "no token" for tokens in (ours, theirs)]
    return f"the first differing id is {first}: {said[0]} and {said[1]}"
