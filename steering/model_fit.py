"""Does a vector belong on this model? What it was made on, and what of that must be the same."""

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from ..errors import InputError
from ..probes.subject import Site, Subject

# what a file must say of its model, with the name it has in messages
_SIZES = {"model_type": "model type", "hidden_size": "hidden size", "n_layers": "number of blocks"}
_NEEDED = ("hidden_size", "n_layers", "weights")  # never null; the others may be, of a model without them
FINGERPRINT = (*_SIZES, "vocab_size", "tokenizer", "template", "weights", "dtype")


def model_fingerprint(subject: Subject) -> dict[str, Any]:
    """What a vector keeps of the model it was made on; hashes are sha256."""
    parts = subject.fingerprints
    return {
        "model_type": subject.facts.get("model_type"),
        "hidden_size": subject.d_model,
        "n_layers": subject.n_layers,
        "vocab_size": subject.vocab_size,
        "tokenizer": parts.tokenizer,
        "template": parts.template,
        "weights": parts.weights,
        "dtype": subject.dtype,
    }


def require_complete(known: Mapping[str, Any], where: object) -> None:
    """InputError for a fingerprint that lacks part of `model_fingerprint`, by which other models are told; empty: none.

    A file without any is of a vector made by hand: it says so, see SteeringVector.notices.
    """
    missing = [name for name in FINGERPRINT if name not in known or (name in _NEEDED and known[name] is None)]
    if known and missing:
        raise InputError(
            f"{where}: its fingerprint lacks {', '.join(missing)}, without which it would pass for one of another "
            "model; made by hand or damaged: copy the file again, or save the vector anew with the whole fingerprint"
        )


def require_fit(
    site: Site, width: int, known: Mapping[str, Any], subject: Subject, *, allow_other_weights: bool = False
) -> None:
    """Raises InputError unless a vector of `width` for `site`, made on the model `known`, belongs on the subject.

    Refused: another width or model type, other blocks, a layer that is not there; other weights, for which
    allow_other_weights (a fine-tuned sibling) makes it a warning. Another chat template is a warning. What `known` does
    not say is not asked for.
    """
    if width != subject.d_model:
        raise InputError(f"{subject.name}: hidden size {subject.d_model}, the vector is for {width}")
    require_layer(site, subject.n_layers, subject.name)
    here = model_fingerprint(subject)
    for name, told in _SIZES.items():
        if known.get(name) is not None and known[name] != here[name]:
            raise InputError(f"{subject.name}: {told} {here[name]}, the vector was made on {known[name]}")
    if known.get("weights") is not None and known["weights"] != here["weights"]:
        told = f"{subject.name}: its weights are {here['weights']}, the vector was made on {known['weights']}"
        if not allow_other_weights:
            raise InputError(
                f"{told}; allow_other_weights=True (--allow-other-weights) to try it on a fine-tuned sibling"
            )
        warnings.warn(told, stacklevel=3)
    if known.get("template") is not None and known["template"] != here["template"]:
        warnings.warn(
            f"{subject.name}: another chat template than the vector was made with; prompts may read differently",
            stacklevel=3,
        )


def require_rank(rank: int, subject: Subject) -> None:
    """InputError unless a subspace of so many directions fits into the hidden states."""
    if not isinstance(rank, Integral) or not 1 <= rank <= subject.d_model:
        raise InputError(f"rank {rank}: expected 1 .. {subject.d_model}, the width of {subject.name}")


def blocks_of(layer: int | Sequence[int], subject: Subject) -> tuple[int, ...]:
    """One block or several of the subject, in order. InputError for none, one named twice or not there, no number."""
    given = layer if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
    if not given or any(not isinstance(number, Integral) for number in given):
        raise InputError(f"layers {layer!r}: expected one at least, each a whole number")
    if len(set(given)) < len(given):
        raise InputError(f"layers {layer!r}: expected each once")
    for number in given:
        require_layer(Site(number), subject.n_layers, subject.name)
    return tuple(sorted(map(int, given)))


def require_layer(site: Site, n_layers: int, where: str) -> None:
    if site.layer >= n_layers:
        raise InputError(f"{where}: layer {site.layer} is not in 0 .. {n_layers - 1} (a site's layer is 0-based)")
