"""train_cdas on models: the gates of test C on a model whose answers are known, and what training must leave alone."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from spinal_models import tiny_model
from tiny_steering import TWENTY as WORDS
from tiny_tokenizer import CHAT, tiny_tokenizer

import alignscope
import zoo as models
from alignscope import InputError
from alignscope.probes.block_gradients import flowing_to
from alignscope.probes.padding import padded
from alignscope.probes.resuming import LowerBlocks
from alignscope.probes.token_positions import announced_prompts
from alignscope.steering import (
    Clamp,
    Factors,
    Positions,
    Site,
    Subspace,
    train_cdas,
)
from alignscope.steering.encoded import RunPair, encode_quadruples, quadruple_encoder, run_pairs
from alignscope.steering.preparing import prepare
from alignscope.steering.quadruples import read_quadruples
from alignscope.steering.runs import predicting
from alignscope.steering.separation import auroc, measured_factors, oriented
from alignscope.steering.training import shuffled_batches
from alignscope.steering.training_rows import TrainingRows, training_rows

FAST = {"layer": 1, "holdout": 0, "epochs": 1}


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


@pytest.fixture(scope="module")
def chat() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer(template=CHAT))


def rows_of(subject, *, cache_bytes=2e9, layer=1, component="resid_post", quadruples=WORDS, **options) -> TrainingRows:
    data = prepare(subject, quadruples, layer=layer, component=component, holdout=0, **options)
    pairs = run_pairs(data.train, "both")
    return training_rows(subject, data.site, data.positions, pairs, cache_bytes=cache_bytes)[0]


def direction(d: int = 32, rank: int = 1) -> Subspace:
    return Subspace(torch.randn(rank, d, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("seed", range(6))
def test_the_direction_points_to_the_prompts_with_the_concept(llama, seed):
    vector = train_cdas(llama, WORDS, seed=seed, **FAST)
    assert float(vector.factors.positive) >= float(vector.factors.negative)


def test_turning_a_direction_to_the_concept_changes_no_state():
    states = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
    found = Subspace(states[0].mean(0) - states[1].mean(0))
    for subspace in (found, Subspace(-found.basis)):
        factors = measured_factors(subspace, *states)
        turned, measured = oriented(subspace, factors)
        again = measured_factors(turned, *states)
        assert torch.equal(turned.basis, found.basis)
        for name in ("positive", "negative", "std"):
            assert torch.equal(getattr(measured, name), getattr(again, name))
        assert (measured.auroc, measured.n) == (pytest.approx(again.auroc), 9)
        h = states[2]
        expected = Clamp(subspace, factors.target(1.5))(h)
        assert torch.allclose(Clamp(turned, measured.target(1.5))(h), expected, atol=1e-6)


def test_of_a_higher_rank_nothing_is_turned():
    subspace, low, high = direction(8, rank=2), torch.zeros(2), torch.ones(2)
    kept = oriented(subspace, Factors(low, high))
    assert kept[0] is subspace
    assert torch.equal(kept[1].positive, low)


# ---- what is kept


def test_the_same_seed_trains_the_same_vector_and_another_one_another(llama):
    first, second, other = (train_cdas(llama, WORDS, seed=seed, **FAST) for seed in (1, 1, 2))
    assert torch.equal(first.subspace.basis, second.subspace.basis)
    assert first.subspace.cosine(other.subspace) < 0.99


def test_swapping_the_columns_swaps_the_factors(llama):
    swapped = [
        {
            **{f"negative_{key}": row[f"positive_{key}"] for key in ("input", "output")},
            **{f"positive_{key}": row[f"negative_{key}"] for key in ("input", "output")},
        }
        for row in WORDS
    ]
    first = train_cdas(llama, WORDS, **FAST)
    second = train_cdas(llama, swapped, **FAST)
    assert first.subspace.cosine(second.subspace) > 0.9999
    sign = float((first.subspace.basis @ second.subspace.basis.T).sign())
    assert torch.allclose(first.factors.positive, sign * second.factors.negative, atol=1e-3)


def test_a_start_from_the_mean_difference_begins_there(llama):
    data = prepare(llama, WORDS, layer=1, holdout=0)
    positive, negative = data.source_states()
    vector = train_cdas(llama, WORDS, init="diffmean", lr=1e-9, **FAST)
    assert vector.subspace.cosine(Subspace((positive - negative).mean(0))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("loss", ["kl_source", "kl_edited", "ce"])
def test_other_losses_train_too(llama, loss):
    vector = train_cdas(llama, WORDS, loss=loss, reduction="example", rank=2, **FAST)
    assert vector.method == ("das" if loss == "ce" else "cdas")
    assert "at_ceiling" not in vector.history[0]


# ---- the model is left alone


def hook_ids(model) -> list[int]:
    hooks = (one for m in model.modules() for one in (m._forward_hooks, m._forward_pre_hooks))
    return [id(hook) for one in hooks for hook in one.values()]


def test_only_the_basis_gets_a_gradient_and_the_model_is_left_as_found(llama):
    model = llama.model
    model.train()
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    frozen = model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad_(False)
    hooks = hook_ids(model)  # of transformers, where another test has asked it for hidden states
    train_cdas(llama, WORDS, **FAST)
    assert model.training
    assert all(module.training for module in model.modules())
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == {
        "model.layers.0.mlp.up_proj.weight"
    }
    assert all(torch.equal(value, parameters[name]) and value.grad is None for name, value in model.named_parameters())
    assert hook_ids(model) == hooks
    assert not any("forward" in block.__dict__ for block in model.model.layers)
    frozen.requires_grad_(True)
    model.eval()


@pytest.mark.parametrize("where", ["all", "prompt", "generation"])
def test_the_gradient_is_that_of_a_plain_forward_pass(llama, where):
    """Written out anew: one pair, the model's own forward with one hook, JSD by its definition."""
    rows = rows_of(llama, positions=where)
    pair, w = rows.pairs[3], direction().basis.clone().requires_grad_()
    ids, source = (torch.tensor([run.ids]) for run in (pair.base, pair.source))
    with torch.no_grad():
        out = llama.model(source, output_hidden_states=True)
    state = out.hidden_states[2][0, pair.place]
    q = out.logits[0, pair.source.start - 1 : -1].softmax(-1)

    n_prompt, n = pair.base.start, len(pair.base.ids)
    edited = {"all": (1, n), "prompt": (1, n_prompt), "generation": (n_prompt, n)}[where]  # <bos> is the prefix

    def interchange(module, args, output):
        h = output[0] if isinstance(output, tuple) else output
        new = h + ((state - h) @ w.T) @ w
        start, stop = edited
        new = torch.cat([h[:, :start], new[:, start:stop], h[:, stop:]], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = llama.model.model.layers[1].register_forward_hook(interchange)
    p = llama.model(ids).logits[0, pair.base.start - 1 : -1].softmax(-1)
    handle.remove()
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    (expected_gradient,) = torch.autograd.grad(expected.mean(), [w])
    with flowing_to(llama, []):
        found = rows.token_losses(Subspace.orthonormal(w), torch.tensor([3]), "jsd")
        (gradient,) = torch.autograd.grad(found.mean(), [w])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6)


