"""Edits on running models: the right place on 29 architectures, padding, caches, beams, hooks gone afterwards."""

import threading
from contextlib import ExitStack

import pytest
import torch
from spinal_models import tiny_model
from tiny_tokenizer import tiny_tokenizer
from transformers import DynamicCache

import alignscope
import zoo as models
from alignscope import InputError, Subject
from alignscope.probes.padding import padded
from alignscope.steering import Ablate, Add, Clamp, Interchange, Positions, Site, Subspace

ROWS = ([7, 300, 41, 12, 260, 9, 88], [33, 5], [400, 21, 21, 76])
SHORT = ([7, 30, 41, 12, 26, 9, 8], [33, 5], [40, 21, 21, 6])
SUMS_INSIDE = {("bloom", "attn_out"), ("bloom", "mlp_out"), ("mpt", "mlp_out")}
WITHOUT_MLP = {("mamba", "mlp_out")}


@pytest.fixture(scope="module")
def zoo_subjects() -> dict[str, Subject]:
    return {name: alignscope.wrap(models.model(name), models.tokenizer()) for name in models.CONFIGS}


@pytest.fixture(scope="module")
def llama() -> Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


def direction(d: int, rank: int = 1, seed: int = 0) -> Subspace:
    return Subspace(torch.randn(rank, d, generator=torch.Generator().manual_seed(seed)))


def logits(subject: Subject, *arguments) -> torch.Tensor:
    with torch.no_grad():
        return subject.logits(*arguments)


def states(subject: Subject, ids: torch.Tensor, mask: torch.Tensor):
    return subject.trace(ids, mask, reduce=lambda layer, h, mask: h.clone())


def hooks(subject: Subject) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())


# ---- 29 architectures


@pytest.mark.parametrize("name", list(models.CONFIGS))
def test_a_clamp_behind_a_block_acts_there_and_nowhere_before(zoo_subjects, name):
    subject = zoo_subjects[name]
    ids, mask = padded(ROWS, 0)
    subspace, target = direction(subject.d_model, 2), torch.tensor([3.0, -2.0])
    before = states(subject, ids, mask)
    with subject.editing({Site(1): Clamp(subspace, target, positions=Positions(prefix=1))}):
        after = states(subject, ids, mask)
    for layer in (0, 1):
        assert torch.equal(after[layer], before[layer])
    edited = Positions(prefix=1).mask(mask)
    assert torch.equal(after[2][~edited], before[2][~edited])
    assert torch.allclose(subspace.project(after[2][edited]), target, atol=1e-4)
    rest = (Ablate(subspace)(after[2]) - Ablate(subspace)(before[2])).abs().max()
    assert rest <= 1e-5 * max(1.0, float(before[2].abs().max()))
    assert (after[3] - before[3])[edited].abs().max() > 1e-3
    assert torch.equal(states(subject, ids, mask)[4], before[4])


@pytest.mark.parametrize("component", ["resid_pre", "attn_out", "mlp_out"])
@pytest.mark.parametrize("name", list(models.CONFIGS))
def test_other_components_act_inside_their_block(zoo_subjects, name, component):
    subject = zoo_subjects[name]
    ids, mask = padded(ROWS, 0)
    edits = {Site(1, component): Add(3 * direction(subject.d_model).basis[0], positions=Positions(prefix=1))}
    if (name, component) in SUMS_INSIDE | WITHOUT_MLP:
        with pytest.raises(InputError, match=r"adds the residual stream inside|no module in it is an MLP"):
            subject.editing(edits)
        return
    before = states(subject, ids, mask)
    with subject.editing(edits):
        after = states(subject, ids, mask)
    assert torch.equal(after[1], before[1])
    edited = Positions(prefix=1).mask(mask)
    moved = (after[2] - before[2])[edited]
    assert moved.abs().amax(-1).min() > 1e-3
    if name == "llama" and component != "resid_pre":  # added to the stream, the MLP then answers to the attention's
        step = 3 * direction(subject.d_model).basis[0]
        assert torch.allclose(moved, step.expand_as(moved), atol=1e-5) == (component == "mlp_out")
    first = torch.zeros_like(mask, dtype=torch.bool)
    first[:, 0] = True
    assert torch.allclose(after[2][first], before[2][first], atol=1e-6)  # causal: no later token reaches them


