"""Generators that make DPO's law of labels exact: T12, T13, T17; then the preference organism, enumerated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax

from alignscope.diagnose.displacement import displacement_table
from alignscope.diagnose.power_law import fit_generator_law, fit_label_law, margin_ordering
from alignscope.diagnose.response_identities import response_identities
from alignscope.organisms import Recipe, build_preference_organism
from alignscope.organisms.enumeration import enumerate_folder
from alignscope.organisms.generators import (
    differential_information,
    label_law,
    optimal_chosen,
    optimal_rejected,
    predicted_displacement,
)
from alignscope.organisms.population import entropy

REF, TARGET = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
L = np.log(TARGET / REF)
FORCED = -0.4564348191  # -KL(ref || target)


def distributions(seed: int, k: int = 6) -> tuple[np.ndarray, np.ndarray]:
    return tuple(softmax(np.random.default_rng(seed).normal(0, 2, (2, k)), axis=1))


def gaps(values: np.ndarray) -> np.ndarray:
    return values[..., :, None] - values[..., None, :]


# ---- T12


def test_the_differential_information_of_the_example():
    q = differential_information(TARGET, REF)
    assert q == pytest.approx(np.array([3, 8, 18, 48]) / 77, rel=1e-14)
    assert entropy(np.log(q)[None])[0] == pytest.approx(0.9960689366, abs=1e-10)


def test_the_generator_of_rejected_answers_at_beta_one():
    assert optimal_rejected(REF, TARGET, 1) == pytest.approx(np.array([192, 54, 16, 3]) / 265, rel=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.5, 2.0]))
def test_the_generators_make_the_power_law_and_dpo_s_law_of_labels(seed, beta):
    ref, target = distributions(seed)
    rejected, chosen = optimal_rejected(ref, target, beta), optimal_chosen(ref, target, beta)
    powered = differential_information(target, ref) ** beta
    for first, second in ((ref, rejected), (chosen, ref)):
        assert differential_information(first, second) == pytest.approx(powered / powered.sum(), abs=1e-14)
        assert label_law(first, second) == pytest.approx(expit(beta * gaps(np.log(target / ref))), abs=1e-14)


def test_labels_of_the_example_follow_the_law_to_the_last_digit():
    law = label_law(REF, optimal_rejected(REF, TARGET, 0.5))
    assert np.abs(law - expit(0.5 * gaps(L))).max() < 1e-15


def test_labels_are_those_of_two_answers_drawn_apart():
    ref, rejected = REF, optimal_rejected(REF, TARGET, 0.5)
    both = ref[:, None] * rejected[None, :]
    assert label_law(ref, rejected) == pytest.approx(both / (both + both.T), rel=1e-14)


def test_margins_of_the_generators_are_proportional():
    rejected = optimal_rejected(REF, TARGET, 0.3)
    m_ref, m_target, m_rejected = (gaps(np.log(p)) for p in (REF, TARGET, rejected))
    assert m_ref - m_rejected == pytest.approx(0.3 * (m_target - m_ref), abs=1e-14)


def test_a_target_that_changed_nothing_has_generators_that_change_nothing():
    assert optimal_rejected(REF, REF, 2.0) == pytest.approx(REF, rel=1e-14)
    assert optimal_chosen(REF, REF, 2.0) == pytest.approx(REF, rel=1e-14)
    assert differential_information(REF, REF) == pytest.approx(np.full(4, 0.25), rel=1e-14)


def test_rows_of_prompts_are_distributions_of_their_own():
    ref, target = (np.stack(pair) for pair in zip(distributions(0), distributions(1), strict=True))
    both = optimal_rejected(ref, target, 0.5)
    assert both[1] == pytest.approx(optimal_rejected(ref[1], target[1], 0.5), rel=1e-14)
    assert label_law(ref, both)[1] == pytest.approx(label_law(ref[1], both[1]), rel=1e-14)
    assert predicted_displacement(ref, target, 0.5)[0].shape == (2,)


@pytest.mark.parametrize(
    ("ref", "beta", "match"),
    [([0.5, 0.5, 0.0, 0.0], 1.0, "every probability above 0"), ([0.4] * 4, 1.0, "sum 1"), (REF, 0.0, "beta=0.0"),
     (REF, -1.0, "beta=-1.0")],
)  # fmt: skip
def test_no_distributions_or_no_beta_are_refused(ref, beta, match):
    with pytest.raises(ValueError, match=match):
        optimal_rejected(np.array(ref), TARGET, beta)


# ---- T13


@pytest.mark.parametrize(
    ("beta", "rejected", "mirrored"),
    [(0.1, -0.5376700528, -0.3708911828), (0.5, -0.8129698500, 0.0), (1.0, -1.0468577674, 0.4564348191)],
)
def test_the_change_that_sampling_forces(beta, rejected, mirrored):
    assert predicted_displacement(REF, TARGET, beta) == pytest.approx((FORCED, rejected), abs=1e-10)
    assert predicted_displacement(REF, TARGET, beta, drawn="rejected") == pytest.approx((mirrored, FORCED), abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 3))
def test_rejected_answers_fall_further_and_chosen_ones_rise_with_beta(seed, beta):
    ref, target = distributions(seed)
    chosen, rejected = predicted_displacement(ref, target, beta)
    assert rejected <= chosen <= 0
    less, more = (predicted_displacement(ref, target, b, drawn="rejected")[0] for b in (beta, 1.1 * beta))
    assert chosen <= less <= more


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="expected one of chosen, rejected"):
        predicted_displacement(REF, TARGET, 1.0, drawn="both")


# ---- T17: the optimum of the population's loss, by gradient


def trained(reference: np.ndarray, law: np.ndarray, weight: np.ndarray, beta: float) -> np.ndarray:
    """argmin over policies of -sum weight P(a over b) log sigmoid(beta [log pi/reference (a) - (b)]), from uniform.

    Newton's steps on the logits; the loss is convex in them. A uniform `reference` makes the loss reference-free.
    """
    u, k = np.zeros(len(reference)), len(reference)
    for _ in range(100):
        miss = expit(-beta * gaps(u - np.log(reference)))
        pull = beta * weight * law * miss
        gradient = pull.sum(0) - pull.sum(1)
        bend = beta**2 * weight * law * miss * (1 - miss)
        bend = bend + bend.T
        step = np.linalg.solve(np.diag(bend.sum(1)) - bend + np.ones((k, k)) * bend.max(), -gradient)
        u = u + step * min(1.0, 2 / np.abs(beta * step).max())
        if np.abs(step).max() < 1e-13:
            break
    return softmax(u)


def js(p: np.ndarray, q: np.ndarray) -> float:
    m = (p + q) / 2
    return float((p * np.log(p / m) + q * np.log(q / m)).sum() / 2)


MODELS = [(REF, TARGET), distributions(5, k=40)]


def population(ref: np.ndarray, target: np.ndarray, beta: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """The law of labels and how often each pair is seen."""
    rejected = optimal_rejected(ref, target, beta)
    seen = ref[:, None] * rejected[None, :]
    return label_law(ref, rejected), seen + seen.T


@pytest.mark.parametrize(("ref", "target"), MODELS, ids=["four", "forty"])
def test_dpo_arrives_at_the_target(ref, target):
    assert js(trained(ref, *population(ref, target), beta=0.5), target) < 1e-8


@pytest.mark.parametrize(("ref", "target"), MODELS, ids=["four", "forty"])
def test_a_reward_without_reference_arrives_at_the_differential_information(ref, target):
    uniform = np.full(len(ref), 1 / len(ref))
    assert js(trained(uniform, *population(ref, target), beta=0.5), differential_information(target, ref)) < 1e-6


def test_differential_information_is_not_the_target():
    assert js(differential_information(TARGET, REF), TARGET) == pytest.approx(0.0290149894, abs=1e-10)


@pytest.mark.parametrize(("ref", "target"), MODELS, ids=["four", "forty"])
def test_half_the_beta_in_training_doubles_the_log_ratio(ref, target):
    learned = trained(ref, *population(ref, target), beta=0.25)
    assert gaps(np.log(learned / ref)) == pytest.approx(2 * gaps(np.log(target / ref)), abs=1e-6)


def test_beta_hat_at_the_population_s_optimum_is_the_training_s():
    law, seen = population(REF, TARGET)
    learned = trained(REF, law, seen, beta=0.25)
    first, second = np.triu_indices(4, k=1)
    for policy, beta in ((TARGET, 0.5), (learned, 0.25)):
        change = gaps(np.log(policy / REF))[first, second]
        found = fit_label_law(change, np.arange(6), labels=law[first, second], trained_beta=beta).beta
        assert found.value == pytest.approx(beta, rel=1e-6)


# ---- the preference organism: every response to every prompt under two trained models

BETA = 0.5
TINY = Recipe(base_steps=12, sft_steps=1, dpo_steps=6, reward_steps=1, batch=8, training_draws=2, pairs_draws=2)


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Reference and policy over the 256 responses to each of 192 prompts. Hasty training: the laws hold for any two."""
    built = build_preference_organism(tmp_path_factory.mktemp("organism") / "tiny", recipe=TINY, seed=0)
    ref, policy = (np.exp(log_softmax(enumerate_folder(f).log_probs, axis=1)) for f in (built.base, built.dpo))
    assert np.abs(np.log(policy / ref)).mean() > 0.05, "training moved the policy"
    return ref, policy


