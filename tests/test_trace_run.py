"""One checkpoint as a run: a lens that does not fit leaves no run behind, and names of places are no settings."""

import json

import pytest

import alignscope
from alignscope import InputError, TunedLens
from alignscope.diagnose.trace_run import trace_run


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": f"the cat {i} sat on {i * 7 % 13} mats"} for i in range(50)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def lens(zoo, tmp_path_factory):
    return TunedLens.identity(alignscope.load(zoo["llama"])).save(tmp_path_factory.mktemp("lens"))


def test_a_lens_of_another_model_is_refused_before_the_run_is_begun(zoo, lens, prompts, tmp_path):
    with pytest.raises(InputError, match="lens"):
        trace_run(zoo["gpt2"], prompts, out=tmp_path / "run", options={"lens": str(lens)})
    assert not (tmp_path / "run").exists()


def test_a_lens_is_known_by_what_it_holds_not_by_how_its_place_is_spelled(zoo, lens, prompts, tmp_path, monkeypatch):
    first = trace_run(zoo["llama"], prompts, out=tmp_path / "run", options={"lens": str(lens)})
    monkeypatch.chdir(lens.parent)
    again = trace_run(zoo["llama"], prompts, out=tmp_path / "run", options={"lens": f"./{lens.name}"})
    assert again == first
    assert first.manifest.settings["lens"] == str(lens)
    with pytest.raises(InputError, match="lens_fingerprint"):
        trace_run(zoo["llama"], prompts, out=tmp_path / "run")


def test_a_default_that_is_spelled_out_is_the_same_run(zoo, prompts, tmp_path):
    first = trace_run(zoo["llama"], prompts, out=tmp_path / "run")
    assert first.manifest.settings["window"] == [0.02, 0.2]
    spelled = {"preset": "robust", "window": (0.02, 0.2), "lens_positions": 4}
    assert trace_run(zoo["llama"], prompts, out=tmp_path / "run", options=spelled) == first
