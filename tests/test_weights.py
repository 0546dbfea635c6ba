"""Weights of the blocks: exact answers, merged adapters against peft's own merge, fused parts against the models."""

import copy
import math

import numpy as np
import peft
import pytest
import torch
from gguf_files import write_gguf
from hypothesis import given
from hypothesis import strategies as st
from lora_files import make_adapter
from spinal_models import tiny_model
from transformers import AutoModelForCausalLM

import alignscope
import zoo as models
from alignscope.diagnose.weight_matrices import change, eigenvalues, gaussian_top, tail_fit
from alignscope.diagnose.weights import IDENTICAL, IDENTICAL_BLOCKS, ONLY_VECTORS, block_changes, weight_spectrum
from alignscope.errors import InputError
from alignscope.probes.block_weights import block_weights
from alignscope.probes.fused_weights import WHOLE, parts

# peft asks transformers by a name that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def moved_pair(change_weights):
    """A tiny Llama and a copy of it that `change_weights(blocks)` has altered: reference, policy."""
    base, policy = tiny_model(blocks=4), tiny_model(blocks=4)
    with torch.no_grad():
        change_weights(policy.model.layers)
    return alignscope.wrap(base), alignscope.wrap(policy)


def matrices(subject) -> dict[tuple[int, str], torch.Tensor]:
    return {(w.block, w.name): w.value for w in block_weights(subject) if w.value.ndim == 2}


# one matrix


@pytest.mark.parametrize(("shape", "null"), [((576, 576), 0.00694), ((1536, 576), 0.00451)])
def test_gaussian_null_has_the_published_values(shape, null):
    assert round(gaussian_top(*shape), 5) == null
    assert gaussian_top(*shape) == gaussian_top(*shape[::-1])


def test_gaussian_null_is_what_gaussian_noise_has():
    torch.manual_seed(0)
    found, _ = change(torch.randn(300, 200), torch.zeros(300, 200))
    assert found.delta_top_ratio == pytest.approx(1.0, abs=0.05)  # the edge fluctuates by n^(-2/3)


def test_rank_one_change_lies_along_one_direction():
    torch.manual_seed(0)
    w, u, v = torch.randn(40, 30).double(), torch.randn(40, 1).double(), torch.randn(1, 30).double()
    found, values = change(w + u @ v, w)
    assert found.delta_top == pytest.approx(1.0, abs=1e-12)
    assert found.delta_stable_rank == pytest.approx(1.0, abs=1e-12)
    assert found.delta_rank == len(values) == 1
    assert found.delta_share == pytest.approx(float(u.norm() * v.norm() / w.norm()), rel=1e-12)


def test_equal_directions_share_the_change_evenly():
    found, values = change(torch.eye(12) * 3, torch.zeros(12, 12))
    assert found.delta_top == pytest.approx(1 / 12)
    assert found.delta_stable_rank == pytest.approx(12)
    assert np.allclose(values, 9.0)
    assert found.delta_share is None
    assert found.reason == "the reference is 0"


def test_a_matrix_that_did_not_move_has_share_zero_and_no_direction():
    found, values = change(torch.ones(4, 5), torch.ones(4, 5))
    assert found.delta_share == 0
    assert found.delta_top is None
    assert found.delta_stable_rank is None
    assert found.reason == "the matrix did not change"
    assert len(values) == 0


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.booleans())
def test_scale_and_transposition_do_not_move_the_shape_of_a_change(seed, scale, flip):
    torch.manual_seed(seed)
    w, d = torch.randn(9, 6).double(), torch.randn(9, 6).double()
    plain, _ = change(w + d, w)
    pair = ((w + d) * scale, w * scale)
    other, _ = change(*((m.T for m in pair) if flip else pair))
    for name in ("delta_share", "delta_top", "delta_top_ratio"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=1e-8)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_eigenvalues_are_squared_singular_values(shape):
    torch.manual_seed(0)
    w = torch.randn(shape).double()
    assert np.allclose(eigenvalues(w), torch.linalg.svdvals(w).numpy() ** 2, rtol=1e-9)


def test_rounding_is_no_direction():
    values = torch.tensor([1.0, 2e-6, 5e-7, 0.0]).double()
    assert len(eigenvalues(torch.diag(values))) == 2


