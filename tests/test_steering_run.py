"""The evaluation as a run: a killed one gives the same report, another one is refused, and a sweep stands alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import alignscope
from alignscope import InputError, Report, SteeringVector
from alignscope.organisms.concept import build_concept_organism
from alignscope.steering import Site, baselines, evaluate_steering, sweep_steering
from alignscope.steering.evaluation.report_names import PARTS
from alignscope.steering.evaluation.report_section import LACKING
from alignscope.steering.evaluation.steering_run import GivenVector

GRID = [-1, 0, 1]


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
def rows(organism) -> list:
    return list(organism.fresh[:40])


# ---- the vector


@pytest.mark.parametrize(("write", "ending"), [("to_gguf", "gguf"), ("to_svec", "svec"), ("to_steering_vectors", "pt")])
def test_a_file_of_another_tool_is_refused_with_the_command_that_makes_a_vector_of_it(vector, tmp_path, write, ending):
    file = getattr(vector, write)(tmp_path / f"v.{ending}").path
    told = f"a file of another tool .*alignscope steer convert {file} {tmp_path / 'v.safetensors'} --model"
    with pytest.raises(InputError, match=told):
        GivenVector.of(file)
    with pytest.raises(InputError, match="no such file"):
        GivenVector.of(tmp_path / f"none.{ending}")


# ---- the run


def contents(report: Report) -> tuple:
    section = report.section("steering")
    return section.estimates, report.findings, section.warnings, section.summary, section.counts


def assert_same(found: Report, expected: Report) -> None:
    assert contents(found) == contents(expected)
    for name in expected.section("steering").tables:
        left, right = (report.to_frame(f"steering.{name}") for report in (found, expected))
        assert left.equals(right), name


class KilledError(Exception):
    """What a kill does to a run, as far as a test can raise it."""


@pytest.fixture(scope="module")
def short(organism) -> dict:
    return {
        "training": organism.quadruples[:16],
        "texts": [row["negative_input"] for row in organism.fresh[60:70]],
        "strengths": GRID,
        "scorer": rated,
        "concept": "POS",
        "max_new_tokens": 5,
        "resamples": 20,
        "baselines": ["lat"],
    }


@pytest.fixture(scope="module")
def whole(subject, vector, rows, short, tmp_path_factory) -> tuple[Report, Path]:
    """A run in one go, and where it lies."""
    out = tmp_path_factory.mktemp("whole")
    return evaluate_steering(subject, vector, rows[:8], out=out, **short), out


@pytest.mark.parametrize("stage", ["sweep", "faithfulness", "side effects"])
def test_a_killed_run_continues_to_the_same_report(subject, vector, rows, short, whole, tmp_path, stage):
    def kill(name: str, done: int, total: int) -> None:
        if name.startswith(stage):
            raise KilledError

    with pytest.raises(KilledError):
        evaluate_steering(subject, vector, rows[:8], out=tmp_path / "run", progress=kill, **short)
    seen: list[str] = []
    found = evaluate_steering(
        subject, vector, rows[:8], out=tmp_path / "run", progress=lambda name, *_: seen.append(name), **short
    )
    assert_same(found, whole[0])
    before = PARTS[: [part.replace("_", " ") for part in PARTS].index(stage)]
    assert not [name for name in seen if name.partition(":")[0].replace(" ", "_") in before]


def test_a_finished_run_is_read_back(subject, vector, rows, short, whole):
    first, out = whole

    def refuse(*_: object) -> None:
        raise AssertionError

    assert_same(evaluate_steering(subject, vector, rows[:8], out=out, progress=refuse, **short), first)
    assert_same(Report.load(out), first)


@pytest.mark.parametrize("change", ["vector", "rows", "seed", "grid"])
def test_a_run_of_something_else_is_refused(subject, vector, rows, organism, short, tmp_path, change):
    options = {"training": short["training"], "only": "faithfulness", "resamples": 5}
    evaluate_steering(subject, vector, rows[:4], out=tmp_path, **options)
    with pytest.raises(InputError, match="holds a run with other settings"):
        evaluate_steering(
            subject,
            baselines.fit_lat(subject, organism.quadruples, layer=1) if change == "vector" else vector,
            rows[:5] if change == "rows" else rows[:4],
            out=tmp_path,
            **options | ({"seed": 1} if change == "seed" else {"strengths": [1, 2]} if change == "grid" else {}),
        )


# ---- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": "sweep"}, "give strengths"),
        ({"only": "side_effects"}, "--texts"),
        ({"only": "detection"}, "--positive"),
        ({"only": "everything"}, "choose from sweep"),
        ({"benign": ["Hi"]}, "benign without texts"),
        ({"positive": ["a p"]}, "detection needs both"),
        ({"baselines": ["magic"]}, "expected some of diffmean"),
        ({"baselines": ["lat", "lat"]}, "named twice"),
        ({"baselines": ["lat"], "baseline_epochs": 3}, "no baseline is trained; they are of das, ssv"),
        ({"baselines": ["ssv"], "baseline_epochs": 0}, "expected 1 or more"),
        ({"flips": "often"}, "same_answer, begins_with_target, opening"),
        ({"strengths": [1], "scorer": "magic"}, "expected offline"),
        ({"strengths": [1], "scorer": "keyword:("}, "not a regular expression"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_the_work(subject, vector, rows, options, words):
    with pytest.raises(InputError, match=words):
        evaluate_steering(subject, vector, rows[:4], **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"choices": [{"question": "q", "choices": ["a", "b"]}]}, "no column answer"),
        ({"choices": [{"question": "q", "choices": ["a", "b"], "answer": 0}]}, "the letter A is no token"),
        ({"benign": ["NEG c1 SEP"]}, "no first token tells 19 refusing from 7 compliant"),
        ({"benign": [" "]}, "no prompt is left"),
        ({"texts": [" "]}, "no text of two tokens"),
        ({"positive": ["POS c1"], "negative": [" "]}, "1 positive and 0 negative texts"),
        ({"positive": ["POS c1"], "negative": ["NEG c1"]}, "too few texts"),
        ({"training": 3}, "3 usable quadruples"),
        ({"compare": "other width"}, "the vector is for 32"),
        ({"compare": "random"}, "'random' is the name of a row that is always there"),
    ],
    ids=str,
)
def test_what_a_later_part_would_refuse_is_refused_before_the_first_runs(
    subject, vector, rows, organism, short, tmp_path, options, words
):
    def refuse(*_: object) -> None:
        raise AssertionError

    made = {
        "training": lambda n: organism.quadruples[:n],
        "compare": lambda name: {name: vector if name == "random" else SteeringVector.adding(torch.ones(32), Site(1))},
    }
    given = {name: made[name](value) if name in made else value for name, value in options.items()}
    with pytest.raises(InputError, match=words):
        evaluate_steering(subject, vector, rows[:8], out=tmp_path / "run", progress=refuse, **short | given)
    assert not (tmp_path / "run").exists()


def test_once_its_inputs_are_mended_a_run_goes_to_the_same_folder(subject, vector, rows, short, tmp_path):
    options = {"only": "side_effects", "texts": short["texts"], "max_new_tokens": 2, "out": tmp_path / "run"}
    with pytest.raises(InputError, match="no first token tells"):
        evaluate_steering(subject, vector, rows[:4], benign=["NEG c1 SEP"], **options)
    openings = [{"negative_input": "a", "negative_output": "n1", "positive_input": "b", "positive_output": "p1"}]
    found = evaluate_steering(subject, vector, rows[:4], benign=["NEG c1 SEP"], openings=openings, **options)
    assert len(found.to_frame("steering.benign")) == 2


def test_a_vector_beside_must_not_bear_the_name_of_a_baseline(subject, vector, rows, organism):
    with pytest.raises(InputError, match="name of a baseline"):
        evaluate_steering(
            subject, vector, rows[:4], training=organism.quadruples, compare={"lat": vector}, baselines=["lat"],
            only="faithfulness",
        )  # fmt: skip


# ---- a sweep alone


def test_a_sweep_alone_is_the_same_section(subject, vector, rows, whole):
    found = sweep_steering(
        subject, vector, GRID, quadruples=rows[:8], scorer=rated, concept="POS", max_new_tokens=5, draws=20
    )
    section = found.section("steering")
    assert {*section.tables} == {"sweep_curve", "selection", "answers"}
    assert all(whole[0].estimate(f"steering.{name}") == one for name, one in section.estimates.items())
    assert not any(told in section.warnings for told in LACKING.values())


def test_prompts_of_one_direction_are_swept_alone(subject, vector, organism):
    prompts = [row["positive_input"] for row in organism.fresh[:6]]
    found = sweep_steering(
        subject, vector, [-1, 0], prompts=prompts, direction="suppress", scorer=rated, max_new_tokens=5, draws=10
    )
    assert {*found.to_frame("steering.selection").direction} == {"suppress"}
    both = [{"prompt": text, "direction": way} for text in prompts for way in ("elicit", "suppress")]
    one = sweep_steering(
        subject, vector, [-1, 0], prompts=both, direction="elicit", scorer=rated, max_new_tokens=5, draws=10
    )
    assert {*one.to_frame("steering.answers").direction} == {"elicit"}


def test_keywords_rate_the_concept_and_the_model_the_rest(subject, vector, rows, organism):
    found = sweep_steering(
        subject, vector, [0, 1], quadruples=rows[:12], training=organism.quadruples[:24], scorer="keyword:p[0-9]+",
        direction="elicit", max_new_tokens=5, draws=10, temperature=0,
    )  # fmt: skip
    answers = found.to_frame("steering.answers")
    expected = [min(2.0, float(text.count("p"))) for text in answers.output]
    assert answers.concept_rating.tolist() == expected
    assert answers[["instruction_rating", "fluency_rating"]].notna().all().all()
    assert all(estimate.reconstructed for estimate in found.section("steering").estimates.values())


def test_a_sweep_needs_prompts_and_what_its_scorer_is_fitted_on(subject, vector, rows):
    with pytest.raises(InputError, match="one of them"):
        sweep_steering(subject, vector, [0, 1])
    with pytest.raises(InputError, match="give quadruples of the concept"):
        sweep_steering(subject, vector, [0, 1], prompts=["NEG c1 SEP", "NEG c2 SEP"])
    with pytest.raises(InputError, match="direction 'up'"):
        sweep_steering(subject, vector, [0, 1], prompts=["NEG c1 SEP"], direction="up", scorer=rated)
