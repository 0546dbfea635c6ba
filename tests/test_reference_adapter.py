"""`adapter:NAME`: the adapter that training began with, on the policy's own base, in place of the trained one."""

import json
import shutil
import threading
from pathlib import Path

import peft
import pytest
import torch
from lora_files import make_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignscope import InputError, score_pairs
from alignscope.diagnose.audit import audit
from alignscope.probes.loading import load, wrap
from alignscope.probes.policy import load_policy_and_reference
from report_samples import tiny_pairs

# peft asks transformers by a name that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.tensor([[1, 40, 200, 33, 7, 300]])
ROWS = tiny_pairs(12)
KINDS = {
    "same": ({}, {}),
    "other modules": ({"target_modules": ["q_proj"]}, {"target_modules": ["v_proj", "lm_head"]}),
    "other rank": ({"r": 2}, {"r": 8, "lora_alpha": 32}),
    "whole head in the policy": ({"modules_to_save": ["lm_head"]}, {}),
    "whole head in the reference": ({}, {"modules_to_save": ["lm_head"]}),
    "dora": ({"use_dora": True}, {"use_dora": True}),
}


def logits(subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.logits(IDS, torch.ones_like(IDS))


def folder_with_ref(base: Path, out: Path, policy: dict, reference: dict) -> Path:
    """An adapter folder as PEFT writes it: `default` on top, `ref` in a folder of its own."""
    make_adapter(base, out, seed=1, **policy)
    make_adapter(base, out / "ref", seed=2, **reference)
    return out


@pytest.fixture(scope="module")
def continued(zoo, tmp_path_factory) -> Path:
    return folder_with_ref(zoo["llama"], tmp_path_factory.mktemp("dpo") / "dpo", {}, {})


@pytest.fixture(scope="module")
def apart(zoo, continued):
    """Each adapter alone on a base of its own."""
    return {name: load(continued / name, base=zoo["llama"]) for name in (".", "ref")}


def live(zoo, continued: Path):
    base = AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, continued, is_trainable=True)
    model.load_adapter(str(continued / "ref"), "ref")
    return model


def state_of(model) -> list:
    """What a switch could leave behind: active adapters, layer by layer, switches, gradients, mode, weights."""
    layers = [
        (name, module.active_adapters, module.disable_adapters)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)
    ]
    tensors = [(name, p.requires_grad, float(p.detach().double().sum())) for name, p in model.named_parameters()]
    return [layers, tensors, model.active_adapter, model.active_adapters, model.training]


# ---- the very model that was loaded apart


@pytest.mark.parametrize("kind", KINDS)
def test_both_are_bit_equal_to_those_loaded_apart(zoo, tmp_path, kind):
    folder = folder_with_ref(zoo["llama"], tmp_path / "dpo", *KINDS[kind])
    policy, reference = load_policy_and_reference(folder, "adapter:ref", base=zoo["llama"])
    alone = {name: load(folder / name, base=zoo["llama"]) for name in (".", "ref")}
    for _ in range(2):  # in turns
        assert torch.equal(logits(reference), logits(alone["ref"]))
        assert torch.equal(logits(policy), logits(alone["."]))
    assert torch.equal(logits(policy.without_adapter()), logits(load(zoo["llama"])))
    assert not torch.allclose(logits(policy), logits(reference), atol=1e-3)
    assert policy.model is reference.model


@pytest.mark.parametrize("share_prefix", [False, True])
def test_scores_are_those_of_two_loads_to_the_bit(zoo, continued, apart, share_prefix):
    together = score_pairs(continued, "adapter:ref", ROWS, share_prefix=share_prefix)
    two = score_pairs(apart["."], apart["ref"], ROWS, share_prefix=share_prefix)
    for column in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"):
        assert (together[column] == two[column]).all()
    assert together.settings["reference_kind"] == "adapter:ref"
    assert two.settings["reference_kind"] == "separate"


def test_fingerprints_are_those_of_two_loads(zoo, continued, apart):
    policy, reference = load_policy_and_reference(continued, "adapter:ref")
    assert policy.fingerprint == apart["."].fingerprint
    assert reference.fingerprint == apart["ref"].fingerprint
    assert len({policy.fingerprint, reference.fingerprint, policy.without_adapter().fingerprint}) == 3


