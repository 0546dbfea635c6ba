"""`alignscope score` as a user meets it: a table that is there whole or not at all, and one clear message otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import zoo
from alignscope import InputError, PairScores, score_pairs
from alignscope.cli.main import app
from alignscope.probes.score_table import score_table

WORDS = ["the cat sat on the mat", "a dog ran", "birds fly over the sea", "rain falls on hills", "we sang old songs"]


def pair_rows(n: int) -> list[dict]:
    return [
        {
            "id": f"pair-{i}",
            "prompt": f"{WORDS[i % 5]} {i}.\n",
            "chosen": f"{WORDS[(i + 1) % 5]} {i * 7 % 11}",
            "rejected": f"{WORDS[(i + 2) % 5]} and {WORDS[(i * 3) % 5]}",
        }
        for i in range(n)
    ]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Two tiny models of one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    for name, factor in (("policy", 1.02), ("reference", 1.0)):
        model = zoo.model("llama")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        model.save_pretrained(folder / name)
        zoo.tokenizer().save_pretrained(folder / name)
    return {name: folder / name for name in ("policy", "reference")}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pair_rows(40))


def score(*arguments: object, code: int = 0):
    """The outcome of `alignscope score`; an InputError is raised as it is."""
    done = CliRunner().invoke(app, ["score", *map(str, arguments)], catch_exceptions=True)
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
def command(models, pairs) -> list:
    """Policy against reference, without the user's cache."""
    return ["--policy", models["policy"], "--reference", models["reference"], "--pairs", pairs, "--no-cache"]


def test_the_table_is_that_of_the_library(command, models, pairs, tmp_path):
    done = score(*command, "-o", tmp_path / "t.parquet")
    expected = score_pairs(models["policy"], models["reference"], pairs)
    found = PairScores.load(tmp_path / "t.parquet")
    assert found.frame.equals(expected.frame)
    assert (found.settings, found.counts) == (expected.settings, expected.counts)
    assert done.stdout.startswith("40 pairs scored; rows set aside: none.")
    assert (
        "notice: 40 pairs are plain strings and were read raw, though the tokenizer has a chat template" in done.stdout
    )
    assert done.stderr.endswith(f"table: {tmp_path / 't.parquet'}\n")
    assert [*tmp_path.iterdir()] == [tmp_path / "t.parquet"], "no shards are left behind"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_plain_table_holds_the_same_numbers_and_says_what_it_lacks(command, tmp_path, suffix):
    done = score(*command, "-o", tmp_path / f"t{suffix}")
    assert "columns alone: settings are kept in .parquet only" in done.stderr
    score(*command, "-o", tmp_path / "t.parquet", "--quiet")
    assert PairScores.read(tmp_path / f"t{suffix}").frame.equals(PairScores.load(tmp_path / "t.parquet").frame)


def test_json_for_machines(command, models, tmp_path):
    done = score(*command, "-o", tmp_path / "t.parquet", "--json", "--quiet", "--eos", "none", "--template", "chat")
    facts = json.loads(done.stdout)
    assert done.stderr == ""
    assert (facts["counts"]["scored"], facts["set_aside"], facts["notices"]) == (40, {}, [])
    assert {key: facts["settings"][key] for key in ("eos", "template", "reference")} == {
        "eos": "none",
        "template": "chat",
        "reference": str(models["reference"]),
    }


def test_rows_set_aside_are_counted_and_shown(models, tmp_path):
    rows = [*pair_rows(40), {"id": "odd", "prompt": "x", "chosen": "", "rejected": "y"}]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    arguments = ["--policy", models["policy"], "--pairs", file, "--no-cache", "-o", tmp_path / "t.parquet"]
    done = score(*arguments)
    assert "40 pairs scored; rows set aside: 1 empty_completion." in done.stdout
    assert "set aside: row 41 (odd): empty_completion, `chosen` holds no text" in done.stdout
    with pytest.raises(InputError, match="more than --max-invalid 0"):
        score(*arguments, "--overwrite", "--max-invalid", 0)


def test_a_killed_run_continues_and_gives_the_same_table(command, models, pairs, tmp_path):
    def kill(stage: str, done: int, total: int) -> None:
        if stage == "scoring reference" and done:
            raise KeyboardInterrupt

    out = tmp_path / "t.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_table(models["policy"], models["reference"], pairs, out, progress=kill)
    assert not out.exists()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "t.parquet.shards").iterdir()}
    assert kept
    seen = []
    score_table(models["policy"], models["reference"], pairs, out, progress=lambda *call: seen.append(call))
    first = {stage: done for stage, done, total in reversed(seen)}
    totals = {stage: total for stage, done, total in seen}
    assert first["scoring policy"] == totals["scoring policy"], "the policy was scored already"
    assert first["scoring reference"] > 0, "a finished shard of the reference was scored already"
    assert PairScores.load(out).frame.equals(score_pairs(models["policy"], models["reference"], pairs).frame)
    assert [*tmp_path.iterdir()] == [out]


