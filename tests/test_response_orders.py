"""Orders of more than two responses: examples with exact answers, invariances, and a naive oracle."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from alignscope.diagnose.response_orders import ALL_TIED, NOTHING_TO_ORDER, order_agreement, orders_table

unhurried = settings(max_examples=60, deadline=None)
values = st.integers(0, 4).map(float)
two_orders = st.lists(st.tuples(values, values), min_size=2, max_size=7).map(lambda rows: np.array(rows).T)
MEASURES = ["exact", "pairwise", "tau_b"]


def pairs(gold, policy, reference=None, name="r0", prompt="p0"):
    """The pair table of one ranking, oriented so that gold prefers chosen."""
    rows = []
    for i, j in itertools.combinations(range(len(gold)), 2):
        w, l = (i, j) if gold[i] >= gold[j] else (j, i)  # noqa: E741
        sides = {f"policy_{side}": policy[k] for side, k in (("chosen", w), ("rejected", l))}
        sides |= {
            f"reference_{side}": np.nan if reference is None else reference[k]
            for side, k in (("chosen", w), ("rejected", l))
        }
        row = {"ranking_id": name, "prompt_id": prompt, "response_chosen": w, "response_rejected": l}
        rows.append(row | sides | {"human_tie": bool(gold[i] == gold[j])})
    return pd.DataFrame(rows)


# ---- T27: one order


def test_one_swap_of_neighbours_among_four():
    found = order_agreement([4, 3, 2, 1], [4, 2, 3, 1])
    assert found.exact == 0
    assert found.pairwise == pytest.approx(5 / 6)
    assert found.tau_b == pytest.approx(2 / 3)
    assert found.chance_exact == 1 / 24  # 4.17 %
    assert "do not match" in found.summary()


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_by_chance_one_of_n_factorial_orders_is_exact(n):
    found = [order_agreement(np.arange(n), order) for order in itertools.permutations(range(n))]
    assert sum(one.exact for one in found) == 1
    assert np.mean([one.pairwise for one in found]) == pytest.approx(0.5)
    assert np.mean([one.tau_b for one in found]) == pytest.approx(0, abs=1e-12)
    assert found[0].chance_exact == 1 / math.factorial(n)


def test_responses_tied_in_gold_may_stand_either_way_round():
    found = [order_agreement([2, 1, 1, 0], order) for order in itertools.permutations(range(4))]
    assert np.mean([one.exact for one in found]) == found[0].chance_exact == 2 / 24


def test_a_pair_tied_in_gold_is_left_out_of_pairwise():
    assert order_agreement([1, 1, 0], [1, 2, 0]).pairwise == 1.0
    assert order_agreement([1, 1, 0], [0, 2, 1]).pairwise == 0.5


def test_a_tie_of_the_scores_is_never_exact_and_counts_half():
    found = order_agreement([3, 2, 1], [2, 1, 1])
    assert (found.exact, found.pairwise) == (0, pytest.approx(2.5 / 3))
    assert order_agreement([1, 1, 0], [1, 1, 0]).exact == 0  # also where gold ties as well


def test_gold_without_an_order_gives_the_reason():
    found = order_agreement([1, 1, 1], [3, 2, 1])
    assert (found.exact, found.pairwise, found.tau_b) == (None, None, None)
    assert found.reason == NOTHING_TO_ORDER
    assert found.reason in found.summary()


def test_scores_that_all_tie_have_no_tau():
    found = order_agreement([3, 2, 1], [1, 1, 1])
    assert (found.exact, found.pairwise, found.tau_b, found.reason) == (0, 0.5, None, ALL_TIED)


@unhurried
@given(two_orders)
def test_measures_equal_naive_counts_and_scipy(orders):
    gold, scores = orders
    found = order_agreement(gold, scores)
    judged = [
        (np.sign(gold[i] - gold[j]) * np.sign(scores[i] - scores[j]) + 1) / 2
        for i, j in itertools.combinations(range(len(gold)), 2)
        if gold[i] != gold[j]
    ]
    if not judged:
        assert found.pairwise is None
        return
    assert found.pairwise == pytest.approx(np.mean(judged))
    assert found.exact == (len(set(scores)) == len(scores) and min(judged) == 1)
    if len(set(scores)) > 1:
        assert found.tau_b == pytest.approx(kendalltau(gold, scores).statistic)


@unhurried
@given(two_orders, st.randoms())
def test_numbering_and_monotone_scales_do_not_matter(orders, random):
    gold, scores = orders
    order = random.sample(range(len(gold)), len(gold))
    assert order_agreement(2 * gold[order] - 7, np.exp(scores[order])) == order_agreement(gold, scores)


@unhurried
@given(two_orders)
def test_turning_the_scores_turns_pairwise_and_tau(orders):
    gold, scores = orders
    one, other = order_agreement(gold, scores), order_agreement(gold, -scores)
    if one.pairwise is not None:
        assert one.pairwise + other.pairwise == pytest.approx(1)
    if one.tau_b is not None:
        assert one.tau_b == pytest.approx(-other.tau_b)


@pytest.mark.parametrize(
    ("gold", "scores", "match"),
    [
        ([1], [1], "2 or more"),
        ([1, 2], [1, 2, 3], "same length"),
        ([[1, 2]], [[1, 2]], "same length"),
        ([1, float("nan")], [1, 2], "finite"),
        ([1, 2], [1, float("inf")], "finite"),
    ],
)
def test_bad_orders_are_refused(gold, scores, match):
    with pytest.raises(ValueError, match=match):
        order_agreement(gold, scores)


# ---- the table


def test_the_table_holds_the_agreement_of_policy_and_reference():
    row = orders_table(pairs([4, 3, 2, 1], [4.0, 2.0, 3.0, 1.0], [4.0, 3.0, 2.0, 1.0])).iloc[0]
    assert row[MEASURES].tolist() == [0, pytest.approx(5 / 6), pytest.approx(2 / 3)]
    assert row[[f"reference_{name}" for name in MEASURES]].tolist() == [1, 1, 1]
    assert (row["ranking_id"], row["prompt_id"], row["n_responses"]) == ("r0", "p0", 4)
    assert row["chance_exact"] == pytest.approx(1 / 24)


@unhurried
@given(st.lists(st.lists(st.tuples(values, values), min_size=3, max_size=6), min_size=1, max_size=5), st.randoms())
def test_the_table_agrees_with_one_order_at_a_time(rankings, random):
    orders = [np.array(rows).T for rows in rankings]
    frame = pd.concat([pairs(*order, order[1][::-1], name=f"r{i}") for i, order in enumerate(orders)])
    frame = frame.iloc[random.sample(range(len(frame)), len(frame))]
    table = orders_table(frame).set_index("ranking_id")
    for i, (gold, policy) in enumerate(orders):
        for prefix, scores in (("", policy), ("reference_", policy[::-1])):
            one = order_agreement(gold, scores)
            expected = [np.nan if getattr(one, name) is None else getattr(one, name) for name in MEASURES]
            found = table.loc[f"r{i}", [prefix + name for name in MEASURES]].tolist()
            assert found == pytest.approx(expected, nan_ok=True)
        if one.exact is not None:
            assert table.loc[f"r{i}", "chance_exact"] == pytest.approx(one.chance_exact)


def test_without_a_reference_its_columns_are_empty():
    table = orders_table(pairs([3, 2, 1], [3.0, 2.0, 1.0]))
    assert table[[f"reference_{name}" for name in MEASURES]].isna().all(axis=None)
    assert table["exact"].tolist() == [1]


@pytest.mark.parametrize("lost", [0, 3, 5])
def test_a_ranking_that_lost_a_pair_has_only_the_share_of_its_other_pairs(lost):
    frame = pairs([4, 3, 2, 1], [4.0, 2.0, 3.0, 1.0])
    rest = frame.drop(index=lost)
    table = orders_table(rest)
    assert table[["exact", "chance_exact", "tau_b"]].isna().all(axis=None)
    assert table["pairwise"][0] == (rest["policy_chosen"] > rest["policy_rejected"]).mean()
    assert table["n_responses"][0] == 4


def test_a_pair_without_a_score_is_lost_to_that_model_alone():
    frame = pairs([3, 2, 1], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0])
    frame.loc[0, "reference_chosen"] = np.nan
    row = orders_table(frame).iloc[0]
    assert row["exact"] == 1
    assert np.isnan(row["reference_exact"])
    assert row["reference_pairwise"] == 1


def test_a_ranking_reduced_to_one_pair_is_not_taken_for_a_whole_one():
    frame = pairs([3, 2, 1], [3.0, 2.0, 1.0]).iloc[[0]]  # responses 0 and 1: no third is seen
    table = orders_table(frame)
    assert table["n_responses"].tolist() == [3]
    assert table["exact"].isna().all()


def test_given_sizes_show_a_response_that_lost_every_pair():
    frame = pairs([3, 2, 1], [3.0, 2.0, 1.0])
    assert orders_table(frame)["exact"].tolist() == [1]
    table = orders_table(frame, sizes={"r0": 4})
    assert table["n_responses"].tolist() == [4]
    assert table["exact"].isna().all()
    assert table["pairwise"].tolist() == [1]


def test_each_pair_keeps_its_own_scores():
    frame = pairs([3, 2, 1], [3.0, 2.0, 1.0])
    frame.loc[2, ["policy_chosen", "policy_rejected"]] = [0.5, 0.75]  # another boundary, and the other way round
    assert orders_table(frame)[["exact", "pairwise"]].iloc[0].tolist() == [0, pytest.approx(2 / 3)]


def test_pairs_outside_a_ranking_are_passed_over():
    plain = pairs([2, 1], [0.0, 1.0]).assign(ranking_id=None, response_chosen=-1, response_rejected=-1)
    frame = pd.concat([plain, pairs([3, 2, 1], [3.0, 2.0, 1.0]), plain], ignore_index=True)
    assert orders_table(frame)["ranking_id"].tolist() == ["r0"]
    none = orders_table(plain)
    assert len(none) == 0
    assert none.columns.tolist() == orders_table(frame).columns.tolist()


def test_rankings_come_in_the_order_of_the_file():
    frame = pd.concat([pairs([3, 2, 1], [3.0, 2.0, 1.0], name=name, prompt=f"p-{name}") for name in ("b", "a", "c")])
    table = orders_table(frame)
    assert table["ranking_id"].tolist() == ["b", "a", "c"]
    assert table["prompt_id"].tolist() == ["p-b", "p-a", "p-c"]


def test_a_pair_given_twice_is_refused():
    frame = pairs([3, 2, 1], [3.0, 2.0, 1.0])
    turned = frame.iloc[[0]].rename(
        columns={"response_chosen": "response_rejected", "response_rejected": "response_chosen"}
    )
    with pytest.raises(ValueError, match="twice"):
        orders_table(pd.concat([frame, turned]))


@pytest.mark.parametrize("numbers", [(-1, 0), (1, 1)])
def test_a_response_without_a_number_of_its_own_is_refused(numbers):
    frame = pairs([3, 2, 1], [3.0, 2.0, 1.0])
    frame.loc[0, ["response_chosen", "response_rejected"]] = numbers
    with pytest.raises(ValueError, match="two different response numbers"):
        orders_table(frame)
