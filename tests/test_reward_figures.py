"""Figures of rewards, objectives, length and displacement: each mark a number of the report, no figure without data."""

import numpy as np
import pandas as pd
import pytest
from ranking_tables import mixed, report

from alignscope import Estimate, PairScores
from alignscope.dashboards.drawing import MAX_POINTS, PALETTE
from alignscope.dashboards.figures import companion_figures, objective_figures, reward_figures
from alignscope.dashboards.intervals import arms, span
from alignscope.dashboards.reward_figures import setting_rows
from alignscope.dashboards.wording import p_text
from alignscope.diagnose.companions import companion_sections
from alignscope.diagnose.objectives_section import objectives_section
from alignscope.diagnose.reward_report import reward_report

SETTINGS = {
    "in_distribution": "in_distribution",
    "shifts": {"maths": "response shift", "french": "prompt shift", "<b>": "prompt shift"},
}
ENDS = ("", "_french", "_<b>", "_maths")  # in the order of the rows


def number(value, half: float = 0.0, *, unit: str = "share", n: int = 40) -> Estimate:
    low, high = (value - half, value + half) if half else (None, None)
    reason = None if half else "18 clusters"
    return Estimate(label="a number", value=value, low=low, high=high, n=n, unit=unit, method="m", reason=reason)


def none(reason: str) -> Estimate:
    return Estimate(label="a number", value=None, n=0, method="none", reason=reason)


def difference(value, half: float = 0.0) -> Estimate:
    return number(value, half, unit="share difference")


def estimates() -> dict[str, Estimate]:
    """Eighths and sixteenths, so that differences are exact."""
    found = {}
    for end, implicit, gap in zip(ENDS, (0.625, 0.5, 0.75, 0.5), (0.0625, 0.25, -0.125, 0.03125), strict=True):
        found |= {
            f"accuracy_implicit{end}": number(implicit, 0.0625),
            f"accuracy_explicit{end}": number(implicit + gap, 0.03125),
            f"gap{end}": difference(gap, 0.0625),
            f"shorter_wins{end}": number(0.375, 0.0625),
            f"longer_wins{end}": number(0.625, 0.0625),
            f"disagreement{end}": number(0.25, 0.0625),
        }
    found |= {"gap": difference(0.0625, 0.125), "mean_gap_shifted": difference(0.25, 0.125)}
    return found | {
        "ece_implicit": number(0.0875),
        "ece_implicit_expected": number(0.03125),
        "ece_explicit": number(0.0625),
        "ece_explicit_expected": number(0.0625),
    }


def tables() -> dict[str, pd.DataFrame]:
    names = ["in_distribution", "maths", "french", "<b>"]
    kinds = ["in-distribution", "response shift", "prompt shift", "prompt shift"]
    pairs = pd.DataFrame(
        {
            "setting": ["in_distribution"] * 5 + ["maths"],
            "pair_id": ["a", "b", "c", "d", "<i>", "f"],
            "implicit_margin": [1.0, 2.0, -1.0, -2.0, 0.0, 9.0],
            "explicit_margin": [1.0, -1.0, 2.0, -2.0, 1.0, 9.0],
            "implicit_right": [1.0, 1.0, 0.0, 0.0, 0.5, 1.0],
            "explicit_right": [1.0, 0.0, 1.0, 0.0, 1.0, 1.0],
        }
    )
    calibration = pd.DataFrame(
        {
            "scorer": ["implicit", "implicit", "explicit"], "bin": [0, 1, 0], "n": [30, 30, 60],
            "confidence": [0.5, 0.75, 0.625], "observed": [0.5, 0.625, 0.75], "low": [0.375, 0.5, 0.625],
            "high": [0.5625, 0.75, 0.8125],
        }
    )  # fmt: skip
    quarters = [
        {"setting": setting, "kind": kind, "quarter": q, "lowest": 4.0 * q - 4, "highest": 4.0 * q - 1, "n": 10,
         "disagreement": 0.125 * q, "disagreement_low": 0.125 * q - 0.0625, "disagreement_high": 0.125 * q + 0.125,
         "gap": 0.25 - 0.125 * q, "gap_low": 0.0, "gap_high": 0.5}
        for setting in names[:2] for kind in ("length", "overlap", "difficulty") for q in (1, 2, 3, 4)
    ]  # fmt: skip
    cells = [
        ("in_distribution", True, True, 20, 0.5),
        ("in_distribution", True, False, 5, 0.125),
        ("in_distribution", False, True, 10, 0.25),
        ("in_distribution", False, False, 5, 0.125),
    ]
    return {
        "by_setting": pd.DataFrame({"setting": names, "shift": kinds}),
        "tests": pd.DataFrame({"setting": names, "gap_p_holm": [np.nan, 0.6, 0.03, 0.0001]}),
        "agreement": pd.DataFrame(cells, columns=["setting", "implicit_right", "explicit_right", "n", "share"]),
        "disagreement": pd.DataFrame(quarters),
        "calibration": calibration,
        "pairs": pairs,
    }


