"""Estimators of the exponent: the spec's exact answers first, then what each is biased by, then oracles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alignscope.probes.kernels import (
    alpha_lambda_pdf,
    alpha_lambda_rank,
    auto_window,
    clauset_pdf_exponent,
    corrected_exponent,
    fit_power_law,
)
from alignscope.probes.kernels.exponents import hill, local_median

LINES = ("ols", "wls", "local_median")
HEADS = ("hill", "clauset")
OTHERS = ("rank_half", *HEADS)
ranks = st.integers(2, 60).flatmap(lambda first: st.tuples(st.just(first), st.integers(3 * first + 9, 400)))


def power(exponent: float, n: int) -> np.ndarray:
    return np.arange(1, n + 1) ** -exponent


def broken(at: int, n: int = 511, head: float = 0.6, tail: float = 1.2) -> np.ndarray:
    k = np.arange(1, n + 1)
    return np.where(k <= at, k**-head, float(at) ** -head * (k / at) ** -tail)


def pareto_spectra(draws: int, n: int, alpha: float, seed: int) -> np.ndarray:
    """Descending independent draws whose values fall like rank^-alpha: exp of exponentials of mean alpha."""
    return -np.sort(-np.exp(alpha * np.random.default_rng(seed).exponential(size=(draws, n))), axis=1)


class TestEstimators:
    @settings(max_examples=40)
    @given(st.floats(0.05, 2), ranks)
    def test_lines_and_local_slopes_are_exact_on_any_window_of_a_power_law(self, alpha, window):
        for estimator in LINES:
            fit = fit_power_law(power(alpha, 420), window=window, estimator=estimator)
            assert fit.exponent == pytest.approx(alpha, abs=1e-11)
            assert (fit.first_rank, fit.last_rank) == window

    @pytest.mark.parametrize("alpha", [0.25, 0.75, 1.5])
    @pytest.mark.parametrize("k", [30, 100, 1000])
    def test_hill_is_low_by_the_gap_between_a_factorial_and_its_power(self, alpha, k):
        exact = alpha * (math.log(k + 1) - math.lgamma(k + 1) / k)
        fit = fit_power_law(power(alpha, 2000), window=(1, k), estimator="hill")
        assert fit.exponent == pytest.approx(exact, rel=1e-12)
        assert fit.exponent / alpha - 1 == pytest.approx(-(math.log(2 * math.pi * k) / 2 - 1) / k, abs=1 / k**2)

    @pytest.mark.parametrize(
        ("alpha", "density"), [(0.25, 3.008784), (0.5, 2.004392), (0.75, 1.669595), (1.0, 1.502196)]
    )
    def test_clauset_of_a_window_is_the_density_s_exponent_turned_round(self, alpha, density):
        fit = fit_power_law(power(alpha, 1000), window=(1, 1000), estimator="clauset")
        assert fit.exponent == pytest.approx(1 / (2 * (density - 1)), abs=1e-6)
        assert alpha_lambda_pdf(fit.exponent) == pytest.approx(density, abs=5e-7)

    def test_clauset_is_hill_of_one_rank_less_spread_over_one_more(self):
        sigma, k = broken(40), 102
        clauset = fit_power_law(sigma, window=(1, k), estimator="clauset").exponent
        assert clauset == pytest.approx(hill(sigma, k - 1) * (k - 1) / k, rel=1e-12)

    @pytest.mark.parametrize("estimator", OTHERS)
    def test_on_a_long_exact_power_law_the_others_come_within_a_twentieth_of_a_per_cent(self, estimator):
        fit = fit_power_law(power(0.75, 100_001), window=(1, 100_000), estimator=estimator)
        assert fit.exponent == pytest.approx(0.75, rel=5e-4)
        assert fit.exponent < 0.75

    @pytest.mark.parametrize(("estimator", "bias"), [("rank_half", -0.015), ("hill", -0.022), ("clauset", -0.032)])
    def test_at_the_default_window_the_stated_bias(self, estimator, bias):
        fit = fit_power_law(power(0.75, 511), estimator=estimator)
        assert fit.exponent / 0.75 - 1 == pytest.approx(bias, abs=5e-4)

    def test_rank_half_is_the_line_of_scipy(self):
        sigma, k = broken(40), np.arange(11, 103)
        zeta = -stats.linregress(np.log(sigma[10:102]), np.log(k - 0.5)).slope
        fit = fit_power_law(sigma, estimator="rank_half")
        assert fit.exponent == pytest.approx(1 / zeta, rel=1e-12)
        assert fit.standard_error == pytest.approx(zeta * math.sqrt(2 / 92) / zeta**2, rel=1e-12)  # SE(zeta) / zeta^2

    def test_rank_half_has_the_standard_error_of_independent_draws(self):
        fits = [
            fit_power_law(sigma, window=(1, 100), estimator="rank_half") for sigma in pareto_spectra(500, 400, 0.75, 0)
        ]
        spread = np.std([fit.exponent for fit in fits], ddof=1)
        assert np.mean([fit.standard_error for fit in fits]) == pytest.approx(spread, rel=0.1)  # 3 SE of an SD

    def test_hill_is_unbiased_for_independent_draws(self):
        found = [hill(sigma, 50) for sigma in pareto_spectra(2000, 400, 0.75, 1)]
        assert np.mean(found) == pytest.approx(0.75, abs=4 * 0.75 / math.sqrt(50 * 2000))

    def test_the_median_of_neighbouring_slopes_would_be_low_by_ln_2_and_that_of_octaves_is_not(self):
        spectra = pareto_spectra(200, 4000, 0.75, 2)
        gaps = np.diff(np.log(spectra[:, 10:400])) / np.diff(np.log(np.arange(11, 401)))
        assert np.median(-gaps) == pytest.approx(0.75 * math.log(2), rel=0.02)
        assert np.mean([local_median(sigma, 11, 400) for sigma in spectra]) == pytest.approx(0.75, rel=0.03)

    def test_a_local_median_does_not_see_a_kink_that_a_line_sees(self):
        sigma = broken(80)
        assert fit_power_law(sigma, estimator="local_median").exponent == pytest.approx(0.6, abs=1e-12)
        assert fit_power_law(sigma).exponent > 0.61

    @pytest.mark.parametrize("estimator", HEADS)
    def test_estimators_of_the_head_use_the_ranks_that_the_window_leaves_out(self, estimator):
        inside = fit_power_law(broken(40), window=(11, 102), estimator=estimator)
        assert inside == fit_power_law(broken(40), window=(1, 102), estimator=estimator)
        assert (inside.first_rank, inside.last_rank, inside.n_points) == (1, 102, 102)
        outlier = broken(40)
        outlier[0] *= 100
        added = math.log(100) / 102
        assert fit_power_law(outlier, estimator=estimator).exponent == pytest.approx(inside.exponent + added)

    def test_hill_keeps_a_rank_for_its_threshold(self):
        padded = np.concatenate([power(0.75, 50), np.full(9, 1e-9)])
        fit = fit_power_law(padded, window=(1, 59), estimator="hill")
        assert (fit.last_rank, fit.n_points) == (49, 49)
        assert fit.exponent == hill(power(0.75, 50), 49)
        with pytest.raises(ValueError, match=r"1\.\.49, got 50"):
            hill(power(0.75, 50), 50)

    def test_only_rank_half_has_a_standard_error(self):
        found = {e: fit_power_law(power(0.75, 511), estimator=e).standard_error for e in (*LINES, *OTHERS)}
        assert [name for name, error in found.items() if error is not None] == ["rank_half"]

    @pytest.mark.parametrize("estimator", [*LINES, *OTHERS])
    def test_a_flat_spectrum_has_exponent_zero(self, estimator):
        fit = fit_power_law(np.full(512, 0.3), estimator=estimator)
        assert fit.exponent == pytest.approx(0, abs=1e-12)
        assert fit.r_squared is None

    @pytest.mark.parametrize("estimator", [*LINES, *OTHERS])
    def test_scale_does_not_matter(self, estimator):
        plain, scaled = (fit_power_law(s, estimator=estimator).exponent for s in (broken(40), 1e-9 * broken(40)))
        assert scaled == pytest.approx(plain, rel=1e-9)

    @pytest.mark.parametrize("estimator", [*LINES, *OTHERS])
    def test_too_few_ranks_give_a_reason(self, estimator):
        fit = fit_power_law(power(0.75, 31), estimator=estimator)
        assert fit.exponent is fit.standard_error is None
        assert fit.reason.startswith("too few modes")

    def test_a_window_of_less_than_an_octave_has_no_local_median(self):
        fit = fit_power_law(power(0.75, 511), window=(80, 100), estimator="local_median")
        assert fit.exponent is None
        assert fit.reason == "no local slope lies inside ranks 80..100: each spans an octave"

    @pytest.mark.parametrize("estimator", [*LINES, *OTHERS])
    def test_512_gaussian_rows_of_576_give_the_exponent_within_7_per_cent(self, estimator):
        rows = np.random.default_rng(0).standard_normal((512, 576)) * power(0.75, 576)
        sigma = np.linalg.svd(rows - rows.mean(0), compute_uv=False)[:511]
        fit = fit_power_law(sigma, estimator=estimator)
        assert fit.exponent == pytest.approx(0.75, rel=0.07)  # bias of N / d and of discretisation, at most 5 % here

    def test_another_estimator_is_refused(self):
        with pytest.raises((ValueError, TypeError), match="theil"):  # under beartype by the annotation
            fit_power_law(power(0.75, 511), estimator="theil")


class TestConversions:
    @pytest.mark.parametrize(("alpha", "rank", "pdf"), [(0.5, 1, 2), (0.1, 0.2, 6), (1.0, 2, 1.5), (0.75, 1.5, 5 / 3)])
    def test_three_exponents_of_one_law(self, alpha, rank, pdf):
        assert alpha_lambda_rank(alpha) == pytest.approx(rank, rel=1e-15)
        assert alpha_lambda_pdf(alpha) == pytest.approx(pdf, rel=1e-15)

    @pytest.mark.parametrize("alpha", [0.0, -0.5, math.nan])
    def test_a_spectrum_that_does_not_fall_has_no_density_exponent(self, alpha):
        with pytest.raises(ValueError, match="alpha > 0 only"):
            alpha_lambda_pdf(alpha)

    def test_the_rank_exponent_of_eigenvalues_is_what_a_fit_of_them_gives(self):
        sigma = power(0.75, 511)
        assert fit_power_law(sigma**2).exponent == pytest.approx(alpha_lambda_rank(fit_power_law(sigma).exponent))


class TestClauset:
    @pytest.mark.parametrize(
        ("alpha", "expected"), [(0.25, 3.008784), (0.5, 2.004392), (0.75, 1.669595), (1.0, 1.502196)]
    )
    def test_a_thousand_eigenvalues_of_a_power_law(self, alpha, expected):
        values = power(2 * alpha, 1000)
        fit = clauset_pdf_exponent(values, values[-1])
        assert fit.exponent == pytest.approx(expected, abs=5e-7)
        assert (fit.n, fit.x_min, fit.reason) == (1000, values[-1], None)

    def test_only_values_from_x_min_on_count(self):
        low = clauset_pdf_exponent(np.concatenate([power(1.5, 1000), np.full(300, 1e-7)]), 1000**-1.5)
        assert low == clauset_pdf_exponent(power(1.5, 1000), 1000**-1.5)

    def test_x_min_between_two_values_is_taken_as_it_is(self):
        fit = clauset_pdf_exponent(np.arange(10.0, 20.0), 9.5)
        assert fit.exponent == pytest.approx(1 + 10 / sum(math.log(x / 9.5) for x in range(10, 20)), rel=1e-12)
        assert fit.ks == pytest.approx(naive_ks(list(range(10, 20)), 9.5), rel=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    def test_x_min_is_the_tail_of_smallest_distance(self, seed):
        values = mixture(seed, 120)
        tails = {x: naive_ks([v for v in values if v >= x], x) for x in values if sum(values >= x) >= 10}
        best = min(tails, key=tails.get)
        fit = clauset_pdf_exponent(values)
        assert (fit.x_min, fit.n) == (best, sum(values >= best))
        assert fit.ks == pytest.approx(tails[best], rel=1e-9)
        assert fit.exponent == clauset_pdf_exponent(values, best).exponent

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # powerlaw's own
    @pytest.mark.parametrize("seed", range(3))
    def test_the_powerlaw_package_finds_the_same(self, seed):
        powerlaw = pytest.importorskip("powerlaw")
        values = mixture(seed, 400)
        theirs = powerlaw.Fit(values, xmin=(values.min(), np.sort(values)[-9]), verbose=0)
        ours = clauset_pdf_exponent(values)
        assert ours.x_min == theirs.xmin
        assert ours.exponent == pytest.approx(theirs.power_law.alpha, rel=1e-9)
        assert ours.ks == pytest.approx(theirs.power_law.D, rel=1e-9)

    def test_independent_pareto_draws_give_their_exponent(self):
        values = np.random.default_rng(0).pareto(1.5, 20_000) + 1  # density x^-2.5
        assert clauset_pdf_exponent(values, 1.0).exponent == pytest.approx(2.5, abs=4 * 1.5 / math.sqrt(20_000))

    @given(st.floats(1e-3, 1e3), st.permutations(range(40)))
    def test_scale_and_order_do_not_matter(self, scale, order):
        values = mixture(0, 40)
        plain, moved = clauset_pdf_exponent(values), clauset_pdf_exponent(scale * values[list(order)])
        assert moved.exponent == pytest.approx(plain.exponent, rel=1e-9)
        assert (moved.n, moved.x_min) == (plain.n, pytest.approx(scale * plain.x_min))

    def test_equal_values_are_one_candidate_and_count_as_they_are(self):
        tied = np.repeat([1.0, 2.0, 3.0, 20.0], [8, 2, 2, 2])  # by their places 7 of 14 would lie under the last 1
        fit = clauset_pdf_exponent(tied, 1.0)
        assert fit.exponent == pytest.approx(1 + 14 / (2 * math.log(120)), rel=1e-12)
        assert fit.ks == pytest.approx(naive_ks(list(tied), 1.0), rel=1e-12)

    def test_tensors_are_taken(self):
        assert clauset_pdf_exponent(torch.from_numpy(power(1.5, 50))) == clauset_pdf_exponent(power(1.5, 50))

    @pytest.mark.parametrize(
        ("values", "x_min", "reason"),
        [
            (power(1.0, 9), None, "too few values: 9 to fit, 10 needed"),
            (power(1.0, 50), 0.2, "too few values: 5 to fit, 10 needed"),
            (power(1.0, 0), None, "too few values: 0 to fit, 10 needed"),
            (np.full(30, 2.0), None, "all 30 values equal x_min"),
            (np.full(30, 2.0), 2.0, "all 30 values equal x_min"),
        ],
    )
    def test_too_little_to_fit_gives_a_reason(self, values, x_min, reason):
        fit = clauset_pdf_exponent(values, x_min)
        assert fit.exponent is fit.ks is None
        assert fit.reason == reason

    @pytest.mark.parametrize(
        ("values", "x_min", "message"),
        [
            (np.array([1.0, 0.0, 2.0, -1.0]), None, "got 2 of 4 that are not"),
            (np.array([1.0, np.nan]), None, "got 1 of 2 that are not"),
            (power(1.0, 20), 0.0, "x_min is a finite number > 0"),
        ],
    )
    def test_values_without_a_logarithm_are_refused(self, values, x_min, message):
        with pytest.raises(ValueError, match=message):
            clauset_pdf_exponent(values, x_min)


class TestAutoWindow:
    def test_one_power_law_keeps_the_default_window(self):
        assert auto_window(power(0.75, 511)).ranks == (11, 102)
        assert fit_power_law(power(0.75, 511), window="auto") == fit_power_law(power(0.75, 511))

    def test_the_broken_line_is_read_on_one_side_of_its_break(self):
        found = auto_window(broken(40))
        assert found.ranks == (11, 32)
        assert found.reason is None
        assert fit_power_law(broken(40), window="auto").exponent == pytest.approx(0.6, abs=1e-12)

    @pytest.mark.parametrize("estimator", ["ols", "wls"])
    @pytest.mark.parametrize(
        ("at", "head", "window", "exponent"),
        [
            (8, 0.6, (11, 102), 1.2),  # a quarter less than rank 11 is rank 8
            (30, 0.6, (33, 102), 1.2),
            (33, 0.2, (58, 102), 1.2),  # moving rank 33 to 24 would take in the shallow head
            (60, 0.6, (11, 57), 0.6),
            (140, 0.6, (11, 102), 0.6),
        ],
    )
    def test_breaks_elsewhere(self, at, head, window, exponent, estimator):
        fit = fit_power_law(broken(at, head=head), window="auto", estimator=estimator)
        assert (fit.first_rank, fit.last_rank) == window
        assert fit.exponent == pytest.approx(exponent, abs=1e-12)

    @given(st.floats(0.1, 2), st.integers(112, 3000))
    def test_every_power_law_of_enough_ranks_passes(self, alpha, r):
        alpha = min(alpha, 6 / math.log10(r) - 1e-3)  # the last value stays above 1e-6 of the first
        fit = fit_power_law(power(alpha, r), window="auto")
        assert fit == fit_power_law(power(alpha, r), window=(0.02, 0.2))

    @given(st.integers(11, 102), st.floats(0.1, 2), st.floats(0.1, 2))
    def test_what_it_takes_passes_the_gates_and_lies_in_the_default_window(self, at, head, tail):
        sigma = broken(at, head=head, tail=tail)
        found = auto_window(sigma)
        if found.ranks is None:
            assert "straight" in found.reason
            return
        assert 11 <= found.ranks[0] < found.ranks[1] <= 102
        fit = fit_power_law(sigma, window=found.ranks)
        assert fit.n_points >= 20
        assert fit.r_squared >= 0.98
        assert abs(fit.half_exponents[0] - fit.half_exponents[1]) < 0.15 * fit.exponent

    def test_a_spectrum_that_bends_everywhere_has_no_window_and_says_how_much_it_bends(self):
        sigma = np.exp(-np.arange(511) / 40)  # exponential: the slope grows with the rank
        found = auto_window(sigma)
        assert found.ranks is None
        assert found.reason.startswith("no window of ")
        assert "ranks 11..102: R^2 0.9" in found.reason
        assert "of alpha, moved ends change alpha by" in found.reason
        fit = fit_power_law(sigma, window="auto")
        assert (fit.exponent, fit.reason) == (None, found.reason)

    def test_the_rule_is_marked_as_ours(self):
        assert auto_window(power(0.75, 511)).reconstructed is True

    def test_spectra_without_20_ranks_or_slope_have_a_reason(self):
        assert auto_window(power(0.75, 109)).reason == "too few modes: no window holds 20 ranks (r = 109)"
        assert auto_window(power(0.75, 110)).ranks == (3, 22)
        assert auto_window(np.zeros(300)).reason.endswith("(r = 0)")
        assert "flat" in auto_window(np.full(300, 0.3)).reason
        spectrum = power(0.75, 300)
        spectrum[250] = np.nan
        assert auto_window(spectrum).reason == "1 of 300 singular values not finite"

    def test_the_correction_takes_it_and_keeps_the_ranks(self):
        fit = corrected_exponent(broken(40), broken(45), broken(40), window="auto", effective_rows=1e6)
        assert (fit.first_rank, fit.last_rank) == (11, 32)
        assert fit.exponent == pytest.approx(0.6, abs=1e-12)

    def test_gaussian_rows_keep_the_default_window(self):
        rows = np.random.default_rng(3).standard_normal((512, 576)) * power(0.75, 576)
        assert auto_window(np.linalg.svd(rows - rows.mean(0), compute_uv=False)[:511]).ranks == (11, 102)


def mixture(seed: int, n: int) -> np.ndarray:
    """Values with a power-law tail above 1 and something else below."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.pareto(1.8, n // 2) + 1, random.uniform(0.05, 1, n - n // 2)])


def naive_ks(tail: list, x_min: float) -> float:
    """Largest |share of values under x - P(x)| over the tail's values, one by one."""
    rate = len(tail) / sum(math.log(x / x_min) for x in tail)
    return max(abs(sum(y < x for y in tail) / len(tail) - (1 - (x / x_min) ** -rate)) for x in tail)
