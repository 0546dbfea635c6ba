"""Gradient concentration: exact shares, then plain autograd and finite differences, then what must not change it."""

import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_shared_prefix import model as zoo_subject
from tiny_tokenizer import PIECES, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import alignscope
from alignscope import InputError
from alignscope.diagnose.gradient_shares import block_norms, shares, window_share
from alignscope.diagnose.gradients import concentration_difference, gradient_concentration
from alignscope.diagnose.statistics import delete_group_jackknife
from alignscope.probes.encoding import Encoder, TextPolicy
from alignscope.probes.inputs import read_pairs
from alignscope.probes.quiet import quiet_loading
from alignscope.probes.scoring import encode_pairs

CLOSE = 1e-9  # relative, float64 models: the order of additions alone differs


def llama(*, blocks: int = 4, width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(PIECES), hidden_size=width, intermediate_size=width, num_hidden_layers=blocks,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def wrapped(model=None, **options):
    return alignscope.wrap(llama(**options) if model is None else model, tiny_tokenizer())


def rows(n: int) -> list[dict]:
    return [
        {"id": f"p{i}", "prompt": f"{i:03d}{'pq' * (i % 3 + 1)}", "chosen": f"y{i}{'z' * (i % 5)}", "rejected": f"n{i}"}
        for i in range(n)
    ]


def encoded(subject, pairs: list[dict]):
    encoder = Encoder(subject.tokenizer, TextPolicy(), vocab_rows=subject.vocab_size)
    return {pair.pair.pair_id: pair for pair in encode_pairs(read_pairs(pairs), encoder)[0]}


def log_prob(model, ids: tuple[int, ...], start: int) -> torch.Tensor:
    """log pi of ids[start:], one unpadded row, plain torch."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None]).sum()


def margin(model, pair) -> torch.Tensor:
    return log_prob(model, pair.chosen_ids, pair.start) - log_prob(model, pair.rejected_ids, pair.start)


def square(loss: torch.Tensor, weights) -> float:
    gradients = torch.autograd.grad(loss, [*weights], retain_graph=True)
    return sum(float(gradient.square().sum()) for gradient in gradients)


def naive_squares(model, losses: list[torch.Tensor]) -> np.ndarray:
    """|d loss / d block|^2 by plain backward passes, [losses, blocks]."""
    return np.array([[square(loss, layer.parameters()) for layer in model.model.layers] for loss in losses])


@contextmanager
def outputs_of(layers):
    """The outputs of the layers, of every forward pass inside."""
    kept: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda module, args, output: kept.append(output)) for layer in layers]
    yield kept
    for hook in hooks:
        hook.remove()


class TestShares:
    """Exact answers of norms, shares and windows."""

    def test_norms_that_grow_with_depth(self):
        assert window_share(np.arange(1.0, 31.0), 21, 30) == pytest.approx(255 / 465 - 1 / 3, abs=1e-15)

    @given(st.integers(3, 40), st.floats(1e-6, 1e6))
    def test_a_uniform_gradient_is_concentrated_nowhere(self, n, value):
        assert abs(window_share(np.full(n, value), n // 2, n)) < 1e-12

    @given(arrays(float, 8, elements=st.floats(0.01, 100)))
    def test_the_whole_model_is_no_window(self, norms):
        assert abs(window_share(norms, 1, 8)) < 1e-12

    def test_all_in_the_last_block(self):
        assert window_share(np.array([0.0, 0.0, 0.0, 5.0]), 4, 4) == 0.75

    def test_norms_are_root_mean_squares(self):
        squares = np.array([[9.0, 1.0], [16.0, 1.0]])
        assert block_norms(squares).tolist() == [math.sqrt(12.5), 1.0]
        assert block_norms(squares, squared=True).tolist() == [12.5, 1.0]

    def test_no_gradient_has_no_shares(self):
        assert np.isnan(shares(np.zeros(3))).all()

    @pytest.mark.parametrize("window", [(0, 2), (2, 1), (3, 5)])
    def test_a_window_outside_the_model_is_refused(self, window):
        with pytest.raises(ValueError, match="expected 1 <= first <= last <= 4"):
            window_share(np.ones(4), *window)

    def test_a_negative_norm_is_refused(self):
        with pytest.raises(ValueError, match="norms are >= 0, got -1"):
            window_share(np.array([1.0, -1.0]), 1, 2)


class TestOracles:
    """Against plain autograd on one unpadded row at a time, and finite differences."""

    def test_margin(self):
        model, pairs = llama(), rows(5)
        found = gradient_concentration(wrapped(model), pairs)
        known = encoded(wrapped(model), pairs)
        expected = naive_squares(model, [margin(model, known[name]) for name in found.pair_ids])
        np.testing.assert_allclose(found.squares, expected, rtol=CLOSE)
        np.testing.assert_allclose(found.frame.norm, np.sqrt(expected.mean(0)), rtol=CLOSE)

    def test_nll(self):
        model, pairs = llama(), rows(4)
        found = gradient_concentration(wrapped(model), pairs, loss="nll")
        known = encoded(wrapped(model), pairs)
        losses = [-log_prob(model, known[name].chosen_ids, known[name].start) for name in found.pair_ids]
        np.testing.assert_allclose(found.squares, naive_squares(model, losses), rtol=CLOSE)

    def test_dpo(self):
        model, other, pairs = llama(), llama(seed=1), rows(4)
        found = gradient_concentration(wrapped(model), pairs, loss="dpo", reference=wrapped(other), beta=0.3)
        known = encoded(wrapped(model), pairs)
        losses = [
            torch.nn.functional.softplus(-0.3 * (margin(model, known[p]) - margin(other, known[p]).detach()))
            for p in found.pair_ids
        ]
        np.testing.assert_allclose(found.squares, naive_squares(model, losses), rtol=1e-6)  # norms are float32

    @pytest.mark.parametrize("beta", [0.1, 3.0])
    def test_a_pairs_shares_under_dpo_are_those_of_its_margin(self, beta):
        model, pairs = wrapped(), rows(6)
        by_margin = gradient_concentration(model, pairs)
        by_dpo = gradient_concentration(model, pairs, loss="dpo", reference=wrapped(seed=1), beta=beta)
        np.testing.assert_allclose(by_dpo.pair_shares(), by_margin.pair_shares(), rtol=1e-12)
        np.testing.assert_allclose(by_margin.pair_shares().sum(1), 1.0, rtol=1e-12)
        assert not np.allclose(by_dpo.frame.norm, by_margin.frame.norm, rtol=0.1)

    def test_shares_survive_saturation(self):
        model, reference = (wrapped(seed=seed, dtype=torch.float32) for seed in (0, 1))
        found = gradient_concentration(model, rows(6), loss="dpo", reference=reference, beta=20.0)
        pulls = found.squares.sum(1)
        assert 0 < pulls.min() < 1e-38, "float32 could not hold such a square"
        assert np.isfinite(found.pair_shares()).sum() == found.pair_shares().size

    def test_finite_differences_of_every_weight_of_a_block(self):
        torch.manual_seed(0)
        sizes = {"n_embd": 4, "n_inner": 4, "n_layer": 3, "n_head": 2, "n_positions": 32, "initializer_range": 0.5}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(PIECES), **sizes)).double().eval()
        found = gradient_concentration(wrapped(model), rows(1))
        (pair,) = encoded(wrapped(model), rows(1)).values()
        step, total = 1e-4, 0.0
        with torch.no_grad():
            for parameter in model.transformer.h[1].parameters():
                flat = parameter.view(-1)
                for i in range(len(flat)):
                    flat[i] += step
                    up = float(margin(model, pair))
                    flat[i] -= 2 * step
                    down = float(margin(model, pair))
                    flat[i] += step
                    total += ((up - down) / (2 * step)) ** 2
        assert found.squares[0, 1] == pytest.approx(total, rel=1e-6)  # the third derivative's share

    def test_blocks_and_the_rest_add_up_to_the_whole_gradient(self):
        model, pairs = llama(), rows(1)
        found = gradient_concentration(wrapped(model), pairs)
        (pair,) = encoded(wrapped(model), pairs).values()
        margin(model, pair).backward()
        total = sum(float(p.grad.square().sum()) for p in model.parameters())
        rest = sum(float(p.grad.square().sum()) for name, p in model.named_parameters() if "layers" not in name)
        assert found.squares.sum() + rest == pytest.approx(total, rel=CLOSE)

    def test_residual(self):
        model, pairs = llama(), rows(3)
        found = gradient_concentration(wrapped(model), pairs, of="residual")
        known = encoded(wrapped(model), pairs)
        for i, name in enumerate(found.pair_ids):
            with outputs_of(model.model.layers) as kept:
                gradients = torch.autograd.grad(margin(model, known[name]), kept)
            squares = np.array([float(g.square().sum()) for g in gradients]).reshape(2, -1).sum(0)
            np.testing.assert_allclose(found.squares[i], squares, rtol=CLOSE)

    def test_lens_local(self):
        model, pairs = llama(), rows(3)
        found = gradient_concentration(wrapped(model), pairs, of="lens_local")
        known = encoded(wrapped(model), pairs)
        for i, name in enumerate(found.pair_ids):
            pair = known[name]
            with outputs_of(model.model.layers) as kept:
                model(input_ids=torch.tensor([pair.chosen_ids]))
            targets = torch.tensor(pair.chosen_ids[pair.start :])[:, None]
            read = [model.lm_head(model.model.norm(h))[0, pair.start - 1 : -1].log_softmax(-1) for h in kept]
            expected = [
                square(z.gather(1, targets).sum(), layer.parameters())
                for z, layer in zip(read, model.model.layers, strict=True)
            ]
            np.testing.assert_allclose(found.squares[i], expected, rtol=CLOSE)
        np.testing.assert_allclose(found.frame.norm, found.squares.mean(0), rtol=1e-12)

    @pytest.mark.parametrize("of", ["parameters", "residual", "lens_local"])
    @pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral", "mamba", "opt", "cohere"])
    def test_other_architectures_have_a_gradient_in_every_block(self, name, of):
        found = gradient_concentration(zoo_subject(name), rows(2), of=of, boundary="accept")
        assert (found.frame.norm > 0).all()


class TestAdapters:
    """The gradient of an adapter is that of the full effective matrices."""

    def peft_model(self, **options):
        targets = {"target_modules": ["q_proj", "down_proj"], "r": 2}
        with quiet_loading(offline=True), torch.no_grad():  # peft asks transformers for what it renamed
            torch.manual_seed(3)
            made = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", **targets | options))
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        return made.eval()

    def test_it_is_the_merged_models(self):
        adapted = self.peft_model()
        found = gradient_concentration(wrapped(adapted), rows(3))
        merged = gradient_concentration(wrapped(adapted.merge_and_unload()), rows(3))
        np.testing.assert_allclose(found.squares, merged.squares, rtol=CLOSE)
        assert (found.frame.parameters == merged.frame.parameters).all()

    def test_switched_off_it_is_the_bases(self):
        found = gradient_concentration(wrapped(self.peft_model()).without_adapter(), rows(3))
        np.testing.assert_allclose(found.squares, gradient_concentration(wrapped(), rows(3)).squares, rtol=CLOSE)

    @pytest.mark.parametrize("of", ["residual", "lens_local"])
    def test_the_other_places_read_the_adapted_model(self, of):
        adapted = self.peft_model()
        found = gradient_concentration(wrapped(adapted), rows(3), of=of)
        merged = gradient_concentration(wrapped(adapted.merge_and_unload()), rows(3), of=of)
        np.testing.assert_allclose(found.squares, merged.squares, rtol=CLOSE)

    def test_a_weight_that_is_not_simply_added_to_is_refused(self):
        with pytest.raises(InputError, match="only plain LoRA adds to a weight"):
            gradient_concentration(wrapped(self.peft_model(use_dora=True)), rows(3))


class TestLeftAsFound:
    @pytest.mark.parametrize("of", ["parameters", "residual", "lens_local"])
    def test_mode_requires_grad_gradients_and_hooks(self, of):
        model = llama().train()
        for i, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(i % 2 == 0)
        first = next(model.parameters())
        first.grad = torch.ones_like(first)
        gradient_concentration(wrapped(model), rows(2), of=of)
        assert all(module.training for module in model.modules())
        assert [p.requires_grad for p in model.parameters()] == [i % 2 == 0 for i, _ in enumerate(model.parameters())]
        assert torch.equal(first.grad, torch.ones_like(first))
        assert [p.grad for p in model.parameters()][1:] == [None] * (len([*model.parameters()]) - 1)
        hooks = [(*m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()]
        assert hooks == [()] * len(hooks)

    def test_after_a_failure_too(self):
        model = llama().requires_grad_(False)
        broken = wrapped(model)
        broken.logits = lambda *args: 1 / 0
        with pytest.raises(ZeroDivisionError):
            gradient_concentration(broken, rows(2))
        assert not any(p.requires_grad for p in model.parameters())


class TestPairsAndIntervals:
    def test_the_order_of_the_file_plays_no_part(self):
        model, pairs = wrapped(blocks=3, width=8), rows(40)
        one, other = (gradient_concentration(model, some, n=8) for some in (pairs, pairs[::-1]))
        assert one.pair_ids == other.pair_ids
        assert np.array_equal(one.squares, other.squares)

    def test_another_seed_draws_other_pairs(self):
        model, pairs = wrapped(blocks=3, width=8), rows(40)
        assert set(gradient_concentration(model, pairs, n=8, seed=1).pair_ids) != set(
            gradient_concentration(model, pairs, n=8).pair_ids
        )

    def test_fewer_pairs_than_asked_for_are_all_used_and_said(self):
        found = gradient_concentration(wrapped(blocks=3, width=8), rows(5))
        assert (found.n, found.warnings) == (5, ("5 pairs where 32 were asked for",))

    def test_the_interval_is_the_jackknife_of_the_whole_computation(self):
        found = gradient_concentration(wrapped(blocks=4, width=8), rows(16))
        estimate = found.concentration((3, 4))
        without = [window_share(block_norms(np.delete(found.squares, i, 0)), 3, 4) for i in range(16)]
        reach = 2.131450 * delete_group_jackknife(np.array(without))  # t of .975 with 15 degrees of freedom
        assert estimate.value == pytest.approx(float(window_share(block_norms(found.squares), 3, 4)), abs=1e-15)
        assert estimate.high - estimate.value == pytest.approx(reach, rel=1e-6)
        assert estimate.value - estimate.low == pytest.approx(reach, rel=1e-6)
        assert (estimate.n, estimate.n_clusters, estimate.reconstructed) == (16, 16, True)

    def test_pairs_of_one_prompt_are_left_out_together(self):
        pairs = [{"prompt": f"{i:03d}qq", "chosen": f"y{k}", "rejected": f"n{k}z"} for i in range(16) for k in (1, 2)]
        found = gradient_concentration(wrapped(blocks=3, width=8), pairs).concentration((3, 3))
        assert (found.n, found.n_clusters, found.method) == (32, 16, "delete-group jackknife over prompts, 16 groups")

    def test_too_few_prompts_have_no_interval_but_a_reason(self):
        found = gradient_concentration(wrapped(blocks=3, width=8), rows(6))
        assert found.concentration().reason == "6 prompts: a jackknife interval needs 16"
        assert found.group_norms() is None  # nor has what rests on it, as the composite
        assert found.frame.share_low.isna().all()
        assert set(found.frame.reason) == {"6 prompts: a jackknife interval needs 16"}

    def test_a_model_without_gradients_has_none_and_a_reason(self):
        model = llama(blocks=3, width=8)
        with torch.no_grad():
            model.lm_head.weight.zero_()
        found = gradient_concentration(wrapped(model), rows(3))
        assert found.concentration().value is None
        assert found.concentration().reason == "every gradient is 0"

    def test_a_pair_with_a_nan_is_left_out_and_counted(self):
        model = llama(blocks=3, width=8)
        with torch.no_grad():
            model.model.embed_tokens.weight[PIECES["x"]] = 1e300  # overflows where an x is read
        found = gradient_concentration(wrapped(model), [*rows(3), {"prompt": "xx", "chosen": "a", "rejected": "c"}])
        assert (found.n, found.counts["nonfinite"]) == (3, 1)
        assert "1 pairs were left out: NaN or infinity in their gradients" in found.warnings

    def test_blocks_of_unequal_size_are_compared_by_weight(self):
        model = llama(blocks=3, width=8)
        plain = gradient_concentration(wrapped(model), rows(3))
        layer = model.model.layers[1].self_attn.q_proj
        layer.bias = torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))
        found = gradient_concentration(wrapped(model), rows(3))
        assert not plain.settings["per_parameter"]
        assert found.settings["per_parameter"]
        sizes = found.frame.parameters.to_numpy()
        np.testing.assert_allclose((found.squares * sizes)[:, 0], plain.squares[:, 0], rtol=CLOSE)

    def test_a_contrast_of_a_model_with_itself_is_zero(self):
        found = gradient_concentration(wrapped(blocks=3, width=8), rows(16))
        estimate = concentration_difference(found, found)
        assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)

    def test_a_contrast_is_aligned_minus_base_on_the_same_pairs(self):
        base, aligned = (gradient_concentration(wrapped(blocks=4, width=8, seed=s), rows(16)) for s in (0, 1))
        estimate = concentration_difference(base, aligned, (3, 4))
        assert estimate.value == pytest.approx(aligned.concentration((3, 4)).value - base.concentration((3, 4)).value)
        assert estimate.low < estimate.value < estimate.high

    def test_a_contrast_of_other_pairs_is_refused(self):
        base, other = (gradient_concentration(wrapped(blocks=3, width=8), rows(n)) for n in (4, 5))
        with pytest.raises(InputError, match="other pairs or ids"):
            concentration_difference(base, other)

    def test_a_contrast_of_other_losses_is_refused(self):
        base, other = (gradient_concentration(wrapped(blocks=3, width=8), rows(4), loss=x) for x in ("margin", "nll"))
        with pytest.raises(InputError, match="loss is 'margin' of the base and 'nll'"):
            concentration_difference(base, other)

    def test_progress_is_told_pair_by_pair(self):
        told = []
        gradient_concentration(wrapped(blocks=3, width=8), rows(3), progress=lambda *step: told.append(step[1:]))
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_the_summary_says_what_is_reconstructed(self):
        assert "(reconstructed)" in gradient_concentration(wrapped(blocks=3, width=8), rows(3)).summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "kto"}, "loss='kto': expected one of margin, nll, dpo"),
        ({"of": "weights"}, "of='weights': expected one of parameters, residual, lens_local"),
        ({"loss": "dpo"}, "loss='dpo' needs the model training started from"),
        ({"loss": "dpo", "of": "lens_local"}, "has a loss of its own"),
        ({"n": 0}, "n=0: at least 1 pair"),
        ({"beta": 0.0}, "beta=0.0: a number above 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        gradient_concentration(wrapped(blocks=3, width=8), rows(3), **options)


def test_packed_weights_are_refused_by_name():
    model = llama(blocks=3, width=8)
    subject = wrapped(model)
    packed = torch.zeros(8, 8, dtype=torch.int8)
    model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(InputError, match=r"block 2: mlp\.up_proj\.weight is torch\.int8: packed weights"):
        gradient_concentration(subject, rows(3))


def test_shared_blocks_are_refused():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(PIECES), n_embd=16, n_layer=3, n_head=2, n_positions=64)).eval()
    subject = wrapped(model)
    model.transformer.h[2].mlp.c_fc.weight = model.transformer.h[1].mlp.c_fc.weight
    with pytest.raises(InputError, match="blocks share weights"):
        gradient_concentration(subject, rows(3))


@pytest.mark.real
def test_a_real_adapter(ladder: Path, ladder_reference: Path, data_folder: Path):
    policy = alignscope.load(ladder_reference, adapter=ladder / "dpo" / "step_100")
    before = [p.requires_grad for p in policy.model.parameters()]
    pairs = read_pairs(data_folder / "data" / "hh_harmless" / "test.jsonl").take(20)
    options = {"template": "none", "eos": "none", "max_length": 64, "max_invalid": 1.0}
    found = gradient_concentration(policy, pairs, n=1, **options)
    assert (found.frame.norm > 0).all()
    assert len(found.frame) == 30
    assert found.frame.parameters.nunique() == 1
    assert [p.requires_grad for p in policy.model.parameters()] == before