# ---- caches, padding, batches


@pytest.mark.parametrize("component", ["resid_post", "resid_pre", "mlp_out"])
def test_cached_and_uncached_losses_agree_over_20_steps(llama, component):
    vectors = [
        train_cdas(llama, WORDS, layer=1, component=component, holdout=0, epochs=7, cache_bytes=size)
        for size in (2e9, 1e5, 0)
    ]
    assert [vector.metadata["settings"]["base_cached"] for vector in vectors] == [True, False, False]
    found = [[step["loss"] for step in vector.history] for vector in vectors]
    for others in found[1:]:
        assert others[:20] == pytest.approx(found[0][:20], abs=1e-6)


def test_what_is_not_kept_is_said(llama):
    vectors = [train_cdas(llama, WORDS, cache_bytes=size, **FAST) for size in (2e9, 1e5, 0)]
    assert [vector.metadata["settings"]["base_cached"] for vector in vectors] == [True, False, False]
    assert [len(vector.notices()) for vector in vectors] == [0, 1, 2]
    assert "from the start" in vectors[1].notices()[0]
    assert "again at every step" in vectors[2].notices()[0]


@pytest.mark.parametrize("name", list(models.CONFIGS))
def test_going_on_from_the_middle_is_exact_or_refused_on_every_architecture(name):
    subject = alignscope.wrap(models.model(name), models.tokenizer())
    data = prepare(subject, WORDS[:6], layer=1, holdout=0, allow_small=True)
    pairs = run_pairs(data.train, "both")
    kept, told = training_rows(subject, data.site, data.positions, pairs, cache_bytes=2e9)
    whole, _ = training_rows(subject, data.site, data.positions, pairs, cache_bytes=0)
    assert whole.lower is None
    assert (kept.lower is None) == bool(told)
    subspace, rows = direction(subject.d_model, 2), torch.arange(len(pairs))
    with torch.no_grad():
        losses = [some.token_losses(subspace, rows, "jsd") for some in (kept, whole)]
    assert torch.allclose(*losses, atol=1e-5)


