"""Trained baselines: losses in closed form, the first step against a naive one, what training must leave alone."""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spinal_models import tiny_model
from tiny_steering import TWENTY as WORDS
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.organisms.concept import ConceptOrganism, build_concept_organism
from alignscope.probes.block_gradients import flowing_to
from alignscope.steering import Site, baselines, runs
from alignscope.steering.baselines.choices import preference_pairs
from alignscope.steering.baselines.learning import mean_losses, start_of
from alignscope.steering.baselines.objectives import BidirectionalPreference, dpo_loss, reps_loss
from alignscope.steering.baselines.trained import _adding, _removing
from alignscope.steering.preparing import prepare
from alignscope.steering.training import shuffled_batches

FAST = {"layer": 1, "holdout": 0, "epochs": 1}
FITS = {
    "ssv": baselines.fit_ssv,
    "lang": partial(baselines.fit_ssv, lang=True),
    "bipo": baselines.fit_bipo,
    "reps": baselines.fit_reps,
    "reps elicit": partial(baselines.fit_reps, directions="elicit"),
    "reps suppress": partial(baselines.fit_reps, directions="suppress"),
}
nats = st.floats(-200, -0.01)


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


@pytest.fixture(scope="module")
def organism() -> ConceptOrganism:
    return build_concept_organism(steps=120, n_quadruples=40)


@pytest.fixture(scope="module")
def fitted(organism) -> Callable[[str], SteeringVector]:
    """By name, each trained once: 24 steps of 8 rows."""
    return cache(lambda name: FITS[name](organism.subject, organism.quadruples, layer=1, epochs=6))


# ---- losses


