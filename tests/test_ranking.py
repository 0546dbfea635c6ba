"""Ranking accuracy and its limit: examples with exact answers, then what must not change them, then bad arguments."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import entr, expit, log_softmax, logit

from alignscope.diagnose.ranking import (
    AGREE,
    CLIP,
    PAPER_BETAS,
    SMOOTHINGS,
    credit,
    critical_beta,
    dpo_loss,
    flip_threshold,
    idealized_accuracy,
    idealized_curve,
    ipo_threshold,
    length_slope,
    residualised_accuracy,
    smooth_preference,
    theorem_mismatches,
)

ROUNDING = 1e-12
# T1: three answers, what the reference thinks of them, their true rewards, and the three pairs (w, l)
REFERENCE = np.array([0.6, 0.3, 0.1])
REWARD = np.array([0.0, 1.0, 2.0])
W, L = np.array([1, 2, 2]), np.array([0, 0, 1])
MARGIN = -np.log([2.0, 6.0, 3.0])
PREFERENCE = expit(REWARD[W] - REWARD[L])

eighths = st.integers(-800, 800).map(lambda k: k / 8)  # exact in binary, never a tiny difference
sixteenths = st.integers(0, 16).map(lambda k: k / 16)
pairs = st.lists(st.tuples(eighths, sixteenths), min_size=1, max_size=30).map(lambda rows: np.array(rows).T)
unhurried = settings(max_examples=50, deadline=None)
betas = st.sampled_from([1e-3, *PAPER_BETAS, 100.0])


def optimum(reference, reward, beta):
    """log pi* of KL-regularised RLHF: the softmax of log pi_ref + reward / beta."""
    return log_softmax(np.log(reference) + reward / beta)


# ---- T1: the three answers


@pytest.mark.parametrize(("beta", "share"), [(0.5, 1.0), (1.0, 2 / 3), (1.2, 1 / 3), (2.0, 0.0)])
def test_the_limit_of_three_answers(beta, share):
    assert idealized_accuracy(MARGIN, PREFERENCE, beta) == share
    assert idealized_accuracy(-np.log([2, 6, 3]), [0.731059, 0.880797, 0.731059], beta) == share


def test_the_critical_betas_of_three_answers():
    assert critical_beta(MARGIN, PREFERENCE) == pytest.approx([1 / math.log(2), 2 / math.log(6), 1 / math.log(3)])


def test_the_curve_of_three_answers_steps_at_the_critical_betas():
    at, shares = idealized_curve(MARGIN, PREFERENCE)
    assert at == pytest.approx([0.0, 1 / math.log(3), 2 / math.log(6), 1 / math.log(2)])
    assert shares == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.2, 2.0])
def test_an_optimal_policy_has_reward_accuracy_one_and_the_idealised_ranking_accuracy(beta):
    policy = optimum(REFERENCE, REWARD, beta)
    ratio = policy - np.log(REFERENCE)
    assert credit(ratio[W] - ratio[L]).mean() == 1.0
    assert credit(policy[W] - policy[L]).mean() == pytest.approx(idealized_accuracy(MARGIN, PREFERENCE, beta))


def test_the_reference_of_three_answers_ranks_none_right():
    assert credit(np.log(REFERENCE[W] / REFERENCE[L])).mean() == 0.0


def test_thresholds_and_losses_of_three_answers():
    """At beta 1 the optimum's hard losses lie below, below, above: right, right, wrong."""
    threshold = flip_threshold(MARGIN, 1.0)
    assert threshold == pytest.approx([math.log(3 / 2), math.log(7 / 6), math.log(4 / 3)])
    ratio = optimum(REFERENCE, REWARD, 1.0) - np.log(REFERENCE)
    loss = dpo_loss(ratio[W], ratio[L], 1.0)
    assert loss == pytest.approx([math.log1p(1 / math.e), math.log1p(math.e**-2), math.log1p(1 / math.e)])
    assert [*(loss <= threshold)] == [True, True, False]


def test_descent_on_the_soft_loss_arrives_at_the_closed_form():
    beta = 0.5

    def loss(scores):
        ratio = log_softmax(scores) - np.log(REFERENCE)
        right, wrong = dpo_loss(ratio[W], ratio[L], beta), dpo_loss(ratio[L], ratio[W], beta)
        return float((PREFERENCE * right + (1 - PREFERENCE) * wrong).mean())

    found = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9, "eps": 1e-8}, jac="3-point")
    assert found.fun == pytest.approx(np.mean(entr(PREFERENCE) + entr(1 - PREFERENCE)), abs=1e-9)
    assert log_softmax(found.x) == pytest.approx(optimum(REFERENCE, REWARD, beta), abs=1e-4)  # numeric gradient


