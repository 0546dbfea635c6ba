"""Implicit against explicit rewards: the public place of their measures, and the least gap that n pairs can show.

>>> best_of_n_credit([1, 1, 0, 0])
0.5
>>> fit_beta([1, 1, 1, -1]).summary()
'The preferences of 4 pairs are fitted best by beta = 1.1.'
>>> round(minimum_detectable_gap(0.2, 200), 6)
0.088594
"""

import math

from scipy.stats import norm

from .calibration import BetaFit, Calibration, calibration, fit_beta
from .ches import Ches, ches, ches_from_sums
from .objectives import objective_table, trl_metrics
from .ranking import residualised_accuracy
from .response_orders import OrderAgreement, order_agreement, orders_table
from .reward_benchmarks import (
    RewardBenchTies,
    RewardBenchV1,
    TokenReductions,
    best_of_n_credit,
    rewardbench_ties,
    rewardbench_v1,
    token_reductions,
)

__all__ = [
    "BetaFit",
    "Calibration",
    "Ches",
    "OrderAgreement",
    "RewardBenchTies",
    "RewardBenchV1",
    "TokenReductions",
    "best_of_n_credit",
    "calibration",
    "ches",
    "ches_from_sums",
    "fit_beta",
    "minimum_detectable_gap",
    "objective_table",
    "order_agreement",
    "orders_table",
    "residualised_accuracy",
    "rewardbench_ties",
    "rewardbench_v1",
    "token_reductions",
    "trl_metrics",
]

LEVEL, POWER = 0.95, 0.8
_REACH = float(norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER))  # 2.8016


def minimum_detectable_gap(discordant: float | int, n: int) -> float:
    """The gap of two accuracies that n independent pairs show with 80 % power, two-sided at 5 %: 2.8016 sqrt(q / n).

    discordant q: share of pairs that only one of the two scorers has right, in [0, 1]. A share, as accuracies are.
    The variance q - gap^2 of a difference is rounded up to q. Raises ValueError for a share outside [0, 1] or n < 1.
    """
    if not 0 <= discordant <= 1:
        raise ValueError(f"discordant={discordant}: expected a share in [0, 1]")
    if n < 1:
        raise ValueError(f"n={n}: expected at least one pair")
    return _REACH * math.sqrt(discordant / n)
