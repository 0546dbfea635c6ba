"""What the models of the organism are like: the quantities of the papers, with the true reward in place of votes."""

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy.special import log_softmax

from .enumeration import node_path
from .preference import PreferenceOrganism
from .truth import SPLITS, Models, Totals, credit, margins, prompts_of, read_models
from .world import normalised, pair_law, rewards

POPULATION = {
    "reference_ranking": "R of the reference: pairs w_i w_j with r_i > r_j, share with the higher log pi_ref on i",
    "policy_ranking": "R of the policy, same pairs",
    "idealized_ranking": "R* at the training beta: the same with pi* proportional to pi_ref exp(r / beta)",
    "implicit_accuracy": "the same with log pi - log pi_ref",
    "explicit_accuracy": "the same with the reward head",
    "kl_optimum_to_policy": "KL(pi* || pi), nats a response, mean over prompts, renormalised over the 256",
    "kl_policy_to_reference": "KL(pi || pi_ref), the same way",
    "beta_slope": "slope of beta (log pi - log pi_ref) on r within prompts, weighted by pi_ref; 1 at the optimum",
    "did_entropy_sequence": "entropy of softmax(log pi - log pi_ref) over the 256, nats, mean over prompts",
    "did_information_sequence": "log 256 - that entropy",
    "did_entropy_token": "entropy of softmax(logit differences), mean over the tokens of responses from pi_ref, nats",
    "did_information_token": "log 32 - that entropy",
    "mass_reference": "what the 256 responses hold of pi_ref, mean over prompts",
    "mass_policy": "what they hold of pi",
}


def population_table(
    organism: PreferenceOrganism, which: str = "dpo", *, models: Models | None = None
) -> pd.DataFrame:
    """Rows name, training, held_out, definition: the models against the true reward, without votes or sampling.

    Pairs are weighted w_i w_j with w = pi_ref over the 256 responses, and ordered by the true reward; equal rewards
    drop out. Sources: arXiv 2405.19534 (R, R*), 2409.03650 (implicit against explicit), 2505.23761 (DID). which,
    models: as in `truth_table`.
    """
    models = models or read_models(organism, which)
    columns = {split: population(models, split=split, beta=organism.beta) for split in SPLITS}
    return pd.DataFrame(
        [
            {"name": name, **{split: values[name] for split, values in columns.items()}, "definition": definition}
            for name, definition in POPULATION.items()
        ]
    )


def population(models: Models, *, split: str, beta: float) -> dict[str, float]:
    """The values of `population_table` on one split; keys are those of POPULATION."""
    rows = prompts_of(split)
    reward = rewards()[rows]
    reference, policy = models.reference.log_probs[rows], models.policy.log_probs[rows]
    log_ratio, explicit = models.log_ratio[rows], models.explicit[rows]
    best = optimum(reference, reward, beta)
    rankings = {
        "reference_ranking": reference, "policy_ranking": policy, "idealized_ranking": best,
        "implicit_accuracy": log_ratio, "explicit_accuracy": explicit,
    }
    totals = Totals()
    for i in range(len(rows)):
        weight = pair_law(reference[i:i + 1])[0] * (margins(reward[i]) > 1e-12)     # equal rewards: no right order
        for name, values in rankings.items():
            totals.add(name, credit(margins(values[i])), weight)
    sequence = entropy(log_ratio).mean()
    token = _token_entropy(models, rows)
    return {
        **{name: totals.share(name) for name in rankings},
        "kl_optimum_to_policy": float(kl(best, policy).mean()),
        "kl_policy_to_reference": float(kl(policy, reference).mean()),
        "beta_slope": slope(beta * log_ratio, reward, normalised(reference)),
        "did_entropy_sequence": float(sequence),
        "did_information_sequence": float(np.log(log_ratio.shape[1]) - sequence),
        "did_entropy_token": token,
        "did_information_token": float(np.log(models.policy.node_logits.shape[-1])) - token,
        "mass_reference": float(models.reference.mass[rows].mean()),
        "mass_policy": float(models.policy.mass[rows].mean()),
    }


def optimum(reference: Float[ndarray, "p k"], reward: Float[ndarray, "p k"], beta: float) -> Float[ndarray, "p k"]:
    """log pi*, the optimum of KL-regularised reward: softmax(log pi_ref + r / beta), nats. Source: arXiv 2305.18290."""
    return log_softmax(reference + reward / beta, axis=-1)


def kl(first: Float[ndarray, "p k"], second: Float[ndarray, "p k"]) -> Float[ndarray, "p"]:
    """KL(first || second) of two rows of log-probabilities, each renormalised over the row; nats."""
    a, b = log_softmax(first, axis=-1), log_softmax(second, axis=-1)
    return (np.exp(a) * (a - b)).sum(-1)


def entropy(logits: Float[ndarray, "*p k"]) -> Float[ndarray, "*p"]:
    """Entropy of softmax(logits), nats: of log-ratios, the entropy of the differential information distribution."""
    log_p = log_softmax(logits, axis=-1)
    return -(np.exp(log_p) * log_p).sum(-1)


def slope(y: Float[ndarray, "p k"], x: Float[ndarray, "p k"], weight: Float[ndarray, "p k"]) -> float:
    """Slope of y on x with an intercept a row, weighted; rows of `weight` sum to one."""
    def centred(v: ndarray) -> ndarray:
        return v - (weight * v).sum(-1, keepdims=True)

    return float((weight * centred(x) * centred(y)).sum() / (weight * centred(x) ** 2).sum())


def _token_entropy(models: Models, rows: ndarray) -> float:
    """Mean over the five tokens (EOS is one) of a response from the reference, then over prompts; nats."""
    at_node = entropy(models.policy.node_logits[rows] - models.reference.node_logits[rows])      # [p, 341]
    along = at_node[:, node_path()].mean(-1)                                                    # [p, 256]
    return float((normalised(models.reference.log_probs[rows]) * along).sum(-1).mean())
