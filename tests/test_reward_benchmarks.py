"""RewardBench's aggregates and the least gap that pairs can show: examples with exact answers, then bad arguments."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignscope.diagnose import rewards
from alignscope.diagnose.ranking import credit
from alignscope.diagnose.reward_benchmarks import (
    ONE_RIGHT_ANSWER,
    PRIOR_SETS,
    PUBLISHED_COUNTS,
    best_of_n_credit,
    rewardbench_ties,
    rewardbench_v1,
    token_reductions,
)
from alignscope.diagnose.rewards import minimum_detectable_gap

SECTIONS = ("Chat", "Chat Hard", "Safety", "Reasoning")
HEP = ("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust")
T12 = {"right": [3, 2.5], "wrong": [1, 0], "reference_right": [4], "reference_wrong": [1]}
CONSTANT = {"right": [1, 1], "wrong": [1, 1], "reference_right": [1], "reference_wrong": [1]}


def by_section(*means):
    """Every subset of a section at the section's mean."""
    return {name: mean for section, mean in zip(SECTIONS, means, strict=True) for name in PUBLISHED_COUNTS[section]}


# ---- T25: version 1


def test_four_sections_and_the_prior_sets():
    found = rewardbench_v1(by_section(0.9, 0.6, 0.8, 0.7) | dict.fromkeys(PRIOR_SETS, 0.65))
    assert found.total == pytest.approx((2 * (0.9 + 0.6 + 0.8 + 0.7) + 0.65) / 9)  # .738889
    assert found.sections == {name: pytest.approx(x) for name, x in zip(SECTIONS, (0.9, 0.6, 0.8, 0.7), strict=True)}
    assert found.prior == pytest.approx(0.65)
    assert found.absent == ()


def test_absent_prior_sets_leave_the_denominator():
    found = rewardbench_v1(by_section(0.9, 0.6, 0.8, 0.7))
    assert found.total == pytest.approx(0.75)
    assert found.prior is None
    assert found.absent == PRIOR_SETS


def test_mathematics_counts_as_much_as_all_code_but_holds_less():
    accuracy = {"math-prm": 0.5} | dict.fromkeys(HEP, 0.9)
    published, true = rewardbench_v1(accuracy), rewardbench_v1(accuracy, "true")
    assert published.sections["Reasoning"] == pytest.approx(0.7)
    assert true.sections["Reasoning"] == pytest.approx((447 * 0.5 + 984 * 0.9) / (447 + 984))  # .775052
    assert published.other_sections == true.sections
    assert published.sections == true.other_sections
    assert (published.other_total, published.other_counts) == (true.total, "true")


def test_true_counts_are_those_of_the_2985_pairs():
    # 250 of XSTest's 450 prompts are safe and 200 are not: only the safe side can hold 250 pairs
    found = rewardbench_v1({"xstest-should-refuse": 1, "xstest-should-respond": 0})
    assert found.sections["Safety"] == pytest.approx(250 / 404)
    assert found.other_sections["Safety"] == pytest.approx(154 / 404)
    total = sum(n for subsets in PUBLISHED_COUNTS.values() for n in subsets.values())
    assert total - 984 + 447 == 2985


@pytest.mark.parametrize(
    ("accuracy", "section", "mean"),
    [
        ({"alpacaeval-easy": 1.0, "mt-bench-med": 0.3}, "Chat", (100 + 40 * 0.3) / 140),
        ({"mt-bench-hard": 1.0, "llmbar-adver-GPTInst": 0.0}, "Chat Hard", 37 / 129),
        ({"llmbar-adver-neighbor": 1.0, "llmbar-adver-GPTOut": 0.0}, "Chat Hard", 134 / 181),
        ({"donotanswer": 1.0, "refusals-offensive": 0.0}, "Safety", 136 / 236),
    ],
)
def test_present_subsets_are_weighted_by_their_counts(accuracy, section, mean):
    found = rewardbench_v1(accuracy)
    assert found.sections[section] == pytest.approx(mean)
    assert found.total == pytest.approx(mean)


def test_an_absent_section_is_null_and_leaves_the_total():
    accuracy = {name: 0.8 for name in by_section(0, 0, 0, 0) if name not in PUBLISHED_COUNTS["Safety"]}
    found = rewardbench_v1(accuracy)
    assert found.sections["Safety"] is None
    assert found.total == pytest.approx(0.8)
    assert set(found.absent) == set(PUBLISHED_COUNTS["Safety"]) | set(PRIOR_SETS)
    assert "9 subsets are absent" in found.summary()


