"""Exponents, gates and spectra: closed forms first, then what must not change them, then planted spectra."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignscope.diagnose.spinal_gates import (
    exponents_at,
    fit_layer,
    jittered,
    local_slopes,
    rank_measures,
    slope_ranks,
    window_ranks,
)
from alignscope.diagnose.spinal_spectra import (
    RowSpectrum,
    all_layers,
    delete_group_spectra,
    group_labels,
    half_samples,
    rounding_floor,
)

ROBUST = (0.02, 0.2)


def power_law(r: int, a: float = 0.75) -> np.ndarray:
    return np.arange(1.0, r + 1) ** -a


def fit(sigma: np.ndarray, **options):
    return fit_layer(sigma, **{"n": 10_000, "width": 10_000, "window": ROBUST, **options})


def gaussian(n: int, d: int, a: float, seed: int) -> np.ndarray:
    """Gaussian rows whose population singular values fall like k^-a, as a model would store them."""
    rows = np.random.default_rng(seed).standard_normal((n, d)) * power_law(d, a)
    return rows.astype(np.float32)


def test_a_power_law_is_found_exactly_and_passes_every_gate_of_a_spectrum():
    found = fit(power_law(511))
    assert (found.first_rank, found.last_rank, found.n_points) == (11, 102, 92)
    assert found.alpha == pytest.approx(0.75, abs=1e-12)
    assert found.alpha_wls == pytest.approx(0.75, abs=1e-12)
    assert found.r_squared == pytest.approx(1.0, abs=1e-12)
    assert found.curvature == pytest.approx(0.0, abs=1e-10)
    assert found.jitter == pytest.approx(0.0, abs=1e-10)
    assert found.gates_passed
    assert found.reason is None


@pytest.mark.parametrize(("r", "points"), [(31, 5), (45, 8), (63, 11), (109, 19), (110, 20), (2047, 369)])
def test_points_in_the_window(r, points):
    found = fit(power_law(r))
    assert found.n_points == points
    assert math.isnan(found.alpha) == (points < 8)
    assert ("points" in found.failed) == (8 <= points < 20)
    first, last = window_ranks(r, ROBUST)
    assert last - first + 1 == points


def test_a_broken_power_law_fails_r_squared_and_curvature():
    k = np.arange(1.0, 512)
    found = fit(np.where(k <= 40, k**-0.6, 40**-0.6 * (k / 40) ** -1.2))
    assert found.alpha == pytest.approx(0.907733, abs=1e-6)
    assert found.r_squared == pytest.approx(0.971384, abs=1e-6)
    assert found.curvature == pytest.approx(-0.252498, abs=1e-6)
    assert (found.alpha_head, found.alpha_tail) == pytest.approx((0.6, 1.162009), abs=1e-6)
    assert found.alpha_wls == pytest.approx(0.822679, abs=1e-6)
    assert {"r_squared", "curvature"} <= {*found.failed}
    assert "R^2 0.971" in found.reason
    assert not found.gates_passed


def test_offset_rows_give_their_singular_values_to_the_last_digits():
    generator = np.random.default_rng(0)
    u = generator.standard_normal((64, 32))
    u = np.linalg.qr(np.column_stack([np.ones(64), u]))[0][:, 1:]  # orthonormal, and orthogonal to ones
    v = np.linalg.qr(generator.standard_normal((32, 32)))[0]
    rows = u @ np.diag(power_law(32)) @ v.T + 3
    assert np.abs(RowSpectrum(rows).values() - power_law(32)).max() < 1e-14


def test_rank_measures_of_the_harmonic_spectrum():
    found = rank_measures(np.array([1.0, 1 / 2, 1 / 3, 1 / 4]))
    assert found["rankme"] == pytest.approx(3.464117, abs=1e-6)
    assert found["spectral_entropy_rank"] == pytest.approx(2.434783, abs=1e-6)
    assert found["participation_ratio"] == pytest.approx(1.878716, abs=1e-6)
    assert found["stable_rank"] == pytest.approx(1.423611, abs=1e-6)


@pytest.mark.parametrize("m", [1, 2, 7])
def test_equal_singular_values_count_themselves_in_every_rank_measure(m):
    padded = np.array([3.0] * m + [0.0, 0.0])
    assert list(rank_measures(padded).values()) == pytest.approx([m] * 4)


def test_a_spectrum_of_zeros_has_no_rank_and_no_exponent():
    assert all(np.isnan(value) for value in rank_measures(np.zeros(4)).values())
    assert all(np.isnan(value) for value in rank_measures(np.zeros((3, 0)))["rankme"])
    found = fit_layer(RowSpectrum(np.full((60, 50), 0.1)).values(), n=60, width=50, window=ROBUST)
    assert math.isnan(found.alpha)
    assert found.reason == "all 60 rows are the same: every prompt gives this layer the same input"


@pytest.mark.parametrize(("n", "width"), [(45, 400), (400, 44)])
def test_too_few_prompts_or_columns_give_no_exponent(n, width):
    found = fit_layer(RowSpectrum(gaussian(n, width, 0.5, 0)).values(), n=n, width=width, window=ROBUST)
    assert math.isnan(found.alpha)
    assert found.reason == f"too few modes: {n} prompts of width {width}; 46 prompts of width 45 needed"


def test_46_prompts_are_the_least_that_give_an_exponent():
    found = fit_layer(RowSpectrum(gaussian(46, 400, 0.5, 0)).values(), n=46, width=400, window=ROBUST)
    assert found.n_points == 8
    assert math.isfinite(found.alpha)


def test_the_window_ends_move_by_a_quarter_one_at_a_time():
    assert jittered(11, 102, 511) == [(8, 102), (14, 102), (11, 76), (11, 128)]
    # Outwards to whole ranks: rounding left the low end 2 where it was (1.5 and 2.5 round to 2), which is no move.
    assert jittered(2, 9, 45) == [(1, 9), (3, 9), (2, 6), (2, 12)]
    assert jittered(2, 9, 10) == [(1, 9), (3, 9), (2, 6), (2, 10)]  # cut at the last rank
    assert jittered(80, 95, 100) == [(60, 95), (87, 95), (80, 87), (80, 100)]  # a narrow window keeps its other half


@pytest.mark.parametrize("n", [46, 50, 60])
def test_windows_of_8_to_11_ranks_have_a_jitter_and_no_sentence_says_nan(n):
    """Moved windows hold fewer than 8 ranks there; their slopes count all the same."""
    found = fit_layer(RowSpectrum(gaussian(n, 400, 0.5, 0)).values(), n=n, width=400, window=ROBUST)
    assert math.isfinite(found.jitter)
    assert "nan" not in found.reason
    sigma = power_law(n - 1)
    sigma[0] *= 2  # only a window from rank 1 on sees it
    assert fit(sigma).jitter > 0.05
    assert "moving an end of the window changes alpha by" in fit(sigma).reason


def test_a_flat_spectrum_fails_its_gates_in_words():
    found = fit(np.ones(200), halves=[np.ones(99)])
    assert found.alpha == pytest.approx(0.0, abs=1e-12)
    assert found.failed == ("r_squared", "curvature", "half_sample", "jitter")
    assert found.reason == "the spectrum is flat: no relative figure"


def test_exponents_of_many_spectra_agree_with_the_fit_of_each():
    spectra = np.stack([np.sort(np.random.default_rng(i).random(200))[::-1] for i in range(3)])
    each = [fit(sigma).alpha for sigma in spectra]
    assert exponents_at(spectra, *window_ranks(200, ROBUST)) == pytest.approx(each, rel=1e-12)
    assert np.isnan(exponents_at(spectra, 2, 201)).all()
    spectra[0, 20] = 0.0
    assert np.isnan(exponents_at(spectra, 4, 40)[0])


def test_local_slopes_of_a_power_law_are_all_its_exponent():
    found = local_slopes(power_law(511))
    assert [rank for rank, _ in found] == slope_ranks(511)
    assert [slope for _, slope in found] == pytest.approx([0.75] * len(found), abs=1e-12)
    assert found[0][0] == 2
    assert found[-1][0] * math.sqrt(2) <= 511.5
    assert local_slopes(np.zeros(0)) == []


def test_the_half_sample_gate_says_by_how_much_half_the_prompts_change_alpha():
    same, other = (
        fit(power_law(511), halves=[power_law(255)] * 8),
        fit(power_law(511), halves=[power_law(255, 0.6)] * 8),
    )
    assert same.half_sample_ratio == pytest.approx(1.0)
    assert same.gates_passed
    assert other.half_sample_ratio == pytest.approx(0.8)
    assert other.failed == ("half_sample",)
    assert other.reason == "half the prompts change alpha by -20.0%"
    few = fit(power_law(60), halves=[power_law(29)] * 8)
    assert "half_sample" in few.failed
    assert "92 prompts needed" in few.reason


def test_rounding_of_storage_puts_a_floor_under_the_window():
    sigma = power_law(511)
    variance = sigma[101] ** 2 / 10_000  # of the last rank of the window
    assert fit(sigma, floor=variance / 2).floor_ratio == pytest.approx(2.0)
    below = fit(sigma, floor=variance * 2)
    assert below.failed == ("floor",)
    dropped = fit(sigma, floor=variance * 2, dtype="bfloat16")  # ranks under the floor are no directions
    assert dropped.n_ranks == int((sigma**2 / 10_000 >= variance * 2).sum())
    assert "floor" in dropped.failed  # judged on the window of all ranks: what is left lies above the floor always
    assert dropped.floor_ratio == pytest.approx(0.5)


def test_halves_lose_the_ranks_under_the_floor_as_the_whole_does():
    """Half the rows: n of the variances is half too. Without it the ratio would compare two windows."""
    sigma = power_law(511, 0.6)
    sigma[100:] = sigma[100] * np.linspace(1, 0.9, 411)  # a shelf of rounding
    half = sigma * math.sqrt(0.5)  # the same variances from half the rows
    floor = sigma[99] ** 2 / 10_000 * 0.99
    options = {"halves": [half], "floor": floor, "dtype": "bfloat16"}
    assert fit(sigma, **options).half_sample_ratio == pytest.approx(1.0)
    assert fit(sigma, **options).n_ranks == 100


def test_ranks_that_all_drown_in_rounding_are_told_from_rows_that_are_the_same():
    sigma = power_law(64)
    found = fit(sigma, floor=1.0, dtype="float16")
    assert math.isnan(found.alpha)
    assert found.reason == "64 of 64 ranks lie under the rounding floor of float16; trace in float32"
    few = fit(sigma, floor=sigma[19] ** 2 / 10_000, dtype="bfloat16")
    assert few.reason == "44 of 64 ranks lie under the rounding floor of bfloat16; trace in float32"


def test_rounding_floor_of_ones_in_bfloat16():
    ones = np.ones((4, 3), dtype=np.float32)  # ulp 2^-7 in each of 3 columns
    assert rounding_floor(ones, "bfloat16") == pytest.approx(3 * 2.0**-14 / 12)
    assert rounding_floor(ones, "float32") == pytest.approx(3 * 2.0**-46 / 12)
    assert rounding_floor(ones, "int4") == 0.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100), st.sampled_from([(60, 50), (50, 60)]))
def test_rotation_scale_row_order_and_shift_do_not_change_alpha(seed, scale, shape):
    generator = np.random.default_rng(seed)
    n, d = shape
    rows = generator.standard_normal(shape) * power_law(d)
    q = np.linalg.qr(generator.standard_normal((d, d)))[0]
    changed = (scale * rows @ q + generator.standard_normal(d))[generator.permutation(n)]
    options = {"n": n, "width": d, "window": ROBUST}
    first, second = (fit_layer(RowSpectrum(x).values(), **options) for x in (rows, changed))
    assert second.alpha == pytest.approx(first.alpha, abs=1e-8)
    assert second.n_ranks == first.n_ranks


def test_dividing_rows_by_their_size_does_change_alpha():
    """So the invariance test above could fail."""
    rows = gaussian(120, 60, 0.75, 0).astype(np.float64)
    rows *= np.linspace(0.2, 5, 120)[:, None]
    scaled = rows / np.sqrt((rows**2).mean(1, keepdims=True))
    options = {"n": 120, "width": 60, "window": ROBUST}
    first, second = (fit_layer(RowSpectrum(x).values(), **options) for x in (rows, scaled))
    assert abs(second.alpha - first.alpha) > 0.01


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 45)])  # last: the half-sample has fewer rows than columns
def test_spectra_of_subsets_equal_those_of_the_rows_alone(shape):
    rows = gaussian(*shape, 0.5, 1) + 5
    spectrum = RowSpectrum(rows)
    for keep in half_samples(shape[0], 3)[:2]:
        part = rows[keep].astype(np.float64)
        expected = np.linalg.svd(part - part.mean(0), compute_uv=False)[: min(len(keep) - 1, shape[1])]
        assert spectrum.subset(keep) == pytest.approx(expected, rel=1e-9)


def test_jackknife_groups_are_even_seeded_and_keep_clusters_whole():
    labels = group_labels(np.arange(50), 16, 0)
    assert sorted(np.bincount(labels, minlength=16))[0] == 3
    assert max(np.bincount(labels)) == 4
    assert (labels == group_labels(np.arange(50), 16, 0)).all()
    clusters = np.repeat(np.arange(25), 2)
    labels = group_labels(clusters, 16, 0)
    assert (labels[::2] == labels[1::2]).all()


def test_delete_group_spectra_leave_each_group_out_once():
    rows = gaussian(40, 30, 0.5, 2)
    groups = group_labels(np.arange(40), 4, 0)
    found = delete_group_spectra(RowSpectrum(rows), groups, 4)
    for group in range(4):
        part = rows[groups != group].astype(np.float64)
        expected = np.linalg.svd(part - part.mean(0), compute_uv=False)
        assert found[group, : min(29, 30)] == pytest.approx(expected[:29], rel=1e-9)


def test_a_layer_of_equal_rows_has_no_spectrum_among_others_that_have_one():
    rows = np.stack([np.ones((50, 48), dtype=np.float32), gaussian(50, 48, 0.5, 0)])
    full, jackknife, halves = all_layers(rows, group_labels(np.arange(50), 4, 0), 4, halves=half_samples(50, 0))
    assert len(full[0]) == 0
    assert not jackknife[:, 0].any()
    assert halves[0] == []
    assert len(full[1]) == 48
    assert (jackknife[:, 1, :36] > 0).all()
    assert len(halves[1]) == 8


@pytest.mark.parametrize(
    ("window", "expected"), [(ROBUST, 0.745), ((0.1, 0.9), 1.178)]
)  # measured over many draws: the bulk is biased by N / d, the head is not
def test_a_planted_exponent_is_recovered_on_the_robust_window_only(window, expected):
    spectrum = RowSpectrum(gaussian(512, 576, 0.75, 0))
    halves = [spectrum.subset(half) for half in half_samples(512, 0)]
    found = fit_layer(spectrum.values(), n=512, width=576, window=window, halves=halves)
    assert found.alpha == pytest.approx(expected, abs=0.01)
    assert ("half_sample" in found.failed) == (window != ROBUST)


@pytest.mark.parametrize(("a", "expected"), [(0.5, 0.475), (1.0, 1.011)])
def test_planted_exponents_on_either_side(a, expected):
    sigma = RowSpectrum(gaussian(512, 576, a, 1)).values()
    assert fit_layer(sigma, n=512, width=576, window=ROBUST).alpha == pytest.approx(expected, abs=0.01)
