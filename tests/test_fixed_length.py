"""Sequence information of real models: the organism's 256 responses enumerated, caches, adapters, and bad prompts."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from lora_files import make_adapter
from scipy.special import log_softmax, logsumexp
from transformers import AutoModelForCausalLM

import alignscope
import zoo
from alignscope import InputError
from alignscope.diagnose.fixed_length import fixed_length_information
from alignscope.diagnose.sequence_information import candidate_information
from alignscope.diagnose.sequence_sampling import score_strings
from alignscope.organisms.enumeration import enumerate_responses, node_path
from alignscope.organisms.population import entropy
from alignscope.organisms.tokenizer import EOS, ID, build_tokenizer, prompt_ids, response_ids
from alignscope.organisms.train import new_model
from alignscope.probes.kernels import token_information
from alignscope.probes.next_tokens import NextTokens, cache_problem, end_ids

SYMBOLS = [ID[f"s{i}"] for i in range(4)]
OTHERS = [i for i in range(32) if i not in SYMBOLS]  # left out, the strings of four tokens are the 256 responses
ASKED = [0, 77, 191]


def organism_model(which: str):
    """An untrained model of the organism; the policy is the reference with its weights moved."""
    model = new_model(0)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        if which == "policy":
            generator = torch.Generator().manual_seed(1)
            for weight in model.parameters():
                weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return model.eval()


@cache
def subject(which: str):
    return alignscope.wrap(organism_model(which), build_tokenizer())


@cache
def enumerated(which: str):
    return enumerate_responses(organism_model(which), prompt_ids()[ASKED])


def log_ratios_of_symbols() -> np.ndarray:
    """log policy - log reference of the four symbols of every response, without its end, [prompts, 256]."""
    totals = []
    for which in ("policy", "reference"):
        log_p = log_softmax(enumerated(which).node_logits, axis=-1)
        totals.append(log_p[:, node_path(), response_ids().numpy()][..., :4].sum(-1))
    return totals[0] - totals[1]


def prompts() -> list[list[int]]:
    return prompt_ids()[ASKED].tolist()


def measured(**options):
    settings = {"length": 4, "samples": 400, "excluded_ids": OTHERS}
    return fixed_length_information(subject("policy"), subject("reference"), prompts(), **settings | options)


# ---- the organism: everything can be enumerated


def test_strings_scored_token_by_token_are_the_enumerated_ones():
    for k, ids in enumerate(prompts()):
        steps = [NextTokens(subject(which), ids, vocab=32, cached=True) for which in ("policy", "reference")]
        each = score_strings(*steps, response_ids().numpy()[:, :4], proposal="local", excluded_ids=OTHERS)
        truth = log_ratios_of_symbols()[k]
        assert each.log_ratios == pytest.approx(truth, abs=1e-4)
        log_local = each.log_ratios - each.log_weights
        assert logsumexp(log_local) == pytest.approx(0.0, abs=1e-10)
        log_z = logsumexp(log_local + each.log_weights)
        q = np.exp(each.log_ratios - log_z)
        assert log_z - q @ each.log_ratios == pytest.approx(entropy(truth[None])[0], abs=1e-4)


@pytest.mark.parametrize("method", ["snis", "smc"])
def test_sampled_entropies_are_within_three_errors_of_the_enumerated_ones(method):
    found = measured(method=method, samples=400 if method == "snis" else 100)
    truth = entropy(log_ratios_of_symbols())
    assert (math.log(256) - truth > 0.05).all()  # something did change
    for one, expected in zip(found.found, truth, strict=True):
        assert abs(one.value - expected) < 3 * one.standard_error
        assert one.log_support == pytest.approx(math.log(256))


def test_candidates_that_are_all_responses_have_the_enumerated_entropy():
    ratio = enumerated("policy").log_probs - enumerated("reference").log_probs
    for row, expected in zip(ratio, entropy(ratio), strict=True):
        assert candidate_information(row).entropy == pytest.approx(expected, abs=1e-10)


def test_tokens_have_the_enumerated_entropy():
    policy, reference = (torch.from_numpy(enumerated(which).node_logits[0]) for which in ("policy", "reference"))
    expected = entropy((policy - reference).numpy())
    assert token_information(policy, reference).entropy.numpy() == pytest.approx(expected, abs=1e-10)


def test_a_model_beside_itself_has_changed_nothing():
    found = fixed_length_information(subject("policy"), subject("policy"), prompts(), length=6)
    for one in found.found:
        assert one.value == pytest.approx(6 * math.log(31), rel=1e-9)  # the end is left out
        assert one.information == pytest.approx(0.0, abs=1e-8)
    assert found.settings["excluded_ids"] == [EOS]


# ---- step functions


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3", "bloom", "qwen3_moe"])
def test_the_cache_gives_the_logits_of_a_plain_pass_in_any_order(name):
    model = zoo.model(name)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)  # as made, its tokens hardly look at each other
    one = alignscope.wrap(model)
    assert cache_problem(one, [5, 6, 7]) is None
    plain, cached = (NextTokens(one, [5, 6, 7], cached=kind) for kind in (False, True))
    random = np.random.default_rng(0)
    ids = np.zeros((6, 0), dtype=np.int64)
    for t in range(5):
        assert torch.allclose(plain(ids), cached(ids), atol=1e-4)
        ids = np.concatenate([ids, random.integers(0, 30, (6, 1))], axis=1)
        ids = ids[random.integers(0, 6, 6)] if t != 2 else random.integers(0, 30, ids.shape)  # resampled; then afresh
    assert torch.allclose(plain(ids[:, :1]), cached(ids[:, :1]), atol=1e-4)


@pytest.mark.parametrize("name", ["mamba", "rwkv"])
def test_models_without_such_a_cache_are_read_whole(name):
    one = alignscope.wrap(zoo.model(name))
    assert "keeps no cache" in cache_problem(one, [5, 6])


def test_a_cache_that_ignores_the_order_is_not_used(monkeypatch):
    one = alignscope.wrap(organism_model("policy"), build_tokenizer())
    continued = one.continued

    def forgetful(ids, past, length):
        logits, past = continued(ids, past, length)
        past.reorder_cache = lambda rows: past.batch_select_indices(rows.flip(0))
        return logits, past

    monkeypatch.setattr(one, "continued", forgetful)
    assert cache_problem(one, prompts()[0]).startswith("its cache moves logits by ")


def test_equal_histories_are_read_once(monkeypatch):
    one = alignscope.wrap(organism_model("policy"), build_tokenizer())
    sizes = []
    logits = one.logits
    monkeypatch.setattr(one, "logits", lambda ids, *rest: sizes.append(len(ids)) or logits(ids, *rest))
    step = NextTokens(one, prompts()[0], batch_tokens=12)
    assert len(step(np.zeros((9, 0), dtype=np.int64))) == 9
    assert sizes == [1]
    step(np.array([[1], [2], [1], [3]]))
    assert sizes == [1, 2, 1]  # two rows of six tokens a pass


def test_a_cache_too_large_is_left(monkeypatch):
    from alignscope.probes import next_tokens

    monkeypatch.setattr(next_tokens, "CACHED_TOKENS", 12)
    step = NextTokens(subject("policy"), prompts()[0], cached=True)
    plain = NextTokens(subject("policy"), prompts()[0])
    for ids in (np.zeros((3, 0)), np.array([[1], [2], [3]]), np.array([[1, 4], [2, 4], [3, 5]])):
        assert torch.allclose(step(ids.astype(np.int64)), plain(ids.astype(np.int64)), atol=1e-5)
    assert step._past is None


def test_ends_are_those_of_tokenizer_and_generation_settings():
    model = organism_model("policy")
    model.generation_config.eos_token_id = [EOS, 9]
    assert end_ids(alignscope.wrap(model, build_tokenizer())) == (EOS, 9)


# ---- two models


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft on transformers 5.23
def test_an_adapter_and_its_base_are_one_set_of_weights(tmp_path):
    base = tmp_path / "base"
    organism_model("reference").save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    folder = make_adapter(base, tmp_path / "adapter")
    with_adapter = alignscope.load(base, adapter=folder)
    found = fixed_length_information(with_adapter, with_adapter.without_adapter(), prompts(), length=3, samples=50)
    merged = make_merged(base, folder, tmp_path / "merged")
    apart = fixed_length_information(alignscope.load(merged), alignscope.load(base), prompts(), length=3, samples=50)
    for one, other in zip(found.found, apart.found, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4)
        assert one.information > 1e-3
    assert found.settings["reference_kind"] == "adapter-disabled"


def make_merged(base, adapter, out):
    import peft

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    model.merge_and_unload().save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    return out


def test_a_prompt_has_its_own_draws_whatever_stands_beside_it():
    every, seen = measured(samples=60), []
    alone = fixed_length_information(
        subject("policy"), subject("reference"), prompts()[1:2], length=4, samples=60, excluded_ids=OTHERS,
        progress=lambda *told: seen.append(told),
    )  # fmt: skip
    assert seen == [("fixed length", 1, 1)]
    assert alone.found[0].value == pytest.approx(every.found[1].value, abs=1e-5)  # another batch, another rounding
    assert measured(samples=60, batch_tokens=20).found[1].value == pytest.approx(every.found[1].value, abs=1e-5)


def test_prompts_do_not_share_their_draws():
    models = []
    for which in ("policy", "reference"):
        model = organism_model(which)
        with torch.no_grad():
            model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[1].clone()  # all histories look alike
        models.append(alignscope.wrap(model, build_tokenizer()))
    asked = [prompts()[0], prompts()[1], prompts()[0]]
    first, second, again = fixed_length_information(*models, asked, length=2, samples=50).found
    assert first == again
    assert abs(first.value - second.value) > 1e-3


def test_samples_of_the_reference_are_refused_at_length_and_keep_the_raw_value():
    found = measured(paper_style=True, length=20, excluded_ids=None)
    frame = found.to_frame()
    assert frame["value"].isna().all()
    assert frame["reason"].str.startswith("weights collapsed: ESS").all()
    assert frame["raw_unreliable"].notna().all()
    assert (frame["samples"] == 400).all()
    assert measured(paper_style=True, length=2, samples=None).settings["samples"] == 32
    assert found.settings["proposal"] == "reference"
    estimates = found.estimates(resamples=50)
    assert estimates["entropy"].value is None
    assert estimates["entropy"].reason.startswith("weights collapsed")
    assert estimates["raw_length_spearman"].reason.startswith("the raw entropy or the mean length is the same")
    assert estimates["raw_surprise_spearman"].value is not None
    assert found.summary().startswith("No sequence entropy for any of 3 prompts: weights collapsed")


def test_published_means_are_over_prompts_with_n():
    found = measured()
    estimates = found.estimates(resamples=50)
    values = [one.value for one in found.found]
    assert estimates["entropy"].value == pytest.approx(np.mean(values))
    assert estimates["normalized_entropy"].value == pytest.approx(np.mean(values) / math.log(256))
    assert estimates["information"].n == 3
    assert "3 of 3 prompts pass" in estimates["entropy"].label
    assert "raw_length_spearman" not in estimates
    assert found.summary().startswith("Of 3 prompts 3 have a sequence entropy")
    assert "improbable" in found.warnings[0]


def test_prompts_longer_than_the_models_read_are_set_aside_with_the_number():
    long = [prompts()[0], prompts()[0] * 6]
    found = fixed_length_information(subject("policy"), subject("reference"), long, length=4, samples=20)
    assert found.found[0].value is not None
    assert (found.found[1].value, found.found[1].ess) == (None, None)
    assert found.found[1].reason == "prompt and strings have 33 tokens, the models read 32"
    assert found.to_frame()["reason"][1] == found.found[1].reason


def test_logits_that_are_no_numbers_leave_a_null_row():
    broken = alignscope.wrap(organism_model("policy"), build_tokenizer())
    with torch.no_grad():
        broken.model.model.embed_tokens.weight[prompts()[2][1]] = math.nan
    found = fixed_length_information(
        broken, subject("reference"), prompts(), length=2, samples=20, excluded_ids=OTHERS
    )
    assert found.found[2].value is None
    assert found.found[2].reason.startswith("a step gave NaN")
    assert found.found[0].value is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proposal": "uniform"}, "expected local, policy or reference"),
        ({"method": "hmc"}, "auto, snis or smc"),
        ({"length": 0}, "length=0"),
        ({"prompts": ["a"]}, "3 prompts and 1 names"),
        ({"proposal": "policy", "method": "smc"}, "particles follow the local proposal"),
    ],
)
def test_settings_that_make_no_measurement_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        measured(**options)


def test_a_reference_and_a_token_of_the_prompt_are_needed():
    with pytest.raises(InputError, match="needs a reference"):
        fixed_length_information(subject("policy"), None, prompts())
    with pytest.raises(InputError, match="0 prompts"):
        fixed_length_information(subject("policy"), subject("reference"), [])
    with pytest.raises(InputError, match="holds no token"):
        fixed_length_information(subject("policy"), subject("reference"), [[]])
