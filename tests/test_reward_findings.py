"""What a reward report says: every rule where its interval says so, and not otherwise."""

import numpy as np
import pandas as pd
import pytest
from ranking_tables import frame, mixed

from alignscope import PairScores
from alignscope.diagnose.reward_report import RewardReport, reward_report

ID = "in_distribution"
N = 100
ALL = np.ones(N)
HALF = np.tile([1.0, -1.0], N // 2)
MOST = np.where(np.arange(N) % 10 == 9, -1.0, 1.0)  # 90 of 100
SLIGHT = np.where(np.arange(N) % 20 < 11, 1.0, -1.0)  # 55 of 100: above 1/2, not measurably
UNRELATED = {"n_chosen": np.tile([3, 3, 1, 1], N // 4), "n_rejected": np.tile([1, 1, 3, 3], N // 4)}
RIGHT_IS_SHORT = {"n_chosen": np.tile([1, 3], N // 2), "n_rejected": np.tile([3, 1], N // 2)}  # where HALF is right


def pair(implicit, explicit=None, **more) -> pd.DataFrame:
    if explicit is not None:
        more |= {"explicit_chosen": explicit, "explicit_rejected": 0.0}
    return frame(implicit, np.zeros(len(implicit)), **more)


def elsewhere(implicit, explicit=None, name="x", **more) -> pd.DataFrame:
    """The same on prompts of a set of its own."""
    return pair(implicit, explicit, prompt_hash=[f"{name} {i}" for i in range(len(implicit))], **more)


def wins(explicit: int, implicit: int, name: str) -> pd.DataFrame:
    """Pairs that the explicit, or the implicit, reward alone has right; both have the others."""
    order = np.arange(N)
    return elsewhere(
        np.where(order < explicit, -1.0, 1.0),
        np.where((order >= explicit) & (order < explicit + implicit), -1.0, 1.0),
        name,
    )


def report(tables, **settings) -> RewardReport:
    tables = {ID: tables} if isinstance(tables, pd.DataFrame) else tables
    scores = {name: PairScores.from_frame(table) for name, table in tables.items()}
    return reward_report(scores, **({"bootstrap": 200} | settings))


def said(tables, **settings) -> set[tuple[str, str]]:
    """(severity, first estimate it rests on) of every finding."""
    return {(f.severity, f.rests_on[0].removeprefix("rewards.")) for f in report(tables, **settings).findings}


def sentence(tables, first: str, **settings) -> str:
    return next(f.sentence for f in report(tables, **settings).findings if f.rests_on[0] == f"rewards.{first}")


# ---- the rules


@pytest.mark.parametrize(
    ("rule", "tables", "fires"),
    [
        (("alarm", "implicit_over_length"), pair(HALF, ALL, **RIGHT_IS_SHORT), True),
        (("alarm", "implicit_over_length"), pair(MOST, ALL, **UNRELATED), False),
        (("alarm", "implicit_over_length"), pair(SLIGHT, ALL, **UNRELATED), True),
        (("alarm", "implicit_over_length"), pair(HALF, ALL), False),  # lengths are not known
        (("alarm", "explicit_over_length"), pair(ALL, HALF, **RIGHT_IS_SHORT), True),
        (("alarm", "explicit_over_length"), pair(ALL, MOST, **UNRELATED), False),
        (("info", "gap"), pair(HALF, MOST), True),
        (("info", "gap"), pair(MOST, HALF), True),
        (("info", "gap"), pair(HALF, -HALF), False),
        (("info", "gap"), pair(HALF, SLIGHT), False),
        (("notice", "gap"), pair(HALF, SLIGHT), True),
        (("info", "gap"), pair(MOST, MOST), False),
        (("notice", "gap"), pair(HALF, -HALF), True),  # no gap, though they differ on every pair
        (("notice", "gap"), pair(HALF, MOST), False),
        (("notice", "gap"), pair(MOST, MOST), False),  # nothing to reckon a least gap from
        (("notice", "gap"), pair(HALF[:19], -HALF[:19]), False),  # 19 prompts: no interval
        (("notice", "gap"), pair(HALF[:20], -HALF[:20]), True),
        (("notice", "mean_gap_shifted"), {ID: pair(MOST, MOST), "a": elsewhere(HALF, MOST)}, True),
        (("notice", "mean_gap_shifted"), {ID: pair(HALF, MOST), "a": elsewhere(HALF, HALF)}, False),
        (("notice", "mean_gap_shifted"), {ID: pair(HALF, MOST), "a": elsewhere(MOST, HALF)}, True),
        (("notice", "mean_gap_shifted"), {"a": elsewhere(HALF, SLIGHT)}, False),
        (("notice", "mean_gap_shifted"), {"a": elsewhere(HALF, MOST)}, True),
        (("notice", "excess_drop_a"), {ID: pair(MOST, MOST), "a": elsewhere(HALF, MOST)}, True),
        (("notice", "excess_drop_a"), {ID: pair(MOST, MOST), "a": elsewhere(HALF, HALF)}, False),
        (("notice", "excess_drop_a"), {ID: pair(HALF, MOST), "a": elsewhere(HALF, MOST)}, False),
        (("notice", "excess_drop_a"), {ID: pair(MOST, MOST), "a": elsewhere(MOST, HALF)}, False),
        (("notice", "beta_hat"), pair(22 * MOST), False),  # ln 9 / 22 = .0999
        (("notice", "beta_hat"), pair(100 * MOST), True),  # ratio .22
        (("notice", "beta_hat"), pair(2 * MOST), True),  # ratio 11
        (("notice", "beta_hat"), pair(40 * MOST), False),  # ratio .55, inside the band
        (("notice", "beta_hat"), pair(50 * MOST), False),  # ratio .44: the interval reaches into the band
        (("notice", "beta_hat"), pair(100 * ALL), False),  # separable: no value
    ],
)
def test_a_finding_is_made_where_its_rule_holds(rule, tables, fires):
    assert (rule in said(tables)) is fires


def test_a_gap_in_one_set_is_told_by_its_adjusted_p():
    """Gaps that cancel in the mean; 16 against 4 has p .012, of two sets .024; 15 against 5 .041, of two .083."""
    sure = {ID: pair(MOST, MOST), "a": wins(16, 4, "a"), "b": wins(4, 16, "b")}
    assert ("notice", "mean_gap_shifted") in said(sure)
    text = sentence(sure, "mean_gap_shifted")
    assert "a: +12.0 points" in text
    assert "Holm p 0.024" in text
    assert "b:" not in text  # there the implicit reward is ahead
    assert "mean gap" not in text
    unsure = {ID: pair(MOST, MOST), "a": wins(15, 5, "a"), "b": wins(5, 15, "b")}
    assert report(unsure).estimates["gap_p_a"].value < 0.05
    assert ("notice", "mean_gap_shifted") not in said(unsure)


def test_the_better_reward_is_named():
    assert "the explicit reward is right more often" in sentence(pair(HALF, MOST), "gap")
    assert "the implicit reward is right more often" in sentence(pair(MOST, HALF), "gap")


def test_what_length_alone_does_is_said():
    assert "is not measurably better than" in sentence(pair(HALF, ALL, **RIGHT_IS_SHORT), "implicit_over_length")
    worse = pair(-MOST, ALL, n_chosen=np.where(MOST > 0, 1, 3), n_rejected=2)
    assert "is worse than" in sentence(worse, "implicit_over_length")


@pytest.mark.parametrize(
    ("factor", "word"), [(100.0, "over-confident"), (2.0, "under-trained"), (-22.0, "were not exchanged")]
)
def test_a_beta_that_does_not_fit_is_named(factor, word):
    found = next(f for f in report(pair(factor * MOST)).findings if f.rests_on[0] == "rewards.beta_hat")
    assert word in found.sentence + found.next_step


def test_few_prompts_silence_the_rules():
    lengths = {"n_chosen": 1, "n_rejected": 2}
    tables = {ID: pair(100 * MOST[:19], HALF[:19], **lengths), "a": elsewhere(HALF[:19], ALL[:19])}
    assert said(tables) == {("info", "accuracy_implicit"), ("notice", "accuracy_implicit")}


def test_a_policy_that_is_its_reference_is_an_alarm_and_nothing_else():
    assert said(pair(0 * ALL)) == {("alarm", "accuracy_implicit")}


def test_confounding_is_said_unless_the_training_was_the_same():
    def warned(table: pd.DataFrame, **settings) -> bool:
        return any(text.startswith("confounded") for text in report(table, **settings).warnings)

    assert warned(pair(HALF, MOST))
    assert not warned(pair(HALF, MOST), same_training=True)
    assert not warned(pair(HALF))  # no explicit reward to compare with


# ---- the headline


def test_the_headline_counts_the_sets_that_were_compared():
    tables = {ID: pair(MOST, MOST), "bare": elsewhere(HALF), "a": elsewhere(HALF, MOST)}
    assert report(tables).summary().startswith("In-distribution the implicit reward is right on 90.0 % (")
    assert "over the shifted set a the mean gap is +40.0 points (" in report(tables).summary()
    tables["b"] = elsewhere(HALF, MOST, "b")
    assert "; over 2 shifted sets the mean gap is" in report(tables).summary()


def test_the_headline_says_what_is_missing():
    assert report(pair(MOST)).summary().endswith("; no explicit one: no reward model or explicit scores were given.")
    bare = frame(MOST, explicit_chosen=MOST, explicit_rejected=0.0)
    assert report(bare).summary().endswith("; no implicit one: no reference model was given.")
    assert report(frame(MOST)).summary() == "No in-distribution reward accuracy: no reference model was given."
    shifted = report({"a": elsewhere(HALF, MOST)}).summary()
    assert f"No in-distribution reward accuracy: there is no setting called '{ID}'; over the shifted set a" in shifted


def test_every_finding_rests_on_estimates_first_on_one_with_a_value():
    for tables in (
        mixed(),
        {ID: pair(100 * MOST, HALF, **RIGHT_IS_SHORT), "a": elsewhere(-MOST, MOST)},
        pair(HALF[:3]),
        {"a": elsewhere(HALF, MOST)},
    ):
        found = report(tables)
        assert found.findings
        for finding in found.findings:
            assert finding.section == "rewards"
            assert finding.severity == "info" or finding.next_step
            names = [name.removeprefix("rewards.") for name in finding.rests_on]
            assert set(names) <= set(found.estimates)
            assert found.estimates[names[0]].value is not None or "No in-distribution" in finding.sentence


def test_an_implicit_reward_that_holds_up_better_under_shift_is_told():
    found = {ID: pair(HALF, HALF), "a": elsewhere(ALL, -ALL)}
    assert ("notice", "mean_gap_shifted") in said(found)
    sentences = [finding.sentence for finding in report(found).findings]
    assert any(text.startswith("Under shift the implicit reward is right more often") for text in sentences)
