"""What a ranking report says: every rule where it holds and where not, the self-test, and what must change nothing."""

import math

import numpy as np
import pandas as pd
import pytest
from ranking_tables import frame, mixed, report

from alignscope import InputError, PairScores, Report, ranking_report
from alignscope.diagnose.ranking_report import TABLES
from alignscope.diagnose.report import Manifest

HALF = np.tile([1.0, -1.0], 50)
MOST = np.where(np.arange(100) % 10 == 9, -1.0, 1.0)  # 90 of 100
ALL = np.ones(100)
UNRELATED = {"n_chosen": np.tile([3, 3, 1, 1], 25), "n_rejected": np.tile([1, 1, 3, 3], 25)}  # to HALF, nearly to MOST
RIGHT_IS_SHORT = {"n_chosen": np.tile([1, 3], 50), "n_rejected": np.tile([3, 1], 50)}  # where HALF is right
JUDGED = {"preference": 0.9}  # at beta .1 the optimum overcomes 22 nats


def said(table, **settings) -> set[tuple[str, str]]:
    """(severity, first estimate it rests on) of every finding."""
    found = report(table, **settings).findings
    return {(finding.severity, finding.rests_on[0].removeprefix("ranking.")) for finding in found}


def sentence(table, first: str, **settings) -> str:
    return next(f.sentence for f in report(table, **settings).findings if f.rests_on[0] == f"ranking.{first}")


# ---- the rules


@pytest.mark.parametrize(
    ("rule", "table", "fires"),
    [
        (("alarm", "accuracy_over_length"), frame(HALF, **RIGHT_IS_SHORT), True),
        (("alarm", "accuracy_over_length"), frame(MOST, **UNRELATED), False),
        (("notice", "residualised_accuracy"), frame(HALF, **UNRELATED), True),
        (("notice", "residualised_accuracy"), frame(MOST, **UNRELATED), False),
        (("info", "accuracy_gain"), frame(MOST, -MOST), True),
        (("info", "accuracy_gain"), frame(MOST, MOST), False),
        (("notice", "accuracy_gain"), frame(-MOST, MOST), True),
        (("notice", "accuracy_gain"), frame(MOST, MOST), False),
        (("info", "reward_accuracy"), frame(-ALL, -8 * ALL), True),  # moved right, and still wrong
        (("info", "reward_accuracy"), frame(-ALL, -ALL + HALF), False),  # moved right by chance
        (("info", "reward_accuracy"), frame(ALL, -8 * ALL), False),  # moved right, and the ranking with it
        (("info", "gap"), frame(-ALL, -10 * ALL, **JUDGED), True),
        (("info", "gap"), frame(ALL, -10 * ALL, **JUDGED), False),
        (("info", "gap"), frame(-ALL, -30 * ALL, **JUDGED), False),  # the optimum is wrong too
        (("info", "gap"), frame(-ALL, -10 * ALL), False),  # no strength of preference
        (("notice", "dpo_loss"), frame(-90 * ALL, ALL), True),
        (("notice", "dpo_loss"), frame(90 * ALL, ALL), False),
        (("notice", "displacement_chosen"), frame(-ALL, ALL), True),
        (("notice", "displacement_chosen"), frame(HALF, 0 * ALL), False),
        (("notice", "displacement_chosen"), frame(ALL, -ALL), False),
        (("notice", "displacement_chosen"), frame(-ALL / 8192, 0 * ALL), False),  # what two float32 scorers differ by
        (("notice", "accuracy"), frame(ALL[:19]), True),  # 19 prompts
        (("notice", "accuracy"), frame(ALL[:20]), False),
        (("alarm", "accuracy"), mixed(), False),
    ],
)
def test_a_finding_is_made_where_its_rule_holds(rule, table, fires):
    assert (rule in said(table)) is fires


def test_a_reward_that_moved_right_is_told_beside_a_ranking_that_fell():
    """30 pairs lose 16 nats and their place, 70 gain 4 and stay wrong: the rewards say 70 % right, the ranking lost."""
    lost = np.arange(100) < 30
    table = frame(np.where(lost, -8.0, -4.0), np.where(lost, 8.0, -8.0))
    assert {("info", "reward_accuracy"), ("notice", "accuracy_gain")} <= said(table)


@pytest.mark.parametrize("n", [20, 57, 100, 805])
def test_a_policy_that_hardly_moved_is_not_called_anything(n):
    """Whatever the rounding of means of ln 2."""
    margin = np.resize(HALF, n) * 3
    table = frame(margin, margin, **JUDGED)
    table.loc[0, "policy_chosen"] += 2**-20
    assert said(table) <= {("info", "accuracy"), ("info", "gap")}


def test_a_policy_that_is_its_reference_is_an_alarm_and_nothing_else():
    assert said(frame(3 * HALF, 3 * HALF, **JUDGED)) == {("alarm", "accuracy"), ("info", "accuracy")}


