"""What the section, its tables and its figures say: no more than was measured, and on how many prompts."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import Subject
from alignscope.dashboards.profiles import contrast_profile
from alignscope.dashboards.spinal_figures import spinal_figures
from alignscope.diagnose.report import Estimate
from alignscope.diagnose.spinal import SpinalComparison, SpinalTrace, compare_spinal, spinal_trace
from alignscope.diagnose.spinal_score import DETECTED_NAMES, SCORE_NAMES


@pytest.fixture(scope="module")
def subjects():
    return tiny_subject(), tiny_subject(changed=4, scale=1.05)


@pytest.fixture(scope="module")
def traces(subjects):
    return tuple(spinal_trace(subject, letters(120)) for subject in subjects)


@pytest.fixture(scope="module")
def comparison(traces, subjects) -> SpinalComparison:
    return compare_spinal(*traces, subjects=subjects)


def with_head(edit) -> Subject:
    """The base model with another head."""
    model = tiny_model()
    with torch.no_grad():
        edit(model.lm_head.weight)
    return alignscope.wrap(model, tiny_tokenizer())


@pytest.fixture(scope="module")
def permuted(traces, subjects) -> SpinalComparison:
    """Every token has the read-out of another: all steps, entropies and exponents stay as they are."""
    generator = torch.Generator().manual_seed(1)
    other = with_head(lambda head: head.copy_(head[torch.randperm(len(head), generator=generator)]))
    pair = (subjects[0], other)
    return compare_spinal(traces[0], spinal_trace(other, letters(120)), subjects=pair, controls=())


def test_models_far_apart_at_every_layer_are_not_said_to_be_without_difference(permuted):
    distance = permuted.estimates["base_distance_terminal"]
    assert not permuted.alarm
    assert distance.value > 1
    assert permuted.summary().startswith("No difference in transport or contraction between")
    assert f"At the same layer their read-outs lie {distance} apart over blocks 4 to 6." in permuted.summary()


def test_the_distance_is_stated_beside_an_alarm_too_and_its_absence_has_a_reason(comparison, traces):
    assert comparison.alarm
    assert f"read-outs lie {comparison.estimates['base_distance_terminal']} apart" in comparison.summary()
    assert "is not known: models not given" in compare_spinal(*traces, controls=()).summary()


def test_a_model_too_short_for_a_window_states_its_largest_distance():
    subjects = [tiny_subject(blocks=2, changed=changed, scale=1.05) for changed in (None, 2)]
    pair = [spinal_trace(subject, letters(60)) for subject in subjects]
    found = compare_spinal(*pair, subjects=tuple(subjects), controls=())
    assert f"read-outs lie at most {found.estimates['base_distance_max']} apart" in found.summary()


@pytest.mark.parametrize(("n", "enough"), [(1, False), (3, False), (6, False), (7, True)])
def test_what_could_not_be_tested_is_open_and_not_absent(subjects, n, enough):
    pair = [spinal_trace(subject, letters(n)) for subject in subjects]
    words = compare_spinal(*pair, controls=()).summary()
    assert "No difference" not in words
    assert (f"is open: too few prompts to test ({n} clusters; 7 needed)" in words) != enough


def test_one_block_has_no_step_and_few_prompts_no_exponent_so_nothing_is_said_to_be_absent():
    subjects = [tiny_subject(blocks=1, changed=changed, scale=1.05) for changed in (None, 1)]
    found = compare_spinal(*(spinal_trace(subject, letters(10)) for subject in subjects), controls=())
    words = found.summary()
    assert "is open: transport p = none (one block: no step between two), contraction p = none" in words


def test_a_test_of_contraction_alone_says_nothing_of_transport(traces):
    """60 prompts of 6 clusters: exponents have their t, sign flips cannot reach the alarm."""
    rows = [{"prompt": text, "prompt_id": str(i % 6)} for i, text in enumerate(letters(60))]
    scaled = with_head(lambda head: head.mul_(1.3))  # moves every step and no exponent
    pair = [spinal_trace(subject, rows, groups=6) for subject in (tiny_subject(), scaled)]
    found = compare_spinal(*pair, controls=())
    assert found.estimates["transport_p"].value == 2 / 2**6
    words = found.summary()
    assert words.startswith("No difference in contraction between")
    assert "transport p = 0.031 (too few prompts to test (6 clusters; 7 needed))" in words


def test_a_step_without_interval_is_not_called_unchanged(subjects):
    pair = [spinal_trace(subject, letters(7)) for subject in subjects]
    found = compare_spinal(*pair, controls=())
    assert found.alarm
    assert "the mean step of the read-out changes by" in found.summary()
    assert "fewer than 20 prompts: no interval" in found.summary()


def test_the_largest_distance_is_an_estimate_that_says_it_was_selected(comparison):
    rows, found = comparison.contrast, comparison.estimates["base_distance_max"]
    top = rows.loc[rows.base_distance.idxmax()]
    assert (found.value, found.low, found.high) == (top.base_distance, top.base_distance_low, top.base_distance_high)
    assert (found.n, found.n_clusters, found.unit) == (120, 120, "rad")
    assert found.label.endswith(f"layer {int(top.layer)}")
    assert "selected as the largest of 7 layers" in found.method
    finding = comparison.section().findings[1]
    assert finding.rests_on == ["spinal.base_distance_max"]
    assert (
        f"farthest apart at layer {int(top.layer)}, the largest of all layers: {found} on average over 120 prompts"
        in (finding.sentence)
    )


def test_windows_that_disagree_on_the_sign_are_a_notice_and_no_direction_is_named(comparison):
    def moved(value: float, reach: float = 0.01):
        return comparison.estimates["d_alpha_terminal"].model_copy(
            update={"value": value, "low": value - reach, "high": value + reach, "reason": None}
        )

    def with_windows(*estimates) -> SpinalComparison:
        names = ("d_alpha_terminal", "d_alpha_terminal_wide", "d_alpha_terminal_bulk")
        return replace(comparison, estimates=comparison.estimates | dict(zip(names, estimates, strict=True)))

    found = with_windows(moved(-0.04), moved(0.02, 0.03), moved(0.13)).section()
    (notice,) = [f for f in found.findings if "depends on the ranks" in f.sentence]
    assert notice.severity == "notice"
    assert "-0.04 [-0.05, -0.03] on the chosen window" in notice.sentence
    assert "0.13 [0.12, 0.14] on ranks .1 to .9" in notice.sentence
    assert "expansion" not in found.section.summary
    agree = with_windows(moved(-0.04), moved(-0.02), moved(0.13, 0.2)).section()
    assert not any("depends on the ranks" in f.sentence for f in agree.findings)
    assert "(expansion)" in agree.section.summary


def test_no_sentence_says_where_training_enters(comparison):
    """A head scaled by 1.3 is .3 rad away at every layer, the embeddings included."""
    finding = comparison.section().findings[1]
    figure = comparison.figures()["base_distance"].layout.meta["how_to_read"]
    for text in (finding.next_step, figure):
        assert (
            "changed head or final norm shows at every layer; only a rise from about 0 locates a block" in text.lower()
        )
        assert "training enters" not in text
    assert "n = 120" in figure


def test_a_failed_control_names_chance_and_prompt_ids(traces):
    found = compare_spinal(*traces)
    object.__setattr__(found.controls["halves"], "transport_p", 0.001)
    (finding,) = [finding for finding in found.section().findings if finding.severity == "alarm"]
    assert "about 1 sound run in 20 does" in finding.sentence
    assert "related prompts may need a common prompt_id" in finding.next_step
    assert "not the prompts" in finding.next_step
    assert "not of one kind" not in finding.next_step


def test_sampled_positions_count_the_prompts_that_have_them(subjects):
    """30 prompts, of which 18 hold a position besides the last."""
    texts = [*letters(30)[:18], *"abcdefghijkl"]
    pair = [spinal_trace(subject, texts) for subject in subjects]
    found = compare_spinal(*pair, controls=())
    sampled, last = (found.estimates[f"d_transport_terminal{end}"] for end in ("_sampled", ""))
    assert (last.n, last.n_clusters) == (30, 30)
    assert (sampled.n, sampled.n_clusters) == (18, 18)
    assert (found.transport.n == 30).all()
    assert (found.transport.n_sampled == 18).all()
    assert (pair[0].layers.n_sampled == 18).all()


@pytest.mark.parametrize(("texts", "options"), [(list("abcdefgh"), {}), (letters(30), {"lens_positions": 0})])
def test_without_sampled_positions_the_reason_is_just_that(subjects, texts, options):
    pair = [spinal_trace(subject, texts, **options) for subject in subjects]
    found = compare_spinal(*pair, controls=()).estimates["d_transport_terminal_sampled"]
    assert (found.value, found.n, found.n_clusters) == (None, 0, 0)
    assert found.reason == "no sampled positions (lens_positions=0, or prompts of one token)"


def test_every_table_says_on_how_many_prompts_it_rests(comparison, traces, tmp_path):
    tables = comparison.section().tables
    assert all((tables[name].n == 120).all() for name in ("layers", "steps", "contrast", "transport", "halves"))
    assert (tables["layers"].rows_per_column == 120 / 64).all()
    columns = list(traces[0].layers)
    assert columns.index("rows_per_column") == columns.index("alpha") + 1
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), table)


OF_GRADIENTS = ("score_concentration_base", "score_concentration_aligned")  # weight_share is one number a pair


def test_exponents_are_marked_as_reconstructed_and_no_name_sounds_published(comparison, traces):
    estimates = comparison.estimates | traces[0].section().section.estimates
    marked = {name for name, estimate in estimates.items() if estimate.reconstructed}
    assert marked == {
        "alpha_terminal", "d_alpha_terminal", "d_alpha_terminal_wide", "d_alpha_terminal_bulk", "null_d_alpha_terminal",
        *(name for name in SCORE_NAMES if name not in OF_GRADIENTS), *DETECTED_NAMES,
    }  # fmt: skip
    names = [*estimates, *comparison.contrast, *traces[0].layers]
    assert not any("paper" in name for name in names)


def test_interval_and_test_of_transport_say_what_they_weigh(comparison):
    for name in ("d_transport_terminal", "transport_p"):
        assert "weigh the same" in comparison.estimates[name].method


def test_the_warning_of_few_rows_claims_no_more_than_the_tests_showed(traces):
    (warning,) = [warning for warning in traces[0].warnings if "rows for" in warning]
    assert "can carry a bias" in warning
    assert "up to 5 % at a width of 576" in warning


def test_figures_say_what_the_grey_band_and_step_0_are(comparison):
    figures = comparison.figures()
    for name in ("d_alpha", "d_angle"):
        how = figures[name].layout.meta["how_to_read"]
        assert "unpaired and on half the prompts. It should contain 0; its width is not to be compared" in how
    assert "usually large" in figures["angle"].layout.meta["how_to_read"]


def test_a_change_under_the_resolution_is_no_change_in_a_title(comparison):
    tiny = Estimate(label="x", value=3e-7, low=2e-7, high=4e-7, n=120, unit="rad", method="x")
    figure = spinal_figures(comparison.section().tables, {"d_transport_terminal": tiny})["d_angle"]
    assert "no clear change" in figure.layout.meta["title"]


@pytest.mark.parametrize("columns", [True, False])
def test_a_point_without_interval_has_no_error_bar(columns):
    """A bar of no length would look like a certain number."""
    rows = pd.DataFrame({"layer": [1, 2, 3], "d": [0.1, 0.2, 0.3], "p": [0.01, 0.01, 0.5]})
    if columns:
        rows = rows.assign(d_low=[0.0, np.nan, np.nan], d_high=[0.2, np.nan, 0.4])
    figure = contrast_profile(rows, value="d", unit="", title="t", y_title="d", p="p")
    drawn, with_bars = [], []
    for trace in json.loads(figure.to_json())["data"]:
        layers = [int(x) for x in np.atleast_1d(_values(trace["x"]))]
        drawn += layers
        with_bars += layers if trace.get("error_y", {}).get("array") is not None else []
    assert sorted(drawn) == [1, 2, 3]
    assert with_bars == ([1] if columns else [])
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert len(shown) == len({*shown}) == 2


def _values(encoded) -> np.ndarray:
    """Plotly's JSON holds arrays as base64."""
    import base64

    if isinstance(encoded, dict):
        return np.frombuffer(base64.b64decode(encoded["bdata"]), dtype=encoded["dtype"])
    return np.array(encoded)


def test_a_trace_has_no_comparison_words(traces: tuple[SpinalTrace, SpinalTrace]):
    assert "One model alone shows a shape" in traces[0].section().findings[0].sentence
