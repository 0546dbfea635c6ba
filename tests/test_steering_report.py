"""The evaluation as a report: its numbers are those of the parts, at strengths that other rows chose."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from tiny_steering import WORDS, fixed_subject

import alignscope
from alignscope import InputError, Report, SteeringVector
from alignscope.organisms.concept import build_concept_organism
from alignscope.steering import SteeringSet, baselines, evaluate_steering, faithfulness, reading, sweep, train_cdas
from alignscope.steering.evaluation import named_baselines
from alignscope.steering.evaluation.evaluated_rows import evaluated_rows
from alignscope.steering.evaluation.evaluating import require_vector
from alignscope.steering.evaluation.flips import FlipCase, OpeningRule
from alignscope.steering.evaluation.named_baselines import fit_baselines
from alignscope.steering.evaluation.report_names import NAMES, TABLES
from alignscope.steering.evaluation.report_section import LACKING
from alignscope.steering.evaluation.steering_run import LIMITS, RED_TEAM
from alignscope.steering.evaluation.sweep_part import function_name
from alignscope.steering.quadruples import read_quadruples

GRID = [-2, -1, 0, 1, 2]
QUICK = {"max_new_tokens": 6, "resamples": 60}


def rated(prompt, output, concept):
    """P-words show the concept."""
    return min(2, output.count("p")), 2, 2


@pytest.fixture(scope="module")
def organism():
    found = build_concept_organism(steps=60)
    live = found.subject
    return replace(found, subject=live.under(live.name, live.fingerprints))  # not hashed anew at every call


@pytest.fixture(scope="module")
def subject(organism) -> alignscope.Subject:
    return organism.subject


@pytest.fixture(scope="module")
def vector(organism, subject) -> SteeringVector:
    return baselines.fit_diffmean(subject, organism.quadruples, layer=1)


@pytest.fixture(scope="module")
def inputs(organism) -> dict:
    fresh = organism.fresh
    positive, negative = (
        [{"prompt": row[f"{side}_input"], "response": row[f"{side}_output"]} for row in fresh[80:120]]
        for side in ("positive", "negative")
    )
    return {
        "training": organism.quadruples[:16],
        "texts": [row["negative_input"] for row in fresh[60:90]],
        "positive": positive,
        "negative": negative,
        "strengths": GRID,
        "scorer": rated,
        "concept": "POS",
        "baselines": ["lat", "prompt"],
        **QUICK,
    }


@pytest.fixture(scope="module")
def rows(organism) -> list:
    return list(organism.fresh[:40])


@pytest.fixture(scope="module")
def report(subject, vector, rows, inputs) -> Report:
    return evaluate_steering(subject, vector, rows, **inputs)


# ---- the numbers


def test_all_parts_are_there_and_strict_json(report):
    section = report.section("steering")
    assert {*section.tables} == {*TABLES} - {"layers", "benign", "questions", "paired", "openings"}
    assert {*section.estimates} <= {*NAMES}
    json.loads(report.model_dump_json())
    assert not any(told in section.warnings for told in LACKING.values())


def test_shares_are_those_of_faithfulness(subject, vector, rows, organism, report):
    found = faithfulness(subject, rows, vector, training=organism.quadruples[:16], resamples=60)
    for way in ("elicit", "suppress"):
        own = report.estimate(f"steering.recovered_{way}")
        expected = found.row("vector", way).recovered
        assert (own.value, own.n) == (expected.value, expected.n)
        over, paired = report.estimate(f"steering.over_random_{way}"), found.compared("vector", "random", way)
        for one, other in ((own, expected), (over, paired)):  # resampled beside more methods, sums round otherwise
            assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)


def test_the_table_of_methods_has_the_kl_without_an_edit_in_every_row(report):
    table = report.to_frame("steering.methods")
    beside = {"exchanged", "lat", "diffmean", "random", "prompt", "another prompt"}
    assert {*table.method} == {"no edit", "vector", *beside}
    for _way, some in table.groupby("direction"):
        bare = some[some.method == "no edit"].kl.item()
        assert (some.kl_none == bare).all()
        assert np.allclose(some.recovered, 1 - some.kl / bare)


def test_asking_is_the_ceiling_to_elicit_and_a_run_of_its_own_to_suppress(subject, rows, report):
    table = report.to_frame("steering.methods").query("method == 'prompt'").set_index("direction")
    assert (table.kl["elicit"], table.recovered["elicit"]) == (0.0, 1.0)
    told = "Do not do this in your answer, and do not mention it: POS\n"
    sums, count = 0.0, 0
    for row in rows:
        q, p = (
            answer_log_probs(subject, before + row["positive_input" if before else "negative_input"], row)
            for before in ("", told)
        )
        sums, count = sums + float((np.exp(q) * (q - p)).sum()), count + len(q)
    assert table.kl["suppress"] == pytest.approx(sums / count, rel=1e-4)


def test_another_prompt_of_the_kind_recovers_what_prompts_of_a_kind_have_in_common(subject, rows, report):
    table = report.to_frame("steering.methods").query("method == 'another prompt'").set_index("direction")
    unlike = ("positive_input", "positive_output"), ("negative_input", "negative_output")
    for way, (asked, said) in zip(("elicit", "suppress"), unlike, strict=True):
        sums, count = 0.0, 0
        for i, row in enumerate(rows):
            k = next(k for k in range(1, len(rows)) if rows[(i + k) % len(rows)][asked] != row[asked])
            other = rows[(i + k) % len(rows)]
            q, p = (answer_log_probs(subject, text[asked], {"negative_output": row[said]}) for text in (row, other))
            sums, count = sums + float((np.exp(q) * (q - p)).sum()), count + len(q)
        assert table.kl[way] == pytest.approx(sums / count, rel=1e-4)


def answer_log_probs(subject, prompt: str, row: dict) -> np.ndarray:
    """Behind a prompt, at the places that predict the plain answer and its end; float64."""
    ids = subject.tokenizer(prompt)["input_ids"]
    answer = [
        *subject.tokenizer(row["negative_output"], add_special_tokens=False)["input_ids"],
        subject.tokenizer.eos_token_id,
    ]
    with torch.no_grad():
        logits = subject.model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
    return log_softmax(logits.double().numpy(), axis=-1)


def test_the_strength_is_the_one_that_the_sweep_of_the_same_rows_selects(subject, vector, rows, report):
    found = sweep(subject, read_quadruples(rows, concept="POS"), vector, GRID, rated, max_new_tokens=6, draws=60)
    for way in ("elicit", "suppress"):
        assert report.estimate(f"steering.selected_{way}").value == found.selected(direction=way)
        told = report.estimate(f"steering.selected_{way}").reason
        times = report.to_frame("steering.selection").set_index("direction").times_selected[way]
        assert told == f"a strength of the grid has no interval; {times:.0%} of resamples choose it"
        own, expected = report.estimate(f"steering.optimism_{way}"), found.estimates[f"{way}_optimism"]
        assert (own.value, own.low, own.high) == (expected.value, expected.low, expected.high)


def test_rows_that_chose_the_strength_are_not_tested_at_it(report):
    answers = report.to_frame("steering.answers")
    chose = {*answers[answers.half == "selection"].prompt_id}
    tested = {*map(str, report.to_frame("steering.examples").row)}
    assert len(chose) == len(tested) == 20
    assert not chose & tested


def test_side_effects_are_at_the_selected_strength(report):
    table = report.to_frame("steering.side_effects")
    for way, some in table.groupby("direction"):
        assert {*some.strength} == {report.estimate(f"steering.selected_{way}").value}


def test_where_no_edit_was_selected_side_effects_are_of_full_strength(subject, vector, rows, inputs):
    found = evaluate_steering(
        subject, vector, rows, only="sweep,side_effects",
        **{**inputs, "scorer": lambda prompt, output, concept: (0, 2, 2), "baselines": (), "resamples": 20},
    )  # fmt: skip
    section = found.section("steering")
    assert section.settings["side_effects"]["strength"] == {"elicit": 1.0, "suppress": -1.0}
    assert any("the sweep chose 0 to elicit" in told for told in section.warnings)
    assert found.estimate("steering.unrelated_kl_elicit").low > 0


def test_every_part_reads_text_as_the_vector_does_or_as_is_asked(subject, vector, rows, inputs):
    quick = {**inputs, "baselines": (), "resamples": 20, "max_new_tokens": 2, "only": "sweep,faithfulness"}
    own = evaluate_steering(subject, vector, rows[:24], **quick).section("steering").settings
    assert own["sweep"]["template"] == own["faithfulness"]["template"] == vector.metadata["settings"]["template"]
    with pytest.raises(InputError, match="chat template"):
        evaluate_steering(subject, vector, rows[:24], template="chat", **quick)


def test_strengths_of_the_other_side_alone_are_told(subject, vector, rows, inputs):
    quick = {**inputs, "baselines": (), "resamples": 20, "max_new_tokens": 2, "only": "sweep", "strengths": [0, 1, 2]}
    found = evaluate_steering(subject, vector, rows[:24], **quick).section("steering")
    assert any("to suppress takes strengths below 0" in told for told in found.warnings)
    assert found.estimates["unit_score_suppress"].value is None


def test_two_functions_of_one_name_are_two_runs(subject, vector, rows, inputs, tmp_path):
    quick = {**inputs, "baselines": (), "resamples": 20, "max_new_tokens": 2, "only": "sweep", "out": tmp_path}
    scorers = [lambda prompt, output, concept: (2, 2, 2), lambda prompt, output, concept: (1, 2, 2)]
    evaluate_steering(subject, vector, rows[:24], **{**quick, "scorer": scorers[0]})
    with pytest.raises(InputError, match="scorer"):
        evaluate_steering(subject, vector, rows[:24], **{**quick, "scorer": scorers[1]})


def test_a_function_has_the_same_name_in_every_process():
    made = [eval("lambda text: text in {'a', 'b'} and (lambda: text)()") for _ in range(2)]
    assert function_name(made[0]) == function_name(made[1])
    assert function_name(made[0]) != function_name(lambda text: text)


def test_a_set_is_refused_with_what_takes_it(vector):
    with pytest.raises(InputError, match="the report is of one vector"):
        require_vector(SteeringSet([vector]))


def test_strengths_that_a_vector_does_not_know_are_refused_before_anything_is_made(
    subject, organism, rows, inputs, tmp_path
):
    ablation = baselines.ablation(subject, organism.quadruples, layer=1)
    with pytest.raises(InputError, match=r"on \(strength 1\) or off \(0\), got -1"):
        evaluate_steering(subject, ablation, rows, **{**inputs, "out": tmp_path / "run", "strengths": [-1, 0, 1]})
    assert not (tmp_path / "run").exists()


def test_a_row_that_shares_an_input_with_one_that_chose_is_not_tested(subject, vector, rows, inputs):
    twins = [*rows[:30], *(row | {"positive_output": f"{row['positive_output']} p1"} for row in rows[:4])]
    options = {name: inputs[name] for name in ("training", "strengths", "scorer", "concept")} | QUICK
    found = evaluate_steering(subject, vector, twins, only="sweep,both_ways", **options)
    chose = found.to_frame("steering.answers").query("half == 'selection'").prompt_id.tolist()
    assert {"1", "2", "3", "4"} <= {*chose}
    assert not {31, 32, 33, 34} & {*found.to_frame("steering.examples").row}


def test_without_a_grid_the_strengths_are_1_and_all_rows_are_tested(subject, vector, rows, inputs):
    given = {name: inputs[name] for name in ("training", "texts")} | QUICK
    found = evaluate_steering(subject, vector, rows[:24], **given)
    assert len(found.to_frame("steering.examples")) == 48
    assert {*found.to_frame("steering.side_effects").strength} == {1.0, -1.0}
    warnings = found.section("steering").warnings
    assert LACKING["sweep"] in warnings
    assert LACKING["detection"] in warnings
    assert LACKING["side_effects"] not in warnings


def test_benign_prompts_are_answered_both_ways_before_and_after():
    subject = fixed_subject()
    random = baselines.random_vector(subject, WORDS[:16], layer=1, holdout=0)
    found = evaluate_steering(
        subject, random, WORDS[:6], training=WORDS[:16], texts=[row["negative_input"] for row in WORDS],
        benign=[row["negative_input"] for row in WORDS], openings=[WORDS[0] | {"positive_output": "no"}],
        only="side_effects", max_new_tokens=3, resamples=10,
    )  # fmt: skip
    table = found.to_frame("steering.benign")
    assert len(table) == 2 * len(WORDS)
    assert found.estimate("steering.refusals_before_elicit").value == table.matched_before.mean()
    assert found.estimate("steering.refusals_before_elicit") != found.estimate("steering.refusals_before_suppress")


def test_an_ablation_is_one_way_with_reasons(subject, organism, rows, inputs):
    ablation = baselines.ablation(subject, organism.quadruples, layer=1)
    given = {name: inputs[name] for name in ("training", "texts")} | QUICK
    found = evaluate_steering(subject, ablation, rows[:24], **given)
    assert "cannot elicit" in found.estimate("steering.recovered_elicit").reason
    assert "no strength to elicit" in found.estimate("steering.unrelated_kl_elicit").reason
    assert found.estimate("steering.unrelated_kl_suppress").value > 0
    assert "the vector is one-way: suppress only" in found.section("steering").warnings


def test_layers_of_a_scan_come_from_the_vector(subject, vector, rows, inputs):
    scanned = replace(vector, metadata={**vector.metadata, "layer_scan": [{"layer": 1, "worst_kl": 0.5}]})
    found = evaluate_steering(subject, scanned, rows[:4], training=inputs["training"], only="faithfulness", **QUICK)
    assert found.to_frame("steering.layers").worst_kl.tolist() == [0.5]


def test_a_vector_that_takes_out_refusals_is_called_an_instrument_of_red_teams(subject, vector, rows, inputs):
    refusing = [row | {"positive_output": " I cannot do that"} for row in rows[:6]]
    options = {"training": inputs["training"], "only": "faithfulness", **QUICK}
    assert RED_TEAM in evaluate_steering(subject, vector, refusing, **options).section("steering").warnings
    assert RED_TEAM not in evaluate_steering(subject, vector, rows[:6], **options).section("steering").warnings


def test_the_known_limits_of_cdas_stand_in_its_report_alone(subject, vector, rows, inputs):
    for method, told in (("cdas", True), ("caa", False)):
        one = replace(vector, method=method)
        found = evaluate_steering(subject, one, rows[:4], training=inputs["training"], only="faithfulness", **QUICK)
        assert (LIMITS in found.section("steering").warnings) is told


def test_rows_that_the_vector_was_trained_on_are_left_out_or_said(subject, organism):
    few = organism.quadruples[:20]
    trained = train_cdas(subject, few, layer=1, epochs=1)
    held = evaluate_steering(subject, trained, few, only="faithfulness", **QUICK)
    assert held.section("steering").counts["faithfulness: rows"] == 4
    every = evaluate_steering(subject, trained, few, only="faithfulness", rows="all", **QUICK)
    assert "the vector was trained on these rows: they flatter it" in every.section("steering").warnings


# ---- rules and baselines


def test_the_opening_rule_wants_the_opening_to_elicit_and_its_absence_to_suppress(rows):
    rule = OpeningRule(("I cannot", "Sorry"))
    case = FlipCase(quadruple=read_quadruples(rows[:1])[0], direction="elicit", plain="", counterfactual="")
    assert [rule(case, text) for text in ("sorry, no", "I can", "Sorryful")] == [True, False, False]
    assert [rule(replace(case, direction="suppress"), text) for text in ("sorry, no", "I can")] == [False, True]


def test_flips_of_the_opening_rule_are_reconstructed(subject, vector, rows, inputs):
    found = evaluate_steering(
        subject, vector, rows[:8], training=inputs["training"], flips="opening", only="both_ways", **QUICK
    )
    assert found.estimate("steering.flips_elicit").reconstructed


@pytest.mark.parametrize("epochs", [1, 2])
def test_baselines_are_trained_for_the_epochs_that_were_asked_for(subject, vector, rows, organism, epochs):
    data = evaluated_rows(subject, rows, vector)
    found, _ = fit_baselines(subject, ["ssv", "loreft", "lat"], vector, data, organism.quadruples[:16], epochs=epochs)
    assert [found[name].vector.metadata["settings"]["epochs"] for name in ("ssv", "loreft")] == [epochs] * 2


def test_lang_takes_the_strength_of_smallest_kl_on_its_training_rows(subject, vector, rows, organism, tmp_path):
    data = evaluated_rows(subject, rows, vector)
    few = organism.quadruples[:16]
    found, told = fit_baselines(subject, ["lang"], vector, data, few, keep=tmp_path)
    strengths = [2, 20]
    kls = [
        faithfulness(
            subject, few, found["lang"].vector, strengths=s, training=few, random_seeds=1, resamples=1,
        ).row("vector", "elicit").kl.value
        for s in [*strengths, found["lang"].elicit]
    ]  # fmt: skip
    assert kls[-1] == min(kls)
    assert "lang: strengths" in told[0]


def test_a_fitted_baseline_is_kept_and_not_fitted_again(subject, vector, rows, organism, tmp_path, monkeypatch):
    data = evaluated_rows(subject, rows, vector)
    first, _ = fit_baselines(subject, ["lat"], vector, data, organism.quadruples, keep=tmp_path)
    monkeypatch.setattr(named_baselines, "train_by_name", None)
    second, _ = fit_baselines(subject, ["lat"], vector, data, organism.quadruples, keep=tmp_path)
    assert torch.equal(first["lat"].vector.vector, second["lat"].vector.vector)


def test_baselines_that_are_read_off_the_same_states_read_them_once(subject, vector, rows, organism, monkeypatch):
    read, asked = reading.read_sites, []

    def counted(subject, sites, runs, at, last_at=None):
        asked.append((tuple(map(tuple, runs)), tuple(map(tuple, at))))
        return read(subject, sites, runs, at, last_at)

    monkeypatch.setattr(reading, "read_sites", counted)
    data = evaluated_rows(subject, rows, vector)
    shared, _ = fit_baselines(subject, ["pca", "lat", "probe", "ablate"], vector, data, organism.quadruples)
    assert len(asked) == len({*asked}) > 0
    alone, _ = fit_baselines(subject, ["lat"], vector, data, organism.quadruples)
    assert torch.equal(shared["lat"].vector.vector, alone["lat"].vector.vector)
    assert (shared["ablate"].strength("elicit"), shared["ablate"].strength("suppress")) == (None, 1.0)  # a set of them
