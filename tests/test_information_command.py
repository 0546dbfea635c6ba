"""`alignscope information` as a user meets it: a run that continues, a report, a gate, or one clear message."""

import json
import os
from pathlib import Path

import pytest
from information_oracle import PANEL, saved_llama, strict_json, zoo_pair
from lora_files import make_adapter
from test_scoring import many, tiny_gpt2
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

import zoo
from alignscope import InputError, Report, information_report
from alignscope.cli.main import app
from alignscope.diagnose.information_run import information_run

# peft asks transformers by a name that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FAST = ["--no-floor", "--quiet"]
OPTIONS = {"measure_floor": False, "resamples": 20}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models m0 and m1 of one tokenizer, pairs.jsonl and samples.jsonl."""
    found = tmp_path_factory.mktemp("inputs")
    for seed in (0, 1):
        tiny_gpt2(seed).save_pretrained(found / f"m{seed}")
        tiny_tokenizer().save_pretrained(found / f"m{seed}")
    write(found / "pairs.jsonl", many(8))
    write(found / "samples.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in many(8)])
    return found


def information(*arguments: object, code: int = 0):
    """The outcome of `alignscope information`; an InputError is raised as it is."""
    done = CliRunner().invoke(app, ["information", *map(str, arguments)], catch_exceptions=True)
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == code, (done.output, done.exception)
    return done


def numbers(report: Report) -> dict:
    return {name: e.value for name, e in report.sections[0].estimates.items()}


def test_the_report_is_that_of_the_library(folder, tmp_path):
    out = tmp_path / "run"
    done = information(folder / "m0", folder / "m1", "--pairs", folder / "pairs.jsonl", "--out", out, *FAST)
    expected = information_report(folder / "m0", folder / "m1", folder / "pairs.jsonl", measure_floor=False)
    report = Report.load(out)
    assert numbers(report) == {name: e.value for name, e in expected.section().section.estimates.items()}
    assert strict_json(expected)["name"] == "information"
    assert len(report.to_frame("information.positions")) == len(expected.positions)
    assert "information" in done.stdout
    assert not [*out.rglob("*.safetensors")], "states are not left behind"


def test_a_gate_fires_with_exit_code_one(folder, tmp_path):
    command = [folder / "m0", folder / "m1", "--pairs", folder / "pairs.jsonl", "--out", tmp_path / "run", *FAST]
    done = information(*command, "--fail-if", "information.chosen_kl>0.01", code=1)
    assert "gate fired" in done.stderr
    information(*command, "--fail-if", "information.chosen_kl<0.01")
    with pytest.raises(InputError, match="chosen_kll"):
        information(*command, "--fail-if", "information.chosen_kll<0.01")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "samples.jsonl"], "holds responses, not pairs; give it as responses .--responses."),
        (["--responses", "pairs.jsonl"], "holds pairs, not responses; give it as pairs .--pairs."),
        (["--pairs", "pairs.jsonl", "--reference-samples", "pairs.jsonl"], "not a file of samples"),
        ([], "Give --pairs FILE or --responses FILE"),
        (["--pairs", "pairs.jsonl", "--plausible", "2"], "--plausible 2"),
        (["--pairs", "pairs.jsonl", "--buckets", "50,5"], "ascending"),
        (["--pairs", "pairs.jsonl", "--buckets", "5;50"], "--buckets 5;50"),
        (["--pairs", "pairs.jsonl", "--base", "m0"], "nothing takes a base"),
        (["--pairs", "pairs.jsonl", "--fixed-length", "3", "--one-at-a-time"], "draws from both models at once"),
        (["--pairs", "nowhere.jsonl"], "no such file"),
    ],
    ids=str,
)
def test_bad_input_is_one_message(folder, tmp_path, arguments, message):
    given = [folder / value if str(value).endswith((".jsonl", "m0")) else value for value in arguments]
    with pytest.raises(InputError, match=message):
        information(folder / "m0", folder / "m1", *given, "--out", tmp_path / "run", *FAST)
    assert not (tmp_path / "run" / "report.json").exists()


def test_another_tokenizer_names_the_id(folder, tmp_path):
    saved_llama(tmp_path / "llama")
    with pytest.raises(InputError, match=r"first differing id is 3: '<unk>' and '<.system.>'"):
        information(
            folder / "m0", tmp_path / "llama", "--pairs", folder / "pairs.jsonl", "--out", tmp_path / "r", *FAST
        )


class KilledError(Exception):
    """What a kill does to a run, as far as a test can raise it."""


def run(folder: Path, out: Path, *, options: dict | None = None, **more) -> Report:
    given = OPTIONS | (options or {})
    return information_run(folder / "m0", folder / "m1", folder / "pairs.jsonl", out=out, options=given, **more)


def kill(stage: str, done: int, total: int) -> None:
    if stage == "states of m1":
        raise KilledError


def test_a_killed_run_continues_from_its_states_also_one_model_at_a_time(folder, tmp_path):
    with pytest.raises(KilledError):
        run(folder, tmp_path / "run", progress=kill)
    states = [*(tmp_path / "run").rglob("policy/*.safetensors")]
    before = [file.stat().st_mtime_ns for file in states]
    assert states
    seen = []

    def watch(stage: str, done: int, total: int) -> None:
        if stage == "states of m1":
            seen.append([file.stat().st_mtime_ns for file in states])

    found = run(folder, tmp_path / "run", options={"one_at_a_time": True}, progress=watch)
    assert seen
    assert seen[0] == before
    assert numbers(found) == numbers(run(folder, tmp_path / "whole"))


def test_a_finished_run_is_loaded_and_computes_nothing(folder, tmp_path):
    first = run(folder, tmp_path / "run")

    def refuse(stage: str, done: int, total: int) -> None:
        raise AssertionError(stage)

    again = run(folder, tmp_path / "run", progress=refuse)
    assert numbers(again) == numbers(first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"options": {"plausible": 1e-3}}, {"via": {"a": "m1"}}], ids=str)
def test_a_run_of_other_settings_is_refused(folder, tmp_path, change, monkeypatch):
    run(folder, tmp_path / "run")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="holds a run with other settings"):
        run(folder, tmp_path / "run", **change)


def test_a_run_of_other_models_is_refused(folder, tmp_path):
    run(folder, tmp_path / "run")
    with pytest.raises(InputError, match=r"models\.policy\.fingerprint"):
        information_run(folder / "m1", folder / "m1", folder / "pairs.jsonl", out=tmp_path / "run", options=OPTIONS)


def test_an_adapter_between_keeps_the_base_that_its_config_names(tmp_path):
    """Without --base the reference is no base of an adapter whose own config names another model."""
    base = saved_llama(tmp_path / "base")
    other = tmp_path / "other"
    zoo_pair("llama")[0].model.save_pretrained(other)
    zoo.tokenizer().save_pretrained(other)
    lora = make_adapter(base, tmp_path / "lora")
    assert os.fspath(base) == json.loads((lora / "adapter_config.json").read_text())["base_model_name_or_path"]
    rows = write(tmp_path / "pairs.jsonl", [{"prompt": "The quick\n", "chosen": "brown fox", "rejected": "dog"}])
    report = information_run(other, other, rows, out=tmp_path / "run", via={"lora": lora}, options=OPTIONS)
    updates = report.to_frame("information.updates").query("to == 'lora' and source == 'chosen' and bucket == 'all'")
    expected = information_report(lora, other, rows, base=base, **OPTIONS).rates["chosen"]
    for name in PANEL:
        assert updates.query("measure == @name")["value"].item() == pytest.approx(expected[name].value, abs=1e-12)


def test_a_policy_of_adapter_and_base_is_one_load(tmp_path):
    base = saved_llama(tmp_path / "base")
    lora = make_adapter(base, tmp_path / "lora")
    rows = write(tmp_path / "pairs.jsonl", [{"prompt": "The quick\n", "chosen": "brown fox", "rejected": "dog"}])
    information(lora, "adapter-disabled", "--base", base, "--pairs", rows, "--out", tmp_path / "a", *FAST)
    information(lora, base, "--pairs", rows, "--out", tmp_path / "b", *FAST)
    found = [numbers(Report.load(tmp_path / name)) for name in "ab"]
    assert found[0] == found[1]
    assert found[0]["chosen_kl"] > 0
    with pytest.raises(InputError, match="one set of weights"):
        information(lora, base, "--pairs", rows, "--out", tmp_path / "c", "--one-at-a-time", *FAST)
