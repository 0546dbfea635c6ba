"""The reward report on tables of known numbers: exact answers and naive loops, what is null or refused, and why."""

import json
import math

import numpy as np
import pytest
from ranking_tables import frame, mixed
from reward_tables import CREDIT, ID, naive, other, reasons, report, report_of_three, table, three
from scipy.special import expit

from alignscope import InputError, Report
from alignscope.diagnose.calibration import calibration
from alignscope.diagnose.report import Manifest

NO_REFERENCE = "no reference model was given"
NO_EXPLICIT = "no reward model or explicit scores were given"
MANIFEST = Manifest(
    command="", models={}, data={}, settings={}, packages={}, device="cpu", dtype="", seed=0, wall_seconds=0.0
)


# ---- exact numbers


@pytest.mark.parametrize("ties", CREDIT)
def test_every_share_is_the_mean_of_a_naive_loop(ties):
    data = mixed()
    estimates, expected = report(data, ties=ties).estimates, naive(data, ties)
    for name in expected.columns.drop("prompt"):
        assert estimates[name].value == pytest.approx(expected[name].mean()), name
        assert (estimates[name].n, estimates[name].n_clusters) == (114, expected.prompt.nunique())
    length = max(expected.shorter_wins.mean(), expected.longer_wins.mean())
    for which in ("implicit", "explicit"):
        over = estimates[f"{which}_over_length"].value
        assert over == pytest.approx(expected[f"accuracy_{which}"].mean() - length)


@pytest.mark.parametrize("ties", CREDIT)
def test_cells_of_who_is_right_are_counted(ties):
    cells = report(mixed(), ties=ties).tables["agreement"]
    right = naive(mixed(), ties)[["accuracy_implicit", "accuracy_explicit"]] == 1
    for row in cells.itertuples():
        cell = (right.accuracy_implicit == row.implicit_right) & (right.accuracy_explicit == row.explicit_right)
        assert (row.n, row.share) == (cell.sum(), cell.sum() / 114)
    assert cells.n.sum() == 114


def test_the_gap_is_between_the_same_pairs():
    found = report(table([1, 1, -1, -1, 1], [1, -1, 1, 1, 1]))
    values = {name: found.estimates[name].value for name in ("accuracy_implicit", "accuracy_explicit", "gap")}
    assert values == {"accuracy_implicit": 0.6, "accuracy_explicit": 0.8, "gap": pytest.approx(0.2)}
    assert found.estimates["disagreement"].value == 0.6
    assert found.tables["agreement"].n.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(("ties", "mean", "equal"), [("half", 0.625, 0.5), ("strict", 0.5, 0.0), ("ge", 0.75, 1.0)])
def test_ties(ties, mean, equal):
    """T7: margins 1, -1, 0, 2; a policy that is its reference ties on every pair."""
    estimates = report(table([0, 0, 0, 0], [1, -1, 0, 2]), ties=ties).estimates
    assert (estimates["accuracy_explicit"].value, estimates["accuracy_implicit"].value) == (mean, equal)


def test_the_least_gap_that_200_pairs_show():
    """20 % of 200 pairs are right under one reward alone."""
    apart = np.arange(200) < 40
    estimates = report(table(np.where(apart, -1, 1), np.ones(200))).estimates
    assert estimates["minimum_detectable_gap"].value == pytest.approx(0.088594, abs=5e-7)


def test_rewards_that_never_disagree_have_no_least_gap():
    least = report(table(np.ones(30), np.ones(30))).estimates["minimum_detectable_gap"]
    assert (least.value, least.reason) == (None, "the two rewards never disagree on these pairs")


@pytest.mark.parametrize("offset", [0.0, 2.0**40])
def test_scale_is_the_mean_margin_over_the_spread_of_all_rewards(offset):
    data = mixed()
    data[["explicit_chosen", "explicit_rejected"]] += offset
    estimates, judged = report(data).estimates, data[data.preference != 0.5]
    for which, sides in (
        ("implicit", [judged[f"policy_{side}"] - judged[f"reference_{side}"] for side in ("chosen", "rejected")]),
        ("explicit", [judged[f"explicit_{side}"] - offset for side in ("chosen", "rejected")]),
    ):
        expected = np.abs(sides[0] - sides[1]).mean() / np.std(np.concatenate(sides))
        assert estimates[f"scale_{which}"].value == pytest.approx(expected, rel=1e-6)


