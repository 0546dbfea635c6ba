"""LoReFT and its affine edit: closed forms, the first step against a naive one, on or off and nothing between."""

import pytest
import torch
from spinal_models import tiny_model
from tiny_steering import TWENTY as WORDS
from tiny_tokenizer import CHAT, tiny_tokenizer

import alignscope
from alignscope import InputError
from alignscope.probes.block_gradients import flowing_to
from alignscope.probes.subject import Tokens
from alignscope.steering import Clamp, Positions, Site, Subspace, baselines, side_effects, sweep, train_cdas
from alignscope.steering.affine import AffineSteering
from alignscope.steering.edits import Affine
from alignscope.steering.evaluation.kept import vector_key
from alignscope.steering.positions import prompt_ends
from alignscope.steering.preparing import prepare
from alignscope.steering.training import shuffled_batches

FAST = {"layer": [0, 2], "holdout": 0, "epochs": 1, "rank": 2, "positions": "f2+l1"}


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


@pytest.fixture(scope="module")
def loreft(llama) -> AffineSteering:
    return baselines.fit_loreft(llama, WORDS, layer=[0, 2], rank=2, epochs=8, lr=0.01)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(subject, rows: int = 1) -> torch.Tensor:
    ids = torch.tensor([[1, 9, 10, 11, 12, 13, 14]]).repeat(rows, 1)
    with torch.no_grad():
        return subject.logits(ids, torch.ones_like(ids))


# ---- the edit


def test_the_edit_is_its_formula():
    subspace, w, b, h = Subspace(drawn(2, 6)), drawn(2, 6, seed=1), drawn(2, seed=2), drawn(5, 6, seed=3)
    expected = torch.stack([x + subspace.basis.T @ (w @ x + b - subspace.basis @ x) for x in h])
    assert torch.allclose(Affine(subspace, w, b)(h), expected, atol=1e-6)


def test_w_equal_to_the_rotation_and_no_bias_change_nothing():
    subspace, h = Subspace(drawn(3, 8)), drawn(5, 8, seed=1)
    assert torch.allclose(Affine(subspace, subspace.basis, torch.zeros(3))(h), h, atol=1e-6)


def test_without_w_it_is_a_clamp_at_the_bias():
    subspace, h, b = Subspace(drawn(3, 8)), drawn(5, 8, seed=1), torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(Affine(subspace, torch.zeros(3, 8), b)(h), Clamp(subspace, b)(h))


def test_what_is_left_alone_is_left_to_the_bit():
    subspace, h = Subspace(drawn(1, 8)), drawn(2, 4, 8, seed=1)
    edit = Affine(subspace, drawn(1, 8, seed=2), torch.ones(1), rows=torch.tensor([True, False]))
    where = torch.tensor([[True, False, True, False]]).repeat(2, 1)
    found = edit(h, where)
    assert torch.equal(found[1], h[1])
    assert torch.equal(found[0, 1::2], h[0, 1::2])
    assert (found[0, ::2] != h[0, ::2]).any()


def test_parts_that_do_not_fit_are_refused():
    subspace = Subspace(drawn(2, 6))
    with pytest.raises(ValueError, match=r"expected \[2, 6\] and \[2\]"):
        Affine(subspace, drawn(3, 6), torch.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        Affine(subspace, drawn(2, 6), torch.tensor([0.0, float("inf")]))


def test_every_part_is_in_the_key():
    subspace, w, b = Subspace(drawn(1, 4)), drawn(1, 4, seed=1), torch.ones(1)
    keys = {
        Affine(subspace, w, b).key,
        Affine(Subspace(drawn(1, 4, seed=5)), w, b).key,
        Affine(subspace, w + 1, b).key,
        Affine(subspace, w, b + 1).key,
        Affine(subspace, w, b, Positions(prefix=1)).key,
    }
    assert len(keys) == 5


# ---- first and last tokens of the prompt


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("f2+l1", [1, 2, 5]),  # a row of 8, 6 of them the prompt's, one the prefix
        ("f2", [1, 2]),
        ("l2", [4, 5]),
        ("f4+l3", [1, 2, 3, 4, 5]),
        ("f9+l9", [1, 2, 3, 4, 5]),
    ],
)
def test_ends_of_the_prompt(text, edited):
    tokens = Tokens(index=torch.arange(8)[None], prompt=torch.tensor([6]))
    assert prompt_ends(text, 1).at(tokens)[0].nonzero()[:, 0].tolist() == edited


def test_ends_of_the_prompt_are_counted_among_real_tokens():
    tokens = Tokens(index=torch.tensor([[-1, -1, 0, 1, 2, 3]]), prompt=torch.tensor([3]))
    assert prompt_ends("f1+l1", 1).at(tokens).tolist() == [[False, False, False, True, True, False]]


@pytest.mark.parametrize("text", ["", "f", "f0", "x3", "f2l1", "f2+", "+l1", "l1+f2", "first"])
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="such as"):
        prompt_ends(text, 0)


# ---- training


