"""What the figures of SPINAL's controls draw and say."""

import numpy as np
import pandas as pd
import pytest

from alignscope.dashboards.spinal_control_figures import control_figures


def table(*verdicts: str | None, kind: str = "trained", net: float = 0.4) -> pd.DataFrame:
    rows = [
        {
            "control": name, "kind": kind, "quantity": "d_transport_terminal", "unit": "rad", "n": 64, "p": np.nan,
            "effect": 0.5, "effect_low": 0.4, "effect_high": 0.6, "verdict": verdict, "control_effect": 0.1,
            "control_effect_low": 0.0, "control_effect_high": 0.2, "net": net, "net_low": net - 0.1,
            "net_high": net + 0.1,
        }
        for name, verdict in zip(("sft", "shuffled"), verdicts, strict=False)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def title(frame: pd.DataFrame) -> str:
    return control_figures({"controls": frame})["controls_transport"].layout.meta["title"]


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (("more than the control", "more than the control"), "is more than sft and shuffled shows"),
        (
            ("more than the control, which moves the other way", "not told apart from the control"),
            "is more than sft shows, but not more than shuffled shows",
        ),
        (("less than the control", "not told apart from the control"), "is not more than sft and shuffled shows"),
        (("no clear effect", "no clear effect"), "No clear change of the step of the read-out"),
    ],
)
def test_the_title_names_the_controls_that_are_exceeded(verdicts, words):
    assert words in title(table(*verdicts))


def test_every_control_has_its_mark_and_what_is_left():
    frame = table("more than the control", "less than the control")
    figure = control_figures({"controls": frame})["controls_transport"]
    marks = {line.name: (list(line.x), list(line.y)) for line in figure.data}
    assert marks["effect of training"] == ([0.5], [0.0])
    assert marks["control"][0] == [0.1, 0.1]
    assert marks["effect minus control"] == ([0.4, 0.4], [1.18, 2.18])
    assert list(figure.layout.yaxis.ticktext) == ["aligned − base", "sft", "shuffled"]


def test_nothing_is_drawn_where_no_control_has_a_number():
    empty = table("no interval").assign(control_effect=np.nan)
    assert control_figures({"controls": empty}) == {}
    assert control_figures({}) == {}
