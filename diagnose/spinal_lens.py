"""What do residual rows read out to? Through the fused kernel where the head is simple, else the model's modules."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..probes.kernels import lens_distance, lens_transport
from ..probes.kernels.backends import chosen
from ..probes.kernels.eager import exact_products, tile_state
from ..probes.kernels.lens_state import LensReading, Pairs, finish
from ..probes.vocabulary import real_vocabulary

if TYPE_CHECKING:
    from ..probes.subject import Head, Subject

BLOCK = 64  # places normed at a time
TILE_BYTES = 64 * 2**20  # logits held by the fallback

Rows = Float[Tensor, "layers places d"]
Angles = Float[np.ndarray, "steps places"]


class LensSteps(NamedTuple):
    angle: Angles  # of step l -> l + 1, radians in [0, pi]
    entropy: Float[np.ndarray, "layers places"]  # nats
    pair_angle: Float[np.ndarray, "pairs places"]  # radians


def lens_vocabulary(subject: "Subject") -> int:
    """Entries of the head that belong to a token: the padding of the embedding matrix is left out of every softmax."""
    head = subject.head()
    rows = subject.vocab_size if head is None else head.vocab
    if subject.fingerprints.tokenizer is None:
        return rows
    return min(rows, max(2, real_vocabulary(subject.tokenizer)))


def lens_backend(subject: "Subject") -> str:
    """What sums up the subject's read-outs (see `lens_transport`): backends agree to 5e-6, not to the bit."""
    head = subject.head()
    if head is None:
        return "eager"
    return chosen("auto", torch.promote_types(head.weight.dtype, torch.float32), head.weight.device)


@torch.no_grad()
def lens_steps(subject: "Subject", rows: Rows, *, vocab: int, temperature: float = 1.0, pairs: Pairs = ()) -> LensSteps:
    """Fisher-Rao angle of every step between layers, the entropy of every layer, the angles of `pairs` of layers."""
    head = subject.head()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    steps = [(layer, layer + 1) for layer in range(len(rows) - 1)]
    size = BLOCK if head else places_at_once(len(rows), vocab)
    count = max(1, -(-rows.shape[1] // size))  # of like size: a small one at the end is slow
    for block in rows.to(subject.device).tensor_split(count, dim=1):
        if head is None:
            reading = _compare(subject.readout(block)[..., :vocab] / temperature, [*steps, *pairs])
            angle, entropy, more = reading.angle[: len(steps)], reading.entropy, reading.angle[len(steps) :]
        else:
            lens = lens_transport(
                head.norm(block),
                head.weight,
                bias=head.bias,
                softcap=head.softcap,
                scale=head.scale,
                temperature=temperature,
                vocab=vocab,
                pairs=pairs,
                divergences=False,
            )
            assert lens.pair_angle is not None  # asked for, if only for none
            angle, entropy, more = lens.angle, lens.entropy, lens.pair_angle
        parts.append((angle.double().cpu(), entropy.double().cpu(), more.double().cpu()))
    whole = [torch.cat(part, 1).numpy() for part in zip(*parts, strict=True)]
    return LensSteps(whole[0], whole[1], whole[2])


@torch.no_grad()
def lens_between(
    base: "Subject",
    aligned: "Subject",
    base_rows: Rows,
    aligned_rows: Float[Tensor, "layers places d_aligned"],
    *,
    vocab: int,
    temperature: float = 1.0,
) -> Float[np.ndarray, "layers places"]:
    """2 arccos sum sqrt(p q) of two models' read-outs of the same places, each through its own tail and head; rad."""
    heads = base.head(), aligned.head()
    simple = heads[0] is not None and heads[1] is not None and heads[0].weight.device == heads[1].weight.device
    size = BLOCK if simple else places_at_once(2 * len(base_rows), vocab)
    angles = []
    for start in range(0, base_rows.shape[1], size):
        a = base_rows[:, start : start + size].to(base.device)
        b = aligned_rows[:, start : start + size].to(aligned.device)
        if heads[0] is not None and heads[1] is not None and simple:
            angle = _kernel_distance(heads[0], heads[1], a, b, vocab, temperature)
        else:
            first = base.readout(a)[..., :vocab]
            second = aligned.readout(b)[..., :vocab].to(first.device)
            pairs = [(layer, len(a) + layer) for layer in range(len(a))]
            angle = _compare(torch.cat([first, second]) / temperature, pairs).angle
        angles.append(angle.double().cpu())
    return torch.cat(angles, 1).numpy()


@torch.no_grad()
def mass_outside(
    subject: "Subject", rows: Float[Tensor, "places d"], *, first: int, vocab: int, temperature: float = 1.0
) -> Float[np.ndarray, "places"]:
    """Probability that the read-out of each place gives to the entries first..vocab-1, in [0, 1]."""
    masses = []
    for block in rows.to(subject.device).split(places_at_once(1, vocab)):
        p = (subject.readout(block[None])[0, :, :vocab].double() / temperature).softmax(-1)
        masses.append(p[:, first:].sum(-1).cpu())
    return torch.cat(masses).numpy()


def _kernel_distance(a: "Head", b: "Head", rows_a: Tensor, rows_b: Tensor, vocab: int, temperature: float) -> Tensor:
    return lens_distance(
        a.norm(rows_a),
        a.weight,
        b.norm(rows_b),
        b.weight,
        bias_a=a.bias,
        bias_b=b.bias,
        softcap_a=a.softcap,
        softcap_b=b.softcap,
        scale_a=a.scale,
        scale_b=b.scale,
        temperature=temperature,
        vocab=vocab,
        divergences=False,
    ).angle


def places_at_once(streams: int, vocab: int) -> int:
    """As many places as `TILE_BYTES` of float32 logits hold, all streams together."""
    return max(1, TILE_BYTES // (4 * streams * vocab))


def _compare(logits: Float[Tensor, "streams places vocab"], pairs: Pairs) -> LensReading:
    logits = logits.float().contiguous()
    with exact_products(logits.device):
        return finish(tile_state(logits.clone(), pairs, 1), pairs)  # tile_state writes over its input