def test_a_cache_that_lies_is_found_out_and_left_out(llama, monkeypatch):
    monkeypatch.setattr(
        "alignscope.steering.runs.inputs_of",
        lambda *args: [h * 1.01 for h in alignscope.probes.resuming.inputs_of(*args)],
    )
    vector = train_cdas(llama, WORDS, **FAST)
    assert vector.metadata["settings"]["base_cached"] is False
    assert "misses the logits" in vector.notices()[0]


def test_lower_blocks_are_not_run(llama):
    ran = []
    handle = llama.model.model.layers[0].mlp.register_forward_hook(lambda *_: ran.append(0))
    rows = rows_of(llama)
    ran.clear()
    rows.token_losses(direction(), torch.arange(4), "jsd")
    handle.remove()
    assert ran == []


def test_lower_blocks_that_hand_on_more_than_the_stream_are_refused(llama):
    lower = LowerBlocks(llama, 1)
    assert lower.problem is None
    lower._forms = [(torch.zeros(1), torch.zeros(1))]
    assert "more than the residual stream" in lower.problem
    assert "no block" in LowerBlocks(llama, 0).problem


@pytest.mark.parametrize("cache_bytes", [2e9, 0])
def test_a_row_alone_and_in_a_padded_batch_has_one_loss(llama, cache_bytes):
    rows = rows_of(llama, cache_bytes=cache_bytes)
    chosen = torch.tensor([0, 25, 7, 31])
    assert len({len(rows.pairs[i].base.ids) for i in chosen.tolist()}) > 1
    with torch.no_grad():
        together = rows.token_losses(direction(), chosen, "jsd")
        alone = torch.cat([rows.token_losses(direction(), i[None], "jsd") for i in chosen])
    assert torch.allclose(together, alone, atol=1e-6)


def test_padding_on_the_left_does_not_matter(llama):
    rows = rows_of(llama, cache_bytes=1e5)
    chosen = [0, 25, 7, 31]
    sequences = [rows.pairs[k].base for k in chosen]
    ids, mask = padded([run.ids for run in sequences], 0)
    shift = ids.shape[1] - mask.sum(-1)
    assert shift.max() > 0
    left = [torch.stack([row.roll(int(n)) for row, n in zip(x, shift, strict=True)]) for x in (ids, mask)]
    edits = rows._edits(direction(), chosen)
    with torch.no_grad():
        with announced_prompts(torch.tensor([run.start for run in sequences])), llama.editing(edits):
            logits = llama.logits(*left)
        found = llama.readout(rows.runs.residuals(edits, chosen))
    there = [logits[row, int(shift[row]) + place] for row, run in enumerate(sequences) for place in predicting(run)]
    assert torch.allclose(found, torch.stack(there), atol=1e-5)


def test_directions_weigh_half_each_however_long_their_answers(llama):
    rows = rows_of(llama)
    chosen = torch.tensor([0, 1, 20, 21, 22])
    counts = [rows.pairs[i].base.n_scored for i in chosen.tolist()]
    weights = rows.weights(chosen, "token").split(counts)
    assert float(torch.cat(weights[:2]).sum()) == pytest.approx(0.5)
    assert float(weights[2][0]) == pytest.approx(0.5 / sum(counts[2:]))
    example = rows.weights(chosen, "example").split(counts)
    assert [float(part.sum()) for part in example] == pytest.approx([1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6])


def test_batches_pass_over_all_rows_and_take_both_directions():
    batches = shuffled_batches(10, epochs=2, size=4, seed=0, both=True)
    assert [len(batch) for batch in batches] == [8, 8, 4] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(20))
    assert batches[0][4:].tolist() == (batches[0][:4] + 10).tolist()


# ---- text to ids


def test_prompt_and_response_are_tokenised_apart(llama):
    encoder = quadruple_encoder(llama, None, "auto", "rows")
    row = {"negative_input": "xa", "negative_output": "bc", "positive_input": "y", "positive_output": "bd"}
    found, _ = encode_quadruples(encoder, read_quadruples([row]), source="prompt_last", max_response_tokens=128)
    texts = encoder.tokenizer.convert_ids_to_tokens
    assert texts(list(found[1].negative)) == ["<bos>", "x", "a"]  # not "ab", the piece across the boundary
    assert texts(list(found[1].negative_response)) == ["b", "c", "<eos>"]


def test_strings_go_through_the_template_with_its_generation_header(chat):
    data = prepare(chat, WORDS, layer=1, holdout=0)
    text = "".join(chat.tokenizer.convert_ids_to_tokens(list(data.train[0].negative)))
    assert text == "|u:say c<end>|a:"
    assert data.train[0].negative_place == len(data.train[0].negative) - 1
    assert data.positions.prefix == 3
    assert data.settings["template"] == "chat"
    raw = prepare(chat, WORDS, layer=1, holdout=0, template="none")
    assert raw.positions.prefix == 1  # its <bos>


