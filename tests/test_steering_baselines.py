"""Baselines that are read off states: planted directions, the states they are read off, and what is refused."""

from functools import partial

import pytest
import torch
from scipy.optimize import minimize
from spinal_models import tiny_model
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.steering import Ablate, Site, Subspace, baselines, train_cdas
from alignscope.steering.baselines.components import _rows, first_component, signed, unit_differences
from alignscope.steering.baselines.probing import least_l1, logistic_weight
from alignscope.steering.baselines.states import States, added
from alignscope.steering.preparing import prepare

ROWS = [
    {"negative_input": f"say {a}", "negative_output": f"{a}{b} no", "positive_input": f"say {a} ab {b}",
     "positive_output": f"yes {b}{a}"}
    for a in "cdef" for b in "ghijk"
]  # fmt: skip
FITS = {
    "diffmean": baselines.fit_diffmean,
    "pca": baselines.fit_pca,
    "lat": baselines.fit_lat,
    "probe": baselines.fit_probe,
    "random": baselines.random_vector,
    "ablate": baselines.ablation,
    "ssv": partial(baselines.fit_ssv, epochs=1),
    "lang": partial(baselines.fit_ssv, epochs=1, lang=True),
    "bipo": partial(baselines.fit_bipo, epochs=1),
    "reps": partial(baselines.fit_reps, epochs=1),
}


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


def drawn(n: int, d: int, *, gap: float, seed: int = 0) -> States:
    """Gaussian states, the positive ones `gap` further along the first axis."""
    g = torch.Generator().manual_seed(seed)
    positive, negative = torch.randn(2, n, d, generator=g, dtype=torch.float64)
    positive[:, 0] += gap
    return States(positive=positive, negative=negative)


# ---- on the rows, layer and positions of train_cdas


@pytest.fixture(scope="module")
def trained(llama) -> SteeringVector:
    return train_cdas(llama, ROWS, layer=1, epochs=1, seed=3)


@pytest.mark.parametrize("name", list(FITS))
def test_every_baseline_sees_what_training_sees(llama, trained, name):
    vector = FITS[name](llama, ROWS, layer=1, seed=3)
    assert vector.method == name
    assert (vector.site, vector.positions) == (trained.site, trained.positions)
    assert vector.metadata["data"] == trained.metadata["data"]
    assert vector.metadata["sha256"] == trained.metadata["sha256"]
    assert vector.metadata["fingerprint"] == trained.metadata["fingerprint"]
    assert vector.factors.n == trained.factors.n == 15


@pytest.mark.parametrize("name", list(FITS))
def test_every_baseline_is_saved_and_acts(llama, name, tmp_path):
    vector = FITS[name](llama, ROWS, layer=1)
    loaded = SteeringVector.load(vector.save(tmp_path / name), llama)
    ids = torch.tensor([[1, 9, 10, 11, 12]])
    with torch.no_grad():
        plain = llama.logits(ids, torch.ones_like(ids))
        with loaded.applied(llama, 1.0):
            assert (llama.logits(ids, torch.ones_like(ids)) - plain).abs().max() > 1e-4


# ---- difference of means


def test_diffmean_is_the_difference_of_mean_states(llama):
    """Read anew from the model's own hidden states: every token behind <bos>, prompt and answer."""
    sums = []
    tokenizer = llama.tokenizer
    for side in ("positive", "negative"):
        states = []
        for row in ROWS:
            prompt = tokenizer(row[f"{side}_input"], add_special_tokens=False)["input_ids"]
            answer = tokenizer(row[f"{side}_output"], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[tokenizer.bos_token_id, *prompt, *answer, tokenizer.eos_token_id]])
            with torch.no_grad():
                states.append(llama.model(ids, output_hidden_states=True).hidden_states[2][0, 1:])
        sums.append(torch.cat(states).double().mean(0))
    vector = baselines.fit_diffmean(llama, ROWS, layer=1, holdout=0)
    assert torch.allclose(vector.vector.double(), sums[0] - sums[1], atol=1e-6)


def test_diffmean_of_last_tokens_moves_f_minus_to_f_plus(llama):
    vector = baselines.fit_diffmean(llama, ROWS, layer=1, tokens="last")
    along = vector.factors.positive - vector.factors.negative
    assert float(along) == pytest.approx(float(vector.vector.norm()), rel=1e-5)


def test_norms_are_lengths_of_one_direction(llama):
    full, unit, largest = (
        baselines.fit_diffmean(llama, ROWS, layer=1, norm=norm) for norm in ("difference", "unit", "largest")
    )
    assert float(unit.vector.norm()) == pytest.approx(1, abs=1e-6)
    assert float(largest.vector.norm()) == pytest.approx(full.metadata["metrics"]["largest_projection"], rel=1e-6)
    for vector in (unit, largest):
        assert vector.subspace.cosine(full.subspace) == pytest.approx(1, abs=1e-6)
        assert float(vector.vector @ full.vector) > 0