def test_few_prompts_silence_the_rules():
    assert said(frame(-90 * ALL[:19], ALL[:19], n_chosen=1, n_rejected=2)) == {
        ("info", "accuracy"),
        ("notice", "accuracy"),
    }


def test_the_rule_of_length_that_does_better_is_named():
    longer = frame(-MOST, n_chosen=np.where(MOST > 0, 3, 1), n_rejected=2)
    assert "preferring the longer answer (90.0 % right) is better than" in sentence(longer, "accuracy_over_length")
    shorter = frame(HALF, **RIGHT_IS_SHORT)
    assert "preferring the shorter answer (50.0 % right) does as well as" in sentence(shorter, "accuracy_over_length")


def test_where_the_probability_went_is_said_with_its_sign():
    table = frame(-ALL, ALL).assign(policy_rejected=-65.0)
    assert "by 2 nats on average (2 to 2); the rejected ones lost 1" in sentence(table, "displacement_chosen")
    table = frame(-ALL, ALL).assign(policy_rejected=-61.0)
    assert sentence(table, "displacement_chosen").endswith("the rejected ones gained 3.")


def test_every_finding_rests_on_estimates_first_on_one_with_a_value():
    for table in (mixed(), frame(-90 * ALL, ALL), frame(MOST, -MOST, **UNRELATED), frame(ALL[:3]), frame(HALF)):
        found = report(table)
        assert found.findings
        for finding in found.findings:
            assert finding.section == "ranking"
            assert finding.severity == "info" or finding.next_step
            names = [name.removeprefix("ranking.") for name in finding.rests_on]
            assert set(names) <= set(found.estimates)
            assert found.estimates[names[0]].value is not None


def test_the_summary_is_one_sentence_with_the_best_rule_of_length():
    table = frame(MOST, HALF, n_chosen=np.where(MOST > 0, 1, 3), n_rejected=2, **JUDGED)
    text = report(table, bootstrap=1).summary()
    assert text.startswith("The policy ranks 90.0 % (")
    for part in ("its reference 50.0 %", "would reach 100.0 % at beta 0.1", "shorter-wins alone gets 90.0 %."):
        assert part in text


# ---- the self-test of Theorem 4.1


def test_scores_of_any_size_pass_the_self_test():
    rng = np.random.default_rng(0)
    for size in (1.0, 1e3, 1e5):
        table = pd.DataFrame(
            {
                f"{role}_{side}": -size * rng.random(300)
                for role in ("policy", "reference")
                for side in ("chosen", "rejected")
            }
        )
        for beta in (1e-3, 0.1, 10.0, 1e3):
            found = report(table, beta=beta, bootstrap=1)
            assert found.counts["theorem_4_1_mismatches"] == 0
            assert ("alarm", "accuracy") not in said(table, beta=beta, bootstrap=1)


def test_scores_too_large_for_their_precision_raise_the_alarm():
    """Near 1e17 neighbouring numbers lie 16 apart, and the log-ratios lose what the margins keep."""
    table = pd.DataFrame({"policy_chosen": [-1e17], "policy_rejected": [-1e17 - 16]})
    table["reference_chosen"], table["reference_rejected"] = 1e17 - 16, 1e17
    found = report(table)
    assert found.counts["theorem_4_1_mismatches"] == 1
    assert found.findings[0].severity == "alarm"
    assert "the scores are damaged" in found.findings[0].sentence


# ---- what must change nothing


def same(one, other, *, but=()):
    for name, estimate in one.estimates.items():
        if name not in but:
            again = other.estimates[name]
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
                (again.value, again.low, again.high)
            ), name


def test_turned_pairs_are_turned_back():
    table = mixed()
    turned = table.copy()
    for role in ("policy", "reference", "explicit", "n"):
        turned[f"{role}_chosen"], turned[f"{role}_rejected"] = table[f"{role}_rejected"], table[f"{role}_chosen"]
    turned["preference"] = 1 - table.preference
    same(report(table), report(turned))
    assert (report(table).counts["swapped"], report(turned).counts["swapped"]) == (0, 114)


def test_constants_of_a_prompt_change_no_order():
    table = mixed()
    moved = table.copy()
    for role in ("policy", "reference"):
        shift = table.prompt_id.map({name: 4.0 * i for i, name in enumerate(sorted(set(table.prompt_id)))})
        for side in ("chosen", "rejected"):
            moved[f"{role}_{side}"] += shift * (1 if role == "policy" else -2)
    moving = {
        name for name in report(table).estimates if "normalised" in name or "displacement" in name or "fell" in name
    }
    same(report(table), report(moved), but=moving)


