"""Tokens that carry an update, and the tilt: exact answers, sums that must close, a naive loop, odd positions."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignscope.probes.kernels import (
    InformationPass,
    TokenAttribution,
    TokenTilt,
    information_pass,
    token_attribution,
    token_attribution_from_hidden,
    token_information,
    token_tilt,
)
from alignscope.probes.kernels.attribution_sums import AttributionSums

INF, LN3 = math.inf, math.log(3)
EPS = 0.01
VECTORS = (
    *("q_total", "policy_total", "reference_total", "policy_change", "plausible_q"),
    *("plausible_contribution", "plausible_change", "plausible_count", "top_count"),
)
TILT = ("slope", "r_squared", "unweighted_slope", "unweighted_r_squared")


def float64(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def logits(n: int, vocab: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A reference as steep as a language model's and a policy near it."""
    generator = torch.Generator().manual_seed(seed)
    reference = 3 * torch.randn(n, vocab, generator=generator, dtype=torch.float64)
    return reference + torch.randn(n, vocab, generator=generator, dtype=torch.float64), reference


def naive(policy: Tensor, reference: Tensor, eps: float, top: int) -> tuple[dict[str, list[float]], list[list[int]]]:
    """The sums over positions, and the lists, token by token."""
    vocab = policy.shape[1]
    sums = {name: [0.0] * vocab for name in VECTORS}
    lists = []
    for zp, zr in zip(policy.tolist(), reference.tolist(), strict=True):
        total_p, total_r = (math.fsum(map(math.exp, z)) for z in (zp, zr))
        p, r = [math.exp(z) / total_p for z in zp], [math.exp(z) / total_r for z in zr]
        ratio = [a / b for a, b in zip(p, r, strict=True)]
        likely = {v for v in range(vocab) if p[v] >= eps or r[v] >= eps}
        whole, part = math.fsum(ratio), math.fsum(ratio[v] for v in likely)
        lists.append(sorted(range(vocab), key=lambda v: -ratio[v])[:top])
        for v in range(vocab):
            sums["q_total"][v] += ratio[v] / whole
            sums["policy_total"][v] += p[v]
            sums["reference_total"][v] += r[v]
            sums["policy_change"][v] += p[v] * math.log(ratio[v])
            if v in likely:
                share = ratio[v] / part
                sums["plausible_q"][v] += share
                sums["plausible_contribution"][v] += share * math.log(len(likely) * share)
                sums["plausible_change"][v] += math.log(ratio[v])
                sums["plausible_count"][v] += 1
        for v in lists[-1]:
            sums["top_count"][v] += 1
    return sums, lists


def assert_same(got: TokenAttribution, expected: TokenAttribution, tolerance: float) -> None:
    for field in fields(TokenAttribution):
        a, b = (torch.as_tensor(getattr(side, field.name)) for side in (got, expected))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True, msg=field.name)


# -------------------------------------------------------------------------------------------------------- attribution


def test_one_token_of_four_tripled():
    got = token_attribution(float64([[0, LN3, 0, 0]]), torch.zeros(1, 4, dtype=torch.float64))
    assert got.ids[0, 0].item() == 1
    assert got.ids.shape == (1, 4)  # no more than there are
    assert got.q[0].tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], rel=1e-12)
    contributions = [math.log(2) / 2, *[math.log(4 / 6) / 6] * 3]
    assert got.contribution[0].tolist() == pytest.approx(contributions, rel=1e-12)
    assert got.contribution.sum().item() == pytest.approx(0.1438410362, abs=1e-10)
    kl = 0.5 * math.log(2) - 0.5 * math.log(3 / 2)  # under a uniform reference pi = q
    assert got.policy_change.sum().item() == pytest.approx(kl, rel=1e-12)


