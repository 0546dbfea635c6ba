"""Sequence information: the exact answers of the method page, then invariances, then enumeration and refusals."""

import itertools
import math
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from scipy.stats import genpareto

import alignscope
from alignscope.diagnose import next_token_laws
from alignscope.diagnose.next_token_laws import NoRatioError
from alignscope.diagnose.pareto_tail import generalized_pareto_shape, pareto_shape
from alignscope.diagnose.sequence_information import (
    candidate_information,
    local_information,
    sequence_information,
    smc_information,
    weighted_information,
)
from alignscope.diagnose.sequence_sampling import draw_strings, run_particles, score_strings, systematic_ancestors

ROOT = Path(alignscope.__file__).parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # the benchmarks are no part of the package: they are run from the repository's root

from benchmarks.information_coverage import Bigram, bigram, coverage, repeated  # noqa: E402

LN3 = math.log(3)
# two tokens; after token 0 the reference says (.9, .1) and the policy (.5, .5), after 1 both are uniform
CHAIN = Bigram(np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.9, 0.1], [0.5, 0.5]]))
TWO = np.array(list(itertools.product(range(2), repeat=2)))  # its strings of two tokens


def every_string(n_vocab: int, length: int) -> np.ndarray:
    return np.array(list(itertools.product(range(n_vocab), repeat=length)))


def same(n_vocab: int):
    """A step that knows nothing of the history."""
    z = np.random.default_rng(n_vocab).normal(size=n_vocab)
    return lambda ids: np.tile(z, (len(ids), 1))


def remembering(seed: int, n_vocab: int):
    """A step whose logits depend on the whole history."""

    @cache
    def logits(*history: int) -> np.ndarray:
        return np.random.default_rng([seed, *history]).normal(0, 0.6, n_vocab)

    def step(ids: np.ndarray) -> np.ndarray:
        return np.array([logits(*row) for row in ids.tolist()])

    return step


def naive(policy, reference, n_vocab: int, length: int, excluded=()) -> tuple[float, float]:
    """(log Z, H) by a loop over all strings, one token at a time."""
    ratios = []
    for string in itertools.product([v for v in range(n_vocab) if v not in excluded], repeat=length):
        total = 0.0
        for t, token in enumerate(string):
            history = np.array([string[:t]], dtype=np.int64).reshape(1, t)
            total += log_softmax(policy(history)[0])[token] - log_softmax(reference(history)[0])[token]
        ratios.append(total)
    log_q = log_softmax(ratios)
    return float(logsumexp(ratios)), float(-(np.exp(log_q) * log_q).sum())


def within(found, truth: float, errors: float = 3.0) -> bool:
    return found.value is not None and abs(found.value - truth) < errors * found.standard_error


# ---- candidates


def test_equal_log_ratios_are_no_repeats_and_give_the_largest_entropy():
    found = candidate_information(np.zeros(7))
    assert found.entropy == pytest.approx(math.log(7), rel=1e-14)
    assert (found.normalized_entropy, found.ess) == (pytest.approx(1.0), pytest.approx(7.0))
    assert (found.information, found.n_repeats) == (pytest.approx(0.0, abs=1e-14), 0)


@pytest.mark.parametrize(
    ("log_ratios", "keys"),
    [([0.0, LN3], None), ([0.0, LN3], "ab"), ([0.0, LN3, 0.0], "aba"), ([0.0, 0.0, 0.0, LN3], "aaab")],
)
def test_two_candidates_one_tripled_and_any_number_of_repeats(log_ratios, keys):
    found = candidate_information(np.array(log_ratios), keys=keys and list(keys))
    assert found.normalized_entropy == pytest.approx(0.8112781, abs=5e-8)
    assert found.ess == pytest.approx(1.6, rel=1e-14)
    assert (found.argmax, found.n_candidates) == (log_ratios.index(LN3), 2)