def one(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def test_dpo_is_log_2_where_nothing_has_changed():
    assert dpo_loss(*one(-7.0, -3.0, -7.0, -3.0), beta=0.1).item() == math.log(2)


@given(nats, nats, nats, nats, st.floats(0.01, 2))
def test_dpo_is_that_of_the_diagnostics(wanted, other, reference_wanted, reference_other, beta):
    margin = beta * ((wanted - reference_wanted) - (other - reference_other))
    found = dpo_loss(*one(wanted, other, reference_wanted, reference_other), beta=beta).item()
    assert found == pytest.approx(np.logaddexp(0.0, -margin), rel=1e-12)


@given(nats, nats, nats, nats, st.integers(1, 50), st.integers(1, 50))
def test_reps_is_its_formula(wanted, other, reference_wanted, reference_other, n_wanted, n_other):
    margin = max(reference_other - reference_wanted, 1) / n_wanted * wanted - other / n_other
    found = reps_loss(*one(wanted, other, reference_wanted, reference_other, n_wanted, n_other)).item()
    assert found == pytest.approx(np.logaddexp(0.0, -margin), rel=1e-12)


def test_reps_weighs_by_what_the_unsteered_model_prefers_and_never_below_1():
    # the wanted response is 5 nats less likely: 5/2 * -4 + 6/3 = -8; 5 nats more likely: 1/2 * -4 + 6/3 = 0
    assert reps_loss(*one(-4, -6, -9, -4, 2, 3)).item() == pytest.approx(math.log1p(math.exp(8)))
    assert reps_loss(*one(-4, -6, -4, -9, 2, 3)).item() == math.log(2)


# ---- the first step against a naive one: plain forward passes with one hook, float64 from the logits on


def naive_log_prob(llama, prompt, answer, change=None) -> torch.Tensor:
    """Summed log pi of the answer; `change` of the states behind block 1, <bos> left alone."""

    def hook(module, args, output):
        h = output[0] if isinstance(output, tuple) else output
        new = torch.cat([h[:, :1], change(h[:, 1:])], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = llama.model.model.layers[1].register_forward_hook(hook) if change else None
    logits = llama.model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    if handle:
        handle.remove()
    return logits.double().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


def logistic(margin: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.exp(-margin))


def naive_row(score, name, row, v, factor) -> torch.Tensor:
    """The loss of one row, every term written out; score(prompt, answer, change)."""
    x, x_c, y, y_c = row.negative, row.positive, row.negative_response, row.positive_response

    def shifted(a):
        return lambda h: h + a * v

    def removed(h):
        return h - torch.relu(h @ v)[..., None] / (v @ v) * v

    def bipo(sign):
        margin = (score(x, y_c, shifted(sign)) - score(x, y_c)) - (score(x, y, shifted(sign)) - score(x, y))
        return logistic(sign * 0.1 * margin)

    def elicit():
        weight = max(float(score(x, y) - score(x, y_c)), 1.0) / len(y_c)
        return logistic(weight * score(x, y_c, shifted(factor)) - score(x, y, shifted(factor)) / len(y))

    def suppress():
        weight = max(float(score(x_c, y_c) - score(x_c, y)), 1.0) / len(y)
        return logistic(weight * score(x_c, y, removed) - score(x_c, y_c, removed) / len(y_c))

    return {
        "ssv": lambda: -score(x, y_c, shifted(1)),
        "lang": lambda: -score(x, y_c, shifted(factor)),
        "bipo": lambda: (bipo(1) + bipo(-1)) / 2,
        "reps": lambda: (elicit() + suppress()) / 2,
        "reps elicit": elicit,
        "reps suppress": suppress,
    }[name]()


def naive_loss(llama, name, rows, v, factor) -> torch.Tensor:
    """The mean over rows, or over answer tokens of the language losses."""
    total = sum(naive_row(partial(naive_log_prob, llama), name, row, v, factor) for row in rows)
    return total / (sum(len(row.positive_response) for row in rows) if name in ("ssv", "lang") else len(rows))


@pytest.mark.parametrize("name", list(FITS))
def test_the_first_step_is_that_of_plain_forward_passes(llama, name, monkeypatch):
    monkeypatch.setattr("alignscope.steering.baselines.trained.FACTORS", (3,))
    start = torch.linspace(-0.2, 0.3, 32)  # where every term has a gradient
    monkeypatch.setattr(
        "alignscope.steering.baselines.trained.start_of", lambda *args, **kwargs: start.clone().requires_grad_()
    )
    seen = []
    clip = torch.nn.utils.clip_grad_norm_

    def watched(parameters, norm):
        seen.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    vector = FITS[name](llama, WORDS, **FAST)
    data = prepare(llama, WORDS, layer=1, holdout=0)
    first = shuffled_batches(20, epochs=1, size=8, seed=42, both=False)[0]
    v = start.clone().requires_grad_()
    with flowing_to(llama, []):
        expected = naive_loss(llama, name, [data.train[i] for i in first], v, 3)
        (gradient,) = torch.autograd.grad(expected, [v])
    assert vector.history[0]["loss"] == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)
    assert torch.allclose(seen[0][0], gradient, atol=1e-6, rtol=1e-5)
    assert vector.history[0]["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_bipo_starts_at_log_2(llama):
    vector = baselines.fit_bipo(llama, WORDS, layer=1, epochs=1)
    assert vector.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert vector.metadata["metrics"]["held_out"][0] == {
        "step": 0, "elicit": pytest.approx(math.log(2)), "suppress": pytest.approx(math.log(2))
    }  # fmt: skip


def test_reps_starts_uniform_in_the_released_range(llama):
    start = start_of(prepare(llama, WORDS, layer=1, holdout=0), spread=32**-0.5)
    assert start.abs().max() <= 32**-0.5
    assert 0.4 < float(start.detach().norm()) < 0.8  # of 1/sqrt(3) = 0.58


def test_what_points_along_the_vector_is_taken_out_and_nothing_else(llama):
    data = prepare(llama, WORDS, layer=1, holdout=0)
    v = torch.tensor([2.0] + [0.0] * 31)
    edit = _removing(data, v)[Site(1)]
    h = torch.stack([torch.full((32,), 3.0), torch.full((32,), -3.0)])
    expected = h.clone()
    expected[0, 0] = 0
    assert torch.allclose(edit(h), expected, atol=1e-6)


def test_lang_at_factor_1_is_ssv(llama, monkeypatch):
    monkeypatch.setattr("alignscope.steering.baselines.trained.FACTORS", (1,))
    ssv, lang = (FITS[name](llama, WORDS, **FAST) for name in ("ssv", "lang"))
    assert torch.equal(ssv.vector, lang.vector)


def test_lang_draws_a_strength_for_every_row_and_step(llama, monkeypatch):
    drawn = []

    def watched(data, v, strengths):
        drawn.append(strengths.tolist())
        return _adding(data, v, strengths)

    monkeypatch.setattr("alignscope.steering.baselines.trained._adding", watched)
    baselines.fit_ssv(llama, WORDS, layer=1, holdout=0, epochs=8, lang=True)
    assert [len(some) for some in drawn] == [8, 8, 4] * 8
    assert {value for some in drawn for value in some} == set(range(2, 21, 2))
    assert len(set(drawn[0])) > 1


# ---- batches, padding, caches


def bipo(llama, cache_bytes=2e9) -> BidirectionalPreference:
    data = prepare(llama, WORDS, layer=1, holdout=0)
    v = torch.linspace(-0.2, 0.3, 32)
    found, _ = preference_pairs(data, data.train, ["elicit"], cache_bytes)
    return BidirectionalPreference(choices=found["elicit"], steering=partial(_adding, data, v), beta=0.1)


@pytest.mark.parametrize("cache_bytes", [2e9, 0])
def test_a_row_alone_and_in_a_padded_batch_has_one_loss(llama, cache_bytes):
    objective, chosen = bipo(llama, cache_bytes), [0, 5, 13]
    with torch.no_grad():
        together = list(objective.losses(chosen, torch.ones(3)))
        alone = [list(objective.losses([row], torch.ones(1))) for row in chosen]
    for side, values in enumerate(together):
        assert torch.allclose(values, torch.cat([row[side] for row in alone]), atol=1e-6)


def test_padding_on_the_left_does_not_matter(llama, monkeypatch):
    objective = bipo(llama, cache_bytes=0)
    with torch.no_grad():
        right = [values.clone() for values in objective.losses([0, 5, 13], torch.ones(3))]
    read = runs.last_residuals

    def left(subject, ids, mask, rows, columns):
        shift = ids.shape[1] - mask.sum(-1)
        assert shift.max() > 0
        turned = [torch.stack([row.roll(int(n)) for row, n in zip(x, shift, strict=True)]) for x in (ids, mask)]
        return read(subject, *turned, rows, columns + shift[rows])

    monkeypatch.setattr(runs, "last_residuals", left)
    with torch.no_grad():
        found = list(objective.losses([0, 5, 13], torch.ones(3)))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("name", ["ssv", "bipo", "reps"])
def test_lower_blocks_left_out_or_run_give_one_training(llama, name):
    kept, whole = (FITS[name](llama, WORDS, layer=1, holdout=0, epochs=2, cache_bytes=size) for size in (2e9, 0))
    assert [step["loss"] for step in kept.history] == pytest.approx([step["loss"] for step in whole.history], rel=1e-5)
    told = "runs are read from the start"
    assert not any(told in notice for notice in kept.notices())
    assert any(told in notice for notice in whole.notices())


def test_lower_blocks_are_not_run(llama):
    objective, ran = bipo(llama), []
    handle = llama.model.model.layers[0].mlp.register_forward_hook(lambda *_: ran.append(0))
    list(objective.losses([0, 1], torch.ones(2)))
    handle.remove()
    assert ran == []


def test_held_out_rows_take_the_strengths_in_turn():
    class Echo:
        directions = ("elicit",)

        def losses(self, rows, factors):
            yield torch.tensor(rows) * 100 + factors

    found = mean_losses(Echo(), 40, torch.tensor([2.0, 4.0, 6.0]))
    assert found == {"elicit": pytest.approx(np.mean([row * 100 + (2, 4, 6)[row % 3] for row in range(40)]))}


# ---- what is kept, and what is left alone


@pytest.mark.parametrize("name", ["ssv", "bipo", "reps"])
def test_only_the_vector_gets_a_gradient_and_the_model_is_left_as_found(llama, name):
    model = llama.model
    model.train()
    parameters = {key: value.detach().clone() for key, value in model.named_parameters()}
    frozen = model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad_(False)
    FITS[name](llama, WORDS, **FAST)
    assert all(module.training for module in model.modules())
    assert [key for key, value in model.named_parameters() if not value.requires_grad] == [
        "model.layers.0.mlp.up_proj.weight"
    ]
    assert all(torch.equal(value, parameters[key]) and value.grad is None for key, value in model.named_parameters())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0
    assert not any("forward" in block.__dict__ for block in model.model.layers)
    frozen.requires_grad_(True)
    model.eval()


@pytest.mark.parametrize("name", ["lang", "bipo", "reps"])
def test_the_same_seed_trains_the_same_vector_and_another_one_another(llama, name):
    first, second, other = (FITS[name](llama, WORDS[:16], seed=seed, **FAST) for seed in (1, 1, 2))
    assert torch.equal(first.vector, second.vector)
    assert not torch.allclose(first.vector, other.vector)


def test_history_has_a_line_a_step_and_the_curve_a_point_an_epoch(llama):
    vector = baselines.fit_reps(llama, WORDS, layer=1, epochs=3)
    assert [step["step"] for step in vector.history] == list(range(1, 7))  # 15 rows: 8 and 7
    assert [point["step"] for point in vector.metadata["metrics"]["held_out"]] == [0, 2, 4, 6]
    assert set(vector.metadata["metrics"]["held_out"][0]) == {"step", "elicit", "suppress"}


def test_progress_is_told(llama):
    told = []
    baselines.fit_bipo(llama, WORDS, progress=lambda *args: told.append(args), **FAST)
    assert [stage.split(" | loss ")[0] for stage, _, _ in told] == ["bipo fit"] * 3
    assert [(done, total) for _, done, total in told] == [(1, 3), (2, 3), (3, 3)]


def test_vectors_say_what_they_were_trained_for(llama):
    few = {**FAST, "batch_size": 4, "allow_small": True}
    found = {name: fit(llama, WORDS[:4], **few).notices() for name, fit in FITS.items()}
    for name in ("ssv", "lang", "reps elicit"):
        assert "trained to elicit only: the other direction is not its own" in found[name]
    assert "trained to suppress only: the other direction is not its own" in found["reps suppress"]
    assert not any("only" in notice for name in ("bipo", "reps") for notice in found[name])
    for name in ("lang", "reps"):
        assert any("strength 1 lies below" in notice for notice in found[name])


@pytest.mark.parametrize(
    ("fit", "change", "told"),
    [
        ("ssv", {"lr": 0}, "lr=0"),
        ("ssv", {"grad_clip": math.inf}, "grad_clip=inf"),
        ("ssv", {"batch_size": 0}, "batch_size=0"),
        ("bipo", {"epochs": 0}, "epochs=0"),
        ("bipo", {"beta": 0}, "beta=0"),
        ("bipo", {"layer": 3}, "layer 3 is not in 0 .. 2"),
        ("reps", {"directions": "up"}, "directions 'up'"),
        ("reps", {"prefix": 99}, "none that"),
        ("reps", {"quadruples": WORDS[:15]}, "15 usable quadruples"),
    ],
)
def test_what_cannot_be_trained_is_refused(llama, fit, change, told):
    arguments = {"quadruples": WORDS, **FAST} | change
    with pytest.raises(InputError, match=told):
        FITS[fit](llama, **arguments)


# ---- on a model that knows the concept


def preferred(organism: ConceptOrganism, side: str) -> float:
    """Mean log pi(y_c) - log pi(y) behind x or x_c of fresh rows, summed over tokens, nats; all rows are as long."""
    data = prepare(organism.subject, organism.fresh[:32], layer=1, holdout=0)
    found = []
    for answer in ("positive_response", "negative_response"):
        ids = torch.tensor([[*getattr(row, side), *getattr(row, answer)] for row in data.train])
        n = len(data.train[0].positive_response)
        with torch.no_grad():
            log_probs = organism.subject.logits(ids, torch.ones_like(ids)).log_softmax(-1)[:, -n - 1 : -1]
        found.append(log_probs.gather(2, ids[:, -n:, None]).sum(1).mean())
    return float(found[0] - found[1])


@pytest.mark.parametrize(("name", "strength"), [("ssv", 1.0), ("lang", 6.0), ("bipo", 1.0), ("reps", 6.0)])
def test_training_lowers_the_held_out_loss_and_makes_the_concept_preferred(organism, fitted, name, strength):
    vector = fitted(name)
    curve = vector.metadata["metrics"]["held_out"]
    for side in set(curve[0]) - {"step"}:
        assert curve[-1][side] < 0.8 * curve[0][side]
    before = preferred(organism, "negative")
    with vector.applied(organism.subject, strength):
        after = preferred(organism, "negative")
    assert before < 0 < after


@pytest.mark.parametrize(("name", "strength"), [("bipo", -1.0), ("reps", -6.0)])
def test_two_way_vectors_suppress_at_negative_strengths(organism, fitted, name, strength):
    before = preferred(organism, "positive")
    with fitted(name).applied(organism.subject, strength):
        after = preferred(organism, "positive")
    assert after < 0 < before
