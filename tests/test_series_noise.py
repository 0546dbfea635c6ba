"""A series beside noise as large as its update: its size, its seeds, and where there is none."""

from pathlib import Path

import pytest
from lora_files import make_adapter
from series_samples import path, scaled_saves, start

import alignscope
from alignscope import InputError, Report, spinal_trace
from alignscope.dashboards.figures import report_figures
from alignscope.diagnose.estimate_names import series_estimate_names
from alignscope.diagnose.report import Estimate
from alignscope.diagnose.series_run import series
from alignscope.diagnose.spinal_compare import compare_spinal
from alignscope.diagnose.spinal_distance import base_distance
from alignscope.diagnose.spinal_series import spinal_series
from alignscope.probes.block_noise import changed_blocks, noisy_blocks

PROMPTS = [{"prompt": f"The fox {i} jumps {i * 7 % 11}."} for i in range(50)]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def ladder(zoo, tmp_path_factory) -> Path:
    return scaled_saves(zoo["llama"], tmp_path_factory.mktemp("ladder"), {50: 1.01, 100: 1.03})


def traced(ladder, zoo, out, seeds: int, **options) -> Report:
    return series([ladder], zoo["llama"], only="spinal", prompts=PROMPTS, out=out, noise_seeds=seeds, **options)


@pytest.fixture(scope="module")
def run(ladder, zoo, tmp_path_factory) -> Path:
    """The folder of a series with two seeds of noise; tests after it give it a third."""
    out = tmp_path_factory.mktemp("noise") / "run"
    traced(ladder, zoo, out, 2)
    return out


@pytest.fixture(scope="module")
def report(run) -> Report:
    return Report.load(run)


def test_the_noise_is_that_of_the_audit_of_the_last_save(report, ladder, zoo):
    models = [alignscope.load(model) for model in (zoo["llama"], ladder / "checkpoint-100")]
    traces = [spinal_trace(model, PROMPTS) for model in models]
    found = compare_spinal(*traces, subjects=models, controls=("noise",), noise_seeds=2).control_effects
    estimates = report.section("series").estimates
    for row in found.itertuples():
        size = estimates[row.quantity.replace("d_", "noise_").removesuffix("_terminal")]
        expected = (row.control_effect, row.control_effect_low, row.control_effect_high)
        assert (size.value, size.low, size.high) == pytest.approx(expected, abs=1e-6), row.quantity
        assert (size.n, size.reconstructed) == (50, True)
        assert "of 2 seeds" in size.method


def test_the_distance_under_noise_is_that_of_the_seed_that_moved_farthest(report, ladder, zoo):
    base, last = (alignscope.load(model) for model in (zoo["llama"], ladder / "checkpoint-100"))
    trace = spinal_trace(base, PROMPTS)
    far = []
    for number in range(2):
        with noisy_blocks(base, changed_blocks(base, last), seed=[0, 7, number]) as noisy:
            again = spinal_trace(noisy, PROMPTS)
            far.append(base_distance(trace, again, (base, noisy), identical=False, warnings=[])[0][-3:].mean())
    found = report.section("series").estimates["noise_base_distance"]
    assert found.value == pytest.approx(max(far), abs=1e-6)
    assert 0 < found.low < found.value < found.high


def test_the_size_of_the_noise_stands_beside_the_onset(report):
    estimates = report.section("series").estimates
    (finding,) = [one for one in report.findings if "series.onset" in one.rests_on]
    for name in ("transport", "entropy", "alpha", "base_distance"):
        assert f"{name} by {estimates[f'noise_{name}']}" in finding.sentence
        assert f"series.noise_{name}" in finding.rests_on
    assert f"(the last save: {estimates['d_transport'].value:.3g})" in finding.sentence
    assert "Noise of the weights alone moves" in report.section("series").summary


def test_the_names_of_noise_are_there_only_where_it_was_asked_for(report):
    assert set(report.section("series").estimates) == set(series_estimate_names(("spinal",), noise=True)["series"])
    assert not any(name.startswith("noise_") for name in series_estimate_names(("spinal",))["series"])


