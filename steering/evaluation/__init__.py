"""Does a vector do what it was made for, both ways, and better than what costs nothing? Evaluation on quadruples.

Names load on first use. No module bears the name of a function: whoever imported it would hide the function.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Bidirectionality": ".both_ways_table",
    "Candidate": ".candidates",
    "Faithfulness": ".faithful_table",
    "FlipCase": ".flips",
    "LayerScan": ".layer_scan",
    "begins_with_target": ".flips",
    "bidirectionality": ".both_ways",
    "faithfulness": ".teacher_forcing",
    "same_answer": ".flips",
    "scan_layers": ".layer_scan",
}

__all__ = [
    "Bidirectionality",
    "Candidate",
    "Faithfulness",
    "FlipCase",
    "LayerScan",
    "begins_with_target",
    "bidirectionality",
    "faithfulness",
    "same_answer",
    "scan_layers",
]

if TYPE_CHECKING:
    from .both_ways import bidirectionality
    from .both_ways_table import Bidirectionality
    from .candidates import Candidate
    from .faithful_table import Faithfulness
    from .flips import FlipCase, begins_with_target, same_answer
    from .layer_scan import LayerScan, scan_layers
    from .teacher_forcing import faithfulness


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
