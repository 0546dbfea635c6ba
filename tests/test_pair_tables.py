"""Pair tables of others, and tables joined: exact answers, then what must not move them, then every refusal."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_tables import mixed
from tiny_tokenizer import PIECES, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import alignscope
from alignscope import InputError, PairScores, score_pairs
from alignscope.diagnose.preference_sections import PreferenceSettings
from alignscope.diagnose.table_audit import audit_tables
from alignscope.probes.pair_table_files import METADATA
from alignscope.probes.score_table import join_tables

SUFFIXES = (".parquet", ".csv", ".jsonl")
TEXT = {"template": "none", "eos": "auto", "eos_id": 2, "max_length": 64, "pairs_sha256": "f" * 64, "vocabulary": 9}


def table(n: int = 3, **more) -> pd.DataFrame:
    """A foreign table: the two columns it needs, and more."""
    columns = {"policy_chosen": -1.0 - np.arange(n), "policy_rejected": -1.5 - np.arange(n)}
    return pd.DataFrame(columns | more)


def written(frame: pd.DataFrame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict(orient="records")))
    return path


# ---- tables of others


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_says_what_its_columns_say(tmp_path, suffix):
    frame = mixed().assign(pair_id=[f"p{i}" for i in range(120)], swapped=[i % 2 == 0 for i in range(120)])
    read = PairScores.read(written(frame, tmp_path / f"scores{suffix}"), settings={"template": "none"})
    assert read.frame.equals(PairScores.from_frame(frame).frame)
    assert read.settings["template"] == "none"
    assert read.notices == ()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_saved_is_read_bit_for_bit(tmp_path, suffix):
    frame = mixed().assign(policy_chosen=np.random.default_rng(0).normal(size=120), tag=["a", None] * 60)
    scores = PairScores.from_frame(frame, settings={"eos": "none"})
    read = PairScores.read(scores.save(tmp_path / f"scores{suffix}"))
    assert read.frame.equals(scores.frame)
    kept = suffix == ".parquet"
    assert (read.settings == scores.settings, read.counts == scores.counts) == (kept, True)


def test_a_table_of_ours_keeps_all_that_was_recorded(tmp_path):
    frame = table(policy_rejected=[-2.0, np.nan, -4.0])
    scores = PairScores.from_frame(frame, settings={"eos": "none"})
    read = PairScores.read(scores.save(tmp_path / "scores.parquet"), settings={"dtype": "float32"})
    assert (read.invalid, read.counts) == (scores.invalid, scores.counts)
    assert [row.row for row in read.invalid] == [2]
    assert read.settings == {"eos": "none", "dtype": "float32"}


NEWER = [
    "prompt_hash", "overlap", "ches", "ches_normalised", "mismatched",
    "ranking_id", "response_chosen", "response_rejected",
]  # fmt: skip


@pytest.mark.parametrize("read", [PairScores.load, PairScores.read])
def test_an_older_table_of_ours_is_filled_up(tmp_path, read):
    scores = PairScores.from_frame(table())
    stored = pq.read_table(scores.save(tmp_path / "new.parquet"))
    pq.write_table(stored.drop_columns(NEWER), tmp_path / "old.parquet")
    assert METADATA in pq.read_schema(tmp_path / "old.parquet").metadata
    assert read(tmp_path / "old.parquet").frame.equals(scores.frame)


def test_pairs_without_ids_are_numbered_and_are_their_own_prompts(tmp_path):
    read = PairScores.read(written(table(), tmp_path / "t.csv"))
    assert [*read["pair_id"]] == [*read["prompt_id"]] == ["1", "2", "3"]
    assert [*read["n_votes"]] == [*read["preference"]] == [1, 1, 1]
    assert (read.has_reference, [*read["n_chosen"]], [*read["response_chosen"]]) == (False, [0] * 3, [-1] * 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_votes_become_the_preference(tmp_path, suffix):
    frame = table(votes_chosen=[3, 1, 1], votes_rejected=[1, 2, 1], votes_tie=[0, 1, 2])
    read = PairScores.read(written(frame, tmp_path / f"t{suffix}"))
    assert [*read["preference"]] == [3 / 4, 1 - 1.5 / 4, 1 / 2]
    assert [*read["n_votes"]] == [4, 4, 4]
    assert [*read["swapped"]] == [False, True, False]
    assert [*read["policy_chosen"]] == [-1.0, -2.5, -3.0]
    without_ties = PairScores.from_frame(frame.drop(columns="votes_tie"))
    assert [*without_ties["preference"]] == [3 / 4, 1 - 1 / 3, 1 / 2]


def test_a_pair_turned_twice_stands_as_in_the_file():
    frame = table(preference=[0.25, 0.25, 0.75], swapped=[True, False, True])
    assert [*PairScores.from_frame(frame)["swapped"]] == [False, True, True]


def test_votes_rule_over_a_preference_beside_them_and_that_is_told():
    scores = PairScores.from_frame(table(votes_chosen=[3] * 3, votes_rejected=[1] * 3, preference=[0.1] * 3))
    assert ([*scores["preference"]], [*scores["swapped"]]) == ([0.75] * 3, [False] * 3)
    assert scores.settings["ignored_columns"] == ["preference"]


def test_a_probability_has_no_votes_unless_they_are_given():
    assert [*PairScores.from_frame(table(preference=[0.7] * 3))["n_votes"]] == [0, 0, 0]
    assert [*PairScores.from_frame(table(preference=[0.75] * 3, n_votes=[4] * 3))["n_votes"]] == [4, 4, 4]


def test_columns_of_other_names_are_kept_out_and_told(tmp_path):
    frame = table(judge=["x"] * 3, row=["a", "b", "c"], policy_chosen=[-1, np.nan, -3])
    read = PairScores.read(written(frame, tmp_path / "t.csv"))
    assert "judge" not in read.frame
    assert [row.row for row in read.invalid] == [2], "a column `row` of theirs does not number the rows"
    assert read.settings["ignored_columns"] == ["judge", "row"]
    assert read.notices == ("columns that a pair table does not have were not read: judge, row",)


def test_scores_that_are_not_finite_are_set_aside_by_their_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("pair_id,policy_chosen,policy_rejected\na,-1,-2\nb,,-2\nc,-inf,-2\nd,nan,-3\n")
    read = PairScores.read(path)
    assert [(row.row, row.reason, row.name) for row in read.invalid] == [
        (2, "non_finite_policy", "b"),
        (3, "non_finite_policy", "c"),
        (4, "non_finite_policy", "d"),
    ]
    path.write_text("policy_chosen,policy_rejected\n,-2\n")
    with pytest.raises(InputError, match=r"t\.csv: nothing is left: row 1, non_finite_policy"):
        PairScores.read(path)


def test_true_and_false_are_read_from_text(tmp_path):
    frame = table(swapped=["True", "false", "0"], boundary_shift=["1", "", "FALSE"])
    read = PairScores.read(written(frame, tmp_path / "t.csv"))
    assert [*read["swapped"]] == [True, False, False]
    assert [*read["boundary_shift"]] == [True, False, False]


SET_ASIDE = [
    (table(preference=[0.5, 1.25, 1]), "votes_invalid", r"`preference` is 1\.25, outside \[0, 1\]"),
    (table(preference=[0.5, -0.25, 1]), "votes_invalid", r"`preference` is -0\.25, outside \[0, 1\]"),
    (table(preference=[0.5, np.inf, 1]), "votes_invalid", "`preference` is .*inf.*, not a finite number"),
    (table(preference=["0.5", "most", "1"]), "votes_invalid", "`preference` is 'most', not a finite number"),
    (table(preference=[0.5, np.nan, 1]), "missing_field", "`preference` is missing"),
    (table(votes_chosen=[1, -2, 1], votes_rejected=[1, 5, 1]), "votes_invalid", "votes -2, 5, tie 0: .* negative"),
    (table(votes_chosen=[1, 0, 1], votes_rejected=[1, 0, 1]), "votes_invalid", "votes 0, 0, tie 0: none, "),
    (table(votes_chosen=[1, 1, 1], votes_rejected=[1] * 3, votes_tie=[0, -1, 1]), "votes_invalid", "tie -1: "),
    (table(votes_chosen=[1, np.nan, 1], votes_rejected=[1, 0, 1]), "missing_field", "`votes_chosen` is missing"),
    (table(n_votes=[1, -1, 1], preference=[1.0] * 3), "votes_invalid", "`n_votes` is -1, a negative count"),
    (table(n_votes=[1, np.nan, 1]), "missing_field", "`n_votes` is missing"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("frame", "reason", "detail"), SET_ASIDE)
def test_a_row_whose_votes_say_nothing_is_set_aside_and_the_others_stay(tmp_path, frame, reason, detail, suffix):
    found = PairScores.read(written(frame.assign(pair_id=[*"abc"]), tmp_path / f"t{suffix}"))
    (aside,) = found.invalid
    assert (aside.row, aside.reason, aside.name) == (2, reason, "b")
    assert re.search(detail, aside.detail)
    assert ([*found["pair_id"]], found.counts["scored"], found.invalid_counts) == (["a", "c"], 2, {reason: 1})
    others = PairScores.from_frame(frame.assign(pair_id=[*"abc"]).drop(index=1))
    assert found.frame.equals(others.frame)


def test_rows_set_aside_for_either_cause_keep_the_numbers_of_their_file():
    """Votes first: a row is set aside once."""
    nan = float("nan")
    frame = table(6, policy_chosen=[-1, nan, nan, -1, -1, nan], preference=[2, 1, 2, 0.25, -1, 1])
    found = PairScores.from_frame(frame)
    assert [(row.row, row.name, row.reason) for row in found.invalid] == [
        (1, "1", "votes_invalid"),
        (2, "2", "non_finite_policy"),
        (3, "3", "votes_invalid"),
        (5, "5", "votes_invalid"),
        (6, "6", "non_finite_policy"),
    ]
    assert ([*found["pair_id"]], [*found["prompt_id"]], [*found["swapped"]]) == (["4"], ["4"], [True])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, -1.0, None]), min_size=1, max_size=12))
def test_a_table_sets_the_rows_aside_that_a_file_of_pairs_would(preferences):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "preference": p} for i, p in enumerate(preferences)]
    file = alignscope.read_pairs(rows)
    found = PairScores.from_frame(table(len(rows), preference=pd.Series(preferences, dtype=float)))
    assert [(row.row, row.reason, row.detail) for row in found.invalid] == [
        (row.row, row.reason, row.detail) for row in file.invalid
    ]
    assert [*found["swapped"]] == [pair.swapped for pair in file.pairs]


def test_what_was_set_aside_is_kept_with_the_table(tmp_path):
    found = PairScores.from_frame(table(preference=[0.5, 1.25, 1]))
    assert PairScores.read(found.save(tmp_path / "t.parquet")).invalid == found.invalid


def test_a_table_of_which_no_row_is_left_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"t\.csv: nothing is left: row 1, votes_invalid \(`preference` is 2, outside"):
        PairScores.read(written(table(preference=[2.0] * 3), tmp_path / "t.csv"))


REFUSED = [
    (table(policy_chosen=["-1", "minus two", "-3"]), r"row 2: `policy_chosen` is 'minus two', not numeric"),
    (
        table(explicit_chosen=["1"] * 3, explicit_rejected=["1", "1", "x"]),
        r"row 3: `explicit_rejected` is 'x', not num",
    ),
    (table(pair_id=["a", None, "c"]), r"row 2: `pair_id` is missing; name every row, or leave the column out"),
    (table(pair_id=["a", "b", "a"]), r"rows 1 and 3: both have the `pair_id` 'a'"),
    (table(n_chosen=[1, -4, 1], n_rejected=[1] * 3), r"row 2: `n_chosen` is -4; a whole number of at least 0"),
    (table(n_chosen=[1.5, 4, 1], n_rejected=[1] * 3), r"row 1: `n_chosen` is 1\.5; a whole number"),
    (table(n_chosen=[1, np.nan, 1], n_rejected=[1] * 3), r"row 2: `n_chosen` is missing; a whole number"),
    (table(swapped=["yes", "no", "no"]), r"row 1: `swapped` is 'yes'; expected true or false"),
    (table(reference_chosen=[1.0] * 3), "`reference_chosen` is given without `reference_rejected`"),
    (table(votes_rejected=[1.0] * 3), "`votes_rejected` is given without `votes_chosen`"),
    (table().drop(columns="policy_rejected"), r"no column policy_rejected; the columns are: policy_chosen"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("frame", "message"), REFUSED)
def test_a_table_that_cannot_be_meant_is_refused_by_file_row_and_column(tmp_path, frame, message, suffix):
    with pytest.raises(InputError, match=message) as error:
        PairScores.read(written(frame, tmp_path / f"bad{suffix}"))
    assert str(error.value).startswith(f"{tmp_path / 'bad'}{suffix}")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.csv", None, "no such file; expected a file of pair scores"),
        ("t.xlsx", "", r"unknown kind of table '\.xlsx'; expected one of \.parquet, \.csv, \.jsonl"),
        ("t.parquet", "no parquet", "not a readable Parquet file"),
        ("t.jsonl", '{"policy_chosen": -1, "policy_rejected": -2}\n[1]\n', "row 2: not a JSON object but list"),
        ("t.csv", "policy_chosen,policy_rejected\n-1,-2\n-1\n", "row 2: 1 fields where the header has 2"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        PairScores.read(tmp_path / name)


def test_a_table_is_not_written_as_what_it_is_not(tmp_path):
    with pytest.raises(InputError, match=r"unknown kind of table '\.xlsx'"):
        PairScores.from_frame(table()).save(tmp_path / "t.xlsx")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-50, 0)] * 2, st.integers(0, 8)), min_size=1, max_size=8))
def test_which_side_a_file_calls_chosen_does_not_matter(rows):
    first, second, eighths = (np.array(column) for column in zip(*rows, strict=True))
    eighths = np.where(eighths == 4, 5, eighths)  # a tie stays as it stands
    one = pd.DataFrame({"policy_chosen": first, "policy_rejected": second, "preference": eighths / 8})
    other = pd.DataFrame({"policy_chosen": second, "policy_rejected": first, "preference": 1 - eighths / 8})
    here, there = PairScores.from_frame(one), PairScores.from_frame(other)
    assert here.frame.drop(columns="swapped").equals(there.frame.drop(columns="swapped"))
    assert (here["swapped"] ^ there["swapped"]).all()


# ---- tables joined


def model(seed: int):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(PIECES), n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3)
    return alignscope.wrap(GPT2LMHeadModel(config).eval(), tiny_tokenizer())


def reward(prompts: list, completions: list) -> list[float]:
    return [len(text) / 8 for text in completions]


ROWS = [{"id": f"r{i}", "prompt": f"p {i}:", "chosen": f"yes{i}", "rejected": "n" * (i + 1)} for i in range(6)]


def test_tables_scored_apart_and_joined_are_the_table_scored_together():
    policy, reference = model(0), model(1)
    whole = score_pairs(policy, reference, ROWS, reward=reward)
    alone = score_pairs(policy, None, ROWS)
    base = score_pairs(reference, None, ROWS)
    judged = score_pairs(reference, None, ROWS, reward=reward)
    joined = alone.with_reference(base).with_explicit(judged)
    assert joined.frame.equals(whole.frame)
    assert (joined.counts, joined.notices) == (whole.counts, whole.notices)
    for key in ("policy", "reference", "reference_fingerprint", "reference_kind", "explicit", "eos", "pairs_sha256"):
        assert joined.settings[key] == whole.settings[key], key
    assert not alone.has_reference, "a join leaves its parts alone"
    other_ids = score_pairs(reference, None, ROWS, eos="none")
    with pytest.raises(InputError, match=r"eos: there 'none', here 'auto'; n_chosen of pair 'r0': there 4, here 5"):
        alone.with_reference(other_ids)


def scored(n: int = 40, names=None, settings=TEXT, **more) -> PairScores:
    columns = {"n_chosen": np.arange(n) + 1, "n_rejected": np.arange(n) + 2}
    columns |= {"pair_id": names or [f"p{i}" for i in range(n)]}
    return PairScores.from_frame(table(n, **columns | more), settings=settings)


def test_a_reference_is_found_by_name_and_not_by_place():
    shuffled = np.random.default_rng(0).permutation(40)
    numbers = np.arange(40) / 8 - 9
    there = scored(policy_chosen=numbers, policy_rejected=numbers - 1)
    there = PairScores(frame=there.frame.iloc[shuffled].reset_index(drop=True), settings=there.settings)
    joined = scored().with_reference(there)
    assert [*joined.reference_chosen] == [*numbers]
    assert [*joined.reference_rejected] == [*(numbers - 1)]
    assert [*joined["pair_id"]] == [f"p{i}" for i in range(40)]


def test_the_joined_table_names_its_reference():
    there = scored(settings=TEXT | {"policy": "sft", "policy_fingerprint": "abc", "dtype": "bfloat16"})
    here = scored(settings=TEXT | {"reference": None, "reference_kind": "none", "dtype": "float32"})
    joined = here.with_reference(there)
    found = {key: joined.settings[key] for key in ("reference", "reference_fingerprint", "reference_kind")}
    assert found == {"reference": "sft", "reference_fingerprint": "abc", "reference_kind": "separate"}
    assert "policy and reference were scored in other precisions (float32 and bfloat16)" in joined.notices


def test_another_reference_takes_the_mismatched_ratios_with_it():
    here = scored(mismatched=np.ones(40))
    assert np.isnan(here.with_reference(scored())["mismatched"]).all()


SETTINGS = {
    "template": "chat", "template_hash": "a" * 64, "template_date": "2024", "eos": "none", "eos_id": 3,
    "boundary": "accept", "max_length": 32, "over_length": "prompt_left", "vocabulary": 10, "pairs_sha256": "e" * 64,
    "tokenizer": "t", "added_prefix_ids": [1],
}  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
def test_a_reference_of_another_text_is_refused_by_the_setting(key):
    base = dict.fromkeys(SETTINGS) | {"policy": "dpo"}
    here, there = scored(settings=base), scored(settings=base | {key: SETTINGS[key], "policy": "sft"})
    with pytest.raises(InputError, match=rf"^sft cannot give the reference of dpo: {key}: there .*, here None$"):
        here.with_reference(there)


def test_every_difference_is_named_at_once():
    there = scored(settings=TEXT | {"eos": "none", "pairs_sha256": "e" * 64}, n_rejected=np.arange(40) + 3)
    with pytest.raises(InputError) as error:
        scored().with_reference(there)
    for part in (
        "eos: there 'none', here 'auto'",
        "pairs_sha256: there 'eeeeeeeeeeee...', here 'ffffffffffff...'",
        "n_rejected of pair 'p0': there 3, here 2 (40 of 40 pairs differ: another tokenizer, or other text)",
    ):
        assert part in str(error.value)


def test_pairs_turned_the_other_way_are_refused():
    turned = scored(preference=[0.25] + [1.0] * 39)
    with pytest.raises(InputError, match=r"swapped of pair 'p0': there True, here False \(1 of 40 pairs differ"):
        scored().with_reference(turned)


def test_names_that_stand_for_several_pairs_are_refused_on_either_side():
    twice = scored(names=[f"p{i // 2}" for i in range(40)])
    message = r"20 pair ids {} are on several rows \('p0', 'p1', 'p2', 'p3', 'p4', \.\.\.\)"
    with pytest.raises(InputError, match=message.format("there")):
        scored().with_reference(twice)
    with pytest.raises(InputError, match=message.format("here")):
        twice.with_reference(scored())


def test_pairs_without_a_name_are_refused():
    with pytest.raises(InputError, match="1 pairs there have no pair_id"):
        scored().with_reference(scored(names=[None, *(f"p{i}" for i in range(1, 40))]))


def test_pairs_that_a_reference_lacks_are_set_aside_up_to_the_share():
    here = scored()
    joined = here.with_reference(scored(38, names=[f"p{i + 2}" for i in range(38)], n_chosen=np.arange(38) + 3,
                                        n_rejected=np.arange(38) + 4))  # fmt: skip
    assert len(joined) == joined.counts["scored"] == 38
    assert [(row.row, row.reason, row.name) for row in joined.invalid] == [
        (1, "not_in_reference", "p0"),
        (2, "not_in_reference", "p1"),
    ]
    short = scored(37)
    with pytest.raises(
        InputError, match=r"3 of 40 pairs are missing there \('p37', 'p38', 'p39'\), more than --max-inv"
    ):
        here.with_reference(short)
    assert len(here.with_reference(short, max_invalid=0.1)) == 37


def test_pairs_of_the_reference_alone_are_counted_up_to_the_share():
    joined = scored(38).with_reference(scored())
    assert (len(joined), joined.counts["only_in_reference"], joined.invalid) == (38, 2, ())
    assert "2 pairs of the reference's table are not in the policy's" in joined.notices
    with pytest.raises(InputError, match=r"3 of 40 pairs are missing here \('p37', 'p38', 'p39'\)"):
        scored(37).with_reference(scored())


def test_tables_of_no_common_pair_are_refused_at_any_share():
    with pytest.raises(InputError, match="40 of 40 pairs are missing there"):
        scored().with_reference(scored(names=[f"q{i}" for i in range(40)]), max_invalid=1.0)


def test_a_table_without_settings_is_compared_by_ids_and_lengths_and_that_is_told():
    foreign = scored(settings={"table": "theirs.csv"})
    (notice,) = [text for text in scored().with_reference(foreign).notices if "theirs.csv" in text]
    assert "theirs.csv: nothing says how the text became ids, so only pair ids and lengths could be" in notice
    with pytest.raises(InputError, match="n_chosen of pair 'p0'"):
        scored().with_reference(scored(settings={}, n_chosen=np.arange(40) + 9))
    unknown = PairScores.from_frame(scored().frame.assign(n_chosen=0, n_rejected=0))
    joined = scored().with_reference(unknown)
    assert any("only pair ids could be compared" in text for text in joined.notices)


def test_tables_that_lost_the_same_rows_are_joined_up_to_the_share(tmp_path):
    """No pair is missing on either side, and yet 3 of 40 rows are."""
    frame = table(40, pair_id=[f"p{i}" for i in range(40)], preference=[2.0] * 3 + [1.0] * 37)
    files = [written(frame, tmp_path / f"{name}.csv") for name in ("policy", "reference")]
    with pytest.raises(InputError, match=r"policy\.csv: 3 of 40 rows cannot be used, more than --max-invalid 0\.05"):
        join_tables(*files, None, tmp_path / "joined.parquet")
    assert not (tmp_path / "joined.parquet").exists()
    join_tables(*files, None, tmp_path / "joined.parquet", max_invalid=0.1)
    joined = PairScores.read(tmp_path / "joined.parquet")
    assert (len(joined), joined.invalid_counts, joined.has_reference) == (37, {"votes_invalid": 3}, True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_joined_table_still_says_what_could_not_be_compared_when_it_is_read_again(tmp_path, suffix):
    marks = {"explicit_chosen": np.arange(40.0), "explicit_rejected": np.zeros(40)}
    for name, more in (("dpo", {}), ("sft", {}), ("rm", marks)):
        scored(**more).save(tmp_path / f"{name}.csv")
    names = [tmp_path / f"{name}.csv" for name in ("dpo", "sft", "rm")]
    joined = join_tables(*names, tmp_path / f"joined{suffix}")
    (notice,) = [text for text in joined.notices if "sft.csv" in text]
    assert "nothing says how the text became ids" in notice
    again = PairScores.read(tmp_path / f"joined{suffix}")
    assert again.frame.equals(joined.frame)
    assert all(any(text in said for said in again.notices) for text in joined.notices)
    further = PairScores.read(again.with_explicit(scored(**marks)).save(tmp_path / f"further{suffix}"))
    assert any(notice in said for said in further.notices)
    report = audit_tables(tmp_path / f"further{suffix}", settings=PreferenceSettings(bootstrap=20))
    for section in ("ranking", "rewards"):
        assert any(notice in warning for warning in report.section(section).warnings)


def test_what_rows_of_several_joined_tables_say_is_told_once_each():
    frame = table(4, join_notices=["a is not known", "", None, "b is not known"])
    assert PairScores.from_frame(frame).notices == ("a is not known", "b is not known")


def test_explicit_scores_of_a_table_that_was_joined_bring_its_notices_along():
    unknown = scored(settings={"table": "rm.csv"}, explicit_chosen=np.arange(40.0), explicit_rejected=np.zeros(40))
    judged = scored().with_explicit(unknown)
    (notice,) = judged.settings["joined"]
    assert scored().with_explicit(judged).settings["joined"] == [notice]


# ---- explicit scores joined


def test_pairs_without_an_explicit_score_stay_and_are_counted():
    marks = np.arange(38) / 4
    there = scored(38, explicit_chosen=marks, explicit_rejected=-marks, settings=TEXT | {"explicit": "rm"})
    joined = scored().with_explicit(there)
    assert [*joined.explicit_chosen[:38]] == [*marks]
    assert np.isnan(joined.explicit_rejected[38:]).all()
    assert (len(joined), joined.counts["explicit_missing"], joined.settings["explicit"]) == (40, 2, "rm")
    with pytest.raises(InputError, match="2 of 40 pairs are missing there"):
        scored().with_explicit(there, max_invalid=0.04)


def test_scores_that_were_missing_are_counted_anew():
    marks = np.arange(40) / 4
    whole = scored(explicit_chosen=marks, explicit_rejected=-marks)
    gaps = scored(explicit_chosen=np.where(marks < 1, np.nan, marks), explicit_rejected=-marks)
    assert gaps.counts["explicit_missing"] == 4
    assert "explicit_missing" not in gaps.with_explicit(whole).counts


def test_a_reward_model_may_read_other_ids_of_the_same_file():
    marks = {"explicit_chosen": np.ones(40), "explicit_rejected": np.zeros(40), "n_chosen": np.arange(40) + 9}
    other = TEXT | {"vocabulary": 7, "eos_id": 1, "max_length": 512}
    assert len(scored().with_explicit(scored(settings=other, **marks))) == 40
    with pytest.raises(InputError, match="n_chosen of pair 'p0'"):
        scored().with_explicit(scored(settings={}, **marks))
    with pytest.raises(InputError, match=r"cannot give explicit scores of .*: template: there 'chat', here 'none'"):
        scored().with_explicit(scored(settings=other | {"template": "chat"}, **marks))


def test_a_table_without_explicit_scores_gives_none():
    with pytest.raises(InputError, match="holds no explicit scores"):
        scored().with_explicit(scored())
