"""Do the intervals of sequence information keep their promise, and does the gate refuse what it should? No timings.

python -m benchmarks.information_coverage --repeats 200

Bigram models of 200 tokens, whose entropy is known exactly. The local proposal with 200 samples of 20 tokens: how often
value +- 1.96 standard errors holds it (nominal 95 %, 90 to 99 % expected of 200 repeats). Samples of policy and
reference at 100 tokens: how often they are refused.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from scipy.special import log_softmax, logsumexp

from alignscope.diagnose.sequence_information import SequenceInformation, local_information


class Bigram:
    """Two Markov chains over V tokens whose first token is uniform; logits [V, V], a row a last token."""

    def __init__(self, policy: np.ndarray, reference: np.ndarray) -> None:
        self.policy, self.reference = policy, reference

    @property
    def steps(self) -> tuple[Callable, Callable]:
        """Policy and reference as step functions."""
        return _step(self.policy), _step(self.reference)

    def entropy(self, length: int) -> float:
        """H(q_seq), nats: log-ratios summed backwards, their expectation under q forwards."""
        ratio = log_softmax(self.policy, axis=-1) - log_softmax(self.reference, axis=-1)
        future = [np.zeros(len(ratio))]  # log sum of all continuations after a token; the last place first
        for _ in range(length - 1):
            future.insert(0, logsumexp(ratio + future[0], axis=-1))
        log_z = logsumexp(future[0])
        at, expected = np.exp(future[0] - log_z), 0.0
        for now, after in pairwise(future):
            move = np.exp(ratio + after - now[:, None])
            expected += at @ (move * ratio).sum(-1)
            at = at @ move
        return float(log_z - expected)


def bigram(n_vocab: int) -> Bigram:
    """Reference logits N(0, 2^2), policy logits those plus N(0, .5^2); always the same."""
    random = np.random.default_rng(0)
    reference = random.normal(0, 2, (n_vocab, n_vocab))
    return Bigram(reference + random.normal(0, 0.5, (n_vocab, n_vocab)), reference)


def repeated(
    models: Bigram, repeats: int, *, length: int, samples: int, proposal: str = "local"
) -> list[SequenceInformation]:
    """The same measurement under seeds 0, 1, ..."""
    return [
        local_information(*models.steps, length=length, samples=samples, proposal=proposal, seed=seed)
        for seed in range(repeats)
    ]


def coverage(found: list[SequenceInformation], truth: float) -> tuple[float, int]:
    """Share of the published intervals that hold the truth, and how many are published."""
    intervals = [one.interval() for one in found if one.value is not None]
    held = [low <= truth <= high for low, high in filter(None, intervals)]
    return float(np.mean(held)) if held else float("nan"), len(held)


def _step(logits: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def step(ids: np.ndarray) -> np.ndarray:
        return logits[ids[:, -1]] if ids.shape[1] else np.zeros((len(ids), logits.shape[1]))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--vocabulary", type=int, default=200)
    arguments = parser.parse_args()
    models = bigram(arguments.vocabulary)
    print("| length | samples | proposal | exact | mean | SD | mean SE | published | intervals that hold it |")
    print("|---|---|---|---|---|---|---|---|---|")
    for length, samples, proposal in (
        (20, 200, "local"), (20, 32, "local"), (100, 200, "local"), (100, 200, "policy"), (100, 200, "reference"),
    ):  # fmt: skip
        truth = models.entropy(length)
        repeats = arguments.repeats if length < 100 else max(2, arguments.repeats // 5)  # five times as slow
        found = repeated(models, repeats, length=length, samples=samples, proposal=proposal)
        raw = np.array([one.value if one.value is not None else one.raw_unreliable for one in found], dtype=float)
        errors = [one.standard_error for one in found if one.standard_error is not None]
        share, published = coverage(found, truth)
        print(
            f"| {length} | {samples} | {proposal} | {truth:.4f} | {raw.mean():.2f} | {raw.std(ddof=1):.2f} | "
            f"{f'{np.mean(errors):.3f}' if errors else 'none'} | {published} of {len(found)} | "
            f"{f'{share:.1%}' if published else 'none'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
