"""Test C, the tiny Llama whose answers are known: the gates of CDAS, and what a vector trained on it keeps."""

import pytest
import torch
from concept_trials import answer_logits, fresh_content, greedy, kl, trial

from alignscope import SteeringVector
from alignscope.organisms.concept import N_PROMPT, ConceptOrganism, build_concept_organism, concept_tokenizer, sequences
from alignscope.steering import (
    baselines,
    bidirectionality,
    faithfulness,
    scan_layers,
    train_cdas,
)
from alignscope.steering.describing import held_out_losses
from alignscope.steering.evaluation.candidates import Candidate

FAST = {"layer": 1, "holdout": 0, "epochs": 1}


@pytest.fixture(scope="session")
def organism() -> ConceptOrganism:
    return build_concept_organism()


@pytest.fixture(scope="module")
def cdas(organism) -> SteeringVector:
    return train_cdas(organism.subject, organism.quadruples, layer=1, holdout=0)


# ---- test C


def test_the_organism_answers_right_under_either_flag(organism):
    g = torch.Generator().manual_seed(9)
    ids = sequences(torch.arange(256) % 2 == 0, torch.randint(16, (256, 5), generator=g))
    with torch.no_grad():
        found = organism.subject.model(input_ids=ids).logits.argmax(-1)
    assert torch.equal(found[:, 7:-1], ids[:, 8:])


def test_c1_one_direction_recovers_most_of_both_answers(organism, cdas):
    found = trial(organism, cdas, flips=False)
    assert min(found.unedited) > 5
    assert min(found.recovered) >= 0.8


@pytest.fixture(scope="module")
def four(organism) -> SteeringVector:
    return train_cdas(organism.subject, organism.quadruples, layer=1, rank=4, epochs=45, holdout=0)


def test_c3_four_directions_flip_the_answers(organism, four):
    assert len(four.history) == 45 * 9
    found = trial(organism, four)
    assert min(found.flips) >= 0.95
    assert max(found.kl) <= 0.2


def test_a_trigger_is_taken_out_by_f_minus_and_prompts_without_it_stay_as_they_are(organism, four):
    """The backdoor case of the page: POS is the trigger; what suppresses it is left on for every prompt."""
    content = fresh_content(organism)
    clean = sequences(torch.zeros(len(content), dtype=torch.bool), content)
    plain = answer_logits(organism, clean)
    with four.applied(organism.subject, -1.0):
        kept = (greedy(organism, clean) == clean[:, N_PROMPT:-1]).all(-1).double().mean()
        moved = kl(plain, answer_logits(organism, clean))
    assert kept >= 0.99
    assert moved < 0.05  # nats a token, beside 6.5 between the two flags


@pytest.mark.parametrize("draw", range(2))
def test_c4_a_random_direction_does_next_to_nothing(organism, draw):
    found = trial(organism, baselines.random_vector(organism.subject, organism.quadruples, layer=1, draw=draw))
    assert max(found.recovered) < 0.1
    assert found.flips == (0.0, 0.0)


@pytest.mark.slow
def test_c5_layer_1_is_the_best_and_the_last_the_worst(organism, cdas):
    worse = {}
    for layer in range(4):
        vector = train_cdas(organism.subject, organism.quadruples, layer=layer, holdout=0) if layer != 1 else cdas
        worse[layer] = max(trial(organism, vector, flips=False).kl)
    assert min(worse, key=worse.__getitem__) == 1
    assert max(worse, key=worse.__getitem__) == 3


@pytest.mark.slow
def test_c5_a_scan_chooses_layer_1_by_rows_held_out_and_fresh_ones_agree(organism):
    scan = scan_layers(organism.subject, organism.quadruples)
    worse = {layer: max(trial(organism, vector, flips=False).kl) for layer, vector in scan.vectors.items()}
    assert scan.chosen == min(worse, key=worse.__getitem__) == 1
    assert max(scan.rows, key=lambda row: row.worst.value).layer == max(worse, key=worse.__getitem__) == 3


def test_faithfulness_is_the_kl_of_the_trial(organism, cdas):
    """Written twice: on ids and whole logits there, on texts here."""
    found = faithfulness(organism.subject, organism.fresh, cdas, training=organism.quadruples, random_seeds=1)
    expected = trial(organism, cdas, flips=False)
    for number, direction in enumerate(("elicit", "suppress")):
        assert found.row("no edit", direction).kl.value == pytest.approx(expected.unedited[number], abs=1e-5)
        assert found.row("vector", direction).kl.value == pytest.approx(expected.kl[number], abs=1e-5)


