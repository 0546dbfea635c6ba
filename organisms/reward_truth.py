"""What a comparison of implicit and explicit reward should find, on training topics and on held-out ones."""

import pandas as pd

from .preference import PreferenceOrganism
from .truth import Models, expectations, prompts_of, read_models

SHIFTED = "held_out"
_ACCURACIES = {
    "accuracy_implicit": ("reward_accuracy", "log pi - log pi_ref is higher for the majority's choice"),
    "accuracy_explicit": ("explicit_accuracy", "the reward head scores the majority's choice higher"),
    "accuracy_ranking": ("accuracy", "the policy gives the majority's choice the higher log-probability"),
}


def reward_truth_table(
    organism: PreferenceOrganism, which: str = "dpo", *, shifted: str = SHIFTED, models: Models | None = None
) -> pd.DataFrame:
    """Rows name, estimate_key ('rewards.gap'), truth, definition: what the section "rewards" of an audit aims at.

    In-distribution are pairs on training topics (`organism.pairs`), shifted those on held-out topics
    (`organism.shifted`), which an audit calls `shifted`. Expectations over the files' own law, as in `truth_table`.
    """
    recipe, models = organism.recipe, models or read_models(organism, which)
    here, there = (
        expectations(models, prompts_of(split), draws=draws, votes=recipe.votes, beta=recipe.beta)
        for split, draws in (("training", recipe.pairs_draws), ("held_out", recipe.shifted_draws))
    )
    rows = []
    for name, (key, what) in _ACCURACIES.items():
        rows += [(name, here[key], what), (f"{name}_{shifted}", there[key], f"held-out topics: {what}")]
    gaps = [values["explicit_accuracy"] - values["reward_accuracy"] for values in (here, there)]
    rows += [
        ("gap", gaps[0], "explicit minus implicit accuracy"),
        (f"gap_{shifted}", gaps[1], "held-out topics: explicit minus implicit accuracy"),
        (f"drop_implicit_{shifted}", here["reward_accuracy"] - there["reward_accuracy"], "what held-out topics cost"),
        (f"drop_explicit_{shifted}", here["explicit_accuracy"] - there["explicit_accuracy"], "what they cost the head"),
        (f"excess_drop_{shifted}", gaps[1] - gaps[0], "gap on held-out topics minus gap on training topics"),
    ]
    return pd.DataFrame(
        [
            {"name": name, "estimate_key": f"rewards.{name}", "truth": truth, "definition": definition}
            for name, truth, definition in rows
        ]
    )
