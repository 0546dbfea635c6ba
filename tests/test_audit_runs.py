"""Which runs of an audit are the same run, and what an audit can do without."""

import shutil
from pathlib import Path

import pytest
from lora_files import make_adapter
from safetensors.torch import load_file, save_file

from alignscope import InputError, Report
from alignscope.diagnose.audit import audit

PROMPTS = [{"prompt": f"The fox {i} jumps {i * 7 % 11}."} for i in range(50)]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def moved(zoo, tmp_path_factory) -> Path:
    """The tiny Llama with its matrices a little larger."""
    folder = tmp_path_factory.mktemp("models") / "moved"
    shutil.copytree(zoo["llama"], folder)
    weights = {k: v * (1.02 if v.ndim == 2 else 1) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_how_the_place_of_a_control_is_spelled_makes_no_other_run(zoo, moved, tmp_path, monkeypatch):
    make_adapter(zoo["llama"], tmp_path / "sft")
    monkeypatch.chdir(tmp_path)
    options = {"only": "spinal", "controls": (), "prompts": PROMPTS, "out": tmp_path / "run"}
    first = audit(moved, zoo["llama"], control_checkpoints={"sft": "sft"}, **options)
    again = audit(moved, zoo["llama"], control_checkpoints={"sft": f"../{tmp_path.name}/sft"}, **options)
    assert again == first
    make_adapter(zoo["llama"], tmp_path / "other", seed=2)
    with pytest.raises(InputError, match="control sft"):
        audit(moved, zoo["llama"], control_checkpoints={"sft": "other"}, **options)


def test_more_seeds_of_noise_go_on_from_those_that_are_there(zoo, moved, tmp_path):
    def seeds(n: int, progress=None) -> Report:
        return audit(
            moved, zoo["llama"], only="spinal", controls=("noise",), noise_seeds=n, prompts=PROMPTS,
            out=tmp_path / "run", progress=progress,
        )  # fmt: skip

    def noise(report: Report):
        return report.to_frame("spinal.controls").set_index("quantity").loc["d_transport_terminal"]

    assert noise(seeds(2)).p in (1 / 3, 2 / 3, 1.0)
    stages = tmp_path / "run" / "stages"
    times = {file: file.stat().st_mtime_ns for file in stages.rglob("*.npz")}
    three = seeds(3)
    assert noise(three).verdict is not None
    assert (4 * noise(three).p).is_integer()
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert {file.parent.name for file in {*stages.rglob("*.npz")} - {*times}} == {"noise_2"}
    assert Report.load(tmp_path / "run") == three

    def stop(stage: str, done: int, total: int) -> None:
        pytest.fail(f"{stage} was begun")

    assert seeds(3, stop) == three


# ---- without pairs


def test_weights_need_no_text(zoo, moved, tmp_path):
    report = audit(moved, zoo["llama"], only="weights", out=tmp_path / "run")
    assert report.section("weights").estimates["delta_share"].value == pytest.approx(0.02, rel=1e-3)
    assert report.manifest.data == {}
    assert report.question.endswith("measured against llama?")
    assert audit(moved, zoo["llama"], only="weights", out=tmp_path / "run") == report


def test_spinal_beside_prompts_needs_no_pairs(zoo, moved):
    report = audit(moved, zoo["llama"], only="spinal", prompts=PROMPTS)
    assert report.section("spinal").counts["prompts"] == 50
    assert report.question.endswith("measured against llama, on 50 prompts?")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--pairs missing: ranking and rewards cannot do without; --only weights can"),
        ({"only": "rewards,weights"}, "--pairs missing: rewards cannot"),
        ({"only": "spinal"}, "--pairs missing: spinal reads their prompts; give --pairs or --prompts"),
        ({"only": "spinal", "prompts": PROMPTS, "gradient": "residual"}, "--gradient residual is measured on"),
    ],
)
def test_what_reads_pairs_asks_for_them_before_anything_is_read(options, message):
    with pytest.raises(InputError, match=message):
        audit("nowhere", "nowhere", **options)
