"""Figures of differential information: they draw the tables' numbers, all intervals and no markup from a text."""

import json

import numpy as np
import pandas as pd
import pytest

from alignscope import Estimate, Report
from alignscope.dashboards.drawing import PALETTE
from alignscope.dashboards.figures import report_figures
from alignscope.dashboards.information_figures import information_figures, ordered_buckets
from alignscope.dashboards.information_panels import PANELS, WIDE
from alignscope.dashboards.information_token_figures import LINE, LINES, LISTS, token_strip, visible
from alignscope.dashboards.page import SHOWN_ROWS, render_page
from alignscope.diagnose.report import Manifest, Section, SectionResult
from report_samples import HOSTILE

BUCKETS = ["1-5", "6-50", "end"]
FLOOR = 0.25
SETTINGS = {"noise_floor": {"effective": FLOOR}, "beta": 0.5}
FEW = "too few prompts: 3 clusters (prompts): an interval needs 20"
NAMES = {"profile", "tokens", "strip", "tilt", "updates", "reliability", "candidates"}


def row(value: float | None, *, has_interval: bool = True, **more) -> dict:
    """Cells as `information_rates.interval` writes them."""
    known = value is not None and has_interval
    return more | {
        "value": np.nan if value is None else value, "low": value / 2 if known else np.nan,
        "high": 2 * value if known else np.nan, "n": 40, "n_prompts": 24, "unit": "nats a token",
        "reason": None if known else FEW,
    }  # fmt: skip


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(
        label="a rate", value=value, low=low, high=high, n=40, n_clusters=24, unit="nats a token", method="m",
        reason=None if low is not None else FEW,
    )  # fmt: skip