@pytest.mark.parametrize(("values", "keys"), [([2.0], None), ([2.0, 2.0, 2.0], ["a", "a", "a"])])
def test_one_candidate_has_no_entropy_and_says_so(values, keys):
    found = candidate_information(np.array(values), keys=keys)
    assert (found.entropy, found.normalized_entropy, found.ess, found.information) == (None, None, None, None)
    assert found.reason == "one candidate"
    assert found.summary() == "No candidate-set information: one candidate."


def test_lengths_divide_the_log_ratios_and_the_result_says_so():
    whole = candidate_information(np.array([4.0, 9.0]))
    per_token = candidate_information(np.array([4.0, 9.0]), lengths=np.array([4, 9]))
    assert whole.measure == "log-ratio of the whole response"
    assert per_token.measure == "log-ratio per token"
    assert per_token.normalized_entropy == pytest.approx(1.0)
    assert whole.argmax == 1


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=12), st.floats(-50, 50), st.randoms())
@settings(max_examples=50, deadline=None)
def test_order_and_a_common_constant_do_not_matter_to_candidates(values, shift, random):
    moved = random.sample(values, len(values))
    first, second = (candidate_information(np.array(v)) for v in (values, [v + shift for v in moved]))
    assert second.entropy == pytest.approx(first.entropy, abs=1e-9)
    assert second.ess == pytest.approx(first.ess, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ([], {}, "K >= 1"),
        ([0.0, math.nan], {}, "finite log-ratios"),
        ([0.0, math.inf], {}, "finite log-ratios"),
        ([0.0, 1.0], {"lengths": np.array([3, 0])}, "at least 1 token"),
        ([0.0, 1.0], {"lengths": np.array([3])}, "2 lengths"),
        ([0.0, 1.0], {"keys": ["a"]}, "a key for each"),
        ([0.0, 1.0], {"keys": ["a", "a"]}, "candidates 0 and 1 have one key, 'a'"),
        ([1.0, 1.0], {"keys": ["a", "a"], "lengths": np.array([3, 4])}, "lengths of their own"),
    ],
)
def test_candidates_that_make_no_set_are_refused(values, options, words):
    with pytest.raises(ValueError, match=words):
        candidate_information(np.array(values), **options)


def test_tensors_and_lists_are_read_as_arrays_are():
    assert candidate_information(torch.tensor([0.0, LN3], dtype=torch.float64)).ess == pytest.approx(1.6)
    assert candidate_information([0.0, LN3]).ess == pytest.approx(1.6)


# ---- weighted samples: exact where every string stands as often as its proposal says


def population(proposal: str = "local"):
    """Weights and log-ratios of 20 strings of the two-token chain, in the local proposal's own proportions."""
    strings = TWO.repeat([1, 9, 5, 5], axis=0)
    return score_strings(*CHAIN.steps, strings, proposal=proposal)


def test_the_two_token_chain_is_exact():
    found = weighted_information(population().log_weights, population().log_ratios)
    assert math.exp(found.log_normalizer) == pytest.approx(68 / 9, rel=1e-12)
    assert found.value == pytest.approx(1.0004335288, abs=1e-10)


def test_the_local_proposal_of_the_two_token_chain():
    each = score_strings(*CHAIN.steps, TWO, proposal="local")
    assert np.exp(each.log_ratios) == pytest.approx([5 / 9, 5, 1, 1], rel=1e-12)
    log_local = each.log_ratios - each.log_weights
    assert np.exp(log_local) == pytest.approx([0.05, 0.45, 0.25, 0.25], rel=1e-12)
    q_local = np.exp(log_local)
    assert -(q_local @ log_local) == pytest.approx(1.2022622575, abs=1e-10)
    assert math.log(68 / 9) - q_local @ each.log_weights == pytest.approx(0.1251631430, abs=1e-10)  # KL(loc || seq)


