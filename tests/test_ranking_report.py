"""The ranking report on tables of known numbers: exact answers and naive loops, what is null and why, settings."""

import math

import numpy as np
import pandas as pd
import pytest
from ranking_tables import frame, mixed, report
from scipy import stats
from scipy.special import logit

from alignscope.diagnose.ranking import SMOOTHINGS, idealized_accuracy, smooth_preference
from alignscope.diagnose.report import Manifest
from alignscope.diagnose.statistics import mcnemar, wilson

Z2 = stats.norm.ppf(0.975) ** 2
NO_REFERENCE = "no reference model was given"
ONE_LABEL = "no preference strength: one label a pair"
CREDIT = {"half": (0.0, 0.5, 1.0), "strict": (0.0, 0.0, 1.0), "ge": (0.0, 1.0, 1.0)}
MANIFEST = Manifest(
    command="", models={}, data={}, settings={}, packages={}, device="cpu", dtype="", seed=0, wall_seconds=0.0
)


def value(table, name, **settings):
    return report(table, **settings).estimates[name].value


def naive(table, ties):
    """Every accuracy by name, row by row, human ties left out."""
    found: dict[str, list[float]] = {}
    for row in table[table.preference != 0.5].itertuples():
        lw, ll, rw, rl = row.policy_chosen, row.policy_rejected, row.reference_chosen, row.reference_rejected
        nw, nl = row.n_chosen, row.n_rejected
        for name, d in {
            "accuracy": lw - ll,
            "accuracy_normalised": lw * nl - ll * nw,
            "reference_accuracy": rw - rl,
            "reward_accuracy": (lw - rw) - (ll - rl),
            "reward_accuracy_normalised": (lw - rw) * nl - (ll - rl) * nw,
            "explicit_accuracy": row.explicit_chosen - row.explicit_rejected,
        }.items():
            found.setdefault(name, []).append(CREDIT[ties][int(np.sign(d)) + 1])
        found.setdefault("shorter_wins", []).append(CREDIT["half"][int(np.sign(nl - nw)) + 1])
        found.setdefault("longer_wins", []).append(CREDIT["half"][int(np.sign(nw - nl)) + 1])
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


# ---- accuracies


@pytest.mark.parametrize("ties", CREDIT)
def test_accuracies_equal_a_naive_loop(ties):
    table = mixed()
    estimates = report(table, ties=ties).estimates
    for name, expected in naive(table, ties).items():
        assert estimates[name].value == pytest.approx(expected), name
        assert estimates[name].n == 114
    assert estimates["accuracy_gain"].value == pytest.approx(
        estimates["accuracy"].value - estimates["reference_accuracy"].value
    )


@pytest.mark.parametrize(("ties", "mean", "same"), [("half", 0.625, 0.5), ("strict", 0.5, 0.0), ("ge", 0.75, 1.0)])
def test_ties(ties, mean, same):
    """T7: margins 1, -1, 0, 2; a policy that is its reference ties in every reward."""
    estimates = report(frame([1, -1, 0, 2], [1, -1, 0, 2]), ties=ties).estimates
    assert estimates["accuracy"].value == estimates["reference_accuracy"].value == mean
    assert estimates["reward_accuracy"].value == same


def test_sums_and_means_rank_differently():
    table = frame([2.0], policy_chosen=-10.0, policy_rejected=-12.0, n_chosen=5, n_rejected=8)
    assert (value(table, "accuracy"), value(table, "accuracy_normalised")) == (1.0, 0.0)
    table = table.assign(reference_chosen=-14.0, reference_rejected=-15.0)  # dw = 4 of 5 tokens, dl = 3 of 8
    table["n_chosen"], table["n_rejected"] = 12, 8
    assert (value(table, "reward_accuracy"), value(table, "reward_accuracy_normalised")) == (1.0, 0.0)