def test_the_figure_has_dotted_lines_as_far_from_the_start_as_noise_moves(report):
    estimates, table = report.section("series").estimates, report.to_frame("series.trajectory")
    figure = report_figures(report)["series.trajectory"]
    lines = sorted(trace.y[0] for trace in figure.data if trace.line.dash == "dot")
    expected = []
    for letter, name in (("A", "alpha"), ("T", "transport"), ("H", "entropy"), ("E", "efficiency")):
        begin, size = table[table.signal == letter].value.iloc[0], estimates[f"noise_{name}"].value
        expected += [] if size is None else [begin - abs(size), begin + abs(size)]
    assert lines == pytest.approx(sorted([*expected, estimates["noise_base_distance"].value]))
    assert "Dotted" in figure.layout.meta["how_to_read"]


def test_more_seeds_go_on_from_those_that_are_there_and_none_leave_the_noise_out(run, ladder, zoo):
    first = Report.load(run)
    stages = run / "stages"
    times = {file: file.stat().st_mtime_ns for file in stages.rglob("*.npz")}
    three = traced(ladder, zoo, run, 3)
    assert {file: file.stat().st_mtime_ns for file in times} == times
    new = {file.parent.name for file in {*stages.rglob("*.npz")} - {*times}}
    assert new == {"noise", "noise_2"}
    for name in ("transport", "entropy"):
        few, more = (abs(one.section("series").estimates[f"noise_{name}"].value) for one in (first, three))
        assert more >= few

    def stop(stage: str, done: int, total: int) -> None:
        pytest.fail(f"{stage} was begun")

    assert traced(ladder, zoo, run, 3, progress=stop) == Report.load(run)
    none = traced(ladder, zoo, run, 0, progress=None)
    assert "noise_transport" not in none.section("series").estimates
    assert "Weight noise of the same size may move" in "".join(finding.sentence for finding in none.findings)


def test_saves_with_the_weights_of_the_start_have_no_size_to_match(zoo, tmp_path):
    same = scaled_saves(zoo["llama"], tmp_path / "saves", {1: 1.0, 2: 1.0})
    report = traced(same, zoo, tmp_path / "run", 1)
    found = report.section("series").estimates["noise_transport"]
    assert (found.value, found.reason) == (None, "no matrix of a block changed: there is no size to match")
    assert "not known: no matrix of a block changed" in report.section("series").summary


def test_noise_goes_on_the_weights_below_an_adapter(zoo, tmp_path):
    adapter = make_adapter(zoo["llama"], tmp_path / "step_1")
    report = series([adapter], zoo["llama"], only="spinal", prompts=PROMPTS, out=tmp_path / "run", noise_seeds=1)
    estimates = report.section("series").estimates
    assert estimates["noise_base_distance"].value > 0
    assert estimates["noise_transport"].value != pytest.approx(estimates["d_transport"].value, rel=0.01)


def test_noise_that_nobody_reads_is_refused(ladder, zoo, tmp_path):
    with pytest.raises(InputError, match="noise is traced for the section spinal"):
        series([ladder], zoo["llama"], only="weights", out=tmp_path / "run", noise_seeds=1)
    with pytest.raises(InputError, match="noise_seeds=-1: at least 0"):
        series([ladder], zoo["llama"], only="spinal", prompts=PROMPTS, out=tmp_path / "run", noise_seeds=-1)
    assert not (tmp_path / "run").exists()


def test_a_size_that_was_measured_elsewhere_keeps_its_interval():
    size = Estimate(label="x", value=0.01, low=0.008, high=0.012, n=60, unit="rad", method="bootstrap")
    found = spinal_series(path(start(), [0.0, 0.05, 0.06]), steps=[0, 1, 2], noise={"transport": size})
    assert found.estimates["noise_transport"].low == 0.008
    assert "transport by 0.01 [0.008, 0.012] rad (the last save: 0.06" in found.summary()