def profile(sources=("chosen", "rejected"), scale: float = 1.0) -> pd.DataFrame:
    """The end of sequence has no interval."""
    rows = [
        row(scale * (i + 1) * (j + 1) / (k + 1), has_interval=bucket != "end", source=source, bucket=bucket,
            measure=measure)
        for k, source in enumerate(sources) for i, bucket in enumerate(BUCKETS) for j, measure in enumerate(PANELS)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def tokens(sources=("chosen", "rejected"), text: str = "' the'") -> pd.DataFrame:
    rows = [
        {
            "source": source, "bucket": bucket, "list": name, "rank": rank, "token": 10 * rank, "piece": "p",
            "text": text if rank == 1 else f"'w{rank}'", "score": sign * (2 - k) / rank, "mean_q": 0.75,
            "mean_policy": 0.5, "mean_reference": 0.25, "share_in_top": 0.125, "n_plausible": 8, "n_positions": 16,
            "context": "before\n it",
        }
        for k, source in enumerate(sources) for bucket in ("all", "1-5")
        for name, sign in [(name, -1 if name in ("policy_lost", "suppressed") else 1) for name in LISTS]
        for rank in (1, 2, 3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def strip(history: int, texts: list[str], source: str = "chosen") -> pd.DataFrame:
    n = len(texts)
    numbers = {"plausible_information": np.arange(n) / 4, "kl": np.arange(n) / 2, "log_ratio": np.arange(n) - n / 2}
    return pd.DataFrame(
        {"history": history, "prompt_id": f"p{history}", "source": source, "position": np.arange(1, n + 1),
         "text": texts, "status": "ok"} | numbers
    )  # fmt: skip


def tilt(sources=("chosen", "rejected")) -> pd.DataFrame:
    rows = [
        row(0.25, source=source, bucket=bucket, q25=-0.75, median=0.125, q75=1.0, unweighted=0.5, r2=0.25, n_null=0)
        for source in sources for bucket in ("all", "1-5", "6-50")
    ]  # fmt: skip
    return pd.DataFrame([*rows, {"source": sources[0], "bucket": "end", "n_null": 4}])


def updates(sources=("chosen", "rejected")) -> pd.DataFrame:
    steps = [("base", "a", 0.5), ("base", "b", 2.0), ("a", "b", 1.0), ("b", "c", 4.0), ("base", "c", 8.0)]
    return pd.DataFrame(
        [row(size, source=source, measure=measure) | {"from": first, "to": last}
         for first, last, size in steps for source in sources for measure in PANELS]
    )  # fmt: skip


def tables(sources=("chosen", "rejected")) -> dict[str, pd.DataFrame]:
    return {
        "profile": profile(sources),
        "tokens": tokens(sources),
        "tilt": tilt(sources),
        "strips": pd.concat([strip(3, [" I", "\n", "x"]), strip(5, ["a"] * 5, sources[-1])], ignore_index=True),
        "identities": pd.DataFrame({"name": ["kl", "drawn"], "ok": ["yes", "not judged"]}),
        "reliability": pd.DataFrame(
            {"at": ["fitted", "trained"], "bin": 0, "n": 30, "confidence": [0.625, 0.75], "observed": [0.75, 0.75],
             "low": 0.5, "high": [0.875, 1.0]}
        ),
        "candidates": pd.DataFrame(
            {"source": sources[0], "prompt_id": ["p", "q", "r"], "n_candidates": [2, 3, 1],
             "normalized_entropy": [0.5, 0.75, np.nan]}
        ),
        "updates": updates(sources),
    }  # fmt: skip


def estimates(sources=("chosen", "rejected")) -> dict[str, Estimate]:
    found = {f"{source}_{measure}": estimate(1.5, 1.0, 2.0) for source in sources for measure in PANELS}
    found |= {f"{sources[0]}_tilt": estimate(0.25, 0.125, 0.5).model_copy(update={"unit": ""})}
    found |= {f"candidates_{sources[0]}": estimate(0.625, 0.5, 0.75).model_copy(update={"unit": ""})}
    return found | {"label_beta": estimate(0.25, 0.125, 0.5).model_copy(update={"unit": "1/nats"})}


@pytest.fixture(scope="module")
def figures():
    return information_figures(tables(), estimates(), settings=SETTINGS)


def traces(figure, axis: str = "x") -> dict:
    """Those of one panel, by name."""
    return {trace.name: trace for trace in figure.data if (getattr(trace, "xaxis", None) or "x") == axis}


def title(figure) -> str:
    return figure.layout.meta["title"]


def how(figure) -> str:
    return figure.layout.meta["how_to_read"]


def button(figure, menu: int, label: str):
    return next(one for one in figure.layout.updatemenus[menu].buttons if one.label.startswith(label))


def drawn(trace) -> list[tuple[float, float, float]]:
    """Value, lower and upper end of each mark."""
    y, up, down = np.array(trace.y), np.array(trace.error_y.array), np.array(trace.error_y.arrayminus)
    return list(zip(y, y - down, y + up, strict=True))


def test_every_figure_is_there_says_how_to_read_it_and_names_its_axes(figures):
    assert set(figures) == NAMES
    for name, figure in figures.items():
        assert len(how(figure)) > 60, name
        assert any(axis.title.text for axis in figure.select_xaxes()), name
        assert any(axis.title.text for axis in figure.select_yaxes()), name


def test_only_palette_colours_are_used_so_that_a_dark_page_can_swap_them(figures):
    def colours(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for part in value:
                yield from colours(part)
        elif isinstance(value, str) and value.startswith("#") and len(value) == 7:
            yield value

    for name, figure in figures.items():
        made = json.loads(str(figure.to_json()))
        made["layout"].pop("template")
        assert set(colours(made)) <= set(PALETTE), name


def test_profile_draws_each_rate_of_the_table_with_its_interval(figures):
    for axis, measure in zip(("x", "x2", "x3", "x4"), PANELS, strict=True):
        for source in ("chosen", "rejected"):
            table = tables()["profile"].query("measure == @measure and source == @source")
            whole, *buckets = drawn(traces(figures["profile"], axis)[source])
            assert whole == (1.5, 1.0, 2.0)  # from the estimates
            expected = table[["value", "low", "high"]].to_numpy()
            expected = np.where(np.isnan(expected), expected[:, :1], expected)
            assert np.allclose(buckets, expected, rtol=1e-12), (measure, source)


def test_a_rate_without_interval_is_hollow_and_says_why(figures):
    chosen = traces(figures["profile"])["chosen"]
    assert list(chosen.marker.symbol) == ["triangle-up"] * 3 + ["triangle-up-open"]
    assert FEW in chosen.customdata[3]
    assert "Hollow: no interval (too few prompts)" in how(figures["profile"])


def test_the_noise_floor_is_drawn_in_every_panel_and_said(figures):
    floors = [shape for shape in figures["profile"].layout.shapes if shape.y0 == shape.y1 == FLOOR]
    assert len(floors) == len(PANELS)
    assert f"noise floor, {FLOOR} nats" in how(figures["profile"])
    low, high = figures["profile"].layout.yaxis.range
    assert low < FLOOR < high


def test_without_settings_no_floor_is_made_up():
    figure = information_figures(tables(), estimates())["profile"]
    assert not [shape for shape in figure.layout.shapes if shape.y0 == shape.y1]
    assert "floor" not in how(figure)


def test_the_title_of_the_profile_says_where_most_was_added_only_where_it_is_clear(figures):
    assert title(figures["profile"]).endswith("by position: no part stands out clearly")  # the end has no interval
    clear = profile(["chosen"])
    known = clear["value"].notna()
    clear["value"] = clear["value"].where(known, 1.0)
    clear["low"], clear["high"] = clear["value"] - 0.01, clear["value"] + 0.01
    found = information_figures({"profile": clear}, {}, settings={})["profile"]
    assert "adds most (D^S) at" in title(found)


def test_rates_under_the_floor_are_no_measurable_change():
    quiet = information_figures({"profile": profile(scale=FLOOR / 25)}, {}, settings=SETTINGS)["profile"]
    assert title(quiet) == ("Nothing is above the floor of 0.25 nats a token; what has no interval is not judged")
    sure = profile(scale=FLOOR / 25)
    sure[["low", "high"]] = sure[["low", "high"]].fillna(FLOOR / 50)
    whole = information_figures({"profile": sure}, {}, settings=SETTINGS)["profile"]
    assert title(whole) == "No measurable change at any position: every rate is under 0.25 nats a token"
    loud = information_figures({"profile": profile(scale=FLOOR / 10)}, {}, settings=SETTINGS)["profile"]
    assert "floor" not in title(loud)


@pytest.mark.parametrize(("largest", "kind"), [(WIDE / 2, "linear"), (WIDE * 2, "log")])
def test_rates_far_apart_stand_on_a_logarithmic_axis(largest, kind):
    table = profile(["chosen"])
    table["value"] = np.linspace(1, largest, len(table))
    table["low"], table["high"] = table.value, table.value
    figure = information_figures({"profile": table}, {}, settings=SETTINGS)["profile"]
    assert {axis.type for axis in figure.select_yaxes()} == {kind}
    assert ("logarithmic" in how(figure)) == (kind == "log")
    low, high = figure.layout.yaxis.range
    ends = (FLOOR, largest) if kind == "linear" else np.log10((FLOOR, largest))
    assert low < ends[0] < ends[1] < high


def test_rates_of_exactly_0_can_be_drawn():
    table = profile(["chosen"]).assign(value=0.0, low=0.0, high=0.0)
    figure = information_figures({"profile": table}, {})["profile"]
    assert figure.layout.yaxis.type == "linear"
    assert figure.layout.yaxis.range[0] < 0 < figure.layout.yaxis.range[1]


def test_a_row_without_value_is_not_drawn_but_named_with_its_reason():
    table = profile(["chosen"])
    gone = (table.bucket == "6-50") & (table.measure == "kl")
    table.loc[gone, ["value", "low", "high"]] = np.nan
    table.loc[gone, "reason"] = "no finite position"
    figure = information_figures({"profile": table}, {}, settings=SETTINGS)["profile"]
    assert [len(traces(figure, axis)["chosen"].y) for axis in ("x", "x2")] == [3, 2]
    assert "Not shown, as no value is known: chosen, 6-50 (no finite position)." in how(figure)


def test_buckets_stand_in_the_order_of_positions_whichever_source_comes_first():
    assert ordered_buckets(["1-5", "end", "51+", "all", "6-50", "end"]) == ["all", "1-5", "6-50", "51+", "end"]


@pytest.mark.parametrize("source", ["policy", "dataset"])
def test_one_source_alone_has_all_figures(source):
    made = information_figures(tables([source]), estimates([source]), settings=SETTINGS)
    assert set(made) == NAMES
    assert len(made["tokens"].layout.updatemenus) == 1  # no menu of sources
    assert {trace.name for trace in made["profile"].data} == {source}


def test_a_source_keeps_its_colour_and_its_symbol_through_the_section(figures):
    for source in ("chosen", "rejected"):
        mark = traces(figures["profile"])[source].marker
        assert mark.color == traces(figures["tilt"])[source].marker.color
        assert mark.color == traces(figures["tokens"])[source].marker.color
        assert mark.color == traces(figures["updates"])[source].marker.color
    symbols = [traces(figures["profile"])[source].marker.symbol[0] for source in ("chosen", "rejected")]
    assert symbols == ["triangle-up", "triangle-down"]


@pytest.mark.parametrize(("name", "table"), tables().items())
def test_a_table_alone_gives_its_own_figure_and_no_other(name, table):
    expected = {"strips": {"strip"}, "identities": set()}.get(name, {name})
    assert set(information_figures({name: table}, {})) == expected


def test_empty_tables_draw_nothing():
    assert information_figures({name: table[:0] for name, table in tables().items()}, {}) == {}


def test_where_an_identity_fails_nothing_is_drawn():
    broken = tables() | {"identities": pd.DataFrame({"name": ["kl"], "ok": ["no"]})}
    assert information_figures(broken, estimates(), settings=SETTINGS) == {}


def test_bars_are_the_scores_of_the_list_over_all_positions(figures):
    chosen, rejected = figures["tokens"].data
    assert (list(chosen.x), list(rejected.x)) == ([2.0, 1.0, 2 / 3], [1.0, 0.5, 1 / 3])
    assert list(chosen.text) == ["0.25 → 0.5"] * 3
    assert (chosen.visible, rejected.visible) == (True, False)


def test_the_menu_of_lists_changes_bars_labels_and_axis_of_every_source(figures):
    menu = figures["tokens"].layout.updatemenus[0]
    assert [one.label for one in menu.buttons] == [label for label, _ in LISTS.values()]
    data, layout = button(figures["tokens"], 0, "suppressed").args
    assert data["x"] == [[-2.0, -1.0, -2 / 3], [-1.0, -0.5, -1 / 3]]
    assert data["y"] == [["'␣the'", "'w2'", "'w3'"]] * 2
    assert layout["xaxis.title.text"] == "mean log(π / ref) [nats]"
    low, high = layout["xaxis.range"]
    assert low < -2 < 0 == high


def test_the_menu_of_sources_shows_one_at_a_time(figures):
    menu = figures["tokens"].layout.updatemenus[1]
    assert [(one.label, one.args[0]["visible"]) for one in menu.buttons] == [
        ("chosen responses", [True, False]),
        ("rejected responses", [False, True]),
    ]


def test_hovering_a_bar_tells_its_numbers_and_a_place(figures):
    said = figures["tokens"].data[0].customdata[0]
    for part in ("mean q 0.75, policy 0.5, reference 0.25", "12.5 % of 16 positions", "plausible at 8", "before↵ it"):
        assert part in said


def test_tokens_that_read_alike_keep_a_bar_each():
    table = tokens(["chosen"]).assign(text="'the'")
    (bars,) = information_figures({"tokens": table}, {})["tokens"].data
    assert list(bars.y) == ["'the' #10", "'the' #20", "'the' #30"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" the", "␣the"), ("\n\n", "↵↵"), ("\t", "⇥"), ("a\x00b", "a\\x00b"), ("\u200b", "\\u200b"), ("é…日", "é…日")],
)
def test_characters_without_a_mark_are_made_visible(text, shown):
    assert visible(text) == shown


def test_cells_stand_in_reading_order_and_carry_the_kl(figures):
    first, longer = figures["strip"].data
    assert list(first.text) == ["␣I", "↵", "x"]
    assert list(first.marker.color) == [0.0, 0.5, 1.0]
    assert (list(first.base), list(first.y)) == ([0.0, 3.0, 5.0], [0, 0, 0])
    assert (first.visible, longer.visible) == (False, True)  # the longest first


def test_lines_break_before_a_token_that_does_not_fit_and_none_is_lost():
    texts = ["word" * 3] * 30
    (trace,) = token_strip({"strips": strip(0, texts)}).data
    ends = np.array(trace.base) + np.array(trace.x)
    assert ends.max() <= LINE + 1
    assert len(trace.y) == 30
    assert list(trace.y) == sorted(trace.y)
    assert max(trace.y) == 30 // (LINE // 13) - 1


def test_a_long_response_is_cut_and_says_so():
    figure = token_strip({"strips": strip(0, ["w" * LINE] * (LINES + 5))})
    assert len(figure.data[0].y) == LINES
    assert f"Cut to {LINES} lines: 1 of these responses." in how(figure)


def test_buttons_colour_every_response_and_the_log_ratio_around_0(figures):
    assert [one.label for one in figures["strip"].layout.updatemenus[1].buttons] == ["KL", "D<sup>S</sup>", "log-ratio"]
    data, layout = button(figures["strip"], 1, "log-ratio").args
    assert data["marker.color"] == [[-1.5, -0.5, 0.5], [-2.5, -1.5, -0.5, 0.5, 1.5]]
    assert data["text"][0] == ["<i>␣I</i>", "<i>↵</i>", "x"]  # fell: told without colour, too
    axis = layout["coloraxis"]
    assert axis["cmin"] == -axis["cmax"]
    middle = dict(map(tuple, axis["colorscale"]))[0.5]
    assert middle == next(name for name in PALETTE if name == "#fefefe")
    assert button(figures["strip"], 1, "KL").args[1]["coloraxis"]["cmin"] == 0


def test_the_menu_of_responses_shows_one_at_a_time_and_numbers_its_lines(figures):
    menu = figures["strip"].layout.updatemenus[0]
    assert menu.active == 1
    visible_traces, axis = menu.buttons[0].args
    assert visible_traces == {"visible": [True, False]}
    assert axis == {"yaxis.tickvals": [0], "yaxis.ticktext": ["1"]}
    assert menu.buttons[0].label == "chosen response 3: I↵x"


def test_a_token_without_numbers_is_grey_and_says_why():
    table = strip(0, ["a", "b", "c"])
    table.loc[1, ["kl", "plausible_information"]] = np.inf, np.nan
    table.loc[1, "status"] = "unsupported"
    (trace,) = token_strip({"strips": table}).data
    assert list(trace.marker.color) == [0.0, "#e4e7eb", 1.0]
    assert "KL: none (unsupported)" in trace.customdata[1]
    assert "KL 1.000 nats" in trace.customdata[2]


def test_the_title_of_the_strip_names_the_largest_kl(figures):
    assert title(figures["strip"]) == (
        "Among the responses shown the update changed the prediction most where a stands, token 5 of rejected response "
        "5: KL 2.00 nats"
    )


def test_slopes_are_drawn_with_interval_quartiles_and_zero_line(figures):
    figure = figures["tilt"]
    assert drawn(traces(figure)["chosen"]) == [(0.25, 0.125, 0.5)] * 3
    box = traces(figure)["chosen: middle half of positions"]
    assert (list(box.base), list(box.y)) == ([-0.75] * 3, [1.75] * 3)
    assert list(traces(figure)["chosen: median of positions"].y) == [0.125] * 3
    assert any(shape.y0 == shape.y1 == 0 for shape in figure.layout.shapes)
    notes = {note.text: note.y for note in figure.layout.annotations}
    assert notes["sharpened"] > notes["smoothed"]
    assert "no slope is known: chosen, end (no position has one)" in how(figure)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (estimate(0.25, 0.125, 0.5), "sharpened by 0.25"),
        (estimate(-0.25, -0.5, -0.125), "smoothed by 0.25"),
        (estimate(0.25, -0.5, 0.75), "neither clearly sharpened nor smoothed"),
        (estimate(0.25), "(no interval)"),
    ],
)
def test_sharpened_and_smoothed_are_said_only_where_the_interval_leaves_out_0(found, said):
    assert said in title(information_figures({"tilt": tilt()}, {"chosen_tilt": found})["tilt"])