# ---- T2: any answers


@unhurried
@given(st.lists(st.tuples(eighths, eighths), min_size=2, max_size=6), st.sampled_from([0.1, 0.5, 1.0, 3.0]))
def test_any_optimum_attains_its_limit_and_has_minus_log_preference_as_loss(answers, beta):
    reference, reward = log_softmax(np.array(answers).T / 16, axis=1)
    w, lost = np.array([*itertools.permutations(range(len(answers)), 2)]).T
    policy = log_softmax(reference + reward / beta)
    preference, h = expit(reward[w] - reward[lost]), policy[w] - policy[lost]
    ratio = policy - reference
    assert dpo_loss(ratio[w], ratio[lost], beta) == pytest.approx(-np.log(preference))
    clear = (preference > 0.5 + AGREE) & (np.abs(h) > AGREE)  # rounding decides no order
    assume(clear.any())
    limit = idealized_accuracy((reference[w] - reference[lost])[clear], preference[clear], beta)
    assert credit(h[clear]).mean() == pytest.approx(limit)


@unhurried
@given(st.lists(st.tuples(*[eighths] * 4), min_size=1, max_size=20), betas, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_a_pair_is_ranked_right_exactly_where_its_loss_is_at_most_the_threshold(rows, beta, gamma):
    lw, ll, rw, rl = np.array(rows).T / 128  # small enough that losses do not vanish in rounding
    h, reference_margin = lw - ll, rw - rl
    loss = dpo_loss(h, gamma * reference_margin, beta)  # softplus(-beta (h + gamma c))
    threshold = flip_threshold(reference_margin, beta, gamma=gamma)
    assert not theorem_mismatches(h, loss, threshold).any()
    apart = np.abs(loss - threshold) > ROUNDING
    assert ((loss <= threshold) == (h >= 0))[apart].all()


def test_damaged_scores_break_the_theorem():
    rng = np.random.default_rng(0)
    lw, ll, rw, rl = rng.normal(0, 3, (4, 200))
    loss, threshold = dpo_loss(lw - rw, ll - rl, 0.1), flip_threshold(rw - rl, 0.1)
    assert not theorem_mismatches(lw - ll, loss, threshold).any()
    assert theorem_mismatches(ll - lw, loss, threshold).all()  # policy turned
    assert theorem_mismatches(lw - ll, dpo_loss(lw - rl, ll - rw, 0.1), threshold).any()  # reference turned
    assert theorem_mismatches(lw - ll, dpo_loss(lw - rw, ll - rl, 0.2), threshold).any()  # another beta
    assert theorem_mismatches(lw - ll, loss, flip_threshold(rw - rl + 0.1, 0.1)).any()  # a tenth of a nat


def test_rounding_is_no_mismatch():
    assert not theorem_mismatches([AGREE / 2, -AGREE / 2, np.nan], [0.7, 0.6, np.nan], [0.6, 0.7, np.nan]).any()


# ---- thresholds


@pytest.mark.parametrize(
    ("reference_margin", "beta", "loss"),
    [
        (0, 0.1, math.log(2)),
        (-10, 0.1, math.log1p(1 / math.e)),
        (-50, 0.1, math.log1p(math.e**-5)),
        (4, 0.5, math.log1p(math.e**2)),
    ],
)
def test_flip_thresholds(reference_margin, beta, loss):
    assert flip_threshold(reference_margin, beta) == pytest.approx(loss)


def test_a_reference_that_is_right_lets_a_loss_below_ln_2_rank_right():
    assert (flip_threshold(np.linspace(0, 50, 11), 0.1) >= math.log(2)).all()


def test_gamma_scales_the_reference_in_the_threshold():
    assert flip_threshold(-10, 0.1, gamma=0.0) == math.log(2)
    assert flip_threshold(-10, 0.1, gamma=2.0) == flip_threshold(-20, 0.1)


@pytest.mark.parametrize(("reference_margin", "loss"), [(0, 25), (-3, 4), (-5, 0), (5, 100)])
def test_ipo_losses_that_suffice(reference_margin, loss):
    assert ipo_threshold(reference_margin, 0.1) == pytest.approx(loss)


def test_ipo_at_zero_loss_can_rank_wrong():
    assert math.isnan(ipo_threshold(-6, 0.1))


@pytest.mark.parametrize(("preference", "beta"), [(0.75, 0.1), (0.8, 1.0), (0.75, 10.0), (0.6, 0.1)])
def test_the_largest_difficulty_that_an_optimum_overcomes(preference, beta):
    c = math.log(preference / (1 - preference)) / beta  # 10.986, 1.386, .1099, 4.055 nats
    assert idealized_accuracy([-c * (1 - 1e-9)], [preference], beta) == 1.0
    assert idealized_accuracy([-c * (1 + 1e-9)], [preference], beta) == 0.0


def test_at_the_critical_beta_itself_the_pair_is_wrong():
    assert critical_beta(-logit(0.75), 0.75) == 1.0
    assert idealized_accuracy([-logit(0.75)], [0.75], [np.nextafter(1.0, 0.0), 1.0]).tolist() == [1.0, 0.0]


# ---- credit


@pytest.mark.parametrize(("ties", "mean", "tie"), [("half", 0.625, 0.5), ("strict", 0.5, 0.0), ("ge", 0.75, 1.0)])
def test_ties(ties, mean, tie):
    assert credit([1, -1, 0, 2], ties).mean() == mean
    assert credit(np.zeros(3), ties).tolist() == [tie] * 3


def test_a_tolerance_makes_near_ties_ties():
    assert credit([0.25, -0.25, 0.5], atol=0.25).tolist() == [0.5, 0.5, 1.0]


def test_a_missing_difference_has_no_credit():
    assert np.isnan(credit([np.nan, 1.0], "ge")).tolist() == [True, False]


@unhurried
@given(st.lists(eighths, max_size=20))
def test_turning_every_pair_turns_the_credit(differences):
    d = np.array(differences)
    assert (credit(-d) == 1 - credit(d)).all()
    assert (credit(-d, "strict") == 1 - credit(d, "ge")).all()


def test_a_uniform_policy_prefers_what_is_shorter():
    """T8: log-probabilities -n ln 10 rank by length alone, and tie per token."""
    n = np.array([[3, 7], [7, 3], [5, 5], [1, 200]])
    total = -n * math.log(10)
    assert credit(total[:, 0] - total[:, 1]).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert (credit(total[:, 0] / n[:, 0] - total[:, 1] / n[:, 1], atol=AGREE) == 0.5).all()


# ---- R*: what must not change it, and its limits


@unhurried
@given(pairs, betas)
def test_turning_a_pair_leaves_its_limit(table, beta):
    margin, preference = table
    assert critical_beta(-margin, 1 - preference)[preference != 0.5] == pytest.approx(
        critical_beta(margin, preference)[preference != 0.5], rel=ROUNDING
    )
    decided = preference != 0.5
    if decided.any():
        turned = idealized_accuracy(-margin[decided], 1 - preference[decided], beta)
        assert turned == idealized_accuracy(margin[decided], preference[decided], beta)


@unhurried
@given(pairs)
def test_limits_in_beta(table):
    margin, preference = table
    margin = np.where(preference < 0.5, -margin, margin)  # of the side that is preferred
    decided = preference != 0.5
    assert idealized_accuracy(*table, 1e-12) == pytest.approx((decided | (margin > 0)).mean())
    certain = (preference == 0) | (preference == 1)
    assert idealized_accuracy(*table, 1e12) == pytest.approx(
        (certain | (margin > 0) | ((margin == 0) & decided)).mean()
    )


@unhurried
@given(pairs, betas)
def test_the_curve_is_the_limit_at_every_beta(table, beta):
    at, shares = idealized_curve(*table)
    assert at[0] == 0.0
    assert (np.diff(at) > 0).all()
    assert (np.diff(shares) <= 0).all()
    assert shares[np.searchsorted(at, beta, side="right") - 1] == idealized_accuracy(*table, beta)
    assert shares[1:].tolist() == np.ravel(idealized_accuracy(*table, at[1:]) if len(at) > 1 else []).tolist()


@unhurried
@given(pairs, betas)
def test_the_limit_equals_a_naive_loop(table, beta):
    right = 0
    for margin, preference in table.T:
        with np.errstate(divide="ignore"):
            shift = float(logit(preference)) / beta
        right += (margin + shift > 0) if preference >= 0.5 else (margin + shift < 0)
    assert idealized_accuracy(*table, beta) == pytest.approx(right / table.shape[1])


@pytest.mark.parametrize(("margin", "share"), [(1.0, 1.0), (0.0, 0.0), (-1.0, 0.0)])
def test_a_human_tie_keeps_the_order_of_the_reference(margin, share):
    assert idealized_accuracy([margin], [0.5], PAPER_BETAS).tolist() == [share] * 5


def test_a_certain_preference_is_learned_at_every_beta():
    assert critical_beta([-50.0, 50.0], [1.0, 0.0]).tolist() == [math.inf, math.inf]


def test_tensors_lists_and_numbers_give_the_same():
    margin = torch.tensor([-1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert critical_beta(margin, 0.75).tolist() == critical_beta([-1.0, 2.0], [0.75, 0.75]).tolist()
    assert critical_beta(-1.0, 0.75) == math.log(3)
    assert isinstance(idealized_accuracy(-1.0, 0.75, 1), float)
    assert idealized_accuracy([-1.0, 2.0], 0.75, [1, 2]).tolist() == [1.0, 0.5]


def test_no_pairs_have_no_limit():
    assert math.isnan(idealized_accuracy([], [], 1.0))
    with pytest.raises(ValueError, match="no pairs"):
        idealized_curve([], [])


# ---- votes


@pytest.mark.parametrize(
    ("wins", "n", "jeffreys", "laplace"), [(1, 1, 3 / 4, 2 / 3), (5, 5, 11 / 12, 6 / 7), (3, 5, 7 / 12, 4 / 7)]
)
def test_smoothing(wins, n, jeffreys, laplace):
    assert smooth_preference(wins, n) == smooth_preference(wins, n, "jeffreys") == pytest.approx(jeffreys)
    assert smooth_preference(wins, n, "laplace") == pytest.approx(laplace)
    assert smooth_preference(wins, n, "clip") == min(wins / n, 1 - CLIP)


@pytest.mark.parametrize("how", SMOOTHINGS)
@unhurried
@given(st.integers(1, 50), st.data())
def test_smoothing_is_symmetric_and_leaves_no_certainty(how, n, data):
    wins = data.draw(st.integers(0, 2 * n)) / 2  # ties count half
    p = smooth_preference(wins, n, how)
    assert 0 < p < 1
    assert p + smooth_preference(n - wins, n, how) == pytest.approx(1.0)
    assert (p > 0.5) == (wins > n / 2)


# ---- length


def test_residualised_accuracy_takes_away_what_length_predicts():
    d, dn = [2, -1, 1], [1, -1, 2]
    assert length_slope(d, dn) == pytest.approx(5 / 6)
    assert residualised_accuracy(d, dn) == pytest.approx(1 / 3)
    assert credit(d).mean() == credit(dn).mean() == pytest.approx(2 / 3)


@unhurried
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=20))
def test_turning_every_pair_turns_the_residualised_accuracy(rows):
    d, dn = np.array(rows, dtype=float).T
    assert residualised_accuracy(-d, -dn) == pytest.approx(1 - residualised_accuracy(d, dn))
    assert length_slope(-d, -dn) == length_slope(d, dn)


@unhurried
@given(st.lists(st.integers(-300, 300), min_size=1, max_size=50))
def test_a_policy_that_is_length_alone_has_nothing_left(lengths):
    dn = np.array(lengths)
    assert residualised_accuracy(-math.log(10) * dn, dn) == 0.5


def test_equal_lengths_leave_the_accuracy():
    assert length_slope([2, -1], [0, 0]) == 0.0
    assert residualised_accuracy([2, -1, 1, 1], [0, 0, 0, 0]) == 0.75
    assert math.isnan(residualised_accuracy([], []))


# ---- bad arguments


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_not_positive_and_finite_is_refused(beta):
    for call in (
        lambda: idealized_accuracy(MARGIN, PREFERENCE, beta),
        lambda: idealized_accuracy(MARGIN, PREFERENCE, [0.1, beta]),
        lambda: flip_threshold(MARGIN, beta),
        lambda: dpo_loss(MARGIN, MARGIN, beta),
    ):
        with pytest.raises(ValueError, match=r"beta=.*positive, finite"):
            call()
    with pytest.raises(ValueError, match=r"tau=.*positive, finite"):
        ipo_threshold(MARGIN, beta)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: credit([1.0], "lenient"), "ties='lenient'"),
        (lambda: credit([1.0], atol=-1e-9), "atol"),
        (lambda: credit([1.0], atol=math.nan), "atol"),
        (lambda: critical_beta(MARGIN, [0.5, 0.5, 1.1]), r"\[0, 1\]"),
        (lambda: critical_beta(MARGIN, [0.5, 0.5, math.nan]), "leave out pairs without one"),
        (lambda: critical_beta([math.nan], [0.7]), "not finite"),
        (lambda: critical_beta([math.inf], [0.7]), "not finite"),
        (lambda: critical_beta(MARGIN, [0.7, 0.8]), "shape"),
        (lambda: flip_threshold(MARGIN, 0.1, gamma=math.inf), "gamma"),
        (lambda: smooth_preference(1, 1, "none"), "smoothing='none'"),
        (lambda: smooth_preference(2, 1), "votes"),
        (lambda: smooth_preference(-1, 1), "votes"),
        (lambda: smooth_preference(0, 0), "votes"),
        (lambda: smooth_preference(math.nan, 3), "votes"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
