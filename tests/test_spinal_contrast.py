"""Contrasts of arrays: exact answers first, then what a control on null data says, then planted differences."""

import math

import numpy as np
import pandas as pd
import pytest

from alignscope import InputError
from alignscope.diagnose.spinal_contrast import (
    MIN_TESTED,
    SpectraSide,
    by_cluster,
    exponent_columns,
    exponent_contrast,
    flipped,
    smallest,
    student_p,
    terminal_window,
    transport_table,
    windows,
)
from alignscope.diagnose.spinal_controls import ALARM, half_labels, permuted
from alignscope.diagnose.spinal_spectra import all_layers, group_labels
from alignscope.diagnose.spinal_trace import bootstrap_means, jackknife_se, student


@pytest.mark.parametrize(
    ("n_layers", "blocks"),
    [(30, (21, 30)), (12, (9, 12)), (24, (17, 24)), (28, (19, 28)), (32, (22, 32)), (6, (4, 6)), (3, (1, 3))],
)
def test_the_last_third(n_layers, blocks):
    assert terminal_window("last_third", n_layers) == blocks


def test_terminal_windows_by_size_and_by_ends():
    assert terminal_window("last_10", 30) == (21, 30)
    assert terminal_window((2, 5), 6) == (2, 5)
    assert terminal_window([2, 5], 6) == (2, 5)  # as read back from JSON


@pytest.mark.parametrize("terminal", ["last_third", "last_3", (0, 2), (2, 3), (2, 1), "last_0", "first_third"])
def test_windows_that_a_model_of_two_blocks_does_not_have_are_refused(terminal):
    with pytest.raises(InputError, match="terminal="):
        terminal_window(terminal, 2)


def test_delete_group_jackknife_of_a_mean():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    without = np.array([np.delete(values, i).mean() for i in range(4)])
    assert jackknife_se(without) == pytest.approx(math.sqrt(5 / 12))  # .645497, the usual standard error
    assert np.isnan(jackknife_se(np.zeros((0, 3)))).all()


def test_student_points_for_16_and_32_groups():
    assert student(16) == pytest.approx(2.131, abs=5e-4)
    assert student(32) == pytest.approx(2.040, abs=5e-4)


def test_sign_flips_of_five_prompts_are_all_tried():
    p, t = flipped(np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]), np.arange(5), 0)
    assert t[0] == pytest.approx(4.242641, abs=1e-6)
    assert p[0] == pytest.approx(2 / 32)
    p, t = flipped(np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, -1.0, 2.0, -2.0, 0.5]]), np.arange(5), 0)
    assert p == pytest.approx([4 / 32, 1.0])


def test_a_step_without_any_difference_has_t_0_and_p_1():
    p, t = flipped(np.vstack([np.zeros(30), np.random.default_rng(0).normal(1.0, 0.1, 30)]), np.arange(30), 0)
    assert (t[0], p[0]) == (0.0, 1.0)
    assert p[1] < 0.001
    p, t = flipped(np.zeros((2, 30)), np.arange(30), 0)
    assert (*t, *p) == (0.0, 0.0, 1.0, 1.0)


def test_differences_under_the_resolution_are_not_tested():
    """A shift of one sign is always significant, also where it is round-off: 1e-5 is the least that counts."""
    spread = np.random.default_rng(0).normal(1.0, 0.1, 30)
    p, t = flipped(np.vstack([0.5e-5 * spread, 2e-5 * spread]), np.arange(30), 0)
    assert (t[0], p[0]) == (0.0, 1.0)
    assert p[1] < 0.001
    p = student_p(np.array([9.0, 0.5e-5, 2e-5]), np.array([1.0, 1e-9, 1e-9]), np.full(3, 15.0))
    assert p[1] == 1.0
    assert p[2] < 0.001


def test_signs_of_seven_clusters_can_reach_the_alarm_and_of_six_cannot():
    for clusters, reached in ((MIN_TESTED, True), (MIN_TESTED - 1, False)):
        p, _ = flipped(np.ones((1, clusters)), np.arange(clusters), 0)
        assert p[0] == 2 / 2**clusters
        assert (p[0] < ALARM) == reached