@pytest.mark.parametrize("name", ["gpt2", "gptneo", "falcon", "llama", "gemma2", "gpt_oss", "mamba", "mpt", "rwkv"])
@pytest.mark.parametrize("where", ["all", "generation"])
def test_generation_is_the_same_with_and_without_a_cache(zoo_subjects, name, where):
    subject = zoo_subjects[name]
    edit = Clamp(direction(subject.d_model), 25.0, positions=Positions(where, prefix=1))
    plain = subject.generate_ids(ROWS, max_new_tokens=5, eos_token_id=None)
    with subject.editing({Site(1): edit}):
        cached = subject.generate_ids(ROWS, max_new_tokens=5, eos_token_id=None)
        again = subject.generate_ids(ROWS, max_new_tokens=5, eos_token_id=None, use_cache=False)
    assert cached == again
    assert cached != plain
    assert where == "all" or [row[0] for row in cached] == [row[0] for row in plain]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3"])
@pytest.mark.parametrize("where", ["all", "prompt"])
def test_a_static_cache_whose_masks_are_by_kind_of_layer_reads_the_same_tokens(zoo_subjects, name, where):
    """transformers hands its layers masks of rows x columns then, for some models several by name."""
    subject = zoo_subjects[name]
    ids, mask = padded(ROWS, 0, left=True)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    edit = Clamp(direction(subject.d_model), 25.0, positions=Positions(where, prefix=1))
    plain = subject.model.generate(ids, **options)
    with subject.editing({Site(1): edit}):
        dynamic = subject.model.generate(ids, **options)
        static = subject.model.generate(ids, cache_implementation="static", **options)
    assert torch.equal(static, dynamic)
    assert not torch.equal(static, plain)


# ---- padding, caches, beams


@pytest.mark.parametrize("extra", [0, 3])
def test_a_left_padded_batch_gives_what_single_rows_give(llama, extra):
    edit = Clamp(direction(32), 4.0, positions=Positions(prefix=1))
    ids, mask = padded(SHORT, 0, left=True, extra=extra)
    plain = logits(llama, ids, mask)
    with llama.editing({Site(1): edit}):
        together = logits(llama, ids, mask)
        alone = torch.cat([logits(llama, *padded([row], 0))[0] for row in SHORT])
    assert (together[mask.bool()] - alone).abs().max() <= 1e-5
    assert (together - plain)[mask.bool()].abs().max() > 0.05


def test_logits_before_the_first_edited_token_stay(llama):
    ids, mask = padded(SHORT[:1], 0)
    plain = logits(llama, ids, mask)
    with llama.editing({Site(0): Clamp(direction(32), 4.0, positions=Positions(prefix=3))}):
        edited = logits(llama, ids, mask)
    assert torch.allclose(edited[:, :3], plain[:, :3], atol=1e-6)
    assert (edited[:, 3:] - plain[:, 3:]).abs().amax(-1).min() > 1e-3


def test_steps_with_a_cache_give_the_logits_of_the_whole_row(llama):
    row = torch.tensor([SHORT[0]])
    with llama.editing({Site(1): Clamp(direction(32), 4.0, positions=Positions(prefix=2))}), torch.no_grad():
        whole = llama.logits(row, torch.ones_like(row))
        for given in ("mask", "positions", "cache"):
            cache, steps = DynamicCache(), []
            for start, stop in ((0, 4), (4, 5), (5, 7)):
                more = {
                    "mask": {"attention_mask": torch.ones(1, stop, dtype=torch.long)},
                    "positions": {"position_ids": torch.arange(start, stop)[None]},
                    "cache": {},
                }[given]
                steps.append(llama.model(row[:, start:stop], past_key_values=cache, use_cache=True, **more).logits)
            assert (torch.cat(steps, 1) - whole).abs().max() <= 1e-5


def test_two_beams_give_what_single_rows_give(llama):
    edit = Clamp(direction(32), 4.0, positions=Positions(prefix=1))
    options = {"num_beams": 2, "max_new_tokens": 5, "eos_token_id": None}
    with llama.editing({Site(1): edit}):
        together = llama.generate_ids(SHORT, **options)
        assert together == [llama.generate_ids([row], **options)[0] for row in SHORT]
        assert together == llama.generate_ids(SHORT, use_cache=False, **options)
    assert together != llama.generate_ids(SHORT, **options)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_a_target_a_row_sweeps_strengths_in_one_generation(llama, options):
    targets = [[0.0], [4.0], [-9.0]]
    options = {"max_new_tokens": 6, "eos_token_id": None, **options}
    with llama.editing({Site(1): Clamp(direction(32), torch.tensor(targets))}):
        swept = llama.generate_ids([SHORT[0]] * 3, **options)
    single = []
    for target in targets:
        with llama.editing({Site(1): Clamp(direction(32), torch.tensor(target))}):
            single += llama.generate_ids([SHORT[0]], **options)
    assert swept == single
    assert len(set(swept)) == 3


