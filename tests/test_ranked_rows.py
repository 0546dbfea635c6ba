"""Rankings of several responses: exact expansions first, then what must not change them, then rows that say nothing."""

import re
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import PIECES, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import alignscope
from alignscope import InputError, read_pairs, score_pairs
from alignscope.probes.inputs import check_invalid
from alignscope.probes.pair_rows import Invalid

ROW = {"id": "q", "prompt": "pick:", "responses": ["x", "yy", "zzz"], "ranks": [2, 1, 3]}
ASKED = [{"role": "user", "content": "pick:"}]


def sides(rows: list) -> list[tuple]:
    """Name, chosen, rejected and given preference of every pair."""
    return [(pair.pair_id, pair.chosen, pair.rejected, pair.preference) for pair in read_pairs(rows)]


@pytest.mark.parametrize("order", [{"ranks": [2, 1, 3]}, {"scores": [0.5, 7, -1]}, {"ranks": (20.5, 1.0, 21)}])
def test_a_ranking_becomes_all_its_pairs_the_better_response_first(order):
    row = {name: ROW[name] for name in ("id", "prompt", "responses")}
    assert sides([row | order]) == [
        ("q:1-0", "yy", "x", None),
        ("q:0-2", "x", "zzz", None),
        ("q:1-2", "yy", "zzz", None),
    ]


def test_equal_ranks_are_a_human_tie_and_keep_the_order_of_the_file():
    assert sides([ROW | {"ranks": [2, 1, 2]}]) == [
        ("q:1-0", "yy", "x", None),
        ("q:0-2", "x", "zzz", 0.5),
        ("q:1-2", "yy", "zzz", None),
    ]


def test_a_pair_says_which_responses_of_which_row_it_holds():
    pairs = read_pairs([ROW | {"tag": "t", "split": "test", "prompt_id": "p"}, {**ROW, "id": None}])
    assert [(p.ranking_id, p.response_chosen, p.response_rejected) for p in pairs][:3] == [
        ("q", 1, 0),
        ("q", 0, 2),
        ("q", 1, 2),
    ]
    assert {(p.row, p.ranking_id, p.prompt_id, p.tag, p.split, p.swapped) for p in pairs} == {
        (1, "q", "p", "t", "test", False),
        (2, "2", None, None, None, False),
    }


def test_an_ordinary_pair_belongs_to_no_ranking():
    pair = read_pairs([{"prompt": "p", "chosen": "a", "rejected": "b", "responses": ["a", "b"], "ranks": [1, 2]}])[0]
    assert (pair.pair_id, pair.ranking_id, pair.response_chosen, pair.response_rejected) == ("1", None, -1, -1)


def test_a_conversation_is_answered_by_the_assistant():
    answers = [({"role": "assistant", "content": text},) for text in ("x", "yy")]
    given = [["x", "yy"], [[*a] for a in answers], [[*ASKED, *a] for a in answers]]
    for responses in given:
        (pair,) = read_pairs([{"prompt": ASKED, "responses": responses, "ranks": [1, 2]}])
        assert (pair.prompt, pair.chosen, pair.rejected) == (tuple(ASKED), *answers)


ranks = st.lists(st.integers(1, 5), min_size=2, max_size=6)


@settings(max_examples=50, deadline=None)
@given(ranks)
def test_every_two_responses_meet_once_and_the_lower_rank_is_chosen(ranks):
    responses = ["r" * (i + 1) for i in range(len(ranks))]
    pairs = read_pairs([{"prompt": "p", "responses": responses, "ranks": ranks}])
    met = [tuple(sorted((p.response_chosen, p.response_rejected))) for p in pairs]
    assert met == list(combinations(range(len(ranks)), 2))
    for p in pairs:
        assert (responses[p.response_chosen], responses[p.response_rejected]) == (p.chosen, p.rejected)
        better, worse = ranks[p.response_chosen], ranks[p.response_rejected]
        assert better < worse if p.preference is None else better == worse


@settings(max_examples=50, deadline=None)
@given(ranks)
def test_only_the_order_counts(ranks):
    row = {"prompt": "p", "responses": ["r" * (i + 1) for i in range(len(ranks))]}
    assert sides([row | {"ranks": ranks}]) == sides([row | {"scores": [1 / rank**3 for rank in ranks]}])


