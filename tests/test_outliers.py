"""Rows without their outlier dimensions: exact rows first, then planted outliers and a clean spectrum."""

import numpy as np
import pytest

from alignscope.probes.kernels import fit_power_law, outlier_columns, without_top

ROWS = np.array([[1.0, 9.0, 50.0, 0.0], [2.0, -9.0, 50.0, 5.0], [3.0, 0.0, 50.0, -5.0]])


def test_columns_of_largest_variance_go_and_the_others_keep_their_order():
    assert outlier_columns(ROWS, 3).tolist() == [1, 3, 0]
    assert without_top(ROWS, 1).tolist() == [[1, 50, 0], [2, 50, 5], [3, 50, -5]]
    assert without_top(ROWS, 2).tolist() == [[1, 50], [2, 50], [3, 50]]  # a large mean is no variance


def test_nothing_left_out_is_nothing_changed():
    assert without_top(ROWS, 0) is ROWS


def test_of_equal_columns_the_earlier_go():
    assert outlier_columns(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), 2).tolist() == [0, 1]


def test_planted_outliers_are_undone_and_a_clean_spectrum_is_left_alone():
    random = np.random.default_rng(0)
    clean = (
        random.standard_normal((512, 576))
        * np.arange(1, 577) ** -0.75
        @ np.linalg.qr(random.normal(size=(576, 576)))[0]
    )
    rows = clean + 50
    rows[:, [400, 5, 100]] += random.standard_normal((512, 3)) * [15, 10, 7]
    assert outlier_columns(rows, 3).tolist() == [400, 5, 100]

    def exponent(x: np.ndarray) -> float:
        return fit_power_law(np.linalg.svd(x - x.mean(0), compute_uv=False)[:511]).exponent

    assert exponent(rows) / exponent(clean) - 1 > 0.07
    assert exponent(without_top(rows, 3)) == pytest.approx(exponent(clean), rel=0.005)
    assert exponent(without_top(clean, 3)) == pytest.approx(exponent(clean), rel=0.005)


@pytest.mark.parametrize(
    ("rows", "k", "message"),
    [
        (ROWS, 4, "k = 4 columns to leave out: 0..3 expected"),
        (ROWS, -1, "0..3 expected"),
        (ROWS[:0], 1, "N >= 1"),
        (np.array([[1.0, np.inf], [0.0, 0.0]]), 1, "1 of 2 rows hold NaN or infinity"),
    ],
)
def test_bad_input_is_refused(rows, k, message):
    with pytest.raises(ValueError, match=message):
        without_top(rows, k)