def test_a_reward_that_is_one_constant_has_no_scale():
    scale = report(table(np.ones(30), np.ones(30), explicit_rejected=1.0)).estimates
    constant = report(table([1.0], [0.1]).assign(explicit_rejected=0.1)).estimates["scale_explicit"]
    assert scale["scale_implicit"].value == 2.0  # |d| = 1, rewards 1 and 0
    assert (constant.value, constant.reason) == (None, "every reward is the same")


def test_brier_score_and_excess_nll_are_those_of_single_votes():
    """T10: margins (0, ln 3, ln 3, ln 9) that say what the votes say, a human tie among them."""
    data = table(np.zeros(4), np.log([1, 3, 3, 9]), preference=[0.5, 0.75, 0.75, 0.9], n_votes=20)
    estimates = report(data).estimates
    assert estimates["brier_explicit"].value == pytest.approx(0.17875)
    assert estimates["excess_nll_explicit"].value == pytest.approx(0.0, abs=1e-12)
    assert estimates["ece_explicit"].n == 4


def test_beside_the_ece_stands_what_a_calibrated_scorer_shows_by_chance():
    """Margins of ln 3 claim .75, and 30 of 40 single votes agree; half of all votes would be off by a quarter."""
    explicit, near, halves = (np.log(3) * np.where(np.arange(40) < n, -1.0, 1.0) for n in (10, 7, 20))
    fine, close, off = (report(table(np.ones(40), margins)).estimates for margins in (explicit, near, halves))
    own = calibration(explicit)
    for name, expected in (("", own.ece), ("_expected", own.expected_ece), ("_expected_p95", own.expected_ece_p95)):
        number = fine[f"ece_explicit{name}"]
        assert (number.value, number.n, number.n_clusters, number.unit) == (pytest.approx(expected), 40, 40, "share")
    most = fine["ece_explicit_expected_p95"].value
    assert fine["ece_explicit"].value == pytest.approx(0, abs=1e-12)
    assert off["ece_explicit"].value == pytest.approx(0.25)
    assert off["ece_explicit_expected_p95"].value == most  # of the same margins, whatever the votes say
    assert 0 < most < 0.25
    within = f"{most:.3f}, which 95 % of calibrated scorers stay within"
    assert fine["ece_explicit"].method.endswith(f"; not above {within}")
    assert close["ece_explicit_expected"].value < close["ece_explicit"].value < most  # above the mean is not enough
    assert close["ece_explicit"].method.endswith(f"; not above {within}")
    assert off["ece_explicit"].method.endswith(f"; above {within}: more than chance")


def test_calibration_sees_beta_times_the_implicit_margin():
    data = table([10.0, -5.0], preference=1.0, n_votes=1)
    expected = np.mean(expit(-0.2 * np.array([10.0, -5.0])) ** 2)
    assert report(data, beta=0.2).estimates["brier_implicit"].value == pytest.approx(expected)


