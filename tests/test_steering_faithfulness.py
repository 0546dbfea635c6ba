"""Teacher-forced KL: closed forms of the shares, a naive float64 loop as oracle, then what must not change a number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from tiny_steering import WAYS, WORDS, fixed_subject

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.steering import Factors, Positions, Site, SteeringSet, Subspace, baselines, faithfulness, train_cdas
from alignscope.steering.evaluation import Candidate, Faithfulness, forced
from alignscope.steering.evaluation.shares import DirectionShares, difference

QUICK = {"resamples": 50, "random_seeds": 1}
FEW = {"training": WORDS[:16], **QUICK}  # with few rows to test on
HUGE = SteeringVector.adding(torch.full((32,), 3e38), Site(1))


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return fixed_subject()


@pytest.fixture(scope="module")
def vector(llama) -> SteeringVector:
    return baselines.random_vector(llama, WORDS, layer=1, draw=7, holdout=0)


@pytest.fixture(scope="module")
def plain(llama, vector) -> Faithfulness:
    return faithfulness(llama, WORDS, vector, compare={"twin": vector}, **QUICK)


def ids_of(llama, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
    own = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [llama.tokenizer.bos_token_id] * bos + own + [llama.tokenizer.eos_token_id] * eos


def naive_kl(llama, row, direction: str, hook=None) -> float:
    """Mean KL(q : p) over the response tokens, from the model's whole logits in float64; hook(h, n_prompt) edits."""
    names = {"elicit": ("negative", "positive"), "suppress": ("positive", "negative")}[direction]
    response = ids_of(llama, row[f"{names[1]}_output"], eos=True)
    log: list[np.ndarray] = []
    for name, edited in zip(names, (True, False), strict=True):
        prompt = ids_of(llama, row[f"{name}_input"], bos=True)
        handle = None
        if edited and hook is not None:

            def edit(module, args, output, n=len(prompt)):
                return (hook(output[0], n), *output[1:]) if isinstance(output, tuple) else hook(output, n)

            handle = llama.model.model.layers[1].register_forward_hook(edit)
        with torch.no_grad():
            logits = llama.model(torch.tensor([prompt + response])).logits[0]
        if handle is not None:
            handle.remove()
        log.append(log_softmax(logits[len(prompt) - 1 : -1].double().numpy(), axis=-1))
    p, q = log
    return float((np.exp(q) * (q - p)).sum(-1).mean())


def column(found, method: str, direction: str) -> np.ndarray:
    chosen = (found.examples.method == method) & (found.examples.direction == direction)
    return found.examples.kl[chosen].to_numpy()


def side(kl: list[list[float]], tokens: list[int], clusters: list[int] | None = None, **options) -> DirectionShares:
    """Shares of mean KLs a row, no edit first."""
    n_tokens = np.array(tokens)
    sums = np.array(kl, dtype=float) * n_tokens[:, None]
    names = ["no edit", *"abc"][: sums.shape[1]]
    groups = np.arange(len(tokens)) if clusters is None else np.array(clusters)
    return DirectionShares.resampled(names, sums, n_tokens, groups, **{"resamples": 200} | options)


# ---- shares: closed forms


def test_the_share_is_of_means_over_tokens_not_of_rows():
    found = side([[2.0, 1.0], [1.0, 0.0]], [1, 3])
    assert found.kl("a")[0] == 1 / 4
    assert found.kl("no edit")[0] == 5 / 4
    assert found.recovered("a")[0] == 1 - 1 / 5


def test_harm_is_below_zero_and_no_edit_is_exactly_zero():
    found = side([[1.0, 3.0]] * 30, [2] * 30)
    estimate = found.recovered_estimate("a", "share")
    assert (estimate.value, estimate.low, estimate.high, estimate.n, estimate.n_clusters) == (-2, -2, -2, 60, 30)
    none = found.recovered_estimate("no edit", "share")
    assert (none.value, none.level, none.method) == (0, None, "exact")


