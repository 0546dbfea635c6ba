"""Effective rows of pooled tokens: exact answers, then what must not change them, then a loop over pairs."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignscope.diagnose.effective_rows import effective_rows


def autoregressive(rho: float, prompts: int, length: int, width: int, seed: int = 0) -> np.ndarray:
    """[prompts * length, width]: stationary AR(1) of unit variance inside every prompt."""
    random = np.random.default_rng(seed)
    rows = np.empty((prompts, length, width))
    rows[:, 0] = random.standard_normal((prompts, width))
    for t in range(1, length):
        rows[:, t] = rho * rows[:, t - 1] + np.sqrt(1 - rho**2) * random.standard_normal((prompts, width))
    return rows.reshape(-1, width)


def loop(rows: np.ndarray, ids: list[int]) -> tuple[float, list[float]]:
    """N_eff and rho by lag, pair by pair."""
    x = rows - rows.mean(0)
    products: dict[int, list[float]] = {}
    for prompt in set(ids):
        own = [row for row, label in zip(x, ids, strict=True) if label == prompt]
        for t, a in enumerate(own):
            for h, b in enumerate(own[t + 1 :], start=1):
                products.setdefault(h, []).append(float(a @ b))
    variance = float(np.mean([row @ row for row in x]))
    rho = [float(np.mean(products[h])) / variance for h in sorted(products)]
    total = sum(len(products[h]) / len(x) * r**2 for h, r in enumerate(rho, start=1))
    return len(x) / (1 + 2 * total), rho


PROMPTS, LENGTH = 64, 128
IDS = np.repeat(np.arange(PROMPTS), LENGTH)


def test_rows_of_an_ar1_of_point_9_are_worth_a_tenth_of_their_number():
    found = effective_rows(autoregressive(0.9, PROMPTS, LENGTH, 256), IDS)
    assert found.n_eff == pytest.approx(860, rel=0.1)
    exact = 8192 / (1 + 2 * sum((1 - h / LENGTH) * 0.81**h for h in range(1, LENGTH)))  # 892: prompts are short
    assert found.n_eff == pytest.approx(exact, rel=0.03)
    assert found.rho[:3] == pytest.approx([0.9, 0.81, 0.729], abs=0.02)
    assert (found.n, found.n_prompts, len(found.rho), found.reason) == (8192, 64, 127, None)


def test_identical_rows_inside_a_prompt_count_once():
    rows = np.random.default_rng(0).standard_normal((PROMPTS, 32)).repeat(LENGTH, axis=0)
    found = effective_rows(rows, IDS)
    assert found.n_eff == pytest.approx(64, rel=1e-12)
    assert found.rho == pytest.approx(np.ones(127), rel=1e-9)


def test_identical_rows_of_unequal_prompts_are_worth_kish_s_number():
    lengths = [2, 6, 6, 2]
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]]).repeat(lengths, axis=0)  # same length, mean 0
    found = effective_rows(rows, np.arange(4).repeat(lengths))
    assert found.n_eff == pytest.approx(16**2 / (4 + 36 + 36 + 4), rel=1e-12)


def test_independent_rows_count_in_full():
    rows = np.random.default_rng(1).standard_normal((8192, 64))
    assert effective_rows(rows, IDS).n_eff == pytest.approx(8192, rel=0.01)


def test_pooling_comes_before_squaring():
    """Few directions: squares of each prompt's own correlations would lose half of the independent rows."""
    rows = np.random.default_rng(2).standard_normal((8192, 3))
    assert effective_rows(rows, IDS).n_eff == pytest.approx(8192, rel=0.03)


def test_alternating_rows_count_as_dependent_too():
    rows = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    found = effective_rows(rows, ["a"] * 4)
    assert found.rho == pytest.approx([-1, 1, -1], abs=1e-12)
    assert found.n_eff == pytest.approx(1, rel=1e-12)


def test_a_row_a_prompt_is_independent():
    found = effective_rows(np.eye(5), list("abcde"))
    assert (found.n_eff, found.n, found.n_prompts) == (5.0, 5, 5)
    assert found.rho.shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 10_000))
def test_equals_a_loop_over_pairs_for_prompts_of_any_length(lengths, width, seed):
    ids = [prompt for prompt, length in enumerate(lengths) for _ in range(length)]
    if len(ids) < 2:
        return
    rows = np.random.default_rng(seed).standard_normal((len(ids), width)).cumsum(0) + 3
    n_eff, rho = loop(rows, ids)
    found = effective_rows(rows, ids)
    assert found.n_eff == pytest.approx(n_eff, rel=1e-9)
    assert found.rho == pytest.approx(rho, abs=1e-9)
    assert found.n_eff <= len(ids) * (1 + 1e-12)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-50, 50), st.integers(0, 1000))
def test_scale_shift_and_rotation_do_not_matter(scale, shift, seed):
    rows, ids = autoregressive(0.8, 6, 10, 5, seed), np.arange(6).repeat(10)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 5)))[0]
    moved = effective_rows(scale * rows @ rotation + shift, ids)
    assert moved.n_eff == pytest.approx(effective_rows(rows, ids).n_eff, rel=1e-6)


def test_prompts_may_be_mixed_as_long_as_each_is_in_order():
    rows, ids = autoregressive(0.8, 20, 50, 20), np.arange(20).repeat(50)
    mixed = np.arange(1000).reshape(20, 50).T.ravel()  # first rows of all prompts, then second ones
    plain = effective_rows(rows, ids)
    assert effective_rows(rows[mixed], ids[mixed]).n_eff == pytest.approx(plain.n_eff, rel=1e-12)
    shuffled = np.random.default_rng(0).permutation(1000)
    assert effective_rows(rows[shuffled], ids[shuffled]).n_eff > 1.5 * plain.n_eff  # the order inside does matter


def test_names_and_tensors_are_taken():
    rows, ids = autoregressive(0.8, 6, 10, 5), np.arange(6).repeat(10)
    plain = effective_rows(rows, ids).n_eff
    assert effective_rows(torch.from_numpy(rows), torch.from_numpy(ids)).n_eff == plain
    assert effective_rows(rows, [f"prompt {i}" for i in ids]).n_eff == plain
    assert effective_rows(rows.astype(np.float32), ids).n_eff == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.ones((1, 3)), "1 rows: at least 2 are needed"),
        (np.ones((0, 3)), "0 rows: at least 2 are needed"),
        (np.full((7, 3), 0.1), "all rows are the same: nothing varies"),
    ],
)
def test_rows_without_a_correlation_have_a_reason(rows, reason):
    found = effective_rows(rows, np.zeros(len(rows), int))
    assert (found.n_eff, found.n, found.reason) == (None, len(rows), reason)
    assert found.rho.shape == (0,)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3,\)"):
        effective_rows(np.ones((4, 2)), [1, 1, 1])
    with pytest.raises(ValueError, match="2 of 4 rows hold NaN or infinity"):
        effective_rows(np.array([[1.0], [np.nan], [np.inf], [0.0]]), [1, 1, 1, 1])


def test_nine_thousand_rows_of_a_model_s_width_take_seconds_at_most():
    rows = np.random.default_rng(0).standard_normal((9000, 576)).astype(np.float32)
    start = time.process_time()
    effective_rows(rows, np.sort(np.random.default_rng(1).integers(0, 100, 9000)))
    assert time.process_time() - start < 3  # .2 measured
