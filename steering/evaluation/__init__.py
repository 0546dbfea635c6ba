"""Does a vector do what it should, at which strength, and what does it break? Names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# public name -> module that defines it; no module has the name of a function: importing it would hide the function
_LAZY = {
    "Detection": ".detecting",
    "KeywordScorer": ".judges",
    "OfflineScorer": ".offline",
    "RefusalMeasure": ".refusals",
    "RewardScorer": ".judges",
    "Scorer": ".ratings",
    "Selection": ".selecting",
    "SideEffects": ".damage",
    "Sweep": ".sweeps",
    "detection": ".detecting",
    "openings_of": ".refusals",
    "parse_rating": ".ratings",
    "rating_score": ".ratings",
    "refusal_measure": ".refusals",
    "select_strength": ".selecting",
    "side_effects": ".damage",
    "sweep": ".sweeps",
}

__all__ = [
    "Detection",
    "KeywordScorer",
    "OfflineScorer",
    "RefusalMeasure",
    "RewardScorer",
    "Scorer",
    "Selection",
    "SideEffects",
    "Sweep",
    "detection",
    "openings_of",
    "parse_rating",
    "rating_score",
    "refusal_measure",
    "select_strength",
    "side_effects",
    "sweep",
]

if TYPE_CHECKING:
    from .damage import SideEffects, side_effects
    from .detecting import Detection, detection
    from .judges import KeywordScorer, RewardScorer
    from .offline import OfflineScorer
    from .ratings import Scorer, parse_rating, rating_score
    from .refusals import RefusalMeasure, openings_of, refusal_measure
    from .selecting import Selection, select_strength
    from .sweeps import Sweep, sweep


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
