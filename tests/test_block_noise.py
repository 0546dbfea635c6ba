"""Noise of the size of an update: as large as the change of each matrix, gone to the bit afterwards."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from spinal_models import tiny_model, tiny_subject
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError
from alignscope.probes.block_noise import NoiseLostError, changed_blocks, noisy_blocks
from alignscope.probes.quiet import quiet_loading


def state(subject) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}


@pytest.fixture
def base():
    return tiny_subject()


@pytest.fixture(scope="module")
def norms():
    return changed_blocks(tiny_subject(), tiny_subject(changed=4, scale=1.05))


def test_the_norms_are_those_of_the_matrices_that_changed(base, norms):
    assert {block for block, _ in norms} == {4}
    expected = {
        (4, name): 0.05 * float(p.detach().norm())
        for name, p in base.model.model.layers[3].named_parameters()
        if p.ndim == 2  # not the gains of the norms
    }
    assert norms == pytest.approx(expected, rel=1e-5)


def test_the_noise_has_the_given_norm_and_is_gone_afterwards(base, norms):
    before = state(base)
    with noisy_blocks(base, norms, seed=[0, 1]):
        during = state(base)
    after = state(base)
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = {name: float((during[name] - before[name]).norm()) for name in before}
    expected = {f"model.layers.3.{name}": norm for (_, name), norm in norms.items()}
    assert {name: norm for name, norm in moved.items() if norm} == pytest.approx(expected, rel=1e-4)


def test_an_exception_inside_leaves_the_weights_as_they_were(base, norms):
    before = state(base)
    with pytest.raises(RuntimeError, match="stop"), noisy_blocks(base, norms, seed=[0]):
        raise RuntimeError("stop")
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


def test_seeds_give_other_noise_and_another_fingerprint(base, norms):
    logits, prints = [], []
    ids = torch.arange(5, 15)[None]
    for seed in ([0, 1], [0, 2], [0, 1]):
        with noisy_blocks(base, norms, seed=seed) as noisy:
            logits.append(noisy.logits(ids, torch.ones_like(ids)).detach())
            prints.append(noisy.fingerprint)
    assert not torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert prints[0] == prints[2] != prints[1] != base.fingerprint


def test_an_adapter_counts_as_what_it_adds_and_the_noise_goes_on_the_weights_below_it():
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    with quiet_loading(offline=True):
        model = get_peft_model(tiny_model(), config)
    policy = alignscope.wrap(model, tiny_tokenizer())
    reference = policy.without_adapter()
    norms = changed_blocks(reference, policy)
    assert {name for _, name in norms} == {"self_attn.q_proj.weight"}
    layer = model.base_model.model.model.layers[2].self_attn.q_proj
    delta = 4.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert norms[3, "self_attn.q_proj.weight"] == pytest.approx(float(delta.detach().norm()), rel=1e-5)
    weight = layer.base_layer.weight
    before = weight.detach().clone()
    with noisy_blocks(reference, norms, seed=[0]):
        assert float((weight.detach() - before).norm()) == pytest.approx(float(delta.detach().norm()), rel=1e-4)
    assert torch.equal(weight, before)


def test_models_with_other_blocks_have_no_change_to_match(base):
    with pytest.raises(InputError, match="do not hold the same"):
        changed_blocks(base, tiny_subject(blocks=7))
    with pytest.raises(InputError, match="has no counterpart"):
        changed_blocks(base, tiny_subject(width=32))


def test_equal_weights_have_no_norms(base):
    assert changed_blocks(base, tiny_subject()) == {}


def test_a_format_that_rounds_the_noise_away_is_refused_and_the_weights_come_back(norms):
    model = tiny_model().bfloat16()
    base = alignscope.wrap(model, tiny_tokenizer())
    before = state(base)
    small = {place: 1e-4 * norm for place, norm in norms.items()}
    with pytest.raises(NoiseLostError, match="bfloat16 rounds noise"), noisy_blocks(base, small, seed=[0]):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


def test_a_matrix_that_two_blocks_share_is_refused(base):
    layers = base.model.model.layers
    layers[3].mlp = layers[2].mlp
    name = "mlp.up_proj.weight"
    before, both = state(base), {(3, name): 1.0, (4, name): 1.0}
    with pytest.raises(InputError, match="a shared mlp"), noisy_blocks(base, both, seed=[0]):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
