"""The weights of a series save by save, without text; and counts of what it found, which gates can rest on."""

import json
from pathlib import Path

import numpy as np
import pytest
from series_samples import distances, path, scaled_saves, start
from typer.testing import CliRunner

import alignscope
from alignscope import InputError, Report
from alignscope.cli.main import app
from alignscope.dashboards.figures import report_figures
from alignscope.diagnose import series_save
from alignscope.diagnose.audit import audit
from alignscope.diagnose.estimate_names import series_estimate_names
from alignscope.diagnose.gates import Gate
from alignscope.diagnose.report import Manifest
from alignscope.diagnose.series_run import series, series_sections
from alignscope.diagnose.spinal_series import spinal_series
from alignscope.diagnose.spinal_series_rules import RULES

MANIFEST = Manifest(
    command="", models={}, data={}, settings={}, packages={}, device="cpu", dtype="", seed=0, wall_seconds=0.0
)


@pytest.fixture(scope="module")
def ladder(zoo, tmp_path_factory) -> Path:
    return scaled_saves(zoo["llama"], tmp_path_factory.mktemp("ladder"), {50: 1.01, 100: 1.03})


@pytest.fixture(scope="module")
def weighed(ladder, zoo, tmp_path_factory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("weights") / "run"
    return series([ladder], zoo["llama"], only="weights", out=out), out


def test_weights_need_no_text_and_are_those_of_an_audit_at_every_save(weighed, ladder, zoo):
    report, _ = weighed
    assert [section.name for section in report.sections] == ["metrics"]
    assert report.manifest.data == {}
    table = report.to_frame("metrics.metrics").set_index(["step", "name"])
    for step, share in ((50, 0.01), (100, 0.03)):
        alone = audit(ladder / f"checkpoint-{step}", zoo["llama"], only="weights").section("weights")
        for name, estimate in alone.estimates.items():
            expected = np.nan if estimate.value is None else estimate.value
            assert table.value[step, name] == pytest.approx(expected, nan_ok=True)
        assert table.value[step, "delta_share"] == pytest.approx(share, rel=1e-3)


def test_headlines_of_the_weights_are_told_drawn_and_open_to_gates(weighed):
    report, _ = weighed
    assert set(report.section("metrics").estimates) == set(series_estimate_names(("weights",))["metrics"])
    assert "by 1 % of their norm at step 50 and by 3 % of their norm at step 100" in report.section("metrics").summary
    figure = report_figures(report)["metrics.metrics"]
    assert list(figure.data[0].y) == pytest.approx([0.01, 0.03], rel=1e-3)
    assert Gate.parse("metrics.weights_delta_share>0.02").fires(report)


def test_spectra_that_are_there_are_not_made_again(weighed, ladder, zoo, monkeypatch):
    report, out = weighed
    (out / "report.json").unlink()  # as a kill before the end leaves it
    torn = out / "stages" / "step_00000100" / "weights.json"
    torn.write_text(torn.read_text()[:100])
    made = []
    spectrum = series_save.weight_spectrum

    def counted(subject, reference):
        made.append(Path(subject.name).name)
        return spectrum(subject, reference)

    monkeypatch.setattr(series_save, "weight_spectrum", counted)
    again = series([ladder], zoo["llama"], only="weights", out=out)
    assert made == ["checkpoint-100"]
    assert again.to_frame("metrics.metrics").equals(report.to_frame("metrics.metrics"))


def test_spectra_of_other_weights_are_not_taken(weighed, ladder, zoo, tmp_path):
    _, out = weighed
    kept = json.loads((out / "stages" / "step_00000050" / "weights.json").read_text())
    (tmp_path / "weights.json").write_text(json.dumps(kept))
    models = [alignscope.load(model) for model in (ladder / "checkpoint-100", zoo["llama"])]
    found = series_save.weights(*models, tmp_path).section.estimates["delta_share"].value
    assert found == pytest.approx(0.03, rel=1e-3)


def test_weights_come_only_where_they_are_named():
    assert series_sections(None, None) == ("ranking", "spinal")
    assert series_sections("weights,spinal", None) == ("spinal", "weights")


def test_what_reads_pairs_asks_for_them(ladder, zoo, tmp_path):
    with pytest.raises(InputError, match="--pairs missing: ranking cannot do without"):
        series([ladder], zoo["llama"], out=tmp_path / "run")


def test_the_command_weighs_without_pairs_and_gates_on_a_count(ladder, zoo, tmp_path):
    command = ["series", str(ladder), "--reference", str(zoo["llama"]), "--quiet", "--out"]
    gate = ["--fail-if", "metrics.weights_delta_share>0.5"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "run"), "--only", "weights", *gate])
    assert done.exit_code == 0, (done.output, done.exception)
    asked = ["--only", "weights", "--fail-if", "series.n_alarms>0"]
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "other"), *asked])
    assert isinstance(refused.exception, InputError)
    assert "no section 'series'" in str(refused.exception)


# ---- counts


@pytest.fixture(scope="module")
def quiet():
    """Three saves that hardly move, without distances and held-out pairs."""
    return spinal_series(path(start(), [0.0, 0.0, 0.0]), steps=[0, 1, 2])


def test_counts_are_there_where_nothing_fired(quiet):
    for name in ("n_alarms", *(f"n_alarms_{rule}" for rule in RULES), "n_onsets"):
        found = quiet.estimates[name]
        assert (found.value, found.level, found.n, found.reconstructed) == (0, None, 3, True)


def test_a_count_of_0_says_which_rules_could_not_be_read(quiet):
    method = quiet.estimates["n_alarms"].method
    assert "cusum could not be read: too few checkpoints" in method
    assert "speed could not be read: no distances" in method
    assert "loss_above_best could not be read: no held-out pairs" in method
    assert "entropy_halved" not in method
    alone = quiet.estimates["n_alarms_cusum"].method
    assert alone.startswith("exact count; it could not be read: too few checkpoints")


def test_a_gate_on_a_count_passes_where_one_on_the_first_alarm_has_no_answer(quiet):
    report = Report.assemble("title", "question", MANIFEST, [quiet.section()])
    assert not Gate.parse("series.n_alarms>0").fires(report)
    assert Gate.parse("series.n_onsets<1").fires(report)
    with pytest.raises(InputError, match="first_alarm has no value: no rule fired"):
        Gate.parse("series.first_alarm>0").fires(report)


def test_counts_are_the_alarms_and_the_onsets():
    sizes = [0.01 * i for i in range(1, 10)] + [0.5, 0.51]
    jump = [0.0, *[0.001 * i for i in range(1, 10)], 0.2, 0.201]
    found = spinal_series(path(start(), jump), steps=[10 * i for i in range(12)], distances=distances(sizes))
    fired = [alarm.rule for alarm in found.alarms]
    assert {"cusum", "speed"} <= set(fired)
    assert found.estimates["n_alarms"].value == len(fired)
    for rule in RULES:
        assert found.estimates[f"n_alarms_{rule}"].value == fired.count(rule)
    assert found.estimates["n_onsets"].value == sum(answer.seen for answer in found.onsets.values()) > 0
    assert "could not be read: cusum" not in found.estimates["n_alarms"].method


def test_the_speed_is_read_from_four_saves_after_the_start_on():
    for n, read in ((3, False), (4, True)):
        sizes = [0.01 * i for i in range(1, n)] + [1.0]
        found = spinal_series(path(start(), [0.0] * (n + 1)), steps=list(range(n + 1)), distances=distances(sizes))
        assert found.estimates["n_alarms_speed"].value == int(read)
        assert ("could not be read" in found.estimates["n_alarms_speed"].method) != read