@pytest.mark.parametrize("ties", CREDIT)
def test_a_uniform_policy_prefers_what_is_shorter_and_ties_per_token(ties):
    """T8, with sums as a scorer makes them, token by token."""
    total = np.cumsum(np.full(60, -math.log(10)))
    n = np.random.default_rng(0).integers(1, 61, (50, 2))
    table = pd.DataFrame({"policy_chosen": total[n[:, 0] - 1], "policy_rejected": total[n[:, 1] - 1]})
    table["n_chosen"], table["n_rejected"] = n.T
    estimates = report(table, ties=ties).estimates
    tie = CREDIT[ties][1]
    assert estimates["accuracy"].value == np.mean([CREDIT[ties][int(np.sign(b - a)) + 1] for a, b in n])
    assert (estimates["accuracy_normalised"].value, estimates["residualised_accuracy"].value) == (tie, tie)


def test_human_ties_stay_in_the_table_and_leave_every_accuracy():
    found = report(frame([1, 1, -1, -1], [-1, 1, 1, 1], preference=[1.0, 0.5, 0.5, 1.0], n_votes=2))
    assert found.estimates["accuracy"].value == 0.5
    assert {e.n for e in found.estimates.values() if e.value is not None} == {1, 2}
    assert found.pairs.human_tie.tolist() == [False, True, True, False]
    for column in ("ranked_right", "reward_right", "beta_crit"):
        assert found.pairs[column].isna().tolist() == [False, True, True, False]
    assert found.tables["flips"].n.sum() == found.tables["displacement"].n.sum() == 2
    assert (found.counts["pairs"], found.counts["human_tie"]) == (2, 2)


def test_rows_without_an_explicit_score_leave_the_explicit_accuracy_alone():
    found = report(frame([1, 1, 1], explicit_chosen=[2.0, 1.0, np.nan], explicit_rejected=[1.0, 2.0, 0.0]))
    assert (found.estimates["explicit_accuracy"].value, found.estimates["explicit_accuracy"].n) == (0.5, 2)
    assert found.estimates["accuracy"].n == 3


def test_the_interval_of_805_prompts_is_the_normal_one():
    accuracy = report(frame(np.where(np.arange(805) < 483, 1, -1)), bootstrap=2000).estimates["accuracy"]
    assert accuracy.value == 0.6
    width = 2 * math.sqrt(Z2 * 0.6 * 0.4 / 805)  # standard error .017267
    assert accuracy.high - accuracy.low == pytest.approx(width, rel=0.06)  # percentiles of 2,000 draws


# ---- what is null, and why


def test_without_a_reference_only_ranking_numbers_are_left():
    found = report(frame([1, -1], n_chosen=1, n_rejected=2))
    left = {name for name, e in found.estimates.items() if e.value is not None}
    assert left == {
        "accuracy", "accuracy_normalised", "residualised_accuracy",
        "shorter_wins", "longer_wins", "accuracy_over_length",
    }  # fmt: skip
    null = {name: e.reason for name, e in found.estimates.items() if name not in left}
    assert null.pop("explicit_accuracy") == "no reward model or explicit scores were given"
    assert set(null.values()) == {NO_REFERENCE}
    assert [len(found.tables[name]) for name in ("flips", "displacement", "idealized")] == [0, 0, 0]
    assert found.pairs.difficulty_class.tolist() == ["unknown"] * 2


def test_without_token_counts_what_needs_them_is_null():
    found = report(frame([1, -1], [1, 1]))
    null = {name for name, e in found.estimates.items() if e.reason == "the table holds no token counts"}
    assert null == {
        "accuracy_normalised", "reward_accuracy_normalised", "shorter_wins", "longer_wins", "accuracy_over_length",
        "displacement_chosen_per_token", "displacement_rejected_per_token",
        "residualised_accuracy", "reward_residualised_accuracy",
    }  # fmt: skip
    assert found.tables["length"].empty
    table = frame([1, -1], [1, 1], preference=[1.0, 0.5], n_votes=2, n_chosen=[0, 3], n_rejected=[0, 4])
    assert report(table).estimates["accuracy_normalised"].reason == "the table holds no token counts"  # but a tie's


def test_one_label_a_pair_has_no_idealised_accuracy():
    found = report(frame([1, -1, 1], [-1, -1, 1], prompt_id="p"))
    for name in ("idealized_accuracy", "gap", "gap_median", "share_flippable", "share_hard"):
        assert (found.estimates[name].value, found.estimates[name].reason) == (None, ONE_LABEL)
    assert found.tables["idealized"].empty
    assert found.pairs.difficulty_class.tolist() == ["unknown", "unknown", "already_right"]
    assert any("--assumed-preference" in warning for warning in found.warnings)
    assert "perfectly trained" not in found.summary()


