"""How a steering vector does on the concept organism: teacher-forced KL, and flips of greedy answers; test C."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

from alignscope import SteeringVector
from alignscope.organisms.concept import LENGTH, N_PROMPT, ConceptOrganism, sequences


@dataclass(frozen=True)
class Trial:
    """Means over fresh contents, elicit then suppress: KL(source : edited) in nats a token, before and after; flips."""

    unedited: tuple[float, float]
    kl: tuple[float, float]
    flips: tuple[float, float]

    @property
    def recovered(self) -> tuple[float, float]:
        before, after = np.array(self.unedited), np.array(self.kl)
        return tuple((1 - after / before).tolist())


def trial(organism: ConceptOrganism, vector: SteeringVector | None, *, flips: bool = True) -> Trial:
    """Strength 1 elicits under NEG, -1 suppresses under POS; both in the scale "zero" of clamps (m = 1)."""
    content = fresh_content(organism)
    shown = torch.ones(len(content), dtype=torch.bool)
    with_concept, without = sequences(shown, content), sequences(~shown, content)
    found: list[tuple[float, float, float]] = []
    for strength, base, source in ((1.0, without, with_concept), (-1.0, with_concept, without)):
        base = torch.cat([base[:, :N_PROMPT], source[:, N_PROMPT:]], dim=1)  # behind it the source's answer
        target, plain = answer_logits(organism, source), answer_logits(organism, base)
        edited, flipped = plain, 0.0
        if vector is not None:
            with vector.applied(organism.subject, strength, **({"scale": "zero"} if vector.edit == "clamp" else {})):
                edited = answer_logits(organism, base)
                if flips:
                    flipped = float((greedy(organism, base) == source[:, N_PROMPT:-1]).all(-1).double().mean())
        found.append((kl(target, plain), kl(target, edited), flipped))
    return Trial(*zip(*found, strict=True))


def fresh_content(organism: ConceptOrganism) -> Tensor:
    """[n, 5] content words by number."""
    return torch.tensor([[int(w[1:]) for w in row["negative_output"].split()] for row in organism.fresh])


@torch.no_grad()
def answer_logits(organism: ConceptOrganism, ids: Tensor) -> Tensor:
    """At the six places that predict the answer."""
    return organism.subject.model(input_ids=ids, use_cache=False).logits[:, N_PROMPT - 1 : -1]


@torch.no_grad()
def greedy(organism: ConceptOrganism, ids: Tensor) -> Tensor:
    """Five answer tokens, each the likeliest behind those before it; no cache, so none to go wrong."""
    ids = ids[:, :N_PROMPT]
    for _ in range(LENGTH):
        ids = torch.cat([ids, organism.subject.model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, N_PROMPT:]


def kl(source: Tensor, edited: Tensor) -> float:
    """Mean KL(q : p) in float64."""
    log_q, log_p = (log_softmax(logits.double().numpy(), axis=-1) for logits in (source, edited))
    return float((np.exp(log_q) * (log_q - log_p)).sum(-1).mean())