def test_the_gap_is_the_distance_of_the_factors_along_the_direction(llama):
    vector = baselines.fit_diffmean(llama, ROWS, layer=1, tokens="last", norm="gap", holdout=0)
    full = baselines.fit_diffmean(llama, ROWS, layer=1, tokens="last", holdout=0)
    torch.testing.assert_close(vector.vector, full.vector)  # f+ - f- along the difference of means is its length
    pca = baselines.fit_pca(llama, ROWS, layer=1, norm="gap", holdout=0)
    assert float(pca.vector.norm()) == pytest.approx(float(pca.factors.positive - pca.factors.negative), rel=1e-5)


def test_a_direction_along_which_no_state_lies_above_zero_has_no_largest_but_a_gap(llama, monkeypatch):
    states = States(positive=-torch.ones(4, 32).double(), negative=-2 * torch.ones(4, 32).double())
    data = prepare(llama, ROWS, layer=1, holdout=0)
    direction = torch.ones(32).double()
    with pytest.raises(InputError, match=r"no training state projects above 0 \(largest: -5.66\).*use norm='gap'"):
        added(data, direction, states, method="lat", norm="largest", settings={})
    factors = data.factors(Subspace(direction.float()[None]))
    distance = float(factors.positive - factors.negative)
    turned = direction if distance > 0 else -direction
    vector = added(data, turned, states, method="lat", norm="gap", settings={})
    assert float(vector.vector.norm()) == pytest.approx(abs(distance), rel=1e-4)
    with pytest.raises(InputError, match="do not lie further along it"):
        added(data, -turned, states, method="lat", norm="gap", settings={})


def test_ablation_takes_the_direction_out_behind_every_block(llama):
    vector = baselines.ablation(llama, ROWS, layer=1)
    assert isinstance(vector.edit_for(1.0), Ablate)
    ids = torch.tensor([[1, 9, 10, 11, 12]])
    with baselines.everywhere(vector, llama).applied(llama):
        found = llama.trace(ids, torch.ones_like(ids), reduce=lambda layer, h, mask: vector.subspace.project(h))
    for layer in (1, 2, 3):
        assert found[layer][:, 1:].abs().max() < 1e-5  # <bos> is the prefix
    assert [one.site for one in baselines.everywhere(vector, llama).vectors] == [Site(0), Site(1), Site(2)]


# ---- principal components


def test_the_first_component_is_the_axis_of_largest_variance():
    rows = torch.tensor([[3.0, 0, 7], [-3, 0, 7], [0, 1, 7], [0, -1, 7]], dtype=torch.float64)
    assert first_component(rows).abs().tolist() == pytest.approx([1, 0, 0], abs=1e-12)


def test_the_sign_follows_most_pairs_not_the_mean():
    axis = torch.tensor([1.0, 0], dtype=torch.float64)
    zero = torch.zeros(3, 2, dtype=torch.float64)
    most_up = torch.tensor([[1.0, 0], [1, 0], [-9, 0]], dtype=torch.float64)
    assert torch.equal(signed(-axis, States(positive=most_up, negative=zero)), axis)
    tied = States(positive=most_up[1:], negative=zero[1:])
    assert torch.equal(signed(axis, tied), -axis)


def test_the_component_of_differences_loses_their_mean_and_that_of_centred_pairs_keeps_it():
    states = drawn(400, 6, gap=8)
    assert abs(float(first_component(_rows(states, "pca_center"))[0])) > 0.99
    assert abs(float(first_component(_rows(states, "pca_diff"))[0])) < 0.9


@pytest.mark.parametrize("method", ["pca_diff", "pca_center", "pca_positive"])
def test_most_pairs_project_higher_with_the_concept(llama, method):
    vector = baselines.fit_pca(llama, ROWS, layer=1, method=method, norm="unit", holdout=0)
    assert float(vector.vector.norm()) == pytest.approx(1, abs=1e-6)
    if method == "pca_center":
        assert vector.factors.positive > vector.factors.negative


def test_states_that_do_not_vary_have_no_component():
    with pytest.raises(InputError, match="do not vary"):
        first_component(torch.full((5, 3), 2.0, dtype=torch.float64))


# ---- LAT


def test_random_pairs_differ_by_unit_steps_and_no_state_is_in_two_of_them():
    states = torch.eye(7, dtype=torch.float64) * torch.arange(1, 8)[:, None]
    found = unit_differences(states, seed=3)
    assert found.norm(dim=-1).tolist() == pytest.approx([1, 1, 1])
    assert (found != 0).sum(0).max() == 1  # row i alone has axis i
    assert torch.equal(found, unit_differences(states, seed=3))
    assert not torch.equal(found, unit_differences(states, seed=4))


def test_long_steps_count_no_more_than_short_ones():
    states = drawn(400, 5, gap=0).positive
    states[:, 1] *= 3
    states[:40, 2] *= 1000  # a tenth of the states reaches far along another axis
    assert abs(float(first_component(unit_differences(states, seed=0))[1])) > 0.99
    assert abs(float(first_component(states)[2])) > 0.99