def test_present_prior_sets_have_a_plain_mean():
    assert rewardbench_v1({"shp": 0.5, "summarize": 0.8}).prior == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("accuracy", "counts", "match"),
    [
        ({}, "published", "no subset: expected some of alpacaeval-easy"),
        ({"mt-bench-medium": 0.5}, "published", "unknown subsets mt-bench-medium: expected .*mt-bench-med"),
        ({"shp": 1.5}, "published", r"shares in \[0, 1\], got .*1.5"),
        ({"shp": float("nan")}, "published", "shares in"),
        ({"shp": 0.5}, "real", "expected one of published, true"),
    ],
)
def test_bad_accuracies_are_refused(accuracy, counts, match):
    with pytest.raises(ValueError, match=match):
        rewardbench_v1(accuracy, counts)


# ---- T26: best of n


@pytest.mark.parametrize(
    ("scores", "expected"), [([1, 1, 0, 0], 0.5), ([0, 1, 0, 0], 0.0), ([1, 1, 1, 1], 0.25), ([2, 1, 1, 1], 1.0)]
)
def test_the_right_answer_shares_the_maximum(scores, expected):
    assert best_of_n_credit(scores) == expected


def test_rows_of_scores_give_an_array():
    scores = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [3.0, 2.0]]])
    assert best_of_n_credit(scores).tolist() == [[1.0, 0.0], [0.5, 1.0]]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_credits_over_the_place_of_the_right_answer_sum_to_one(scores):
    turned = [scores[i:] + scores[:i] for i in range(len(scores))]
    assert best_of_n_credit(turned).sum() == pytest.approx(1)


@pytest.mark.parametrize("scores", [[1.0], [], 1.0])
def test_a_choice_needs_two_answers(scores):
    with pytest.raises(ValueError, match="n >= 2"):
        best_of_n_credit(scores)


def test_scores_that_are_not_finite_have_no_credit():
    with pytest.raises(ValueError, match="not finite"):
        best_of_n_credit([1.0, float("nan")])


# ---- T12: ties


def test_a_good_prompt_exceeds_one():
    found = rewardbench_ties([T12])
    assert found.score == pytest.approx(1 + 0.01 * math.tanh(2))  # 1.0096403
    assert (found.tied_accuracy, found.reference_accuracy, found.preferred, found.preferred_hard) == (1, 1, 1, 1)
    assert found.n == 1


def test_constant_scores_get_nothing():
    assert rewardbench_ties([CONSTANT]).score == 0


def test_parts_are_means_over_prompts():
    found = rewardbench_ties([T12, CONSTANT])
    assert found.score == pytest.approx((1 + 0.01 * math.tanh(2)) / 2)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ({"right": [3, 1]}, 0.3 * 0 + 0.3 * 1 + 0.01 * math.tanh(-1)),  # a wrong answer ties with the worse right one
        ({"right": [3, 1.5]}, 0.6 + 0.01 * math.tanh(0.5 / 1.5 - 1)),  # apart, but the right ones lie further apart
        ({"reference_right": 1.25}, 0.8 + 0.01 * math.tanh(0.25 / 0.5 - 1)),  # the reference's gap is the smaller
        ({"reference_right": 0.5}, 0.5 + 0.01 * math.tanh(-0.5 / 0.5 - 1)),
        ({"right": [3, 3]}, 1 + 0.01),  # no spread: tanh of infinity
        ({"right": [0.5, 0.5]}, 0.3 - 0.01),
        ({"right": [2.5, 3, 2.75], "wrong": [0, 1, 1, -5]}, 1 + 0.01 * math.tanh(2)),  # only the extremes count
    ],
)
def test_every_term_of_the_ties_score(prompt, expected):
    assert rewardbench_ties([T12 | prompt]).score == pytest.approx(expected)


@given(st.floats(-50, 50), st.sampled_from([0.25, 1.0, 8.0]))
def test_scale_and_offset_of_the_scores_do_not_matter(offset, scale):
    moved = {name: (np.array(scores) * scale + offset).tolist() for name, scores in T12.items()}
    assert rewardbench_ties([moved]).score == pytest.approx(rewardbench_ties([T12]).score)


def test_a_prompt_with_one_right_answer_is_set_aside():
    found = rewardbench_ties([T12, T12 | {"right": [3]}])
    assert (found.n, found.set_aside) == (1, 1)
    assert found.score == rewardbench_ties([T12]).score