def test_non_finite_weights_are_refused():
    with pytest.raises(ValueError, match="1 of 4 weights are not finite"):
        eigenvalues(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))


def test_fewer_than_ten_eigenvalues_have_no_exponent():
    fit = tail_fit(np.arange(9.0, 0.0, -1.0))
    assert fit.alpha_lambda_pdf is None
    assert fit.alpha_weighted is None
    assert "9" in fit.reason
    assert fit.flag is None


def test_weighted_exponent_is_exponent_times_log_of_the_largest():
    fit = tail_fit(100 * np.arange(1.0, 301.0) ** -1.0)
    assert fit.alpha_weighted == pytest.approx(2 * fit.alpha_lambda_pdf, rel=1e-12)  # log10 100


@pytest.mark.parametrize(("rank_exponent", "flag"), [(2.0, "over-trained"), (0.4, None), (0.1, "under-trained")])
def test_weightwatcher_names_follow_its_convention(rank_exponent, flag):
    fit = tail_fit(np.arange(1.0, 1001.0) ** -rank_exponent)  # exponent near 1 + 1 / rank_exponent
    assert fit.flag == flag


# the weights of a model


@pytest.mark.parametrize("name", [*models.CONFIGS, "openai_gpt"])
def test_every_weight_of_every_architecture_is_read_once(name):
    model = models.model(name)
    subject = alignscope.wrap(model)
    found = list(block_weights(subject))
    for number, block in enumerate(subject.anatomy.blocks, start=1):
        own = [w for w in found if w.block == number]
        assert len({w.name for w in own}) == len(own)
        assert sum(w.value.numel() for w in own) == sum(p.numel() for p in block.parameters())
        squares = sum(float(p.detach().double().square().sum()) for p in block.parameters())
        assert sum(float(w.value.square().sum()) for w in own) == pytest.approx(squares, rel=1e-12)


def test_llama_matrices_carry_their_own_names():
    names = {name for _, name in matrices(alignscope.wrap(models.model("llama")))}
    assert names == {f"self_attn.{p}" for p in LLAMA[:4]} | {f"mlp.{p}" for p in LLAMA[4:]}


def split_rows(model, name: str, x: torch.Tensor) -> list[torch.Tensor]:
    """q, k, v of the first block as the model's own code takes them from its fused projection."""
    block = alignscope.wrap(model).anatomy.blocks[0]
    if name == "gpt2":
        return list(block.attn.c_attn(x).split(block.attn.split_size, dim=2))
    if name == "openai_gpt":
        return list(block.attn.c_attn(x).split(block.attn.split_size, dim=2))
    if name == "mpt":
        return list(block.attn.Wqkv(x).chunk(3, dim=2))
    if name == "gptneox":
        heads = block.attention.query_key_value(x).view(*x.shape[:2], -1, 3 * block.attention.head_size)
        return [part.flatten(2) for part in heads.chunk(3, dim=-1)]
    if name == "bloom":
        attention = block.self_attention
        return [part.transpose(1, 2).flatten(2) for part in attention._reshape(attention.query_key_value(x))]
    attention = block.self_attention
    return [part.flatten(2) for part in attention._split_heads(attention.query_key_value(x))]


@pytest.mark.parametrize("name", ["gpt2", "openai_gpt", "mpt", "gptneox", "bloom", "falcon"])
def test_fused_q_k_v_are_taken_apart_as_the_model_does(name):
    model = models.model(name)
    for key, parameter in model.named_parameters():
        if "bias" in key:
            torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 64)
    found = {key[-2:]: value for (block, key), value in matrices(alignscope.wrap(model)).items() if block == 1}
    with torch.no_grad():
        expected = split_rows(model, name, x)
    for end, part in zip((".q", ".k", ".v"), expected, strict=True):
        assert torch.allclose(x.double() @ found[end].T, part.double(), atol=1e-5), end


