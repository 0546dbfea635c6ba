"""What an audit of the preference organism should find, by enumeration of the trained models themselves.

Two kinds of truth, never mixed:

* `truth_table`: the value an audit's *estimate* aims at. An audit calls "chosen" what the majority of a few noisy votes
  chose, and reads the preference off those votes; so does this table, which sums over all pairs and all votes.
* `population.population_table`: what the *models* are like, with the true reward in place of votes, as in the papers.

Responses are compared by log pi(response, EOS | prompt), the sum that a scorer returns. It is not renormalised: the 256
responses hold about .99 of the mass, and a factor common to both responses of a pair moves no comparison.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.special import expit, logit
from scipy.stats import binom

from ..errors import InputError
from .enumeration import Enumeration, enumerate_folder, enumerate_reward_folder
from .preference import PreferenceOrganism
from .world import HELD_OUT, pair_law, rewards

SPLITS = {"training": ~HELD_OUT, "held_out": HELD_OUT}

ESTIMATES = {
    "accuracy": "ranking accuracy R: the policy gives the majority's choice the higher log-probability",
    "reference_accuracy": "R of the reference",
    "reward_accuracy": "implicit-reward accuracy: the log-ratio of the majority's choice is the higher one",
    "explicit_accuracy": "the reward head scores the majority's choice higher",
    "idealized_accuracy": "R*(beta): reference margin + logit(smoothed vote share) / beta > 0",
    "gap": "R*(beta) - R",
    "displacement_chosen": "mean log-ratio of the majority's choice, nats a response",
    "displacement_rejected": "mean log-ratio of the other response, nats a response",
    "share_flippable": "the reference is wrong, the optimum at this beta is right",
    "share_hard": "the reference is wrong, and so is the optimum at this beta",
    "learned_of_wrong": "of the pairs that the reference ranks wrong, the policy ranks right",
    "lost_of_right": "of the pairs that the reference ranks right, the policy ranks wrong",
}


def truth_table(
    organism: PreferenceOrganism,
    which: str = "dpo",
    *,
    split: str = "training",
    section: str = "ranking",
    beta: float | None = None,
    models: "Models | None" = None,
) -> pd.DataFrame:
    """Rows name, estimate_key ('ranking.accuracy'), truth, definition: the values the estimates of an audit aim at.

    The expectation over the files' own law: both responses from the reference, repeats of a prompt dropped, five
    Bradley-Terry votes, the majority is "chosen", the preference smoothed as Jeffreys does. The sum runs over every
    pair of the 256 responses, every prompt of the split and every outcome of the votes: no sampling error is left.
    The prompts of the split are all there are, so an interval clustered on prompts is wider than needed: it holds the
    truth in at least 95 % of evaluation files.

    which: "dpo", "sft", "shuffled", "base", or a step as "dpo/step_0050". split: "training" or "held_out"
    (`organism.pairs`, `organism.shifted`). section: the part of the key before the dot. beta: what the audit
    was given, default that of the training. models: what `read_models` gave, where it has been called already.
    """
    recipe, prompts = organism.recipe, prompts_of(split)
    draws = recipe.pairs_draws if split == "training" else recipe.shifted_draws
    models = models or read_models(organism, which)
    values = expectations(models, prompts, draws=draws, votes=recipe.votes, beta=beta or recipe.beta)
    return pd.DataFrame(
        [
            {"name": name, "estimate_key": f"{section}.{name}", "truth": values[name], "definition": definition}
            for name, definition in ESTIMATES.items()
        ]
    )


@dataclass(frozen=True, eq=False)
class Models:
    """The enumerated models of one question: rows are PROMPTS, columns RESPONSES."""

    reference: Enumeration
    policy: Enumeration
    explicit: Float[ndarray, "192 256"]

    @property
    def log_ratio(self) -> Float[ndarray, "192 256"]:
        """log pi - log pi_ref, nats a response."""
        return self.policy.log_probs - self.reference.log_probs


def read_models(organism: PreferenceOrganism, which: str = "dpo") -> Models:
    """Enumerate the reference, one policy and the reward head from their folders (a few seconds)."""
    folder = policy_folder(organism, which)
    return Models(enumerate_folder(organism.base), enumerate_folder(folder), enumerate_reward_folder(organism.reward))


def policy_folder(organism: PreferenceOrganism, which: str) -> Path:
    """The folder of a policy by its short name."""
    folder = organism.dpo if which == "dpo" else organism.folder / which
    if not (folder / "config.json").is_file():
        steps = ", ".join(f"dpo/{step.name}" for step in organism.dpo_steps)
        raise InputError(f"{organism.folder}: no policy '{which}'; choose from base, sft, dpo, shuffled, {steps}")
    return folder


@dataclass(eq=False)
class Totals:
    """Sums over pairs and prompts: a mean over pairs is a ratio of two of them."""

    above: dict[str, float] = field(default_factory=dict)
    below: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: ndarray, weight: ndarray) -> None:
        """Add weight * value to one sum and weight to the other."""
        self.above[name] = self.above.get(name, 0.0) + float((value * weight).sum())
        self.below[name] = self.below.get(name, 0.0) + float(weight.sum())

    def share(self, name: str) -> float:
        """The weighted mean; nan where nothing has weight."""
        return self.above[name] / self.below[name] if self.below[name] else float("nan")


def expectations(
    models: Models, prompts: Int[ndarray, "p"], *, draws: int, votes: int, beta: float
) -> dict[str, float]:
    """The values of `truth_table`, keys of ESTIMATES, for files of `draws` pairs on each of `prompts`."""
    totals = Totals()
    for prompt in prompts.tolist():
        _add_prompt(totals, models, prompt, draws=draws, votes=votes, beta=beta)
    gap = totals.share("idealized_accuracy") - totals.share("accuracy")
    return {name: gap if name == "gap" else totals.share(name) for name in ESTIMATES}


def vote_weights(
    law: Float[ndarray, "k k"], reward: Float[ndarray, "k"], *, draws: int, votes: int
) -> dict[int, Float[ndarray, "k k"]]:
    """Expected number of pairs (chosen i, rejected j) in a file for each winning count of votes.

    A pair {i, j} is in the file with probability 1 - (1 - p_ij)^draws, where p_ij = law_ij + law_ji; i then gets `n` of
    `votes` votes with the binomial law at sigmoid(r_i - r_j). Keys are the n above votes / 2, entries [i, j].
    """
    present = -np.expm1(draws * np.log1p(-(law + law.T)))
    p = expit(reward[:, None] - reward[None, :])
    return {n: present * binom.pmf(n, votes, p) for n in range(votes // 2 + 1, votes + 1)}


def credit(difference: ndarray) -> ndarray:
    """1 where the difference is positive, .5 where it is zero."""
    return (difference > 0) + 0.5 * (difference == 0)


def _add_prompt(totals: Totals, models: Models, prompt: int, *, draws: int, votes: int, beta: float) -> None:
    """Add one prompt's pairs to the sums; matrices are [chosen, rejected]."""
    reference, policy = models.reference.log_probs[prompt], models.policy.log_probs[prompt]
    explicit, log_ratio = models.explicit[prompt], models.log_ratio[prompt]
    law = pair_law(reference[None])[0]
    by_votes = vote_weights(law, rewards()[prompt], draws=draws, votes=votes)
    weight = sum(by_votes.values(), np.zeros_like(law))

    right, was_right = credit(margins(policy)), credit(margins(reference))
    totals.add("accuracy", right, weight)
    totals.add("reference_accuracy", was_right, weight)
    totals.add("reward_accuracy", credit(margins(log_ratio)), weight)
    totals.add("explicit_accuracy", credit(margins(explicit)), weight)
    totals.add("displacement_chosen", log_ratio[:, None], weight)
    totals.add("displacement_rejected", log_ratio[None, :], weight)
    totals.add("learned_of_wrong", right == 1, weight * (was_right < 1))
    totals.add("lost_of_right", right < 1, weight * (was_right == 1))
    for n, mass in by_votes.items():
        shift = logit((n + 0.5) / (votes + 1)) / beta                 # Jeffreys: (n + 1/2) / (votes + 1)
        ideal = margins(reference) + shift > 0
        wrong = margins(reference) < 0
        totals.add("idealized_accuracy", ideal, mass)
        totals.add("share_flippable", wrong & ideal, mass)
        totals.add("share_hard", wrong & ~ideal, mass)


def margins(values: Float[ndarray, "k"]) -> Float[ndarray, "k k"]:
    """Entry [i, j] is values[i] - values[j]."""
    return values[:, None] - values[None, :]


def prompts_of(split: str) -> Int[ndarray, "p"]:
    """Indices into PROMPTS of "training" or "held_out"."""
    if split not in SPLITS:
        raise InputError(f"split '{split}': choose from {', '.join(SPLITS)}")
    return np.flatnonzero(SPLITS[split])
