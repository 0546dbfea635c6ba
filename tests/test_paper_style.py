"""Samples of policy or reference: what is refused, temperature, and what raw values go with across prompts."""

import itertools
import math

import numpy as np
import pytest

from alignscope.diagnose.paper_style import Sampling, paper_style_information, raw_confounds
from alignscope.diagnose.sequence_sampling import draw_strings

LOGITS = np.random.default_rng(0).normal(0, 0.7, (2, 4))


def step(which: int):
    return lambda ids: np.tile(LOGITS[which], (len(ids), 1))


def log_probs() -> np.ndarray:
    """Of the four tokens, policy and reference."""
    return LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))


def truth(length: int) -> float:
    ratio = log_probs()[0] - log_probs()[1]
    every = np.array([sum(r) for r in itertools.product(ratio, repeat=length)])
    log_q = every - np.log(np.exp(every).sum())
    return float(-(np.exp(log_q) * log_q).sum())


def drawn(proposal: str, temperature: float = 1.0, samples: int = 2000):
    """(policy, reference, proposal at that temperature) of strings of three tokens."""
    strings = draw_strings(
        step(0), step(1), length=3, samples=samples, proposal=proposal, temperature=temperature, seed=1
    )
    reference = strings.policy - strings.log_ratios
    return strings.policy, reference, strings.log_ratios - strings.log_weights


@pytest.mark.parametrize("proposal", ["policy", "reference"])
def test_short_samples_of_either_model_give_the_entropy(proposal):
    policy, reference, _ = drawn(proposal)
    found = paper_style_information(policy, reference, np.full(2000, 3), proposal=proposal, sampling=Sampling())
    assert abs(found.value - truth(3)) < 3 * found.standard_error
    assert (found.length, found.mean_surprise) == (3, pytest.approx(-policy.mean()))


def test_samples_at_a_temperature_need_scores_at_that_temperature():
    policy, reference, tempered = drawn("reference", 1.6)
    lengths, hot = np.full(2000, 3), Sampling(temperature=1.6)
    found = paper_style_information(policy, reference, lengths, sampling=hot, proposal_log_probs=tempered)
    assert abs(found.value - truth(3)) < 3 * found.standard_error
    refused = paper_style_information(policy, reference, lengths, sampling=hot)
    assert refused.value is None
    assert refused.raw_unreliable is None  # its weights are unknown
    assert refused.reason == "samples at temperature 1.6: no scores of the proposal at that temperature"


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        (None, "unknown sampling"),
        (Sampling(top_p=0.9), "support is cut"),
        (Sampling(top_k=50), "support is cut"),
        (Sampling(min_p=0.05), "support is cut"),
        (Sampling(temperature=0.0), "support is cut"),
        (Sampling(temperature=0.7, top_p=0.9), "support is cut"),
    ],
)
def test_sampling_whose_weights_are_unknown_is_refused(sampling, reason):
    policy, reference, proposal = drawn("reference", samples=50)
    found = paper_style_information(
        policy, reference, np.full(50, 3), sampling=sampling, proposal_log_probs=proposal
    )
    assert (found.value, found.raw_unreliable, found.ess, found.reason) == (None, None, None, reason)


def test_free_lengths_have_no_normaliser_and_keep_the_raw_value():
    policy, reference, _ = drawn("reference")
    options = {"sampling": Sampling()}
    lengths = np.full(2000, 3)
    equal = paper_style_information(policy, reference, lengths, **options)
    lengths[0] = 4
    found = paper_style_information(policy, reference, lengths, **options)
    assert (found.value, found.standard_error, found.length) == (None, None, None)
    assert found.reason == "no normaliser over free lengths"
    assert found.raw_unreliable == equal.value


def test_long_samples_collapse():
    random = np.random.default_rng(0)
    reference = random.normal(-300, 25, 32)
    policy = reference + random.normal(0, 5, 32)
    found = paper_style_information(policy, reference, np.full(32, 100), sampling=Sampling())
    assert found.value is None
    assert found.reason.startswith("weights collapsed: ESS 1.")
    assert found.raw_unreliable is not None


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 2.0}]
)
def test_sampling_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="expected, got Sampling"):
        Sampling(**options)


def test_other_proposals_and_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="expected reference or policy"):
        paper_style_information(np.zeros(3), np.zeros(3), np.ones(3), proposal="local", sampling=Sampling())
    with pytest.raises(ValueError, match="of one K"):
        paper_style_information(np.zeros(3), np.zeros(2), np.ones(3), sampling=Sampling())


# ---- across prompts


def test_raw_values_that_follow_surprise_alone_are_told():
    random = np.random.default_rng(2)
    surprise, lengths = random.normal(100, 20, 60), random.integers(5, 50, 60).astype(float)
    raw = surprise - math.log(32)
    raw[3] = math.nan
    found = raw_confounds(raw, lengths, surprise, [f"p{i}" for i in range(60)])
    assert found["raw_surprise_spearman"].value == pytest.approx(1.0)
    assert found["raw_surprise_spearman"].n == 59
    low, high = (getattr(found["raw_length_spearman"], name) for name in ("low", "high"))
    assert low < 0 < high
    assert found["raw_length_spearman"].reconstructed


def test_one_length_for_all_correlates_with_nothing_and_says_so():
    raw = np.random.default_rng(0).normal(size=30)
    found = raw_confounds(raw, np.full(30, 20.0), raw, np.arange(30).astype(str))
    assert found["raw_length_spearman"].value is None
    assert found["raw_length_spearman"].reason == "the raw entropy or the mean length is the same for all 30 prompts"


def test_without_raw_values_there_is_a_reason():
    found = raw_confounds(np.full(5, math.nan), np.ones(5), np.ones(5), list("abcde"))
    assert {one.reason for one in found.values()} == {"no prompt has a raw sequence entropy"}