@pytest.mark.parametrize(
    ("proposal", "length", "share"),
    [("reference", 2, 0.112223), ("reference", 10, 6.53e-5), ("policy", 2, 0.522604), ("policy", 10, 0.106220)],
)
def test_effective_share_of_samples_from_one_of_the_models(proposal, length, share):
    each = score_strings(*CHAIN.steps, every_string(2, length), proposal=proposal)
    log_p = each.log_ratios - each.log_weights
    assert np.exp(log_p).sum() == pytest.approx(1.0)
    large = math.exp(2 * logsumexp(log_p + each.log_weights) - logsumexp(log_p + 2 * each.log_weights))
    assert large == pytest.approx(share, rel=2e-3 if share < 1e-3 else 1e-5)  # three digits are given of the smallest


def test_drawn_samples_have_the_effective_share_of_the_population():
    found = local_information(*CHAIN.steps, length=10, samples=20_000, proposal="policy", min_ess_ratio=0.0)
    assert found.ess / 20_000 == pytest.approx(0.106220, rel=0.1)


def test_without_a_change_all_weights_are_equal_and_nothing_is_uncertain():
    step = same(6)
    found = local_information(step, step, length=4, samples=64)
    assert found.value == pytest.approx(4 * math.log(6), rel=1e-13)
    assert found.value == pytest.approx(found.log_support, rel=1e-13)
    assert (found.ess, found.pareto_k, found.bias) == (64.0, None, 0.0)
    assert found.standard_error < 1e-12


def test_without_a_change_and_an_end_there_is_a_token_less():
    step = same(6)
    for found in (
        local_information(step, step, length=4, samples=64, excluded_ids=(2,)),
        smc_information(step, step, length=4, samples=64, excluded_ids=(2,)),
    ):
        assert found.value == pytest.approx(4 * math.log(5), rel=1e-13)
        assert found.information == pytest.approx(0.0, abs=1e-12)
        assert found.standard_error < 1e-12


def test_independent_tokens_have_t_times_the_entropy_of_one():
    policy, reference = same(7), lambda ids: np.zeros((len(ids), 7))
    d = log_softmax(policy(np.zeros((1, 0)))[0]) + math.log(7)
    log_q = log_softmax(d)
    truth, log_z = -12 * (np.exp(log_q) @ log_q), 12 * logsumexp(d)
    found = local_information(policy, reference, length=12, samples=400)
    assert found.log_normalizer == pytest.approx(log_z, rel=1e-12)
    assert found.ess == pytest.approx(400, rel=1e-12)
    assert found.pareto_k is None  # weights that differ by rounding have no tail
    assert within(found, truth)