BAD = [
    ({"responses": ["x"], "ranks": [1]}, "too_few_responses", "holds 1"),
    ({"responses": "x, y"}, "not_a_list", "`responses` is str"),
    ({"responses": None}, "missing_field", "`responses` is missing"),
    ({"ranks": None}, "missing_field", "neither `ranks` nor `scores`"),
    ({"prompt": 5}, "not_string", "`prompt` is int"),
    ({"responses": ["x", True, "z"]}, "not_string", r"`responses\[1\]` is bool"),
    ({"responses": ["x", " ", "z"]}, "empty_completion", r"`responses\[1\]` holds no text"),
    ({"responses": ["x", "y", "x"]}, "identical_completions", r"`responses\[0\]` and `responses\[2\]`"),
    (
        {"responses": ["x", "y", [{"role": "assistant", "content": "z"}]]},
        "mixed_forms",
        r"`responses\[2\]` is messages",
    ),
    ({"prompt": ASKED, "responses": ["x", "y", ASKED]}, "empty_completion", r"`responses\[2\]` holds no text after"),
    ({"ranks": [1, 2]}, "ranks_invalid", "2 numbers for 3 responses"),
    ({"ranks": [1, "2", 3]}, "ranks_invalid", r"`ranks\[1\]` is '2'"),
    ({"ranks": [1, True, 3]}, "ranks_invalid", r"`ranks\[1\]` is True"),
    ({"ranks": [1, float("nan"), 3]}, "ranks_invalid", r"`ranks\[1\]` is nan"),
    ({"ranks": None, "scores": [1, None, 3]}, "ranks_invalid", r"`scores\[1\]` is None"),
    ({"scores": [1, 2, 3]}, "ranks_invalid", r"differently"),  # ranks 2, 1, 3
]


@pytest.mark.parametrize(("change", "reason", "detail"), BAD)
def test_a_row_that_cannot_be_used_is_one_row_set_aside(change, reason, detail):
    file = read_pairs([ROW, ROW | {"id": "bad"} | change])
    (row,) = file.invalid
    assert (row.row, row.reason, row.name) == (2, reason, "bad")
    assert re.search(detail, row.detail)
    assert (len(file), file.n_rows) == (3, 2)


def test_ranks_and_scores_may_stand_together_where_one_ties():
    assert len(read_pairs([ROW | {"scores": [5, 5, 0]}])) == 3


def test_an_id_twice_would_mix_two_rankings():
    file = read_pairs([ROW, ROW | {"prompt": "other"}])
    assert [(row.row, row.reason, row.detail) for row in file.invalid] == [
        (2, "duplicate_id", "`id` 'q' is that of row 1")
    ]


def test_a_file_of_other_columns_is_told_of_rankings():
    with pytest.raises(InputError, match="`responses` with `ranks` or `scores`"):
        read_pairs([{"prompt": "p", "responses": ["a", "b"]}])


# ---- shares: a bad ranking weighs what the others do on average


def late(n: int) -> list[Invalid]:
    return [Invalid(row=1, reason="too_long", detail="600 tokens")] * n


def test_the_share_of_rankings_is_that_of_their_pairs():
    rows = [ROW | {"id": str(i)} for i in range(9)] + [ROW | {"id": "bad", "ranks": [1]}]
    file = read_pairs(rows)  # 9 of 10 rows make 27 pairs
    check_invalid(file, 0.1)
    with pytest.raises(
        InputError, match=r"1 of 10 rows \(10\.0% in all\) cannot be used, more than --max-invalid 0\.09"
    ):
        check_invalid(file, 0.09)
    check_invalid(file, 0.2, more=late(3))  # 1 - 9/10 * 24/27 = 1/5
    with pytest.raises(InputError, match=r"1 of 10 rows and 3 of the 27 pairs of the others \(20\.0% in all\)"):
        check_invalid(file, 0.19, more=late(3))
    with pytest.raises(InputError, match="nothing is left"):
        check_invalid(file, 1.0, more=late(27))


def test_the_first_pairs_of_rankings_count_their_rows():
    rows = [ROW | {"id": "a"}, ROW | {"id": "b", "ranks": [1]}, ROW | {"id": "c"}, ROW | {"id": "d"}]
    taken = read_pairs(rows).take(4)
    assert [pair.pair_id for pair in taken] == ["a:1-0", "a:0-2", "a:1-2", "c:1-0"]
    assert (taken.n_rows, [row.row for row in taken.invalid]) == (3, [2])


# ---- in the table


def test_a_ranking_is_scored_under_one_prompt():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(PIECES), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    model = alignscope.wrap(GPT2LMHeadModel(config).eval(), tiny_tokenizer())
    scores = score_pairs(model, None, [ROW | {"ranks": [2, 1, 2]}, ROW | {"id": "r", "prompt": "and:"}])
    assert [*scores["ranking_id"]] == ["q"] * 3 + ["r"] * 3
    assert [*scores["response_chosen"]] == [1, 0, 1, 1, 0, 1]
    assert [*scores["response_rejected"]] == [0, 2, 2, 0, 2, 2]
    assert [*scores["human_tie"]] == [False, True, False, False, False, False]
    assert scores.frame.groupby("ranking_id")["prompt_id"].nunique().tolist() == [1, 1]
    assert scores.frame["prompt_id"].nunique() == 2
    assert scores["policy_chosen"][0] == scores["policy_chosen"][2], "one response, one score"
    plain = score_pairs(model, None, [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert (plain["ranking_id"][0], plain["response_chosen"][0], plain["response_rejected"][0]) == (None, -1, -1)
