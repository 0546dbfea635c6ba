"""The read-out of any decoder: found by its calls, proved on its logits, refused where something else goes on."""

import math

import pytest
import torch
from torch import nn

import alignscope
import zoo as models
from alignscope.errors import AnatomyError
from alignscope.probes.anatomy import Anatomy, Transform

IDS = torch.tensor([[7, 300, 41, 12, 260, 9]])

TAILS = {
    "openai_gpt": [],
    "opt_projected_pre_norm": ["LayerNorm", "Linear"],
    "opt_projected_post_norm": ["Linear"],
    "opt_post_norm": [],
    "opt_without_final_norm": [],
}
AFTER = {"gemma2": "softcap 30", "recurrent_gemma": "softcap 30", "cohere": "scale 0.0625", "granite": "scale 0.125"}


def with_extra(name: str, change) -> nn.Module:
    """A model of the zoo whose logits pass through `change` on their way out, unknown to its configuration."""
    model = models.model(name)
    forward = model.forward

    def changed(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = change(out.logits)
        return out

    model.forward = changed
    return model


@pytest.mark.parametrize("name", [*models.CONFIGS, *models.AWKWARD])
def test_every_architecture_is_found_and_proved(name):
    model = models.model(name)
    found = Anatomy.probe(model)
    n_blocks = model.config.get_text_config().num_hidden_layers
    tail = [type(module).__name__ for module in found.tail]
    assert len(found.blocks) == n_blocks
    assert model.get_submodule(found.blocks_path) is found.blocks
    assert str(found.transform) == AFTER.get(name, "None")
    assert found.error <= 1e-6
    if name in TAILS:
        assert tail == TAILS[name]
    else:
        assert len(tail) == 1
        assert tail[0].endswith("Norm")


@pytest.mark.parametrize("name", [*models.CONFIGS, *models.AWKWARD])
def test_the_model_says_the_same_without_us(name):
    """Logits of transformers against the read-out of the true last residual; its own last hidden state is another."""
    model = models.model(name)
    found = Anatomy.probe(model)
    kept = []
    handle = found.blocks[-1].register_forward_hook(
        lambda module, args, out: kept.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.no_grad():
        out = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True, use_cache=False)
        ours = found.readout(kept[0])
    handle.remove()
    assert (ours - out.logits).abs().max() <= 1e-5 * out.logits.abs().max()
    if found.tail:
        assert not torch.equal(out.hidden_states[-1], kept[0])


@pytest.mark.parametrize(
    ("z", "capped"), [(1.0, 0.999630), (10.0, 9.645383), (30.0, 22.847825), (60.0, 28.920827), (-10.0, -9.645383)]
)
def test_softcap_of_30(z, capped):
    transform = Transform("softcap", 30.0)
    assert transform(torch.tensor(z, dtype=torch.float64)).item() == pytest.approx(30 * math.tanh(z / 30), abs=1e-12)
    assert transform(torch.tensor(z)).item() == pytest.approx(capped, abs=2e-6)


def test_a_small_model_hides_its_softcap_from_a_plain_test_and_not_from_the_amplified_one():
    """On tiny Gemma-2 the logits stay where tanh is straight: without the cap the read-out is right to 1e-4."""
    model = models.model("gemma2")
    found = Anatomy.probe(model)
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    uncapped = 30 * torch.atanh(logits.double() / 30)
    assert 1e-5 < (uncapped - logits).abs().max() < 1e-4
    assert str(found.transform) == "softcap 30"


def test_a_cap_that_the_config_does_not_name_is_refused_though_it_moves_nothing_yet():
    model = with_extra("llama", lambda z: 17.3 * torch.tanh(z / 17.3))
    with torch.no_grad():
        capped = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        plain = models.model("llama")(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert (capped - plain).abs().max() < 2e-3 * plain.abs().max()
    with pytest.raises(AnatomyError, match=r"after the head .* neither a scale nor a soft-cap"):
        Anatomy.probe(model)


@pytest.mark.parametrize("change", [lambda z: 0.5 * z + 1.0, lambda z: z.log_softmax(-1), lambda z: z[..., :400]])
def test_other_steps_after_the_head_are_refused(change):
    with pytest.raises(AnatomyError, match="after the head"):
        Anatomy.probe(with_extra("llama", change))


def test_a_scale_is_measured_not_looked_up():
    found = Anatomy.probe(with_extra("llama", lambda z: 0.37 * z))
    assert found.transform == Transform("scale", 0.37)


def test_a_residual_that_is_changed_between_blocks_and_norm_is_refused():
    model = models.model("llama")
    norm = model.model.norm.forward
    model.model.norm.forward = lambda h: norm(h * torch.tensor([1.0] * 63 + [1.5]))
    found = Anatomy.probe(model)  # inside the norm: part of the tail, and right
    assert found.error == 0
    model = models.model("llama")
    backbone = model.model
    inner = backbone.forward

    def shifted(*args, **kwargs):
        out = inner(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state + 0.1
        return out

    backbone.forward = shifted
    with pytest.raises(AnatomyError, match=r"no list of 4 blocks .* leads to the head's input.*model\.layers \[4\]"):
        Anatomy.probe(model)


def test_a_model_without_a_head_says_what_is_wanted():
    model = models.model("llama")
    model.get_output_embeddings = lambda: None
    with pytest.raises(AnatomyError, match="no output embeddings; expected a causal language model"):
        Anatomy.probe(model)


def test_a_head_that_runs_twice_is_refused_rather_than_guessed():
    model = models.model("llama")
    forward = model.forward

    def twice(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits + 0 * model.lm_head(torch.zeros(1, 64))
        return out

    model.forward = twice
    with pytest.raises(AnatomyError, match=r"the head \(Linear\) runs 2 times"):
        Anatomy.probe(model)


def test_half_precision_is_proved_by_the_order_of_tokens():
    model = models.model("llama").bfloat16()
    found = Anatomy.probe(model)
    assert found.dtype == torch.bfloat16
    assert found.readout(torch.randn(3, 64)).dtype == torch.float32
    assert str(Anatomy.probe(models.model("gemma2").bfloat16()).transform) == "softcap 30"


def test_an_anatomy_error_is_an_input_error_that_loading_passes_on():
    with pytest.raises(alignscope.InputError, match="neither a scale nor a soft-cap"):
        alignscope.wrap(with_extra("llama", lambda z: z + z**3))