@given(n=st.integers(1, 5), vocab=st.integers(2, 120), top=st.integers(1, 20), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_sums_and_lists_are_those_of_a_naive_loop(n, vocab, top, seed):
    policy, reference = logits(n, vocab, seed)
    got = token_attribution(policy, reference, plausible=EPS, top=top)
    sums, lists = naive(policy, reference, EPS, top)
    assert got.ids.tolist() == lists
    assert got.n_positions == n
    for name, values in sums.items():
        assert getattr(got, name).tolist() == pytest.approx(values, rel=1e-9, abs=1e-12), name


def test_contributions_close_on_the_panel():
    policy, reference = logits(70, 300)
    got, panel = token_attribution(policy, reference, top=300), token_information(policy, reference)
    torch.testing.assert_close(got.contribution.sum(-1), panel.information, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.q.sum(-1), torch.ones(70, dtype=torch.float64))
    assert got.policy_change.sum().item() == pytest.approx(panel.kl.sum().item(), rel=1e-12)
    assert got.plausible_contribution.sum().item() == pytest.approx(panel.plausible_information.sum().item(), rel=1e-10)
    assert got.plausible_count.sum() == panel.plausible_size.sum()
    assert got.q_total.sum().item() == pytest.approx(70, rel=1e-12)


def test_the_likeliest_of_a_large_vocabulary_are_those_of_a_sort():
    policy, reference = logits(5, 30_011)
    got = token_attribution(policy, reference)
    q, ids = (policy - reference).softmax(-1).topk(10, dim=-1)
    assert torch.equal(got.ids, ids)
    torch.testing.assert_close(got.q, q, rtol=1e-12, atol=0)
    assert got.top_count.sum() == 50
    assert set(got.top_count.nonzero()[:, 0].tolist()) == set(ids.flatten().tolist())


@pytest.mark.parametrize("shift", [50.0, -1e3])
def test_a_constant_in_either_model_moves_nothing(shift):
    policy, reference = logits(6, 200)
    assert_same(token_attribution(policy + shift, reference - 7), token_attribution(policy, reference), 1e-9)


def test_the_order_of_the_vocabulary_moves_with_the_tokens():
    policy, reference = logits(6, 2000)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    plain, mixed = token_attribution(policy, reference), token_attribution(policy[:, order], reference[:, order])
    assert torch.equal(order[mixed.ids], plain.ids)
    for name in VECTORS:
        torch.testing.assert_close(getattr(mixed, name), getattr(plain, name)[order], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("block", "chunk"), [(1, 1000), (7, 64), (64, 16384)])
def test_states_give_the_attribution_and_tilt_of_their_logits(block, chunk):
    generator = torch.Generator().manual_seed(3)
    shapes = [(20, 5), (700, 5), (20, 8), (720, 8)]
    sides = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    policy, reference = sides[0] @ sides[1].T, (sides[2] @ sides[3].T)[:, :700]
    options = {"vocab": 700, "block": block, "chunk": chunk}
    expected = token_attribution(policy, reference)
    assert_same(token_attribution_from_hidden(*sides, **options), expected, 1e-9)
    reading = information_pass(*sides, **options)
    assert_same(reading.attribution(), expected, 1e-9)
    tilt, other = reading.tilt(), token_tilt(policy, reference)
    for name in TILT:
        torch.testing.assert_close(getattr(tilt, name), getattr(other, name), rtol=1e-8, atol=1e-10)
    assert tilt.status.tolist() == other.status.tolist() == ["ok"] * 20


def test_positions_without_a_distribution_or_a_support_are_in_no_sum():
    policy, reference = logits(5, 40)
    policy[1, 3] = math.nan
    reference[3, 5] = -INF
    keep = [0, 2, 4]
    got, alone = token_attribution(policy, reference), token_attribution(policy[keep], reference[keep])
    assert got.n_positions == 3
    for name in VECTORS:
        torch.testing.assert_close(getattr(got, name), getattr(alone, name), rtol=1e-12, atol=1e-14)
    assert torch.equal(got.ids[keep], alone.ids)
    assert (got.ids[[1, 3]] == -1).all()
    assert got.q[[1, 3]].isnan().all()
    assert got.contribution[[1, 3]].isnan().all()


def test_a_token_without_a_share_of_q_is_not_listed():
    got = token_attribution(float64([[LN3, 0, -INF, -INF]]), float64([[0, 0, 0, -INF]]), top=4)
    assert got.ids.tolist() == [[0, 1, -1, -1]]
    assert got.q[0].tolist() == pytest.approx([0.75, 0.25, 0, 0])
    assert got.contribution[0].tolist() == pytest.approx([0.75 * math.log(9 / 4), 0.25 * math.log(3 / 4), 0, 0])
    assert got.top_count.tolist() == [1, 1, 0, 0]
    assert got.plausible_change.tolist()[2:] == [-INF, 0]  # excluded by the policy; by both
    assert got.plausible_count.tolist() == [1, 1, 1, 0]


def test_a_policy_that_excludes_all_that_is_plausible_leaves_no_nan():
    policy, reference = torch.full((1, 12), 0.0, dtype=torch.float64), torch.zeros(1, 12, dtype=torch.float64)
    policy[0, 0], reference[0, 0] = -INF, 3.0  # ref(0) = .65, all others below .1 in both models
    got = token_attribution(policy, reference, plausible=0.2)
    assert got.plausible_count.sum() == 1
    assert not any(getattr(got, name).isnan().any() for name in VECTORS)


def test_one_pass_sums_groups_of_positions_as_a_pass_of_each_does():
    policy, reference = logits(40, 50)
    groups = {"first": slice(0, 15), "second": slice(15, 40)}
    shared, sums = InformationPass(50, top=None), {name: AttributionSums(50, 3) for name in groups}
    for name, part in groups.items():
        shared.update(policy[part], reference[part], sums=sums[name])
    for name, part in groups.items():
        alone, found = token_attribution(policy[part], reference[part], top=3), sums[name].attribution()
        for vector in (*VECTORS, "ids", "q", "contribution"):
            assert torch.equal(getattr(found, vector), getattr(alone, vector)), vector
        assert found.n_positions == alone.n_positions


def test_lists_taken_on_the_way_are_in_no_later_attribution_and_the_sums_are():
    policy, reference = logits(40, 50)
    whole = token_attribution(policy, reference, top=3)
    reading, sums = InformationPass(50, top=None), AttributionSums(50, 3)
    parts = []
    for part in (slice(0, 15), slice(15, 40)):
        reading.update(policy[part], reference[part], sums=sums)
        parts.append(sums.take_lists())
    for name, found in zip(("ids", "q", "contribution"), zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(found), getattr(whole, name)), name
    assert [len(part) for part in sums.take_lists()] == [0, 0, 0]
    last = sums.attribution()
    assert (last.ids.shape, last.n_positions) == ((0, 3), 40)
    assert torch.allclose(last.q_total, whole.q_total, rtol=1e-12)


def test_positions_added_later_do_not_change_an_attribution_unless_it_is_no_copy():
    policy, reference = logits(40, 50)
    reading, sums = InformationPass(50, top=None), AttributionSums(50, 3)
    reading.update(policy[:15], reference[:15], sums=sums)
    copied, live = sums.attribution(), sums.attribution(copied=False)
    reading.update(policy[15:], reference[15:], sums=sums)
    assert copied.q_total.sum().item() == pytest.approx(15)
    assert live.q_total.sum().item() == pytest.approx(40)


def test_fewer_than_one_token_kept_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        token_attribution(torch.zeros(1, 4), torch.zeros(1, 4), top=0)


# --------------------------------------------------------------------------------------------------------------- tilt


def tilt(policy, reference, **options) -> TokenTilt:
    return token_tilt(*(float64(z).reshape(1, -1) for z in (policy, reference)), **options)


def test_a_power_of_the_reference_has_the_slope_of_its_exponent():
    got = tilt(1.5 * float64([0.7, 0.2, 0.1]).log(), float64([0.7, 0.2, 0.1]).log())
    assert [getattr(got, name).item() for name in TILT] == pytest.approx([0.5, 1, 0.5, 1], rel=1e-12)
    assert got.status[0] == "ok"


@given(a=st.floats(-0.9, 3), shift=st.floats(-100, 100), seed=st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_any_exponent_comes_back_whatever_is_added_to_the_logits(a, shift, seed):
    _, reference = logits(1, 50, seed)
    got = token_tilt((1 + a) * reference + shift, reference)
    assert got.slope.item() == pytest.approx(a, abs=1e-9)
    assert got.unweighted_slope.item() == pytest.approx(a, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 0.8, 2.0])
def test_a_sampling_temperature_is_a_tilt(temperature):
    _, reference = logits(4, 80)
    got = token_tilt(reference / temperature, reference)
    assert got.slope.tolist() == pytest.approx([1 / temperature - 1] * 4, rel=1e-10)
    assert got.r_squared.tolist() == pytest.approx([1] * 4, rel=1e-10)


@pytest.mark.parametrize("plausible", [EPS, "top5"])
def test_the_line_is_the_least_squares_line_over_the_plausible_tokens(plausible):
    policy, reference = logits(8, 60)
    got = token_tilt(policy, reference, plausible=plausible)
    p, r = policy.softmax(-1), reference.softmax(-1)
    for row in range(8):
        if plausible == EPS:
            likely = ((p[row] >= EPS) | (r[row] >= EPS)).nonzero()[:, 0]
        else:
            likely = torch.cat([z[row].topk(5).indices for z in (policy, reference)]).unique()
        x, y = reference[row, likely].numpy(), (policy - reference)[row, likely].numpy()
        for weight, names in (((p + r)[row, likely].numpy(), TILT[:2]), (np.ones(len(x)), TILT[2:])):
            slope, level = np.polyfit(x, y, 1, w=np.sqrt(weight))
            residual = y - slope * x - level
            spread = y - np.average(y, weights=weight)
            r_squared = 1 - (weight * residual**2).sum() / (weight * spread**2).sum()
            expected = pytest.approx((slope, r_squared), rel=1e-8, abs=1e-9)
            assert tuple(getattr(got, name)[row].item() for name in names) == expected


def test_a_position_without_a_line_says_why():
    nan = math.nan
    rows = {
        "few": ([1, 0], [0, 0.5]),
        "flat": ([2, 1, 0], [0, 0, 0]),
        "unsupported": ([0, 0, 0, 0], [0, 1, 2, -INF]),
        "non_finite": ([0, 0, nan], [0, 1, 2]),
    }
    for status, (policy, reference) in rows.items():
        got = tilt(policy, reference)
        assert got.status[0] == status
        assert all(getattr(got, name).isnan().all() for name in TILT)
    assert tilt([0, 0, 0, -INF], [0, 1, 2, 3]).status[0] == "unsupported"
    assert tilt([0, 1, 2, -INF], [0, 2, 4, -INF]).status[0] == "ok"


def test_rounding_of_float32_logits_is_no_line():
    reference = float64([16, 16 + 2e-6, 16 - 2e-6, 16])
    assert tilt(float64([1, 2, 3, 4]), reference).status[0] == "flat"


def test_no_change_is_a_flat_line_without_a_fit():
    got = tilt([0, 1, 2], [0, 1, 2])
    assert got.slope.item() == got.unweighted_slope.item() == 0
    assert got.r_squared.isnan()
    assert got.status[0] == "ok"


def test_a_position_without_a_line_harms_no_neighbour():
    policy, reference = logits(4, 30)
    plain = token_tilt(policy, reference)
    policy[1, 2], reference[2, :] = -INF, 0.0
    got = token_tilt(policy, reference)
    assert got.status.tolist()[2] == "flat"
    for name in TILT:
        torch.testing.assert_close(getattr(got, name)[[0, 3]], getattr(plain, name)[[0, 3]], rtol=1e-12, atol=0)
