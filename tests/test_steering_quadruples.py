"""Quadruples: what a row says, how a preference pair becomes one, what is set aside, and how rows are split."""

import json
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alignscope
from alignscope import InputError, read_quadruples
from alignscope.probes.pair_rows import Invalid
from alignscope.steering.quadruples import QuadrupleFile, require_enough, split

ROW = {"negative_input": "x", "negative_output": "y", "positive_input": "x_c", "positive_output": "y_c"}
PAIR = {"prompt": "Name a fish.", "chosen": "Cod, matey!", "rejected": "Cod."}


def texts(row):
    return row.negative_input, row.negative_output, row.positive_input, row.positive_output


def numbered(n: int, **changes) -> list[dict]:
    return [{column: f"{text} {i}" for column, text in ROW.items()} | changes for i in range(n)]


def reasons(rows: list, **options) -> dict[int, str]:
    return {row.row: row.reason for row in read_quadruples(rows, **options).invalid}


# ---- what a row says


def test_a_quadruple_is_read_as_it_stands():
    row = read_quadruples([ROW | {"id": 7, "concept": "piracy", "concept_id": 3, "concept_genre": "style"}])[0]
    assert texts(row) == ("x", "y", "x_c", "y_c")
    assert (row.quadruple_id, row.row) == ("7", 1)
    assert (row.concept, row.concept_id, row.concept_genre, row.x_c_built) == ("piracy", "3", "style", False)


def test_labels_are_optional_and_the_number_of_the_row_is_its_id():
    row = read_quadruples([ROW])[0]
    assert (row.quadruple_id, row.concept, row.concept_id, row.concept_genre) == ("1", None, None, None)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path, suffix):
    rows, path = numbered(3, concept="c"), tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    file = read_quadruples(path)
    assert file.quadruples == read_quadruples(rows).quadruples
    assert (file.source, file.n_rows, len(file)) == (str(path), 3, 3)


def test_messages_are_read_and_a_bare_answer_to_them_is_the_assistant_s():
    asked = [{"role": "user", "content": "x"}]
    row = read_quadruples([ROW | {"negative_input": asked, "positive_input": [{"role": "user", "content": "x_c"}]}])[0]
    assert row.negative_input == tuple(asked)
    assert row.negative_output == ({"role": "assistant", "content": "y"},)


def test_a_file_that_was_read_is_taken_as_it_is():
    file = read_quadruples([ROW])
    assert read_quadruples(file) is file


# ---- built of preference pairs


def test_a_preference_pair_gets_an_input_that_asks_for_the_concept():
    row = read_quadruples([PAIR], concept="pirate speech")[0]
    assert texts(row) == (
        "Name a fish.", "Cod.", "Name a fish.\n\nInclude this in your answer: pirate speech", "Cod, matey!"
    )  # fmt: skip
    assert row.x_c_built
    assert row.concept == "pirate speech"


def test_where_the_rejected_completion_shows_the_concept_the_outputs_change_places():
    row = read_quadruples([PAIR], concept="brevity", shows="rejected")[0]
    assert (row.negative_output, row.positive_output) == ("Cod, matey!", "Cod.")


def test_a_row_s_own_concept_goes_first():
    rows = [PAIR | {"concept": "piracy"}, PAIR | {"concept": " "}, PAIR | {"concept": None}]
    assert [row.concept for row in read_quadruples(rows, concept="speech")] == ["piracy", "speech", "speech"]


@pytest.mark.parametrize("template", ["{concept}: {prompt}", lambda prompt, concept: f"{concept}: {prompt}"])
def test_a_template_is_text_or_a_function(template):
    assert read_quadruples([PAIR], concept="c", template=template)[0].positive_input == "c: Name a fish."


def test_braces_in_the_texts_are_no_places_to_fill():
    row = read_quadruples([PAIR | {"prompt": "{concept} {0} {"}], concept="{prompt}")[0]
    assert row.positive_input == "{concept} {0} {\n\nInclude this in your answer: {prompt}"


def test_the_last_user_turn_of_messages_is_changed_and_nothing_else():
    user = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    row = read_quadruples([PAIR | {"prompt": user}], concept="d", template="{prompt}+{concept}")[0]
    assert row.positive_input == (*user[:2], {"role": "user", "content": "c+d"})
    assert row.negative_input == tuple(user)


def test_a_transcript_is_changed_before_its_assistant_mark():
    row = read_quadruples(
        [PAIR | {"prompt": "\n\nHuman: a\n\nAssistant:"}], concept="d", template="{prompt}+{concept}"
    )[0]
    assert row.positive_input == "\n\nHuman: a+d\n\nAssistant:"


