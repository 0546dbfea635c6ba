"""Token information: the exact answers of the method page, what must not change them, and bad rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignscope.probes.kernels import TokenInformation, token_information

INF, LN3 = math.inf, math.log(3)
TENSORS = (
    *("entropy", "information", "plausible_entropy", "plausible_size", "kl", "reverse_kl"),
    *("log_ratio_normalizer", "policy_mass", "reference_mass", "support"),
)


def of(policy, reference, **options) -> TokenInformation:
    return token_information(
        *(torch.as_tensor(z, dtype=torch.float64).reshape(1, -1) for z in (policy, reference)), **options
    )


def zeros(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.float64)


def test_no_change_has_the_largest_entropy():
    z = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    got = token_information(z, z)
    assert got.entropy.tolist() == pytest.approx([math.log(100)] * 3, rel=1e-14)
    for value in (got.information, got.kl, got.reverse_kl, got.plausible_information):
        assert value.abs().max() < 1e-14
    assert got.log_ratio_normalizer.tolist() == pytest.approx([math.log(100)] * 3)


def test_one_of_two_tokens_tripled():
    got = of([LN3, 0], zeros(2))
    assert got.entropy.item() == pytest.approx(0.5623351446, abs=1e-10)
    assert got.information.item() == pytest.approx(0.1308120359, abs=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_one_of_four_tokens_tripled_and_swapped(dtype, tolerance):
    boosted, flat = torch.tensor([[LN3, 0, 0, 0]], dtype=dtype), torch.zeros(1, 4, dtype=dtype)
    got, swapped = token_information(boosted, flat), token_information(flat, boosted)
    assert got.entropy.item() == pytest.approx(1.2424533249, abs=tolerance)
    assert got.information.item() == pytest.approx(0.1438410362, abs=tolerance)
    assert swapped.entropy.item() == pytest.approx(1.3138340332, abs=tolerance)
    assert got.kl.item() == pytest.approx(swapped.reverse_kl.item(), abs=1e-12)
    assert got.reverse_kl.item() == pytest.approx(swapped.kl.item(), abs=1e-12)


@given(st.floats(-8, 8), st.integers(2, 300))
@settings(max_examples=25, deadline=None)
def test_one_token_boosted_by_delta(delta, n_vocab):
    z = zeros(n_vocab)
    z[0] = delta
    total = math.exp(delta) + n_vocab - 1
    expected = math.log(total) - delta * math.exp(delta) / total
    assert of(z, zeros(n_vocab)).entropy.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance", "shift"), [(torch.float64, 1e-8, 1e3), (torch.float32, 1e-5, 50.0)])
def test_a_constant_in_either_model_moves_nothing(dtype, tolerance, shift):
    generator = torch.Generator().manual_seed(1)
    policy, reference = (torch.randn(4, 500, generator=generator, dtype=dtype) * 2 for _ in range(2))
    plain, moved = token_information(policy, reference), token_information(policy + shift, reference - shift)
    for name in TENSORS:
        torch.testing.assert_close(getattr(plain, name), getattr(moved, name), atol=tolerance, rtol=0)


def test_under_a_uniform_reference_q_is_the_policy():
    z = torch.randn(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = of(z, zeros(200))
    p = z.softmax(-1)
    assert got.entropy.item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-12)
    assert got.information.item() == pytest.approx(got.kl.item(), abs=1e-12)


@pytest.mark.parametrize(("c", "expected"), [(0.5, 12.1339433), (1, 12.0129280), (2, 11.7741295)])
def test_power_law_log_ratios(c, expected):
    d = c * torch.arange(1, 200_001, dtype=torch.float64).log()
    assert of(d, zeros(200_000)).entropy.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("s", "expected"), [(0.3, 12.1610733), (1, 11.7061787), (2, 10.2158401)])
def test_gaussian_log_ratios(s, expected):
    d = s * torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    assert of(d, zeros(200_000)).entropy.item() == pytest.approx(expected, abs=1e-7)


def test_padded_rows_of_the_head_must_be_masked():
    policy = torch.cat([zeros(151_665), torch.full((271,), 12.0)])
    assert of(policy, zeros(len(policy)), vocab=151_665).entropy.item() == pytest.approx(11.9294294, abs=1e-7)
    assert of(policy, zeros(len(policy))).entropy.item() == pytest.approx(5.6466734, abs=1e-7)
    assert of(policy, zeros(151_700), vocab=151_665).support.item() == 151_665


def test_the_plausible_set_sees_what_the_whole_vocabulary_dilutes():
    reference = torch.full((152_000,), -30.0, dtype=torch.float64)
    reference[:50] = 0
    policy = reference.clone()
    policy[:50] = 1.5 * (-1.0) ** torch.arange(50)
    expected = 1.5 * math.tanh(1.5) - math.log(math.cosh(1.5))
    for plausible in (1e-4, "top50"):
        got = of(policy, reference, plausible=plausible)
        assert got.plausible_size.item() == 50
        assert got.plausible_information.item() == pytest.approx(expected, abs=1e-6)
        assert math.log(50) - got.plausible_entropy.item() == pytest.approx(0.5022822, abs=1e-7)
        assert got.kl.item() == pytest.approx(0.5022822, abs=1e-7)
        assert got.information.item() == pytest.approx(0.00060539, abs=1e-8)
        assert got.reverse_kl.item() == pytest.approx(0.8554402, abs=1e-7)
        assert got.policy_mass.item() == pytest.approx(1, abs=1e-6)
    assert of(policy, reference, plausible="top64").plausible_size.item() >= 64


@pytest.mark.parametrize(("a", "expected"), [(1.0, 8.3699043), (-1.0, 12.0129280)])
def test_sharpening_a_zipf_reference_has_the_lower_entropy(a, expected):
    reference = -torch.arange(1, 200_001, dtype=torch.float64).log()
    assert of((1 + a) * reference, reference).entropy.item() == pytest.approx(expected, abs=1e-7)


def test_identities_of_the_normalizer_and_the_masses():
    generator = torch.Generator().manual_seed(3)
    policy, reference = (torch.randn(5, 300, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    got = token_information(policy, reference, plausible=0.01)
    p, r = policy.softmax(-1), reference.softmax(-1)
    torch.testing.assert_close(got.log_ratio_normalizer, (p / r).sum(-1).log(), atol=1e-10, rtol=0)
    likely = (p >= 0.01) | (r >= 0.01)
    torch.testing.assert_close(got.policy_mass, (p * likely).sum(-1))
    torch.testing.assert_close(got.reference_mass, (r * likely).sum(-1))
    assert torch.equal(got.plausible_size, likely.sum(-1))
    q = torch.where(likely, p / r, 0.0)
    q = q / q.sum(-1, keepdim=True)
    torch.testing.assert_close(got.plausible_entropy, torch.special.entr(q).sum(-1))
    torch.testing.assert_close(got.kl, (p * (p / r).log()).sum(-1))
    torch.testing.assert_close(got.reverse_kl, (r * (r / p).log()).sum(-1))


@pytest.mark.parametrize("block_entries", [1, 700, 10**6])
def test_rows_at_a_time_and_vocabulary_order_are_free(block_entries, monkeypatch):
    generator = torch.Generator().manual_seed(4)
    policy, reference = (torch.randn(7, 300, generator=generator) * 3 for _ in range(2))
    plain = token_information(policy, reference)
    order = torch.randperm(300, generator=generator)
    monkeypatch.setattr("alignscope.probes.kernels.information.BLOCK_ENTRIES", block_entries)
    again, mixed = token_information(policy, reference), token_information(policy[:, order], reference[:, order])
    for name in TENSORS:
        assert torch.equal(getattr(plain, name), getattr(again, name))
        torch.testing.assert_close(getattr(plain, name), getattr(mixed, name), atol=1e-12, rtol=0)


def test_bf16_logits_are_compared_exactly():
    z = torch.randn(2, 400, generator=torch.Generator().manual_seed(5)).bfloat16()
    moved = z + 1
    got, single = token_information(moved, z), token_information(moved.float(), z.float())
    assert torch.equal(got.kl, single.kl)


# ------------------------------------------------------------------------------------------------------- odd rows


def test_tokens_that_both_models_exclude_leave_the_support():
    got = of([LN3, 0, -INF, -INF], [0, 0, -INF, -INF])
    assert got.support.item() == 2
    assert got.entropy.item() == pytest.approx(0.5623351446)
    assert got.information.item() == pytest.approx(0.1308120359)
    assert got.kl.item() == pytest.approx(0.1308120359)
    assert got.status[0] == "ok"
    assert of([LN3, 0, -INF, -INF], [0, 0, -INF, -INF], plausible="top3").plausible_size.item() == 2


def test_a_token_that_only_the_policy_excludes_has_no_share():
    got = of([0, 0, -INF], [0, 0, 0])
    assert got.entropy.item() == pytest.approx(math.log(2))
    assert got.support.item() == 3
    assert got.status[0] == "ok"
    assert got.kl.item() == pytest.approx(math.log(3 / 2))
    assert got.reverse_kl.item() == INF


def test_a_token_that_only_the_reference_excludes_is_a_point_mass():
    got = of([0, 0, 0, 0], [0, 0, 0, -INF])
    assert got.status[0] == "unsupported"
    assert got.entropy.item() == got.plausible_entropy.item() == 0
    assert got.information.item() == pytest.approx(math.log(4))
    assert got.kl.item() == got.log_ratio_normalizer.item() == INF
    assert got.reverse_kl.item() == pytest.approx(math.log(4 / 3))


def test_one_plausible_token_is_degenerate():
    got = of([40.0, 0, 0], [30.0, 0, 0])
    assert got.plausible_size.item() == 1
    assert got.plausible_entropy.item() == 0
    assert got.plausible_information.item() == 0
    assert got.status[0] == "degenerate"
    none = of(zeros(10), zeros(10), plausible=0.5)
    assert (none.plausible_size.item(), none.status[0]) == (0, "degenerate")
    assert math.isnan(none.plausible_entropy.item())


@pytest.mark.parametrize("row", [[math.nan, 0, 0], [INF, 0, 0], [-INF, -INF, -INF]])
@pytest.mark.parametrize("side", [0, 1])
def test_rows_that_are_no_distribution_are_nan_and_harm_no_neighbour(row, side):
    good = torch.tensor([[LN3, 0, 0], [LN3, 0, 0]])
    sides = [good, torch.zeros(2, 3)]
    sides[side] = sides[side].clone()
    sides[side][0] = torch.tensor(row)
    got = token_information(*sides)
    assert got.status.tolist() == ["non_finite", "ok"]
    assert math.isnan(got.entropy[0].item())
    assert math.isnan(got.kl[0].item())
    alone = token_information(good[1:], torch.zeros(1, 3))
    assert got.entropy[1].item() == alone.entropy.item()
    assert got.kl[1].item() == alone.kl.item()


def test_no_rows_give_empty_tensors():
    got = token_information(torch.zeros(0, 5), torch.zeros(0, 5))
    assert got.entropy.shape == got.support.shape == (0,)
    assert got.status.shape == (0,)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 5), (3, 5)), {}, r"same positions, got \(2, 5\) and \(3, 5\)"),
        (((2, 5), (2, 6)), {}, "5 and 6 columns: pass vocab"),
        (((2, 5), (2, 6)), {"vocab": 6}, "2 to 5"),
        (((2, 5), (2, 5)), {"vocab": 1}, "got 1"),
        (((2, 5), (2, 5)), {"plausible": 0.0}, "plausible"),
        (((2, 5), (2, 5)), {"plausible": "best"}, "'best'"),
    ],
)
def test_bad_arguments_are_refused(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        token_information(torch.zeros(shapes[0]), torch.zeros(shapes[1]), **options)
