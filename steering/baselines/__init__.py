"""What a trained vector has to be better than: directions read off states, drawn, or trained otherwise, and asking.

All are fitted on the rows, layer and positions that `train_cdas` takes for the same arguments. Names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "ablation": ".means",
    "everywhere": ".means",
    "fit_bipo": ".trained",
    "fit_diffmean": ".means",
    "fit_lat": ".components",
    "fit_lora": ".lora",
    "fit_loreft": ".loreft",
    "fit_pca": ".components",
    "fit_probe": ".probing",
    "fit_reps": ".trained",
    "fit_ssv": ".trained",
    "prompted": ".prompting",
    "random_vector": ".drawn",
    "random_vectors": ".drawn",
}

__all__ = [
    "ablation",
    "everywhere",
    "fit_bipo",
    "fit_diffmean",
    "fit_lat",
    "fit_lora",
    "fit_loreft",
    "fit_pca",
    "fit_probe",
    "fit_reps",
    "fit_ssv",
    "prompted",
    "random_vector",
    "random_vectors",
]

if TYPE_CHECKING:
    from .components import fit_lat, fit_pca
    from .drawn import random_vector, random_vectors
    from .lora import fit_lora
    from .loreft import fit_loreft
    from .means import ablation, everywhere, fit_diffmean
    from .probing import fit_probe
    from .prompting import prompted
    from .trained import fit_bipo, fit_reps, fit_ssv


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