def drawn(p: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n responses to every prompt, [prompts, n]."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(p.shape[1], size=n, p=row) for row in p])


def read(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, at, axis=1)


def test_the_organism_s_pairs_obey_the_law_of_labels_and_of_margins(organism):
    ref, policy = organism
    rejected = optimal_rejected(ref, policy, BETA)
    for i in range(0, 192, 24):
        assert np.abs(label_law(ref[i], rejected[i]) - expit(BETA * gaps(np.log(policy[i] / ref[i])))).max() < 1e-12
        m_ref, m_policy, m_rejected = (gaps(np.log(p[i])) for p in (ref, policy, rejected))
        assert np.abs(m_ref - m_rejected - BETA * (m_policy - m_ref)).max() < 1e-10
        some = np.triu_indices(256, k=1)
        order = margin_ordering(m_policy[some], m_ref[some], m_rejected[some], np.zeros(len(some[0])), bootstrap=2)
        assert order.value == 1.0


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_drawn_pairs_of_the_organism_move_as_predicted(organism, side):
    ref, policy = organism
    change = np.log(policy / ref)
    other = (optimal_rejected if side == "chosen" else optimal_chosen)(ref, policy, 1.0)
    sources = (ref, other) if side == "chosen" else (other, ref)
    n = 20
    chosen, rejected = (read(change, drawn(p, n, seed)).ravel() for seed, p in enumerate(sources))
    prompts = np.repeat(np.arange(192), n)
    table = displacement_table(
        chosen, rejected, None, prompts, reference_sample_log_ratio=read(change, drawn(ref, n, 2)).ravel(),
        sample_clusters=prompts, bootstrap=200,
    )  # fmt: skip
    e = table.estimates
    expected = predicted_displacement(ref, policy, 1.0, drawn=side)
    for name, truth in zip(("chosen", "rejected"), expected, strict=True):
        assert e[name].low < truth.mean() < e[name].high
    forced = (ref * change).sum(1).mean()
    assert e["on_policy"].low < forced < e["on_policy"].high
    assert expected[0 if side == "chosen" else 1].mean() == pytest.approx(forced)
    assert table.beyond_sampling is False


def test_beta_hat_of_drawn_pairs_of_the_organism_holds_the_beta_they_were_made_with(organism):
    ref, policy = organism
    change, n = np.log(policy / ref), 20
    rejected = optimal_rejected(ref, policy, BETA)
    gap = (read(change, drawn(ref, n, 0)) - read(change, drawn(rejected, n, 1))).ravel()
    law = fit_label_law(gap, np.repeat(np.arange(192), n), trained_beta=BETA, bootstrap=100)
    assert law.beta.low < BETA < law.beta.high
    assert "no departure" in law.comparison
    assert law.cubic.low < 0 < law.cubic.high


def test_the_constant_of_the_generators_law_is_one_a_prompt(organism):
    """One intercept over prompts of unlike log Z gives another slope than the generators were made with."""
    ref, policy = organism
    at = drawn(ref, 5, 0)
    gap = read(np.log(ref / optimal_rejected(ref, policy, BETA)), at).ravel()
    change = read(np.log(policy / ref), at).ravel()
    law = fit_generator_law(gap, change, np.repeat(np.arange(192), 5), bootstrap=50)
    assert law.beta_within.value == pytest.approx(BETA, rel=1e-10)
    assert abs(law.beta.value - BETA) > 1e-3
    alone = fit_generator_law(gap[:5], change[:5], np.zeros(5))
    assert alone.beta.value == pytest.approx(BETA, rel=1e-9)


def test_samples_of_the_organism_satisfy_the_identities_and_exchanged_ones_do_not(organism):
    ref, policy = organism
    change = np.log(policy / ref)
    prompts = np.repeat(np.arange(192), 10)
    mine, theirs = (read(change, drawn(p, 10, seed)).ravel() for seed, p in enumerate((ref, policy)))
    clusters = {"reference_clusters": prompts, "policy_clusters": prompts}
    right = response_identities(reference_samples=mine, policy_samples=theirs, **clusters)
    wrong = response_identities(reference_samples=theirs, policy_samples=mine, **clusters)
    assert [row.ok for row in right[:2]] == [True] * 2
    assert [row.ok for row in wrong[:2]] == [False] * 2