def test_every_pair_a_human_tie_is_the_reason_of_every_null():
    found = report(frame([1, 2], [1, 1], preference=0.5, n_votes=2, n_chosen=1, n_rejected=2))
    assert {(e.value, e.reason) for e in found.estimates.values()} == {(None, "every pair is a human tie")}
    assert found.summary() == "No ranking accuracy: every pair is a human tie."


def test_flips_of_a_reference_that_is_always_right_or_wrong_have_a_reason():
    right, wrong = report(frame([1], [1])).estimates, report(frame([1], [-1])).estimates
    assert right["learned_of_wrong"].reason == "the reference ranks every pair right"
    assert wrong["lost_of_right"].reason == "the reference ranks no pair right"
    assert (right["lost_of_right"].value, wrong["learned_of_wrong"].value) == (0.0, 1.0)


def test_under_20_prompts_there_are_values_without_intervals():
    for n, interval in ((19, False), (20, True)):
        table = pd.concat([frame(np.arange(n) - 5.0, prompt_id=[f"p{i}" for i in range(n)])] * 2)
        accuracy = report(table).estimates["accuracy"]
        assert accuracy.value == (n - 5.5) / n
        assert (accuracy.low is not None, accuracy.high is not None) == (interval, interval)
        assert interval or accuracy.reason == "19 clusters (prompts): an interval needs 20"


@pytest.mark.parametrize(("margin", "low", "high"), [(1, 50 / (50 + Z2), 1.0), (-1, 0.0, Z2 / (50 + Z2))])
def test_all_or_none_right_has_the_wilson_interval_of_the_prompts(margin, low, high):
    table = frame([margin] * 150, prompt_id=[f"p{i % 50}" for i in range(150)])
    accuracy = report(table).estimates["accuracy"]
    assert (accuracy.low, accuracy.high) == pytest.approx((low, high))  # .928652 of 50 of 50


# ---- the limit R*


def test_the_idealised_table_equals_a_naive_loop():
    table = mixed()
    found = report(table, betas=[0.05, 2.0]).tables["idealized"]
    assert set(found.smoothing) == set(SMOOTHINGS)
    assert {0.05, 0.1, 2.0} <= set(found.beta)
    rows = table[table.preference != 0.5]
    apart = found.beta.diff(-1).abs() > 1e-8 * found.beta  # two pairs may share a step up to rounding
    assert apart.sum() > 150
    for step in found[apart].itertuples():
        right = 0
        for row in rows.itertuples():
            p = smooth_preference(row.preference * row.n_votes, row.n_votes, step.smoothing)
            beta = step.beta * (1 + 1e-9)  # a value holds from its step on, and at the step itself rounding decides
            right += row.reference_chosen - row.reference_rejected + logit(p) / beta > 0
        assert step.value == pytest.approx(right / len(rows))
        assert step.low <= step.value <= step.high


def test_the_table_at_the_training_beta_is_the_estimate():
    found = report(mixed(), beta=0.3, smoothing="laplace")
    row = found.tables["idealized"].query("smoothing == 'laplace' and beta == 0.3").iloc[0]
    ideal = found.estimates["idealized_accuracy"]
    assert (row.value, row.low, row.high) == (ideal.value, ideal.low, ideal.high)


@pytest.mark.parametrize(("beta", "share"), [(0.5, 1.0), (1.0, 2 / 3), (1.2, 1 / 3), (2.0, 0.0)])
def test_three_answers(beta, share):
    """T1, with the judge's probabilities as preference and the optimum as policy."""
    w, lost = np.array([1, 2, 2]), np.array([0, 0, 1])
    reference, reward = np.log([0.6, 0.3, 0.1]), np.array([0.0, 1.0, 2.0])
    policy = reference + reward / beta
    table = pd.DataFrame({"policy_chosen": policy[w], "policy_rejected": policy[lost]})
    table["reference_chosen"], table["reference_rejected"] = reference[w], reference[lost]
    table["preference"] = 1 / (1 + np.exp(reward[lost] - reward[w]))
    found = report(table, beta=beta)
    assert found.estimates["idealized_accuracy"].value == pytest.approx(share)
    assert found.estimates["accuracy"].value == pytest.approx(share)
    assert (found.estimates["gap"].value, found.estimates["reference_accuracy"].value) == (0.0, 0.0)
    assert found.estimates["reward_accuracy"].value == 1.0
    assert found.pairs.beta_crit.tolist() == pytest.approx([1 / math.log(2), 2 / math.log(6), 1 / math.log(3)])
    assert found.estimates["mean_margin"].value == pytest.approx(4 / 3)