def test_an_interval_is_that_of_a_ratio_of_resampled_means():
    g = np.random.default_rng(1)
    kl, tokens, groups = g.uniform(1, 2, (40, 2)), g.integers(1, 6, 40), g.integers(0, 25, 40)
    found = side(kl.tolist(), tokens.tolist(), groups.tolist(), seed=3).recovered_estimate("a", "share")
    labels = np.unique(groups)
    drawn = np.random.default_rng(3).integers(0, len(labels), size=(200, len(labels)))
    shares = []
    for draw in drawn:
        rows = np.concatenate([np.flatnonzero(groups == labels[k]) for k in draw])
        above, below = (kl[rows, c] @ tokens[rows] for c in (1, 0))
        shares.append(1 - above / below)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(shares, [2.5, 97.5])), rel=1e-12)


def test_few_prompts_have_a_value_and_no_interval():
    found = side([[2.0, 1.0]] * 19, [1] * 19).recovered_estimate("a", "share")
    assert (found.value, found.low) == (0.5, None)
    assert "19 clusters" in found.reason


def test_runs_that_are_alike_leave_nothing_to_recover():
    found = side([[0.0, 0.0]] * 25, [2] * 25)
    assert found.recovered_estimate("a", "share").value is None
    assert "nothing to recover" in found.recovered_estimate("a", "share").reason
    assert found.kl_estimate("a", "KL").value == 0


def test_equal_sides_have_no_asymmetry():
    g = np.random.default_rng(0).uniform(1, 2, (30, 2)).tolist()
    value, draws = difference(side(g, [2] * 30).recovered("a"), side(g, [2] * 30).recovered("a"))
    assert value == 0
    assert not draws.any()


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(1, 4))
def test_units_and_repeated_rows_change_no_share(scale, times):
    g = np.random.default_rng(0)
    kl, tokens = g.uniform(1, 2, (24, 2)), g.integers(1, 5, 24)
    plain = side(kl.tolist(), tokens.tolist()).recovered_estimate("a", "share")
    groups = np.repeat(np.arange(24), times)
    again = side((scale * kl)[groups].tolist(), tokens[groups].tolist(), groups.tolist())
    found = again.recovered_estimate("a", "share")
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high), rel=1e-9)


# ---- against a naive loop


@pytest.mark.parametrize("direction", WAYS)
def test_no_edit_is_a_naive_loop_over_whole_logits(llama, plain, direction):
    found = plain
    expected = [naive_kl(llama, row, direction) for row in WORDS]
    assert column(found, "no edit", direction) == pytest.approx(expected, abs=1e-6)
    side = "positive" if direction == "elicit" else "negative"
    tokens = [len(ids_of(llama, row[f"{side}_output"], eos=True)) for row in WORDS]
    row = found.row("no edit", direction)
    assert row.kl.value == pytest.approx(np.average(expected, weights=tokens), abs=1e-6)
    assert (row.n_rows, row.n_tokens, row.kl.n) == (24, sum(tokens), sum(tokens))
    assert min(expected) > 1e-3


@pytest.mark.parametrize("where", ["all", "prompt", "generation"])
def test_an_edited_run_is_a_plain_hook(llama, vector, where):
    """Behind block 1, from token 1 (behind <bos>) on, of the prompt, the response or both."""
    moved = SteeringVector(
        site=Site(1), subspace=vector.subspace, factors=vector.factors, positions=Positions(where, prefix=1)
    )
    found = faithfulness(llama, WORDS[:6], moved, strengths=2, **FEW)
    w = vector.subspace.basis[0]
    factors = vector.factors
    for direction, target in (
        ("elicit", factors.mid + 2 * factors.half),
        ("suppress", factors.mid - 2 * factors.half),
    ):

        def hook(h, n, target=target):
            new = h + (target - h @ w)[..., None] * w
            start, stop = {"all": (1, h.shape[1]), "prompt": (1, n), "generation": (n, h.shape[1])}[where]
            return torch.cat([h[:, :start], new[:, start:stop], h[:, stop:]], dim=1)

        expected = [naive_kl(llama, row, direction, hook) for row in WORDS[:6]]
        assert column(found, "vector", direction) == pytest.approx(expected, abs=1e-6)
        assert np.abs(np.array(expected) - column(found, "no edit", direction)).min() > 1e-5


