"""Figures of steering: every mark is a number of the report; titles say what was found, and what is missing is said."""

import numpy as np
import pandas as pd
import pytest

from alignscope import Estimate
from alignscope.dashboards.drawing import PALETTE
from alignscope.dashboards.steering_figures import BOUND, LOWEST, steering_figures
from alignscope.steering.evaluation.report_findings import BROKEN

VALUES = {"vector": (0.9, 0.7), "diffmean": (0.8, 0.5), "random": (0.02, 0.01), "ablate": (None, -3.5)}


def estimate(value: float | None, low: float | None = None, high: float | None = None, **more) -> Estimate:
    reason = None if low is not None else "12 prompts"
    fields = {"label": "a share", "n": 240, "n_clusters": 40, "method": "m", "reason": reason} | more
    return Estimate(value=value, low=low, high=high, **fields)


def methods() -> pd.DataFrame:
    rows = [{"method": "no edit", "direction": way, "recovered": 0.0} for way in ("elicit", "suppress")]
    for method, both in VALUES.items():
        for way, value in zip(("elicit", "suppress"), both, strict=True):
            ends = {"recovered_low": value - 0.05, "recovered_high": value + 0.04} if value is not None else {}
            reason = None if value is not None else "an ablation takes away"
            rows.append({"method": method, "direction": way, "recovered": value, "reason": reason, **ends})
    return pd.DataFrame(rows).assign(n_rows=40, n_tokens=240, strength=1.0)


def curve(concepts: tuple[str, ...] = ("pirate",)) -> pd.DataFrame:
    rows = [
        (concept, way, half, s, 1.0 + 0.1 * s - 0.05 * (half == "reported") + 0.2 * (concept == "other"))
        for concept in concepts
        for way in ("elicit", "suppress")
        for half in ("selection", "reported")
        for s in (-1.0, 0.0, 1.0)
    ]
    table = pd.DataFrame(rows, columns=["concept", "direction", "half", "strength", "score"])
    return table.assign(low=table.score - 0.1, high=table.score + 0.1, n=20, missing=0)


ESTIMATES = {
    "recovered_elicit": estimate(0.9, 0.85, 0.94),
    "recovered_suppress": estimate(0.7, 0.65, 0.74),
    "over_random_elicit": estimate(0.88, 0.8, 0.9),
    "over_random_suppress": estimate(0.1, -0.1, 0.2),
    "selected_elicit": estimate(1.0, level=None),
    "reported_score_elicit": estimate(1.05, 0.95, 1.15, unit="of 2"),
    "flips_before_elicit": estimate(0.1, 0.02, 0.2),
    "flips_elicit": estimate(0.8, 0.7, 0.9),
    "refusals_before_suppress": estimate(0.0, 0.0, 0.1),
    "refusals_after_suppress": estimate(0.3, 0.2, 0.4),
    "perplexity_ratio_elicit": estimate(1.5, 1.4, 1.6),
}
LAYERS = pd.DataFrame(
    {"layer": [0, 1, 2], "kl_elicit": [2.0, 0.1, 1.0], "kl_suppress": [1.0, 0.4, 2.0], "worst_kl": [2.0, 0.4, 2.0],
     "chosen": [False, True, False], "n_tokens": 90, "n_prompts": 15}
)  # fmt: skip
for _way in ("elicit", "suppress"):
    LAYERS[f"kl_{_way}_low"] = LAYERS[f"kl_{_way}"] - 0.05
    LAYERS[f"kl_{_way}_high"] = LAYERS[f"kl_{_way}"] + 0.05


@pytest.fixture(scope="module")
def figures():
    return steering_figures({"methods": methods(), "sweep_curve": curve(), "layers": LAYERS}, ESTIMATES)


def traces(figure) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data if trace.name}


def lines_at(figure, axis: str = "x0") -> list[float]:
    return [shape[axis] for shape in figure.layout.shapes if shape.x0 == shape.x1]


def test_every_figure_is_there_with_axes_and_how_to_read_it(figures):
    assert [*figures] == ["methods", "sweep", "before_after", "perplexity", "layers"]
    for name, figure in figures.items():
        assert len(figure.layout.meta["how_to_read"]) > 60, name
        assert any(axis.title.text for axis in figure.select_xaxes()), name


