"""A model whose residual rows have a known exponent: what the trace reads through hooks is what was planted."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import alignscope

N, WIDTH, BLOCKS = 512, 128, 3
WORDS = [f"w{i}" for i in range(N)]
POWERS = {0: 0.5, 1: 0.75, 2: 1.0, 3: 0.75}  # layer -> exponent of its rows


def planted(power: float, seed: int) -> np.ndarray:
    """[N, d] with singular values k^-power after centring, exactly: orthonormal columns, orthogonal to ones."""
    random = np.random.default_rng(seed)
    left = random.normal(size=(N, WIDTH))
    left, _ = np.linalg.qr(left - left.mean(0))
    right, _ = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))
    return 30 * left * np.arange(1, WIDTH + 1) ** -power @ right.T + 3.0


@pytest.fixture(scope="module")
def subject():
    """Blocks that add the difference of two planted tables, looked up by the token: layer l holds table l."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=N, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=BLOCKS, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=8, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    tables = [torch.tensor(planted(power, seed), dtype=torch.float32) for seed, power in enumerate(POWERS.values())]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(tables[0])
        for block in model.model.layers:  # attention and MLP add nothing
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    steps = [b - a for a, b in pairwise(tables)]
    for number, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda module, args, out, step=steps[number]: out + step[model.ids])
    model.register_forward_pre_hook(remember, with_kwargs=True)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return alignscope.wrap(model, PreTrainedTokenizerFast(tokenizer_object=core))


def remember(model, args, kwargs):
    """The ids of the pass, for the hooks of the blocks."""
    model.ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]


def test_every_layer_has_the_exponent_that_was_planted(subject):
    trace = alignscope.spinal_trace(subject, WORDS, lens_positions=0)
    assert trace.n == N == 4 * WIDTH
    for layer, power in POWERS.items():
        assert trace.layers.alpha[layer] == pytest.approx(power, abs=1e-3)
        assert trace.layers.r_squared[layer] > 0.999999
        assert trace.layers.curvature[layer] == pytest.approx(0.0, abs=1e-3)


def test_the_order_of_the_prompts_moves_no_exponent(subject):
    trace = alignscope.spinal_trace(subject, WORDS, lens_positions=0)
    reordered = alignscope.spinal_trace(subject, WORDS[::-1], lens_positions=0)
    assert reordered.layers.alpha.to_numpy() == pytest.approx(trace.layers.alpha.to_numpy(), abs=1e-10)