def test_the_whole_state_of_the_other_run_recovers_everything(llama):
    """Rank d behind the last block, clamped to the other prompt's own coordinates: one response token, so one state."""
    states = []
    for name in ("positive", "negative"):
        ids = torch.tensor([ids_of(llama, WORDS[0][f"{name}_input"], bos=True)])
        states.append(llama.trace(ids, torch.ones_like(ids), reduce=lambda layer, h, mask: h[0, -1].clone())[3])
    whole = SteeringVector(
        site=Site(2), subspace=Subspace(torch.eye(32)), factors=Factors(*states), positions=Positions(last=1)
    )
    found = faithfulness(llama, WORDS[:1], whole, max_response_tokens=1, **FEW)
    for direction in WAYS:
        assert found.row("no edit", direction).kl.value > 1e-2
        assert found.row("vector", direction).recovered.value == pytest.approx(1, abs=1e-5)


# ---- what must not change a number


def test_strength_0_is_no_edit_to_the_bit(llama, vector):
    found = faithfulness(llama, WORDS[:5], vector, strengths=0, **FEW)
    for direction in WAYS:
        assert np.array_equal(column(found, "vector", direction), column(found, "no edit", direction))
        assert found.row("vector", direction).recovered.value == 0


def test_batches_and_padding_do_not_matter(llama, vector):
    one, many = (faithfulness(llama, WORDS[:5], vector, batch_tokens=size, **FEW) for size in (1, 4096))
    assert len({len(row["positive_output"]) for row in WORDS[:5]}) > 3
    assert one.examples.kl.to_numpy() == pytest.approx(many.examples.kl.to_numpy(), abs=1e-5)
    assert (one.examples.drop(columns="kl") == many.examples.drop(columns="kl")).all(axis=None)


def test_the_same_seed_gives_the_same_intervals_and_another_one_others(llama, vector, plain):
    compare = {"twin": vector}
    first, second, other = (
        plain, *(faithfulness(llama, WORDS, vector, compare=compare, seed=seed, **QUICK) for seed in (0, 1))
    )  # fmt: skip
    assert first.to_frame().equals(second.to_frame())
    assert first.row("vector", "elicit").kl.low != other.row("vector", "elicit").kl.low


def test_logits_are_held_for_few_tokens_at_a_time(llama, vector, monkeypatch):
    monkeypatch.setattr(forced, "ENTRIES", 3 * llama.vocab_size)
    plain, sizes = llama.readout, []
    expected = faithfulness(llama, WORDS[:4], vector, **FEW)
    monkeypatch.setattr(llama, "readout", lambda h: sizes.append(len(h)) or plain(h))
    found = faithfulness(llama, WORDS[:4], vector, **FEW)
    assert max(sizes) == 3
    assert found.examples.equals(expected.examples)


def test_the_model_is_left_as_found(llama, vector):
    faithfulness(llama, WORDS[:3], vector, **FEW)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()) == 0


# ---- what stands beside it


def test_random_directions_are_shown_as_their_mean_and_spread(llama, vector, plain):
    draws = {f"own {k}": baselines.random_vector(llama, WORDS, layer=1, draw=k, holdout=0) for k in range(3)}
    found = faithfulness(llama, WORDS[:5], vector, compare=draws, training=WORDS, random_seeds=3, resamples=50)
    for direction in WAYS:
        shares = [found.row(name, direction).recovered.value for name in draws]
        row = found.row("random", direction)
        assert row.of_draws == pytest.approx(tuple(shares), abs=1e-12)
        assert row.recovered.value == pytest.approx(np.mean(shares), abs=1e-12)
        assert row.spread == pytest.approx(np.std(shares, ddof=1), abs=1e-12)
    assert plain.row("random", "elicit").spread is None