def test_prompts_of_one_cluster_are_flipped_together():
    difference = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 20)[None]
    together, _ = flipped(difference, np.tile(np.arange(5), 20), 0)
    apart, _ = flipped(difference, np.arange(100), 0)
    assert together[0] == pytest.approx(2 / 32)  # 5 clusters hold no more than 32 sign patterns
    assert apart[0] < 0.001


def test_cluster_means():
    values = np.array([[1.0, 3.0, 5.0]])
    assert by_cluster(values, np.array([7, 7, 9])).tolist() == [[2.0], [5.0]]


def test_holm_runs_over_blocks_and_leaves_the_embeddings_out():
    value, se = np.array([9.0, 3.0, 0.0, 1.0, np.nan]), np.array([1.0, 1.0, 0.0, 1.0, 1.0])
    p = student_p(value, se, np.full(5, 15.0))
    raw = 2 * 0.0044860  # t = 3 with 15 degrees of freedom, one side
    assert np.isnan(p[[0, 4]]).all()
    assert p[1] == pytest.approx(3 * raw, rel=1e-3)
    assert p[2] == 1.0  # 0 in every jackknife group too: nothing differs
    assert smallest(p) == p[1]
    assert math.isnan(smallest(pd.Series([np.nan, np.nan])))


def side(rows: np.ndarray, groups: np.ndarray) -> SpectraSide:
    full, jackknife, _ = all_layers(rows, groups, 16)
    spectra = np.stack([np.pad(s, (0, jackknife.shape[2] - len(s))) for s in full])
    n_ranks = np.array([len(s) for s in full])
    return SpectraSide(spectra=spectra, jackknife=jackknife, n_ranks=n_ranks, fitted=n_ranks > 40)


def planted(a: np.ndarray, shared: np.ndarray, seed: int, correlation: float = 0.6) -> np.ndarray:
    """Rows of len(a) layers with exponents a, correlated over the prompts with `shared`."""
    own = np.random.default_rng(seed).standard_normal((len(a), *shared.shape))
    mixed = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    return mixed * np.arange(1.0, shared.shape[1] + 1) ** -a[:, None, None]


def test_a_planted_difference_of_exponents_is_found_and_a_missing_one_is_not():
    """Calibration (standard errors near .006) at N = 512 and d = 576."""
    shared = np.random.default_rng(5).standard_normal((512, 576))
    groups = group_labels(np.arange(512), 16, 0)
    base = side(planted(np.full(3, 0.75), shared, 1), groups)
    aligned = side(planted(np.array([0.75, 0.75, 0.78]), shared, 2), groups)
    contrast = exponent_contrast(base, aligned, (0.02, 0.2))
    table = exponent_columns({name: exponent_contrast(base, aligned, w) for name, w in windows((0.02, 0.2)).items()})
    assert contrast.se.mean() == pytest.approx(0.006, abs=0.003)
    assert table["d_alpha_low"][1] < 0 < table["d_alpha_high"][1]
    assert table["d_alpha_low"][2] < 0.03 < table["d_alpha_high"][2]
    assert table["d_alpha"][2] == pytest.approx(0.03, abs=0.015)
    assert table["d_alpha_p"][2] < 0.025 < table["d_alpha_p"][1]
    assert {"d_alpha_wide", "d_alpha_wide_low", "d_alpha_bulk", "d_alpha_bulk_high"} <= {*table}
    value, low, high, n = contrast.mean(np.array([1, 2]))
    assert value == pytest.approx((table["d_alpha"][1] + table["d_alpha"][2]) / 2)
    assert low < value < high
    assert n == 2


