"""A ladder of checkpoints as a run: found by name, measured once each, the same numbers as audits of the saves."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from series_samples import scaled_saves

from alignscope import InputError, Report
from alignscope.dashboards.figures import report_figures
from alignscope.diagnose import series_run
from alignscope.diagnose.audit import audit
from alignscope.diagnose.estimate_names import series_estimate_names
from alignscope.diagnose.series_run import series
from alignscope.diagnose.series_steps import saves
from alignscope.probes.huggingface import HuggingFaceSubject

PAIRS = [
    {"prompt": f"The fox {i}.\n", "chosen": f"jumps {i * 7 % 11}", "rejected": f"sleeps {i * 3 % 5}x"}
    for i in range(50)
]


@pytest.fixture(scope="module")
def ladder(zoo, tmp_path_factory) -> Path:
    """A run folder with three saves whose matrices grow, written out of order."""
    return scaled_saves(zoo["llama"], tmp_path_factory.mktemp("ladder"), {200: 1.06, 50: 1.01, 100: 1.03})


@pytest.fixture(scope="module")
def report(ladder, zoo, tmp_path_factory) -> Report:
    return series([ladder], zoo["llama"], PAIRS, out=tmp_path_factory.mktemp("run") / "series")


def value(table: pd.DataFrame, step: int, section: str, name: str) -> pd.Series:
    return table[(table.step == step) & (table.section == section) & (table.name == name)].iloc[0]


def test_every_save_has_every_number_of_an_audit(report, ladder, zoo):
    table = report.to_frame("metrics.metrics")
    alone = audit(ladder / "checkpoint-100", zoo["llama"], PAIRS, controls=())
    for section in ("ranking", "length", "displacement", "spinal"):
        for name, estimate in alone.section(section).estimates.items():
            row = value(table, 100, section, name)
            expected = float("nan") if estimate.value is None else estimate.value
            assert row.value == pytest.approx(expected, abs=1e-5, nan_ok=True), (section, name)
    assert sorted(table.step.unique()) == [50, 100, 200]


def test_the_trajectory_starts_at_the_reference(report):
    path = report.to_frame("series.trajectory")
    assert sorted(path.step.unique()) == [0, 50, 100, 200]
    moved = path[path.signal == "D"].sort_values("step").value.to_numpy()
    assert moved[0] == 0
    assert (moved[1:] > 0).all()
    speed = path[path.signal == "v"].sort_values("step").value.to_numpy()
    assert (speed[1:] > 0).all()


def test_the_headlines_are_those_of_the_last_save(report):
    estimates = report.section("metrics").estimates
    row = value(report.to_frame("metrics.metrics"), 200, "ranking", "accuracy")
    assert estimates["ranking_accuracy"].value == row.value
    assert estimates["ranking_accuracy"].label.startswith("step 200: ")
    assert "DPO loss is lowest at step" in report.section("metrics").summary


def test_the_estimates_have_the_names_that_gates_may_use(report):
    names = series_estimate_names(("ranking", "spinal"))
    for section in ("series", "metrics"):
        assert set(report.section(section).estimates) == set(names[section])
    assert "series" not in series_estimate_names(("ranking",))
    assert "spinal_d_alpha_terminal" not in series_estimate_names(("ranking",))["metrics"]


def test_few_saves_have_no_cusum(report):
    reasons = [e.reason for name, e in report.section("series").estimates.items() if name.startswith("cusum")]
    assert len(reasons) == 4
    assert all("too few checkpoints" in reason for reason in reasons)


def test_all_figures_can_be_drawn(report):
    assert {"series.trajectory", "series.layers", "metrics.metrics"} <= set(report_figures(report))


def test_a_killed_run_goes_on_and_reads_no_finished_save_again(ladder, zoo, tmp_path, report, monkeypatch):
    class KilledError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("step 200: tracing"):
            raise KilledError

    with pytest.raises(KilledError):
        series([ladder], zoo["llama"], PAIRS, out=tmp_path / "run", progress=stop)
    finished = {
        file: file.stat().st_mtime_ns
        for step in (50, 100)
        for file in (tmp_path / "run" / "stages" / f"step_{step:08d}").rglob("*.*")
    }
    assert finished
    again = series([ladder], zoo["llama"], PAIRS, out=tmp_path / "run")
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    pd.testing.assert_frame_equal(again.to_frame("metrics.metrics"), report.to_frame("metrics.metrics"))
    monkeypatch.setattr(series_run, "score", None)  # a finished run is read, not made
    assert series([ladder], zoo["llama"], PAIRS, out=tmp_path / "run").title == again.title


def test_a_save_that_was_trained_again_is_no_finished_run(ladder, zoo, tmp_path):
    run = tmp_path / "ladder"
    shutil.copytree(ladder, run)
    series([run], zoo["llama"], PAIRS, out=tmp_path / "run", only="ranking")
    file = run / "checkpoint-100" / "model.safetensors"
    weights = {k: v * 1.1 for k, v in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="step 100"):
        series([run], zoo["llama"], PAIRS, out=tmp_path / "run", only="ranking")


def test_an_assumed_beta_is_told(report, ladder, zoo, tmp_path):
    assert any("TRL's default; not given" in text for text in report.section("metrics").warnings)
    given = series([ladder], zoo["llama"], PAIRS, out=tmp_path / "run", only="ranking", beta=0.2)
    assert not any("not given" in text for text in given.section("metrics").warnings)
    assert given.manifest.settings["beta"] == 0.2


def test_the_reference_is_read_once(ladder, zoo, tmp_path, monkeypatch):
    passes = []
    original = HuggingFaceSubject.trace

    def counted(self, *arguments, **options):
        passes.append(self.name)
        return original(self, *arguments, **options)

    monkeypatch.setattr(HuggingFaceSubject, "trace", counted)
    series([ladder / "checkpoint-50"], zoo["llama"], PAIRS, out=tmp_path / "one", only="ranking")
    once = sum(name == str(zoo["llama"]) for name in passes)
    passes.clear()
    series([ladder], zoo["llama"], PAIRS, out=tmp_path / "three", only="ranking")
    assert sum(name == str(zoo["llama"]) for name in passes) == once > 0


def test_preferences_alone_need_no_traces(ladder, zoo, tmp_path):
    found = series([ladder], zoo["llama"], PAIRS, out=tmp_path / "run", only="ranking")
    assert [section.name for section in found.sections] == ["metrics"]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_series_has_exponents_of_packed_saves_only_where_it_is_told_to(ladder, zoo, tmp_path, monkeypatch, allowed):
    monkeypatch.setattr("alignscope.diagnose.spinal_formats.packed_format", lambda subject: "bitsandbytes")
    found = series(
        [ladder / "checkpoint-50"], zoo["llama"], PAIRS, out=tmp_path / "run", only="spinal", allow_quantized=allowed
    )
    exponent = value(found.to_frame("metrics.metrics"), 50, "spinal", "d_alpha_terminal")
    assert pd.notna(exponent.value) == allowed
    assert found.manifest.settings["allow_quantized"] is allowed


# ---- which saves, at which steps


def test_saves_are_found_in_a_run_folder_in_the_order_of_training(ladder):
    assert [save.step for save in saves([ladder])] == [50, 100, 200]
    assert [save.step for save in saves([ladder / "checkpoint-200", ladder / "checkpoint-50"])] == [50, 200]


def test_the_final_model_in_a_run_folder_is_left_out(ladder, zoo, tmp_path):
    run = tmp_path / "dpo-v2"
    shutil.copytree(ladder, run)
    shutil.copy(zoo["llama"] / "config.json", run)
    assert [save.step for save in saves([run])] == [50, 100, 200]


def test_a_version_in_a_name_is_no_step(tmp_path):
    with pytest.raises(InputError, match="does not end in a training step"):
        saves([tmp_path / "dpo-v2"])


def test_steps_can_be_given(tmp_path):
    found = saves([tmp_path / "early", tmp_path / "late"], [3, 1])
    assert [(save.step, Path(save.path).name) for save in found] == [(1, "late"), (3, "early")]


@pytest.mark.parametrize(
    ("names", "steps", "message"),
    [
        (["final"], None, "does not end in a training step"),
        (["a-10", "b-10"], None, "are both step 10"),
        (["a", "b"], [1], "1 numbers for 2 checkpoints"),
        (["step_0"], None, "step 0 is the reference"),
        ([], None, "no checkpoint was given"),
    ],
)
def test_saves_that_cannot_be_ordered_are_refused(tmp_path, names, steps, message):
    with pytest.raises(InputError, match=message):
        saves([tmp_path / name for name in names], steps)


def test_rewards_need_a_reward_model(ladder, zoo, tmp_path):
    with pytest.raises(InputError, match="--only rewards: the explicit reward is missing"):
        series([ladder], zoo["llama"], PAIRS, out=tmp_path / "run", only="rewards")
    with pytest.raises(InputError, match="--only profiles: no such section"):
        series([ladder], zoo["llama"], PAIRS, out=tmp_path / "run", only="profiles")