def test_equal_states_have_no_pairs_and_some_equal_ones_are_left_out():
    with pytest.raises(InputError, match="no pair differs"):
        unit_differences(torch.ones(6, 3, dtype=torch.float64), seed=0)
    states = torch.zeros(8, 2, dtype=torch.float64)
    states[0, 0] = 5
    assert unit_differences(states, seed=0).abs().tolist() == [[1, 0]]


def test_lat_is_of_the_length_of_the_largest_projection(llama):
    vector = baselines.fit_lat(llama, ROWS, layer=1)
    assert float(vector.vector.norm()) == pytest.approx(vector.metadata["metrics"]["largest_projection"], rel=1e-6)
    half = vector.metadata["metrics"]["n_states"][0] // 2
    assert half - 10 < vector.metadata["settings"]["n_pairs"] <= half  # all rows begin alike: some states are equal


# ---- probe


def test_the_probe_minimises_its_objective():
    states = drawn(60, 4, gap=1.5)
    h = torch.cat([states.positive, states.negative])
    x = (h - h.mean(0)) / (spread := (h - h.mean(0)).square().mean().sqrt())
    sign = torch.cat([torch.ones(60), -torch.ones(60)]).double()

    def objective(parts):  # w = up - down, both >= 0: the penalty is smooth then
        parts = torch.tensor(parts)
        w, b = parts[:4] - parts[4:8], parts[8]
        return float(torch.nn.functional.softplus(-sign * (x @ w + b)).mean() + 0.05 * parts[:8].sum())

    best = minimize(objective, [0.1] * 8 + [0.0], bounds=[(0, None)] * 8 + [(None, None)], tol=1e-12)
    w, moved = logistic_weight(states, l1=0.05)
    assert moved < 1e-6
    assert (w * spread).tolist() == pytest.approx((best.x[:4] - best.x[4:8]).tolist(), abs=1e-3)


def test_the_probe_finds_a_planted_direction_and_a_penalty_leaves_that_alone():
    w, _ = logistic_weight(drawn(400, 8, gap=2), l1=0.1)
    assert w[0] > 0
    assert w[1:].abs().max() == 0


def test_the_least_penalty_that_leaves_no_weight():
    states = drawn(60, 4, gap=1.5)
    least = least_l1(states)
    assert logistic_weight(states, l1=1.001 * least)[0].abs().max() == 0
    assert logistic_weight(states, l1=0.999 * least)[0].abs().max() > 0


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_states_and_their_mean_do_not_turn_the_probe(scale):
    states = drawn(60, 4, gap=1.5)
    moved = States(positive=scale * (states.positive + 5), negative=scale * (states.negative + 5))
    first, second = logistic_weight(states, l1=0.01)[0], logistic_weight(moved, l1=0.01)[0]
    assert torch.allclose(first, scale * second, rtol=1e-6, atol=1e-9)


def test_more_tokens_of_one_class_weigh_no_more():
    states = drawn(50, 3, gap=1)
    doubled = States(positive=states.positive, negative=states.negative.repeat(3, 1))
    first, second = logistic_weight(states, l1=0)[0], logistic_weight(doubled, l1=0)[0]
    assert torch.allclose(first, second, atol=1e-5)


# ---- random


def test_draws_differ_and_repeat(llama):
    first, again, other = (baselines.random_vector(llama, ROWS, layer=1, draw=draw) for draw in (0, 0, 1))
    assert torch.equal(first.subspace.basis, again.subspace.basis)
    assert first.subspace.cosine(other.subspace) < 0.9


def test_a_random_clamp_has_the_factors_of_its_own_direction(llama):
    vector = baselines.random_vector(llama, ROWS, layer=1, rank=3)
    assert vector.factors.positive.shape == (3,)
    assert vector.edit == "clamp"


# ---- refused


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("diffmean", {"tokens": "first"}, "tokens 'first'"),
        ("diffmean", {"norm": "huge"}, "norm 'huge'"),
        ("diffmean", {"layer": 9}, "layer 9"),
        ("pca", {"method": "umap"}, "method 'umap'"),
        ("probe", {"l1": -1}, "l1=-1"),
        ("probe", {"l1": 10.0}, r"l1=10.0: from 0\.\d+ on the penalty keeps every weight of the probe at 0"),
        ("random", {"rank": 33}, r"rank 33: expected 1 \.\. 32, the width of"),
        ("random", {"rank": 0}, r"rank 0: expected 1 \.\. 32"),
        ("random", {"quadruples": ROWS[:5]}, "5 usable quadruples"),
    ],
)
def test_what_cannot_be_fitted_is_refused(llama, name, change, told):
    arguments = {"quadruples": ROWS, "layer": 1} | change
    with pytest.raises(InputError, match=told):
        FITS[name](llama, **arguments)