def test_the_estimate_is_log_z_minus_the_weighted_log_ratio_with_its_influence_error():
    random = np.random.default_rng(1)
    log_w, ratio = random.normal(0, 0.8, 500), random.normal(2, 1, 500)
    found = weighted_information(log_w, ratio)

    def entropy(keep: np.ndarray) -> float:
        w = np.exp(log_w[keep])
        return math.log(w.mean()) - float(w @ ratio[keep] / w.sum())

    rows = np.arange(500)
    assert found.value == pytest.approx(entropy(rows), rel=1e-12)
    left_out = np.array([entropy(rows[rows != i]) for i in rows])
    jackknife = math.sqrt(499 / 500 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.standard_error == pytest.approx(jackknife, rel=0.02)  # both are first order in 1 / K
    w = np.exp(log_w) / np.exp(log_w).sum()
    assert found.ess == pytest.approx(1 / (w**2).sum(), rel=1e-12)
    assert found.bias == pytest.approx(-((w**2).sum() - 1 / 500) / 2, rel=1e-12)


@given(st.integers(0, 2**31), st.floats(-300, 300), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_order_scale_and_repetition_of_samples(seed, shift, times):
    random, everything = np.random.default_rng(seed), {"min_ess": 0, "min_ess_ratio": 0}
    log_w, ratio = random.normal(0, 0.5, 20), random.normal(0, 1, 20)  # repeated, they stay under the 100 of k-hat
    found, mixed = weighted_information(log_w, ratio, **everything), random.permutation(20)
    moved = weighted_information(log_w[mixed] + shift, ratio[mixed], **everything)
    assert moved.value == pytest.approx(found.value + shift, abs=1e-9)  # a common factor is one of Z
    assert (moved.ess, moved.standard_error) == (pytest.approx(found.ess), pytest.approx(found.standard_error))
    again = weighted_information(np.tile(log_w, times), np.tile(ratio, times), **everything)
    assert again.ess == pytest.approx(times * found.ess)
    assert again.standard_error == pytest.approx(found.standard_error / math.sqrt(times))


# ---- the gate


def alone(n_equal: int, samples: int):
    """So many equal weights, the rest zero."""
    log_w = np.full(samples, -math.inf)
    log_w[:n_equal] = 0.0
    return weighted_information(log_w, np.where(np.isfinite(log_w), 0.0, -math.inf))


def test_the_gate_passes_at_its_bounds_and_refuses_below():
    assert alone(10, 200).value == pytest.approx(math.log(10 / 200))
    assert (alone(9, 150).value, alone(9, 150).reason) == (None, "weights collapsed: ESS 9.0 of 150")
    assert alone(10, 201).reason == "weights collapsed: ESS 10.0 of 201"  # .0498 of them


@pytest.mark.parametrize("proposal", ["policy", "reference"])
def test_a_collapsed_value_is_the_surprise_of_one_sample(proposal):
    random = np.random.default_rng(3)
    policy, reference = random.normal(-90, 5, 32), random.normal(-90, 5, 32)
    policy[7], reference[7] = (-100.0, -400.0) if proposal == "policy" else (-80.0, -400.0)
    weights = -reference if proposal == "policy" else policy - 2 * reference
    found = weighted_information(weights, policy - reference)
    assert found.value is None
    assert found.standard_error is None
    assert found.reason == "weights collapsed: ESS 1.0 of 32"
    surprise = -policy[7] if proposal == "policy" else -reference[7]
    assert found.raw_unreliable == pytest.approx(surprise - math.log(32), abs=1e-8)


def test_a_heavy_tail_is_refused_where_the_effective_sample_size_is_not_small():
    log_w = np.log(6 + genpareto.ppf((np.arange(4000) + 0.5) / 4000, 0.85))
    found = weighted_information(log_w, np.zeros(4000))
    assert found.ess / 4000 > 0.05
    assert found.value is None
    assert found.reason.startswith("weights have a heavy tail: Pareto k-hat 0.8")
    assert found.raw_unreliable is not None


def test_zero_weights_all_over_leave_nothing_to_report():
    found = weighted_information(np.full(150, -math.inf), np.full(150, -math.inf))
    assert (found.value, found.ess, found.log_normalizer, found.raw_unreliable) == (None, 0.0, None, None)
    assert "says none of the samples" in found.reason


@pytest.mark.parametrize(
    ("log_w", "ratio", "words"),
    [
        ([], [], "K >= 1"),
        ([0.0, 0.0], [0.0], r"\(2,\) and \(1,\)"),
        ([math.nan, 0.0], [0.0, 0.0], "NaN"),
        ([math.inf, 0.0], [0.0, 0.0], r"\+inf"),
        ([0.0, 0.0], [0.0, -math.inf], "weight 0"),
    ],
)
def test_weights_that_make_no_sum_are_refused(log_w, ratio, words):
    with pytest.raises(ValueError, match=words):
        weighted_information(np.array(log_w), np.array(ratio))


def test_an_interval_is_normal_for_samples_and_students_for_runs():
    drawn = weighted_information(np.zeros(100), np.random.default_rng(0).normal(size=100))
    low, high = drawn.interval()
    assert (high - low) / 2 == pytest.approx(1.959964 * drawn.standard_error, rel=1e-6)
    runs = smc_information(*CHAIN.steps, length=6, samples=50)
    low, high = runs.interval()
    assert (high - low) / 2 == pytest.approx(2.364624 * runs.standard_error, rel=1e-6)  # 7 degrees of freedom
    assert alone(9, 150).interval() is None


# ---- the shape of the tail


@pytest.mark.parametrize("shape", [-0.4, 0.0, 0.3, 0.7, 1.2])
def test_the_shape_of_a_generalised_pareto_tail_is_found(shape):
    random = np.random.default_rng(0)
    found = [generalized_pareto_shape(genpareto.rvs(shape, size=400, random_state=random)) for _ in range(60)]
    assert np.mean(found) == pytest.approx((400 * shape + 5) / 410, abs=0.04)  # drawn towards 1/2; SD of one is .08


def test_the_shape_does_not_depend_on_the_scale_of_the_weights():
    log_w = np.random.default_rng(0).normal(0, 1.5, 500)
    assert pareto_shape(log_w + 800) == pytest.approx(pareto_shape(log_w), rel=1e-9)
    assert pareto_shape(log_w[::-1].copy()) == pareto_shape(log_w)


def test_equal_few_or_tied_weights_have_no_tail():
    assert pareto_shape(np.zeros(1000)) is None
    assert pareto_shape(1e-13 * np.random.default_rng(0).normal(size=1000)) is None
    assert pareto_shape(np.random.default_rng(0).normal(size=20)) is None
    assert pareto_shape(np.full(500, -math.inf)) is None
    assert pareto_shape(np.repeat([0.0, 5.0], [400, 4])) is None


# ---- sampling


@pytest.mark.parametrize(
    ("n_vocab", "length", "truth"), [(5, 6, 9.3722921468), (200, 20, 103.4369825781), (200, 100, 516.6585371116)]
)
def test_bigram_entropies_are_exact_and_sampled_within_three_errors(n_vocab, length, truth):
    models = bigram(n_vocab)
    assert models.entropy(length) == pytest.approx(truth, abs=1e-9)
    found = sequence_information(*models.steps, length=length, samples=100)
    assert ("Monte Carlo" in found.method) == (length > 30)
    assert found.ess >= 10
    assert within(found, truth)
    assert found.log_support == pytest.approx(length * math.log(n_vocab))


@pytest.mark.parametrize("proposal", ["policy", "reference"])
def test_samples_of_a_model_collapse_at_a_hundred_tokens(proposal):
    for samples in (32, 200):
        found = local_information(*bigram(200).steps, length=100, samples=samples, proposal=proposal)
        assert found.value is None
        assert found.reason.startswith("weights collapsed: ESS ")
        assert 340 < found.raw_unreliable < 430  # over 100 nats short of the entropy


@pytest.mark.parametrize(
    ("length", "entropy", "local"),
    [(3, 1.7537029, 1.7849902), (10, 5.6111212, 5.7108409), (100, 56.3321836, 56.2634617)],
)
def test_the_chain_of_two_tokens_at_any_length(length, entropy, local):
    assert CHAIN.entropy(length) == pytest.approx(entropy, abs=5e-8)
    assert within(sequence_information(*CHAIN.steps, length=length, samples=200), entropy)
    drawn = draw_strings(*CHAIN.steps, length=length, samples=4000)
    surprise = drawn.log_weights - drawn.log_ratios  # -log q_loc
    assert abs(surprise.mean() - local) < 3 * surprise.std() / math.sqrt(4000)


@pytest.mark.parametrize("excluded", [(), (1,), (0, 3)])
def test_models_that_remember_everything_agree_with_a_loop_over_all_strings(excluded):
    policy, reference = remembering(1, 4), remembering(2, 4)
    log_z, entropy = naive(policy, reference, 4, 3, excluded)
    allowed = np.array([s for s in every_string(4, 3) if not set(s) & set(excluded)])
    each = score_strings(policy, reference, allowed, proposal="local", excluded_ids=excluded)
    assert logsumexp(each.log_ratios) == pytest.approx(log_z, abs=1e-10)
    assert logsumexp(each.log_ratios - each.log_weights) == pytest.approx(0.0, abs=1e-12)  # q_loc sums to one
    assert each.log_support == pytest.approx(3 * math.log(4 - len(excluded)))
    options = {"length": 3, "samples": 300, "excluded_ids": excluded}
    assert within(local_information(policy, reference, **options), entropy)
    assert within(smc_information(policy, reference, **options), entropy)


@pytest.mark.parametrize("proposal", ["local", "policy", "reference"])
def test_strings_are_drawn_as_often_as_their_proposal_says(proposal):
    policy, reference = remembering(1, 3), remembering(2, 3)
    options = {"proposal": proposal, "temperature": 1.0 if proposal == "local" else 1.7, "excluded_ids": (0,)}
    drawn = draw_strings(policy, reference, length=2, samples=4000, **options)
    again = score_strings(policy, reference, drawn.tokens, **options)
    for name in ("log_weights", "log_ratios", "policy"):
        assert getattr(again, name) == pytest.approx(getattr(drawn, name), abs=1e-12)
    for string in every_string(3, 2):
        share = (drawn.tokens == string).all(1).mean()
        if 0 in string:
            assert share == 0
            continue
        one = score_strings(policy, reference, string[None], **options)
        expected = math.exp(one.log_ratios[0] - one.log_weights[0])
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / 4000))


