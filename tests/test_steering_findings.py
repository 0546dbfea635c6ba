"""What the numbers of a steering vector say: each rule on made-up intervals, and the section that parts make."""

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignscope import Estimate
from alignscope.diagnose.gates import Gate, require_estimates
from alignscope.diagnose.report import Finding
from alignscope.steering.evaluation.report_findings import BROKEN, steering_findings, works
from alignscope.steering.evaluation.report_names import BY_PART, NAMES, PARTS, TABLES
from alignscope.steering.evaluation.report_parts import Part, kept_part, rehomed
from alignscope.steering.evaluation.report_section import LACKING, steering_section


def estimate(low: float | None, value: float | None, high: float | None) -> Estimate:
    reason = None if low is not None else "12 prompts"
    return Estimate(label="a number", value=value, low=low, high=high, n=240, n_clusters=40, method="m", reason=reason)


def told(**estimates: Estimate) -> list[tuple[str, str]]:
    return [(finding.severity, finding.sentence) for finding in steering_findings(estimates)]


GOOD, NONE, BAD = estimate(0.8, 0.9, 0.95), estimate(-0.02, 0.01, 0.03), estimate(-0.9, -0.5, -0.1)


@pytest.mark.parametrize(
    ("estimates", "severity", "words"),
    [
        ({"recovered_elicit": GOOD, "over_random_elicit": GOOD}, "info", "To elicit, the vector recovers 90.0 %"),
        ({"recovered_suppress": BAD}, "alarm", "Steered to suppress, the model is further from"),
        ({"recovered_elicit": NONE, "over_random_elicit": NONE}, "alarm", "no better than random directions"),
        ({"over_diffmean_elicit": NONE}, "notice", "no better than the difference of means"),
        ({"over_diffmean_elicit": BAD}, "notice", "worse than the difference of means"),
        ({"over_prompt_suppress": BAD}, "notice", "To suppress, prompting is stronger"),
        (
            {"recovered_elicit": GOOD, "over_exchanged_elicit": NONE},
            "alarm",
            "recovers 90.0 % (80.0 to 95.0) of the KL, but not by the concept",
        ),
        (
            {"selected_elicit": estimate(None, 0.0, None), "flips_elicit": GOOD},
            "notice",
            "To elicit the sweep chose 0, no edit, although 90.0 % (80.0 to 95.0) of the answers flip",
        ),
        ({"flips_before_suppress": GOOD}, "notice", "To suppress there is little to flip: 90.0 % (80.0 to 95.0)"),
        (
            {"opening_log_odds_change_elicit": estimate(1.8, 2.0, 2.2)},
            "info",
            "answers that begin with the concept become likelier: log-odds +2.00 nats (+1.80 to +2.20)",
        ),
        ({"opening_log_odds_change_suppress": BAD}, "info", "become less likely: log-odds -0.50"),
        ({"opening_log_odds_change_suppress": GOOD}, "alarm", "become likelier, not what was asked: log-odds +0.90"),
        ({"opening_log_odds_change_elicit": BAD}, "alarm", "become less likely, not what was asked"),
        ({"detection_auroc": estimate(0.41, 0.53, 0.62)}, "notice", "0.5 is chance"),
        ({"detection_auroc": estimate(0.1, 0.2, 0.3)}, "notice", "below it the order is turned round"),
        (
            {"perplexity_ratio_elicit": estimate(1.2, 1.3, 1.5), "unrelated_kl_elicit": GOOD},
            "alarm",
            "reads unrelated texts worse",
        ),
        (
            {"recovered_elicit": GOOD, "recovered_suppress": NONE, "asymmetry": GOOD},
            "notice",
            "one way only: it recovers 90.0 % (80.0 to 95.0) of the KL to elicit, 1.0 % (-2.0 to 3.0) to suppress",
        ),
        (
            {"recovered_elicit": NONE, "recovered_suppress": GOOD, "asymmetry": BAD},
            "notice",
            "one way only: it recovers 90.0 % (80.0 to 95.0) of the KL to suppress",
        ),
        (
            {"recovered_elicit": estimate(None, None, None), "recovered_suppress": GOOD},
            "notice",
            "it can suppress, not elicit (12 prompts)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rule_says_its_sentence(estimates, severity, words):
    assert any(s == severity and words in sentence for s, sentence in told(**estimates)), told(**estimates)


@pytest.mark.parametrize(
    "estimates",
    [
        {},
        {"recovered_elicit": NONE},  # may be 0, may be a little
        {"opening_log_odds_change_elicit": NONE, "opening_log_odds_change_suppress": estimate(None, -2.0, None)},
        {"over_random_elicit": estimate(0.001, 0.1, 0.2), "over_diffmean_elicit": GOOD},
        {"over_prompt_suppress": NONE},
        {"over_exchanged_elicit": NONE},  # of a direction of which nothing is known to work
        {"recovered_elicit": NONE, "over_exchanged_elicit": NONE},
        {"selected_elicit": estimate(None, 1.0, None), "flips_elicit": GOOD},
        {"selected_elicit": estimate(None, 0.0, None), "flips_elicit": estimate(0.4, 0.6, 0.8)},
        {"flips_before_suppress": estimate(0.4, 0.6, 0.8)},
        {"detection_auroc": estimate(0.501, 0.6, 0.7)},
        {"detection_auroc": estimate(None, 0.5, None)},
        {"perplexity_ratio_elicit": estimate(BROKEN, 1.3, 1.5)},  # the bound itself is allowed
        {"recovered_suppress": NONE, "recovered_elicit": NONE, "asymmetry": GOOD},  # neither works
        {"over_random_elicit": estimate(None, -0.5, None), "over_diffmean_elicit": estimate(None, -0.5, None)},
        {"recovered_elicit": estimate(None, -5.0, None), "perplexity_ratio_elicit": estimate(None, 9.0, None)},
    ],
)
def test_nothing_is_said_where_the_interval_does_not_bear_it(estimates):
    assert told(**estimates) == []


def test_two_directions_that_work_are_not_one_way():
    found = told(recovered_elicit=GOOD, recovered_suppress=estimate(0.1, 0.2, 0.3), asymmetry=estimate(0.5, 0.7, 0.8))
    assert [severity for severity, _ in found] == ["info", "info"]


def test_one_way_needs_an_asymmetry_that_is_clear():
    found = told(recovered_elicit=GOOD, recovered_suppress=NONE, asymmetry=NONE)
    assert not any("one way" in sentence for _, sentence in found)


def test_what_works_by_either_strength_is_not_told_to_work_besides():
    found = told(recovered_elicit=GOOD, over_random_elicit=GOOD, over_exchanged_elicit=NONE)
    assert [severity for severity, _ in found] == ["alarm"]
    assert told(recovered_elicit=GOOD, over_exchanged_elicit=estimate(0.01, 0.2, 0.3))[0][0] == "info"


def test_a_vector_that_does_harm_is_not_told_to_equal_random_directions_besides():
    found = told(recovered_elicit=BAD, over_random_elicit=BAD)
    assert len(found) == 1


@given(low=st.floats(-2, 1), spread=st.floats(0, 1))
def test_to_work_is_to_have_the_whole_interval_above_nothing(low, spread):
    assert works({"recovered_elicit": estimate(low, low + spread / 2, low + spread)}, "elicit") == (low > 0)


def test_findings_rest_on_names_that_a_gate_may_have():
    every = dict.fromkeys(NAMES, BAD) | {"recovered_suppress": GOOD, "over_random_suppress": GOOD}
    every |= {name: estimate(2.0, 3.0, 4.0) for name in NAMES if name.startswith("perplexity")}
    names = {name.removeprefix("steering.") for finding in steering_findings(every) for name in finding.rests_on}
    assert len(names) >= 8
    assert names <= {*NAMES}
    require_estimates([Gate.parse(f"steering.{name}<1") for name in names], {"steering": NAMES})


def test_no_name_is_given_twice():
    assert len({*NAMES}) == len(NAMES)
    assert {*BY_PART} == {*PARTS} == {*LACKING}


# ---- parts


def test_findings_of_a_part_become_those_of_the_section():
    own = Finding(severity="alarm", section="side_effects", sentence="It refuses.", rests_on=["side_effects.kl"])
    found = rehomed([own], {"kl": "unrelated_kl_elicit"}, "Steered: ")
    assert (found[0].section, found[0].sentence) == ("steering", "Steered: It refuses.")
    assert found[0].rests_on == ["steering.unrelated_kl_elicit"]


def test_a_part_is_made_once_and_read_back_the_same(tmp_path):
    made = []

    def make() -> Part:
        made.append(1)
        table = pd.DataFrame({"row": [1, 2], "kl": [0.1, 1 / 3], "text": ["a", None]})
        return Part(
            estimates={"recovered_elicit": GOOD}, tables={"rows": table}, warnings=("mind",), counts={"rows": 2},
            settings={"seed": 0}, told="It does.",
        )  # fmt: skip

    first, second = (kept_part(tmp_path / "part", make) for _ in range(2))
    assert made == [1]
    assert first.estimates == second.estimates == {"recovered_elicit": GOOD}
    assert first.tables["rows"].equals(second.tables["rows"])
    assert second.tables["rows"].kl[1] == 1 / 3
    assert (second.warnings, second.counts, second.settings, second.told) == (
        ["mind"], {"rows": 2}, {"seed": 0}, "It does."
    )  # fmt: skip


def test_a_part_without_its_last_file_is_made_again(tmp_path):
    part = Part(tables={"rows": pd.DataFrame({"row": [1]})})
    kept_part(tmp_path / "part", lambda: part)
    (tmp_path / "part" / "part.json").unlink()
    again = Part(tables={"rows": pd.DataFrame({"row": [2]})})
    assert kept_part(tmp_path / "part", lambda: again).tables["rows"].row.tolist() == [2]


def methods() -> pd.DataFrame:
    rows = [("no edit", "elicit", 4.0), ("vector", "elicit", 1.0), ("diffmean", "elicit", 2.0)]
    return pd.DataFrame(rows, columns=["method", "direction", "kl"])


def both() -> pd.DataFrame:
    before = {"flips_before": 0.1, "flips_before_low": 0.05, "flips_before_high": 0.3}
    after = {"flips": 0.8, "flips_low": 0.6, "flips_high": 0.9}
    return pd.DataFrame([{"direction": "elicit", **before, **after, "n_judged": 20}])


def section_of(**parts: Part):
    return steering_section(parts, settings={"vector": {"name": "v"}}, warnings=["mind"], asked=PARTS)


def test_flips_stand_beside_the_kl_of_the_methods_that_were_generated():
    result = section_of(faithfulness=Part(tables={"methods": methods()}), both_ways=Part(tables={"both_ways": both()}))
    table = result.tables["methods"].set_index("method")
    assert table.flips["no edit"] == 0.1
    assert table.flips["vector"] == 0.8
    assert (table.flips_low["vector"], table.flips_high["vector"], table.n_judged["vector"]) == (0.6, 0.9, 20)
    assert pd.isna(table.flips["diffmean"])


def test_examples_say_the_kl_of_their_row():
    rows = pd.DataFrame(
        [("no edit", "elicit", 1, 4.0), ("vector", "elicit", 1, 0.5), ("vector", "suppress", 1, 9.0)],
        columns=["method", "direction", "row", "kl"],
    )
    shown = pd.DataFrame({"direction": ["elicit", "elicit"], "row": [1, 2], "output_with": ["p", "q"]})
    found = section_of(
        faithfulness=Part(tables={"methods": methods(), "rows": rows}), both_ways=Part(tables={"examples": shown})
    ).tables["examples"]
    assert found.kl_without.tolist()[0] == 4.0
    assert found.kl_with.tolist()[0] == 0.5
    assert found.kl_with.isna().tolist() == [False, True]


def test_what_was_left_out_is_said_with_what_to_give():
    result = section_of(faithfulness=Part(tables={"methods": methods()}, told="It does."))
    assert result.section.warnings[0] == "mind"
    assert {*result.section.warnings[1:]} == {LACKING[name] for name in PARTS if name != "faithfulness"}
    assert all("--" in LACKING[name] for name in PARTS)
    assert result.section.summary == "It does."


def test_the_section_is_strict_json_and_declares_its_tables():
    result = section_of(faithfulness=Part(estimates={"recovered_elicit": GOOD}, tables={"methods": methods()}))
    json.loads(result.section.model_dump_json())
    assert result.section.tables == {"methods": TABLES["methods"]}
    assert {*result.tables} == {"methods"}