# ---- interchange, nesting, bits


def test_interchange_with_the_own_state_changes_nothing(llama):
    row = torch.tensor([SHORT[0]])
    mask = torch.ones_like(row)
    own = states(llama, row, mask)[2][:, -1]
    with llama.editing({Site(1): Interchange(direction(32, 3), own, Positions(last=1))}):
        assert (logits(llama, row, mask) - logits(llama, row, mask)).abs().max() == 0
        edited = logits(llama, row, mask)
    assert torch.allclose(edited, logits(llama, row, mask), atol=1e-5)


def test_interchange_of_the_whole_space_makes_the_last_logits_those_of_the_source(llama):
    base, source = torch.tensor([SHORT[0]]), torch.tensor([SHORT[0][::-1]])
    mask = torch.ones_like(base)
    state = states(llama, source, mask)[3][:, -1]
    with llama.editing({Site(2): Interchange(direction(32, 32), state, Positions(last=1))}):
        edited = logits(llama, base, mask)
    assert torch.allclose(edited[:, -1], logits(llama, source, mask)[:, -1], atol=1e-4)


def test_the_inner_edit_acts_on_the_outers_result(llama):
    ids, mask = padded(SHORT, 0)
    subspace = direction(32)
    add, clamp = Add(5 * subspace.basis[0]), Clamp(subspace, 1.0)
    for outer, inner, expected in ((add, clamp, 1.0), (clamp, add, 6.0)):
        with llama.editing({Site(1): outer}), llama.editing({Site(1): inner}):
            found = subspace.project(states(llama, ids, mask)[2][mask.bool()])
        assert torch.allclose(found, torch.tensor(expected), atol=1e-4)


def test_residuals_into_a_block_are_those_out_of_the_one_before(llama):
    ids, mask = padded(SHORT, 0)
    edit = Clamp(direction(32), 4.0, positions=Positions(prefix=1))
    with llama.editing({Site(1): edit}):
        out = logits(llama, ids, mask)
    with llama.editing({Site(2, "resid_pre"): edit}):
        assert torch.equal(logits(llama, ids, mask), out)


@pytest.mark.parametrize(
    "edits",
    [
        {},
        {Site(1): Clamp(direction(32), 4.0, positions=Positions("generation"))},
        {Site(1, "attn_out"): Clamp(direction(32), 4.0, positions=Positions(prefix=99))},
        {Site(0, "resid_pre"): Add(torch.ones(32), rows=torch.zeros(1, dtype=torch.bool))},
    ],
)
def test_where_nothing_is_to_be_edited_logits_are_the_same_to_the_bit(llama, edits):
    ids, mask = padded(SHORT, 0, left=True)
    plain = logits(llama, ids, mask)
    with llama.editing(edits):
        assert torch.equal(logits(llama, ids, mask), plain)


def test_half_precision_models_keep_their_dtype():
    subject = alignscope.wrap(tiny_model(blocks=2, width=32).bfloat16(), tiny_tokenizer())
    ids, mask = padded(SHORT, 0)
    with subject.editing({Site(0): Clamp(direction(32), 4.0)}):
        after = states(subject, ids, mask)[1]
    assert after.dtype == torch.bfloat16
    assert torch.allclose(direction(32).project(after[mask.bool()]), torch.tensor(4.0), atol=0.1)


def test_a_gradient_reaches_the_basis_and_no_parameter(llama):
    ids, mask = padded(SHORT, 0)
    for parameter in llama.model.parameters():
        parameter.requires_grad_(False)
    basis = direction(32).basis.clone().requires_grad_()
    with llama.editing({Site(1): Clamp(Subspace.orthonormal(basis), 4.0)}):
        llama.logits(ids, mask).logsumexp(-1).sum().backward()
    assert basis.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in llama.model.parameters())


# ---- hooks


def test_hooks_are_gone_also_after_an_exception_and_a_foreign_one_still_fires(llama):
    fired = []
    handle = llama.model.model.layers[1].register_forward_hook(lambda module, args, output: fired.append(1))
    before = hooks(llama)
    sites = {Site(1): Ablate(direction(32)), Site(0, "attn_out"): Ablate(direction(32)), Site(2, "resid_pre"): Add(W)}
    with pytest.raises(ZeroDivisionError), llama.editing(sites):
        fired.append(hooks(llama) / 0)
    with llama.editing(sites):
        assert hooks(llama) > before
    assert hooks(llama) == before
    with llama.editing(sites):
        fired.clear()
        logits(llama, *padded(SHORT, 0))
    logits(llama, *padded(SHORT, 0))
    handle.remove()
    assert len(fired) == 2
    assert hooks(llama) == 0