def test_one_cache_serves_all_states_and_mixes_none(zoo, continued, tmp_path):
    for reference in ("adapter:ref", "adapter-disabled", "adapter:ref"):
        cached, fresh = (score_pairs(continued, reference, ROWS, cache=cache) for cache in (tmp_path, None))
        assert (cached.log_ratios() == fresh.log_ratios()).all()
    model = live(zoo, continued)
    tokenizer = AutoTokenizer.from_pretrained(zoo["llama"])
    there = [score_pairs(wrap(model, tokenizer), "adapter:ref", ROWS, cache=tmp_path) for _ in range(2)]
    model.set_adapter("ref")
    with pytest.raises(InputError, match="adapter:ref: this is the active adapter"):
        score_pairs(wrap(model, tokenizer), "adapter:ref", ROWS)
    turned = score_pairs(wrap(model, tokenizer), "adapter:default", ROWS, cache=tmp_path)
    assert turned.settings["reference_kind"] == "adapter:default"
    assert (turned.log_ratios() == -there[0].log_ratios()).all()
    assert (there[0].log_ratios() == there[1].log_ratios()).all()


# ---- a live model


def test_a_live_model_scores_as_its_folder_and_is_left_as_it_was(zoo, continued):
    model = live(zoo, continued).train()
    before = state_of(model)
    subject = wrap(model, AutoTokenizer.from_pretrained(zoo["llama"]))
    reference = subject.with_adapter("ref")
    scores = score_pairs(subject, "adapter:ref", ROWS)
    assert state_of(model) == before
    folder = score_pairs(continued, "adapter:ref", ROWS)
    assert abs(scores.log_ratios() - folder.log_ratios()).max() < 1e-5
    assert scores.settings["reference_fingerprint"] == reference.fingerprint != subject.fingerprint
    given = score_pairs(subject, reference, ROWS)
    assert given.settings["reference_kind"] == "adapter:ref"


def test_the_policy_is_back_also_after_an_exception(zoo, continued):
    model = live(zoo, continued)
    subject = wrap(model)
    before, ours = state_of(model), logits(subject)

    def stop(layer, h, mask):
        assert model.active_adapters == ["ref"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subject.with_adapter("ref").trace(IDS, torch.ones_like(IDS), reduce=stop)
    assert state_of(model) == before
    assert torch.equal(logits(subject), ours)


def test_layers_with_unlike_active_adapters_get_their_own_back(zoo, continued):
    model = live(zoo, continued)
    odd = next(module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer))
    odd.set_adapter(["default", "ref"])
    before = state_of(model)
    logits(wrap(model).with_adapter("ref"))
    assert state_of(model) == before