def test_gaps_are_paired_on_the_rows_that_have_a_strength():
    """40 pairs of four votes, all at their limit, and 40 of one label, all wrong: the gap is 0 on every pair."""
    table = frame([1, -1] * 20 + [-1] * 40, [1, -50] * 20 + [1] * 40, preference=1.0, n_votes=[4.0] * 40 + [1.0] * 40)
    found = report(table, beta=1.0)
    ideal, gap = found.estimates["idealized_accuracy"], found.estimates["gap"]
    assert (ideal.value, ideal.n, found.estimates["accuracy"].value) == (0.5, 40, 0.25)
    assert (gap.value, gap.low, gap.high, gap.n) == (0.0, -wilson(0.0, 40)[1], wilson(0.0, 40)[1], 40)
    assert ideal.high - ideal.low > 0.2
    assert any("rest on 40 of 80 pairs" in warning for warning in found.warnings)


def test_the_median_gap_takes_the_median_limit_over_betas():
    table = mixed()
    rows = table[table.preference != 0.5]
    p = smooth_preference(rows.preference * rows.n_votes, rows.n_votes)
    limits = idealized_accuracy(rows.reference_chosen - rows.reference_rejected, p, [0.1, 1.0, 0.02])
    found = report(table, betas=[0.1, 1.0, 0.02]).estimates
    assert found["gap_median"].value == pytest.approx(np.median(limits) - found["accuracy"].value)
    alone = report(table, betas=[10.0, 0.1, 0.1]).estimates  # the median is R*(.1) in every draw
    assert (alone["gap_median"].low, alone["gap_median"].high) == (alone["gap"].low, alone["gap"].high)


def test_a_judge_is_clipped_and_not_smoothed():
    table = frame([1] * 3, [-20, -60, -80], preference=[0.75, 0.9999, 1.0])
    assert report(table).pairs.preference.tolist() == [0.75, 0.999, 0.999]
    assert report(table, beta=0.1).pairs.difficulty_class.tolist() == ["hard", "flippable", "hard"]
    assert report(table).tables["idealized"].groupby("beta").value.nunique().max() == 1


def test_probabilities_that_are_all_half_or_one_are_labels():
    assert value(frame([1] * 3, [-1] * 3, preference=[1.0, 0.5, 0.0]), "idealized_accuracy") is None


def test_an_assumed_preference_is_said_wherever_it_counts():
    margin = np.array([-1, -11, 5.0])
    found = report(frame([1] * 3, margin), assumed_preference=0.75)
    assert found.estimates["idealized_accuracy"].value == pytest.approx(idealized_accuracy(margin, 0.75, 0.1))
    for name in ("idealized_accuracy", "gap", "gap_median", "share_flippable", "share_hard"):
        assert found.estimates[name].label.endswith("assuming the strength of preference of 3 pairs")
    assert "assum" not in found.estimates["accuracy"].label
    assert set(found.tables["idealized"].smoothing) == {found.settings["smoothing"]} == {"assumed"}
    assert "(under the assumed strength of preference)" in found.summary()
    assert any("assumed_preference" in warning for warning in found.warnings)


def test_an_assumed_preference_fills_in_where_only_some_pairs_have_votes():
    table = frame([1] * 3, [-10.0] * 3, preference=1.0, n_votes=[4.0, 1.0, 1.0])
    found = report(table, assumed_preference=0.7)
    assert found.pairs.preference.tolist() == pytest.approx([0.9, 0.7, 0.7])
    assert found.estimates["idealized_accuracy"].value == pytest.approx(1 / 3)  # ln 9 > 1 > ln (7/3)
    assert "assuming the strength of preference of 2 pairs" in found.estimates["gap"].label
    assert "(under the assumed strength of preference)" in found.summary()