def test_weights_are_those_of_the_method_page_where_nothing_is_excluded():
    policy, reference = remembering(1, 3), remembering(2, 3)
    each = {p: score_strings(policy, reference, every_string(3, 2), proposal=p) for p in ("policy", "reference")}
    log_r = each["policy"].policy - each["policy"].log_ratios
    assert each["policy"].log_weights == pytest.approx(-log_r, abs=1e-12)
    assert each["reference"].log_weights == pytest.approx(each["reference"].policy - 2 * log_r, abs=1e-12)


def test_particles_estimate_the_normaliser_without_bias():
    log_z = naive(*CHAIN.steps, 2, 8)[0]
    runs = [run_particles(*CHAIN.steps, length=8, samples=12, seed=seed) for seed in range(150)]
    assert min(run.least_ess for run in runs) < 6  # they did resample
    z = np.exp([run.log_normalizer - log_z for run in runs])
    assert abs(z.mean() - 1) < 4 * z.std() / math.sqrt(150)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda w: sum(w) > 0.1), st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_every_particle_goes_on_as_often_as_its_weight_says(weights, level):
    w = np.array(weights) / sum(weights)
    counts = np.bincount(systematic_ancestors(w, level), minlength=len(w))
    assert counts.sum() == len(w)
    assert (np.abs(counts - len(w) * w) < 1 + 1e-9).all()
    assert systematic_ancestors(np.full(len(w), 1 / len(w)), 0.5).tolist() == list(range(len(w)))


