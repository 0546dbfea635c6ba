"""The section objectives: TRL's numbers under TRL's names, mean losses with intervals, and what is left out."""

import numpy as np
import pandas as pd
import pytest
from ranking_tables import frame, mixed

from alignscope import PairScores
from alignscope.diagnose.gates import Gate
from alignscope.diagnose.objectives import objective_table, reward_trainer_metrics, trl_metrics
from alignscope.diagnose.objectives_section import TRL, objectives_section
from alignscope.diagnose.ranking_table import clusters_of
from alignscope.diagnose.report import Manifest, Report, SectionResult
from alignscope.diagnose.statistics import cluster_bootstrap

MANIFEST = Manifest(
    command="", models={}, data={}, settings={}, packages={}, device="cpu", dtype="", seed=0, wall_seconds=0.0
)


def section(table: pd.DataFrame, **settings) -> SectionResult:
    defaults = {"beta": 0.1, "smoothing": "jeffreys", "preference": None, "bootstrap": 100, "seed": 0}
    return objectives_section(PairScores.from_frame(table), **(defaults | settings))


def whole(result: SectionResult) -> Report:
    return Report.assemble("title", "question", MANIFEST, [result])


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_trl_s_names_hold_trl_s_numbers(beta):
    """Human ties stay in, a tie counts 0."""
    estimates = section(mixed(), beta=beta).section.estimates
    scores = PairScores.from_frame(mixed())
    heads = reward_trainer_metrics(scores.explicit_chosen, scores.explicit_rejected, prefix="")
    expected = trl_metrics(scores, beta, prefix="") | heads
    for name, value in expected.items():
        if name != "loss":  # loss_dpo, without human ties
            assert estimates[name].value == pytest.approx(value), name
            assert estimates[name].n == 120


def test_their_intervals_are_over_prompts():
    table = mixed()
    e = section(table, seed=3).section.estimates["rewards/margins"]
    margin = table.policy_chosen - table.reference_chosen - table.policy_rejected + table.reference_rejected
    boot = cluster_bootstrap(0.1 * margin.to_numpy()[:, None], table.prompt_id.to_numpy(), draws=100, seed=3)
    assert (e.low, e.high) == pytest.approx((boot.low[0], boot.high[0]))
    assert e.n_clusters == table.prompt_id.nunique()


def test_without_a_reference_only_log_probabilities_are_left():
    found = section(frame([1.0] * 30))
    for name in TRL:
        if name.startswith("logps"):
            assert found.section.estimates[name].value is not None
        else:
            absent = "reference model was" if "/" in name else "reward model or explicit scores were"
            assert found.section.estimates[name].reason == f"no {absent} given"


@pytest.mark.parametrize("threshold", [0.25, 0.75])
def test_a_gate_reads_a_name_with_a_stroke(threshold):
    """Half of the pairs moved right."""
    report = whole(section(frame([1.0, -1.0] * 15, np.zeros(30))))
    gate = Gate.parse(f"objectives.rewards/accuracies<{threshold}")
    assert gate.fires(report) is (threshold > 0.5)


def test_every_estimate_can_be_gated():
    report = whole(section(mixed()))
    for name in report.section("objectives").estimates:
        assert Gate.parse(f"objectives.{name}<1e9").fires(report)


def test_mean_losses_are_those_of_the_objective_table():
    scores = PairScores.from_frame(mixed())
    found, table = section(mixed(), beta=0.3), objective_table(scores, 0.3)
    assert len(table.losses) > 10
    for row in table.losses.itertuples():
        e = found.section.estimates[f"loss_{row.objective.replace('.', '_')}"]
        assert e.value == pytest.approx(row.mean_loss), row.objective
        assert e.n == row.n
        assert e.low < e.value < e.high
    for name in ("losses", "pairs"):
        pd.testing.assert_frame_equal(found.tables[name], table.to_frame(name))
    agreement = table.to_frame("agreement")
    pd.testing.assert_frame_equal(found.tables["agreement"][agreement.columns], agreement)


def test_agreement_has_intervals_over_prompts():
    found, scores = section(mixed(), seed=3), PairScores.from_frame(mixed())
    expected = objective_table(scores).with_intervals(clusters_of(scores.frame), bootstrap=100, seed=3)
    pd.testing.assert_frame_equal(found.tables["agreement"], expected.agreement)
    assert found.section.summary == expected.summary()
    assert not expected.agreement["same_sign_low"].isna().any()


def test_single_labels_leave_soft_dpo_out_and_say_why():
    found = section(frame([1.0, -1.0] * 15, np.zeros(30)))
    assert "loss_dpo_soft" not in found.section.estimates
    assert "dpo_soft" not in set(found.tables["losses"].objective)
    assert any("dpo_soft" in text and "one label a pair" in text for text in found.section.warnings)


def test_an_assumed_preference_brings_it_back():
    table = frame([1.0, -1.0] * 15, np.zeros(30))
    e = section(table, preference=0.75).section.estimates["loss_dpo_soft"]
    expected = np.mean([0.75 * np.logaddexp(0, -m) + 0.25 * np.logaddexp(0, m) for m in (0.1, -0.1)])
    assert e.value == pytest.approx(expected)


@pytest.mark.parametrize("how", ["jeffreys", "laplace", "clip"])
def test_votes_are_smoothed_as_was_asked_whether_one_label_is_assumed_or_not(how):
    expected = objective_table(PairScores.from_frame(mixed()), 0.1, smoothing=how).losses.set_index("objective")
    for preference in (None, 0.75):
        e = section(mixed(), smoothing=how, preference=preference).section.estimates["loss_dpo_soft"]
        assert e.value == pytest.approx(expected.mean_loss["dpo_soft"])


def test_a_reference_point_of_kto_that_was_not_measured_is_told():
    def told(table: pd.DataFrame) -> bool:
        return any("z0 was taken as 0" in text for text in section(table).section.warnings)

    assert told(mixed())
    assert not told(mixed().assign(mismatched=0.5))
    assert not told(frame([1.0] * 30))  # no reference, no KTO


@pytest.mark.parametrize(
    "table",
    [mixed(), frame([1.0, -1.0] * 15, np.zeros(30)), frame([1.0] * 3), mixed().assign(preference=0.5)],
    ids=["mixed", "labels", "bare", "human ties"],
)
def test_a_section_reads_back_as_it_was_saved(table, tmp_path):
    saved = whole(section(table))
    saved.save(tmp_path)
    assert Report.load(tmp_path) == saved