def test_shares_are_drawn_with_their_intervals_and_both_null_lines(figures):
    elicit = traces(figures["methods"])["to elicit"]
    assert list(elicit.x) == [0.9, 0.8, 0.02]
    assert elicit.error_x.array[0] == pytest.approx(0.04)
    assert elicit.error_x.arrayminus[0] == pytest.approx(0.05)
    assert {0.0, 1.0} <= {*lines_at(figures["methods"])}


def test_a_method_far_below_nothing_stands_at_the_edge_with_its_number(figures):
    edge = next(trace for trace in figures["methods"].data if "triangle-left" in str(trace.marker.symbol))
    assert list(edge.x) == [LOWEST]
    texts = [note.text for note in figures["methods"].layout.annotations]
    assert "\N{MINUS SIGN}3.5" in texts
    assert f"below {LOWEST:g}".replace("-", "\N{MINUS SIGN}") in figures["methods"].layout.meta["how_to_read"]


def test_what_is_not_shown_is_said_with_its_reason(figures):
    assert "ablate to elicit (an ablation takes away)" in figures["methods"].layout.meta["how_to_read"]


def test_the_title_says_the_shares_n_and_what_is_unsure(figures):
    title = figures["methods"].layout.meta["title"]
    assert "0.900 [0.850, 0.940] of the KL to elicit" in title
    assert "to suppress no more than random directions is sure" in title
    assert "n = 40 rows" in title


def test_the_sweep_has_both_halves_and_the_strength_chosen(figures):
    figure = figures["sweep"]
    names = [trace.name for trace in figure.data]
    assert names == ["half that chooses (n = 20)", "half that is reported (n = 20)"] * 2
    assert np.allclose(figure.data[1].y, [0.85, 0.95, 1.05])
    assert figure.data[1].error_y.array == pytest.approx((0.1, 0.1, 0.1))
    assert lines_at(figure) == [1.0]  # to suppress none was chosen
    assert "1.05 [0.95, 1.15] of 2 to elicit at strength 1" in figure.layout.meta["title"]


def test_a_sweep_of_several_concepts_is_their_mean_without_intervals():
    figure = steering_figures({"sweep_curve": curve(("pirate", "other"))}, {})["sweep"]
    assert np.allclose(figure.data[0].y, [1.0, 1.1, 1.2])
    assert not any(figure.data[0].error_y.array)
    assert "Means over concepts" in figure.layout.meta["how_to_read"]


def test_before_and_after_are_pairs(figures):
    drawn = traces(figures["before_after"])
    assert list(drawn["without"].x) == [0.1, 0.0]
    assert list(drawn["steered to elicit"].x) == [0.8]
    assert list(drawn["steered to suppress"].x) == [0.3]
    assert "from 10 to 80 % to elicit" in figures["before_after"].layout.meta["title"]


def test_the_bound_of_the_figure_is_that_of_the_findings(figures):
    assert BOUND == BROKEN
    assert {1.0, BOUND} <= {*lines_at(figures["perplexity"])}


def test_layers_show_both_directions_and_the_choice(figures):
    drawn = traces(figures["layers"])
    assert list(drawn["to suppress"].y) == [1.0, 0.4, 2.0]
    assert lines_at(figures["layers"]) == [1.0]
    assert "block 1" in figures["layers"].layout.meta["title"]


def test_what_is_not_in_the_report_is_not_drawn():
    assert steering_figures({}, {}) == {}
    assert steering_figures({"methods": methods().query("method == 'no edit'")}, {}) == {}


def test_only_palette_colours_are_used(figures):
    def colours(value):
        if isinstance(value, str) and value.startswith("#"):
            yield value
        elif isinstance(value, dict):
            for part in value.values():
                yield from colours(part)
        elif isinstance(value, list | tuple):
            for part in value:
                yield from colours(part)

    for figure in figures.values():
        assert {*colours({"data": [trace.to_plotly_json() for trace in figure.data]})} <= {*PALETTE}


def test_names_of_vectors_are_escaped():
    table = methods().replace({"method": {"diffmean": "<b>x</b>"}})
    figure = steering_figures({"methods": table}, ESTIMATES)["methods"]
    assert "&lt;b&gt;x&lt;/b&gt;" in figure.layout.yaxis.ticktext