def test_states_take_turns_also_from_threads(continued):
    policy, reference = load_policy_and_reference(continued, "adapter:ref")
    states = [(subject, logits(subject)) for subject in (policy, reference, policy.without_adapter())]
    wrong = []

    def repeat(subject, expected):
        wrong.extend(subject.name for _ in range(15) if not torch.equal(logits(subject), expected))

    threads = [threading.Thread(target=repeat, args=state) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_reference_adapter_also_generates(continued, apart):
    _, reference = load_policy_and_reference(continued, "adapter:ref")
    prompts = ["abc", "a", "hello there"]
    assert reference.generate(prompts, max_new_tokens=6) == apart["ref"].generate(prompts, max_new_tokens=6)


def test_a_live_reference_that_trains_on_gets_a_new_fingerprint(zoo, continued):
    model = live(zoo, continued)
    subject = wrap(model)
    reference = subject.with_adapter("ref")
    first, ours = reference.fingerprint, subject.fingerprint
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B.ref" in name).add_(0.5)
    assert reference.fingerprint != first
    assert subject.fingerprint == ours


# ---- what is refused


def test_an_adapter_that_is_not_there_is_refused_with_those_that_are(zoo, continued):
    with pytest.raises(InputError, match=r"adapter:sft: .*dpo holds no such adapter.*those in it are: ref"):
        score_pairs(continued, "adapter:sft", ROWS)
    with pytest.raises(InputError, match=r"adapter:sft: no such adapter on the model; those there are: default, ref"):
        score_pairs(wrap(live(zoo, continued), load(zoo["llama"]).tokenizer), "adapter:sft", ROWS)
    with pytest.raises(InputError, match=r"adapter:ref: not loaded with .*beside='ref'"):
        score_pairs(load(continued), "adapter:ref", ROWS)
    assert score_pairs(load(continued, beside="ref"), "adapter:ref", ROWS[:2]).settings["reference_kind"]


@pytest.mark.parametrize("reference", ["adapter:ref", "adapter-disabled"])
def test_a_policy_without_an_adapter_has_no_other_either(zoo, reference):
    with pytest.raises(InputError, match=f"--reference {reference}: the policy .* has no adapter"):
        score_pairs(zoo["llama"], reference, ROWS)
    with pytest.raises(InputError, match="no adapter on it"):
        load(zoo["llama"]).with_adapter("ref")
    with pytest.raises(InputError, match="not an adapter folder, so it keeps no adapter 'ref'"):
        load(zoo["llama"], beside="ref")


@pytest.mark.parametrize("reference", ["adapter:", "adapter:../dpo", "adapter:."])
def test_a_name_that_is_none_is_refused(continued, reference):
    with pytest.raises(InputError, match=r"--reference adapter:: name an adapter|holds no such adapter"):
        score_pairs(continued, reference, ROWS)


def test_an_adapter_merged_into_the_weights_is_refused_before_and_after(zoo, continued):
    model = live(zoo, continued)
    reference = wrap(model).with_adapter("ref")
    model.merge_adapter()
    before = state_of(model)
    with pytest.raises(InputError, match="adapter:ref: an adapter is merged"):
        logits(reference)
    with pytest.raises(InputError, match="adapter:ref: an adapter is merged"):
        wrap(model).with_adapter("ref")
    assert state_of(model) == before


def test_trained_biases_cannot_be_shared(zoo, tmp_path):
    """Qwen2 has biases on q, k, v: both adapters would run with those of one."""
    folder = folder_with_ref(zoo["qwen2"], tmp_path / "dpo", {"bias": "lora_only"}, {})
    with pytest.raises(InputError, match=r"bias"):
        load(folder, beside="ref")
    turned = folder_with_ref(zoo["qwen2"], tmp_path / "turned", {}, {"bias": "lora_only"})
    with pytest.raises(InputError, match=r"bias"):
        load(turned, beside="ref")


def test_a_damaged_second_adapter_is_named(continued, tmp_path):
    copy = Path(shutil.copytree(continued, tmp_path / "dpo"))
    file = copy / "ref" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    assert load(copy).facts["adapters_beside"] == ["ref"]  # the policy alone does not need it
    with pytest.raises(InputError, match=r"ref/adapter_model\.safetensors: not a readable"):
        load(copy, beside="ref")


# ---- the audit


@pytest.mark.parametrize(("reference", "told"), [("adapter-disabled", True), ("adapter:ref", False), (None, False)])
def test_switching_off_past_the_adapter_that_trl_kept_is_told(continued, reference, told):
    report = audit(continued, reference, ROWS, only="ranking")
    found = [finding.next_step for finding in report.findings if "`ref` is kept" in finding.sentence]
    assert found == ["Give --reference adapter:ref for what this training changed."] * told
    scores = score_pairs(continued, reference, ROWS)
    assert any("--reference adapter:ref" in notice for notice in scores.notices) is told


def test_the_base_as_reference_passes_over_it_too(zoo, continued):
    assert any("adapter:ref" in notice for notice in score_pairs(continued, zoo["llama"], ROWS).notices)


def test_an_adapter_without_another_beside_it_is_not_told_of_one(zoo, tmp_path):
    scores = score_pairs(make_adapter(zoo["llama"], tmp_path), "adapter-disabled", ROWS)
    assert not any("adapter:ref" in notice for notice in scores.notices)


def test_an_audit_knows_both_states_and_goes_on_only_with_the_same(continued, tmp_path):
    report = audit(continued, "adapter:ref", ROWS, only="ranking", out=tmp_path / "run")
    assert report.section("ranking").settings["reference_kind"] == "adapter:ref"
    models = report.manifest.models
    assert models["reference"]["adapter_in_place"] == "ref"
    assert models["reference"]["name"].endswith("ref")
    assert models["reference"]["fingerprints"]["combined"] != models["policy"]["fingerprints"]["combined"]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["manifest"]["models"] == models
    with pytest.raises(InputError, match=r"other settings|another"):
        audit(continued, "adapter-disabled", ROWS, only="ranking", out=tmp_path / "run")


def test_spinal_compares_the_two_states(zoo, continued, apart):
    prompts = [row["prompt"] for row in ROWS]
    together = audit(continued, "adapter:ref", ROWS, only="spinal", prompts=prompts)
    two = audit(apart["."], apart["ref"], ROWS, only="spinal", prompts=prompts)
    values = [{n: e.value for n, e in r.section("spinal").estimates.items()} for r in (together, two)]
    assert values[0] == values[1]
