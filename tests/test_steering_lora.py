"""LoRA beside vectors: the weights it stands for, the first step against a naive one, and a model left as found."""

import copy

import jaxtyping
import numpy as np
import peft
import pytest
import torch
from spinal_models import tiny_model
from tiny_steering import TWENTY as WORDS
from tiny_tokenizer import tiny_tokenizer
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

import alignscope
import zoo
from alignscope import InputError
from alignscope.probes.block_gradients import flowing_to
from alignscope.probes.encoding import Ids
from alignscope.steering import baselines, side_effects, sweep, train_cdas
from alignscope.steering.by_name import train_by_name
from alignscope.steering.evaluation.evaluating import require_vector
from alignscope.steering.evaluation.kept import vector_key
from alignscope.steering.lora import LoraSteering, wearing
from alignscope.steering.preparing import prepare
from alignscope.steering.training import shuffled_batches

FAST = {"layer": [0, 2], "holdout": 0, "epochs": 1, "rank": 2}
LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
NAMES = [*LAYERS, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


@pytest.fixture(scope="module")
def lora(llama) -> LoraSteering:
    return baselines.fit_lora(llama, WORDS, layer=[0, 2], rank=2, epochs=8, lr=0.01)


def logits(subject, rows: int = 1) -> torch.Tensor:
    ids = torch.tensor([[1, 9, 10, 11, 12, 13, 14]]).repeat(rows, 1)
    with torch.no_grad():
        return subject.logits(ids, torch.ones_like(ids))


def changed_by_hand(model: nn.Module, lora: LoraSteering, strength: float) -> nn.Module:
    """A copy whose weights are W + strength alpha / rank B A."""
    other = copy.deepcopy(model)
    for name, (a, b) in lora.weights.items():
        layer = other.get_submodule(name)
        change = strength * lora.alpha / lora.rank * b @ a
        with torch.no_grad():
            layer.weight += change if isinstance(layer, nn.Linear) else change.T
    return other


def state_of(model: nn.Module) -> dict:
    """All that training must leave as it was: modules by identity, weights, flags, attributes."""
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "flags": {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
    }


# ---- training


def test_every_linear_layer_of_the_blocks_is_changed_and_no_other(llama, lora):
    assert set(lora.weights) == {f"model.layers.{layer}.{name}" for layer in (0, 2) for name in NAMES}
    for name, (a, b) in lora.weights.items():
        outs, ins = llama.model.get_submodule(name).weight.shape
        assert (a.shape, b.shape) == ((2, ins), (outs, 2))
        assert b.abs().max() > 0
    assert (lora.rank, lora.alpha, lora.layers, lora.method) == (2, 8.0, (0, 2), "lora")
    assert repr(lora) == "LoraSteering(rank 2 in 14 linear layers of blocks 0, 2)"


def mean_loss(model: nn.Module, rows: list[tuple[Ids, Ids]], weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """-log pi of the answers a token, each run whole and alone, float64 sums."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]])
        out = torch.func.functional_call(model, weights, (ids,)).logits[0, len(prompt) - 1 : -1]
        total = total - out.double().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
        n += len(answer)
    return total / n


def test_the_first_step_is_that_of_plain_forward_passes(llama, monkeypatch):
    with wearing(llama, [f"model.layers.1.{name}" for name in NAMES], rank=2, alpha=6.0, seed=42) as worn:
        starts = {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in worn.items()}
    assert all(a.abs().max() > 0 and not b.any() for a, b in starts.values())
    seen = []
    clip = torch.nn.utils.clip_grad_norm_

    def watched(parameters, norm):
        seen.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    found = baselines.fit_lora(llama, WORDS, layer=1, holdout=0, epochs=1, rank=2, alpha=6, batch_size=8)
    data = prepare(llama, WORDS, layer=1, holdout=0)
    rows = [data.train[i] for i in shuffled_batches(20, epochs=1, size=8, seed=42, both=False)[0]]
    leaves = [part.requires_grad_() for pair in starts.values() for part in pair]
    weights = {
        f"{name}.weight": llama.model.get_submodule(name).weight + 6 / 2 * b @ a for name, (a, b) in starts.items()
    }
    with flowing_to(llama, []):
        expected = mean_loss(llama.model, [(row.negative, row.positive_response) for row in rows], weights)
        gradients = torch.autograd.grad(expected, leaves)
    assert found.history[0]["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for got, wanted in zip(seen[0], gradients, strict=True):
        assert torch.allclose(got, wanted, atol=1e-6, rtol=1e-5)


def test_the_held_out_loss_falls_to_that_of_the_weights_changed_by_hand(llama):
    found = baselines.fit_lora(llama, WORDS, layer=[0, 2], rank=2, epochs=4, lr=0.01)
    held = [(row.negative, row.positive_response) for row in prepare(llama, WORDS, layer=0).held]
    curve = [point["elicit"] for point in found.metadata["metrics"]["held_out"]]
    with torch.no_grad():
        before = mean_loss(llama.model, held, {})
        after = mean_loss(changed_by_hand(llama.model, found, 1.0), held, {})
    assert [curve[0], curve[-1]] == pytest.approx([before.item(), after.item()], abs=1e-5)
    assert curve[-1] < curve[0] - 0.05


def test_it_sees_what_training_sees(llama, lora):
    trained = train_cdas(llama, WORDS, layer=1, epochs=1)
    for part in ("data", "sha256", "fingerprint", "seed", "source"):
        assert lora.metadata[part] == trained.metadata[part]
    settings = lora.metadata["settings"]
    assert [settings[name] for name in ("layers", "rank", "alpha", "lr", "epochs")] == [[0, 2], 2, 8, 0.01, 8]
    assert "trained to elicit only: the other direction is not its own" in lora.notices()


def test_the_same_seed_trains_the_same_weights_and_another_one_others(llama):
    before = torch.random.get_rng_state()
    first, second, other = (baselines.fit_lora(llama, WORDS, seed=seed, **FAST) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name in first.weights:
        assert all(map(torch.equal, first.weights[name], second.weights[name]))
        assert not torch.allclose(first.weights[name][0], other.weights[name][0])
    assert first.key == second.key != other.key


def test_lower_blocks_left_out_or_run_give_one_training(llama):
    kept, whole = (baselines.fit_lora(llama, WORDS, **{**FAST, "layer": 1, "cache_bytes": size}) for size in (2e9, 0))
    assert [step["loss"] for step in kept.history] == pytest.approx([step["loss"] for step in whole.history], abs=1e-6)
    assert any("from the start" in notice for notice in whole.notices())
    assert not any("from the start" in notice for notice in kept.notices())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_found(fails):
    model = tiny_model(blocks=3, width=32)
    subject = alignscope.wrap(model, tiny_tokenizer())
    model.train()
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    fired = []
    handle = model.model.layers[2].self_attn.o_proj.register_forward_hook(lambda *_: fired.append(1))
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    before, fingerprint = state_of(model), subject.fingerprint

    def stop(stage, done, total):
        if fails and stage == "lora fit":
            raise KeyboardInterrupt

    try:
        baselines.fit_lora(subject, WORDS, progress=stop, **FAST)
    except KeyboardInterrupt:
        assert fails
    assert fired
    assert state_of(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert subject.fingerprint == fingerprint
    handle.remove()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer": []}, "expected one at least"),
        ({"layer": [1, 1]}, "each once"),
        ({"layer": [1, 7]}, "layer 7 is not in 0 .. 2"),
        ({"rank": 33}, "rank 33: expected 1 .. 32"),
        ({"alpha": 0}, "alpha=0: expected a number above 0"),
        ({"alpha": "8"}, "alpha=8: expected a number above 0"),
        ({"layer": "1"}, "each a whole number"),
        ({"positions": "all"}, "positions: LoRA changes weights, which act at every token"),
        ({"component": "mlp_out", "prefix": 1}, "component, prefix: LoRA"),
        ({"lr": -1}, "lr=-1"),
    ],
)
def test_what_cannot_be_trained_is_refused(llama, change, told, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checked types would refuse some of them first
    with pytest.raises(InputError, match=told):
        baselines.fit_lora(llama, WORDS, **(FAST | change))


# ---- applied


@pytest.mark.parametrize("strength", [1, -0.5, 2.0, torch.tensor(0.25)])
def test_it_is_the_model_with_weights_changed_by_hand(llama, lora, strength):
    by_hand = alignscope.wrap(changed_by_hand(llama.model, lora, float(strength)), tiny_tokenizer())
    plain = logits(llama)
    with lora.applied(llama, strength):
        found = logits(llama)
    assert torch.allclose(found, logits(by_hand), atol=1e-5)
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(logits(llama), plain)


def test_gpt2s_turned_layers_are_changed_alike():
    model = zoo.model("gpt2")
    subject = alignscope.wrap(model, zoo.tokenizer())
    found = baselines.fit_lora(subject, WORDS, layer=1, holdout=0, epochs=2, lr=0.01)
    assert len(found.weights) == 4  # attention has two, and the MLP
    by_hand = alignscope.wrap(changed_by_hand(model, found, 1.0), zoo.tokenizer())
    with found.applied(subject):
        assert torch.allclose(logits(subject), logits(by_hand), atol=1e-5)


@pytest.mark.parametrize("layer", [np.int64(1), 1, [1], (np.int64(1),)])
def test_a_block_may_be_any_whole_number(llama, layer, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    found = baselines.fit_lora(llama, WORDS, **FAST | {"layer": layer})
    assert found.layers == (1,)
    assert type(found.metadata["settings"]["layers"][0]) is int


def test_layers_that_peft_does_not_take_are_refused_and_the_model_is_left_as_found():
    model = MambaForCausalLM(MambaConfig(vocab_size=47, hidden_size=32, num_hidden_layers=2, state_size=4))
    subject = alignscope.wrap(model, tiny_tokenizer())
    before = state_of(model)
    for _ in range(2):  # and is not told of an adapter that is there already
        with pytest.raises(InputError, match=r"LoRA cannot be had of its layers.*incompatible"):
            baselines.fit_lora(subject, WORDS, layer=0, holdout=0, epochs=1)
    assert state_of(model) == before


def test_packed_experts_are_left_alone_and_told():
    subject = alignscope.wrap(zoo.model("mixtral"), zoo.tokenizer())
    found = baselines.fit_lora(subject, WORDS, **FAST | {"layer": 1})
    assert all("self_attn" in name for name in found.weights)
    (told,) = [notice for notice in found.notices() if "left as they are" in notice]
    assert "block 1: mlp.experts.gate_up_proj; block 1: mlp.experts.down_proj" in told


def test_in_half_precision_the_adapter_is_float32():
    subject = alignscope.wrap(tiny_model(blocks=3, width=32).bfloat16(), tiny_tokenizer())
    found = baselines.fit_lora(subject, WORDS, **FAST)
    assert {part.dtype for pair in found.weights.values() for part in pair} == {torch.float32}
    assert {p.dtype for p in subject.model.parameters()} == {torch.bfloat16}


def test_strength_0_is_off_to_the_bit(llama, lora):
    plain, modules = logits(llama), {id(module) for module in llama.model.modules()}
    with lora.applied(llama, 0):
        assert torch.equal(logits(llama), plain)
        assert {id(module) for module in llama.model.modules()} == modules


def test_the_model_is_as_before_when_the_body_raises(llama, lora):
    before = state_of(llama.model)
    with pytest.raises(RuntimeError, match="inside"), lora.applied(llama):
        raise RuntimeError("inside")
    assert state_of(llama.model) == before


def test_cached_generation_is_that_of_whole_passes(llama, lora):
    plain = llama.generate(["say c"], max_new_tokens=6)
    with lora.applied(llama, 4):
        cached = llama.generate(["say c"], max_new_tokens=6)
        whole = llama.generate(["say c"], max_new_tokens=6, use_cache=False)
    assert cached == whole != plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("model") / "base"
    tiny_model(blocks=3, width=32).save_pretrained(at)
    tiny_tokenizer().save_pretrained(at)
    return at


def test_no_cache_takes_it_for_the_plain_model(llama, lora, folder):
    for subject in (llama, alignscope.load(folder)):
        plain, seen = subject.fingerprint, set()
        for strength in (1, 2):
            with lora.applied(subject, strength, allow_other_weights=True):
                seen.add(subject.fingerprint)
        assert len(seen | {plain}) == 3
        assert subject.fingerprint == plain


@pytest.mark.parametrize("strength", [[1.0, 0.0], float("nan")])
def test_other_strengths_are_refused(llama, lora, strength):
    with pytest.raises(InputError, match=r"one strength|finite"):
        lora.applied(llama, strength)


def test_a_second_one_on_top_is_refused(llama, lora):
    before = logits(llama)
    with (
        lora.applied(llama),
        pytest.raises(InputError, match="has an adapter already"),
        lora.applied(llama, allow_other_weights=True),
    ):
        pass
    assert torch.equal(logits(llama), before)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_model_with_an_adapter_is_refused():
    options = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    subject = alignscope.wrap(peft.get_peft_model(tiny_model(blocks=3, width=32), options), tiny_tokenizer())
    with pytest.raises(InputError, match=r"has an adapter already.*merge it first"):
        baselines.fit_lora(subject, WORDS, **FAST)


def test_other_models_are_refused_and_other_weights_tried_where_asked(lora):
    other = alignscope.wrap(tiny_model(blocks=3, width=32, scale=1.1, changed=1), tiny_tokenizer())
    with pytest.raises(InputError, match="its weights are"):
        lora.applied(other)
    with pytest.warns(UserWarning, match="its weights are") as told, lora.applied(other, allow_other_weights=True):
        pass
    assert len(told) == 1
    wide = alignscope.wrap(tiny_model(blocks=3, width=64), tiny_tokenizer())
    with pytest.raises(InputError, match="hidden size 64, the vector was made on 32"):
        lora.applied(wide)
    unknown = LoraSteering(weights=lora.weights, layers=lora.layers, alpha=lora.alpha)
    with pytest.raises(InputError, match=r"q_proj is \(64, 64\), the adapter is for \(32, 32\)"):
        unknown.applied(wide)
    gpt2 = alignscope.wrap(zoo.model("gpt2"), zoo.tokenizer())
    with pytest.raises(InputError, match=r"it has no model\.layers\.0\.self_attn\.q_proj"):
        LoraSteering(weights=lora.weights, layers=(0,), alpha=1.0).applied(gpt2)


def test_no_weights_are_refused():
    with pytest.raises(InputError, match="no weights"):
        LoraSteering(weights={}, layers=(0,), alpha=1.0)


# ---- saved


def test_it_is_saved_as_an_adapter_that_opens_on_the_base(lora, folder, tmp_path):
    at = lora.save(tmp_path / "adapter")
    opened, base = alignscope.load(folder, adapter=at), alignscope.load(folder)
    with lora.applied(base):
        assert torch.allclose(logits(opened), logits(base), atol=1e-6)
    assert (logits(opened) - logits(base)).abs().max() > 1e-3
    with pytest.raises(InputError, match="is there already; name a new folder"):
        lora.save(at)


# ---- evaluated as others


def test_its_answers_in_a_sweep_are_those_of_the_model_that_wears_it(llama, lora):
    prompts = ["say c", "say d", "say ef gh"]
    found = sweep(
        llama, prompts, lora, [0, 1, 3], lambda *_: (1, 1, 1), temperature=0, max_new_tokens=6, direction="elicit"
    )  # fmt: skip
    assert len(found.outputs) == 9
    for row in found.outputs.itertuples():
        with lora.applied(llama, row.strength):
            assert [row.output] == llama.generate([row.prompt], max_new_tokens=6)


def test_its_side_effects_are_measured_and_strength_zero_has_none(llama, lora):
    texts = ["say cd ef gh", "say ef", "say hh gg"]
    assert side_effects(llama, lora, 0, texts=texts).estimates["kl"].value == 0.0
    assert side_effects(llama, lora, 1, texts=texts).estimates["kl"].value > 1e-4


def test_it_has_a_key_of_its_own_and_no_report(llama, lora):
    other = baselines.fit_lora(llama, WORDS, **FAST)
    assert vector_key(lora) == vector_key(lora) != vector_key(other)
    with pytest.raises(InputError, match="the report is of one vector"):
        require_vector(lora)


def test_das_is_cdas_on_the_words_alone(llama):
    das = train_by_name("das", llama, WORDS, layer=1, epochs=1, holdout=0)
    labels = train_cdas(llama, WORDS, layer=1, epochs=1, holdout=0, loss="ce")
    assert das.method == labels.method == "das"
    assert torch.equal(das.subspace.basis, labels.subspace.basis)
    with pytest.raises(InputError, match="takes no loss"):
        train_by_name("das", llama, WORDS, layer=1, loss="jsd")