def test_the_difference_of_means_is_fitted_or_brought(llama, vector):
    own = faithfulness(llama, WORDS[:5], vector, **FEW)
    brought = baselines.fit_diffmean(llama, WORDS[:16], layer=1, holdout=0)
    options = FEW | {"training": WORDS[4:20]}
    given = faithfulness(llama, WORDS[:5], vector, compare={"diffmean": brought}, **options)
    for direction in WAYS:
        assert np.array_equal(column(own, "diffmean", direction), column(given, "diffmean", direction))
    assert [row.method for row in own.rows[::2]] == ["no edit", "vector", "exchanged", "diffmean", "random"]


def test_with_strengths_exchanged_it_is_the_vector_of_the_other_direction(llama, vector):
    asked = {"elicit": 1.5, "suppress": -0.5}
    found = faithfulness(llama, WORDS[:5], vector, strengths=asked, **FEW)
    other = faithfulness(llama, WORDS[:5], vector, strengths={"elicit": -0.5, "suppress": 1.5}, **FEW)
    for direction, strength in (("elicit", -0.5), ("suppress", 1.5)):
        assert np.array_equal(column(found, "exchanged", direction), column(other, "vector", direction))
        assert found.row("exchanged", direction).strength == strength
    assert "at strength -0.5, of the other direction" in found.summary()


def test_a_strength_in_one_direction_has_nothing_to_exchange(llama, vector):
    ablation = baselines.ablation(llama, WORDS, layer=1, holdout=0)
    for one, strengths in ((vector, {"elicit": 1}), (ablation, None)):
        found = faithfulness(llama, WORDS[:5], one, strengths=strengths, **FEW)
        assert "exchanged" not in {row.method for row in found.rows}


def test_references_fitted_on_the_rows_tested_are_told(llama, vector, plain):
    assert any("flatter these" in told for told in plain.notices)
    other = faithfulness(llama, WORDS[:4], vector, **FEW)
    assert not other.notices


def test_two_methods_are_compared_pair_by_pair(plain):
    same = plain.compared("vector", "twin", "elicit")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    apart = plain.compared("vector", "diffmean", "elicit")
    shares = [plain.row(name, "elicit").recovered.value for name in ("vector", "diffmean")]
    assert apart.value == pytest.approx(shares[0] - shares[1], abs=1e-12)
    assert apart.low < apart.value < apart.high


# ---- rows: held out, or all


def test_of_its_own_file_only_rows_held_out_count(llama):
    trained = train_cdas(llama, WORDS, layer=1, epochs=1, holdout=0.25, seed=5)
    found = faithfulness(llama, WORDS, trained, **QUICK)
    assert found.row("vector", "elicit").n_rows == 6 == trained.metadata["data"]["n_held_out"]
    assert found.settings["rows"] == "held_out"
    assert not found.notices
    diffmean = baselines.fit_diffmean(llama, WORDS, layer=1, holdout=0.25, seed=5)  # on the other 18
    again = faithfulness(llama, WORDS, trained, compare={"diffmean": diffmean}, **QUICK)
    assert np.array_equal(column(found, "diffmean", "elicit"), column(again, "diffmean", "elicit"))
    every = faithfulness(llama, WORDS, trained, rows="all", **QUICK)
    assert every.row("vector", "elicit").n_rows == 24
    assert "trained on these rows" in every.notices[0]


def test_held_out_rows_are_refused_where_there_are_none(llama, vector):
    with pytest.raises(InputError, match="trained on all of them"):
        faithfulness(llama, WORDS, vector, rows="held_out", **QUICK)
    with pytest.raises(InputError, match="not the rows that the vector was trained on"):
        faithfulness(llama, WORDS[:20], vector, rows="held_out", **QUICK)


def test_rows_that_hang_together_by_an_input_are_one_cluster(llama, vector):
    linked = [*WORDS[:6], *({**row, "negative_output": "other"} for row in WORDS[:6])]
    found = faithfulness(llama, linked, vector, **FEW)
    assert found.row("vector", "elicit").kl.n_clusters == 6
    assert found.row("vector", "elicit").n_rows == 12


