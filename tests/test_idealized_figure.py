"""The figure of R*(beta): its bands say by which method they were had, meet, and reach over all betas drawn."""

import numpy as np
import pandas as pd
import pytest

from alignscope.dashboards.idealized_figure import idealized_curve

# R* steps down at beta 1, 2 and 4; at exactly 1 and 0 the interval is Wilson's
STEPS = pd.DataFrame(
    {
        "smoothing": "jeffreys",
        "beta": [0.5, 1.0, 2.0, 4.0, 8.0],
        "value": [1.0, 0.75, 0.25, 0.0, 0.0],
        "low": [0.8, 0.6, 0.1, 0.0, 0.0],
        "high": [1.0, 0.9, 0.4, 0.2, 0.2],
    }
)


def drawn(*tables: pd.DataFrame, **settings):
    figure = idealized_curve({"idealized": pd.concat(tables)}, {}, {"smoothing": "jeffreys"} | settings)
    assert figure is not None
    return figure


def bands(figure) -> dict[tuple[float, float], bool]:
    """(first, last beta) of every filled outline -> is it hatched."""
    filled = [trace for trace in figure.data if trace.fill == "toself"]
    return {(min(trace.x), max(trace.x)): trace.fillpattern.shape == "/" for trace in filled}


def test_the_band_is_hatched_exactly_where_the_interval_is_wilson_s_and_the_parts_meet():
    assert bands(drawn(STEPS)) == {(0.5, 1.0): True, (1.0, 4.0): False, (4.0, 8.0): True}


def test_the_outline_of_a_band_steps_with_the_curve():
    (plain,) = [trace for trace in drawn(STEPS).data if trace.fill and trace.fillpattern.shape is None]
    assert [*plain.x] == [1, 2, 2, 4, 4, 2, 2, 1]
    assert [*plain.y] == [0.9, 0.9, 0.4, 0.4, 0.1, 0.1, 0.6, 0.6]


def test_the_legend_names_the_method_once_and_the_text_explains_the_edge():
    figure = drawn(STEPS, STEPS.assign(smoothing="laplace"))
    assert [trace.name for trace in figure.data if trace.fill and trace.showlegend][:1] == ["Wilson's interval"]
    assert "its edge is where the method changes, not the data" in figure.layout.meta["how_to_read"]


def test_nothing_is_hatched_or_explained_where_the_share_is_never_0_or_1():
    figure = drawn(STEPS.iloc[1:3])
    assert bands(figure) == {(1.0, 2.0): False}
    assert "Wilson" not in figure.layout.meta["how_to_read"]


def test_every_curve_is_level_to_both_ends_of_the_betas_drawn():
    figure = drawn(STEPS.iloc[1:3], STEPS.assign(smoothing="laplace"))
    curve = next(trace for trace in figure.data if trace.name == "optimum R*, jeffreys")
    assert [*curve.x] == [0.5, 1.0, 2.0, 8.0]
    assert [*curve.y] == [0.75, 0.75, 0.25, 0.25]
    assert (0.5, 8.0) in bands(figure)


def test_few_prompts_have_a_curve_and_no_band():
    figure = drawn(STEPS.assign(low=np.nan, high=np.nan))
    assert bands(figure) == {}
    assert "Wilson" not in figure.layout.meta["how_to_read"]


@pytest.mark.parametrize(("given", "words"), [(True, "as given"), (False, "assumed")])
def test_the_line_at_beta_says_whether_it_was_given(given, words):
    figure = drawn(STEPS, beta=1.0, beta_given=given)
    assert [note.text for note in figure.layout.annotations] == [f" β = 1 ({words})"]
