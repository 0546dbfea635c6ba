"""Directions that are read off states, or drawn: what a trained vector has to be better than.

All are fitted on the rows, layer and positions that `train_cdas` takes for the same arguments. Names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "ablation": ".means",
    "everywhere": ".means",
    "fit_diffmean": ".means",
    "fit_pca": ".components",
    "fit_probe": ".probing",
    "random_vector": ".drawn",
    "random_vectors": ".drawn",
}

__all__ = ["ablation", "everywhere", "fit_diffmean", "fit_pca", "fit_probe", "random_vector", "random_vectors"]

if TYPE_CHECKING:
    from .components import fit_pca
    from .drawn import random_vector, random_vectors
    from .means import ablation, everywhere, fit_diffmean
    from .probing import fit_probe


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
