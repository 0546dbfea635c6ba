"""CHES: the example with an exact answer, what must not change it, and the faults that must move it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignscope.diagnose.ches import ches, ches_from_sums

PLUS = np.array([[1.0, 0.0], [0.0, 2.0]])
MINUS = np.array([[1.0, 1.0]])
seeds = st.integers(0, 2**32 - 1)
unhurried = settings(max_examples=30, deadline=None)


def batch(seed, rows=4, width=6, d=5):
    """States of both sides and masks with 1..width positions that count, on the left."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(2, rows, width, d))
    mask = np.arange(width) < rng.integers(1, width + 1, size=(2, rows, 1))
    return states, mask


# ---- T16


def test_two_states_against_one():
    found = ches(PLUS, MINUS)
    assert found.value == -2  # <(1, 2), (1, 1)> - |(1, 2)|^2
    assert found.normalised == 0.25  # 3 / (2 * 1) - 5 / 4


def test_sums_and_counts_give_the_same():
    found = ches_from_sums([1.0, 2.0], [1.0, 1.0], 2, 1)
    assert (found.value, found.normalised) == (-2, 0.25)


def test_equal_sides_give_exactly_zero():
    states = np.random.default_rng(0).normal(size=(3, 7, 11)) * 1e6
    found = ches(states, states)
    assert found.value.tolist() == found.normalised.tolist() == [0.0] * 3


def test_orthogonal_sides_give_minus_the_squared_norm():
    assert ches([[3.0, 0.0]], [[0.0, 5.0]]).value == -9


@unhurried
@given(seeds)
def test_the_formula_as_written_in_the_paper(seed):
    states, mask = batch(seed)
    found = ches(*states, *mask)
    for i in range(4):
        plus, minus = (x[i][kept[i]] for x, kept in zip(states, mask, strict=True))
        s, t = plus.sum(0), minus.sum(0)
        assert found.value[i] == pytest.approx(s @ t - s @ s)
        assert found.normalised[i] == pytest.approx(s @ t / (len(plus) * len(minus)) - s @ s / len(plus) ** 2)


# ---- what must not change it


@pytest.mark.parametrize("padding", [0.0, 7.5, float("nan")])
@pytest.mark.parametrize("extra", [1, 5])
def test_extra_right_padding_changes_nothing_whatever_it_holds(padding, extra):
    def padded(states):
        return np.pad(states, ((0, extra), (0, 0)), constant_values=padding)

    masks = [np.arange(len(side) + extra) < len(side) for side in (PLUS, MINUS)]
    found = ches(padded(PLUS), padded(MINUS), *masks)
    assert (found.value, found.normalised) == (-2, 0.25)


def test_leaving_out_the_mask_on_padding_moves_it():
    rng = np.random.default_rng(1)
    plus, minus = rng.normal(size=(2, 6, 4))
    mask = np.array([True] * 3 + [False] * 3)
    right = ches(plus, minus, mask, mask)
    for masks in ((None, mask), (mask, None), (None, None)):
        wrong = ches(plus, minus, *masks)
        assert abs(wrong.value - right.value) > 0.1
        assert abs(wrong.normalised - right.normalised) > 0.01


def test_padding_of_zeros_without_a_mask_moves_the_normalised_value_alone():
    padded = np.pad(PLUS, ((0, 2), (0, 0)))
    found = ches(padded, MINUS)
    assert found.value == -2
    assert found.normalised == 3 / 4 - 5 / 16  # n+ taken for 4: true lengths matter


@unhurried
@given(seeds)
def test_a_batch_is_its_rows(seed):
    states, mask = batch(seed)
    found = ches(*states, *mask)
    for i in range(4):
        alone = ches(states[0, i], states[1, i], mask[0, i], mask[1, i])
        assert alone.value.shape == ()
        assert found.value[i] == alone.value
        assert found.normalised[i] == alone.normalised


@unhurried
@given(seeds, st.sampled_from([0.5, -2.0, 8.0]))
def test_a_change_of_unit_squares(seed, unit):
    states, mask = batch(seed)
    before, after = ches(*states, *mask), ches(*(unit * states), *mask)
    assert after.value == pytest.approx(unit**2 * before.value)
    assert after.normalised == pytest.approx(unit**2 * before.normalised)


@unhurried
@given(seeds)
def test_repeating_every_state_leaves_the_normalised_value(seed):
    states, mask = batch(seed)
    twice = ches(*np.repeat(states, 2, axis=2), *np.repeat(mask, 2, axis=2))
    once = ches(*states, *mask)
    assert twice.normalised == pytest.approx(once.normalised)
    assert twice.value == pytest.approx(4 * once.value)


def test_sides_may_differ_in_length():
    rng = np.random.default_rng(0)
    assert ches(rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 9, 4))).value.shape == (2,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_tensors_and_masks_of_integers_are_accepted(dtype, kind):
    mask = torch.ones(2, dtype=kind)
    found = ches(torch.tensor(PLUS, dtype=dtype), torch.tensor(MINUS, dtype=dtype), mask, None)
    assert (found.value, found.normalised) == (-2, 0.25)
    assert found.value.dtype == np.float64


def test_sums_are_taken_in_float64():
    states = torch.full((1, 4096, 1), 1.001, dtype=torch.float32)
    found = ches(states, torch.zeros(1, 1, 1))
    assert found.value[0] == pytest.approx(-((4096 * float(np.float32(1.001))) ** 2), rel=1e-13)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([1.0, 2.0], MINUS), "expected .T, d."),
        ((PLUS, MINUS, [True]), "chosen mask of shape"),
        ((PLUS, MINUS, None, [True, True]), "rejected mask of shape"),
        ((PLUS, MINUS, [False, False]), "without a scored position"),
        ((PLUS, MINUS, None, [False]), "without a scored position"),
        ((PLUS, [[1.0, 1.0, 1.0]]), "expected sums"),
        ((PLUS[None], MINUS), "expected sums"),
        ((PLUS, [[1.0, float("nan")]]), "not finite"),
    ],
)
def test_bad_input_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        ches(*arguments)


def test_counts_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="one count a row"):
        ches_from_sums([[1.0, 2.0]], [[1.0, 1.0]], 2, 1)