def test_falcon_groups_of_heads_are_taken_apart():
    config = models.hf.FalconConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=1, num_attention_heads=8, num_kv_heads=2,
        new_decoder_architecture=True,
    )  # fmt: skip
    torch.manual_seed(0)
    attention = AutoModelForCausalLM.from_config(config).transformer.h[0].self_attention
    fused = attention.query_key_value.weight.detach()
    x = torch.randn(1, 2, 64)
    q, k, v = (part for _, _, part, _ in parts("query_key_value", fused.double(), config))
    query, key, value = attention._split_heads(x @ fused.T)  # keys and values repeated for each of 4 queries
    assert torch.allclose(x.double() @ q.T, query.flatten(2).double(), atol=1e-5)
    assert torch.allclose(x.double() @ k.T, key[:, :, ::4].flatten(2).double(), atol=1e-5)
    assert torch.allclose(x.double() @ v.T, value[:, :, ::4].flatten(2).double(), atol=1e-5)


def test_phi3_is_split_where_its_heads_and_halves_end():
    model = models.model("phi3")
    found = matrices(alignscope.wrap(model))
    fused = model.model.layers[0].self_attn.qkv_proj.weight.double()
    for end, rows in ((".q", slice(0, 64)), (".k", slice(64, 96)), (".v", slice(96, 128))):
        assert torch.equal(found[1, f"self_attn.qkv_proj{end}"], fused[rows])
    gate_up = model.model.layers[0].mlp.gate_up_proj.weight.double()
    assert torch.equal(found[1, "mlp.gate_up_proj.up"], gate_up[128:])


def test_each_expert_is_a_matrix_of_one_kind():
    model = models.model("mixtral")
    weights = [w for w in block_weights(alignscope.wrap(model)) if w.block == 1 and "experts" in w.name]
    assert {w.kind for w in weights} == {
        "mlp.experts.gate_up_proj.gate", "mlp.experts.gate_up_proj.up", "mlp.experts.down_proj"
    }  # fmt: skip
    assert len(weights) == 4 * 3
    second = next(w for w in weights if w.name == "mlp.experts.gate_up_proj.1.up")
    assert torch.equal(second.value, model.model.layers[0].mlp.experts.gate_up_proj[1, 128:].double())


def test_fused_parts_of_an_unknown_model_stay_whole_and_say_so():
    config = models.model("gptneox").config
    config.model_type = "unheard_of"
    (_, _, matrix, note), *rest = parts("attention.query_key_value", torch.zeros(192, 64), config)
    assert matrix.shape == (192, 64)
    assert note == WHOLE
    assert not rest


def test_rows_that_do_not_fit_the_configuration_stay_whole():
    config = models.model("gptneox").config
    ((_, _, _, note),) = parts("attention.query_key_value", torch.zeros(190, 64), config)
    assert note == WHOLE


# adapters


ADAPTERS = {
    "lora": lambda: peft.LoraConfig(target_modules=LLAMA, r=3, lora_alpha=7),
    "rslora": lambda: peft.LoraConfig(target_modules=LLAMA, r=4, use_rslora=True),
    "dora": lambda: peft.LoraConfig(target_modules=LLAMA, r=3, use_dora=True),
    "loha": lambda: peft.LoHaConfig(target_modules=["q_proj", "down_proj"], r=3),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "saved": lambda: peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["up_proj", "input_layernorm"]),
}


def adapted(name: str, architecture: str = "llama"):
    """A live PEFT model with random adapter tensors."""
    model = peft.get_peft_model(models.model(architecture), ADAPTERS[name]())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_adapted_weights_are_those_that_peft_merges(name):
    live = adapted(name)
    merged = alignscope.wrap(copy.deepcopy(live).merge_and_unload())
    before = copy.deepcopy(live.state_dict())
    found = list(block_weights(alignscope.wrap(live)))
    expected = list(block_weights(merged))
    assert [(w.block, w.name) for w in found] == [(w.block, w.name) for w in expected]
    for own, other in zip(found, expected, strict=True):
        assert torch.allclose(own.value, other.value, atol=1e-6), own.name
    assert all(torch.equal(before[key], value) for key, value in live.state_dict().items()), "the model was changed"


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_adapter_off_gives_the_weights_of_the_base(name):
    found = list(block_weights(alignscope.wrap(adapted(name)).without_adapter()))
    expected = list(block_weights(alignscope.wrap(models.model("llama"))))
    assert [(w.block, w.name) for w in found] == [(w.block, w.name) for w in expected]
    assert all(torch.equal(own.value, other.value) for own, other in zip(found, expected, strict=True))


