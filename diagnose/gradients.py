"""In which blocks would training on these pairs act? The share of the gradient that falls on each block.

    found = gradient_concentration(load("dpo/"), "held_out.jsonl")
    found.concentration("last_third")

SPINAL's digest names gradient concentration without a formula (arXiv 2601.06238): this one is reconstructed.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from ..errors import InputError
from ..probes.block_gradients import block_weights, lens_squares, parameter_squares, residual_squares
from ..probes.encoding import EncodedPair, Encoder, TextPolicy
from ..probes.inputs import PairFile, check_invalid, read_pairs
from ..probes.scored_models import require_boundaries
from ..probes.scoring import encode_pairs
from ..probes.sequence_scores import TokenSequence, score_sequences
from ..probes.shards import Progress, item_key
from ..probes.vocabulary import real_vocabulary, require_same_tokenizer
from .gradient_shares import GradientConcentration, concentration_difference, summarise
from .naming import short_name
from .objective_losses import Hyperparameters, LogProbs, dpo

if TYPE_CHECKING:
    from ..probes.subject import Subject

__all__ = ["GradientConcentration", "concentration_difference", "gradient_concentration"]

LOSSES = ("margin", "nll", "dpo")
PLACES = ("parameters", "residual", "lens_local")


def gradient_concentration(
    subject: "Subject",
    pairs: "str | os.PathLike[str] | Iterable[Any] | PairFile",
    *,
    loss: str = "margin",
    of: str = "parameters",
    n: int = 32,
    reference: "Subject | None" = None,
    beta: float = 0.1,
    template: str = "auto",
    eos: str = "auto",
    boundary: str = "refuse",
    max_length: int | None = None,
    over_length: str = "drop",
    max_invalid: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> GradientConcentration:
    """Gradient norm of every block: n_l = sqrt(mean_i |d loss_i / d theta_l|^2), [L], over n held-out pairs i.

    pairs: file or rows, see read_pairs; not those that the model was trained on. n of them are drawn by `seed`,
        whatever their order; all where there are fewer. One pair is one forward and one backward pass.
    loss, nats: "margin" = log pi(chosen) - log pi(rejected), summed over tokens; "nll" = -log pi(chosen); "dpo" =
        softplus(-beta (margin - reference margin)), which needs `reference`. The DPO gradient of a pair is its margin's
        times one number for all blocks, so a pair's shares are the same; the means over pairs weigh otherwise.
    of: "parameters": theta_l = weights of block l, divided by sqrt(their number) where blocks differ in size;
        "residual": h_l, the residual after block l, at all positions of both sequences;
        "lens_local": the weights, block inputs held fixed, of the NLL of the chosen tokens read out right after the
        block, and n_l the mean squared norm (divided by the number of weights); it has no other loss.
    An adapter's gradient is that of the full effective matrices, see block_weights. The model is left as found.
    template, eos, boundary, max_length, over_length, max_invalid: as in score_pairs. progress(stage, done, total).
    Raises InputError for an unknown loss or place, "dpo" without reference, pairs that cannot be used, packed weights.
    Source of the term: arXiv 2601.06238 (unpublished form); all of it is reconstructed.
    """
    _check(loss, of, n, reference, beta)
    file = read_pairs(pairs)
    check_invalid(file, max_invalid)
    models = [subject] if reference is None else [subject, reference]
    if reference is not None:
        require_same_tokenizer(subject, reference)
    rows = min(model.vocab_size for model in models)
    vocab = min(rows, real_vocabulary(subject.tokenizer))
    encoder = Encoder(
        subject.tokenizer,
        TextPolicy(template, eos, boundary, max_length, over_length),
        vocab_rows=rows,
        limit=min((model.limit for model in models if model.limit is not None), default=None),
        source=file.source,
    )
    encoded, invalid, _ = encode_pairs(file, encoder)
    check_invalid(file, max_invalid, more=invalid)
    require_boundaries(encoded, encoder, file.source)
    some = sampled_pairs(encoded, n, seed)
    weights = _weights(loss if of != "lens_local" else "nll", some, subject, reference, beta, vocab, encoder)
    blocks = block_weights(subject)
    sizes = np.array([sum(parameter.numel() for parameter in block) for block in blocks])
    stage, squares = f"gradients of {short_name(subject.name)}", np.zeros((len(some), len(blocks)))
    for i, pair in enumerate(some):
        # the pull of a saturated pair may be 1e-30: it scales the square in float64, not the gradient in float32
        scale = float(np.abs(weights[i]).max()) or 1.0
        terms = [
            (TokenSequence(ids, pair.start), float(weight / scale))
            for ids, weight in zip((pair.chosen_ids, pair.rejected_ids), weights[i], strict=True)
            if weight
        ]
        if not terms:  # a pull that underflowed
            continue
        if of == "parameters":
            found = parameter_squares(subject, terms, blocks, vocab=vocab)
        elif of == "residual":
            found = residual_squares(subject, terms, vocab=vocab)
        else:
            found = lens_squares(subject, terms[0][0], blocks, vocab=vocab)
        squares[i] = found.numpy() * scale**2
        if progress is not None:
            progress(stage, i + 1, len(some))
    per_parameter = of != "residual" and len(set(sizes.tolist())) > 1
    settings = encoder.facts() | {
        "policy": short_name(subject.name),
        "fingerprint": subject.fingerprint,
        "reference": None if reference is None else reference.fingerprint,
        "loss": loss if of != "lens_local" else "nll of chosen, read out after the block",
        "of": of,
        "beta": beta if loss == "dpo" and of != "lens_local" else None,
        "n": n,
        "seed": seed,
        "vocabulary": vocab,
        "per_parameter": per_parameter,
        "dtype": subject.dtype,
        "adapter": subject.facts.get("adapter"),
        "pairs": file.source,
        "pairs_sha256": file.sha256,
        "reconstructed": True,
    }
    counts = {"rows": file.n_rows, "usable": len(encoded), "set_aside": len(file.invalid) + len(invalid)}
    return summarise(
        squares / sizes if per_parameter else squares,
        some,
        sizes=sizes if of != "residual" else np.zeros_like(sizes),
        settings=settings,
        counts=counts,
    )


def sampled_pairs(encoded: list[EncodedPair], n: int, seed: int) -> list[EncodedPair]:
    """n pairs, chosen by a seeded hash of their ids: the order of the file plays no part."""
    return sorted(encoded, key=lambda pair: item_key(seed, pair.start, pair.chosen_ids, pair.rejected_ids))[:n]


def _check(loss: str, of: str, n: int, reference: object, beta: float) -> None:
    for name, value, allowed in (("loss", loss, LOSSES), ("of", of, PLACES)):
        if value not in allowed:
            raise InputError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
    if of == "lens_local" and loss == "dpo":
        raise InputError("of='lens_local' has a loss of its own, the NLL after each block; leave loss='dpo' out")
    if n < 1:
        raise InputError(f"n={n}: at least 1 pair is expected")
    if loss == "dpo" and reference is None:
        raise InputError("loss='dpo' needs the model training started from: reference=")
    if not 0 < beta < float("inf"):
        raise InputError(f"beta={beta}: a number above 0 is expected")


def _weights(
    loss: str,
    pairs: list[EncodedPair],
    subject: "Subject",
    reference: "Subject | None",
    beta: float,
    vocab: int,
    encoder: Encoder,
) -> Float64[np.ndarray, "pairs 2"]:
    """d loss / d log pi of chosen and of rejected, by pair."""
    if loss == "nll":
        return np.tile([-1.0, 0.0], (len(pairs), 1))
    if loss == "margin" or reference is None:
        return np.tile([1.0, -1.0], (len(pairs), 1))
    sequences = [TokenSequence(ids, pair.start) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    options: dict[str, Any] = {"vocab": vocab, "text_facts": encoder.facts()}
    ours, theirs = (
        np.array([total for total, _ in score_sequences(model, sequences, **options)]) for model in (subject, reference)
    )
    log_probs = LogProbs(
        policy_chosen=ours[::2],
        policy_rejected=ours[1::2],
        reference_chosen=theirs[::2],
        reference_rejected=theirs[1::2],
        n_chosen=np.array([float(pair.n_chosen) for pair in pairs]),
        n_rejected=np.array([float(pair.n_rejected) for pair in pairs]),
        preference=np.ones(len(pairs)),
    )
    others = dict.fromkeys(("eps", "orpo_lambda", "simpo_beta", "simpo_gamma", "z0", "delta"), 0.0)
    judged = dpo(log_probs, Hyperparameters(beta=beta, **others))
    return np.stack([-judged.pull_chosen, judged.pull_rejected], axis=1)
