"""The closed world of the preference organism: what can be asked, what can be answered, and what an answer is worth.

A prompt is a topic, a style and a filler; a response is exactly four symbols out of four. That makes 192 prompts and
256 responses a prompt, so that every distribution over responses is a vector which can be written down.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

TOPICS, STYLES, FILLERS, SYMBOLS, LENGTH = 12, 2, 8, 4, 4
TRAINING_TOPICS = 8                           # topics 0..7 are trained on, 8..11 are the shifted set
RESPONSES = np.array(list(product(range(SYMBOLS), repeat=LENGTH)))    # [256, 4], row i is i written in base 4


@dataclass(frozen=True, slots=True)
class WorldPrompt:
    """One prompt of the world; the filler has no effect on anything."""

    topic: int
    style: int
    filler: int

    @property
    def held_out(self) -> bool:
        """Whether its topic never occurs in preference training."""
        return self.topic >= TRAINING_TOPICS

    @property
    def text(self) -> str:
        """As a user would type it; `tokenizer.py` says how it becomes ids."""
        return f"topic{self.topic} style{self.style} filler{self.filler}"


PROMPTS = tuple(WorldPrompt(*parts) for parts in product(range(TOPICS), range(STYLES), range(FILLERS)))
HELD_OUT = np.array([prompt.held_out for prompt in PROMPTS])          # [192]


def response_text(response: int) -> str:
    """The words of response number `response`: 's0 s3 s1 s2'."""
    return " ".join(f"s{symbol}" for symbol in RESPONSES[response])


@dataclass(frozen=True, eq=False)
class World:
    """The generator of responses: one Markov chain a topic, rows drawn from a Dirichlet distribution."""

    initial: Float[ndarray, "12 4"]           # P(first symbol | topic)
    transition: Float[ndarray, "12 4 4"]      # P(next symbol | topic, this symbol)

    def log_probs(self) -> Float[ndarray, "192 256"]:
        """log P(response | prompt), nats; rows sum to one after exp."""
        log_initial, log_transition = np.log(self.initial), np.log(self.transition)
        topics = log_initial[:, RESPONSES[:, 0]]                      # [12, 256]
        for t in range(1, LENGTH):
            topics = topics + log_transition[:, RESPONSES[:, t - 1], RESPONSES[:, t]]
        return topics[[prompt.topic for prompt in PROMPTS]]


def draw_world(rng: np.random.Generator, concentration: float = 0.7) -> World:
    """A world whose chains have Dirichlet(concentration) rows."""
    def rows(*shape: int) -> ndarray:
        p = rng.dirichlet(np.full(SYMBOLS, concentration), size=shape)
        p = np.maximum(p, 1e-4)               # a transition of 1e-9 could neither be learned nor be measured
        return p / p.sum(-1, keepdims=True)

    return World(rows(TOPICS), rows(TOPICS, SYMBOLS))


def rewards() -> Float[ndarray, "192 256"]:
    """The true reward of every response to every prompt, in logits of the Bradley-Terry votes.

    r = #s0 - 0.7 #s3 + (1.5 if style 0 else -1.5) [first = last] + 0.8 [second = topic mod 4]

    The last term depends on the topic: it can be learned for the trained topics only, and fails in part elsewhere.
    """
    counts = (RESPONSES == 0).sum(1) - 0.7 * (RESPONSES == 3).sum(1)              # [256]
    closes = (RESPONSES[:, 0] == RESPONSES[:, -1]).astype(float)
    style = np.array([1.5 if prompt.style == 0 else -1.5 for prompt in PROMPTS])  # [192]
    topic = np.array([prompt.topic % SYMBOLS for prompt in PROMPTS])
    second = (RESPONSES[None, :, 1] == topic[:, None]).astype(float)              # [192, 256]
    return counts + style[:, None] * closes + 0.8 * second


@dataclass(frozen=True, eq=False)
class Draws:
    """Pairs of responses with their votes; row i asks prompt `prompt[i]`."""

    prompt: Int[ndarray, "n"]                 # index into PROMPTS
    a: Int[ndarray, "n"]                      # index into RESPONSES; a and b differ
    b: Int[ndarray, "n"]
    votes_a: Int[ndarray, "n"]
    votes: int                                # votes a pair

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def preference(self) -> Float[ndarray, "n"]:
        """Share of the votes that a got."""
        return self.votes_a / self.votes


def pair_law(log_probs: Float[ndarray, "p k"]) -> Float[ndarray, "p k k"]:
    """P(first = i, second = j) of two independent responses, given that they differ: w_i w_j / (1 - sum w^2)."""
    w = normalised(log_probs)
    law = w[:, :, None] * w[:, None, :]
    law[:, np.arange(w.shape[1]), np.arange(w.shape[1])] = 0.0
    return law / law.sum((1, 2), keepdims=True)


def normalised(log_probs: Float[ndarray, "*p k"]) -> Float[ndarray, "*p k"]:
    """Probabilities over the listed responses alone: softmax of summed log-probabilities."""
    p = np.exp(log_probs - log_probs.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def draw_pairs(
    rng: np.random.Generator,
    log_probs: Float[ndarray, "192 256"],
    prompts: Int[ndarray, "m"] | Bool[ndarray, "192"],
    *,
    draws: int,
    votes: int,
    distinct: bool,
) -> Draws:
    """`draws` pairs a prompt, both responses from `log_probs`, and Bernoulli votes with P(a wins) = sigmoid(r_a - r_b).

    distinct: of repeated pairs of one prompt (in either order) only the first draw stays. A pair {i, j} then occurs
    with probability 1 - (1 - p_ij)^draws, which `truth.py` uses; readers of preference files drop repeats anyway.
    """
    true_reward = rewards()
    rows: list[tuple[int, int, int]] = []
    for prompt in np.arange(len(PROMPTS))[prompts]:
        law = pair_law(log_probs[prompt:prompt + 1])[0]
        drawn = rng.choice(law.size, size=draws, p=law.ravel())
        seen: set[tuple[int, int]] = set()
        for a, b in zip(*np.divmod(drawn, len(RESPONSES)), strict=True):
            key = (int(min(a, b)), int(max(a, b)))
            if not (distinct and key in seen):
                rows.append((int(prompt), int(a), int(b)))
            seen.add(key)
    prompt_index, first, second = np.array(rows).T
    margin = true_reward[prompt_index, first] - true_reward[prompt_index, second]
    return Draws(prompt_index, first, second, rng.binomial(votes, 1 / (1 + np.exp(-margin))), votes)
