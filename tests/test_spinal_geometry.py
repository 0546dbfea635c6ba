"""Efficiency and turning of a path of distributions: closed forms on the sphere of sqrt p."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignscope.diagnose.spinal_geometry import geodesic_efficiency, turning

START, END = (0.7, 0.2, 0.1), (0.1, 0.2, 0.7)
GEOMETRIC = np.array([0.07**0.5, 0.2, 0.07**0.5]) / (0.2 + 2 * 0.07**0.5)


def distance(p, q) -> float:
    u, v = np.sqrt(p), np.sqrt(q)
    return float(4 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))


def path(*points) -> tuple[float, float]:
    """Efficiency and turning of a path of three distributions."""
    sides = ((0, 1), (1, 2), (0, 2))
    d = [np.array([distance(points[i], points[j])]) for i, j in sides]
    return geodesic_efficiency(d[2], d[0] + d[1]).item(), turning(*d).item()


@pytest.mark.parametrize(
    ("points", "efficiency", "angle"),
    [
        (np.eye(3), 0.5, math.pi / 2),
        (np.eye(3)[[0, 1, 0]], 0.0, math.pi),
        ((START, (0.4, 0.2, 0.4), END), 0.995167, 0.191934),
        ((START, GEOMETRIC, END), 0.991897, 0.248586),
    ],
)
def test_known_paths(points, efficiency, angle):
    assert path(*points) == (pytest.approx(efficiency, abs=2e-6), pytest.approx(angle, abs=5e-6))


def test_the_geodesic_is_straight():
    efficiency, angle = path(START, (0.384336, 0.231327, 0.384336), END)
    assert efficiency == pytest.approx(1.0, abs=1e-6)
    assert angle < 1e-3


@given(st.lists(st.floats(0.01, 1.0), min_size=12, max_size=12))
def test_turning_is_that_of_the_tangents_at_the_middle_point(weights):
    u = np.sqrt(np.array(weights).reshape(3, 4))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    d = [np.array([distance(u[i] ** 2, u[j] ** 2)]) for i, j in ((0, 1), (1, 2), (0, 2))]
    if min(d[0].item(), d[1].item()) < 0.05:
        return
    to_before, to_after = (u[i] - (u[i] @ u[1]) * u[1] for i in (0, 2))
    cosine = to_before @ to_after / np.linalg.norm(to_before) / np.linalg.norm(to_after)
    assert turning(*d).item() == pytest.approx(math.pi - math.acos(max(-1.0, min(1.0, cosine))), abs=1e-6)
    assert 0 <= geodesic_efficiency(d[2], d[0] + d[1]).item() <= 1


def test_a_step_without_length_has_no_direction():
    tiny, long = np.array([5e-4, 0.2]), np.array([0.1, 0.1])
    assert np.isnan(turning(tiny, long, long)).tolist() == [True, False]
    assert np.isnan(turning(long, tiny, long)).tolist() == [True, False]
    assert np.isnan(geodesic_efficiency(tiny, tiny)).tolist() == [True, False]