def naive_loss(llama, rows, parts) -> torch.Tensor:
    """Mean -log pi of answer tokens under h + R^T (W h + b - R h) behind blocks 0 and 2, by plain hooks."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        prompt, answer = row.negative, row.positive_response
        places = sorted({1, 2, len(prompt) - 1})  # f2+l1 behind <bos>

        def hook(module, args, output, layer, places=places):
            h = output[0] if isinstance(output, tuple) else output
            r, w, b = parts[layer]
            new = h.clone()
            new[:, places] = h[:, places] + (h[:, places] @ w.T + b - h[:, places] @ r.T) @ r
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handles = [
            llama.model.model.layers[layer].register_forward_hook(
                lambda m, a, o, layer=layer, hook=hook: hook(m, a, o, layer)
            )
            for layer in parts
        ]
        out = llama.model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        for handle in handles:
            handle.remove()
        total = total - out.double().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
        n += len(answer)
    return total / n


def test_the_first_step_is_that_of_plain_forward_passes(llama, monkeypatch):
    parts = {
        layer: (Subspace(drawn(2, 32, seed=layer)).basis, drawn(2, 32, seed=layer + 7) / 4, drawn(2, seed=layer + 9))
        for layer in (0, 2)
    }
    monkeypatch.setattr(
        "alignscope.steering.baselines.loreft._start",
        lambda seed, rank, subject: tuple(part.clone().requires_grad_() for part in parts[seed - 42]),
    )
    seen = []
    clip = torch.nn.utils.clip_grad_norm_

    def watched(parameters, norm):
        seen.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    found = baselines.fit_loreft(llama, WORDS, batch_size=8, **FAST)
    data = prepare(llama, WORDS, layer=0, holdout=0)
    rows = [data.train[i] for i in shuffled_batches(20, epochs=1, size=8, seed=42, both=False)[0]]
    leaves = {layer: tuple(part.clone().requires_grad_() for part in three) for layer, three in parts.items()}
    with flowing_to(llama, []):
        expected = naive_loss(llama, rows, leaves)
        gradients = torch.autograd.grad(expected, [part for three in leaves.values() for part in three])
    assert found.history[0]["loss"] == pytest.approx(expected.item(), abs=1e-6)
    for got, wanted in zip(seen[0], gradients, strict=True):
        assert torch.allclose(got, wanted, atol=1e-6, rtol=1e-5)


def test_it_starts_where_nothing_is_edited(llama):
    found = baselines.fit_loreft(llama, WORDS, batch_size=20, **FAST)
    data = prepare(llama, WORDS, layer=0, holdout=0)
    with torch.no_grad():
        assert found.history[0]["loss"] == pytest.approx(naive_loss(llama, data.train, {}).item(), abs=1e-5)


def test_training_lowers_the_loss_and_keeps_the_rotation_orthonormal(loreft):
    losses = [step["loss"] for step in loreft.history]
    assert losses[-1] < losses[0] - 0.1
    assert list(loreft.edits) == [Site(0), Site(2)]
    for edit in loreft.edits.values():
        basis = edit.subspace.basis
        assert (basis @ basis.T - torch.eye(2)).abs().max() < 1e-5
        assert (edit.weight - basis).abs().max() > 1e-3
        assert edit.bias.abs().max() > 1e-3


def test_it_sees_what_training_sees(llama, loreft):
    trained = train_cdas(llama, WORDS, layer=1, epochs=1)
    for part in ("data", "sha256", "fingerprint", "seed", "source"):
        assert loreft.metadata[part] == trained.metadata[part]
    assert loreft.method == "loreft"
    assert [point["step"] for point in loreft.metadata["metrics"]["held_out"]] == list(range(9))  # 16 rows: one batch
    assert "trained to elicit only: the other direction is not its own" in loreft.notices()


def test_the_same_seed_trains_the_same_edit_and_another_one_another(llama):
    first, second, other = (baselines.fit_loreft(llama, WORDS, seed=seed, **FAST) for seed in (1, 1, 2))
    for site in first.edits:
        assert torch.equal(first.edits[site].weight, second.edits[site].weight)
        assert not torch.allclose(first.edits[site].weight, other.edits[site].weight)


def test_the_model_is_left_as_found(llama):
    model = llama.model
    before = {name: (value.detach().clone(), value.requires_grad) for name, value in model.named_parameters()}
    baselines.fit_loreft(llama, WORDS, **FAST)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert (value.requires_grad, value.grad) == (before[name][1], None)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0
    assert not any("forward" in block.__dict__ for block in model.model.layers)


def test_lower_blocks_left_out_or_run_give_one_training(llama):
    kept, whole = (baselines.fit_loreft(llama, WORDS, **{**FAST, "layer": 1, "cache_bytes": size}) for size in (2e9, 0))
    assert [step["loss"] for step in kept.history] == pytest.approx([step["loss"] for step in whole.history], abs=1e-6)
    assert any("from the start" in notice for notice in whole.notices())


def test_behind_a_template_the_first_tokens_are_the_users(llama):
    chat = alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer(template=CHAT))
    found = baselines.fit_loreft(chat, WORDS, **{**FAST, "layer": 1})
    tokens = Tokens(index=torch.arange(12)[None], prompt=torch.tensor([12]))
    edit = found.edits[Site(1)]
    assert edit.positions.at(tokens)[0].nonzero()[:, 0].tolist() == [3, 4, 11]


def test_positions_of_training_can_be_given(llama):
    found = baselines.fit_loreft(llama, WORDS, **{**FAST, "positions": Positions(last=2)})
    assert found.edits[Site(0)].positions == Positions(last=2)


# ---- applied


def test_strength_0_is_off_to_the_bit_and_1_is_on(llama, loreft):
    plain = logits(llama)
    with loreft.applied(llama, 0):
        assert torch.equal(logits(llama), plain)
        assert not any(module._forward_hooks for module in llama.model.modules())
    with loreft.applied(llama):
        assert (logits(llama) - plain).abs().max() > 1e-3
    assert torch.equal(logits(llama), plain)


def test_a_row_each_is_on_or_off(llama, loreft):
    plain = logits(llama)[0]
    with loreft.applied(llama):
        on = logits(llama)[0]
    with loreft.applied(llama, [1.0, 0.0, 1]):
        found = logits(llama, rows=3)
    assert torch.allclose(found[0], on, atol=1e-5)
    assert torch.allclose(found[1], plain, atol=1e-5)
    assert torch.allclose(found[2], on, atol=1e-5)
    assert loreft.edits_for([0, 1], batch=2)[Site(0)].rows.tolist() == [False, False, True, True]
    assert loreft.edits_for(torch.tensor([0, 1]))[Site(0)].rows.tolist() == [False, True]


def test_generated_tokens_are_not_edited(llama, loreft):
    """A cached step behind the prompt is that of a model whose prompt alone was edited."""
    tokens = Tokens(index=torch.tensor([[9]]), prompt=torch.tensor([9]))
    assert not loreft.edits[Site(0)].positions.at(tokens).any()
    with loreft.applied(llama):
        cached = llama.generate(["say c"], max_new_tokens=4)
        plain = llama.generate(["say c"], max_new_tokens=4, use_cache=False)
    assert cached == plain


@pytest.mark.parametrize("strength", [0.5, -1, [0.0, 2.0]])
def test_other_strengths_are_refused(llama, loreft, strength):
    with pytest.raises(InputError, match=r"on \(strength 1\) or off"):
        loreft.applied(llama, strength)


def test_other_weights_are_refused_and_tried_where_asked(loreft):
    other = alignscope.wrap(tiny_model(blocks=3, width=32, scale=1.1, changed=1), tiny_tokenizer())
    with pytest.raises(InputError, match="its weights are"):
        loreft.applied(other)
    with pytest.warns(UserWarning, match="its weights are"), loreft.applied(other, allow_other_weights=True):
        pass


def test_it_is_not_written_to_files(loreft, tmp_path):
    with pytest.raises(InputError, match="not written to files"):
        loreft.save(tmp_path / "v")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer": []}, "expected one at least"),
        ({"layer": [1, 1]}, "each once"),
        ({"layer": [1, 7]}, "layer 7 is not in 0 .. 2"),
        ({"rank": 33}, "rank 33: expected 1 .. 32"),
        ({"positions": "f0"}, "such as f5"),
        ({"positions": "some"}, "positions 'some'"),
        ({"lr": -1}, "lr=-1"),
        ({"prefix": 99}, "none that"),
    ],
)
def test_what_cannot_be_trained_is_refused(llama, change, told):
    with pytest.raises(InputError, match=told):
        baselines.fit_loreft(llama, WORDS, **(FAST | change))


def test_no_edits_are_refused():
    with pytest.raises(InputError, match="no edits"):
        AffineSteering(edits={})


# ------------------------------------------------------------------------------------------------- evaluated as others


def test_its_answers_in_a_sweep_are_those_of_the_model_that_wears_it(llama, loreft):
    prompts = ["say c", "say d", "say ef gh"]
    found = sweep(
        llama, prompts, loreft, [0, 1], lambda *_: (1, 1, 1), temperature=0, max_new_tokens=6, direction="elicit"
    )  # fmt: skip
    assert len(found.outputs) == 6
    for row in found.outputs.itertuples():
        with loreft.applied(llama, row.strength):
            assert [row.output] == llama.generate([row.prompt], max_new_tokens=6)


def test_its_side_effects_are_measured_and_strength_zero_has_none(llama, loreft):
    texts = ["say cd ef gh", "say ef", "say hh gg"]
    assert side_effects(llama, loreft, 0, texts=texts).estimates["kl"].value == 0.0
    assert side_effects(llama, loreft, 1, texts=texts).estimates["kl"].value > 1e-4


def test_other_edits_are_other_generations_to_keep(llama, loreft):
    other = baselines.fit_loreft(llama, WORDS, layer=[0, 2], rank=2, epochs=1, lr=0.01)
    assert vector_key(loreft) == vector_key(loreft)
    assert vector_key(loreft) != vector_key(other)
