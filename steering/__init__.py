"""Vectors that change behaviour along one direction: made of a site, a subspace, an edit and two factors.

Names load on first use: `import alignscope.steering` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# public name -> module that defines it
_LAZY = {
    "Ablate": ".edits",
    "Add": ".edits",
    "Clamp": ".edits",
    "Edit": "..probes.subject",
    "Factors": ".factors",
    "FitResult": ".cdas",
    "Interchange": ".edits",
    "Positions": ".positions",
    "Site": "..probes.subject",
    "SteeringSet": ".sets",
    "SteeringVector": ".vector",
    "Subspace": ".subspace",
    "bidirectionality": ".evaluation.both_ways",
    "detection": ".evaluation.detecting",
    "evaluate_steering": ".evaluation.evaluating",
    "faithfulness": ".evaluation.teacher_forcing",
    "fit_interchange": ".cdas",
    "scan_layers": ".evaluation.layer_scan",
    "select_strength": ".evaluation.selecting",
    "side_effects": ".evaluation.damage",
    "sweep": ".evaluation.sweeps",
    "sweep_steering": ".evaluation.sweeping",
    "train_cdas": ".training",
}

__all__ = [
    "Ablate",
    "Add",
    "Clamp",
    "Edit",
    "Factors",
    "FitResult",
    "Interchange",
    "Positions",
    "Site",
    "SteeringSet",
    "SteeringVector",
    "Subspace",
    "bidirectionality",
    "detection",
    "evaluate_steering",
    "faithfulness",
    "fit_interchange",
    "scan_layers",
    "select_strength",
    "side_effects",
    "sweep",
    "sweep_steering",
    "train_cdas",
]

if TYPE_CHECKING:
    from ..probes.subject import Edit, Site
    from .cdas import FitResult, fit_interchange
    from .edits import Ablate, Add, Clamp, Interchange
    from .evaluation.both_ways import bidirectionality
    from .evaluation.damage import side_effects
    from .evaluation.detecting import detection
    from .evaluation.evaluating import evaluate_steering
    from .evaluation.layer_scan import scan_layers
    from .evaluation.selecting import select_strength
    from .evaluation.sweeping import sweep_steering
    from .evaluation.sweeps import sweep
    from .evaluation.teacher_forcing import faithfulness
    from .factors import Factors
    from .positions import Positions
    from .sets import SteeringSet
    from .subspace import Subspace
    from .training import train_cdas
    from .vector import SteeringVector


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
