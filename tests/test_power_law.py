"""The law of labels and the law of generators: exact answers, then what must not change them, then oracles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

from alignscope.diagnose.calibration import fit_beta
from alignscope.diagnose.cubic_term import added_cubic, drawn_cubics
from alignscope.diagnose.power_law import fit_generator_law, fit_label_law, margin_ordering
from alignscope.diagnose.statistics import resampled_counts, wilson

FOUR = ["a", "b", "c", "d"]
unhurried = settings(max_examples=30, deadline=None)


def labelled(n: int, beta: float, *, seed: int = 0, cubic: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Gaps of spread 2 nats with labels of the law."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, 2, n)
    return gap, (rng.random(n) < expit(beta * gap + cubic * gap**3)).astype(float)


# ---- T21: the law of labels


def test_three_of_four_gaps_of_two_nats_make_half_of_ln_three():
    law = fit_label_law([2, 2, 2, -2], FOUR)
    assert law.beta.value == pytest.approx(math.log(3) / 2, rel=1e-10)
    assert law.standard_error == pytest.approx(1 / math.sqrt(3), rel=1e-10)
    assert (law.beta.n, law.beta.low, law.beta.reason) == (4, None, "4 clusters (prompts): an interval needs 20")


@pytest.mark.parametrize(("gap", "labels"), [([2.0, 1.0, 0.0], None), ([-2.0, -1.0], None), ([2.0, -1.0], [1, 0])])
def test_gaps_that_all_point_one_way_are_separable(gap, labels):
    law = fit_label_law(gap, np.arange(len(gap)), labels=labels)
    assert (law.beta.value, law.standard_error, law.cubic.value) == (None, None, None)
    assert law.beta.reason.startswith("separable")
    assert law.cubic.reason.startswith("separable")
    assert "separable" in law.summary()


def test_gaps_of_zero_are_not_identifiable():
    law = fit_label_law([0.0, 0.0], ["a", "b"], trained_beta=0.1)
    assert (law.beta.value, law.beta.reason) == (None, "not identifiable: every log-ratio gap is 0")
    assert law.comparison == "It cannot be held against the training's 0.1: not identifiable: every log-ratio gap is 0."


def test_no_pairs_are_not_identifiable_and_have_no_curve():
    law = fit_label_law([], [], trained_beta=0.1)
    assert law.beta.reason == "not identifiable: no pairs"
    assert (len(law.reliability), law.reliability.columns[0]) == (0, "at")


def test_soft_labels_of_the_law_give_back_its_beta():
    gap = np.array([-3.0, -0.5, 1.0, 2.5])
    assert fit_label_law(gap, FOUR, labels=expit(0.3 * gap)).beta.value == pytest.approx(0.3, rel=1e-9)


def test_label_smoothing_puts_beta_above_the_training_s():
    """eps = .1 at p = sigmoid(1), beta 1: training learns logit(.9 p + .1 (1 - p)); the factor is 1.29."""
    p = expit(1.0)
    learned = logit(0.9 * p + 0.1 * (1 - p))
    law = fit_label_law([learned], ["a"], labels=[p], trained_beta=1.0)
    assert law.beta.value == pytest.approx(1 / learned, rel=1e-9)
    assert law.beta.value == pytest.approx(1.29, abs=0.005)
    assert any("label smoothing" in warning for warning in law.warnings)


def test_the_interval_and_the_error_are_those_of_fit_beta():
    gap, labels = labelled(200, 0.5)
    clusters = np.arange(200) // 4
    law = fit_label_law(gap, clusters, labels=labels, bootstrap=200, seed=3)
    fit = fit_beta(gap, labels, clusters=clusters, bootstrap=200, seed=3)
    assert (law.beta.value, law.beta.low, law.beta.high) == (fit.value, fit.low, fit.high)
    assert (law.standard_error, law.nonlinearity_p.value) == (fit.standard_error, fit.nonlinearity_p)
    assert (law.beta.n, law.beta.n_clusters) == (200, 50)


@pytest.mark.parametrize(
    ("trained", "said"), [(2.0, "over-confident"), (0.05, "under-trained"), (0.5, "no departure from DPO's optimum")]
)
def test_beta_is_held_against_the_training_s_by_its_interval(trained, said):
    gap, labels = labelled(400, 0.5)
    law = fit_label_law(gap, np.arange(400), labels=labels, trained_beta=trained, bootstrap=200)
    assert said in law.comparison
    assert law.comparison in law.summary()
    assert law.beta.null_value == trained


def test_without_an_interval_no_difference_from_the_training_s_is_claimed():
    law = fit_label_law([2, 2, 2, -2], FOUR, trained_beta=50.0)
    assert "cannot be told: 4 clusters" in law.comparison


def test_training_pairs_carry_a_warning():
    assert fit_label_law([2, -2], ["a", "b"]).warnings == ()
    (warning,) = fit_label_law([2, -2], ["a", "b"], in_sample=True).warnings
    assert warning.startswith("in-sample")


@unhurried
@given(st.integers(0, 2**20), st.floats(0.1, 10))
def test_turning_pairs_and_the_unit_change_only_the_unit(which, unit):
    gap, labels = labelled(20, 0.5, seed=1)
    turn = np.array([(which >> i) & 1 for i in range(20)], dtype=bool)
    law = fit_label_law(gap, np.arange(20), labels=labels, bootstrap=20)
    other = fit_label_law(
        unit * np.where(turn, -gap, gap), np.arange(20), labels=np.where(turn, 1 - labels, labels), bootstrap=20
    )
    assert other.beta.value * unit == pytest.approx(law.beta.value, rel=1e-8)
    assert other.cubic.value * unit**3 == pytest.approx(law.cubic.value, rel=1e-5)


def test_lists_and_tensors_are_the_same():
    gap = [1.5, -0.5, 2.0, -1.0]
    assert fit_label_law(gap, FOUR).beta == fit_label_law(torch.tensor(gap, dtype=torch.float64), FOUR).beta


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"log_ratio_gap": [1.0, math.nan]}, "not finite"),
        ({"clusters": ["a"]}, "expected one a pair"),
        ({"labels": [1.0, 2.0]}, "lies in"),
        ({"trained_beta": 0.0}, "trained_beta=0.0"),
        ({"trained_beta": math.inf}, "trained_beta=inf"),
    ],
)
def test_bad_input_to_the_law_of_labels_is_refused(more, match):
    with pytest.raises(ValueError, match=match):
        fit_label_law(**({"log_ratio_gap": [1.0, -1.0], "clusters": ["a", "b"]} | more))


# ---- its curve


def test_the_curve_has_ten_bins_of_equal_mass():
    gap, labels = labelled(400, 0.5)
    curve = fit_label_law(gap, np.arange(400), labels=labels, bootstrap=20).reliability
    assert (curve["at"].unique().tolist(), len(curve), curve.n.tolist()) == (["fitted"], 10, [40] * 10)


def test_a_bin_of_the_curve_is_confidence_beside_the_labels_that_agree():
    """|dl| = 2 in four pairs, three of which agree, and |dl| = 20 in two, both of which do."""
    law = fit_label_law([2, 2, 2, -2, 20, 20], list("abcdef"), trained_beta=0.5)
    trained = law.reliability[law.reliability["at"] == "trained"]
    assert trained.n.tolist() == [4, 2]
    assert trained.confidence.tolist() == pytest.approx([expit(1.0), expit(10.0)])
    assert trained.observed.tolist() == [0.75, 1.0]
    assert (trained.low.iloc[0], trained.high.iloc[0]) == wilson(3.0, 4)
    fitted = law.reliability[law.reliability["at"] == "fitted"]
    assert fitted.confidence.tolist() == pytest.approx([expit(2 * law.beta.value), expit(20 * law.beta.value)])


# ---- whether a line is enough


def test_the_cubic_term_is_of_dl_cubed_and_equals_a_general_optimiser():
    gap, labels = labelled(300, 0.2, cubic=0.1)
    law = fit_label_law(gap, np.arange(300), labels=labels, bootstrap=20)

    def loss(theta):
        return -(labels * log_expit(theta[0] * gap + theta[1] * gap**3)
                 + (1 - labels) * log_expit(-theta[0] * gap - theta[1] * gap**3)).sum()  # fmt: skip

    best = minimize(loss, [0.2, 0.1], method="BFGS", options={"gtol": 1e-8})
    assert law.cubic.value == pytest.approx(best.x[1], rel=1e-4)


def test_the_cubic_s_interval_equals_a_naive_loop_over_draws():
    gap, labels = labelled(90, 0.3, cubic=0.05)
    clusters = np.arange(90) % 30
    law = fit_label_law(gap, clusters, labels=labels, bootstrap=100, seed=3)
    (times,) = resampled_counts(30, draws=100, seed=3)
    drawn = []
    for counts in times:
        rows = np.repeat(np.arange(90), counts[clusters].astype(int))
        fit = fit_beta(gap[rows], labels[rows])
        drawn.append(fit.cubic / np.sqrt((gap[rows] ** 2).mean()) ** 3)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (law.cubic.low, law.cubic.high) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))


def test_a_bend_is_seen_and_a_line_is_not_bent():
    bent, straight = (
        fit_label_law(gap, np.arange(1000), labels=labels, bootstrap=100)
        for gap, labels in (labelled(1000, 0.1, cubic=0.1), labelled(1000, 0.5))
    )
    assert bent.cubic.low > 0
    assert straight.cubic.low < 0 < straight.cubic.high
    assert bent.nonlinearity_p.value < 1e-3 < straight.nonlinearity_p.value


def test_gaps_of_one_size_have_a_beta_but_no_bend():
    cubic = fit_label_law([1.0, 1.0, 1.0, -1.0], FOUR).cubic
    assert (cubic.value, cubic.low) == (None, None)
    assert cubic.reason.startswith("every difference has the same size")


def test_soft_labels_have_a_bend_with_an_interval_but_no_p():
    gap, _ = labelled(100, 0.5)
    law = fit_label_law(gap, np.arange(100), labels=expit(0.5 * gap + 0.1 * gap**3), bootstrap=50)
    assert law.cubic.value == pytest.approx(0.1, rel=1e-5)
    assert (law.cubic.low, law.cubic.high) == (pytest.approx(0.1, rel=1e-4), pytest.approx(0.1, rel=1e-4))
    assert law.nonlinearity_p.value is None
    assert law.nonlinearity_p.reason.startswith("soft labels")


def test_draws_that_no_cubic_fits_lie_at_the_end_they_run_to():
    """For at 1 and 3, against at 2: without the one at 3, small sizes agree and large ones do not: b3 -> -inf."""
    x, weight = np.array([1.0, 3.0, -2.0]), np.ones(3)
    (times,) = resampled_counts(3, draws=200, seed=0)
    start = added_cubic(x, weight, 0.2)[0]
    drawn = drawn_cubics(x, weight, np.arange(3), 3, (0.2, start), draws=200, seed=0)
    held = (times > 0).tolist()
    every, without_3, without_1, none_against = (
        drawn[[row == kind for row in held]]
        for kind in ([True, True, True], [True, False, True], [False, True, True], [True, True, False])
    )
    assert min(len(rows) for rows in (every, without_3, without_1, none_against)) > 0
    assert np.isfinite(every).all()
    assert (without_3 == -np.inf).all()
    assert (without_1 == np.inf).all()
    assert np.isnan(none_against).all()


# ---- the law of generators


def test_a_line_gives_back_slope_and_intercept():
    ratio = np.random.default_rng(0).normal(-40, 3, 60)
    law = fit_generator_law(0.7 * ratio + 2, ratio, np.arange(60) // 2, bootstrap=50)
    assert law.beta.value == pytest.approx(0.7, rel=1e-10)
    assert law.intercept.value == pytest.approx(2.0, abs=1e-9)
    assert law.r_squared.value == pytest.approx(1.0, abs=1e-12)
    assert law.beta_within.value == pytest.approx(0.7, rel=1e-10)
    assert np.abs(law.residuals.residual).max() < 1e-9


def test_slope_intercept_and_r_squared_are_numpy_s():
    rng = np.random.default_rng(1)
    ratio = rng.normal(0, 2, 80)
    gap = 0.4 * ratio + rng.normal(0, 1, 80)
    law = fit_generator_law(gap, ratio, np.arange(80) // 4, bootstrap=50)
    slope, intercept = np.polyfit(ratio, gap, 1)
    assert (law.beta.value, law.intercept.value) == (pytest.approx(slope), pytest.approx(intercept))
    assert law.r_squared.value == pytest.approx(np.corrcoef(ratio, gap)[0, 1] ** 2)
    assert law.residuals.residual.to_numpy() == pytest.approx(gap - np.polyval([slope, intercept], ratio))
    assert (law.beta.n, law.beta.n_clusters, len(law.residuals)) == (80, 20, 80)


def test_intervals_of_the_line_equal_a_naive_loop_over_draws():
    rng = np.random.default_rng(2)
    ratio, clusters = rng.normal(3, 2, 90), np.arange(90) % 30
    gap = 0.4 * ratio + rng.normal(0, 1, 90)
    law = fit_generator_law(gap, ratio, clusters, bootstrap=100, seed=3)
    (times,) = resampled_counts(30, draws=100, seed=3)
    chosen = [np.repeat(np.arange(90), counts[clusters].astype(int)) for counts in times]
    lines = np.array([np.polyfit(ratio[rows], gap[rows], 1) for rows in chosen])
    for e, drawn in ((law.beta, lines[:, 0]), (law.intercept, lines[:, 1])):
        assert [e.low, e.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]))


def test_an_intercept_a_prompt_undoes_what_prompts_add():
    """The law's constant is one a prompt; where it goes with the prompt's mean log-ratio, one intercept is biased."""
    rng = np.random.default_rng(3)
    prompt = np.arange(100) // 4
    shift = rng.normal(0, 3, 25)[prompt]
    ratio = shift + rng.normal(0, 1, 100)
    law = fit_generator_law(0.5 * ratio + 2 * shift, ratio, prompt, bootstrap=50)
    assert law.beta_within.value == pytest.approx(0.5, rel=1e-10)
    assert law.beta.low > 1


@pytest.mark.parametrize(
    ("gap", "ratio", "reason"),
    [
        (None, [1.0, 2.0, 3.0], "not identifiable: generators unknown"),
        ([1.0, 2.0], [1.0, 2.0], "2 responses: a line with intercept needs 3"),
        ([], [], "0 responses: a line with intercept needs 3"),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], "not identifiable: every log-ratio is the same"),
    ],
)
def test_where_there_is_no_line_every_number_says_why(gap, ratio, reason):
    law = fit_generator_law(gap, ratio, np.arange(len(ratio)))
    assert {(e.value, e.reason) for e in law.estimates.values()} == {(None, reason)}
    assert (len(law.residuals), law.summary()) == (0, f"No beta of the generators: {reason}.")


def test_one_response_a_prompt_leaves_no_slope_inside_prompts():
    law = fit_generator_law([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], ["a", "b", "c"])
    assert law.beta.value == pytest.approx(1.5)
    assert law.beta_within.value is None
    assert law.beta_within.reason.startswith("not identifiable: no prompt has two responses")


def test_log_ratios_that_differ_inside_prompts_by_rounding_alone_have_no_slope_there():
    law = fit_generator_law([1.0, 2.0, 4.0, 3.0], [0.1 + 0.2, 0.3, 1.0, 1.0], ["a", "a", "b", "b"])
    assert (law.beta.value is None, law.beta_within.value) == (False, None)


def test_a_constant_generator_gap_has_slope_zero_and_no_r_squared():
    law = fit_generator_law([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], ["a", "a", "b"])
    assert (law.beta.value, law.intercept.value, law.r_squared.value) == (0.0, 2.0, None)
    assert "nothing to explain" in law.r_squared.reason


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"generator_gap": [1.0, 2.0]}, "expected one number a response"),
        ({"clusters": ["a"]}, "expected one number a response"),
        ({"log_ratio": [1.0, 2.0, math.inf]}, "not finite"),
    ],
)
def test_bad_input_to_the_law_of_generators_is_refused(more, match):
    given = {"generator_gap": [1.0, 2.0, 3.0], "log_ratio": [1.0, 2.0, 4.0], "clusters": ["a", "b", "c"]}
    with pytest.raises(ValueError, match=match):
        fit_generator_law(**(given | more))


# ---- the order of margins


def test_the_ordering_is_the_share_of_equal_signs():
    target, reference, rejected = [2.0, -1.0, 1.0, 3.0], [1.0, 0.0, 0.0, 3.0], [0.5, 1.0, 2.0, 3.0]
    e = margin_ordering(target, reference, rejected, FOUR)
    assert (e.value, e.n, e.null_value) == (0.75, 4, 0.5)  # up-up, down-down, up-down, 0-0


def test_margins_that_differ_by_rounding_alone_do_not_differ():
    assert margin_ordering([0.1 + 0.2], [0.3], [0.3], ["a"]).value == 1.0
    assert margin_ordering([0.3 + 1e-6], [0.3], [0.3], ["a"]).value == 0.0


def test_proportional_margins_are_ordered_on_every_pair():
    rng = np.random.default_rng(4)
    reference, moved = rng.normal(0, 5, (2, 50))
    e = margin_ordering(reference + moved, reference, reference - 0.3 * moved, np.arange(50))
    assert (e.value, e.high) == (1.0, 1.0)
    assert e.low == wilson(50.0, 50)[0]


def test_an_unknown_generator_has_no_ordering():
    e = margin_ordering([1.0], [0.0], None, ["a"])
    assert (e.value, e.reason) == (None, "not identifiable: generators unknown")


def test_an_ordering_of_unequal_lists_is_refused():
    with pytest.raises(ValueError, match="expected one a pair"):
        margin_ordering([1.0, 2.0], [0.0, 1.0], [1.0], ["a", "b"])
    with pytest.raises(ValueError, match="not finite"):
        margin_ordering([1.0], [math.nan], [1.0], ["a"])
