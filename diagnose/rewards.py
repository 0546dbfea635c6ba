"""Implicit against explicit rewards: the public place of their measures, and the least gap that n pairs can show.

>>> best_of_n_credit([1, 1, 0, 0])
0.5
>>> fit_beta([1, 1, 1, -1]).summary()
'The preferences of 4 pairs are fitted best by beta = 1.1.'
>>> round(minimum_detectable_gap(0.2, 200), 6)
0.088594
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from .calibration import BetaFit, Calibration, calibration, fit_beta
from .ches import Ches, ches, ches_from_sums
from .objectives import objective_table, trl_metrics
from .ranking import as_float64, residualised_accuracy
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
    "GeneratorFit",
    "OrderAgreement",
    "RewardBenchTies",
    "RewardBenchV1",
    "TokenReductions",
    "best_of_n_credit",
    "calibration",
    "ches",
    "ches_from_sums",
    "fit_beta",
    "generator_fit",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorFit:
    """How far the policy's log-ratios are the log-odds of the two generators whose answers it was trained on."""

    slope: float | None  # 1 where log pi/pi_ref differences equal the generators' log-odds; None without spread
    r_squared: float | None  # share of the spread of the log-odds that slope x log-ratio explains; may be below 0
    n: int


def generator_fit(difference: Any, generator_difference: Any) -> GeneratorFit:
    """Slope (no intercept) and R^2 of log p_w - log p_l on dw - dl, [N] both, nats.

    p_w, p_l: the distributions that wrote chosen and rejected, each log-odds taken on the same text; the policy of a
    well-trained DPO run approaches them up to beta. No intercept, so that turning every pair turns the fit.
    Raises ValueError for shapes that differ or values that are not finite.
    """
    d, odds = as_float64(difference), as_float64(generator_difference)
    if d.shape != odds.shape or d.ndim != 1:
        raise ValueError(f"expected two lists of one length, got shapes {d.shape} and {odds.shape}")
    if not (np.isfinite(d).all() and np.isfinite(odds).all()):
        raise ValueError("not finite everywhere; leave out pairs without both numbers")
    below, spread = float((d**2).sum()), float((odds**2).sum())
    if not below or not spread:
        return GeneratorFit(slope=None, r_squared=None, n=len(d))
    slope = float((d * odds).sum()) / below
    return GeneratorFit(slope=slope, r_squared=1 - float(((odds - slope * d) ** 2).sum()) / spread, n=len(d))


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
