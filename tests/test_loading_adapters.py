"""Adapters on their base: every tensor placed, off is the base to the bit, and what cannot be measured is refused."""

import json
import os
import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
from lora_files import make_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignscope.errors import InputError
from alignscope.probes.loading import adapter_base, load, wrap

IDS = torch.tensor([[1, 40, 200, 33, 7, 300]])
MASK = torch.ones_like(IDS)

# peft asks transformers by a name that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def logits(subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.logits(IDS, MASK)


@pytest.fixture(scope="module")
def llama(zoo):
    return load(zoo["llama"])


@pytest.fixture(scope="module")
def adapter(zoo, tmp_path_factory) -> Path:
    return make_adapter(zoo["llama"], tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"use_dora": True},
    ],
    ids=["q,v", "all-linear", "head", "modules_to_save", "dora"],
)
def test_adapter_off_is_bit_equal_to_the_base(zoo, llama, tmp_path, options):
    policy = load(zoo["llama"], adapter=make_adapter(zoo["llama"], tmp_path, **options))
    assert not torch.allclose(logits(policy), logits(llama), atol=1e-4)
    reference = policy.without_adapter()
    assert torch.equal(logits(reference), logits(llama))
    assert policy.facts["adapter_off_difference"] == 0
    assert not policy.facts["adapter_changes_nothing"]
    assert reference.fingerprint == llama.fingerprint
    assert policy.fingerprint != llama.fingerprint
    assert not torch.allclose(logits(policy), logits(llama), atol=1e-4)  # still on


def test_adapter_equals_peft_itself(zoo, adapter):
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32), adapter
    ).eval()
    with torch.no_grad():
        expected = plain(input_ids=IDS, attention_mask=MASK).logits
    assert torch.allclose(logits(load(adapter, base=zoo["llama"])), expected, atol=1e-6)


def test_base_is_found_by_argument_config_or_refused(zoo, adapter, tmp_path):
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    assert load(adapter).fingerprint == load(zoo["llama"], adapter=adapter).fingerprint
    assert adapter_base(adapter) == str(zoo["llama"])
    config = json.loads((copy / "adapter_config.json").read_text())
    for named in ("my-own-label", "org/model", None):
        (copy / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))
        assert adapter_base(copy) is None
        with pytest.raises(InputError, match=rf"config names '{named}'.*--base"):
            load(copy)
        assert load(copy, base=zoo["llama"]).fingerprint == load(adapter).fingerprint
    os.symlink(zoo["llama"], copy / "base")
    (copy / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "base"}))
    assert adapter_base(copy) == str(copy / "base")


def test_untrained_adapter_changes_nothing(zoo, llama, tmp_path):
    subject = load(make_adapter(zoo["llama"], tmp_path, trained=False))
    assert subject.facts["adapter_changes_nothing"] is True
    assert torch.equal(logits(subject), logits(llama))


def test_adapter_that_trained_biases_cannot_be_switched_off(zoo, tmp_path):
    """Qwen2 has biases on q, k, v: PEFT leaves them changed when the adapter is off, and only warns."""
    policy = load(make_adapter(zoo["qwen2"], tmp_path, bias="lora_only"))
    assert policy.facts["adapter_off_difference"] > 1e-3
    with pytest.raises(InputError, match=r"bias='lora_only'"):
        policy.without_adapter()


def test_virtual_tokens_are_refused(zoo, tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32), config)
    with torch.no_grad():
        assert model(input_ids=IDS[:, :5]).logits.shape[1] == 8  # 5 ids, 8 positions
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"prompt tuning prepends virtual tokens"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"prompt tuning prepends virtual tokens"):
        wrap(model)