W = torch.ones(32)


def test_an_edit_that_raises_leaves_nothing_behind(llama):
    ids, mask = padded(SHORT, 0)
    plain = logits(llama, ids, mask)
    with llama.editing({Site(1): Clamp(direction(32), torch.zeros(2, 1))}):
        with pytest.raises(InputError, match="for 2 rows, and a batch of 3"):
            logits(llama, ids, mask)
        assert logits(llama, ids[:2], mask[:2]).shape[0] == 2
    assert hooks(llama) == 0
    assert torch.equal(logits(llama, ids, mask), plain)


def test_contexts_may_close_in_any_order(llama):
    ids, mask = padded(SHORT, 0)
    plain = logits(llama, ids, mask)
    first, second = ExitStack(), ExitStack()
    first.enter_context(llama.editing({Site(1): Add(W)}))
    with llama.editing({Site(1): Add(W)}):
        alone = logits(llama, ids, mask)
    second.enter_context(llama.editing({Site(1): Add(-W)}))
    first.close()
    second.close()
    assert torch.equal(logits(llama, ids, mask), plain)
    assert not torch.equal(alone, plain)


def test_a_pass_in_another_thread_does_not_take_the_tokens_of_this_one(llama):
    """Another thread reads a row of its own while this one stands between two blocks."""
    ids, mask = padded(SHORT, 0)
    other: list[torch.Tensor] = []

    def elsewhere() -> None:
        with torch.no_grad():
            other.append(llama.model(ids[1:2, :2], use_cache=False).logits)

    def between(module, args, output) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

    with llama.editing({Site(1): Clamp(direction(32), 4.0, positions=Positions(prefix=1))}):
        expected = logits(llama, ids, mask)
        handle = llama.model.model.layers[0].register_forward_hook(between)
        found = logits(llama, ids, mask)
        handle.remove()
    assert torch.equal(found, expected)
    assert torch.allclose(other[0][0], expected[1, :2], atol=1e-5)


def test_the_fingerprint_of_an_edited_model_is_another_one_and_comes_back(llama):
    own = llama.fingerprints
    with llama.editing({Site(1): Add(W)}):
        edited = llama.fingerprints
        with llama.editing({Site(1): Add(W)}):
            twice = llama.fingerprint
    with llama.editing({Site(1): Add(2 * W)}):
        other = llama.fingerprint
    with llama.editing({Site(1): Add(W)}):
        assert llama.fingerprint == edited.combined
    assert len({own.combined, edited.combined, twice, other}) == 4
    assert edited.weights == own.weights
    assert llama.fingerprints == own


def test_blocks_called_past_the_model_are_refused(llama):
    with llama.editing({Site(1): Add(W)}):
        logits(llama, *padded(SHORT, 0))
        with pytest.raises(InputError, match=r"outside of the model's own forward pass"):
            llama.model.model(input_ids=torch.tensor([[5, 6]]))
        handle = llama.model.lm_head.register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits(llama, *padded(SHORT, 0))
        handle.remove()
        with pytest.raises(InputError, match=r"outside of the model's own forward pass"):
            llama.model.model(input_ids=torch.tensor([[5, 6]]))


# ---- sites


def test_components_are_found_inside_another_edit_as_outside(llama):
    ids, mask = padded(SHORT, 0)
    with llama.editing({Site(0): Clamp(direction(32), torch.zeros(3, 1))}), llama.editing({Site(1, "mlp_out"): Add(W)}):
        nested = logits(llama, ids, mask)
    inner = llama.editing({Site(1, "mlp_out"): Add(W)})
    with llama.editing({Site(0): Clamp(direction(32), 0.0)}), inner:
        assert torch.equal(logits(llama, ids, mask), nested)


@pytest.mark.parametrize("site", [(-1, "resid_post"), (0, "resid_mid")])
def test_a_site_that_no_model_has_is_refused(site):
    with pytest.raises(InputError, match=r"expected a block, 0 or higher|expected one of resid_pre"):
        Site(*site)


def test_a_layer_that_this_model_does_not_have_is_refused_before_the_context(llama):
    with pytest.raises(InputError, match=r"layer 3 is not in 0 \.\. 2"):
        llama.editing({Site(3): Add(W)})


def test_what_is_no_edit_is_refused(llama):
    with pytest.raises((InputError, TypeError), match=r"Add, got Tensor|editing"):
        llama.editing({Site(0): W})