def test_the_preferred_completion_is_the_chosen_one_whatever_the_columns():
    voted = {"prompt": "p", "response_a": "a", "response_b": "b", "votes_a": 1, "votes_b": 2}
    row = read_quadruples([voted], concept="c")[0]
    assert (row.negative_output, row.positive_output) == ("a", "b")


def test_built_rows_are_counted_said_and_their_recipe_kept():
    file = read_quadruples([PAIR], concept="c", shows="rejected")
    assert (file.n_built, file.template, file.shows) == (
        1, "{prompt}\n\nInclude this in your answer: {concept}", "rejected"
    )  # fmt: skip
    assert file.notices[0].startswith("The positive input of 1 of 1 quadruples was built")
    assert "reconstructed" in file.notices[0]
    assert read_quadruples([PAIR], concept="c", template=lambda p, c: p + c).template == "a function"


def test_rows_that_were_given_whole_have_nothing_to_say():
    file = read_quadruples([ROW | {"concept": "piracy"}])
    assert (file.n_built, file.template, file.shows, file.notices) == (0, None, None, ())


def test_a_concept_that_the_plain_input_names_is_noticed():
    file = read_quadruples([ROW, ROW | {"negative_input": "On PIRACY at sea"}], concept="piracy")
    assert [row.concept_in_input for row in file] == [False, True]
    assert file.notices == (
        "The plain input of 1 of 2 quadruples holds the concept's text already (first: row 2).",
    )  # fmt: skip


# ---- set aside


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"negative_input": " \n"}, "empty_prompt"),
        ({"positive_input": ""}, "empty_prompt"),
        ({"negative_output": ""}, "empty_completion"),
        ({"positive_output": " "}, "empty_completion"),
        ({"positive_output": None}, "missing_field"),
        ({"positive_output": "y"}, "identical_completions"),
        ({"positive_input": "x"}, "identical_prompts"),
        ({"negative_input": 3}, "not_string"),
        ({"negative_output": "\ud83d"}, "not_encodable"),
        ({"negative_input": [{"role": "user", "content": "x"}]}, "mixed_forms"),
    ],
)
def test_a_row_that_cannot_be_used_is_set_aside_with_its_reason(change, reason):
    file = read_quadruples([ROW, ROW | {"id": "bad"} | change])
    assert [(row.row, row.reason, row.name) for row in file.invalid] == [(2, reason, "bad")]
    assert len(file) == 1
    assert file.reasons == {reason: 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": ""}, "empty_prompt"),
        ({"chosen": ""}, "empty_completion"),
        ({"chosen": "Cod."}, "identical_completions"),
        ({"concept": ""}, "missing_field"),
        ({"prompt": [{"role": "system", "content": "s"}]}, "mixed_forms"),
    ],
)
def test_a_pair_that_cannot_be_used_is_set_aside_with_its_reason(change, reason):
    good = PAIR | {"concept": "c"}
    assert reasons([good, good | change, "text"]) == {2: reason, 3: "not_a_row"}


def test_a_template_that_changes_nothing_sets_the_row_aside():
    assert reasons([PAIR], concept="c", template=lambda prompt, concept: prompt) == {1: "identical_prompts"}


def test_what_a_tokenizer_finds_is_set_aside_later_and_counted_with_the_rest():
    file = read_quadruples([ROW | {"negative_input": ""}, *numbered(3)])
    later = file.setting_aside([Invalid(row=3, reason="too_long", detail="2,000 tokens")])
    assert [row.row for row in later] == [2, 4]
    assert later.reasons == {"empty_prompt": 1, "too_long": 1}
    assert len(file) == 3


# ---- files that are refused


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([PAIR], {}, "preference pairs have no input that calls for the concept"),
        ([PAIR], {"concept": " "}, "concept: an empty text"),
        ([PAIR], {"concept": "c", "shows": "both"}, "shows 'both': expected 'chosen' or 'rejected'"),
        ([PAIR], {"concept": "c", "template": "{prompt} please"}, r"\{concept\} missing"),
        ([ROW], {"template": "{prompt} {concept}"}, "template and shows are for preference pairs"),
        ([ROW], {"shows": "rejected"}, "template and shows are for preference pairs"),
        ([{"negative_input": "x", "positive_input": "z"}], {}, "`negative_output`, `positive_output` missing"),
        ([{"prompt": "x"}], {}, "not quadruples: .* the columns are: prompt"),
        ([{"prompt": "x", "chosen": "y"}], {"concept": "c"}, "not a file of pairs"),
        ([], {}, "no rows"),
    ],
)
def test_a_file_that_holds_none_is_refused(rows, options, message):
    with pytest.raises(InputError, match=message):
        read_quadruples(rows, **options)