def test_responses_are_cut_and_the_same_in_both_runs(llama):
    data = prepare(llama, WORDS, layer=1, holdout=0, max_response_tokens=3)
    for pair in run_pairs(data.train, "both"):
        assert pair.base.n_scored == pair.source.n_scored == 3
    with pytest.raises(ValueError, match="not the same ids"):
        RunPair(base=pair.base, source=replace(pair.base, ids=(*pair.base.ids[:-1], 40)), place=0, elicit=True)


def test_another_source_token_is_searched_from_the_right(llama):
    data = prepare(llama, WORDS, layer=1, holdout=0, source="say")
    row = data.train[0]
    assert (row.negative_place, row.positive_place) == (3, 3)  # <bos> s a y
    twice = prepare(llama, WORDS, layer=1, holdout=0, source=" ").train[0]
    assert (twice.negative_place, twice.positive_place) == (4, 8)  # "say c", "say c ab g"


def test_a_source_text_that_a_prompt_lacks_is_refused_with_its_row(llama):
    with pytest.raises(InputError, match="row 1: `negative_input` does not hold"):
        train_cdas(llama, WORDS, source="ab", **FAST)


def test_rows_beyond_the_context_are_set_aside_and_counted(llama):
    long = {**WORDS[0], "positive_input": "z" * (llama.limit + 1)}
    vector = train_cdas(llama, [long, *WORDS], **FAST)
    assert vector.metadata["data"]["set_aside"] == {"too_long": 1}
    assert vector.metadata["data"]["n_train"] == 20
    assert any("set aside: too_long" in notice for notice in vector.notices())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer": 3}, "layer 3 is not in 0 .. 2"),
        ({"layer": -1}, "layer -1"),
        ({"rank": 33}, "rank 33: expected 1 .. 32"),
        ({"loss": "mse"}, "loss 'mse'"),
        ({"directions": "up"}, "directions 'up'"),
        ({"init": "zero"}, "init 'zero'"),
        ({"reduction": "sum"}, "reduction 'sum'"),
        ({"lr": 0}, "lr=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"component": "attn"}, "component 'attn'"),
        ({"positions": "some"}, "positions 'some'"),
        ({"prefix": 99}, "none that"),
        ({"max_response_tokens": 0}, "max_response_tokens=0"),
        ({"quadruples": WORDS[:15]}, "15 usable quadruples"),
    ],
)
def test_what_cannot_be_trained_is_refused(llama, change, told):
    arguments = {"quadruples": WORDS, **FAST} | change
    with pytest.raises(InputError, match=told):
        train_cdas(llama, **arguments)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 2.5}, "batch_size=2.5: expected 1 or more, a whole number"),
        ({"epochs": "3"}, "epochs=3: expected 1 or more, a whole number"),
        ({"lr": None}, "lr=None: expected a number above 0"),
        ({"rank": 1.5}, r"rank 1.5: expected 1 \.\. 32"),
    ],
)
def test_settings_of_another_kind_are_refused(llama, monkeypatch, change, told):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checked types would refuse them first
    with pytest.raises(InputError, match=told):
        train_cdas(llama, WORDS, **FAST | change)


def test_few_rows_are_taken_where_asked_for(llama):
    assert train_cdas(llama, WORDS[:3], allow_small=True, **FAST).factors.n == 3


def test_positions_can_be_given_whole(llama):
    positions = Positions(last=2)
    vector = train_cdas(llama, WORDS, positions=positions, **FAST)
    assert vector.positions == positions
    assert vector.site == Site(1)


def test_progress_is_told(llama):
    told = []
    train_cdas(llama, WORDS, progress=lambda *args: told.append(args), **FAST)
    assert [stage.split(" | loss ")[0] for stage, _, _ in told] == ["interchange fit"] * 3
    assert [(done, total) for _, done, total in told] == [(1, 3), (2, 3), (3, 3)]


# ---- separation


def test_e11_auroc_counts_ties_half():
    assert auroc(torch.tensor([3.0, 2, 2]), torch.tensor([2.0, 1])) == pytest.approx(5 / 6)


def test_factors_without_held_out_prompts_have_no_auroc():
    positive, negative = torch.tensor([[3.0, 9], [5, 9]]), torch.tensor([[1.0, 7], [1, 8]])
    found = measured_factors(Subspace(torch.eye(2)[:1]), positive, negative, *torch.zeros(2, 0, 2))
    assert (float(found.positive), float(found.negative), found.auroc) == (4, 1, None)
    assert found.std.tolist() == [[pytest.approx(2**0.5)], [0]]
