"""beta-hat and calibration: examples with exact answers, then what must not change them, then independent oracles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_expit
from scipy.stats import chi2

from alignscope.diagnose.calibration import NO_ROWS, NO_SPREAD, SOFT, calibration, fit_beta
from alignscope.diagnose.cubic_term import CUBIC_FAILED
from alignscope.diagnose.rewards import generator_fit
from alignscope.diagnose.statistics import resampled_counts, wilson

LN3 = math.log(3)
unhurried = settings(max_examples=40, deadline=None)
eighths = st.integers(-80, 80).map(lambda k: k / 8)
shares = st.integers(0, 8).map(lambda k: k / 8)
labelled = st.lists(st.tuples(eighths, shares), min_size=1, max_size=30).map(lambda rows: np.array(rows).T)


def gradient(b, d, alpha):
    """Derivative of the log-likelihood, written so that no term cancels."""
    return math.fsum(x * (a * expit(-b * x) - (1 - a) * expit(b * x)) for x, a in zip(d, alpha, strict=True))


def sample(n, slope, seed=0, cubic=0.0):
    rng = np.random.default_rng(seed)
    d = rng.normal(0, 3, n)
    labels = (rng.random(n) < expit(slope * d + cubic * d**3)).astype(float)
    return d, labels


# ---- T19: beta-hat


def test_three_of_four_at_ten_ln_three():
    fit = fit_beta(10 * LN3 * np.array([1, 1, 1, -1]))
    assert fit.value == pytest.approx(0.1, rel=1e-10)
    assert fit.standard_error == pytest.approx((4 * (10 * LN3) ** 2 * 3 / 16) ** -0.5, rel=1e-10)  # .105105


def test_a_majority_against_gives_a_negative_slope():
    assert fit_beta([-1.0, -1.0, -1.0, 1.0]).value == pytest.approx(-LN3, rel=1e-10)


def test_an_even_split_gives_zero():
    assert fit_beta([1.0, -1.0, 0.0]).value == 0.0


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, -3.0])
def test_exact_preferences_give_back_the_beta_they_were_made_with(beta):
    d = np.array([-4.0, -0.5, 1.0, 2.5, 7.0])
    assert fit_beta(d, expit(beta * d)).value == pytest.approx(beta, rel=1e-10)


@pytest.mark.parametrize("d", [[1.0, 2.0], [-1.0, -2.0], [0.0, 3.0]])
def test_labels_that_all_point_one_way_are_separable(d):
    fit = fit_beta(d)
    assert fit.value is None
    assert fit.standard_error is None
    assert fit.reason is not None
    assert "separable" in fit.reason
    assert "separable" in fit.summary()


def test_separable_is_judged_by_label_not_by_sign():
    assert fit_beta([1.0, -2.0], [1.0, 0.0]).value is None
    assert fit_beta([1.0, 2.0], [1.0, 0.0]).value is not None


def test_one_soft_label_makes_the_optimum_finite():
    assert fit_beta([1.0, 1.0], [1.0, 0.5]).value == pytest.approx(LN3, rel=1e-10)  # 1.5 votes of 2


@pytest.mark.parametrize(("d", "reason"), [([0.0, 0.0], NO_SPREAD), ([], NO_ROWS)])
def test_nothing_to_fit_gives_the_reason(d, reason):
    fit = fit_beta(d)
    assert (fit.value, fit.low, fit.cubic, fit.nonlinearity_p) == (None, None, None, None)
    assert fit.reason == fit.nonlinearity_reason == reason


@unhurried
@given(labelled)
def test_the_slope_is_where_the_gradient_vanishes(rows):
    d, alpha = rows
    fit = fit_beta(d, alpha)
    if fit.value is not None and fit.value != 0:
        step = 1e-9 * abs(fit.value) + 1e-14
        assert gradient(fit.value - step, d, alpha) > 0 > gradient(fit.value + step, d, alpha)


@pytest.mark.parametrize(
    "d",
    [
        [1e6] * 50 + [-1e-6],  # the optimum sits where 1 - sigmoid is 1e-14 of a label
        [1e-6] * 3 + [-1e6],
        [1e6, 1.0, 1e-6, -1e-6],
        [1e-6, 2e-6, -1e-6],
        [1e6, 2e6, -1e6],
    ],
)
def test_the_slope_is_exact_over_twelve_orders_of_magnitude(d):
    alpha = np.ones(len(d))
    scale = 1 / max(np.abs(d))
    end = 1.0
    while gradient(end * scale, d, alpha) > 0 or gradient(-end * scale, d, alpha) < 0:
        end *= 2
    root = brentq(lambda t: gradient(t * scale, d, alpha), -end, end, xtol=1e-300, rtol=1e-14, maxiter=1000)
    assert fit_beta(d).value == pytest.approx(root * scale, rel=1e-10)


@unhurried
@given(labelled, st.sampled_from([1e-6, 0.5, 1e6]))
def test_a_change_of_unit_divides_the_slope(rows, unit):
    d, alpha = rows
    fit, scaled = fit_beta(d, alpha), fit_beta(d * unit, alpha)
    if fit.value is None:
        assert scaled.value is None
    else:
        assert scaled.value * unit == pytest.approx(fit.value, rel=1e-10, abs=1e-14)
        assert scaled.standard_error * unit == pytest.approx(fit.standard_error, rel=1e-8)


@unhurried
@given(labelled, st.integers(0, 2**30))
def test_turning_pairs_changes_nothing(rows, which):
    d, alpha = rows
    turn = np.array([(which >> i) & 1 for i in range(len(d))], dtype=bool)
    fit = fit_beta(d, alpha)
    turned = fit_beta(np.where(turn, -d, d), np.where(turn, 1 - alpha, alpha))
    for name in ("value", "standard_error", "cubic", "nonlinearity_p"):
        expected = getattr(fit, name)
        assert getattr(turned, name) == (expected if expected is None else pytest.approx(expected, rel=1e-6, abs=1e-12))


def test_lists_arrays_and_tensors_are_the_same():
    d = [1.5, -0.5, 2.0, -1.0]
    assert fit_beta(d) == fit_beta(np.array(d)) == fit_beta(torch.tensor(d, dtype=torch.float64))
    assert fit_beta(torch.tensor(d, dtype=torch.bfloat16)).value == fit_beta(d).value


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"difference": [1.0, float("nan")]}, "not finite"),
        ({"difference": [1.0, float("inf")]}, "not finite"),
        ({"difference": [[1.0, -1.0]]}, "one number a pair"),
        ({"preference": [1.0]}, "one number a pair"),
        ({"preference": [1.0, 1.1]}, "lies in"),
        ({"preference": [1.0, float("nan")]}, "lies in"),
        ({"clusters": ["a"]}, "expected one a pair"),
        ({"clusters": ["a", "b"], "bootstrap": 0}, "at least 1 draw"),
    ],
)
def test_bad_input_to_the_fit_is_refused(more, match):
    with pytest.raises(ValueError, match=match):
        fit_beta(**({"difference": [1.0, -1.0]} | more))


# ---- the interval


def test_the_interval_equals_a_naive_loop_over_draws():
    d, labels = sample(90, 0.3)
    clusters = np.arange(90) % 30
    fit = fit_beta(d, labels, clusters=clusters, bootstrap=200, seed=3)
    (times,) = resampled_counts(30, draws=200, seed=3)
    roots = []
    for drawn in times:
        repeated = np.repeat(np.arange(90), drawn[clusters].astype(int))
        roots.append(fit_beta(d[repeated], labels[repeated]).value)
    low, high = np.percentile(roots, [2.5, 97.5])
    assert (fit.low, fit.high) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))
    assert (fit.reason, fit.separable_draws, fit.n_clusters) == (None, 0, 30)
    assert fit.low < fit.value < fit.high


def test_chunks_of_draws_change_nothing(monkeypatch):
    d, labels = sample(60, 0.3)
    whole = fit_beta(d, labels, clusters=np.arange(60), bootstrap=150)
    monkeypatch.setattr("alignscope.diagnose.statistics._CHUNK", 5000)
    assert fit_beta(d, labels, clusters=np.arange(60), bootstrap=150).low == pytest.approx(whole.low, rel=1e-12)


def test_every_row_repeated_leaves_the_interval_and_shrinks_the_naive_error():
    d, labels = sample(60, 0.3)
    once = fit_beta(d, labels, clusters=np.arange(60), bootstrap=200)
    twice = fit_beta(np.tile(d, 2), np.tile(labels, 2), clusters=np.tile(np.arange(60), 2), bootstrap=200)
    assert (twice.low, twice.high) == (pytest.approx(once.low, rel=1e-9), pytest.approx(once.high, rel=1e-9))
    assert twice.standard_error == pytest.approx(once.standard_error / math.sqrt(2), rel=1e-9)


def test_the_order_of_rows_does_not_matter():
    d, labels = sample(60, 0.3)
    clusters = np.array([f"p{i // 2}" for i in range(60)])
    order = np.random.default_rng(1).permutation(60)
    straight = fit_beta(d, labels, clusters=clusters, bootstrap=100)
    shuffled = fit_beta(d[order], labels[order], clusters=clusters[order], bootstrap=100)
    assert shuffled.low == pytest.approx(straight.low, rel=1e-9)
    assert shuffled.nonlinearity_p == pytest.approx(straight.nonlinearity_p, rel=1e-6)


def test_the_interval_covers_the_truth():
    covered = 0
    for seed in range(40):
        fit = fit_beta(*sample(200, 0.2, seed), clusters=np.arange(200), bootstrap=150, seed=seed)
        covered += fit.low <= 0.2 <= fit.high
    assert covered >= 33  # 95 % of 40 less 3.6 standard deviations


def test_the_standard_error_is_the_spread_of_fits_on_independent_pairs():
    fits = [fit_beta(*sample(400, 0.2, seed)) for seed in range(200)]
    spread = np.std([fit.value for fit in fits], ddof=1)
    assert np.mean([fit.standard_error for fit in fits]) == pytest.approx(spread, rel=0.15)  # 3 sd of an sd of 200


def test_without_clusters_or_with_few_there_is_a_value_but_no_interval():
    d, labels = sample(60, 0.3)
    none, few = fit_beta(d, labels), fit_beta(d, labels, clusters=np.arange(60) % 19)
    assert none.value == few.value
    assert none.low is few.low is None
    assert "no clusters" in none.reason
    assert "19 clusters" in few.reason


def test_many_separable_draws_refuse_the_interval_and_say_how_many():
    d = np.append(np.ones(29), -1.0)  # a draw without the last cluster is separable: (29/30)^30 = .362 of them
    fit = fit_beta(d, clusters=np.arange(30), bootstrap=400)
    (times,) = resampled_counts(30, draws=400, seed=0)
    missing = int((times[:, -1] == 0).sum())
    assert fit.separable_draws == missing > 100
    assert (fit.low, fit.high) == (None, None)
    assert f"{missing} of 400" in fit.reason
    assert fit.value == pytest.approx(math.log(29), rel=1e-10)


def test_few_separable_draws_count_as_steep_and_leave_the_interval():
    d = np.append(np.linspace(0.5, 3, 56), [-0.4, -0.6, -0.8, -1.0])  # all four are missed with (56/60)^60 = .016
    fit = fit_beta(d, clusters=np.arange(60), bootstrap=400)
    (times,) = resampled_counts(60, draws=400, seed=0)
    fits = [fit_beta(np.repeat(d, drawn.astype(int))).value for drawn in times]
    slopes = np.sort([math.inf if slope is None else slope for slope in fits])
    assert fit.separable_draws == np.isinf(slopes).sum() > 0
    # the 2.5 % and 97.5 % points of 400, infinite draws included, lie at 9.975 and 389.025
    assert fit.low == pytest.approx(slopes[9] + 0.975 * (slopes[10] - slopes[9]), rel=1e-9)
    assert fit.high == pytest.approx(slopes[389] + 0.025 * (slopes[390] - slopes[389]), rel=1e-9)
    assert fit.reason is None


# ---- the cubic term


def test_the_cubic_term_and_its_p_equal_a_general_optimiser():
    d, labels = sample(200, 0.1, seed=2, cubic=0.02)
    sign, rms = 2 * labels - 1, math.sqrt((d**2).mean())
    columns = np.stack([d, (d / rms) ** 3], axis=1) * sign[:, None]
    loss = lambda theta: -log_expit(columns @ theta).sum()  # noqa: E731
    line = minimize(lambda t: loss(np.array([t[0], 0.0])), [0.1], tol=1e-12, method="Nelder-Mead")
    curve = minimize(loss, [0.1, 0.0], tol=1e-12, method="Nelder-Mead")
    fit = fit_beta(d, labels)
    assert fit.cubic == pytest.approx(curve.x[1], rel=1e-4)
    assert fit.nonlinearity_p == pytest.approx(chi2.sf(2 * (line.fun - curve.fun), 1), rel=1e-6)


def test_exact_preferences_of_a_cubic_give_it_back():
    d = np.linspace(-3, 3, 31)
    rms = math.sqrt((d**2).mean())
    fit = fit_beta(d, expit(0.4 * d + 0.7 * (d / rms) ** 3))
    assert fit.cubic == pytest.approx(0.7, rel=1e-6)


def test_a_straight_line_has_no_cubic_and_uniform_p():
    p = np.array([fit_beta(*sample(200, 0.2, seed)).nonlinearity_p for seed in range(200)])
    assert np.mean(p < 0.1) == pytest.approx(0.1, abs=0.065)  # 3 sd of 200
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.11)


def test_soft_labels_have_a_cubic_but_no_p():
    d, labels = sample(100, 0.2)
    fit = fit_beta(d, np.where(labels > 0, 0.8, 0.3))
    assert fit.cubic is not None
    assert (fit.nonlinearity_p, fit.nonlinearity_reason) == (None, SOFT)


@pytest.mark.parametrize(
    ("d", "reason"),
    [
        ([10 * LN3, 10 * LN3, 10 * LN3, -10 * LN3], "same size"),
        ([3.0, 2.0, -1.0], "separable once"),  # against only where small
        ([1.0, 2.0, -2.0, -3.0], "separable once"),  # meeting at 2, where the cubic can be 0
    ],
)
def test_where_no_cubic_can_be_fitted_the_reason_says_so(d, reason):
    fit = fit_beta(d)
    assert fit.value is not None
    assert (fit.cubic, fit.nonlinearity_p) == (None, None)
    assert reason in fit.nonlinearity_reason


@unhurried
@given(labelled)
def test_a_cubic_or_a_reason_is_always_there(rows):
    fit = fit_beta(*rows)
    assert (fit.cubic is None) <= (fit.nonlinearity_reason is not None)
    assert fit.nonlinearity_reason != CUBIC_FAILED
    assert (fit.value is None) <= bool(fit.reason)


# ---- T10 and T20: calibration


def test_margins_that_equal_the_votes_are_calibrated():
    found = calibration([0, LN3, LN3, math.log(9)], [0.5, 0.75, 0.75, 0.9], min_per_bin=1)
    entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.5, 0.75, 0.75, 0.9)]
    assert found.ece == pytest.approx(0, abs=1e-15)
    assert found.nll == pytest.approx(np.mean(entropies))  # .5357251
    assert found.entropy == pytest.approx(np.mean(entropies))
    assert found.brier == pytest.approx((0.25 + 2 * 0.1875 + 0.09) / 4)  # .17875: the variance of a vote
    assert found.excess_nll == pytest.approx(0, abs=1e-15)


def test_three_of_four_at_ln_three_are_calibrated_once_folded():
    found = calibration(LN3 * np.array([1, 1, 1, -1]), min_per_bin=1)
    assert found.ece == pytest.approx(0, abs=1e-15)
    assert found.table[["n", "confidence", "observed"]].to_numpy().tolist() == [[4, 0.75, 0.75]]


def test_an_indifferent_scorer_pays_for_a_three_to_one_vote():
    found = calibration([0.0], [0.75])
    assert found.excess_nll == pytest.approx(math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # .130812
    assert found.ece == 0.0  # no margin: no side to be wrong about


def test_a_confident_miss_costs_its_confidence():
    found = calibration([-LN3, -LN3])
    assert found.ece == pytest.approx(0.75)
    assert found.brier == pytest.approx(0.75**2)
    assert found.nll == found.excess_nll == pytest.approx(math.log(4))
    assert found.entropy == 0.0


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_margins_beyond_the_range_of_sigmoid_are_finite(size):
    found = calibration([size, -size], [1.0, 1.0])
    assert found.nll == pytest.approx(size / 2)
    assert found.ece == pytest.approx(0.5)
    assert found.brier == 0.5


@unhurried
@given(labelled, st.integers(0, 2**30))
def test_turning_pairs_leaves_calibration_alone(rows, which):
    m, alpha = rows
    turn = np.array([(which >> i) & 1 for i in range(len(m))], dtype=bool)
    found = calibration(m, alpha, min_per_bin=3, draws=5)
    turned = calibration(np.where(turn, -m, m), np.where(turn, 1 - alpha, alpha), min_per_bin=3, draws=5)
    for name in ("ece", "expected_ece", "expected_ece_p95", "brier", "nll", "excess_nll"):
        assert getattr(turned, name) == pytest.approx(getattr(found, name), abs=1e-12)


@unhurried
@given(labelled)
def test_the_excess_is_never_negative_and_is_nll_less_entropy(rows):
    found = calibration(*rows, draws=1)
    assert found.excess_nll >= 0
    assert found.excess_nll == pytest.approx(found.nll - found.entropy, abs=1e-12)


@unhurried
@given(labelled, st.integers(1, 8), st.integers(1, 8), st.randoms())
def test_bins_hold_enough_rows_and_never_split_equal_confidences(rows, bins, least, random):
    m, alpha = rows
    table = calibration(m, alpha, bins, min_per_bin=least, draws=1).table
    assert table["n"].sum() == len(m)
    assert len(table) <= bins
    assert table["n"].min() >= min(least, len(m))
    assert (np.diff(table["confidence"]) > 0).all()
    edges = np.cumsum(table["n"])[:-1]
    ascending = np.sort(expit(np.abs(m)))
    assert (ascending[edges] > ascending[edges - 1]).all()
    order = random.sample(range(len(m)), len(m))
    again = calibration(m[order], alpha[order], bins, min_per_bin=least, draws=1).table
    assert again.to_numpy() == pytest.approx(table.to_numpy(), abs=1e-12)


@pytest.mark.parametrize(("n", "bins"), [(900, 15), (450, 15), (449, 14), (60, 2), (59, 1), (10, 1)])
def test_distinct_confidences_fill_equal_bins(n, bins):
    table = calibration(np.linspace(0.1, 3, n)).table
    assert len(table) == bins
    assert table["n"].max() - table["n"].min() <= 1


def test_a_run_of_equal_confidences_falls_where_its_middle_does():
    m = np.repeat([0.5, 1.0, 2.0], [45, 30, 25])  # two bins of 50 wanted; the middle run lies mostly in the second
    assert calibration(m, bins=2, min_per_bin=1).table["n"].tolist() == [45, 55]


def test_a_bin_left_short_by_a_run_of_ties_joins_its_neighbour():
    m = np.concatenate([np.full(70, 0.1), np.linspace(1, 2, 20)])  # three bins wanted; the run takes two and more
    assert calibration(m).table["n"].tolist() == [90]


def test_the_table_has_the_wilson_interval_of_every_bin():
    table = calibration(np.repeat([0.5, 2.0], 40), np.tile([1.0, 1.0, 1.0, 0.0], 20), min_per_bin=40).table
    assert table["observed"].tolist() == [0.75, 0.75]
    assert (table["low"][0], table["high"][0]) == wilson(30.0, 40)
    assert table["bin"].tolist() == [0, 1]


# ---- the ECE of a calibrated scorer


def test_one_pair_has_an_expected_ece_that_can_be_written_down():
    found = calibration([LN3], draws=5000)  # |.75 - 1| with probability 3/4, else .75: twice 3/16
    assert found.expected_ece == pytest.approx(3 / 8, abs=0.012)  # 4 standard errors of 5,000 draws
    assert found.expected_ece_p95 == 0.75


def test_more_votes_a_pair_lower_the_expected_ece():
    m = np.tile(LN3, 40)
    one, many = calibration(m), calibration(m, n_votes=np.full(40, 100))
    assert many.expected_ece == pytest.approx(one.expected_ece / 10, rel=0.25)  # binomial: 1 / sqrt(votes)


def test_a_pair_without_margin_adds_no_noise():
    assert calibration(np.zeros(50)).expected_ece == 0.0


def test_a_calibrated_scorer_falls_inside_what_is_expected():
    rng = np.random.default_rng(0)
    inside = []
    for seed in range(40):
        m = rng.normal(0, 1.5, 600)
        found = calibration(m, (rng.random(600) < expit(m)).astype(float), seed=seed, draws=100)
        inside.append(found.ece <= found.expected_ece_p95)
    assert np.mean(inside) > 0.85


def test_an_over_confident_scorer_falls_outside():
    rng = np.random.default_rng(0)
    m = rng.normal(0, 1.5, 1000)
    found = calibration(4 * m, (rng.random(1000) < expit(m)).astype(float))
    assert found.ece > 3 * found.expected_ece_p95
    most = f"{found.expected_ece_p95:.3f}"
    assert "more than chance: a calibrated scorer would show" in found.summary()
    assert found.summary().endswith(f"in 95 % of draws at most {most}.")


def test_a_calibrated_scorer_is_not_said_to_miss():
    found = calibration(np.where(np.arange(40) < 7, -LN3, LN3))  # 33 of 40 agree, of 30 expected
    assert found.expected_ece < found.ece < found.expected_ece_p95
    assert "which may be chance: a calibrated scorer would show" in found.summary()


def test_the_seed_alone_decides_the_draws():
    m = np.linspace(-2, 2, 50)
    assert calibration(m, seed=1).expected_ece == calibration(m, seed=1).expected_ece
    assert calibration(m, seed=1).expected_ece != calibration(m, seed=2).expected_ece


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"margin": []}, "no pairs"),
        ({"margin": [float("nan"), 1.0]}, "not finite"),
        ({"preference": [0.5]}, "one number a pair"),
        ({"preference": [-0.1, 1.0]}, "lies in"),
        ({"bins": 0}, "bins=0"),
        ({"min_per_bin": 0}, "min_per_bin=0"),
        ({"draws": 0}, "draws=0"),
        ({"n_votes": [1, 0]}, "whole numbers"),
        ({"n_votes": [1, 1.5]}, "whole numbers"),
        ({"n_votes": [1]}, "whole numbers"),
    ],
)
def test_bad_input_to_calibration_is_refused(more, match):
    with pytest.raises(ValueError, match=match):
        calibration(**({"margin": [1.0, -1.0]} | more))


# ---- the generators' log-odds on the policy's log-ratios


def test_a_policy_that_learned_the_generators_has_slope_one_over_beta_and_explains_all():
    odds = np.array([2.0, -1.0, 0.5])
    fit = generator_fit(odds / 0.1, odds)
    assert (fit.slope, fit.r_squared, fit.n) == (pytest.approx(0.1), pytest.approx(1.0), 3)


def test_turning_a_pair_turns_both_and_moves_nothing():
    d, odds = np.array([1.0, 2.0, -1.0]), np.array([0.5, 3.0, 1.0])
    turn = np.array([1.0, -1.0, -1.0])
    assert generator_fit(turn * d, turn * odds) == generator_fit(d, odds)


def test_slope_and_share_in_closed_form():
    """slope = (1*1 + 1*0) / 2; what it leaves: (1/2)^2 + (1/2)^2 of 1."""
    fit = generator_fit([1.0, 1.0], [1.0, 0.0])
    assert (fit.slope, fit.r_squared) == (0.5, 0.5)


def test_without_spread_there_is_no_slope():
    assert generator_fit([0.0, 0.0], [1.0, 2.0]).slope is None


@pytest.mark.parametrize(("d", "odds"), [([1.0], [1.0, 2.0]), ([math.nan], [1.0])])
def test_what_cannot_be_fitted_is_refused(d, odds):
    with pytest.raises(ValueError, match=r"expected two lists of one length|not finite everywhere"):
        generator_fit(d, odds)
