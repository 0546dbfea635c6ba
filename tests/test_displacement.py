"""Where the probability went: closed forms, then the prediction and when a fall is said to exceed it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_tables import mixed

from alignscope import PairScores, ranking_report
from alignscope.diagnose.companions import companion_sections
from alignscope.diagnose.displacement import beyond_sampling, displacement_table
from alignscope.diagnose.report import Estimate

QUADRANTS = ("both_rose", "chosen_rose_rejected_fell", "chosen_fell_rejected_rose", "both_fell")
NOISE = np.tile([-0.125, 0.125], 20)


def test_means_a_sequence_and_a_token_by_hand():
    table = displacement_table([-2.0, 4.0], [-6.0, 3.0], ([2, 4], [3, 1]), ["a", "b"]).estimates
    values = {name: table[name].value for name in ("chosen", "rejected", "chosen_per_token", "rejected_per_token")}
    assert values == {"chosen": 1.0, "rejected": -1.5, "chosen_per_token": 0.0, "rejected_per_token": 0.5}
    assert (table["chosen"].unit, table["chosen_per_token"].unit) == ("nats a completion", "nats a token")
    assert (table["share_chosen_fell"].value, table["chosen_absolute"].value) == (0.5, 3.0)


def test_lengths_may_be_two_columns():
    rows = [[2, 3], [4, 1]]
    one = displacement_table([-2.0, 4.0], [-6.0, 3.0], rows, ["a", "b"])
    two = displacement_table([-2.0, 4.0], [-6.0, 3.0], ([2, 4], [3, 1]), ["a", "b"])
    assert one.estimates == two.estimates


def test_the_four_quadrants_are_counted_and_zero_is_a_rise():
    table = displacement_table([1.0, 0.0, -1.0, -1.0, -2.0], [0.0, -1.0, 2.0, -1.0, -1.0], None, list("abcde"))
    assert [table.estimates[name].value for name in QUADRANTS] == [0.2, 0.2, 0.2, 0.4]
    assert "Both fell in 40.0 % of the pairs, chosen alone in 20.0 %" in table.summary()


pairs = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=25)


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_quadrants_sum_to_one_and_agree_with_the_share_that_fell(rows):
    chosen, rejected = np.array(rows, dtype=float).T
    e = displacement_table(chosen, rejected, None, np.arange(len(rows)), bootstrap=2).estimates
    assert sum(e[name].value for name in QUADRANTS) == pytest.approx(1.0)
    assert e["chosen_fell_rejected_rose"].value + e["both_fell"].value == pytest.approx(e["share_chosen_fell"].value)


def test_twenty_prompts_make_intervals_and_fewer_a_reason():
    few, enough = (displacement_table(NOISE, NOISE, None, np.arange(40) % n, bootstrap=50) for n in (19, 20))
    assert few.estimates["chosen"].reason == "19 clusters (prompts): an interval needs 20"
    assert enough.estimates["chosen"].low < 0 < enough.estimates["chosen"].high
    assert few.estimates["both_fell"].low is None


def test_lengths_and_samples_that_are_not_there_are_named():
    e = displacement_table([1.0], [1.0], None, ["a"]).estimates
    assert (e["chosen_per_token"].value, e["chosen_per_token"].reason) == (None, "the table holds no token counts")
    assert (e["on_policy"].value, e["on_policy"].reason) == (None, "no samples of the reference were given")


def test_without_pairs_every_number_says_so():
    table = displacement_table([], [], None, [])
    assert {e.reason for name, e in table.estimates.items() if name != "on_policy"} == {"no pairs"}
    assert table.summary() == "Not known: no pairs."
    assert (table.beyond_sampling, table.reason) == (None, "no samples of the reference were given")


def test_the_prediction_is_the_mean_of_the_reference_s_samples_by_prompt():
    samples = np.repeat([-1.0, -3.0], 20)
    alone = displacement_table(NOISE, NOISE, None, np.arange(40), reference_sample_log_ratio=samples)
    shared = displacement_table(
        NOISE, NOISE, None, np.arange(40), reference_sample_log_ratio=samples, sample_clusters=np.arange(40) // 20
    )
    assert (alone.estimates["on_policy"].value, alone.estimates["on_policy"].n_clusters) == (-2.0, 40)
    assert (shared.estimates["on_policy"].value, shared.estimates["on_policy"].low) == (-2.0, None)
    assert (shared.beyond_sampling, shared.reason) == (None, "2 clusters (prompts): an interval needs 20")


@pytest.mark.parametrize(
    ("chosen", "sampled", "beyond"), [(-2.0, -1.0, True), (-1.0, -1.0, False), (-0.5, -1.0, False), (0.5, 1.0, False)]
)
def test_a_fall_beyond_sampling_needs_intervals_apart_and_below_zero(chosen, sampled, beyond):
    table = displacement_table(
        chosen + NOISE, NOISE, None, np.arange(40), reference_sample_log_ratio=sampled + NOISE, bootstrap=100
    )
    assert (table.beyond_sampling, table.reason) == (beyond, None)
    assert ("more than sampling from the reference explains" in table.summary()) == beyond


def test_intervals_that_touch_are_not_apart():
    def estimate(low, high):
        return Estimate(label="", value=(low + high) / 2, low=low, high=high, n=1, method="")

    assert beyond_sampling(estimate(-3.0, -2.0), estimate(-2.0, -1.0)) is False
    assert beyond_sampling(estimate(-3.0, -2.1), estimate(-2.0, -1.0)) is True


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"rejected_change": [1.0]}, "expected one a pair"),
        ({"clusters": ["a"]}, "expected one a pair"),
        ({"chosen_change": [1.0, math.nan]}, "not finite"),
        ({"lengths": ([1, 2], [1, 0])}, "at least 1"),
        ({"lengths": [1, 2]}, "expected tokens of chosen and rejected"),
        ({"reference_sample_log_ratio": [math.inf]}, "finite"),
        ({"reference_sample_log_ratio": [1.0], "sample_clusters": ["a", "b"]}, "one prompt a sample"),
    ],
)
def test_bad_input_is_refused(more, match):
    given = {"chosen_change": [1.0, -1.0], "rejected_change": [1.0, 1.0], "lengths": None, "clusters": ["a", "b"]}
    with pytest.raises(ValueError, match=match):
        displacement_table(**(given | more))


def test_the_section_of_a_report_holds_the_same_numbers():
    scores = PairScores.from_frame(mixed())
    section = companion_sections(scores, ranking_report(scores, bootstrap=100))[1].section
    table = mixed()[mixed().preference != 0.5]
    changes = (table[f"policy_{side}"] - table[f"reference_{side}"] for side in ("chosen", "rejected"))
    lengths = (table.n_chosen.to_numpy(), table.n_rejected.to_numpy())
    clusters = np.array([f"id {name}" for name in table.prompt_id])
    alone = displacement_table(*(c.to_numpy() for c in changes), lengths, clusters, bootstrap=100)
    for name in (*QUADRANTS, "chosen", "rejected", "chosen_per_token", "rejected_per_token", "chosen_absolute"):
        here, there = section.estimates[name], alone.estimates[name]
        assert (here.label, here.unit, here.n, here.n_clusters) == (there.label, there.unit, there.n, there.n_clusters)
        assert [here.value, here.low, here.high] == pytest.approx([there.value, there.low, there.high])