def base_like(zoo, out: Path, **changes) -> Path:
    config = AutoConfig.from_pretrained(zoo["llama"])
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    AutoTokenizer.from_pretrained(zoo["llama"]).save_pretrained(out)
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, r"8 of 16 adapter tensors have no place in .*layers\.2\..*deeper"),
        ({"num_hidden_layers": 6}, r"expects 8 adapter tensors that the file lacks: .*layers\.4\..*shallower"),
        ({"hidden_size": 32, "head_dim": 16}, r"another width.*adapter \(4, 64\), base \(4, 32\)"),
    ],
)
def test_adapter_of_another_base_is_refused_by_tensor(zoo, adapter, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load(base_like(zoo, tmp_path, **changes), adapter=adapter)


def test_adapter_whose_modules_do_not_exist(zoo, adapter):
    with pytest.raises(InputError, match=r"does not fit on .*gpt2"):
        load(zoo["gpt2"], adapter=adapter)


def test_adapter_that_lacks_a_tensor_or_is_damaged(adapter, tmp_path):
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    file = copy / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(key for key in sorted(tensors) if "layers.1." in key)
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(InputError, match=rf"1 adapter tensors that the file lacks: {re.escape(name)}"):
        load(copy)
    save_file(tensors | {name: tensors[name] * float("nan")}, file)
    with pytest.raises(InputError, match=r"NaN or infinite.*layers\.1\."):
        load(copy)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: not a readable"):
        load(copy)
    file.unlink()
    with pytest.raises(InputError, match=r"without weights; expected adapter_model\.safetensors"):
        load(copy)


def test_reward_adapter_where_a_language_model_is_wanted(zoo, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(zoo["llama"], num_labels=1, dtype=torch.float32)
    peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match=r"an adapter for SEQ_CLS, where a language model is wanted.*--reward"):
        load(tmp_path)


def test_adapter_on_an_adapter(adapter):
    with pytest.raises(InputError, match="an adapter itself"):
        load(adapter, base=adapter)
    with pytest.raises(InputError, match="cannot carry another adapter"):
        load(adapter, adapter=adapter)


def test_tokenizer_beside_the_adapter_wins(zoo, adapter, tmp_path):
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    tokenizer = AutoTokenizer.from_pretrained(zoo["llama"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    tokenizer.save_pretrained(copy)
    policy = load(copy)
    assert policy.tokenizer.chat_template == tokenizer.chat_template
    assert policy.facts["tokenizer_from"] == str(copy)
    assert policy.fingerprints.template != load(adapter).fingerprints.template


# --- a live model


def test_wrapped_and_loaded_model_agree(zoo, llama):
    model = AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32)
    live = wrap(model, AutoTokenizer.from_pretrained(zoo["llama"]))
    assert torch.equal(logits(live), logits(llama))
    assert live.fingerprints.weights == llama.fingerprints.weights
    assert live.fingerprints.tokenizer == llama.fingerprints.tokenizer
    assert live.facts["source"] == "live model"


def test_wrapped_tied_model_counts_the_tied_tensor_once(zoo):
    model = AutoModelForCausalLM.from_pretrained(zoo["llama_tied"], dtype=torch.float32)
    assert wrap(model).fingerprints.weights == load(zoo["llama_tied"]).fingerprints.weights


def test_wrapped_peft_model_has_its_base_as_reference(zoo, llama, adapter):
    base = AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32).eval()
    live = wrap(peft.PeftModel.from_pretrained(base, adapter).eval())
    assert torch.allclose(logits(live), logits(load(adapter)), atol=1e-6)
    assert torch.equal(logits(live.without_adapter()), logits(llama))
    assert live.without_adapter().fingerprints.weights == llama.fingerprints.weights
    assert live.fingerprints.weights != llama.fingerprints.weights


def test_a_live_adapter_that_is_changed_by_hand_is_another_model(zoo, adapter, tmp_path):
    """The weights stay: without this, scores kept for one adapter would be handed to another."""
    second = make_adapter(zoo["llama"], tmp_path, target_modules=["q_proj"])
    base = AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    model.load_adapter(str(second), "second")
    live = wrap(model)
    first, own_base = live.fingerprint, live.without_adapter().fingerprint
    model.set_adapter("second")
    other = live.fingerprint
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("second", 3)
    assert len({first, other, live.fingerprint}) == 3
    assert live.without_adapter().fingerprint == own_base
    model.base_model.disable_adapter_layers()
    with pytest.raises(InputError, match="switched off"):
        _ = live.fingerprint


def test_merged_adapter_cannot_be_switched_off(zoo, adapter):
    base = AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    model.merge_adapter()
    with pytest.raises(InputError, match="merged"):
        wrap(model).without_adapter()


def test_wrap_refuses_what_it_cannot_measure(zoo):
    with pytest.raises(InputError, match="expected a transformers or PEFT model, got Linear"):
        wrap(torch.nn.Linear(2, 2))
    model = AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(InputError, match=r"model\.norm\.weight \(1 of 64 values\)"):
        wrap(model)


@pytest.mark.real
def test_ladder_adapter_on_its_gguf_reference(ladder, ladder_reference):
    """The adapter's config names a mere label; off is bit-equal on the unpacked 4-bit file."""
    policy = load(ladder / "dpo" / "step_100", base=ladder_reference)
    assert policy.facts["tensor_types"] == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert policy.facts["adapter_tensors"] == 420
    assert policy.facts["adapter_off_difference"] == 0
    assert policy.facts["adapter_logit_change"] > 1
    with pytest.raises(InputError, match=r"SmolLM2-135M-Instruct-Q4_1.*--base"):
        load(ladder / "dpo" / "step_100")