def test_particles_whose_weights_collapse_in_one_step_are_refused():
    jump = np.zeros((50, 50))
    jump[0] = np.where(np.arange(50) == 0, 12.0, 0.0)  # after token 0 the reference is sure, the policy is not
    found = smc_information(*Bigram(np.zeros((50, 50)), 4 * jump).steps, length=2, samples=200)
    assert found.value is None
    assert found.reason.startswith("weights collapsed: ESS ")
    assert found.raw_unreliable is not None


def test_the_error_of_particles_is_that_of_a_mean_of_independent_runs():
    found = smc_information(*CHAIN.steps, length=6, samples=40, runs=10, seed=3)
    each = []
    for run in range(10):
        one = run_particles(*CHAIN.steps, length=6, samples=40, seed=[3, run])
        weights = np.exp(one.strings.log_weights)
        each.append(one.log_normalizer - weights @ one.strings.log_ratios / weights.sum())
    assert found.value == pytest.approx(np.mean(each), abs=1e-12)
    assert found.standard_error == pytest.approx(np.std(each, ddof=1) / math.sqrt(10), rel=1e-9)


def test_few_runs_have_a_value_but_no_error():
    found = smc_information(*CHAIN.steps, length=6, samples=100, runs=7)
    assert found.value is not None
    assert (found.standard_error, found.reason) == (None, "no standard error: 7 runs, 8 needed")
    assert smc_information(*CHAIN.steps, length=6, samples=100, runs=1).bias is None


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    for measure in (local_information, smc_information):
        first, again, other = (measure(*CHAIN.steps, length=6, samples=50, seed=seed) for seed in (4, 4, 5))
        assert first == again
        assert first.value != other.value