@pytest.mark.parametrize("votes", [1, 2, 4])
def test_beta_that_made_the_votes_is_found_whatever_their_number(votes):
    """Human ties are half votes for chosen: without them two votes a pair would double beta-hat."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 8, 2000)
    won = rng.binomial(votes, expit(0.1 * margin))
    data = table(margin, votes_chosen=won, votes_rejected=votes - won)
    estimates = report(data, beta=0.2).estimates
    assert estimates["beta_hat"].n == 2000
    assert estimates["beta_hat"].value == pytest.approx(0.1, rel=0.1)  # standard error .004 at one vote
    assert estimates["beta_ratio"].value == pytest.approx(estimates["beta_hat"].value / 0.2)


def test_trl_names_hold_both_trainers():
    data = mixed()
    found = report(data).trl_metrics()
    assert (
        found["eval_rewards/accuracies"]
        == report(data.assign(preference=1.0), ties="strict").estimates["accuracy_implicit"].value
    )
    assert found["eval_margin"] == pytest.approx((data.explicit_chosen - data.explicit_rejected).mean())
    assert report({"maths": data}).trl_metrics() == {}


def test_quarters_hold_every_pair_once_and_the_same_gap():
    found = report(mixed().assign(overlap=np.linspace(0, 1, 120)))
    split, gap = found.tables["disagreement"], found.estimates["gap"].value
    for _kind, quarters in split.groupby("kind"):
        assert quarters.n.sum() == 114
        assert np.average(quarters.gap, weights=quarters.n) == pytest.approx(gap)
        assert (quarters.lowest.to_numpy()[1:] >= quarters.highest.to_numpy()[:-1]).all()
    assert set(split.kind) == {"length", "overlap", "difficulty"}


# ---- what is null, and why


def test_without_a_reference_the_explicit_numbers_are_left():
    found = report(frame([1.0] * 30, explicit_chosen=1.0, explicit_rejected=0.0, n_chosen=2, n_rejected=1))
    null = reasons(found)
    for name in ("accuracy_implicit", "gap", "gap_p", "disagreement", "scale_implicit", "beta_hat", "ece_implicit"):
        assert null[name] == NO_REFERENCE
    for name in ("accuracy_explicit", "accuracy_ranking", "explicit_over_length", "scale_explicit", "brier_explicit"):
        assert found.estimates[name].value is not None
    assert not len(found.tables["agreement"])


def test_without_a_reward_model_the_implicit_numbers_are_left():
    found = report(table([1.0, -1.0] * 15))
    null = reasons(found)
    for name in ("accuracy_explicit", "gap", "minimum_detectable_gap", "scale_explicit", "brier_explicit"):
        assert null[name] == NO_EXPLICIT
    assert null["shorter_wins"] == null["accuracy_implicit_normalised"] == "the table holds no token counts"
    assert found.estimates["accuracy_implicit"].value == 0.5
    assert not found.warnings


def test_with_neither_only_the_ranking_is_left():
    found = report({ID: frame([1.0] * 30), "a": frame([1.0] * 30, **other(30))})
    left = {name for name, e in found.estimates.items() if e.value is not None}
    assert left == {"accuracy_ranking", "accuracy_ranking_a"}
    assert reasons(found)["drop_implicit_a"] == NO_REFERENCE
    assert reasons(found)["drop_explicit_a"] == NO_EXPLICIT
    assert reasons(found)["mean_gap_shifted"] == "no shifted setting with both rewards"


def test_without_the_in_distribution_set_the_shifted_ones_are_left():
    tables = three()
    del tables[ID]
    found, whole = report(tables), report_of_three()
    null = reasons(found)
    assert null["gap"] == null["gap_p"] == null["scale_implicit"] == f"there is no setting called '{ID}'"
    assert null["drop_implicit_maths"] == "no in-distribution set was given"
    assert null["beta_hat"] == null["ece_explicit"] == "there is no in-distribution setting"
    assert found.estimates.keys() == whole.estimates.keys()
    assert found.estimates["gap_maths"].value == whole.estimates["gap_maths"].value


def test_a_scorer_that_is_absent_in_one_set_leaves_the_drops_null():
    here, there = table([1.0] * 30, [1.0] * 30, **other(30)), table([1.0] * 30)
    assert reasons(report({ID: there, "a": here}))["drop_explicit_a"] == f"in-distribution: {NO_EXPLICIT}"
    assert reasons(report({ID: here, "a": there}))["excess_drop_a"] == NO_EXPLICIT


def test_fewer_than_20_prompts_have_values_without_intervals():
    estimates = report({ID: table([1, -1] * 9 + [1], [1, 1] * 9 + [1]), "a": mixed()}).estimates
    for name in ("accuracy_implicit", "gap", "disagreement", "scale_explicit", "brier_implicit", "drop_implicit_a"):
        e = estimates[name]
        assert (e.value is None, e.low, e.reason) == (False, None, "19 clusters (prompts): an interval needs 20"), name
    assert estimates["gap_a"].low is not None


def test_one_pair():
    found = report(table([1.0], [-1.0]))
    assert (found.estimates["gap"].value, found.estimates["gap_p"].value) == (-1.0, 1.0)
    assert found.summary().startswith("In-distribution the implicit reward is right on 100.0 %")


def test_human_ties_alone_leave_no_accuracy():
    found = report(table([1.0] * 30, [1.0] * 30, preference=0.5, n_votes=2))
    assert reasons(found)["accuracy_implicit"] == reasons(found)["gap_p"] == "no pair is left in this setting"
    assert (found.counts["pairs"], found.counts["human_tie"]) == (0, 30)
    assert "in_distribution: no pair is left" in found.warnings
    assert found.estimates["beta_hat"].value == pytest.approx(0.0, abs=1e-9)


def test_an_empty_set_has_its_own_reason():
    found = report({ID: mixed().iloc[:0], "a": mixed()})
    assert reasons(found)["accuracy_explicit"] == reasons(found)["brier_implicit"] == "no pair is left in this setting"


def test_pairs_without_an_explicit_score_leave_both_rewards_and_are_counted():
    explicit = np.array([1.0, np.nan, np.inf, -1.0])
    found = report(table([1, -1, -1, 1], explicit))
    assert (found.counts["pairs"], found.counts["no_explicit"]) == (2, 2)
    assert found.estimates["accuracy_implicit"].value == 1.0
    assert found.tables["tests"].left_out.tolist() == [2]
    assert any("2 pairs have no finite explicit reward" in text for text in found.warnings)


def test_rows_set_aside_before_are_counted():
    data = table([1.0] * 3, [1.0] * 3)
    data.loc[1, "policy_chosen"] = np.nan
    assert report(data).counts["set_aside_non_finite_policy"] == 1


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta=0.0: expected a positive, finite number"),
        ({"beta": math.inf}, "beta=inf"),
        ({"ties": "third"}, "ties='third': choose from half, strict, ge"),
        ({"bootstrap": 0}, "bootstrap=0: expected at least 1 draw"),
        ({"shifts": {"c": "prompt shift"}}, "no shifted set 'c'; there are: a"),
        ({"shifts": {ID: "prompt shift"}}, "no shifted set 'in_distribution'"),
        ({"shifts": {"a": "domain"}}, "'domain' of 'a' is unknown; choose from prompt shift, response shift"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        report({ID: mixed(), "a": mixed(seed=1)}, **settings)


@pytest.mark.parametrize("name", ["", "two words", "a.b", "a/b", "é", "p", "p_maths", "normalised"])
def test_names_that_cannot_end_the_name_of_an_estimate_are_refused(name):
    with pytest.raises(InputError, match="names of estimates end in"):
        report({ID: mixed(), name: mixed(seed=1)})


def test_no_setting_and_no_pair_are_refused():
    with pytest.raises(InputError, match="no setting was given"):
        report({})
    with pytest.raises(InputError, match="no pair was scored"):
        report({ID: mixed().iloc[:0], "a": mixed().iloc[:0]})


# ---- the report that is saved


@pytest.mark.parametrize(
    "tables",
    [
        three(),
        {"a": mixed()},
        {ID: frame([1.0] * 30), "a": mixed()},
        {ID: mixed(), "a": mixed()},
        {ID: table([1.0], [1.0])},
        {ID: table([1.0] * 30, [1.0] * 30, preference=0.5), "a": mixed()},
    ],
    ids=["whole", "no base", "nothing to compare", "nothing left", "one pair", "human ties"],
)
def test_a_saved_report_holds_no_nan_and_reads_back_the_same(tables, tmp_path):
    found = report(tables, bootstrap=20)
    saved = Report.assemble("title", "question", MANIFEST, [found.section()])
    saved.save(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert Report.load(tmp_path) == saved
    for e in found.estimates.values():
        assert e.reason or e.low is not None or e.level is None
        assert e.value is not None or e.reason


def test_every_number_of_a_setting_stands_in_the_table_by_setting():
    found = report_of_three()
    by_setting = found.to_frame()
    for row in by_setting.itertuples():
        e = found.estimates[row.estimate if row.setting == ID else f"{row.estimate}_{row.setting}"]
        assert (row.value, row.n, row.unit) == (pytest.approx(e.value), e.n, e.unit)
        assert row.shift == {ID: "in-distribution"}.get(row.setting, "prompt shift")
    assert set(by_setting.setting) == set(three())


def test_a_row_a_pair_says_who_is_right():
    pairs = report({ID: table([1.0, -2.0], [-0.5, 0.25])}, beta=0.5).to_frame("pairs")
    assert pairs.implicit_margin.tolist() == [0.5, -1.0]
    assert pairs.explicit_margin.tolist() == [-0.5, 0.25]
    assert (pairs.implicit_right.tolist(), pairs.explicit_right.tolist()) == ([1.0, 0.0], [0.0, 1.0])
    with pytest.raises(KeyError, match="no table 'nothing'; choose from estimates, by_setting"):
        report(mixed()).to_frame("nothing")
