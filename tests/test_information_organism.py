"""The information report on an organism whose responses can all be enumerated: truth beside every estimate."""

import numpy as np
import pytest
import torch
from information_oracle import CLOSE, PANEL, QUICK, panel
from scipy.optimize import brentq
from scipy.special import expit, log_softmax

from alignscope import information_report
from alignscope.diagnose.identities import failed
from alignscope.diagnose.power_law import fit_label_law
from alignscope.organisms import Recipe, build_preference_organism
from alignscope.organisms.enumeration import Enumeration, enumerate_responses, node_path
from alignscope.organisms.tokenizer import EOS, prompt_ids, response_ids
from alignscope.organisms.truth import Models, expectations, prompts_of
from alignscope.organisms.world import HELD_OUT, draw_pairs, pair_law, rewards
from alignscope.probes.histories import History
from alignscope.probes.loading import load

HASTY = Recipe(
    base_steps=80, sft_steps=1, dpo_steps=48, reward_steps=1, batch=32,
    training_draws=6, pairs_draws=3, shifted_draws=2,
)  # fmt: skip
PROMPT = 17
VOCAB = 32


@pytest.fixture(scope="module")
def organism(tmp_path_factory):
    return build_preference_organism(tmp_path_factory.mktemp("organism") / "hasty", recipe=HASTY)


@pytest.fixture(scope="module")
def subjects(organism):
    return load(organism.dpo), load(organism.base)


@pytest.fixture(scope="module")
def enumerated(subjects) -> tuple[Enumeration, Enumeration]:
    return tuple(enumerate_responses(subject.model, prompt_ids()) for subject in subjects)


@pytest.fixture(scope="module")
def audited(organism, subjects):
    """Of the organism's evaluation pairs on training prompts."""
    return information_report(*subjects, organism.pairs, beta=organism.beta, resamples=200, measure_floor=False)


def asked(*given: tuple[int, ...], source: str = "dataset", prompt: int = PROMPT) -> list[History]:
    ids = tuple(prompt_ids()[prompt].tolist())
    return [History(prompt_id=str(prompt), prompt_ids=ids, response_ids=row, source=source) for row in given]


def log_probs(subject, histories: list[History]) -> np.ndarray:
    """log pi of each response of equal length, from the model's own logits in one batch."""
    ids = torch.tensor([[*history.prompt_ids, *history.response_ids] for history in histories])
    n = len(histories[0].response_ids)
    with torch.no_grad():
        logits = subject.model(input_ids=ids).logits.double()[:, -n - 1 : -1].log_softmax(-1)
    return logits.gather(2, ids[:, -n:, None]).sum((1, 2)).numpy()


@pytest.fixture(scope="module")
def two_tokens() -> list[History]:
    """Every string of two tokens: with no token left out, the chain rule holds exactly."""
    return asked(*((a, b) for a in range(VOCAB) for b in range(VOCAB)))


def test_every_token_of_every_response_has_the_numbers_of_its_node(subjects, enumerated):
    report = information_report(*subjects, asked(*map(tuple, response_ids().tolist())), **QUICK)
    nodes = [panel(*z) for z in zip(*(model.node_logits[PROMPT] for model in enumerated), strict=True)]
    for name in PANEL:
        expected = np.array([node[name] for node in nodes])[node_path()]  # [256, 5]
        assert np.allclose(report.positions[name].to_numpy().reshape(256, 5), expected, atol=CLOSE), name
    assert report.profile["bucket"].unique().tolist() == ["1-5", "end"]


def test_log_ratios_of_responses_are_the_enumerated_ones(subjects, enumerated):
    report = information_report(*subjects, asked(*map(tuple, response_ids().tolist())), **QUICK)
    found = report.positions.groupby("history")["log_ratio"].sum().to_numpy()
    assert np.allclose(found, enumerated[0].log_probs[PROMPT] - enumerated[1].log_probs[PROMPT], atol=1e-4)
    q = np.exp(log_softmax(found))
    row = report.candidates.iloc[0]
    assert row["n_candidates"] == 256
    assert row["normalized_entropy"] == pytest.approx(-(q * np.log(q)).sum() / np.log(256), abs=1e-6)


def test_token_divergences_add_up_to_the_divergence_of_whole_strings(subjects, two_tokens):
    """KL(pi || ref) = E_pi[KL_1 + KL_2], by the chain rule; of reverse KL the same under the reference."""
    report = information_report(*subjects, two_tokens, **QUICK)
    ours, theirs = (log_probs(subject, two_tokens) for subject in subjects)
    assert np.exp(ours).sum() == pytest.approx(1, abs=1e-5)  # nothing is left out
    along = report.positions.groupby("history")[["kl", "reverse_kl"]].sum()
    whole = {"kl": np.exp(ours) @ (ours - theirs), "reverse_kl": np.exp(theirs) @ (theirs - ours)}
    assert np.exp(ours) @ along["kl"] == pytest.approx(whole["kl"], abs=CLOSE)
    assert np.exp(theirs) @ along["reverse_kl"] == pytest.approx(whole["reverse_kl"], abs=CLOSE)
    assert min(whole.values()) > 100 * CLOSE


