"""Do two models read the same ids, and how many of a head's rows belong to a token?"""

from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .subject import Subject


def real_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Ids up to the largest that a token has; rows of a head beyond them are padding."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def require_same_tokenizer(policy: "Subject", reference: "Subject") -> None:
    """Raises InputError, saying what differs, unless both tokenizers are known to be the same.

    A reference wrapped without a tokenizer passes where its head has as many rows as the policy's.
    """
    ours, theirs = policy.fingerprints.tokenizer, reference.fingerprints.tokenizer
    if ours == theirs:
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


def _difference(first: "PreTrainedTokenizerBase", second: "PreTrainedTokenizerBase") -> str:
    a, b = first.get_vocab(), second.get_vocab()
    if a != b:
        only_a, only_b = sorted(a.keys() - b.keys(), key=a.__getitem__), sorted(b.keys() - a.keys(), key=b.__getitem__)
        moved = [token for token in a.keys() & b.keys() if a[token] != b[token]]
        parts = [f"{len(a)} and {len(b)} tokens"]
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
