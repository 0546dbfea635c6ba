"""alignscope: what preference training did to a language model, in numbers with intervals.

The public names load on first use (PEP 562), so that `import alignscope` imports neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import AnatomyError, InputError

__version__ = "0.1.0"

# public name -> module that defines it
_LAZY = {
    "load": ".probes.loading",
    "wrap": ".probes.loading",
    "load_reward": ".probes.reward",
    "read_prompts": ".probes.inputs",
    "read_pairs": ".probes.inputs",
    "draw_samples": ".probes.drawing",
    "score_pairs": ".probes.scoring",
    "PairScores": ".probes.pair_table",
    "spinal_trace": ".diagnose.spinal",
    "compare_spinal": ".diagnose.spinal",
    "spinal_distance": ".diagnose.spinal",
    "spinal_series": ".diagnose.spinal_series",
    "spinal_profiles": ".diagnose.spinal_profiles",
    "weight_spectrum": ".diagnose.weights",
    "effective_rows": ".diagnose.effective_rows",
    "gradient_concentration": ".diagnose.gradients",
    "train_lens": ".diagnose.lens_training",
    "TunedLens": ".probes.tuned_lens",
    "information_report": ".diagnose.information",
    "ranking_report": ".diagnose.ranking_report",
    "reward_report": ".diagnose.reward_report",
    "audit": ".diagnose.audit",
    "audit_tables": ".diagnose.table_audit",
    "Report": ".diagnose.report",
    "Estimate": ".diagnose.report",
    "Finding": ".diagnose.report",
    "Subject": ".probes.subject",
    "read_quadruples": ".steering.quadruples",
    "SteeringVector": ".steering.vector",
    "train_cdas": ".steering.training",
}
_SUBPACKAGES = ("cli", "dashboards", "diagnose", "organisms", "probes", "steering")

__all__ = [
    "AnatomyError",
    "Estimate",
    "Finding",
    "InputError",
    "PairScores",
    "Report",
    "SteeringVector",
    "Subject",
    "TunedLens",
    "__version__",
    "audit",
    "audit_tables",
    "compare_spinal",
    "draw_samples",
    "effective_rows",
    "gradient_concentration",
    "information_report",
    "load",
    "load_reward",
    "ranking_report",
    "read_pairs",
    "read_prompts",
    "read_quadruples",
    "reward_report",
    "score_pairs",
    "spinal_distance",
    "spinal_profiles",
    "spinal_series",
    "spinal_trace",
    "train_cdas",
    "train_lens",
    "weight_spectrum",
    "wrap",
]

if TYPE_CHECKING:
    from .diagnose.audit import audit
    from .diagnose.effective_rows import effective_rows
    from .diagnose.gradients import gradient_concentration
    from .diagnose.information import information_report
    from .diagnose.lens_training import train_lens
    from .diagnose.ranking_report import ranking_report
    from .diagnose.report import Estimate, Finding, Report
    from .diagnose.reward_report import reward_report
    from .diagnose.spinal import compare_spinal, spinal_distance, spinal_trace
    from .diagnose.spinal_profiles import spinal_profiles
    from .diagnose.spinal_series import spinal_series
    from .diagnose.table_audit import audit_tables
    from .diagnose.weights import weight_spectrum
    from .probes.drawing import draw_samples
    from .probes.inputs import read_pairs, read_prompts
    from .probes.loading import load, wrap
    from .probes.pair_table import PairScores
    from .probes.reward import load_reward
    from .probes.scoring import score_pairs
    from .probes.subject import Subject
    from .probes.tuned_lens import TunedLens
    from .steering.quadruples import read_quadruples
    from .steering.training import train_cdas
    from .steering.vector import SteeringVector


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name], __name__), name)
    elif name in _SUBPACKAGES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'alignscope' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_SUBPACKAGES})