def test_steps_are_drawn_since_the_reference_and_since_the_save_before(figures):
    marks = traces(figures["updates"])
    assert list(marks["chosen"].y) == [0.5, 2.0, 8.0]
    assert list(marks["chosen, since the save before"].y) == [0.5, 1.0, 4.0]
    assert drawn(marks["chosen, since the save before"])[1] == (1.0, 0.5, 2.0)
    assert [name for name, mark in marks.items() if mark.showlegend] == ["chosen", "rejected"]
    assert list(figures["updates"].layout.xaxis3.ticktext) == ["a", "b", "c"]
    assert title(figures["updates"]) == "How much every step of the training changed"  # b to c: [2, 8], over a's 2


def test_reliability_is_drawn_at_both_betas_beside_the_diagonal(figures):
    marks = traces(figures["reliability"])
    assert drawn(marks["at the fitted beta"]) == [(0.75, 0.5, 0.875)]
    assert drawn(marks["at the training's beta"]) == [(0.75, 0.5, 1.0)]
    assert list(marks["calibrated"].x) == list(marks["calibrated"].y) == [0.5, 1]
    assert title(figures["reliability"]).endswith("beta = 0.25 [0.12, 0.50] 1/nats; it was trained at 0.5")


def test_candidates_are_points_with_their_mean_and_its_interval(figures):
    marks = traces(figures["candidates"])
    assert list(marks["chosen: prompts"].x) == [0.5, 0.75]
    assert (list(marks["chosen"].x), list(marks["chosen"].error_x.array)) == ([0.625], [0.125])
    assert "Not shown: 1 prompts with one response alone." in how(figures["candidates"])