def test_classes_of_difficulty_and_their_shares():
    c = float(logit(0.75))
    table = frame([0] * 4, preference=0.75, policy_chosen=0.0, policy_rejected=0.0)
    table["reference_chosen"], table["reference_rejected"] = [0.0, 1.0, -c, -c * (1 - 1e-9)], 0.0
    found = report(table, beta=1.0)
    assert found.pairs.difficulty_class.tolist() == ["already_right", "already_right", "hard", "flippable"]
    assert found.pairs.beta_crit.tolist() == pytest.approx([math.inf, math.inf, 1.0, 1.0])
    assert not np.signbit(found.pairs.difficulty[0])  # 0, shown without a minus
    assert (found.estimates["share_hard"].value, found.estimates["share_flippable"].value) == (0.25, 0.25)
    assert found.estimates["idealized_accuracy"].value == 0.75


def test_pairs_that_need_a_low_loss_are_counted():
    at = math.log(math.expm1(0.05)) / 0.1  # reference margin whose threshold is the loss .05
    table = frame([0, 0, 0, 0], np.array([at - 0.01, at + 0.01, 0.0, 100.0]))
    assert value(table, "share_needs_low_loss") == 0.25
    assert report(table).pairs.threshold[0] == pytest.approx(0.05, abs=1e-3)


# ---- flips, displacement, length


def test_flips():
    """A tie, of the policy or of the reference, is right only where ties="ge"."""
    table = frame([1, 1, 1, 1, -1, -1, 0], [1, -1, -1, 0, 1, -1, 1])
    flips = report(table).tables["flips"]
    cells = {(row.reference_right, row.policy_right): row.n for row in flips.itertuples()}
    assert cells == {(True, True): 1, (True, False): 2, (False, True): 3, (False, False): 1}
    assert flips.share.tolist() == pytest.approx((flips.n / 7).tolist())
    for ties, learned, lost in (("half", 3 / 4, 2 / 3), ("strict", 3 / 4, 2 / 3), ("ge", 2 / 3, 1 / 4)):
        assert value(table, "learned_of_wrong", ties=ties) == pytest.approx(learned)
        assert value(table, "lost_of_right", ties=ties) == pytest.approx(lost)


@pytest.mark.parametrize("per_prompt", [False, True])
def test_the_p_of_a_gain_is_mcnemars_only_where_every_pair_is_its_own_prompt(per_prompt):
    table = frame([1] * 12 + [-1] * 4 + [1] * 9, [-1] * 12 + [1] * 4 + [1] * 9)
    if per_prompt:
        table["prompt_id"] = ["a"] * 12 + ["b"] * 4 + ["c"] * 9  # sums 12, -4, 0: no flip changes |sum| below 8
    p = report(table).estimates["gain_p"]
    assert p.value == pytest.approx(1.0 if per_prompt else mcnemar(12, 4))  # .076813
    assert ("McNemar" in p.method) is not per_prompt


def test_the_p_of_prompts_that_all_gain_is_that_of_their_sign_flips():
    sizes = range(1, 6)
    table = frame([1] * 15, [-1] * 15, prompt_id=[f"p{k}" for k in sizes for _ in range(k)])
    assert value(table, "gain_p") == 2 / 2**5


def test_a_half_gain_is_not_counted_by_mcnemar():
    assert "sign flip" in report(frame([0, 1], [-1, 1])).estimates["gain_p"].method


def test_displacement():
    table = frame(
        [0] * 4, policy_chosen=[-3.0, -1.0, -6.0, -2.0], policy_rejected=[-4.0, -9.0, -1.0, -4.0], n_rejected=4
    )
    table = table.assign(reference_chosen=-2.0, reference_rejected=-4.0, n_chosen=2)
    found = report(table)
    means = {name: found.estimates[f"displacement_{name}"].value for name in ("chosen", "rejected")}
    assert means == pytest.approx({"chosen": (-1 + 1 - 4 + 0) / 4, "rejected": (0 - 5 + 3 + 0) / 4})
    assert found.estimates["displacement_chosen_per_token"].value == pytest.approx(-4 / 4 / 2)
    assert found.estimates["displacement_rejected_per_token"].value == pytest.approx(-2 / 4 / 4)
    assert found.estimates["share_chosen_fell"].value == 0.5
    quadrants = found.tables["displacement"].set_index(["chosen_fell", "rejected_fell"])
    assert quadrants.n.to_dict() == {(False, False): 1, (False, True): 1, (True, False): 2, (True, True): 0}
    assert quadrants.loc[(True, False), ["mean_chosen", "mean_rejected"]].tolist() == [-2.5, 1.5]


