"""Reading prompts and pairs: what each shape of a row means, and which rows are set aside for which reason."""

import csv
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from alignscope import InputError, read_pairs, read_prompts
from alignscope.probes.inputs import PairFile, check_invalid, distinct_prompts

USER, ANSWER, OTHER = (
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5"},
)
VOTED = {"prompt": "p", "response_a": "x", "response_b": "y"}


def one(row: dict) -> "PairFile":
    return read_pairs([row])


def reasons(rows: list) -> dict[int, str]:
    return {row.row: row.reason for row in read_pairs(rows).invalid}


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


# ---- what a row says


def test_a_decided_pair_is_read_as_it_stands():
    pair = one({"id": 7, "prompt": "p\u2028", "chosen": " a", "rejected": "b ", "split": "test", "tag": 3})[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ("p\u2028", " a", "b ")
    assert (pair.pair_id, pair.row, pair.split, pair.tag, pair.swapped) == ("7", 1, "test", "3", False)
    assert pair.preference is None
    assert pair.votes_chosen is None


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_holds_the_same_pairs(tmp_path, suffix):
    rows = [
        {"id": "a", "prompt": 'say "hi",\nplease', "response_a": "hi", "response_b": "ho\u2028ho", "votes_a": 1,
         "votes_b": 3, "votes_tie": 1},
        {"id": "b", "prompt": "ümlaut", "response_a": "NA", "response_b": "null", "votes_a": 2, "votes_b": 0,
         "votes_tie": 0},
    ]  # fmt: skip
    assert read_pairs(write(tmp_path / f"pairs{suffix}", rows)).pairs == read_pairs(rows).pairs
    pair = read_pairs(rows)[0]
    assert (pair.chosen, pair.rejected, pair.swapped) == ("ho\u2028ho", "hi", True)
    assert (pair.votes_chosen, pair.votes_rejected, pair.votes_tie) == (3, 1, 1)


@pytest.mark.parametrize(
    ("judged", "chosen", "swapped"),
    [
        ({"votes_a": 3, "votes_b": 2}, "x", False),
        ({"votes_a": 1, "votes_b": 2, "votes_tie": 2}, "y", True),
        ({"votes_a": 2, "votes_b": 2, "votes_tie": 0}, "x", False),  # a human tie keeps the file's order
        ({"preference": 0.25}, "y", True),
        ({"preference": "0.75"}, "x", False),  # CSV has only text
        ({"label": "a"}, "x", False),
        ({"label": " B"}, "y", True),
    ],
)
def test_open_pairs_are_turned_to_the_preferred_response(judged, chosen, swapped):
    pair = one(VOTED | judged)[0]
    assert (pair.chosen, pair.swapped) == (chosen, swapped)
    if "preference" in judged:
        assert pair.preference == 0.75


def test_explicit_scores_turn_with_their_pair():
    pair = one(VOTED | {"label": "b", "explicit_a": 0.5, "explicit_b": -1})[0]
    assert (pair.explicit_chosen, pair.explicit_rejected) == (-1, 0.5)
    decided = {"prompt": "p", "chosen": "x", "rejected": "y", "explicit_chosen": "1.5", "explicit_rejected": "nan"}
    assert (one(decided)[0].explicit_chosen, one(decided)[0].explicit_rejected) == (1.5, None)


def test_a_decided_pair_with_a_minority_vote_is_turned():
    pair = one({"prompt": "p", "chosen": "x", "rejected": "y", "votes_chosen": 1, "votes_rejected": 4})[0]
    assert (pair.chosen, pair.votes_chosen, pair.swapped) == ("y", 4, True)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},  # whole conversations: the prompt is what they share
        {"prompt": "2 + 2?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},  # UltraFeedback binarized
        {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": [USER], "chosen": "4", "rejected": "5"},
    ],
)
def test_conversations_in_every_form_are_the_same_pair(row):
    pair = one(row)[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ((USER,), (ANSWER,), (OTHER,))


def test_conversations_survive_parquet_with_its_empty_keys(tmp_path):
    rows = [{"chosen": [USER, ANSWER | {"name": "m"}], "rejected": [USER, OTHER]}]
    pair = read_pairs(write(tmp_path / "pairs.parquet", rows))[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ((USER,), (ANSWER | {"name": "m"},), (OTHER,))


def test_whole_texts_are_cut_behind_the_last_assistant_mark():
    prompt = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 2 + 2?\n\nAssistant:"
    pair = one({"chosen": f"{prompt} 4", "rejected": f"{prompt} 5"})[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, " 4", " 5")


# ---- what cannot be used


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "x"}, "missing_field"),
        ({"prompt": None, "chosen": "x", "rejected": "y"}, "missing_field"),
        ({"prompt": "p", "chosen": True, "rejected": "y"}, "not_string"),
        ({"prompt": 3, "chosen": "x", "rejected": "y"}, "not_string"),
        ({"prompt": "p", "chosen": "x", "rejected": " \n"}, "empty_completion"),
        ({"prompt": "p", "chosen": "", "rejected": ""}, "empty_completion"),
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "identical_completions"),
        ({"prompt": "p", "chosen": "x", "rejected": [ANSWER]}, "mixed_forms"),
        ({"prompt": "2 + 2?", "chosen": [ANSWER], "rejected": [OTHER]}, "mixed_forms"),
        ({"prompt": "2 + 2?", "chosen": [], "rejected": [OTHER]}, "empty_completion"),
        ({"prompt": [USER], "chosen": [{"content": "x"}], "rejected": [ANSWER]}, "not_string"),
        ({"prompt": [USER], "chosen": [ANSWER | {"content": [1]}], "rejected": [OTHER]}, "not_string"),
        ({"prompt": "3 + 3?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "prompt_mismatch"),
        ("a text, no row", "not_a_row"),
    ],
)
def test_a_bad_row_is_set_aside_by_reason(row, reason):
    good = {"prompt": "p", "chosen": "x", "rejected": "y"}
    file = read_pairs([good, row, good])
    assert [(r.row, r.reason) for r in file.invalid] == [(2, reason)]
    assert (len(file), file.n_rows) == (2, 3)
    assert [pair.row for pair in file] == [1, 3]