@pytest.mark.parametrize(("n", "allow_small", "enough"), [(16, False, True), (15, False, False), (15, True, True)])
def test_training_asks_for_sixteen_rows(n, allow_small, enough):
    file = read_quadruples([*numbered(n), ROW | {"positive_output": "y"}])
    if enough:
        require_enough(file, allow_small=allow_small)
        return
    with pytest.raises(InputError, match=r"15 usable quadruples \(1 of 16 set aside: 1 identical_completions\)"):
        require_enough(file, allow_small=allow_small)


def test_not_even_a_small_file_may_hold_nothing():
    with pytest.raises(InputError, match="0 usable quadruples"):
        require_enough(read_quadruples([ROW | {"positive_output": "y"}]), allow_small=True)


# ---- train and held-out rows


def test_a_fifth_of_the_rows_is_held_out_and_all_rows_are_dealt_in_order():
    rows = read_quadruples(numbered(72)).quadruples
    train, held = split(rows, 0.2, seed=42)
    assert (len(train), len(held)) == (58, 14)
    assert sorted([*train, *held], key=lambda row: row.row) == list(rows)
    assert [row.row for row in held] == sorted(row.row for row in held)


def test_the_seed_alone_decides_who_is_held_out():
    rows = read_quadruples(numbered(40)).quadruples
    assert split(rows, seed=1) == split(rows, seed=1)
    assert split(rows, seed=1) != split(rows, seed=2)


def test_nothing_is_held_out_where_nothing_is_asked():
    rows = read_quadruples(numbered(3)).quadruples
    assert split(rows, 0) == (rows, ())


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=30), st.floats(0.01, 0.99))
def test_no_input_stands_on_both_sides(links, holdout):
    rows = [ROW | {"negative_input": f"p{x}", "positive_input": f"p{y + 1 + x}"} for x, y in links]
    quadruples = read_quadruples(rows).quadruples
    try:
        train, held = split(quadruples, holdout)
    except InputError:
        return  # all rows hang together
    inputs = [{text for row in side for text in (row.negative_input, row.positive_input)} for side in (train, held)]
    assert not inputs[0] & inputs[1]
    assert len(train) + len(held) == len(rows)
    assert train
    assert held


def test_rows_that_hang_together_by_their_inputs_cannot_be_split():
    chain = [ROW | {"negative_input": f"p{i}", "positive_input": f"p{i + 1}"} for i in range(20)]
    with pytest.raises(InputError, match="pass holdout=0"):
        split(read_quadruples(chain).quadruples)


def test_groups_larger_than_the_share_are_held_out_whole_the_smallest_one():
    rows = numbered(5, negative_input="a") + numbered(3, negative_input="b")
    for i, row in enumerate(rows):
        row["positive_input"] = f"own {i}"
    train, held = split(read_quadruples(rows).quadruples, 0.2)
    assert (len(train), len(held)) == (5, 3)


@pytest.mark.parametrize("holdout", [-0.1, 1, 1.5])
def test_a_share_of_all_or_less_than_nothing_is_refused(holdout):
    with pytest.raises(InputError, match="expected"):
        split(read_quadruples(numbered(4)).quadruples, holdout)


# ---- real data


def test_the_refusal_quadruples_are_all_usable_and_share_no_request(data_folder):
    train, test = (
        read_quadruples(data_folder / "data" / "refusal_quadruples" / f"{name}.parquet") for name in ("train", "test")
    )
    assert (len(train), len(test)) == (128, 100)
    assert train.invalid == test.invalid == ()
    assert (train.n_built, train.notices, train[0].concept_genre) == (0, (), "safety")
    assert len({row.negative_output for row in (*train, *test)}) == 5
    assert len({row.positive_output for row in (*train, *test)}) == 12
    requests = [{text for row in file for text in (row.negative_input, row.positive_input)} for file in (train, test)]
    assert not requests[0] & requests[1]
    assert [len(side) for side in split(train.quadruples)] == [102, 26]


def test_refusal_triplets_become_quadruples_whose_answers_are_those_of_the_real_ones(data_folder):
    real = read_quadruples(data_folder / "data" / "refusal_quadruples" / "train.parquet")
    built = read_quadruples(data_folder / "data" / "refusal_triplets" / "train.jsonl", concept=real[0].concept)
    assert len(built) == built.n_built == 128
    assert [(row.negative_input, row.negative_output, row.positive_output) for row in built] == [
        (row.negative_input, row.negative_output, row.positive_output) for row in real
    ]
    assert Counter(row.positive_input.endswith(real[0].concept) for row in built) == {True: 128}


def test_the_public_name_is_the_reader():
    assert alignscope.read_quadruples is read_quadruples
    assert isinstance(read_quadruples([ROW]), QuadrupleFile)