def test_flips_are_those_of_the_trial(organism, cdas):
    """On an organism that answers right, the answer to the other flag is the right one."""
    found = bidirectionality(organism.subject, organism.fresh, cdas, max_new_tokens=5, batch_size=64)
    flips = tuple(row.full.flips.value for row in found.rows)
    assert flips == trial(organism, cdas).flips


def test_a_vector_that_only_elicits_says_so(organism):
    vector = train_cdas(organism.subject, organism.quadruples, directions="elicit", **FAST)
    assert any("elicit only" in notice for notice in vector.notices())


def test_exchanged_it_says_that_it_only_suppresses(organism):
    vector = train_cdas(organism.subject, organism.quadruples, layer=1, epochs=1, directions="elicit", loss="kl_source")
    other = vector.swap()
    assert Candidate.of(vector).one_way == "one-way: trained to elicit only"
    assert Candidate.of(other).one_way == "one-way: trained to suppress only"
    assert [notice.replace("suppress", "elicit") for notice in other.notices()] == list(vector.notices())
    assert other.notices() != vector.notices()
    losses, turned = held_out_losses(vector)["after"], held_out_losses(other)["after"]
    assert turned["suppress"].value == losses["elicit"].value is not None
    assert turned["elicit"].reason == "not trained to elicit"
    unedited = vector.metadata["metrics"]["held_out_unedited"]
    assert other.metadata["metrics"]["held_out_unedited"] == {"suppress": unedited["elicit"]}
    assert {**other.swap().metadata, "swapped": None} == {**vector.metadata, "swapped": None}
    assert vector.metadata["settings"]["directions"] == "elicit"


def test_162_steps_of_16_runs_each_a_line_of_history(cdas):
    assert [step["step"] for step in cdas.history] == list(range(1, 163))
    assert cdas.metadata["metrics"]["n_tokens"] == 162 * 16 * 6
    assert cdas.history[0]["loss"] > 10 * cdas.history[-1]["loss"]


def test_factors_are_the_mean_coordinates_of_training_prompts(organism, cdas):
    w, states = cdas.subspace.basis[0], []
    for flag in (True, False):
        content = [[int(word[1:]) for word in row["negative_output"].split()] for row in organism.quadruples]
        ids = sequences(torch.full((72,), flag), torch.tensor(content))[:, :8]
        with torch.no_grad():
            states.append(organism.subject.model(ids, output_hidden_states=True).hidden_states[2][:, -1])
    assert float(cdas.factors.positive) == pytest.approx(float((states[0] @ w).mean()), abs=1e-5)
    assert float(cdas.factors.negative) == pytest.approx(float((states[1] @ w).mean()), abs=1e-5)
    assert cdas.factors.n == 72


def test_held_out_prompts_have_a_curve_and_an_auroc(organism):
    vector = train_cdas(organism.subject, organism.quadruples, layer=1, epochs=6)
    curve = vector.metadata["metrics"]["held_out"]
    assert [point["step"] for point in curve] == [8 * epoch for epoch in range(7)]  # 58 rows: 7 batches of 8 and a rest
    assert curve[-1]["elicit"] < curve[0]["elicit"] / 2
    assert vector.metadata["data"]["n_held_out"] == 14
    assert vector.factors.auroc == 1.0


def test_a_saved_vector_gives_the_same_logits(organism, cdas, tmp_path):
    loaded = SteeringVector.load(cdas.save(tmp_path / "v"), organism.subject)
    ids = sequences(torch.tensor([True]), torch.arange(5)[None])
    found = []
    for vector in (cdas, loaded):
        with vector.applied(organism.subject), torch.no_grad():
            found.append(organism.subject.logits(ids, torch.ones_like(ids)))
    assert torch.equal(*found)
    assert loaded.metadata["settings"]["lr"] == 0.04


def test_the_vocabulary_of_the_organism_is_the_recipes():
    ids = concept_tokenizer()("NEG c0 c15 SEP n0 n15 p0 p15")["input_ids"]
    assert ids == [1, 3, 16, 31, 4, 32, 47, 48, 63]