def test_torch_steps_and_small_blocks_change_nothing(monkeypatch):
    policy, reference = bigram(50).steps
    plain = sequence_information(policy, reference, length=6, samples=100)
    monkeypatch.setattr(next_token_laws, "BLOCK_ENTRIES", 350)  # 7 rows of 100
    as_tensors = [lambda ids, step=step: torch.from_numpy(step(ids)) for step in (policy, reference)]
    assert sequence_information(*as_tensors, length=6, samples=100) == plain


def test_tokens_that_nobody_says_leave_the_count_and_those_only_the_policy_excludes_do_not():
    policy, reference = np.zeros((1, 5)), np.zeros((1, 5))
    policy[0, 3] = reference[0, 3] = policy[0, 1] = -math.inf
    steps = [lambda ids, z=z: np.repeat(z, len(ids), axis=0) for z in (policy, reference)]
    found = local_information(*steps, length=2, samples=100)
    assert found.log_support == pytest.approx(2 * math.log(4))
    assert found.value == pytest.approx(2 * math.log(3))
    assert set(draw_strings(*steps, length=2, samples=100).tokens.ravel()) == {0, 2, 4}


@pytest.mark.parametrize(
    ("policy", "reference", "words"),
    [
        ([0.0, math.nan, 0.0], [0.0] * 3, "NaN"),
        ([0.0, math.inf, 0.0], [0.0] * 3, "NaN"),
        ([0.0] * 3, [0.0, -math.inf, 0.0], "their ratio is infinite"),
        ([-math.inf, -math.inf, 0.0], [0.0] * 3, "no id is left"),
    ],
)
def test_logits_without_a_ratio_are_refused(policy, reference, words):
    steps = [lambda ids, z=z: np.tile(z, (len(ids), 1)) for z in (policy, reference)]
    with pytest.raises(NoRatioError, match=words):
        local_information(*steps, length=1, samples=5, excluded_ids=(2,))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 0}, "length=0"),
        ({"samples": 0}, "samples=0"),
        ({"proposal": "uniform"}, "expected one of local, policy, reference"),
        ({"temperature": 0.5}, "and 1 for local"),
        ({"temperature": 0.0, "proposal": "policy"}, "expected > 0"),
        ({"excluded_ids": (2,)}, "excluded id 2 is not among the 2 ids"),
    ],
)
def test_settings_that_make_no_sample_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        local_information(*CHAIN.steps, **{"length": 3, "samples": 20} | options)


def test_steps_of_other_shapes_are_refused_with_both():
    with pytest.raises(ValueError, match=r"3 histories, got \(3, 2\) of the policy and \(3, 5\) of the reference"):
        local_information(CHAIN.steps[0], same(5), length=2, samples=3)
    with pytest.raises(ValueError, match="method='hmc'"):
        sequence_information(*CHAIN.steps, method="hmc")
    with pytest.raises(ValueError, match="runs=0"):
        smc_information(*CHAIN.steps, length=2, samples=5, runs=0)
    with pytest.raises(ValueError, match="one of the excluded ids"):
        score_strings(*CHAIN.steps, TWO, proposal="local", excluded_ids=(1,))


def test_intervals_hold_the_truth_as_often_as_they_should():
    models = bigram(30)
    share, published = coverage(repeated(models, 60, length=8, samples=100), models.entropy(8))
    assert published == 60
    assert share > 0.84  # 95 % of 60 is 57; fewer than 51 has a chance of about one in a thousand
