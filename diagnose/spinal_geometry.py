"""Is the path of the read-out over the layers straight? Geodesic efficiency and turning on the sphere of sqrt p.

Lengths are Fisher-Rao (sphere of radius 2): angles d in [0, pi]. Formulas: ours, for SPINAL (arXiv 2601.06238).
"""

import math

import numpy as np
from jaxtyping import Float

TOO_SHORT = 1e-3  # rad: a step or path below it has no direction


def geodesic_efficiency(
    chord: Float[np.ndarray, "*rest"], path: Float[np.ndarray, "*rest"]
) -> Float[np.ndarray, "*rest"]:
    """Distance of the ends over the length of the way between them, in [0, 1], 1 = straight; NaN for a path < 1e-3.

    >>> geodesic_efficiency(np.array(math.pi), np.array(2 * math.pi)).item()
    0.5
    """
    some = path >= TOO_SHORT
    return np.where(some, np.minimum(chord / np.where(some, path, 1.0), 1.0), np.nan)


def turning(
    before: Float[np.ndarray, "*rest"], after: Float[np.ndarray, "*rest"], across: Float[np.ndarray, "*rest"]
) -> Float[np.ndarray, "*rest"]:
    """Change of direction at u_l: pi minus the angle of the spherical triangle (u_(l-1), u_l, u_(l+1)) at u_l.

    before = d(l-1, l), after = d(l, l+1), across = d(l-1, l+1), radians. With their halves a, b, c and
    h = (a + b + c)/2: pi - 2 atan2(sqrt(sin(h-a) sin(h-b)), sqrt(sin h sin(h-c))), in [0, pi]: 0 straight on, pi back.
    The cosine form would cancel at small angles. NaN where a step is under 1e-3 rad.
    """
    a, b, c = (np.asarray(side, dtype=np.float64) / 2 for side in (before, after, across))
    h = (a + b + c) / 2
    opening = np.sqrt(np.maximum(np.sin(h - a) * np.sin(h - b), 0.0))
    rest = np.sqrt(np.maximum(np.sin(h) * np.sin(h - c), 0.0))
    found = math.pi - 2 * np.arctan2(opening, rest)
    return np.where((before >= TOO_SHORT) & (after >= TOO_SHORT), found, np.nan)