@pytest.fixture(scope="module")
def figures():
    return reward_figures(tables(), estimates(), settings=SETTINGS)


@pytest.fixture(scope="module")
def real():
    """Sections of two mixed tables, by name: tables, estimates, settings."""

    def frame(seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        return mixed(seed=seed).assign(
            overlap=rng.uniform(size=120), prompt_id=[f"{seed} {i // 2}" for i in range(120)]
        )

    base, other = (PairScores.from_frame(frame(seed)) for seed in (0, 1))
    objectives = objectives_section(base, beta=0.5, smoothing="jeffreys", preference=None, bootstrap=50, seed=0)
    results = [reward_report({"in_distribution": base, "maths": other}, bootstrap=50).section(), objectives]
    results += companion_sections(base, report(frame(0), bootstrap=50))
    return {r.section.name: (dict(r.tables), dict(r.section.estimates), dict(r.section.settings)) for r in results}


def traces(figure) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data}


def title(figure) -> str:
    return figure.layout.meta["title"]


# ---- rewards


def test_a_report_s_own_tables_give_every_figure(real):
    made = {}
    for name, draw in (("rewards", reward_figures), ("objectives", objective_figures), ("length", companion_figures),
                       ("displacement", companion_figures)):  # fmt: skip
        of_section, numbers, settings = real[name]
        made |= {f"{name}.{figure}": f for figure, f in draw(of_section, numbers, settings=settings).items()}
    expected = {f"rewards.{name}" for name in ("accuracies", "gaps", "calibration", "margins", "disagreement")}
    assert set(made) == expected | {"objectives.agreement", "length.strata", "displacement.quadrants"}
    for name, figure in made.items():
        assert len(figure.layout.meta["how_to_read"]) > 60, name
        assert figure.layout.xaxis.title.text, name
        assert figure.layout.yaxis.title.text, name