def test_ranks_of_the_smaller_spectrum_serve_both_sides():
    """A spectrum that ends earlier is not a steeper one: the same power law at r = 60 and 63 differs by nothing."""
    law = np.arange(1.0, 64) ** -0.75
    jackknife = np.tile(law, (16, 1, 1))
    sides = [
        SpectraSide(spectra=law[None], jackknife=jackknife, n_ranks=np.array([r]), fitted=np.array([True]))
        for r in (60, 63)
    ]
    assert exponent_contrast(*sides, (0.02, 0.2)).value == pytest.approx([0.0], abs=1e-12)


def test_a_layer_without_exponent_in_one_model_has_no_contrast():
    law = np.arange(1.0, 64) ** -0.75
    both = [
        SpectraSide(
            spectra=np.stack([law, law]),
            jackknife=np.tile(law, (16, 2, 1)),
            n_ranks=np.array([63, 63]),
            fitted=np.array(fitted),
        )
        for fitted in ([True, True], [False, True])
    ]
    found = exponent_contrast(*both, (0.02, 0.2))
    assert np.isnan(found.value).tolist() == [True, False]
    assert found.mean(np.array([0, 1]))[3] == 1
    assert math.isnan(found.mean(np.array([0]))[0])


def test_transport_leaves_step_0_out_and_averages_pairs():
    generator = np.random.default_rng(0)
    base = generator.uniform(0.5, 1.0, (4, 60))
    shift = np.array([5.0, 0.1, 0.0, -0.1])[:, None]
    table = transport_table(base, base + shift + 0.01 * generator.standard_normal((4, 60)), np.arange(60), 0)
    assert table.layer.tolist() == [1, 2, 3]
    assert table.d_angle.to_numpy() == pytest.approx([0.1, 0.0, -0.1], abs=0.005)
    assert (table.d_angle_low < table.d_angle).all()
    assert (table.d_angle < table.d_angle_high).all()
    assert (table.p < 0.025).tolist() == [True, False, True]
    assert np.sign(table.t).tolist()[::2] == [1.0, -1.0]


def test_bootstrap_means_skip_a_row_without_values():
    values = np.vstack([np.full(30, np.nan), np.arange(30.0)])
    mean, low, high = bootstrap_means(values, np.arange(30), 0)
    assert np.isnan([mean[0], low[0], high[0]]).all()
    assert low[1] < mean[1] == 14.5 < high[1]


def test_halves_are_disjoint_even_and_keep_clusters_whole():
    labels = half_labels(np.arange(101), 0)
    assert labels.sum() == 50
    clusters = np.repeat(np.arange(20), 3)
    labels = half_labels(clusters, 0).reshape(20, 3)
    assert (labels == labels[:, :1]).all()
    assert labels[:, 0].sum() == 10


def test_permuted_labels_find_a_shift_and_not_its_absence():
    generator = np.random.default_rng(0)
    values = generator.standard_normal((80, 3))
    second = np.arange(80) % 2 == 1
    p, t = permuted(values, second, 0)
    assert p[0] > 0.05
    x, y = values[second, 0], values[~second, 0]
    welch = (x.mean() - y.mean()) / math.sqrt(x.var(ddof=1) / 40 + y.var(ddof=1) / 40)
    assert t[0] == pytest.approx(welch)
    values[second, 1] += 2.0
    p, t = permuted(values, second, 0)
    assert p[1] < 0.001 < p[0]
    assert t[1] > 5


def test_permuted_p_under_the_null_is_uniform_enough():
    """20 null data sets: a family alarm at .05 in 4 or more has probability 1.6 %."""
    alarms = 0
    for seed in range(20):
        values = np.random.default_rng(seed).standard_normal((40, 5))
        alarms += permuted(values, np.arange(40) % 2 == 1, seed)[0].min() < 0.05
    assert alarms < 4


def test_a_step_that_never_varies_differs_nowhere():
    p, t = permuted(np.column_stack([np.ones(20), np.arange(20.0)]), np.arange(20) % 2 == 1, 0)
    assert t[0] == 0
    assert p[0] == 1.0
    p, t = permuted(np.ones((3, 2)), np.array([True, False, False]), 0)  # one prompt in a half
    assert np.isnan(p).all()
