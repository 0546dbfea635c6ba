"""Figures: every mark is a number of the report, intervals are drawn, and what is missing is left out or said."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import alignscope
from alignscope import Estimate, PairScores, ranking_report
from alignscope.dashboards.drawing import MAX_POINTS, PALETTE
from alignscope.dashboards.figures import layer_profile, ranking_figures, report_figures
from alignscope.dashboards.wording import REASONS, decimals, duration, interval_text, moved, number, stated
from report_samples import HOSTILE, audited, tiny_pairs


def share(value, low=None, high=None, *, unit: str = "share", reason: str | None = None) -> Estimate:
    reason = reason or (None if low is not None else "18 clusters")
    return Estimate(label="a share", value=value, low=low, high=high, n=10, unit=unit, method="m", reason=reason)


@pytest.fixture(scope="module")
def report():
    return audited()


@pytest.fixture(scope="module")
def ranking():
    """A ranking report of known scores: 40 prompts, two pairs each."""
    random = np.random.default_rng(0)
    values = random.normal(-20, 4, size=(80, 4))
    frame = pd.DataFrame(values, columns=["policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"])
    frame["prompt_id"] = [str(i // 2) for i in range(80)]
    frame["preference"], frame["n_votes"] = 0.8, 5.0
    frame["n_chosen"], frame["n_rejected"] = 7, 9
    return ranking_report(PairScores.from_frame(frame), beta=0.5)


@pytest.fixture(scope="module")
def figures(ranking):
    return ranking_figures(dict(ranking.tables), dict(ranking.estimates), settings=dict(ranking.settings))


def traces(figure) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data if trace.name}


def test_a_profile_has_a_band_and_a_line_a_model():
    rows = pd.DataFrame({"model": ["a"] * 3 + ["b"] * 3, "layer": [0, 1, 2] * 2, "alpha": [1.0, 2, 3, 2, 3, 4]})
    rows["alpha_low"], rows["alpha_high"] = rows.alpha - 0.1, rows.alpha + 0.1
    figure = layer_profile(rows, value="alpha", unit="", title="It falls")
    assert [len(trace.x) for trace in figure.data] == [6, 3, 6, 3]
    assert list(figure.data[0].y) == [1.1, 2.1, 3.1, 2.9, 1.9, 0.9]
    assert figure.layout.title.text == "It falls"


def test_a_gap_in_a_profile_stays_a_gap():
    rows = pd.DataFrame({"model": "a", "layer": [0, 1, 2, 3], "alpha": [1.0, math.nan, 3.0, 4.0]})
    rows["alpha_low"], rows["alpha_high"] = rows.alpha - 0.1, rows.alpha + 0.1
    band, line = layer_profile(rows, value="alpha", unit="", title="t").data
    assert math.isnan(line.y[1])
    assert math.isnan(band.x[4])  # the lone point, a gap, then the run of two
    assert 1 not in set(band.x)


def test_every_section_has_its_figures(report):
    names = list(report_figures(report))
    drawn = {name.partition(".")[0] for name in names}
    assert drawn == {"ranking", "length", "displacement", "rewards", "objectives", "spinal"}
    assert {"ranking.accuracies", "ranking.idealized", "ranking.flips", "ranking.difficulty"} <= set(names)
    assert {"spinal.alpha", "spinal.angle", "spinal.d_angle", "spinal.base_distance"} <= set(names)


def test_each_figure_says_how_to_read_it_and_names_its_axes(report):
    for name, figure in report_figures(report).items():
        assert len(figure.layout.meta["how_to_read"]) > 60, name
        assert figure.layout.xaxis.title.text, name
        assert figure.layout.yaxis.title.text or name == "ranking.accuracies", name


def test_only_palette_colours_are_used_so_that_a_dark_page_can_swap_them(report):
    def colours(value):
        if isinstance(value, str) and value.startswith("#"):
            yield value
        elif isinstance(value, dict):
            for part in value.values():
                yield from colours(part)
        elif isinstance(value, list | tuple):
            for part in value:
                yield from colours(part)

    for name, figure in report_figures(report).items():
        used = set(colours({"data": [trace.to_plotly_json() for trace in figure.data]}))
        assert used <= set(PALETTE), name


def test_accuracies_are_drawn_with_their_intervals(figures, ranking):
    drawn = traces(figures["accuracies"])
    for name, label in (("accuracy", "policy ranking R"), ("reward_accuracy", "implicit reward")):
        estimate = ranking.estimates[name]
        mark = drawn[label]
        assert mark.x[0] == estimate.value
        assert mark.error_x.array[0] == pytest.approx(estimate.high - estimate.value)
        assert mark.error_x.arrayminus[0] == pytest.approx(estimate.value - estimate.low)


def test_the_title_of_the_accuracies_is_the_finding(figures, ranking):
    title = figures["accuracies"].layout.meta["title"]
    assert stated(ranking.estimates["accuracy"]) in title
    assert stated(ranking.estimates["reference_accuracy"]) in title


def test_the_best_attainable_accuracy_is_a_falling_staircase(figures, ranking):
    curve = traces(figures["idealized"])["optimum R*, jeffreys"]
    assert curve.line.shape == "hv"
    values = np.asarray(curve.y)
    assert (np.diff(values) <= 0).all()
    assert values[-1] == pytest.approx(ranking.estimates["reference_accuracy"].value)
    assert figures["idealized"].layout.xaxis.type == "log"


def test_the_flip_cells_hold_all_pairs(figures, ranking):
    cells = figures["flips"].data[0]
    assert np.asarray(cells.z).sum() == pytest.approx(1.0)
    assert ranking.tables["flips"].n.sum() == 80


def test_difficulty_points_lie_on_the_right_side_of_the_threshold(ranking):
    """Theorem 4.1 as it is drawn: a pair is ranked right exactly where its point is under the curve."""
    pairs = ranking.pairs
    assert ((pairs.loss <= pairs.threshold) == (pairs.ranked_right == 1)).all()


def test_without_votes_there_is_no_curve_but_a_reason(ranking):
    estimates = dict(ranking.estimates)
    none = share(None, reason="no preference strength: one label a pair")
    estimates["idealized_accuracy"] = none
    tables = dict(ranking.tables) | {"idealized": ranking.tables["idealized"].iloc[:0]}
    figures = ranking_figures(tables, estimates)
    assert "idealized" not in figures
    assert "one label a pair" in figures["accuracies"].layout.meta["how_to_read"]


def test_a_figure_without_its_table_is_left_out(ranking):
    assert set(ranking_figures({}, dict(ranking.estimates))) == {"accuracies"}
    assert ranking_figures({}, {}) == {}


def test_a_large_scatter_is_a_sample_and_says_so(ranking):
    pairs = pd.concat([ranking.pairs] * 60, ignore_index=True)
    figure = ranking_figures(dict(ranking.tables) | {"pairs": pairs}, dict(ranking.estimates))["difficulty"]
    points = sum(len(t.x) for t in figure.data if t.mode == "markers")
    assert points == MAX_POINTS
    assert f"{MAX_POINTS:,} of 4,800 pairs" in figure.layout.meta["how_to_read"]


def test_names_from_files_are_escaped_in_labels():
    figures = report_figures(audited(name=HOSTILE, only=["ranking"]))
    text = "".join(str(t.customdata) for t in figures["ranking.difficulty"].data if t.customdata is not None)
    assert "&lt;script&gt;" in text
    assert "<script>" not in text


def test_results_draw_themselves(ranking):
    assert ranking.figure().layout.xaxis.type == "log"
    frame = pd.DataFrame({"policy_chosen": [-1.0, -2.0], "policy_rejected": [-2.0, -1.0]})  # one label, no reference
    assert "0.5" in ranking_report(PairScores.from_frame(frame)).figure().layout.meta["title"]


def test_sample_pairs_have_two_a_prompt():
    assert len({row["prompt"] for row in tiny_pairs(10)}) == 5


# ---- how numbers are said


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (0.5, None, "0.5"),
        (-0.25, None, "\N{MINUS SIGN}0.25"),
        (1234567, None, "1,234,567"),
        (-0.0001, 2, "0.00"),
        (1e-7, None, "1e\N{MINUS SIGN}07"),
        (math.inf, None, "∞"),
        (12345.678, None, "12,346"),
    ],
)
def test_numbers(value, places, text):
    assert number(value, places) == text


@pytest.mark.parametrize(
    ("low", "high", "places"), [(0.58, 0.64, 3), (0.5, 0.9, 2), (-40.0, 10.0, 0), (0.5, 0.5, None)]
)
def test_digits_follow_the_width_of_the_interval(low, high, places):
    assert decimals(share((low + high) / 2, low, high)) == places


def test_a_change_is_named_only_where_the_interval_leaves_out_0():
    up, down, none = (share(*v, unit="nats") for v in ((1.0, 0.5, 1.5), (-1.0, -1.5, -0.5), (0.1, -0.5, 0.7)))
    assert moved(up, "rose", "fell") == "rose by 1.00 [0.50, 1.50] nats"
    assert moved(down, "rose", "fell") == "fell by 1.00 [0.50, 1.50] nats"
    assert moved(none, "rose", "fell").startswith("no clear change (0.10 [")
    assert interval_text(up) == "0.50 to 1.50"
    assert moved(None, "rose", "fell") is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.26, "1.3 s"), (45, "45 s"), (192, "3 min 12 s"), (7_260, "2 h 1 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# ---- words for the reasons


def test_every_reason_that_the_code_gives_has_words_and_no_word_is_for_another():
    package = Path(alignscope.__file__).parent
    files = [file for part in ("probes", "diagnose") for file in sorted((package / part).glob("*.py"))]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    given = {*re.findall(r'RowError\(\s*"(\w+)"', code), *re.findall(r'\breason="(\w+)",', code)}
    given |= {f"non_finite_{role}" for role in ("policy", "reference")}  # the one reason that is put together
    assert 'reason=f"non_finite_{role}"' in code
    assert len(given) >= 19
    assert given <= set(REASONS), given - set(REASONS)
    kept = {reason for reason, words in REASONS.items() if words.startswith("kept")}
    assert set(REASONS) == given | kept
    assert all(re.search(rf'"{reason}"', code) for reason in kept)
