"""Effective rank and its relatives: closed forms first, then what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignscope.probes.kernels import (
    effective_rank,
    participation_ratio,
    rankme,
    spectral_entropy_rank,
    stable_rank,
)

ALL = [effective_rank, rankme, spectral_entropy_rank, participation_ratio, stable_rank]
spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40).map(lambda s: torch.tensor(s, dtype=torch.float64))


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        ([5.0], 1.0),  # one direction
        ([2.0, 2.0, 2.0, 2.0], 4.0),  # all equal: k
        ([3.0, 1.0], 4 / 3**0.75),  # entropy of (3/4, 1/4) is ln 4 - (3/4) ln 3
        ([2.0**-i for i in range(60)], 4.0),  # halving for ever: entropy 2 ln 2
        ([1.0, 1.0, 0.0], 2.0),  # zeros count for nothing
    ],
)
def test_closed_forms(s, expected):
    assert effective_rank(torch.tensor(s)).item() == pytest.approx(expected, rel=1e-6)


def test_four_answers_for_one_spectrum():
    s = torch.tensor([1, 1 / 2, 1 / 3, 1 / 4], dtype=torch.float64)
    answers = [rankme(s), spectral_entropy_rank(s), participation_ratio(s), stable_rank(s)]
    assert [a.item() for a in answers] == pytest.approx([3.464117, 2.434783, 1.878716, 1.423611], abs=1e-6)


@pytest.mark.parametrize("rank", ALL)
@pytest.mark.parametrize("m", [1, 3, 50])
def test_equal_values_are_all_directions(rank, m):
    assert rank(torch.full((m,), 0.3)).item() == pytest.approx(m, rel=1e-6)


@pytest.mark.parametrize("rank", ALL)
def test_no_spectrum_has_no_rank_and_batches_are_rows(rank):
    values = rank(torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 0.0]]))
    assert math.isnan(values[0].item())
    assert values[1].item() == pytest.approx(2)


@pytest.mark.parametrize("rank", ALL)
def test_tiny_spectra_keep_their_shape(rank):
    s = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    assert rank(s * 1e-100).item() == pytest.approx(rank(s).item(), rel=1e-12)


@pytest.mark.parametrize("rank", ALL)
@given(s=spectra, scale=st.floats(1e-2, 1e2))
@settings(max_examples=25, deadline=None)
def test_scale_and_order_do_not_matter_and_the_range_is_one_to_k(rank, s, scale):
    value = rank(s).item()
    assert rank(scale * s.flip(0)).item() == pytest.approx(value, rel=1e-9)
    assert 1 - 1e-9 <= value <= len(s) + 1e-9


@pytest.mark.parametrize("rank", ALL)
def test_negative_values_are_refused_with_the_likely_cause(rank):
    with pytest.raises(ValueError, match="pass s, not eigenvalues"):
        rank(torch.tensor([1.0, -1e-9]))
    with pytest.raises(ValueError, match="k >= 1"):
        rank(torch.zeros(2, 0))
