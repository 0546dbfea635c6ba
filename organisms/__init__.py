"""Small checkpoints with known answers: for the demo, the tests and the validity figures."""

from .population import population_table
from .preference import PreferenceOrganism, build_preference_organism, open_preference_organism
from .recipe import Recipe
from .reward_truth import reward_truth_table
from .truth import truth_table

__all__ = [
    "PreferenceOrganism",
    "Recipe",
    "build_preference_organism",
    "open_preference_organism",
    "population_table",
    "reward_truth_table",
    "truth_table",
]
