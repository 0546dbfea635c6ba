"""`alignscope steer evaluate` and `sweep` as a user meets them: one report, its views, a gate, or one clear message."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import alignscope
from alignscope import InputError, Report
from alignscope.cli.main import app, main
from alignscope.organisms.concept import build_concept_organism
from alignscope.steering import baselines, evaluate_steering

FAST = ["--quiet", "--resamples", "20", "--max-new-tokens", "5"]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """model/, v.safetensors of it, and its rows."""
    found = tmp_path_factory.mktemp("inputs")
    organism = build_concept_organism(steps=60)
    organism.subject.model.save_pretrained(found / "model")
    organism.subject.tokenizer.save_pretrained(found / "model")
    write(found / "train.jsonl", list(organism.quadruples[:16]))
    write(found / "test.jsonl", list(organism.fresh[:24]))
    write(found / "texts.jsonl", [{"text": row["negative_input"]} for row in organism.fresh[30:60]])
    write(found / "prompts.jsonl", [{"prompt": row["negative_input"]} for row in organism.fresh[30:40]])
    subject = alignscope.load(found / "model")
    baselines.fit_diffmean(subject, organism.quadruples[:16], layer=1).save(found / "v.safetensors")
    baselines.fit_lat(subject, organism.quadruples[:16], layer=1).save(found / "other.safetensors")
    return found


def steer(command: str, folder: Path, *arguments: object, code: int = 0):
    """The outcome of a command on the vector and the model; an InputError is raised as it is."""
    given = ["steer", command, folder / "v.safetensors", folder / "model", *arguments, *FAST]
    done = CliRunner().invoke(app, [str(value) for value in given], catch_exceptions=True)
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == code, (done.output, done.exception)
    return done


def rows_of(folder: Path) -> list:
    return ["--quadruples", folder / "test.jsonl", "--training", folder / "train.jsonl"]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    """A run of all parts, by the command."""
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = [
        *rows_of(folder),
        "--texts",
        folder / "texts.jsonl",
        "--strengths",
        "-1,0,1",
        "--baselines",
        "lat,prompt",
    ]
    arguments += ["--scorer", "keyword:p[0-9]", "--concept", "POS", "--compare", f"far={folder / 'other.safetensors'}"]
    done = steer("evaluate", folder, *arguments, "--out", out)
    assert "recovered_elicit" in done.stdout
    return out


def test_the_report_is_that_of_the_library(folder, run):
    expected = evaluate_steering(
        alignscope.load(folder / "model"), folder / "v.safetensors", folder / "test.jsonl",
        training=folder / "train.jsonl", only="faithfulness", max_new_tokens=5, resamples=20,
    ).section("steering").estimates  # fmt: skip
    report = Report.load(run)
    for name, estimate in expected.items():  # methods beside it move the sums by a bit
        own = report.estimate(f"steering.{name}")
        for part in ("value", "low", "high"):
            assert getattr(own, part) == pytest.approx(getattr(estimate, part), abs=1e-12), name
    assert {*report.to_frame("steering.methods").method} >= {"vector", "far", "lat", "prompt"}
    assert report.manifest.models["vector"]["sha256"] != report.manifest.models["vector far"]["sha256"]
    assert {*report.manifest.data} == {"quadruples", "training", "texts"}


def test_the_run_can_be_shown_and_made_a_page(run, tmp_path):
    shown = CliRunner().invoke(app, ["show", str(run)])
    assert shown.exit_code == 0
    assert "perplexity_ratio_elicit" in shown.stdout
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["page", str(run), "-o", str(page)]).exit_code == 0
    text = page.read_text(encoding="utf-8")
    for name in ("methods", "sweep", "before-after", "perplexity"):
        assert f"figure-steering-{name}" in text
    assert "To elicit" in text


def test_a_gate_fires_with_exit_code_one_and_a_misspelt_one_is_refused(folder, tmp_path):
    command = [*rows_of(folder), "--only", "faithfulness", "--out", tmp_path / "run"]
    done = steer("evaluate", folder, *command, "--fail-if", "steering.recovered_elicit>-9", code=1)
    assert "gate fired" in done.stderr
    steer("evaluate", folder, *command, "--fail-if", "steering.recovered_elicit<-9")
    with pytest.raises(InputError, match=r"perhaps steering\.recovered_elicit"):
        steer("evaluate", folder, *command, "--fail-if", "steering.recovered_elicitt<0.5")


def test_a_sweep_has_the_strength_and_its_page(folder, tmp_path):
    given = ["--training", folder / "train.jsonl", "--prompts", folder / "prompts.jsonl", "--strengths", "0,1"]
    done = steer("sweep", folder, *given, "--scorer", "keyword:p", "--out", tmp_path / "run", "--json")
    found = json.loads(done.stdout)["sections"][0]["estimates"]
    assert found["selected_elicit"]["value"] in (0.0, 1.0)
    assert found["reported_score_elicit"]["n"] == 5
    assert (tmp_path / "run" / "stages" / "sweep" / "generations.jsonl").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("evaluate", ["--quadruples", "nowhere.jsonl"], "no such file"),
        ("evaluate", ["--quadruples", "prompts.jsonl"], "not quadruples"),
        ("evaluate", ["--quadruples", "test.jsonl", "--strengths", "1,x"], "--strengths 1,x"),
        ("evaluate", ["--quadruples", "test.jsonl", "--compare", "other.safetensors"], "NAME=..."),
        ("evaluate", ["--quadruples", "test.jsonl", "--baselines", "magic"], "baseline 'magic'"),
        ("evaluate", ["--quadruples", "test.jsonl", "--only", "sweep"], "give strengths"),
        ("sweep", ["--strengths", "0,1"], "one of them"),
        ("sweep", ["--strengths", "0,1", "--prompts", "prompts.jsonl"], "give quadruples of the concept"),
        ("sweep", ["--strengths", "0,nan", "--prompts", "prompts.jsonl"], "numbers between commas"),
    ],
    ids=str,
)
def test_bad_input_is_one_message(folder, tmp_path, command, arguments, words):
    files = (".jsonl", ".safetensors")
    given = [folder / value if value.endswith(files) and "=" not in value else value for value in arguments]
    with pytest.raises(InputError, match=words):
        steer(command, folder, *given, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()


def test_bad_input_exits_with_two(folder, tmp_path, monkeypatch, capsys):
    command = ["steer", "evaluate", folder / "v.safetensors", folder / "model", "--quadruples", "nowhere.jsonl"]
    monkeypatch.setattr(sys, "argv", ["alignscope", *map(str, command), "--out", str(tmp_path / "run"), "-q"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no such file" in capsys.readouterr().err


def test_another_vector_in_the_same_folder_is_refused(folder, run):
    given = ["steer", "evaluate", folder / "other.safetensors", folder / "model", *rows_of(folder), "--out", run, *FAST]
    with pytest.raises(InputError, match=r"holds a run with other settings .*models\.vector"):
        CliRunner().invoke(app, list(map(str, given)), catch_exceptions=False)


def test_both_have_help():
    for command in ("sweep", "evaluate"):
        assert CliRunner().invoke(app, ["steer", command, "--help"]).exit_code == 0