# ---- any vector


def test_an_ablation_suppresses_and_has_no_number_to_elicit(llama):
    found = faithfulness(llama, WORDS[:5], baselines.ablation(llama, WORDS[:16], layer=1, holdout=0), **FEW)
    elicit, suppress = (found.row("vector", way) for way in WAYS)
    assert (elicit.kl.value, elicit.strength, suppress.strength) == (None, None, 1)
    assert "cannot elicit" in elicit.kl.reason
    assert elicit.one_way == suppress.one_way == "one-way: suppress only"
    assert suppress.kl.value != found.row("no edit", "suppress").kl.value
    assert "not available" in found.summary()


def test_a_set_of_one_is_its_vector_and_one_everywhere_is_not(llama, vector):
    ablation = baselines.ablation(llama, WORDS[:16], layer=1, holdout=0)
    sets = {"set": SteeringSet([vector]), "one": ablation, "all": baselines.everywhere(ablation, llama)}
    found = faithfulness(llama, WORDS[:5], SteeringSet([vector]), compare=sets, **FEW)
    for direction in WAYS:
        assert np.array_equal(column(found, "vector", direction), column(found, "set", direction))
    assert any("the first site of the set" in told for told in found.notices)
    assert np.abs(column(found, "one", "suppress") - column(found, "all", "suppress")).max() > 1e-4


def test_a_vector_trained_one_way_is_labelled_so(llama):
    trained = train_cdas(llama, WORDS[:16], layer=1, epochs=1, directions="elicit", holdout=0)
    found = faithfulness(llama, WORDS[:5], trained, **FEW)
    assert found.row("vector", "suppress").one_way == "one-way: trained to elicit only"
    assert found.row("vector", "suppress").kl.value is not None


def test_a_strength_left_out_is_a_direction_without_numbers(llama, vector):
    found = faithfulness(llama, WORDS[:5], vector, strengths={"elicit": 2.0}, **FEW)
    assert found.row("vector", "elicit").strength == 2
    assert found.row("vector", "suppress").kl.reason == "no strength was given"
    assert found.row("vector", "elicit").one_way == "one-way: elicit only"
    with pytest.raises(KeyError, match="no KL to compare"):
        found.compared("vector", "diffmean", "suppress")


# ---- tables, refusals


def test_the_table_has_no_bare_number(llama, vector, plain):
    frame = plain.to_frame()
    assert len(frame) == 12
    measured = frame[frame.method != "no edit"]
    assert measured[["kl_low", "kl_high", "recovered_low", "recovered_high"]].notna().all(axis=None)
    assert (frame.n_prompts == 24).all()
    assert "random directions" in plain.summary()
    few = faithfulness(llama, WORDS[:5], vector, **FEW).to_frame()
    assert few.reason.str.contains("5 clusters").all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"quadruples": []}, "no rows|0 usable"),
        ({"rows": "some"}, "rows 'some'"),
        ({"strengths": {"up": 1}}, "strengths of up"),
        ({"strengths": {}}, "neither direction"),
        ({"strengths": float("nan")}, "finite"),
        ({"random_seeds": 0}, "random_seeds=0"),
        ({"compare": {"random 1": HUGE}}, "always there"),
        ({"training": WORDS[:5]}, "5 usable quadruples"),
        ({"vector": HUGE, "strengths": 2}, "not finite"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(llama, vector, change, told):
    with pytest.raises(InputError, match=told):
        faithfulness(llama, **{"quadruples": WORDS[:3], "vector": vector, **FEW} | change)


def test_a_candidate_keeps_its_own_strengths(llama, vector):
    doubled = Candidate(vector=vector, elicit=2.0, suppress=None)
    found = faithfulness(llama, WORDS[:5], vector, strengths=2, compare={"doubled": doubled}, **FEW)
    assert np.array_equal(column(found, "vector", "elicit"), column(found, "doubled", "elicit"))
    assert found.row("doubled", "suppress").kl.value is None