def test_texts_from_files_cannot_become_markup():
    hostile = tables() | {
        "tokens": tokens(text=repr(HOSTILE)).assign(context=HOSTILE),
        "strips": strip(0, [HOSTILE, "x"]).assign(prompt_id=HOSTILE, status=HOSTILE, kl=[np.nan, 1.0]),
        "updates": updates().replace({"a": HOSTILE, "base": HOSTILE}),
        "candidates": tables()["candidates"].assign(prompt_id=HOSTILE),
    }
    made = information_figures(hostile, estimates(), settings=SETTINGS)
    assert set(made) == NAMES
    for name, figure in made.items():
        parts = json.loads(str(figure.to_json()))
        parts["layout"]["meta"] = None  # plain text, which the page escapes
        assert "<script" not in json.dumps(parts), name
        assert "&<b>" not in json.dumps(parts), name


def page_of(some: dict[str, pd.DataFrame]) -> str:
    section = Section(
        name="information", title="S", question="?", summary=".", estimates=estimates(), settings=SETTINGS,
        tables=dict.fromkeys(some, "a row"),
    )  # fmt: skip
    manifest = Manifest(
        command="c", models={}, data={}, settings={}, packages={}, device="cpu", dtype="float32", seed=0,
        wall_seconds=1.0,
    )  # fmt: skip
    report = Report.assemble("t", "q", manifest, [SectionResult(section=section, tables=some)])
    assert set(report_figures(report)) == {f"information.{name}" for name in NAMES}
    return render_page(report)


def test_the_page_shows_the_telling_lists_first_and_of_long_tables_the_first_rows():
    many = pd.DataFrame({"history": np.arange(50_000), "mark": [f"row {i}!" for i in range(50_000)]})
    page = page_of(tables() | {"positions": many, "top_tokens": many})
    assert page.count("row 11!") == 2
    assert f"row {SHOWN_ROWS}!" not in page
    assert "Browse <code>information.tokens</code>" in page
    browsed = json.loads(page.partition('id="browsed-json">')[2].partition("</script>")[0])
    assert set(browsed) == {"table-information-tokens"}
    columns = {column["name"]: column["values"] for column in browsed["table-information-tokens"]["columns"]}
    assert len(columns["text"]) == len(tokens())
    order = list(zip(columns["bucket"], columns["list"], strict=True))
    assert order == sorted(order, key=lambda key: (key[1] == "full", key[0] != "all"))
    assert order[0] == ("all", "policy_gained")


def test_no_text_becomes_markup_on_the_page():
    page = page_of(tables() | {"tokens": tokens(text=repr(HOSTILE)).assign(context=HOSTILE, piece=HOSTILE)})
    assert "<script>document" not in page