def test_lora_on_a_layer_stored_inputs_first_is_merged_right():
    live = peft.get_peft_model(
        models.model("gpt2"), peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True)
    )
    with torch.no_grad():
        for key, parameter in live.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    merged = matrices(alignscope.wrap(copy.deepcopy(live).merge_and_unload()))
    for key, value in matrices(alignscope.wrap(live)).items():
        assert torch.allclose(value, merged[key], atol=1e-6), key


def test_lora_difference_has_the_rank_of_the_adapter():
    subject = alignscope.wrap(adapted("lora"))
    frame = weight_spectrum(subject, subject.without_adapter()).frame
    assert (frame.delta_rank == 3).all()
    assert (frame.adapter_rank == 3).all()
    assert np.allclose(frame.delta_top_times_rank, 3 * frame.delta_top)
    assert frame.alpha_lambda_pdf_difference.isna().all()
    assert frame.alpha_reason_difference.str.contains("3").all()


def test_rank_of_an_adapter_says_nothing_about_another_reference():
    subject, other = alignscope.wrap(adapted("lora")), models.model("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    frame = weight_spectrum(subject, alignscope.wrap(other)).frame
    assert frame.adapter_rank.isna().all()
    assert frame.delta_top_times_rank.isna().all()


def test_bias_of_a_lora_counts_as_a_vector():
    live = peft.get_peft_model(models.model("qwen2"), peft.LoraConfig(target_modules=["q_proj"], r=2, lora_bias=True))
    with torch.no_grad():
        for key, parameter in live.named_parameters():
            if "lora_B" in key and key.endswith("bias"):
                parameter.fill_(1.0)
    subject = alignscope.wrap(live)
    table = block_changes(subject.without_adapter(), subject)
    assert table.share.isna().all()
    assert (table.reason == ONLY_VECTORS).all()
    assert (table.share_vectors > 0).all()


def test_adapter_folder_on_a_gguf_base_is_exact_and_the_grid_is_named(zoo, tmp_path):
    file = write_gguf(zoo["llama"], tmp_path / "m.gguf", "Q4_1")
    policy = alignscope.load(file, adapter=make_adapter(zoo["llama"], tmp_path / "lora"))
    found = weight_spectrum(policy, policy.without_adapter())
    assert len([text for text in found.warnings if "Q4_1" in text and "grid" in text]) == 2
    assert not [text for text in found.warnings if "part of the difference is rounding" in text]
    assert (found.frame[found.frame.kind == "self_attn.q_proj"].delta_rank == 4).all()


def test_two_roundings_of_one_model_are_said_to_differ_by_rounding(zoo, tmp_path):
    coarse = alignscope.load(write_gguf(zoo["llama"], tmp_path / "m.gguf", "Q4_1"))
    found = weight_spectrum(coarse, alignscope.load(zoo["llama"]))
    assert [text for text in found.warnings if "part of the difference is rounding" in text]


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.0017), (torch.float16, 0.0002)])
def test_stated_share_of_rounding_is_that_of_gaussian_weights(dtype, share):
    torch.manual_seed(0)
    w = 0.03 * torch.randn(1000, 1000).double()
    found, _ = change(w.to(dtype), w)
    assert found.delta_share == pytest.approx(share, rel=0.05)


def test_weights_stored_in_half_precision_are_named(tmp_path, zoo):
    model = AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.bfloat16)
    found = weight_spectrum(alignscope.wrap(model), alignscope.load(zoo["llama"]))
    assert [text for text in found.warnings if "bfloat16: rounding alone" in text]


# blocks


def test_share_of_a_block_runs_over_all_its_matrices():
    def scale(blocks):
        for parameter in blocks[1].parameters():
            parameter.mul_(1.25)

    table = block_changes(*moved_pair(scale))
    assert table.block.tolist() == [1, 2, 3, 4]
    assert table.share.tolist() == pytest.approx([0, 0.25, 0, 0], rel=1e-6)
    assert table.reason.isna().all()
    assert (table.n_matrices == 7).all()


def test_share_of_a_block_is_not_the_mean_of_its_matrices():
    def one(blocks):
        blocks[0].mlp.up_proj.weight.mul_(2)

    base, policy = moved_pair(one)
    table = block_changes(base, policy)
    own = {key: float(value.norm()) for key, value in matrices(base).items() if key[0] == 1}
    expected = own[1, "mlp.up_proj"] / math.sqrt(sum(norm**2 for norm in own.values()))
    assert table.share[0] == pytest.approx(expected, rel=1e-6)


