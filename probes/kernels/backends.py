"""Which code sums up a tile: torch, or the compiled pass of Numba where it is installed and can."""

import functools
from collections.abc import Callable

import torch

from .eager import tile_state
from .tiled_reading import TileState

BACKENDS = ("auto", "eager", "numba")


def chosen(name: str, dtype: torch.dtype, device: torch.device) -> str:
    """The backend of that name; auto: numba for float32 on the CPU where it can be imported, else eager.

    ValueError: another name; numba where it cannot be imported, or for another dtype or device than it is made for.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not available: this version has {', '.join(BACKENDS)}")
    if name == "eager":
        return name
    fits = dtype == torch.float32 and device.type == "cpu"
    if name == "auto":
        return "numba" if fits and _problem() is None else "eager"
    if not fits:
        raise ValueError(f"backend 'numba' is for float32 on the CPU, not for {dtype} on {device}: take 'auto'")
    if _problem() is not None:
        raise ValueError(
            f"backend 'numba' cannot be used ({_problem()}): pip install alignscope[numba], or take 'auto'"
        )
    return name


@functools.cache
def _problem() -> str | None:
    """Why the compiled backend is not there; tried once, and only when asked for: the import takes a second."""
    try:
        from . import numba_tiles  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: no folder in which it may keep what it compiled
        return str(error)
    return None


def tiles(backend: str) -> Callable[[], TileState]:
    """What makes the function by which that backend, eager or numba, sums up the tiles of a block of tokens."""
    if backend == "eager":
        return lambda: tile_state
    from .numba_tiles import FusedTiles

    return FusedTiles
