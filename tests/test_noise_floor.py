"""The noise floor: against every pair scored in both precisions, and the reasons why there is none."""

import copy
import json

import numpy as np
import pytest
import torch
from test_shared_prefix import Forwards, rows, tiny
from tiny_tokenizer import PIECES, tiny_tokenizer

import alignscope
from alignscope import score_pairs
from alignscope.probes.noise_floor import RESCORED, float32_copy, no_float32_copy

CLOSE = 1e-5  # nats a pair: float32 in other batches


def rounded(seed: int = 0, dtype: torch.dtype = torch.bfloat16):
    return alignscope.wrap(tiny(seed).model.to(dtype), tiny_tokenizer())


def twins(policy) -> list[dict]:
    """5 pairs that tie in any precision: the model cannot tell u from v."""
    embedding = policy.model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[PIECES["u"]] = embedding[PIECES["v"]]
    return [{"prompt": f"t{i}", "chosen": "u", "rejected": "v"} for i in range(5)]


def margins(scores) -> np.ndarray:
    return scores["policy_chosen"] - scores["policy_rejected"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_the_95th_percentile_of_what_rounding_moves_a_margin_by(dtype):
    policy = rounded(dtype=dtype)
    some = [*rows(15), *twins(policy)]
    exact = alignscope.wrap(copy.deepcopy(policy.model).float(), tiny_tokenizer())
    scores = score_pairs(policy, None, some)
    both = margins(scores), margins(score_pairs(exact, None, some))
    floor = scores.settings["noise_floor"]
    assert floor["p95"] == pytest.approx(np.quantile(np.abs(both[0] - both[1]), 0.95), abs=CLOSE)
    assert floor["p95"] > 100 * CLOSE
    assert floor["n"] == 20
    assert floor["share_inside"] == np.mean(np.abs(both[0]) < floor["p95"]) >= 5 / 20
    assert scores.settings["noise_floor_reason"] is None
    json.dumps(scores.settings, allow_nan=False)


def test_32_pairs_are_drawn_and_always_the_same():
    policy = rounded()
    some = [*rows(55), *twins(policy)]
    first, second = (score_pairs(policy, None, some).settings["noise_floor"] for _ in range(2))
    assert first == second
    assert first["n"] == RESCORED == 32
    assert first["share_inside"] * 60 == pytest.approx(5)  # of all pairs, not of those drawn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_has_none_and_says_why(dtype):
    policy = rounded(dtype=dtype)
    with Forwards(policy) as forwards:
        scores = score_pairs(policy, None, rows(4))
    assert forwards.rows == 8
    assert scores.settings["noise_floor"] is None
    assert scores.settings["noise_floor_reason"] == f"computed in {str(dtype).removeprefix('torch.')}"


def test_a_file_in_bfloat16_loaded_as_float32_has_none(tmp_path):
    tiny(0).model.to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = alignscope.load(tmp_path)
    assert "bfloat16" in policy.facts["dtype_on_disk"]
    assert no_float32_copy(policy) == "computed in float32"
    assert no_float32_copy(alignscope.load(tmp_path, dtype="bfloat16")) is None


def test_the_copy_holds_the_same_numbers_and_leaves_the_model_alone():
    policy = rounded()
    made = float32_copy(policy)
    assert (made.dtype, policy.dtype) == ("float32", "bfloat16")
    for (name, own), copied in zip(policy.model.named_parameters(), made.model.parameters(), strict=True):
        assert own.dtype == torch.bfloat16, name
        assert torch.equal(own.float(), copied), name


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft on transformers 5.23
def test_an_adapter_is_in_the_copy_and_nothing_of_it_in_the_cache(tmp_path):
    """The copy has the fingerprint of its base: kept, its scores would be taken for those of the base."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    adapted = alignscope.wrap(get_peft_model(tiny(0).model, lora).eval().to(torch.bfloat16), tiny_tokenizer())
    scores = score_pairs(adapted, "adapter-disabled", rows(12), cache=tmp_path)
    base = score_pairs(adapted.without_adapter(), None, rows(12))
    floor = scores.settings["noise_floor"]["p95"]
    assert 0 < floor < np.quantile(np.abs(margins(scores) - margins(base)), 0.95) / 2
    assert len([*(tmp_path / "scores").iterdir()]) == 2  # policy and reference
    assert base.settings["noise_floor_reason"] == "no float32 copy is made of a model with its adapter switched off"


def test_pairs_without_a_finite_margin_are_not_drawn():
    from alignscope.probes.noise_floor import noise_floor

    assert noise_floor(rounded(), [], [float("nan"), 1.0])["noise_floor_reason"] == "no pair has a finite margin"