def test_blocks_of_the_spectrum_are_those_of_block_changes():
    def noise(blocks):
        torch.manual_seed(0)
        for parameter in blocks.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))

    base, policy = moved_pair(noise)
    assert weight_spectrum(policy, base).blocks.equals(block_changes(base, policy))


def test_gaussian_noise_has_the_share_of_directions_that_the_null_says():
    def noise(blocks):
        torch.manual_seed(0)
        for parameter in blocks.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))

    base, policy = moved_pair(noise)
    assert weight_spectrum(policy, base).frame.delta_top_ratio.median() == pytest.approx(1.0, abs=0.1)


def test_identical_models_have_no_difference_and_say_why():
    base, policy = moved_pair(lambda blocks: None)
    table = block_changes(base, policy)
    assert table.share.isna().all()
    assert set(table.reason) == {IDENTICAL}
    found = weight_spectrum(policy, base)
    assert found.reason == "identical weights"
    assert found.frame[["delta_share", "delta_top", "delta_stable_rank", "delta_top_ratio"]].isna().all().all()
    assert set(found.frame.delta_reason) == {"identical weights"}
    assert found.frame.alpha_lambda_pdf.equals(found.frame.alpha_lambda_pdf_reference)


def test_models_that_differ_in_the_head_alone_are_not_called_one_model():
    base, policy = tiny_model(blocks=4), tiny_model(blocks=4)
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.5)
    table = block_changes(alignscope.wrap(base), alignscope.wrap(policy))
    assert set(table.reason) == {IDENTICAL_BLOCKS}


def test_a_model_alone_has_spectra_and_no_difference():
    found = weight_spectrum(alignscope.wrap(tiny_model(blocks=4)))
    assert found.blocks is None
    assert found.reason == "no reference given"
    assert not [column for column in found.frame if column.startswith("delta")]
    assert found.frame.alpha_lambda_pdf.notna().all()
    assert len(found.to_frame()) == 4 * 7


# what is refused


def test_models_of_another_depth_are_refused_with_both_numbers():
    with pytest.raises(InputError, match=r"6 blocks.* 4"):
        weight_spectrum(alignscope.wrap(tiny_model(blocks=6)), alignscope.wrap(tiny_model(blocks=4)))


def test_models_of_another_width_are_refused_with_both_shapes():
    with pytest.raises(InputError, match=r"block 1, self_attn.q_proj: shape \(32, 32\).*\(64, 64\)"):
        weight_spectrum(alignscope.wrap(tiny_model(width=32)), alignscope.wrap(tiny_model(width=64)))


def test_models_of_another_architecture_are_refused_with_the_matrix():
    with pytest.raises(InputError, match=r"no counterpart"):
        block_changes(alignscope.wrap(models.model("gpt2")), alignscope.wrap(models.model("llama")))


def test_packed_weights_are_refused():
    subject = alignscope.wrap(tiny_model(blocks=4))
    layer = subject.anatomy.blocks[1].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match=r"block 2, mlp.up_proj.weight is packed \(uint8"):
        weight_spectrum(subject)


def test_codes_in_buffers_are_refused():
    subject = alignscope.wrap(tiny_model(blocks=4))
    subject.anatomy.blocks[0].mlp.up_proj.register_buffer("qweight", torch.zeros(8, 8, dtype=torch.int32))
    with pytest.raises(InputError, match=r"block 1, mlp.up_proj.qweight is packed \(int32"):
        weight_spectrum(subject)


def test_a_carrier_without_modules_is_refused():
    class Remote:
        name = "remote"

    alignscope.Subject.register(Remote)
    with pytest.raises(InputError, match="remote: the weights of the blocks can be read of a transformers model only"):
        block_weights(Remote())


def test_an_adapter_that_is_not_linear_is_refused():
    subject = alignscope.wrap(adapted("dora"))
    layer = subject.anatomy.blocks[0].self_attn.q_proj
    layer.register_forward_hook(lambda module, args, output: torch.relu(output))
    with pytest.raises(InputError, match=r"self_attn\.q_proj is not linear in its input"):
        list(block_weights(subject))
