"""Figures of a series: every mark is a number of its tables, gaps stay gaps, and the slider holds every layer."""

import numpy as np
import pytest
from series_samples import BLOCKS, distances, path, start

from alignscope import Report
from alignscope.dashboards.figures import report_figures
from alignscope.dashboards.series_figures import series_figures
from alignscope.diagnose.report import Manifest
from alignscope.diagnose.spinal_series import spinal_series

JUMP = [0.0, *[0.001 * i for i in range(1, 10)], 0.2, 0.201]


@pytest.fixture(scope="module")
def series():
    sizes = [0.01 * i for i in range(1, 10)] + [0.5, 0.51]
    return spinal_series(path(start(), JUMP), steps=[10 * i for i in range(12)], distances=distances(sizes))


@pytest.fixture(scope="module")
def figures(series):
    return series.figures()


def lines(figure) -> list:
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


def test_a_panel_a_signal_that_has_numbers(series, figures):
    headings = [note.text[0] for note in figures["trajectory"].layout.annotations]
    assert headings == ["A", "T", "H", "R", "D", "v"]  # no efficiency in these traces
    for letter, line in zip(headings, lines(figures["trajectory"]), strict=True):
        rows = series.trajectory[series.trajectory.signal == letter]
        assert np.array_equal(line.y, rows.value, equal_nan=True)
        assert list(line.x) == list(series.steps)


def test_bands_are_the_intervals(series, figures):
    band = figures["trajectory"].data[2]
    rows = series.trajectory[series.trajectory.signal == "T"]
    assert list(band.y) == [*rows.high, *rows.low[::-1]]


def test_a_save_that_alarmed_is_crossed_in_its_panel(series, figures):
    crosses = [trace for trace in figures["trajectory"].data if trace.marker.symbol == "x"]
    drawn = {(trace.xaxis, x, trace.customdata[i][0]) for trace in crosses for i, x in enumerate(trace.x)}
    assert drawn == {("x2", 100.0, "CUSUM"), ("x6", 100.0, "speed, CUSUM")} or drawn == {
        ("x2", 100.0, "CUSUM"),
        ("x6", 100.0, "CUSUM, speed"),
    }


def test_the_onset_is_shaded_in_the_panel_of_its_signal(series, figures):
    shaded = [shape for shape in figures["trajectory"].layout.shapes if shape.type == "rect"]
    assert [(shape.xref, shape.x0, shape.x1) for shape in shaded] == [("x2", 0.0, 10.0)]
    assert (series.onset.last_quiet, series.onset.first_significant) == (0.0, 10.0)


def test_the_title_says_what_was_found(figures):
    title = figures["trajectory"].layout.meta["title"]
    assert title == "The read-out first changed between steps 0 and 10; the first alarm is at step 100"


def test_the_slider_holds_every_layer_in_the_order_of_the_traces(series, figures):
    figure = figures["layers"]
    slider = figure.layout.sliders[0]
    assert [step.label for step in slider.steps] == [str(layer) for layer in range(BLOCKS + 1)]
    assert slider.active == series.window[0] == 4
    for layer, step in enumerate(slider.steps):
        data = step.args[0]
        assert {len(values) for values in data.values()} == {len(figure.data)}
        rows = series.layers[series.layers.layer == layer]
        for i, name in enumerate(("alpha", "angle", "base_distance")):
            drawn = [np.nan if value is None else value for value in data["y"][2 * i + 1]]
            assert np.array_equal(drawn, rows[name], equal_nan=True)


def test_what_is_drawn_first_is_the_layer_the_slider_stands_at(figures):
    figure = figures["layers"]
    chosen = figure.layout.sliders[0].steps[figure.layout.sliders[0].active].args[0]
    for trace, y in zip(figure.data, chosen["y"], strict=True):
        assert list(trace.y) == y


def test_axes_hold_every_layer(series, figures):
    low, high = figures["layers"].layout.yaxis2.range
    assert low < series.layers.angle_low.min()
    assert high > series.layers.angle_high.max()


def test_the_last_layer_has_no_next_step(figures):
    assert set(figures["layers"].layout.sliders[0].steps[BLOCKS].args[0]["y"][3]) == {None}


def test_without_distances_there_are_two_panels_and_a_plain_title():
    bare = spinal_series(path(start(), [0.0, 0.1, 0.2]), steps=[0, 1, 2]).figures()
    assert len(bare["layers"].data) == 4
    assert bare["layers"].layout.meta["title"] == "Every layer over training"
    assert len(lines(bare["trajectory"])) == 4


def test_missing_tables_leave_their_figures_out(series):
    assert series_figures({}, {}) == {}
    assert list(series_figures({"layers": series.layers}, {})) == ["layers"]


def test_a_report_draws_the_section_and_survives_the_disk(series, figures, tmp_path):
    manifest = Manifest(
        command="",
        models={},
        data={},
        settings={},
        packages={},
        device="cpu",
        dtype="float32",
        seed=0,
        wall_seconds=0.0,
    )
    report = Report.assemble("t", "q", manifest, [series.section()])
    report.save(tmp_path)
    again = report_figures(Report.load(tmp_path))
    assert list(again) == ["series.trajectory", "series.layers"]
    for name, figure in figures.items():
        assert again[f"series.{name}"].to_json() == figure.to_json()
        assert len(figure.layout.meta["how_to_read"]) > 60
