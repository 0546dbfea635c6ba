"""What would a read-out that keeps only the most probable tokens say of a step? Angles on a reduced vocabulary.

The tail can be put in one bucket, or left out and the rest renormalised: two numbers that can lie far apart (arXiv
2601.06238 does not say which it takes). Reconstructed: sets and forms are ours.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..probes.kernels.eager import exact_products
from .spinal_lens import places_at_once
from .spinal_settings import TopTokens

if TYPE_CHECKING:
    from ..probes.subject import Subject

Tokens = Int[Tensor, "places k"]


class ReducedAngles(NamedTuple):
    """Fisher-Rao angles of steps on a set S of tokens; radians in [0, pi], float64.

    bucketed <= the angle over all tokens <= dropped, always; renormalised lies anywhere, also under bucketed.
    """

    bucketed: Float[np.ndarray, "steps places"]  # all tokens outside S as one outcome
    renormalised: Float[np.ndarray, "steps places"]  # p(v | S)
    dropped: Float[np.ndarray, "steps places"]  # 2 arccos sum_S sqrt(p q): the tail left out, nothing renormalised


@torch.no_grad()
def reduced_steps(
    subject: "Subject",
    rows: Float[Tensor, "layers places d"],
    *,
    vocab: int,
    top: TopTokens,
    temperature: float = 1.0,
) -> ReducedAngles:
    """Angles of every step between layers on a reduced vocabulary, as many places at a time as 64 MB of logits hold."""
    parts = []
    for block in rows.to(subject.device).split(places_at_once(len(rows), vocab), dim=1):
        with exact_products(block.device):
            parts.append(reduced_angles(subject.readout(block)[..., :vocab].float() / temperature, top))
    return ReducedAngles(*(np.concatenate(columns, 1) for columns in zip(*parts, strict=True)))


def reduced_angles(logits: Float[Tensor, "layers places vocab"], top: TopTokens) -> ReducedAngles:
    """Of the steps l -> l + 1 of logits. S is, at each place, the k most probable tokens of the last layer (one set for
    all steps), or with `top.union` those of layer l together with those of layer l + 1.

    bucketed = 2 arccos(sum_S sqrt(p q) + sqrt((1 - p(S)) (1 - q(S)))), renormalised = 2 arccos(sum_S sqrt(p q) /
    sqrt(p(S) q(S))); both by the tangent form, which keeps small angles. A place with a NaN or infinite logit is NaN.
    """
    k = min(top.k, logits.shape[-1])
    z = logits - logits.amax(-1, keepdim=True)
    best = [layer.topk(k, dim=-1).indices for layer in (logits if top.union else logits[-1:])]
    if top.union:
        sets = [_united(best[step], best[step + 1], logits.shape[-1]) for step in range(len(logits) - 1)]
        pairs = [(_kept(z[step], *each), _kept(z[step + 1], *each)) for step, each in enumerate(sets)]
    else:
        sides = [_kept(layer, best[0], torch.zeros_like(best[0], dtype=torch.bool)) for layer in z]
        pairs = list(pairwise(sides))
    found = [_angles(*pair) for pair in pairs]
    bad = ~logits.isfinite().all(-1)
    lost = (bad[:-1] | bad[1:]).cpu().numpy()
    columns = (torch.stack(column).cpu().numpy() for column in zip(*found, strict=True))
    return ReducedAngles(*(np.where(lost, np.nan, column) for column in columns))


def _united(
    first: Tokens, second: Tokens, vocab: int
) -> tuple[Int[Tensor, "places both"], Bool[Tensor, "places both"]]:
    """Two sets of tokens one after the other, and which entries are there already."""
    member = torch.zeros(len(first), vocab, dtype=torch.bool, device=first.device).scatter_(-1, first, True)
    repeated = torch.cat([torch.zeros_like(first, dtype=torch.bool), member.gather(-1, second)], -1)
    return torch.cat([first, second], -1), repeated


class _Kept(NamedTuple):
    """sqrt of the probabilities inside a set, and of all outside together, up to one factor; float64."""

    inside: Float[Tensor, "places k"]
    tail: Float[Tensor, "places 1"]


def _kept(
    logits: Float[Tensor, "places vocab"], tokens: Int[Tensor, "places k"], repeated: Bool[Tensor, "places k"]
) -> _Kept:
    inside = (logits.gather(-1, tokens).double() / 2).exp().masked_fill(repeated, 0.0)  # float32 would end at e^-103
    outside = logits.exp().scatter_(-1, tokens, 0.0)  # summed by itself: 1 - p(S) would lose a small tail
    return _Kept(inside, outside.sum(-1, keepdim=True, dtype=torch.float64).sqrt())


def _angles(first: _Kept, second: _Kept) -> tuple[Tensor, Tensor, Tensor]:
    """Bucketed, renormalised and dropped angle, [places]."""
    none = torch.zeros_like(first.tail)
    u, v = (torch.cat(side, -1) for side in (first, second))
    dropped = [torch.cat(parts, -1) for parts in ((u, none), (second.inside, none, second.tail))]  # tails share nothing
    return _angle(u, v), _angle(first.inside, second.inside), _angle(dropped[0], dropped[1])


def _angle(u: Float[Tensor, "places n"], v: Float[Tensor, "places n"]) -> Float[Tensor, "places"]:
    """4 atan2(|u - v|, |u + v|) of both brought to length 1: 2 arccos <u, v>, which would lose small angles."""
    u, v = u / u.norm(dim=-1, keepdim=True), v / v.norm(dim=-1, keepdim=True)
    return 4 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