@pytest.mark.parametrize(
    ("judged", "reason"),
    [
        ({"votes_a": -1, "votes_b": 2}, "votes_invalid"),
        ({"votes_a": 0, "votes_b": 0, "votes_tie": 0}, "votes_invalid"),
        ({"votes_a": "many", "votes_b": 2}, "votes_invalid"),
        ({"votes_a": True, "votes_b": 2}, "votes_invalid"),
        ({"votes_a": 10**400, "votes_b": 2}, "votes_invalid"),  # JSON has it, a float does not
        ({"votes_a": 1e308, "votes_b": 1e308}, "votes_invalid"),  # nor their sum
        ({"votes_a": None, "votes_b": 2}, "missing_field"),
        ({"preference": 1.5}, "votes_invalid"),
        ({"preference": float("nan")}, "votes_invalid"),
        ({"preference": 10**400}, "votes_invalid"),
        ({"preference": ""}, "missing_field"),
        ({"label": "tie"}, "label_invalid"),
        ({"label": None}, "missing_field"),
    ],
)
def test_a_bad_judgement_is_set_aside_by_reason(judged, reason):
    assert reasons([VOTED | judged]) == {1: reason}


def test_conversations_that_differ_before_the_answer_have_other_prompts():
    asked = [{"role": "user", "content": "3 + 3?"}]
    assert reasons([{"chosen": [USER, ANSWER], "rejected": [*asked, OTHER]}]) == {1: "prompt_mismatch"}
    longer = {"chosen": [USER, ANSWER, *asked, OTHER], "rejected": [USER, OTHER]}
    assert reasons([longer]) == {1: "prompt_mismatch"}
    assert reasons([{"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}]) == {1: "identical_completions"}


def test_a_line_that_is_no_json_is_one_bad_row(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "x", "rejected": "y"}\n{"prompt": \n[1]\n\n', encoding="utf-8")
    read = read_pairs(file)
    assert [(row.row, row.reason) for row in read.invalid] == [(2, "not_a_row"), (3, "not_a_row")]
    assert "JSON" in read.invalid[0].detail
    assert read.n_rows == 3


HALF = "\ud83d"  # half of an emoji: valid JSON, no text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": f"x {HALF}", "rejected": "y"},
        {"prompt": f"p {HALF}", "chosen": "x", "rejected": "y"},
        {"prompt": [USER], "chosen": [ANSWER | {"content": HALF}], "rejected": [OTHER]},
        {"prompt": [USER], "chosen": [ANSWER | {"role": HALF}], "rejected": [OTHER]},
        {"prompt": "p", "chosen": "x", "rejected": "y", "id": HALF},
        {"prompt": "p", "chosen": "x", "rejected": "y", "tag": HALF},
    ],
)
def test_half_a_character_sets_its_row_aside(row, tmp_path):
    file = tmp_path / "pairs.jsonl"
    good = {"prompt": "p", "chosen": "x", "rejected": "y"}
    file.write_text(f"{json.dumps(row)}\n{json.dumps(good)}\n", encoding="utf-8")
    read = read_pairs(file)
    assert [(bad.row, bad.reason) for bad in read.invalid] == [(1, "not_encodable")]
    assert "half a character ('\\ud83d' at character" in read.invalid[0].detail
    assert (read.invalid[0].detail + read.invalid[0].name).encode("utf-8")  # both go into the report
    assert len(read) == 1


def test_a_prompt_with_half_a_character_is_set_aside():
    file = read_prompts([{"prompt": "p"}, {"prompt": HALF}])
    assert [(row.row, row.reason) for row in file.invalid] == [(2, "not_encodable")]


def test_deep_nesting_is_one_bad_row_or_a_bad_file(tmp_path):
    deep = f"{'[' * 100_000}{']' * 100_000}"
    good = '{"prompt": "p", "chosen": "x", "rejected": "y"}'
    lines, whole = tmp_path / "pairs.jsonl", tmp_path / "pairs.json"
    lines.write_text(f'{good}\n{{"prompt": {deep}}}\n', encoding="utf-8")
    read = read_pairs(lines)
    assert [(row.row, row.reason, row.detail) for row in read.invalid] == [
        (2, "not_a_row", "not readable JSON: nested too deeply")
    ]
    whole.write_text(deep, encoding="utf-8")
    with pytest.raises(InputError, match=r"pairs\.json: JSON nested too deeply"):
        read_pairs(whole)
    shallow = {"prompt": json.loads('{"a":' * 800 + "1" + "}" * 800), "chosen": "x", "rejected": "y"}
    lines.write_text(f"{good}\n{json.dumps(shallow)}\n", encoding="utf-8")
    assert [row.reason for row in read_pairs(lines).invalid] == ["not_string"]


def test_an_explicit_score_beyond_every_float_is_none():
    row = {"prompt": "p", "chosen": "x", "rejected": "y", "explicit_chosen": 10**400, "explicit_rejected": 1}
    assert one(row)[0].explicit_chosen is None


def test_a_csv_line_of_another_width_is_one_bad_row(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text('prompt,chosen,rejected\np,x,y\np,x\n"p, q",x,"y\nz"\n', encoding="utf-8")
    read = read_pairs(file)
    assert [(row.row, row.reason, row.detail) for row in read.invalid] == [
        (2, "not_a_row", "2 fields where the header has 3")
    ]
    assert (read[1].prompt, read[1].rejected) == ("p, q", "y\nz")


# ---- what is no file of pairs


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pairs.jsonl", b"", "empty"),
        ("pairs.csv", b"prompt,chosen,rejected\n", "no rows"),
        ("pairs.json", b"[]", "no rows"),
        ("pairs.json", b'{"prompt": "p"}', "expected a list"),
        ("pairs.json", b'{"prompt": "p"}\n{"prompt": "q"}', ".jsonl"),
        ("pairs.jsonl", b'{"question": "a", "good": "b"}\n', "question, good"),
        ("pairs.jsonl", b'{"prompt": "a", "response_a": "b", "response_b": "c"}\n', "votes_a"),
        ("pairs.jsonl", b"plain text\n", "no line is a JSON object"),
        ("pairs.jsonl", '{"prompt": "ä"}'.encode("latin-1"), "line 1: not UTF-8"),
        ("pairs.csv", b"prompt,prompt\na,b\n", "twice"),
        ("pairs.parquet", b"no parquet", "Parquet"),
        ("pairs.txt", b"text", "unknown kind of file '.txt'"),
    ],
)
def test_an_unusable_file_is_refused_by_name(tmp_path, name, content, says):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_pairs(file)
    assert str(file) in str(error.value)
    assert says in str(error.value)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        read_pairs(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="a folder"):
        read_prompts(tmp_path)
    with pytest.raises(InputError, match="single dictionary"):
        read_pairs({"prompt": "p", "chosen": "x", "rejected": "y"})
    with pytest.raises(InputError, match="no rows"):
        read_pairs([])


def test_the_hash_is_of_the_content_alone(tmp_path):
    rows = [VOTED | {"label": "a"}]
    first, second = write(tmp_path / "one.jsonl", rows), write(tmp_path / "two.jsonl", rows)
    assert read_pairs(first).sha256 == read_pairs(second).sha256
    assert read_pairs(rows).sha256 != read_pairs([VOTED | {"label": "b"}]).sha256


# ---- the share of bad rows


def rows_with(n_bad: int, n: int = 100) -> PairFile:
    good = [{"prompt": str(i), "chosen": "x", "rejected": "y"} for i in range(n - n_bad)]
    return read_pairs([*good, *([{"prompt": "p", "chosen": "", "rejected": "y"}] * n_bad)])


def test_the_run_stops_above_the_share_and_not_at_it():
    check_invalid(rows_with(5), 0.05)
    with pytest.raises(InputError, match=r"6 of 100 rows \(6\.0%\).*--max-invalid 0\.05: 6 empty_completion.*row 95"):
        check_invalid(rows_with(6), 0.05)
    check_invalid(rows_with(99), 1.0)
    with pytest.raises(InputError, match="nothing is left"):
        check_invalid(rows_with(100), 1.0)
    with pytest.raises(InputError, match="between 0 and 1"):
        check_invalid(rows_with(0), 5.0)


def test_rows_set_aside_later_count_too():
    file = rows_with(5)
    with pytest.raises(InputError, match="5 empty_completion"):
        check_invalid(file, 0.05, more=[file.invalid[0].__class__(row=1, reason="too_long", detail="9 tokens")])


# ---- prompts


def test_prompts_come_from_prompt_then_text_then_bare_strings(tmp_path):
    assert [p.text for p in read_prompts([{"prompt": "p", "text": "t"}])] == ["p"]
    assert [p.text for p in read_prompts([{"text": "t"}])] == ["t"]
    assert [p.text for p in read_prompts(write(tmp_path / "a.json", ["one", "two"]))] == ["one", "two"]  # type: ignore[list-item]
    assert read_prompts([{"prompt": [USER], "prompt_id": 3}])[0].text == (USER,)
    assert read_prompts([{"prompt": [USER], "prompt_id": 3}])[0].prompt_id == "3"
    with pytest.raises(InputError, match="`prompt` or `text`; the columns are: question"):
        read_prompts([{"question": "?"}])


def test_bad_prompts_are_set_aside():
    file = read_prompts([{"prompt": "p"}, {"prompt": " "}, {"prompt": 4}, {"prompt": None}])
    assert [row.reason for row in file.invalid] == ["empty_prompt", "not_string", "missing_field"]


def test_distinct_prompts_are_a_seeded_sample_in_file_order():
    pairs = read_pairs([{"prompt": str(i // 2), "chosen": "x", "rejected": "y"} for i in range(200)])
    every = [p.text for p in distinct_prompts(pairs)]
    assert every == [str(i) for i in range(100)]
    some = [p.text for p in distinct_prompts(pairs, limit=10)]
    assert len(some) == 10
    assert some == sorted(some, key=int)
    assert some == [p.text for p in pairs.prompts(limit=10)]
    assert some != [p.text for p in distinct_prompts(pairs, limit=10, seed=1)]


def test_the_first_pairs_are_other_data():
    file = rows_with(0)
    assert [pair.row for pair in file.take(3)] == [1, 2, 3]
    assert file.take(3).sha256 != file.sha256
    assert file.take(1000) is file


# ---- real files


def test_real_pairs(data_folder):
    data = data_folder / "data"
    expected = {  # file: rows, set aside by reason, pairs whose second response is the preferred one
        "hh_harmless/test.jsonl": (2307, {"empty_completion": 4}, 0),
        "hh_harmless/mismatched_prompt.jsonl": (5, {"prompt_mismatch": 5}, 0),
        "pandalm/testset.jsonl": (993, {"empty_completion": 54}, None),
        "ukp_convincing/pairs.jsonl": (16927, {"identical_completions": 15}, None),
        "llmbar/natural.jsonl": (100, {}, None),
        "refusal_triplets/train.jsonl": (128, {}, 0),
        **{f"shift/{path.name}": (200, {}, 0) for path in (data / "shift").glob("*.jsonl")},
    }
    for name, (n_rows, aside, swapped) in expected.items():
        file = read_pairs(data / name)
        assert (file.n_rows, Counter(row.reason for row in file.invalid)) == (n_rows, aside), name
        if swapped is not None:
            assert sum(pair.swapped for pair in file) == swapped, name
    with pytest.raises(InputError, match=r"nothing is left: 5 of 5 rows.*5 prompt_mismatch"):
        check_invalid(read_pairs(data / "hh_harmless/mismatched_prompt.jsonl"))


def test_real_votes_point_to_the_majority(data_folder):
    file = read_pairs(data_folder / "data" / "ukp_convincing" / "pairs.jsonl")
    assert all(pair.votes_chosen >= pair.votes_rejected for pair in file)
    untied = [pair for pair in file if pair.votes_chosen > pair.votes_rejected]
    longer = [len(pair.chosen.split()) - len(pair.rejected.split()) for pair in untied]
    assert sum(n > 0 for n in longer) / sum(n != 0 for n in longer) == pytest.approx(0.711, abs=2e-3)  # README


def test_booleans_among_real_responses_are_no_strings(data_folder):
    lines = (data_folder / "data" / "pandalm" / "odd_rows.jsonl").read_text(encoding="utf-8").splitlines()
    odd = [json.loads(line) for line in lines]
    renamed = [
        {"prompt": row["instruction"], "response_a": row["response1"], "response_b": row["response2"], "label": "a"}
        for row in odd
    ]
    assert reasons(renamed) == dict.fromkeys(range(1, 7), "not_string")
    with pytest.raises(InputError, match="response1, response2"):
        read_pairs(data_folder / "data" / "pandalm" / "odd_rows.jsonl")


def test_real_prompts(data_folder):
    assert len(read_prompts(data_folder / "data" / "xstest" / "prompts.csv")) == 450
    assert len(read_prompts(data_folder / "data" / "corpora" / "tinystories_1000.json")) == 1000
    pairs = read_pairs(data_folder / "data" / "hh_harmless" / "test.jsonl")
    assert len(distinct_prompts(pairs, limit=None)) <= 2305
    assert len(pairs.prompts()) == 512
