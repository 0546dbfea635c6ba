"""`alignscope lens train` as a user meets it: the library's lens, a table of layers, one clear message otherwise."""

import json

import pytest
import torch
from typer.testing import CliRunner

import alignscope
from alignscope import InputError, TunedLens, train_lens
from alignscope.cli.main import app

FAST = ["--steps", 3, "--positions", 1, "--max-tokens", 24]
TEXTS = [f"the cat {i} sat on {i * 7 % 13} mats" for i in range(60)]


def run(*arguments: object, code: int = 0):
    """The outcome of `alignscope lens train`; an InputError is raised as it is."""
    done = CliRunner().invoke(app, ["lens", "train", *map(str, arguments)], catch_exceptions=True)
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("lens") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    return path


def test_the_lens_is_that_of_the_library_and_every_layer_has_its_line(zoo, prompts, tmp_path):
    done = run(zoo["llama"], "--prompts", prompts, "--out", tmp_path / "lens", *FAST)
    model = alignscope.load(zoo["llama"])
    expected = train_lens(model, prompts, steps=3, positions=1, max_tokens=24)
    found = TunedLens.load(tmp_path / "lens")
    assert torch.equal(found.weight, expected.weight)
    found.require_fits(model)
    assert "layers translated; KL(last layer : lens)" in " ".join(done.stdout.split())
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.endswith((" tuned", " logit"))]
    assert lines == ["0", "1", "2", "3"]
    assert "3 of 3" in done.stderr
    assert done.stderr.endswith(f"lens: {tmp_path / 'lens'}\n")


def test_json_for_machines(zoo, tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(TEXTS))
    done = run(zoo["llama"], "--text", tmp_path / "book.txt", "-o", tmp_path / "lens", "--json", "--quiet", *FAST)
    facts = json.loads(done.stdout)
    assert done.stderr == ""
    assert [row["layer"] for row in facts["layers"]] == [0, 1, 2, 3]
    assert facts["data"]["source"] == str(tmp_path / "book.txt")
    assert facts["settings"]["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --text"),
        (["--text", "a.txt", "--prompts", "b.jsonl"], "give one of --text"),
        (["--text", "a.jsonl"], r"--text a\.jsonl: expected a \.txt file"),
        (["--prompts", "nowhere.jsonl"], "no such file"),
    ],
)
def test_bad_input_is_one_message(zoo, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run(zoo["llama"], "--out", tmp_path / "lens", *arguments)


def test_a_lens_that_is_there_is_replaced_only_if_asked(zoo, prompts, tmp_path):
    TunedLens.identity(alignscope.load(zoo["llama"])).save(tmp_path)
    with pytest.raises(InputError, match="a lens is there already; give --overwrite"):
        run(zoo["llama"], "--prompts", prompts, "--out", tmp_path, *FAST)
    run(zoo["llama"], "--prompts", prompts, "--out", tmp_path, "--overwrite", *FAST)
    assert TunedLens.load(tmp_path).settings["steps"] == 3


def test_a_folder_that_cannot_be_written_is_refused_before_training(zoo, prompts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(zoo["llama"], "--prompts", prompts, "--out", tmp_path / "file" / "lens", *FAST)


def test_help_shows_examples():
    assert "alignscope lens train my-model/ --prompts prompts.jsonl --out lens/" in run("--help").stdout
