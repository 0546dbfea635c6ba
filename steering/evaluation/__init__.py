"""Does a vector do what it was made for, both ways, and better than what costs nothing? Evaluation on quadruples.

Names load on first use. No module bears the name of a function: whoever imported it would hide the function.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# public name -> module that defines it
_LAZY = {
    "Bidirectionality": ".both_ways_table",
    "Candidate": ".candidates",
    "Detection": ".detecting",
    "Faithfulness": ".faithful_table",
    "FlipCase": ".flips",
    "KeywordScorer": ".judges",
    "LayerScan": ".layer_scan",
    "OfflineScorer": ".offline",
    "RefusalMeasure": ".refusals",
    "RewardScorer": ".judges",
    "Scorer": ".ratings",
    "Selection": ".selecting",
    "SideEffects": ".damage",
    "Sweep": ".sweeps",
    "begins_with_target": ".flips",
    "bidirectionality": ".both_ways",
    "detection": ".detecting",
    "evaluate_steering": ".evaluating",
    "faithfulness": ".teacher_forcing",
    "openings_of": ".refusals",
    "parse_rating": ".ratings",
    "rating_score": ".ratings",
    "refusal_measure": ".refusals",
    "same_answer": ".flips",
    "scan_layers": ".layer_scan",
    "select_strength": ".selecting",
    "side_effects": ".damage",
    "sweep": ".sweeps",
    "sweep_steering": ".sweeping",
}

__all__ = [
    "Bidirectionality",
    "Candidate",
    "Detection",
    "Faithfulness",
    "FlipCase",
    "KeywordScorer",
    "LayerScan",
    "OfflineScorer",
    "RefusalMeasure",
    "RewardScorer",
    "Scorer",
    "Selection",
    "SideEffects",
    "Sweep",
    "begins_with_target",
    "bidirectionality",
    "detection",
    "evaluate_steering",
    "faithfulness",
    "openings_of",
    "parse_rating",
    "rating_score",
    "refusal_measure",
    "same_answer",
    "scan_layers",
    "select_strength",
    "side_effects",
    "sweep",
    "sweep_steering",
]

if TYPE_CHECKING:
    from .both_ways import bidirectionality
    from .both_ways_table import Bidirectionality
    from .candidates import Candidate
    from .damage import SideEffects, side_effects
    from .detecting import Detection, detection
    from .evaluating import evaluate_steering
    from .faithful_table import Faithfulness
    from .flips import FlipCase, begins_with_target, same_answer
    from .judges import KeywordScorer, RewardScorer
    from .layer_scan import LayerScan, scan_layers
    from .offline import OfflineScorer
    from .ratings import Scorer, parse_rating, rating_score
    from .refusals import RefusalMeasure, openings_of, refusal_measure
    from .selecting import Selection, select_strength
    from .sweeping import sweep_steering
    from .sweeps import Sweep, sweep
    from .teacher_forcing import faithfulness


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
