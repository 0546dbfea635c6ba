"""How answers are about to begin: the log-odds of a naive loop, the same prompts before and after, every method."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import alignscope
from alignscope import SteeringVector
from alignscope.organisms.concept import ConceptOrganism, build_concept_organism
from alignscope.steering import baselines, evaluate_steering, faithfulness
from alignscope.steering.evaluation.candidates import Candidate
from alignscope.steering.evaluation.evaluated_rows import evaluated_rows
from alignscope.steering.evaluation.opening_odds import opening_odds
from alignscope.steering.evaluation.refusals import Openings, openings_of

QUICK = {"resamples": 100, "only": "faithfulness"}


@pytest.fixture(scope="module")
def organism() -> ConceptOrganism:
    found = build_concept_organism(steps=120)
    live = found.subject
    return replace(found, subject=live.under(live.name, live.fingerprints))  # not hashed anew at every call


@pytest.fixture(scope="module")
def subject(organism) -> alignscope.Subject:
    return organism.subject


@pytest.fixture(scope="module")
def vector(organism, subject) -> SteeringVector:
    return baselines.fit_diffmean(subject, organism.quadruples, layer=1)


def naive(subject, prompt: str, strength: float, vector, rows) -> float:
    """log sum p(first words of y_c) - log sum p(first words of y), one prompt alone, float64."""
    tokenizer = subject.tokenizer
    sides = [{tokenizer(row[name], add_special_tokens=False)["input_ids"][0] for row in rows}
             for name in ("positive_output", "negative_output")]  # fmt: skip
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with vector.applied(subject, strength), torch.no_grad():
        p = subject.logits(ids, torch.ones_like(ids))[0, -1].double().softmax(-1)
    shown, plain = (p[sorted(side)].sum().log() for side in sides)
    return float(shown - plain)


def test_the_log_odds_are_those_of_a_naive_loop(organism, subject, vector):
    rows = list(organism.fresh[:30])
    data = evaluated_rows(subject, rows, vector)
    found = opening_odds(subject, data, {"vector": Candidate(vector=vector)}, openings_of(rows), resamples=50)
    for way, kind, strength in (("elicit", "negative", 1.0), ("suppress", "positive", -1.0)):
        before, after = (
            np.array([naive(subject, row[f"{kind}_input"], s, vector, rows) for row in rows]) for s in (0, strength)
        )
        line = found.frame[found.frame.direction == way].iloc[0]
        assert line.before == pytest.approx(before.mean(), abs=1e-4)
        assert line.after == pytest.approx(after.mean(), abs=1e-4)
        assert line.change == pytest.approx((after - before).mean(), abs=1e-4)
        assert (line.leaning_before, line.leaning_after) == ((before > 0).mean(), (after > 0).mean())
        assert line.change_low < line.change < line.change_high
        assert (line.n, line.n_prompts) == (30, 30)
        change = found.estimates[f"opening_log_odds_change_{way}"]
        assert change.value == line.change
        assert found.estimates[f"opening_log_odds_before_{way}"].value == line.before
        assert (line.change > 0) == (way == "elicit")
        assert abs(line.change) > 1


def test_random_directions_have_one_line_the_mean_over_them(organism, subject, vector):
    rows = list(organism.fresh[:8])
    data = evaluated_rows(subject, rows, vector)
    draws = baselines.random_vectors(subject, organism.quadruples, layer=1, draws=range(2))
    both = {f"random {k}": Candidate(vector=one) for k, one in enumerate(draws)}
    found, *each = (
        opening_odds(subject, data, methods, openings_of(rows), resamples=20).frame
        for methods in (both, *({name: one} for name, one in both.items()))
    )
    assert found.method.tolist() == ["random", "random"]
    assert found.change.tolist() == pytest.approx(((each[0].change + each[1].change) / 2).tolist())


def test_a_method_without_a_strength_has_a_reason(organism, subject):
    rows = list(organism.fresh[:8])
    ablation = baselines.ablation(subject, organism.quadruples, layer=1)
    data = evaluated_rows(subject, rows, ablation)
    found = opening_odds(subject, data, {"vector": Candidate(vector=ablation)}, openings_of(rows), resamples=20)
    line = found.frame.set_index("direction").loc["elicit"]
    assert np.isnan(line.change)
    assert "cannot elicit" in line.reason
    assert "cannot elicit" in found.estimates["opening_log_odds_change_elicit"].reason


def test_the_report_has_them_for_every_method_where_openings_are_the_rule(organism, subject, vector):
    rows = list(organism.fresh[:24])
    options = {"training": organism.quadruples, **QUICK}
    found = evaluate_steering(subject, vector, rows, flips="opening", baselines=["pca"], **options)
    table = found.to_frame("steering.openings")
    assert {*table.method} == {"vector", "exchanged", "pca", "diffmean", "random"}
    assert len(table) == 10
    assert found.estimate("steering.opening_log_odds_change_elicit").low > 0
    without = evaluate_steering(subject, vector, rows, **options)
    assert "openings" not in without.section("steering").tables
    assert faithfulness(subject, rows, vector, training=organism.quadruples, random_seeds=1).methods.keys() == {
        "vector", "exchanged", "diffmean", "random 0",
    }  # fmt: skip


def test_openings_that_begin_alike_are_told_and_leave_the_rest(organism, subject, vector):
    rows = [row | {"positive_output": row["negative_output"] + " p1"} for row in organism.fresh[:8]]
    found = evaluate_steering(subject, vector, rows, flips="opening", training=organism.quadruples, **QUICK)
    (told,) = [one for one in found.section("steering").warnings if "no log-odds of openings" in one]
    assert "no first token tells" in told
    assert found.estimate("steering.recovered_elicit").value is not None
    assert openings_of(rows) == Openings(
        tuple(dict.fromkeys(row["positive_output"].strip() for row in rows)),
        tuple(dict.fromkeys(row["negative_output"].strip() for row in rows)),
    )


def test_progress_is_told_for_every_method_and_direction(organism, subject, vector):
    rows, told = list(organism.fresh[:4]), []
    data = evaluated_rows(subject, rows, vector)
    methods = {"vector": Candidate(vector=vector), "other": Candidate(vector=vector)}
    opening_odds(subject, data, methods, openings_of(rows), resamples=5, progress=lambda *args: told.append(args))
    assert told == [("openings", k, 6) for k in range(1, 7)]