def test_residualised_accuracy():
    """T21, with lengths that differ by 1, -1 and 2."""
    table = frame([2, -1, 1], [0, 0, 0], n_chosen=[2, 1, 3], n_rejected=[1, 2, 1])
    for name in ("residualised_accuracy", "reward_residualised_accuracy"):
        assert value(table, name) == pytest.approx(1 / 3)
    assert value(table, "accuracy") == value(table, "longer_wins") == pytest.approx(2 / 3)
    assert value(table, "accuracy_over_length") == 0.0


def test_the_slope_on_length_is_fitted_anew_in_every_draw():
    table = mixed()
    rows = table[table.preference != 0.5]
    d, dn = (rows.policy_chosen - rows.policy_rejected).to_numpy(), (rows.n_chosen - rows.n_rejected).to_numpy()
    names = sorted(set(rows.prompt_id))
    members = [np.flatnonzero(rows.prompt_id == name) for name in names]
    draws = []
    for sample in np.random.default_rng(5).integers(0, len(names), (100, len(names))):
        drawn = np.concatenate([members[i] for i in sample])
        rest = d[drawn] - (d[drawn] @ dn[drawn]) / (dn[drawn] @ dn[drawn]) * dn[drawn]
        draws.append(np.mean((rest > 1e-9) + 0.5 * (np.abs(rest) <= 1e-9)))
    found = report(table, seed=5).estimates["residualised_accuracy"]
    assert (found.low, found.high) == pytest.approx(np.percentile(draws, [2.5, 97.5]))


def test_quarters_of_length_never_split_equal_differences():
    apart = np.repeat([0, 1, 2, 9], [30, 30, 30, 30])
    table = frame(np.tile([1, 1, -1], 40), n_chosen=10 + apart, n_rejected=10).sample(frac=1, random_state=0)
    quarters = report(table).tables["length"]
    assert quarters[["shortest", "longest", "n"]].to_numpy().tolist() == [[d, d, 30] for d in (0, 1, 2, 9)]
    assert quarters.accuracy.tolist() == pytest.approx([2 / 3] * 4)
    assert quarters.shorter_wins.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert (quarters.accuracy_low < quarters.accuracy).all()
    assert quarters.reward_accuracy.isna().all()
    table["n_chosen"] = np.where(np.arange(120) < 100, 10, 14)
    assert report(table).tables["length"].n.tolist() == [100, 20]


def ranking(lost: int | None, n: int = 30) -> pd.DataFrame:
    """n rankings of 4 responses, 3 best, all ranked right; response `lost` of the first ranking was set aside."""
    rows = [
        {"ranking_id": f"r{i}", "prompt_id": f"p{i}", "response_chosen": a, "response_rejected": b, "n_responses": 4,
         "policy_chosen": float(a), "policy_rejected": float(b)}
        for i in range(n) for a in range(4) for b in range(a)
        if i or lost not in (a, b)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("lost", [0, 3])
def test_a_ranking_that_lost_a_response_is_not_judged_as_a_shorter_one(lost):
    found = report(ranking(lost))
    exact = found.estimates["orders_exact"]
    assert (exact.value, exact.n, exact.null_value) == (1.0, 29, pytest.approx(1 / 24))
    assert any("1 of 30 rankings lost a pair" in warning for warning in found.warnings)


def test_whole_rankings_are_judged_without_a_warning():
    found = report(ranking(None))
    assert found.estimates["orders_exact"].n == 30
    assert not any("rankings" in warning for warning in found.warnings)


def test_ties_of_the_policy_are_no_missing_reference():
    tied = {"policy_chosen": -1.0, "policy_rejected": -1.0, "reference_chosen": -1.0, "reference_rejected": -2.0}
    found = report(ranking(None).assign(**tied)).estimates
    assert found["orders_tau_b"].reason == "the policy ties all responses of every ranking"
    assert found["orders_exact"].value == 0.0
