"""The command line as a user meets it: exit codes, one clear message, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alignscope import Report
from alignscope.cli.progress import progress_bar

WORDS = ["the cat sat on the mat", "a dog ran", "birds fly over the sea", "rain falls on hills", "we sang old songs"]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alignscope.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
        check=False,
    )


def refused(*arguments: object) -> str:
    """The one message of a run that must end with exit 2: no traceback, no word of a network."""
    done = run(*arguments)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "huggingface.co" not in done.stderr
    return done.stderr


def pair_rows(n: int) -> list[dict[str, str]]:
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
def pairs(tmp_path_factory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pair_rows(64))


@pytest.fixture(scope="module")
def policy(zoo, tmp_path_factory) -> Path:
    """The tiny Llama with its weights moved a little: an aligned model to its reference."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    shutil.copytree(zoo["llama"], folder)
    weights = load_file(folder / "model.safetensors")
    moved = {name: tensor * (1.02 if tensor.ndim == 2 else 1.0) for name, tensor in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def finished(zoo, policy, pairs, tmp_path_factory) -> Path:
    """One audit of all sections through the command line."""
    out = tmp_path_factory.mktemp("runs") / "audit"
    done = run("audit", "--policy", policy, "--reference", zoo["llama"], "--pairs", pairs, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "ranking" in done.stdout
    assert "page:" in done.stderr
    return out


def test_an_audit_leaves_a_whole_report(finished):
    report = Report.load(finished)
    sections = ["ranking", "length", "displacement", "rewards", "objectives", "spinal"]
    assert [s.name for s in report.sections] == sections
    assert report.estimate("ranking.accuracy").n == 64
    assert len(report.to_frame("ranking.pairs")) == 64
    assert report.manifest.models["policy"]["fingerprints"] != report.manifest.models["reference"]["fingerprints"]


def test_the_same_command_again_answers_at_once_with_the_same_report(finished, zoo, policy, pairs):
    before = (finished / "report.json").read_bytes()
    done = run("audit", "--policy", policy, "--reference", zoo["llama"], "--pairs", pairs, "--out", finished, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads(before)
    assert (finished / "report.json").read_bytes() == before


def test_other_settings_on_the_same_folder_are_refused(finished, zoo, policy, pairs):
    message = refused(
        "audit", "--policy", policy, "--reference", zoo["llama"], "--pairs", pairs, "--out", finished, "--beta", 0.5
    )
    assert "settings.beta: there 0.1, now 0.5" in message
    assert Report.load(finished)


def test_show_and_page_read_a_run(finished, tmp_path):
    assert "accuracy" in run("show", finished).stdout
    assert json.loads(run("show", finished, "--json").stdout)["schema_version"] == 1
    done = run("page", finished, "-o", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_a_gate_that_fires_exits_1_and_one_that_does_not_0(finished, zoo, policy, pairs):
    command = ("audit", "--policy", policy, "--reference", zoo["llama"], "--pairs", pairs, "--out", finished, "--quiet")
    fired = run(*command, "--fail-if", "ranking.accuracy<1.01")
    assert fired.returncode == 1
    assert "gate fired: ranking.accuracy<1.01" in fired.stderr
    assert run(*command, "--fail-if", "ranking.accuracy>1.01").returncode == 0
    assert "for instance" in refused(*command, "--fail-if", "accuracy")


@pytest.mark.parametrize(("section", "stage"), [("ranking", "scores"), ("spinal", "trace_reference")])
def test_a_killed_run_continues_and_gives_the_same_report(zoo, policy, tmp_path, section, stage):
    """SIGKILL in the middle of scoring or tracing; then the same command: same numbers, finished shards untouched."""
    many = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(600))
    command = [
        "audit",
        "--policy",
        policy,
        "--reference",
        zoo["llama"],
        "--pairs",
        many,
        "--only",
        section,
        "--no-cache",
    ]
    whole = run(*command, "--out", tmp_path / "whole", "--quiet")
    assert whole.returncode == 0, whole.stderr
    arguments = [sys.executable, "-m", "alignscope.cli.main", *map(str, command), "--out", str(tmp_path / "killed")]
    shards = tmp_path / "killed" / "stages" / stage
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(kept := sorted(p for p in shards.rglob("*") if p.is_file() and not p.name.startswith("."))) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, "it finished before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "report.json").exists()
    times = {p: p.stat().st_mtime_ns for p in kept}
    again = run(*command, "--out", tmp_path / "killed", "--quiet")
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in kept} == times, "a finished shard was computed again"
    first, second = Report.load(tmp_path / "whole"), Report.load(tmp_path / "killed")
    assert first.sections[0].estimates == second.sections[0].estimates
    assert first.findings == second.findings
    for table in first.sections[0].tables:
        assert first.to_frame(f"{section}.{table}").equals(second.to_frame(f"{section}.{table}"))


def test_trace_of_one_model(zoo, pairs, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in pair_rows(64)])
    done = run("trace", zoo["gpt2"], "--prompts", prompts, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert Report.load(tmp_path / "run").section("spinal_trace").estimates


def test_a_log_gets_a_line_at_the_start_and_the_end_of_quick_work_and_tenths_of_slow_work(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    tenths = [f"{i} of 100" for i in range(0, 101, 10)]
    for seconds_a_step, expected in ((0.001, ["0 of 100", "100 of 100"]), (1.0, tenths)):
        with progress_bar(quiet=False) as progress:
            for done in range(101):
                progress("scoring", done, 100)
                clock[0] += seconds_a_step
        lines = capsys.readouterr().err.splitlines()
        assert [line.removeprefix("scoring: ").partition(",")[0] for line in lines] == expected
    assert lines[5] == "scoring: 50 of 100, about 50 s left"


def test_doctor_of_one_model(zoo):
    done = run("doctor", zoo["llama"])
    assert done.returncode == 0, done.stderr
    assert "anatomy" in done.stdout


def test_a_doctor_can_guard_a_pipeline(zoo, tmp_path):
    assert run("doctor", zoo["llama"], "--fail-if", "doctor.batch>5e-6").returncode == 0
    fired = run("doctor", zoo["llama"], "--fail-if", "doctor.tokenizer_length>1", "--json")
    assert fired.returncode == 1
    assert "gate fired: doctor.tokenizer_length>1" in fired.stderr
    report = json.loads(fired.stdout)
    assert report["manifest"]["models"]["model"]["fingerprints"]["weights"]
    assert {"anatomy", "batch", "memory"} <= {check["check"] for check in report["checks"]}
    talks = write_jsonl(tmp_path / "p.jsonl", [{"prompt": [{"role": "user", "content": "hi"}]}])
    said = refused("doctor", zoo["llama"], "--prompts", talks)
    assert "1 of the first 1 prompts are message lists; give plain strings" in said


class TestBadInput:
    """Each exits with 2 and one message that says what, where and what to do."""

    def audit(self, policy, reference, pairs, out, *more):
        return refused("audit", "--policy", policy, "--reference", reference, "--pairs", pairs, "--out", out, *more)

    def test_missing_folder(self, zoo, pairs, tmp_path):
        message = self.audit(tmp_path / "nowhere", zoo["llama"], pairs, tmp_path / "run")
        assert "no such folder" in message
        assert "network" not in message

    def test_folder_without_weights(self, zoo, pairs, tmp_path):
        shutil.copytree(zoo["llama"], tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
        assert "weights" in self.audit(tmp_path / "m", zoo["llama"], pairs, tmp_path / "run")

    def test_truncated_weights(self, zoo, pairs, tmp_path):
        shutil.copytree(zoo["llama"], tmp_path / "m")
        file = tmp_path / "m" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        assert "model.safetensors" in self.audit(tmp_path / "m", zoo["llama"], pairs, tmp_path / "run")

    def test_not_a_number_in_the_weights(self, zoo, pairs, tmp_path):
        shutil.copytree(zoo["llama"], tmp_path / "m")
        weights = load_file(tmp_path / "m" / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
        save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
        assert "model.layers.1.mlp.up_proj.weight" in self.audit(tmp_path / "m", zoo["llama"], pairs, tmp_path / "run")

    def test_other_tokenizer(self, zoo, pairs, tmp_path):
        shutil.copytree(zoo["llama"], tmp_path / "m")
        file = tmp_path / "m" / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        merges = tokenizer["model"]["merges"]
        merges[0], merges[1] = merges[1], merges[0]
        file.write_text(json.dumps(tokenizer))
        assert "tokenizer" in self.audit(tmp_path / "m", zoo["llama"], pairs, tmp_path / "run")

    def test_empty_pairs_file(self, zoo, policy, tmp_path):
        (tmp_path / "pairs.jsonl").write_text("")
        assert "pairs.jsonl" in self.audit(policy, zoo["llama"], tmp_path / "pairs.jsonl", tmp_path / "run")

    def test_wrong_columns(self, zoo, policy, tmp_path):
        file = write_jsonl(tmp_path / "pairs.jsonl", [{"question": "a", "good": "b", "bad": "c"}])
        message = self.audit(policy, zoo["llama"], file, tmp_path / "run")
        assert "question" in message
        assert "chosen" in message

    def test_too_many_bad_rows_stop_before_any_work(self, zoo, policy, tmp_path):
        rows = pair_rows(70) + [{"prompt": "x", "chosen": "", "rejected": "y"}] * 30
        file = write_jsonl(tmp_path / "pairs.jsonl", rows)
        message = self.audit(policy, zoo["llama"], file, tmp_path / "run")
        assert "empty_completion" in message
        assert "--max-invalid" in message

    def test_a_few_bad_rows_are_set_aside_and_counted(self, zoo, policy, tmp_path):
        rows = [*pair_rows(64), {"prompt": "x", "chosen": "", "rejected": "y"}]
        file = write_jsonl(tmp_path / "pairs.jsonl", rows)
        done = run(
            "audit", "--policy", policy, "--reference", zoo["llama"], "--pairs", file, "--only", "ranking",
            "--allow-quantized", "--out", tmp_path / "run",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        manifest = Report.load(tmp_path / "run").manifest
        assert manifest.data["pairs"]["set_aside"]["empty_completion"] == 1
        assert manifest.settings["allow_quantized"] is True

    def test_unwritable_output(self, zoo, policy, pairs, tmp_path):
        (tmp_path / "file").write_text("")
        assert "cannot be written" in self.audit(policy, zoo["llama"], pairs, tmp_path / "file" / "run")

    def test_unknown_section(self, zoo, policy, pairs, tmp_path):
        message = self.audit(policy, zoo["llama"], pairs, tmp_path / "run", "--only", "rankings")
        assert "ranking, rewards, spinal" in message

    def test_a_language_model_as_reward_head(self, zoo, policy, pairs, tmp_path):
        message = self.audit(policy, zoo["llama"], pairs, tmp_path / "run", "--reward", zoo["llama"])
        assert "score.weight" in message


@pytest.mark.parametrize(
    ("command", "gate", "meant"),
    [
        (["audit", "--policy", "p", "--pairs", "x", "--out", "run"], "ranking.acuracy", "perhaps ranking.accuracy"),
        (["trace", "p", "--prompts", "x", "--out", "run"], "spinal_trace.path", "perhaps spinal_trace.path_length"),
        (["doctor", "p"], "doctor.bach", "perhaps doctor.batch"),
    ],
)
def test_a_gate_on_no_estimate_is_refused_before_anything_is_read(command, gate, meant):
    """No model or file of these names is there: whatever looked for one would say so instead."""
    message = refused(*command, "--fail-if", f"{gate}<1")
    assert f"--fail-if '{gate}<1'" in message
    assert meant in message


class TestTables:
    """`audit --scores` reads a table and opens no model."""

    @pytest.fixture
    def table(self, tmp_path) -> Path:
        path = tmp_path / "mine.csv"
        rows = "".join(f"{-5 - i % 3},-6,-6,-6.5\n" for i in range(40))
        path.write_text("policy_chosen,policy_rejected,reference_chosen,reference_rejected\n" + rows)
        return path

    def test_a_table_of_ones_own_becomes_a_report(self, table, tmp_path):
        gate = "ranking.accuracy<0.9"
        done = run("audit", "--scores", table, "--out", tmp_path / "run", "--quiet", "--fail-if", gate)
        assert done.returncode == 1, done.stderr
        assert {s.name for s in Report.load(tmp_path / "run").sections} >= {"ranking", "rewards", "objectives"}

    def test_options_that_only_models_have_are_refused(self, table, tmp_path):
        message = refused("audit", "--scores", table, "--out", tmp_path / "run", "--ches", "--template", "none")
        assert "opens no model: leave --ches, --template away" in message

    @pytest.mark.parametrize("option", ["--shifted", "--shift-kind"])
    def test_a_shift_without_a_name_is_refused(self, option, table, tmp_path):
        assert f"{option} maths: expected NAME=..." in refused(
            "audit", "--scores", table, "--out", tmp_path / "run", option, "maths"
        )

    def test_an_unknown_kind_of_shift_is_refused(self, table, tmp_path):
        message = refused(
            "audit", "--scores", table, "--out", tmp_path / "run", "--shifted", f"a={table}", "--shift-kind", "a=topic"
        )
        assert "'topic shift' of 'a' is unknown; choose from prompt shift, response shift" in message

    def test_a_gate_on_no_estimate_is_refused_before_the_work(self, table, tmp_path):
        command = ("audit", "--scores", tmp_path / "gone.csv", "--shifted", f"maths={table}", "--out", tmp_path / "run")
        message = refused(*command, "--fail-if", "rewards.gap<1", "--fail-if", "rewards.gap_math<1")
        assert "no estimate 'gap_math' in section 'rewards'; perhaps rewards.gap_maths" in message
        assert not (tmp_path / "run").exists()

    def test_a_gate_on_no_section_is_refused_before_the_work(self, table, tmp_path):
        message = refused("audit", "--scores", table, "--out", tmp_path / "run", "--fail-if", "rankng.accuracy<0.5")
        assert "no section 'rankng'; there are ranking, length" in message
        assert not (tmp_path / "run").exists()