def test_only_such_prompts_leave_a_reason():
    found = rewardbench_ties([T12 | {"right": 3.0}])
    assert (found.score, found.n, found.set_aside, found.reason) == (None, 0, 1, ONE_RIGHT_ANSWER)


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        ([], "no prompts"),
        ([T12, {"right": [1, 2]}], "prompt 1: no 'wrong', found right"),
        ([T12 | {"wrong": []}], "prompt 0: 'wrong'"),
        ([T12 | {"reference_wrong": [float("nan")]}], "prompt 0: 'reference_wrong'"),
    ],
)
def test_bad_prompts_are_refused(prompts, match):
    with pytest.raises(ValueError, match=match):
        rewardbench_ties(prompts)


# ---- T9: reference-free scores


def test_three_tokens_at_nine_tenths():
    found = token_reductions([math.log(0.9)] * 3)
    assert found.sum == pytest.approx(3 * math.log(0.9))  # -.316082
    assert found.mean == pytest.approx(math.log(0.9))  # -.105361
    assert found.minus_norm == pytest.approx(math.sqrt(3) * math.log(0.9))  # -.182490


def test_the_norm_favours_longer_completions_less_than_the_sum():
    short, long = token_reductions([-1.0]), token_reductions([-1.0] * 4)
    assert (short.sum - long.sum, short.mean - long.mean, short.minus_norm - long.minus_norm) == (3, 0, 1)


@pytest.mark.parametrize("logps", [[], [0.1], [float("-inf")], [[-1.0]]])
def test_bad_log_probabilities_are_refused(logps):
    with pytest.raises(ValueError, match="log-probabilities"):
        token_reductions(logps)


# ---- T11: a mean over pairs


def test_accuracy_is_a_mean_over_pairs_not_over_batches():
    d, n = np.array([1.0, 1.0, 1.0, 1.0, -1.0]), np.zeros(5)
    assert rewards.residualised_accuracy(d, n) == 0.8
    batches = [rewards.residualised_accuracy(d[i : i + 4], n[i : i + 4]) for i in (0, 4)]
    assert np.mean(batches) == 0.5  # what a mean of batch means would say
    assert np.mean(credit(d)) == 0.8


# ---- T27: the least gap


def test_two_hundred_pairs_cannot_show_three_points():
    assert minimum_detectable_gap(0.2, 200) == pytest.approx(0.088594, abs=5e-7)  # digits of the definition's test
    assert minimum_detectable_gap(0.2, 1745) < 0.03 < minimum_detectable_gap(0.2, 1744)


def test_the_variance_is_rounded_up_to_the_discordant_share():
    # with q - gap^2 for q, 1,737 pairs do for three points: the simple form asks for 8 more
    assert minimum_detectable_gap(0.2 - 0.03**2, 1737) < 0.03 < minimum_detectable_gap(0.2 - 0.03**2, 1736)


def test_the_factor_is_that_of_80_percent_power_at_5_percent():
    q, n, rng = 0.2, 2000, np.random.default_rng(0)
    gap = minimum_detectable_gap(q, n)
    counts = rng.multinomial(n, [(q + gap) / 2, (q - gap) / 2, 1 - q], size=20_000)
    difference = (counts[:, 0] - counts[:, 1]) / n
    found = np.abs(difference) > 1.959964 * math.sqrt(q / n)
    assert found.mean() == pytest.approx(0.8, abs=0.012)  # 4 standard errors of 20,000 draws


def test_four_times_the_pairs_show_half_the_gap():
    assert minimum_detectable_gap(0.3, 400) == pytest.approx(minimum_detectable_gap(0.3, 100) / 2)
    assert minimum_detectable_gap(0, 10) == 0.0


@pytest.mark.parametrize(("share", "n"), [(-0.1, 10), (1.1, 10), (float("nan"), 10), (0.2, 0)])
def test_bad_shares_and_counts_are_refused(share, n):
    with pytest.raises(ValueError, match=r"discordant|n="):
        minimum_detectable_gap(share, n)


@pytest.mark.parametrize(
    "name",
    [
        "fit_beta",
        "calibration",
        "residualised_accuracy",
        "objective_table",
        "trl_metrics",
        "ches",
        "rewardbench_v1",
        "best_of_n_credit",
        "rewardbench_ties",
        "minimum_detectable_gap",
        "order_agreement",
    ],
)
def test_the_public_place_of_reward_measures_has_them_all(name):
    assert name in rewards.__all__
    assert callable(getattr(rewards, name))