def test_what_is_not_a_shard_stays(models, pairs, tmp_path):
    shards = tmp_path / "t.parquet.shards"
    shards.mkdir()
    (shards / "notes.txt").write_text("mine")
    score_table(models["policy"], None, pairs, tmp_path / "t.parquet")
    assert [file.name for file in shards.iterdir()] == ["notes.txt"]


def test_a_table_that_is_there_is_neither_scored_again_nor_lost(command, tmp_path):
    out = tmp_path / "t.parquet"
    score(*command, "-o", out, "--quiet")
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"t\.parquet: there already; --overwrite"):
        score(*command, "-o", out)
    assert out.read_bytes() == before
    score(*command, "-o", out, "--overwrite", "--eos", "none")
    assert PairScores.load(out).settings["eos"] == "none"


def test_tables_scored_apart_are_joined(command, models, pairs, tmp_path):
    for name in models:
        score("--policy", models[name], "--pairs", pairs, "--no-cache", "-o", tmp_path / f"{name}.parquet")
    tables = ["--policy-table", tmp_path / "policy.parquet", "--reference-table", tmp_path / "reference.parquet"]
    score(*tables, "-o", tmp_path / "joined.parquet")
    score(*command, "-o", tmp_path / "together.parquet")
    joined, together = (PairScores.load(tmp_path / f"{name}.parquet") for name in ("joined", "together"))
    assert joined.frame.equals(together.frame)
    assert joined.settings["reference"] == str(models["reference"]) == together.settings["reference"]


def test_a_reward_table_is_joined(models, tmp_path):
    rows = write_jsonl(
        tmp_path / "p.jsonl", [row | {"explicit_chosen": 1.5, "explicit_rejected": 0} for row in pair_rows(8)]
    )
    plain = write_jsonl(tmp_path / "q.jsonl", pair_rows(8))
    for name, file in (("with", rows), ("without", plain)):
        score("--policy", models["policy"], "--pairs", file, "-o", tmp_path / f"{name}.csv", "--no-cache")
    score("--policy-table", tmp_path / "without.csv", "--reward-table", tmp_path / "with.csv", "-o", tmp_path / "j.csv")
    joined = PairScores.read(tmp_path / "j.csv")
    assert ([*joined.explicit_chosen], [*joined.explicit_rejected]) == ([1.5] * 8, [0] * 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "p"], "give --policy and --pairs to score, or --policy-table and --reference-table to join"),
        (["--policy-table", "p.parquet"], "give --policy-table and one of --reference-table and --reward-table"),
        (["--reward-table", "p.parquet"], "give --policy-table and one of --reference-table and --reward-table"),
        (["--policy-table", "p.csv", "--reference-table", "r.csv", "--base", "b"], "--base with tables to join"),
        (["--policy", "p", "--pairs", "q", "--share-prefix", "no"], "--share-prefix no: choose from auto, on, off"),
        (["--policy", "p", "--pairs", "q", "--eos", "no"], "eos='no': expected one of auto, append, none"),
        (["--policy", "p", "--pairs", "nowhere.jsonl"], r"nowhere\.jsonl: no such file"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        score(*arguments, "-o", tmp_path / "t.parquet")
    assert [*tmp_path.iterdir()] == []


def test_places_where_no_table_can_be_are_refused(command, models, pairs, tmp_path):
    with pytest.raises(InputError, match=r"unknown kind of table '\.xlsx'"):
        score(*command, "-o", tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="a folder; name a file for the table"):
        score(*command, "-o", tmp_path)
    with pytest.raises(InputError, match="this is a file that is read"):
        score(*command, "-o", pairs, "--overwrite")
    assert len(pairs.read_text().splitlines()) == 40
    with pytest.raises(InputError, match="--base b: no adapter folder among policy, reference and reward"):
        score(*command, "-o", tmp_path / "t.parquet", "--base", "b")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "alignscope.cli.main", "score", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def test_an_error_is_one_line_and_exit_2(tmp_path):
    done = run("--policy-table", "a.csv", "--reference-table", "b.csv", "-o", tmp_path / "t.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "alignscope: a.csv: no such file; expected a file of pair scores (.parquet, .csv, .jsonl)\n"


def test_help_shows_how_to_score_and_how_to_join():
    text = score("--help").stdout
    assert "Two models:" in text
    assert "Apart, joined:" in text
