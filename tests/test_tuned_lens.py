"""Tuned lens: what it must not change first, then what training brings, then files and refusals."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spinal_models import letters, tiny_model, tiny_subject
from test_shared_prefix import model as zoo_subject
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, TunedLens, train_lens
from alignscope.diagnose.lens_training import kl_rows, read_texts, split
from alignscope.diagnose.spinal_lens import lens_steps
from alignscope.diagnose.spinal_reading import TracedPrompt

CHEAP = {"steps": 12, "step_prompts": 8, "positions": 2, "max_tokens": 24}


def small(**options):
    return tiny_subject(blocks=3, width=16, **options)


@pytest.fixture(scope="module")
def subject():
    return small()


@pytest.fixture(scope="module")
def lens(subject):
    return train_lens(subject, letters(60), **CHEAP)


@pytest.fixture(scope="module")
def trained_stories(data_folder):
    """A real model of five layers, and its lens from 160 stories."""
    texts = json.loads((data_folder / "data" / "corpora" / "tinystories_1000.json").read_text())
    texts = [text if isinstance(text, str) else text["text"] for text in texts][:160]
    model = alignscope.load(data_folder / "models" / "stories260k")
    return model, train_lens(model, texts, steps=40, max_tokens=48, positions=6)


class TestApply:
    def test_it_is_h_plus_a_h_plus_b(self, subject):
        weight = torch.zeros(3, 16, 16)
        weight[1, 0, 2] = 3.0
        bias = torch.zeros(3, 16)
        bias[1, 0] = 5.0
        found = TunedLens(weight=weight, bias=bias, kept=(False, True, True), model={}).apply(1, torch.arange(16.0))
        assert found.tolist() == [0 + 3 * 2 + 5, *range(1, 16)]

    @given(st.integers(0, 2**31))
    def test_the_last_layer_and_layers_not_kept_are_the_residual_itself(self, seed):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        lens = TunedLens(weight=draw(2, 4, 4), bias=draw(2, 4), kept=(True, False), model={})
        h = draw(3, 4)
        assert torch.equal(lens.apply(2, h), h)
        assert torch.equal(lens.apply(1, h), h)
        assert not torch.equal(lens.apply(0, h), h)

    def test_the_identity_lens_is_the_logit_lens(self, subject):
        rows = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
        read = TunedLens.identity(subject).translate(rows)
        assert torch.equal(read, rows)
        for one, other in zip(
            lens_steps(subject, rows, vocab=40), lens_steps(subject, read, vocab=40), strict=True
        ):
            assert np.array_equal(one, other)

    def test_translated_rows_end_in_the_models_own_distribution(self, subject, lens):
        rows = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
        read = lens.translate(rows)
        assert torch.equal(subject.readout(read[-1]), subject.readout(rows[-1]))
        assert torch.equal(read[0], lens.apply(0, rows[0]))
        assert read.shape == rows.shape

    @pytest.mark.parametrize(
        ("layer", "width", "message"),
        [(4, 16, r"layer 4: expected 0 \.\. 3"), (-1, 16, "layer -1"), (1, 8, "expected a width of 16")],
    )
    def test_another_layer_or_width_is_refused(self, lens, layer, width, message):
        with pytest.raises(ValueError, match=message):
            lens.apply(layer, torch.zeros(2, width))

    def test_rows_of_another_depth_are_refused(self, lens):
        with pytest.raises(ValueError, match="expected 4 layers"):
            lens.translate(torch.zeros(3, 2, 16))


class TestLoss:
    def test_kl_of_two_coins(self):
        p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
        expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        assert kl_rows(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-6)

    @given(st.integers(0, 2**31))
    def test_a_distribution_is_at_distance_zero_from_itself_only(self, seed):
        z = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)
        assert kl_rows(z, z).abs().max() < 1e-15
        assert kl_rows(z[:1], z[1:]) > 0


class TestTraining:
    def test_the_training_loss_begins_at_the_logit_lens(self, subject, lens):
        """Step 1 is taken from the identity: its losses are of the size of the held-out KL before."""
        assert np.allclose(lens.losses[0], lens.layers.kl_before, rtol=0.5)
        assert len(lens.losses) == CHEAP["steps"]

    def test_held_out_kl_falls_in_every_layer_that_is_kept(self, lens):
        kept = lens.layers[lens.layers.kept]
        assert len(kept) >= 1
        assert (kept.kl_after < kept.kl_before).all()
        assert (kept.gain_low > 0).all()
        np.testing.assert_allclose(lens.layers.gain, lens.layers.kl_before - lens.layers.kl_after, atol=1e-12)

    def test_a_layer_that_did_not_improve_keeps_the_identity_and_is_named(self, subject):
        found = train_lens(subject, letters(60), learning_rate=1000.0, **CHEAP)  # far too large: every layer gets worse
        assert found.kept == (False,) * 3
        assert (found.layers.kl_after > found.layers.kl_before).all()
        assert found.warnings == (
            "layers 0, 1, 2: the held-out KL did not fall; they are read as by the logit lens",
        )
        assert not found.weight.any()
        h = torch.ones(2, 16)
        assert torch.equal(found.apply(1, h), h)

    def test_the_same_seed_gives_the_same_lens_in_any_order_of_prompts(self, subject, lens):
        again = train_lens(subject, letters(60)[::-1], **CHEAP)
        assert torch.equal(lens.weight, again.weight)
        assert torch.equal(lens.bias, again.bias)
        assert lens.layers.equals(again.layers)

    def test_another_seed_gives_another_lens(self, subject, lens):
        assert not torch.equal(lens.weight, train_lens(subject, letters(60), seed=1, **CHEAP).weight)

    @pytest.mark.parametrize("batch_size", [1, 5])
    def test_the_batch_size_moves_nothing_beyond_rounding(self, subject, lens, batch_size):
        other = train_lens(subject, letters(60), batch_size=batch_size, **CHEAP)
        assert (other.weight - lens.weight).abs().max() < 1e-5
        assert (other.bias - lens.bias).abs().max() < 1e-5
        columns = ["kl_before", "kl_after", "gain_low", "gain_high"]
        np.testing.assert_allclose(other.layers[columns], lens.layers[columns], atol=1e-5)

    def test_small_tiles_of_logits_move_nothing_beyond_rounding(self, subject, lens, monkeypatch):
        monkeypatch.setattr("alignscope.diagnose.lens_training.READOUT_BYTES", 4 * 47 * 8)
        assert (train_lens(subject, letters(60), **CHEAP).weight - lens.weight).abs().max() < 1e-5

    def test_the_model_is_left_as_it_was_found(self):
        model = tiny_model(blocks=3, width=16).train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train_lens(alignscope.wrap(model, tiny_tokenizer()), letters(60), **{**CHEAP, "steps": 2})
        assert model.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_a_head_that_is_more_than_weight_and_bias_is_trained_through(self):
        texts = [f"the cat {i} sat on {i * 7 % 13} mats" for i in range(60)]
        found = train_lens(zoo_subject("gemma2"), texts, **{**CHEAP, "steps": 3})
        assert np.isfinite(found.layers.kl_after).all()

    def test_prompts_of_one_id_stay_on_one_side(self):
        prompts = [
            TracedPrompt(row=i, prompt_id=str(i // 3), digest=str(i), ids=(1, 2), positions=(1,)) for i in range(150)
        ]
        training, held_out = split(prompts, 0)
        assert {p.prompt_id for p in training}.isdisjoint({p.prompt_id for p in held_out})
        assert (len(training), len(held_out)) == (90, 60)

    def test_a_real_model_is_read_better_in_every_layer(self, trained_stories):
        _, lens = trained_stories
        assert lens.kept == (True,) * 5
        assert (lens.layers.kl_after < 0.85 * lens.layers.kl_before).all()
        assert set(lens.layers.n) == {32}

    def test_a_real_models_last_layer_is_its_own(self, trained_stories):
        model, lens = trained_stories
        rows = torch.randn(6, 3, 64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model.readout(lens.translate(rows)[-1]), model.readout(rows[-1]))


class TestFiles:
    def test_what_was_saved_comes_back(self, lens, subject, tmp_path):
        back = TunedLens.load(lens.save(tmp_path / "lens"))
        assert torch.equal(back.weight, lens.weight)
        assert torch.equal(back.bias, lens.bias)
        for name in ("kept", "model", "losses", "settings", "data", "warnings"):
            assert getattr(back, name) == json.loads(json.dumps(getattr(lens, name)), object_hook=dict) or getattr(
                back, name
            ) == getattr(lens, name)
        np.testing.assert_allclose(back.layers.gain_low, lens.layers.gain_low, rtol=1e-13)
        back.require_fits(subject)
        assert sorted(path.name for path in (tmp_path / "lens").iterdir()) == ["lens.json", "lens.safetensors"]

    def test_an_identity_lens_can_be_saved_too(self, subject, tmp_path):
        back = TunedLens.load(TunedLens.identity(subject).save(tmp_path))
        assert back.kept == (False,) * 3
        assert "0 of 3 layers translated" in back.summary()

    def test_another_model_is_refused_unless_the_lens_is_shared(self, lens):
        other = small(scale=1.1, changed=2)
        with pytest.raises(InputError, match=r"has other weights .*take --shared-lens"):
            lens.require_fits(other)
        lens.require_fits(other, shared=True)

    def test_another_tokenizer_on_the_same_weights_is_no_other_model(self, lens):
        lens.require_fits(alignscope.wrap(tiny_model(blocks=3, width=16), tiny_tokenizer(bos=False)))

    @pytest.mark.parametrize("options", [{"blocks": 3, "width": 32}, {"blocks": 4, "width": 16}])
    def test_another_width_or_depth_is_refused_even_if_shared(self, lens, options):
        with pytest.raises(InputError, match="made for 3 blocks, width 16 and 47 vocabulary rows"):
            lens.require_fits(tiny_subject(**options), shared=True)

    def test_a_folder_without_a_lens(self, tmp_path):
        with pytest.raises(InputError, match=r"lens\.json: no such file"):
            TunedLens.load(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "not JSON"),
            ("[]", "not the header of a lens"),
            ('{"format": "alignscope tuned lens", "version": 9}', "version 9, this alignscope reads 1"),
        ],
    )
    def test_a_damaged_header(self, lens, tmp_path, content, message):
        lens.save(tmp_path)
        (tmp_path / "lens.json").write_text(content)
        with pytest.raises(InputError, match=message):
            TunedLens.load(tmp_path)

    def test_tensors_of_another_lens(self, lens, subject, tmp_path):
        TunedLens.identity(subject).save(tmp_path)
        tensors = (tmp_path / "lens.safetensors").read_bytes()
        lens.save(tmp_path)
        (tmp_path / "lens.safetensors").write_bytes(tensors)
        with pytest.raises(InputError, match=r"not the tensors that lens\.json describes"):
            TunedLens.load(tmp_path)

    def test_cut_tensors(self, lens, tmp_path):
        lens.save(tmp_path)
        file = tmp_path / "lens.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(InputError, match=r"lens\.safetensors: not readable"):
            TunedLens.load(tmp_path)


class TestTexts:
    def test_passages_stand_between_blank_lines(self, tmp_path):
        (tmp_path / "a.txt").write_text("one\ntwo\n\n\n\nthree\r\n\r\n four \n")
        file = read_texts(tmp_path / "a.txt")
        assert [prompt.text for prompt in file] == ["one\ntwo", "three", "four"]
        assert file.source == str(tmp_path / "a.txt")

    def test_an_empty_text_is_refused(self, tmp_path):
        (tmp_path / "a.txt").write_text(" \n\n ")
        with pytest.raises(InputError, match="the file is empty"):
            read_texts(tmp_path / "a.txt")

    def test_too_few_prompts_are_refused_with_their_number(self, subject):
        with pytest.raises(InputError, match="39 distinct prompts; a lens needs at least 40, 20 of them held out"):
            train_lens(subject, letters(39), **CHEAP)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [({"steps": 0}, "steps=0"), ({"batch_size": 0}, "batch_size=0"), ({"learning_rate": 0.0}, "learning_rate=0.0")],
    )
    def test_bad_settings_are_refused(self, subject, setting, message):
        with pytest.raises(InputError, match=message):
            train_lens(subject, letters(60), **{**CHEAP, **setting})

    def test_a_loss_that_is_not_finite_is_refused_with_its_layer(self):
        model = tiny_model(blocks=3, width=16)
        subject = alignscope.wrap(model, tiny_tokenizer())
        model.model.layers[1].mlp.down_proj.weight.data.fill_(1e38)
        with pytest.raises(InputError, match="the lens's loss is not finite at step 1, layer 0"):
            train_lens(subject, letters(60), **CHEAP)

    def test_progress_is_told_for_steps_and_for_the_held_out_prompts(self, subject):
        told = []
        train_lens(subject, letters(60), progress=lambda *step: told.append(step), **{**CHEAP, "steps": 2})
        assert told[:2] == [("lens of LlamaForCausalLM", 1, 2), ("lens of LlamaForCausalLM", 2, 2)]
        assert told[-1] == ("held-out KL of LlamaForCausalLM", 20, 20)