def test_beta_changes_losses_and_limits_alone():
    small, large = report(mixed(), beta=1e-12), report(mixed(), beta=1e12)
    of_beta = {
        "idealized_accuracy",
        "gap",
        "share_flippable",
        "share_hard",
        "share_needs_low_loss",
        "mean_margin",
        "dpo_loss",
    }
    same(small, large, but=of_beta)
    assert small.estimates["idealized_accuracy"].value == 1.0
    limit = (
        report(mixed(), ties="ge").estimates["reference_accuracy"].value
    )  # equal log-probabilities: any push decides
    assert large.estimates["idealized_accuracy"].value == limit
    assert small.estimates["dpo_loss"].value == pytest.approx(math.log(2))


def test_the_order_of_rows_changes_nothing():
    table = mixed()
    same(report(table), report(table.sample(frac=1, random_state=1)))


def test_every_row_twice_gives_the_same_clustered_interval():
    """T18; with every row its own cluster the interval shrinks by the root of 2."""
    table = mixed().drop(columns="prompt_id")
    twice = pd.concat([table, table], ignore_index=True)
    names = [str(i) for i in range(len(table))]
    once, clustered = report(table.assign(prompt_id=names)), report(twice.assign(prompt_id=names * 2))
    for name, estimate in once.estimates.items():
        again = clustered.estimates[name]
        if name != "gain_p":  # its test goes from pairs to whole prompts
            assert (again.value, again.low, again.high) == (estimate.value, estimate.low, estimate.high), name
        assert again.n == 2 * estimate.n
    naive = report(twice, bootstrap=4000).estimates["accuracy"]
    wide = report(table, bootstrap=4000).estimates["accuracy"]
    assert (wide.high - wide.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(2), rel=0.1)


def test_the_seed_gives_the_draws():
    one, again, other = (report(mixed(), seed=seed).estimates["displacement_chosen"] for seed in (1, 1, 2))
    assert one == again
    assert one.low != other.low


# ---- settings, counts, section


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"beta": math.inf}, "beta=inf"),
        ({"betas": [0.1, 0.0]}, "beta=0.0"),
        ({"betas": []}, "betas is empty"),
        ({"ties": "lenient"}, "choose from half, strict, ge"),
        ({"smoothing": "none"}, "choose from jeffreys, laplace, clip"),
        ({"assumed_preference": 0.5}, "assumed_preference=0.5"),
        ({"assumed_preference": 1.0}, "assumed_preference=1.0"),
        ({"assumed_preference": math.nan}, "assumed_preference=nan"),
        ({"bootstrap": 0}, "bootstrap=0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        report(frame([1]), **settings)


def test_a_table_without_pairs_is_refused():
    with pytest.raises(InputError, match="no pair was scored"):
        report(frame([np.nan]))


def test_counts_name_pairs_prompts_ties_and_rows_set_aside():
    table = frame([0, 0, 1, 1, np.nan, 0], [0, 1, 1, 0, 0, 0], prompt_id=["a", "a", None, None, "b", "c"])
    table["preference"] = [1.0] * 5 + [0.5]  # the last is a human tie
    counts = report(table).counts
    expected = {"pairs": 4, "prompts": 3, "policy_ties": 2, "reference_ties": 2, "reward_ties": 2, "scored": 5}
    assert {name: counts[name] for name in expected} == expected
    assert counts["set_aside_non_finite_policy"] == 1


def test_settings_of_the_scores_and_of_the_report_stand_together():
    scores = PairScores.from_frame(frame([1]), settings={"template": "none", "dtype": "bfloat16"})
    found = ranking_report(scores, betas=[0.5], bootstrap=7, seed=3)
    expected = {"template": "none", "beta": 0.1, "betas": [0.5], "ties": "half", "bootstrap": 7, "seed": 3}
    assert {name: found.settings[name] for name in expected} == expected
    assert found.warnings[-1].startswith("scored in bfloat16")


@pytest.mark.parametrize("table", [mixed(), frame([1.0])])
def test_the_section_survives_saving(tmp_path, table):
    manifest = Manifest(
        command="", models={}, data={}, settings={}, packages={}, device="cpu", dtype="", seed=0, wall_seconds=0.0
    )
    found = report(table, bootstrap=5)
    whole = Report.assemble("Audit", "?", manifest, [found.section()])
    whole.save(tmp_path)
    assert Report.load(tmp_path) == whole
    pd.testing.assert_frame_equal(whole.to_frame("ranking.pairs"), found.pairs)


def test_frames_are_copies_found_by_name():
    found = report(frame([1]))
    for name in TABLES:
        copy = found.to_frame(name)
        copy["new"] = 0
        assert "new" not in found.tables[name]
    assert list(found.to_frame("estimates").estimate) == list(found.estimates)
    with pytest.raises(KeyError, match="choose from estimates, pairs"):
        found.to_frame("pears")