def test_policy_samples_have_the_divergence_of_whole_strings_within_three_standard_errors(subjects, two_tokens):
    ours, theirs = (log_probs(subject, two_tokens) for subject in subjects)
    draws = np.random.default_rng(0).choice(len(two_tokens), size=400, p=np.exp(ours) / np.exp(ours).sum())
    report = information_report(*subjects, [two_tokens[i] for i in draws], source="policy", **QUICK)
    found = report.positions.groupby("history")["kl"].sum()
    truth = np.exp(ours) @ (ours - theirs)
    assert abs(found.mean() - truth) < 3 * found.std() / 20 + CLOSE
    assert found.std() > 0


def test_samples_of_the_reference_say_what_displacement_is_forced(organism, subjects):
    """The mean log-ratio of what the reference wrote is -KL(reference || policy), here over strings of two tokens."""
    random, drawn, truth = np.random.default_rng(1), [], []
    for prompt in range(24):
        strings = asked(*((a, b) for a in range(VOCAB) for b in range(VOCAB)), source="reference", prompt=prompt)
        ours, theirs = (log_probs(subject, strings) for subject in subjects)
        truth.append(np.exp(theirs) @ (ours - theirs))
        p = np.exp(theirs) / np.exp(theirs).sum()
        drawn += [strings[i] for i in random.choice(len(strings), size=12, p=p)]
    report = information_report(*subjects, drawn, **QUICK)
    rows = {row.name: row for row in report.identities}
    assert rows["reference_samples"].ok
    error = rows["reference_samples"].standard_error
    assert abs(rows["reference_samples"].value - np.mean(truth)) < 3 * error
    assert np.mean(truth) < -3 * error  # so that a wrong sign would be seen
    assert failed(report.identities) == []


def test_pairs_move_as_the_enumeration_says(organism, enumerated, audited):
    models = Models(enumerated[1], enumerated[0], np.zeros((192, 256)))
    truth = expectations(models, prompts_of("training"), draws=HASTY.pairs_draws, votes=HASTY.votes, beta=HASTY.beta)
    for side in ("chosen", "rejected"):
        estimate = audited.displacement.estimates[side]
        assert estimate.low < truth[f"displacement_{side}"] < estimate.high
    assert truth["displacement_rejected"] < truth["displacement_chosen"]


def population_beta(log_ratio: np.ndarray, prompts: np.ndarray, law: np.ndarray) -> float:
    """argmax_b of the expected log-likelihood of labels under sigmoid(b dl), over every pair and every vote.

    law: symmetric, a pair in either order; the root of the slope, sum of law (label - sigmoid(b dl)) dl.
    """
    first, second = np.triu_indices(256, k=1)
    reward = rewards()[prompts]
    gap = log_ratio[:, first] - log_ratio[:, second]
    label, weight = expit(reward[:, first] - reward[:, second]), law[:, first, second]
    return float(brentq(lambda b: (weight * (label - expit(b * gap)) * gap).sum(), 0.0, 20.0, xtol=1e-6))


def ratios(enumerated, prompts: np.ndarray) -> np.ndarray:
    return enumerated[0].log_probs[prompts] - enumerated[1].log_probs[prompts]


def test_the_label_law_recovers_the_enumerated_beta(enumerated, audited):
    prompts = prompts_of("training")
    law = pair_law(enumerated[1].log_probs[prompts])
    present = -np.expm1(HASTY.pairs_draws * np.log1p(-(law + law.transpose(0, 2, 1))))  # repeats are dropped
    beta = audited.label_law.beta
    assert beta.low < population_beta(ratios(enumerated, prompts), prompts, present) < beta.high
    assert audited.label_law.trained_beta == HASTY.beta


def test_the_interval_of_the_label_law_holds_the_truth_about_as_often_as_it_says(enumerated):
    """20 files of 192 pairs: fewer than 16 of 20 at a true 95 % happen once in 380."""
    prompts = np.flatnonzero(HELD_OUT)
    law, ratio = pair_law(enumerated[1].log_probs[prompts]), ratios(enumerated, np.arange(192))
    truth, held = population_beta(ratio[prompts], prompts, law), 0
    for seed in range(20):
        drawn = draw_pairs(np.random.default_rng(seed), enumerated[1].log_probs, prompts, draws=3, votes=5,
                           distinct=False)  # fmt: skip
        gap = ratio[drawn.prompt, drawn.a] - ratio[drawn.prompt, drawn.b]
        beta = fit_label_law(gap, drawn.prompt, labels=drawn.preference, bootstrap=100, seed=seed).beta
        held += beta.low < truth < beta.high
    assert held >= 16


def test_the_end_of_a_response_is_a_bucket_of_its_own(audited):
    ends = audited.positions[audited.positions["token"] == EOS]
    assert len(ends) == audited.counts["responses"]
    found = audited.profile.query("bucket == 'end' and measure == 'kl'").set_index("source")
    for source, part in ends.groupby("source"):
        by_prompt = part.groupby("prompt_id")["kl"].mean()
        assert found.loc[source, "value"] == pytest.approx(by_prompt.mean(), abs=1e-9)