def test_only_palette_colours_are_used_so_that_a_dark_page_can_swap_them(figures, real):
    def colours(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for part in value:
                yield from colours(part)
        elif isinstance(value, str) and value.startswith("#"):
            yield value

    drawn = [*figures.values(), *objective_figures(*real["objectives"][:2]).values()]
    drawn += [f for name in ("length", "displacement") for f in companion_figures(*real[name][:2]).values()]
    for figure in drawn:
        used = set(colours([trace.to_plotly_json() for trace in figure.data]))
        assert used
        assert used <= set(PALETTE)


def test_rows_are_in_distribution_then_the_shifts_kind_by_kind():
    """Told by the settings, or by the table where a result draws itself."""
    wanted = [("in_distribution", ""), ("french", "_french"), ("<b>", "_<b>"), ("maths", "_maths")]
    assert [(row.name, row.end) for row in setting_rows({}, SETTINGS)] == wanted
    assert [(row.name, row.end) for row in setting_rows(tables(), {})] == wanted


def test_accuracies_stand_in_the_rows_of_their_settings_with_their_intervals(figures):
    implicit, explicit = (traces(figures["accuracies"])[name] for name in ("implicit reward", "explicit reward"))
    assert list(implicit.x) == [0.625, 0.5, 0.75, 0.5]
    assert list(explicit.x) == [0.6875, 0.75, 0.625, 0.53125]
    assert [round(y) for y in implicit.y] == [round(y) for y in explicit.y] == [0, 1, 2, 3]
    assert list(implicit.error_x.array) == list(implicit.error_x.arrayminus) == [0.0625] * 4
    assert list(explicit.error_x.array) == [0.03125] * 4
    low, high = figures["accuracies"].layout.yaxis.range
    assert low > high  # the first row on top
    labels = figures["accuracies"].layout.yaxis.ticktext
    assert labels[0].startswith("in-distribution<br>")
    assert [label.partition("<br>")[0] for label in labels[1:]] == ["french", "&lt;b&gt;", "maths"]
    assert "response shift, n = 40" in labels[3]


def test_the_length_rule_is_the_better_of_the_two_and_chance_is_drawn(figures):
    figure = figures["accuracies"]
    assert list(traces(figure)["better length rule"].x) == [0.625] * 4
    assert [shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1] == [0.5]


def test_the_title_of_the_accuracies_says_both_gaps(figures):
    assert title(figures["accuracies"]) == (
        "In-distribution neither reward is clearly ahead (0.06 [−0.06, 0.19]); over 3 shifted sets the explicit reward "
        "is ahead by 0.25 [0.12, 0.38]"
    )


def test_without_gaps_the_title_states_the_accuracy_that_is_there():
    only = {"accuracy_implicit": number(0.625, 0.0625), "accuracy_explicit": none("no reward model")}
    figure = reward_figures({}, only, settings={"in_distribution": "base"})["accuracies"]
    assert title(figure) == "The implicit reward is right on 0.625 [0.562, 0.688] of the pairs"
    assert list(traces(figure)) == ["implicit reward"]
    assert "Not shown: explicit reward of base (no reward model)." in figure.layout.meta["how_to_read"]


def test_gaps_are_drawn_row_by_row_with_the_mean_last(figures):
    figure = figures["gaps"]
    marks = traces(figure)
    assert list(marks["in-distribution"].x) == [0.0625]
    assert list(marks["shifted"].x) == [0.25, -0.125, 0.03125]
    assert list(marks["shifted"].y) == [1, 2, 3]
    assert (list(marks["mean over shifted sets"].x), list(marks["mean over shifted sets"].y)) == ([0.25], [4])
    assert list(marks["mean over shifted sets"].error_x.array) == [0.125]
    assert len(figure.layout.yaxis.ticktext) == 5
    assert [shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1] == [0.0]


def test_holm_s_p_stands_beside_the_shifted_gaps_alone(figures):
    beside = {note.y: note.text.partition(", ")[2] for note in figures["gaps"].layout.annotations}
    assert beside == {0: "", 1: "p = 0.03", 2: "p &lt; 0.001", 3: "p = 0.6", 4: ""}


def test_the_title_of_the_gaps_counts_the_settings_that_are_told_apart(figures):
    assert title(figures["gaps"]) == (
        "Of 3 shifted sets, after Holm's correction: the explicit reward is ahead in 1 (french); the implicit reward "
        "is ahead in 1 (<b>)"
    )
    told = tables() | {"tests": pd.DataFrame({"setting": ["french"], "gap_p_holm": [0.05]})}
    text = title(reward_figures(told, estimates(), settings=SETTINGS)["gaps"])
    assert text == "Of 3 shifted sets, after Holm's correction: neither reward is clearly ahead in any"


def test_without_a_shifted_setting_there_is_no_forest():
    alone = {"in_distribution": "in_distribution", "shifts": {}}
    made = reward_figures(tables(), estimates(), settings=alone)
    assert "gaps" not in made
    assert "accuracies" in made


def test_calibration_points_carry_their_wilson_bars(figures):
    marks = traces(figures["calibration"])
    implicit, explicit = marks["implicit reward"], marks["explicit reward"]
    assert (list(implicit.x), list(implicit.y)) == ([0.5, 0.75], [0.5, 0.625])
    assert list(implicit.error_y.array) == [0.0625, 0.125]
    assert list(implicit.error_y.arrayminus) == [0.125, 0.125]
    assert list(explicit.x) == [0.625]
    diagonal = marks["calibrated"]
    assert list(diagonal.x) == list(diagonal.y) == [0.5, 1]


def test_the_title_of_the_calibration_sets_each_error_beside_the_one_expected(figures):
    assert title(figures["calibration"]) == (
        "Confidence misses the votes by 0.087 for the implicit reward (if calibrated 0.031), by 0.062 for the explicit "
        "reward (if calibrated 0.062)"
    )


def test_the_title_says_up_to_what_a_calibrated_reward_misses_by_chance():
    more = {**estimates(), "ece_implicit_expected_p95": estimates()["ece_implicit"].model_copy(update={"value": 0.05})}
    shown = title(reward_figures(tables(), more, settings=SETTINGS)["calibration"])
    assert "0.087 for the implicit reward (if calibrated 0.031, by chance up to 0.050), by 0.062 for" in shown


def test_margins_are_in_distribution_pairs_marked_by_who_is_right(figures):
    marks = traces(figures["margins"])
    found = {name: list(zip(trace.x, trace.y, strict=True)) for name, trace in marks.items()}
    assert found == {
        "both right": [(1.0, 1.0)],
        "only implicit right": [(2.0, -1.0)],
        "only explicit right": [(-1.0, 2.0), (0.0, 1.0)],  # a tie is not right
        "neither right": [(-2.0, -2.0)],
    }
    assert list(marks["only explicit right"].customdata) == ["pair c", "pair &lt;i&gt;"]
    assert title(figures["margins"]) == (
        "In-distribution both rewards are right on 0.500 of the pairs, only the implicit one on 0.125, only the "
        "explicit one on 0.250, neither on 0.125"
    )


def test_a_large_scatter_is_a_sample_and_says_so():
    many = tables()["pairs"].iloc[[0] * (MAX_POINTS + 1)]
    figure = reward_figures({"pairs": many}, {}, settings=SETTINGS)["margins"]
    assert sum(len(trace.x) for trace in figure.data) == MAX_POINTS
    assert f"{MAX_POINTS:,} of {MAX_POINTS + 1:,} pairs" in figure.layout.meta["how_to_read"]


def test_disagreement_has_a_column_a_kind_with_the_gap_below(figures):
    figure = figures["disagreement"]
    assert len(figure.data) == 6
    above = traces(figure)["disagreement, overlap"]
    assert list(above.y) == [0.125, 0.25, 0.375, 0.5]
    assert list(above.error_y.array) == [0.125] * 4
    assert list(above.error_y.arrayminus) == [0.0625] * 4
    below = traces(figure)["gap, overlap"]
    assert list(below.y) == [0.125, 0.0, -0.125, -0.25]
    assert figure.layout["xaxis" + below.xaxis[1:]].domain == figure.layout["xaxis" + above.xaxis[1:]].domain
    assert figure.layout["yaxis" + below.yaxis[1:]].domain[1] < figure.layout["yaxis" + above.yaxis[1:]].domain[0]
    assert list(figure.layout.xaxis.ticktext) == ["0<br>to 3", "4<br>to 7", "8<br>to 11", "12<br>to 15"]
    assert "0.250 [0.188, 0.312]" in title(figure)


def test_a_kind_without_quarters_has_no_column():
    some = tables()["disagreement"].query("kind == 'difficulty'")
    figure = reward_figures({"disagreement": some}, estimates(), settings=SETTINGS)["disagreement"]
    assert [trace.name for trace in figure.data] == ["disagreement, difficulty", "gap, difficulty"]


def test_without_an_in_distribution_set_the_first_shifted_one_is_shown():
    some = {name: table[table.setting == "maths"] for name, table in tables().items() if "setting" in table}
    figures = reward_figures(some, estimates())
    assert title(figures["margins"]) == "Margins of both rewards, on maths"
    assert title(figures["disagreement"]).startswith("On maths the rewards decide differently on")


def test_no_figure_where_data_are_missing():
    assert reward_figures({}, {}) == {}
    assert objective_figures({}, {}) == {}
    assert companion_figures({}, {}) == {}
    empty = {name: table.iloc[:0] for name, table in tables().items()}
    nulls = {name: none("no pair is left") for name in estimates()}
    assert reward_figures(empty, nulls, settings=SETTINGS) == {}


# ---- objectives, length, displacement


def agreement(*rows) -> dict[str, pd.DataFrame]:
    return {"agreement": pd.DataFrame(rows, columns=["first", "second", "n", "same_sign", "spearman"])}


def test_agreement_is_a_lower_triangle_and_its_title_the_pair_that_agrees_least():
    rows = [("dpo", "ipo", 8, 0.75, 0.5), ("dpo", "orpo", 8, 0.25, -0.5), ("ipo", "orpo", 8, 1.0, np.nan)]
    figure = objective_figures(agreement(*rows), {})["agreement"]
    cells = figure.data[0]
    assert (list(cells.x), list(cells.y)) == (["dpo", "ipo"], ["ipo", "orpo"])
    assert np.array_equal(np.asarray(cells.z), [[0.75, np.nan], [0.25, 1.0]], equal_nan=True)
    assert [list(line) for line in cells.text] == [["0.75", ""], ["0.25", "1.00"]]
    assert "Spearman of the losses −0.50" in cells.customdata[1][0]
    assert "Spearman" not in cells.customdata[1][1]  # a loss that is the same on all pairs has no rank correlation
    assert title(figure) == "dpo and orpo agree least: the same view of 0.25 of the pairs"


def test_agreement_shows_the_intervals_that_its_table_has():
    table = agreement(("dpo", "ipo", 8, 0.75, 0.5))["agreement"].assign(
        same_sign_low=0.625, same_sign_high=0.875, spearman_low=-0.25, spearman_high=0.75
    )
    figure = objective_figures({"agreement": table}, {})["agreement"]
    text = figure.data[0].customdata[0][0]
    assert "same view on 0.750 [0.625, 0.875] of 8 pairs" in text
    assert "Spearman of the losses 0.50 [−0.25, 0.75]" in text
    assert title(figure).endswith("the same view of 0.75 [0.62, 0.88] of the pairs")
    few = table.assign(same_sign_low=np.nan, same_sign_high=np.nan, spearman_low=np.nan, spearman_high=np.nan)
    bare = objective_figures({"agreement": few}, {})["agreement"].data[0].customdata[0][0]
    assert bare == "dpo and ipo<br>same view on 0.750 of 8 pairs<br>Spearman of the losses 0.50"


def test_objectives_without_a_pair_in_common_are_no_cell():
    figure = objective_figures(agreement(("a", "b", 0, np.nan, np.nan), ("a", "c", 4, 0.5, 1.0)), {})["agreement"]
    assert np.asarray(figure.data[0].z).tolist() == [[0.5]]
    assert objective_figures(agreement(("a", "b", 0, np.nan, np.nan)), {}) == {}


def test_accuracies_by_quarter_of_length_stand_beside_the_length_rule():
    strata = pd.DataFrame({"quarter": [1, 2], "shortest": [0.0, 4.0], "longest": [3.0, 40.0], "n": [10, 11]})
    for column, value in (("accuracy", 0.75), ("reward_accuracy", np.nan), ("shorter_wins", 0.5)):
        strata[column], strata[f"{column}_low"], strata[f"{column}_high"] = value, value - 0.25, value + 0.125
    numbers = {"residualised_accuracy": number(0.625, 0.125), "shorter_wins": number(0.5, 0.25)}
    figure = companion_figures({"strata": strata}, numbers)["strata"]
    assert list(traces(figure)) == ["policy ranking R", "always the shorter"]  # no reference, no implicit reward
    mark = traces(figure)["policy ranking R"]
    assert list(mark.y) == [0.75, 0.75]
    assert (list(mark.error_y.array), list(mark.error_y.arrayminus)) == ([0.125] * 2, [0.25] * 2)
    assert list(figure.layout.xaxis.ticktext) == ["0 to 3<br>n = 10", "4 to 40<br>n = 11"]
    assert "0.62 [0.50, 0.75]" in title(figure)


def test_quadrants_stand_where_their_axes_say():
    rows = [(False, False, 1, 0.0625), (False, True, 2, 0.125), (True, False, 3, 0.1875), (True, True, 10, 0.625)]
    table = pd.DataFrame(rows, columns=["chosen_fell", "rejected_fell", "n", "share"])
    numbers = {"both_fell": number(0.625, 0.125), "share_chosen_fell": number(0.8125, 0.125)}
    numbers["chosen_rose_rejected_fell"] = number(0.125, 0.0625)
    figure = companion_figures({"quadrants": table}, numbers)["quadrants"]
    cells = figure.data[0]
    assert (list(cells.x), list(cells.y)) == (["rose", "fell"], ["rose", "fell"])
    assert np.asarray(cells.z).tolist() == [[0.0625, 0.125], [0.1875, 0.625]]
    assert cells.text[0][1] == "<b>0.125</b><br>(0.062 to 0.188)<br>n = 2"
    assert cells.text[1][0] == "<b>0.188</b><br>n = 3"
    assert title(figure) == (
        "Training lowered the chosen answer in 0.81 [0.69, 0.94] of the pairs; in 0.62 [0.50, 0.75] it lowered both "
        "answers"
    )


# ---- parts


def test_an_interval_that_is_missing_has_no_arms():
    rows = pd.DataFrame({"x": [0.5, 0.5], "x_low": [0.25, np.nan], "x_high": [1.0, np.nan]})
    bars = arms(rows, "x", "#24292f")
    assert (bars["array"], bars["arrayminus"]) == ([0.5, 0.0], [0.25, 0.0])
    assert arms(rows[["x"]], "x", "#24292f") is None


@pytest.mark.parametrize(
    ("ends", "text"), [((0.0, 3.0), "0<br>to 3"), ((2.0, 2.0), "2"), ((-1.23456, 0.5), "−1.23<br>to 0.5")]
)
def test_the_span_of_a_quarter(ends, text):
    assert span(*ends) == text


@pytest.mark.parametrize(("p", "text"), [(0.0312, "p = 0.031"), (1.0, "p = 1"), (0.00099, "p < 0.001")])
def test_a_p_is_said_with_two_digits(p, text):
    assert p_text(p) == text
