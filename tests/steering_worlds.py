"""World A of the steering spec: a small network whose concept direction u is known, and a nuisance n it cannot see.

State of token id k of a sequence: E[k] + 2 s u + c n, with concept s = +1 or -1 and nuisance c. Readers of the residual
stream that compare means find u + (mu / 2) n; what the network does depends on u alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH, VOCABULARY, PROMPT, RESPONSE = 48, 40, 7, 5
SOURCE = PROMPT - 1  # the last prompt token
PREDICTING = slice(PROMPT - 1, PROMPT + RESPONSE - 1)  # the places whose logits predict the response


@dataclass(frozen=True, kw_only=True)
class World:
    """u, n [d]: concept and nuisance; embedding [V, d] without either; mixing [d, d], head [V, d], blind to n."""

    u: Tensor
    n: Tensor
    embedding: Tensor
    mixing: Tensor
    head: Tensor

    def states(self, ids: Tensor, concept: Tensor | float, nuisance: Tensor) -> Tensor:
        """h [N, T, d] of ids [N, T]; concept and nuisance one a sequence."""
        concept = torch.as_tensor(concept).expand(len(ids))
        return self.embedding[ids] + (2 * concept[:, None] * self.u + nuisance[:, None] * self.n)[:, None]

    def logits(self, h: Tensor) -> Tensor:
        """z W2^T of z = h + tanh(a W1^T) without its n component, a the causal running mean of h."""
        a = h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None]
        z = h + torch.tanh(a @ self.mixing.T)
        return (z - (z @ self.n)[..., None] * self.n) @ self.head.T

    def readout(self, h: Tensor, rows: Tensor) -> Tensor:
        """Logits [B, R, V] of the response tokens."""
        return self.logits(h)[:, PREDICTING]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Sequences without and with the concept, and their response tokens [N, R], the same in both."""

    world: World
    negative: Tensor  # [N, T, d]
    positive: Tensor
    tokens: Tensor

    @property
    def rows(self) -> dict[str, Tensor]:
        """Arguments of fit_interchange: rows of both directions, elicit first."""
        base, source = torch.cat([self.negative, self.positive]), torch.cat([self.positive, self.negative])
        return {
            "base": base,
            "source": source[:, SOURCE],
            "edit_mask": torch.ones(base.shape[:2], dtype=torch.bool),
            "target_logits": self.world.logits(source)[:, PREDICTING],
        }

    @property
    def diffmean(self) -> Tensor:
        """Mean positive minus mean negative state over all tokens [d]."""
        return (self.positive - self.negative).mean((0, 1))


def make_world(seed: int = 0) -> World:
    """The order of the draws is part of the recipe."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=g)).Q
    u, n = q[:, 0], q[:, 1]
    embedding = torch.randn(VOCABULARY, WIDTH, generator=g)
    for direction in (u, n):
        embedding = embedding - (embedding @ direction)[:, None] * direction
    mixing = torch.randn(WIDTH, WIDTH, generator=g) / WIDTH**0.5
    head = torch.randn(VOCABULARY, WIDTH, generator=g) / WIDTH**0.5
    mixing, head = (matrix - (matrix @ n)[:, None] * n for matrix in (mixing, head))
    return World(u=u, n=n, embedding=embedding, mixing=mixing, head=head)


def make_pairs(world: World, n_pairs: int, *, mu: float, sigma: float, seed: int, unrelated: bool = False) -> Pairs:
    """Random ids, the same in both sequences of a pair but for unrelated prompts; c ~ Normal(mu s, sigma^2) in each."""
    g = torch.Generator().manual_seed(seed)
    negative = torch.randint(VOCABULARY, (n_pairs, PROMPT + RESPONSE), generator=g)
    positive = negative.clone()
    if unrelated:
        positive[:, :PROMPT] = torch.randint(VOCABULARY, (n_pairs, PROMPT), generator=g)
    noise = sigma * torch.randn(2, n_pairs, generator=g)
    return Pairs(
        world=world,
        negative=world.states(negative, -1.0, -mu + noise[0]),
        positive=world.states(positive, 1.0, mu + noise[1]),
        tokens=negative[:, PROMPT:],
    )
