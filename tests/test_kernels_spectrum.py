"""The spectrum accumulator: closed forms, merging, offsets, storage noise; then numpy as an oracle."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from alignscope.probes.kernels import SpectrumAccumulator, fit_power_law


def accumulated(*parts: Tensor, **options) -> SpectrumAccumulator:
    spectrum = SpectrumAccumulator(parts[0].shape[1], **options)
    for part in parts:
        spectrum.update(part)
    return spectrum


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(n: int, d: int, seed: int = 0) -> Tensor:
    """Columns orthonormal and orthogonal to the ones vector."""
    rows = gaussian(n, d, seed)
    return torch.linalg.qr(rows - rows.mean(0))[0]


CROSS = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]], dtype=torch.float64)


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_a_cross_keeps_its_arms_under_a_huge_offset(offset):
    spectrum = accumulated(CROSS + offset)
    assert spectrum.singular_values().tolist() == pytest.approx([2.8284271247, 1.4142135624], abs=1e-10)
    assert spectrum.covariance().flatten().tolist() == pytest.approx([0.5, 0, 0, 2.0], abs=1e-12)
    assert spectrum.mean.tolist() == pytest.approx([offset, offset])
    assert spectrum.n_rows == 4
    assert spectrum.n_clipped == 0

    raw = (CROSS + offset).T @ (CROSS + offset) - 4 * torch.full((2, 2), offset**2, dtype=torch.float64)
    squares = torch.linalg.eigvalsh(raw).tolist()
    if offset:
        assert squares != pytest.approx([2.0, 8.0], rel=0.1)  # the raw Gram matrix loses them


def test_uncentred_values_are_those_of_the_rows_as_they_are():
    rows = gaussian(50, 7) + 3
    expected = torch.linalg.svdvals(rows)
    assert torch.allclose(accumulated(rows).singular_values(centered=False), expected, rtol=1e-12)


def test_planted_singular_values_come_back():
    sigma = torch.arange(1, 33, dtype=torch.float64) ** -0.75
    basis = torch.linalg.qr(gaussian(32, 32, seed=2))[0]
    rows = (orthonormal(64, 32) * sigma) @ basis.T + 3
    assert (accumulated(rows).singular_values() - sigma).abs().max() < 1e-14


@pytest.mark.parametrize(("n", "d"), [(5000, 37), (300, 300), (40, 600)])
def test_streamed_equals_svd_of_the_centred_rows(n, d):
    rows = gaussian(n, d) * torch.arange(1, d + 1) ** -0.5 + 10
    spectrum = accumulated(*rows.split(777))
    expected = torch.linalg.svdvals(rows - rows.mean(0))
    rank = min(n - 1, d)
    got = spectrum.singular_values()
    assert got.shape == (d,)
    assert torch.allclose(got[:rank], expected[:rank], rtol=1e-9)
    assert (got[rank:] < 1e-6 * got[0]).all()
    assert (got.diff() <= 0).all()
    assert torch.allclose(spectrum.covariance(), torch.cov(rows.T, correction=0), atol=1e-12)
    assert torch.allclose(spectrum.mean, rows.mean(0), atol=1e-12)


def test_ill_conditioned_spectra_keep_eight_digits_where_a_float32_gram_loses_two():
    d, n = 128, 1024
    eigenvalues = torch.arange(1, d + 1, dtype=torch.float64) ** -3.3  # condition 1e7
    rows = (orthonormal(n, d) * (n * eigenvalues).sqrt()) @ torch.linalg.qr(gaussian(d, d, seed=1))[0] + 20
    rows = rows.float()
    expected = torch.linalg.svdvals(rows.double() - rows.double().mean(0)) ** 2
    got = accumulated(rows).singular_values() ** 2
    assert (got / expected - 1).abs().max() < 1e-8

    single = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0).double() * n).flip(0)
    assert (single / expected - 1).abs().max() > 1e-2


def test_merging_two_parts_with_their_own_pilots_is_the_whole():
    rows = gaussian(10, 4) + torch.tensor([0, 10, -1e4, 3.0])
    first, second, whole = accumulated(rows[:2]), accumulated(rows[2:]), accumulated(rows)
    before = second.state()
    first.merge(second)
    assert torch.allclose(first.singular_values(), whole.singular_values(), rtol=1e-12)
    assert torch.allclose(first.mean, whole.mean, rtol=1e-12)
    assert first.n_rows == 10
    assert all(np.array_equal(before[key], value) for key, value in second.state().items())


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_merging_the_arms_of_the_cross_is_the_cross(offset):
    arms = [accumulated(part + offset) for part in CROSS.split(2)]
    arms[0].merge(arms[1])
    assert arms[0].singular_values().tolist() == pytest.approx([8**0.5, 2**0.5], rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_seven_shards_in_any_order_give_one_answer(seed):
    rows = gaussian(700, 40) * torch.arange(1, 41) ** -1.0 + gaussian(1, 40, seed=9) * 50
    shards = [accumulated(shard) for shard in rows.split(100)]
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed)).tolist()
    merged = SpectrumAccumulator(40)
    for index in order:
        merged.merge(shards[index])
    whole = accumulated(rows)
    assert torch.allclose(merged.singular_values() ** 2, whole.singular_values() ** 2, rtol=1e-10)


def test_a_shared_pilot_makes_merging_an_addition():
    rows, pilot = gaussian(20, 3), torch.ones(3, dtype=torch.float64)
    parts = [accumulated(part, pilot=pilot) for part in rows.split(10)]
    total = parts[0].state()["squares"] + parts[1].state()["squares"]
    parts[0].merge(parts[1])
    assert np.array_equal(parts[0].state()["squares"], total)
    pilot += 5  # the accumulator keeps its own
    assert parts[0].state()["pilot"].tolist() == [1, 1, 1]


def test_halves_by_prompt_merge_to_the_full_sample():
    rows = gaussian(64, 8)
    even, odd, full = accumulated(rows[::2]), accumulated(rows[1::2]), accumulated(rows)
    even.merge(odd)
    assert torch.allclose(even.singular_values(), full.singular_values(), rtol=1e-12)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nonfinite_rows_are_set_aside_and_counted(poison):
    rows = gaussian(12, 3)
    broken = rows.clone()
    broken[0, 1] = broken[7, 2] = poison
    spectrum = accumulated(broken)
    kept = rows[[i for i in range(12) if i not in (0, 7)]]
    assert (spectrum.n_rows, spectrum.n_nonfinite) == (10, 2)
    assert torch.equal(spectrum.singular_values(), accumulated(kept).singular_values())
    other = SpectrumAccumulator(3)
    other.merge(spectrum)
    assert other.n_nonfinite == 2


def test_too_few_rows_have_no_spectrum():
    spectrum = SpectrumAccumulator(3)
    for call in (lambda: spectrum.mean, spectrum.covariance, spectrum.singular_values, lambda: spectrum.rounding_floor):
        with pytest.raises(ValueError, match=r"finite rows needed, got 0"):
            call()
    spectrum.update(torch.full((2, 3), math.nan))
    spectrum.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"2 finite rows needed, got 1 \(2 with NaN"):
        spectrum.singular_values()


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"rows are \[n, 3\], got \(4, 2\)"):
        SpectrumAccumulator(3).update(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="widths differ: 3 and 2"):
        SpectrumAccumulator(3).merge(SpectrumAccumulator(2))
    with pytest.raises(ValueError, match=r"pilot .* \[3\], got \(2,\)"):
        SpectrumAccumulator(3, pilot=torch.zeros(2))
    with pytest.raises(ValueError, match="width"):
        SpectrumAccumulator(0)


@pytest.mark.parametrize("n", [0, 5])
def test_a_stored_state_goes_on_where_it_stopped(n, tmp_path):
    rows = gaussian(30, 4) + 7
    spectrum = accumulated(rows[:n])
    np.savez(tmp_path / "state.npz", **spectrum.state())
    with np.load(tmp_path / "state.npz") as stored:
        resumed = SpectrumAccumulator.from_state(dict(stored))
    for one in (spectrum, resumed):
        one.update(rows[n:])
    assert torch.equal(spectrum.singular_values(), resumed.singular_values())
    assert spectrum.rounding_floor == resumed.rounding_floor


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 7), (torch.float16, 10), (torch.float32, 23), (torch.float64, 52)]
)
def test_storage_noise_is_a_twelfth_of_the_squared_spacing(dtype, bits):
    rows = torch.tensor([[1.0, -3.5, 0.0], [1.5, 8.0, 0.0]], dtype=dtype)  # spacings 2^-bits times (1, 2), (1, 8), 0
    mean, largest = accumulated(rows).rounding_floor
    unit = 4.0**-bits / 12
    assert largest == pytest.approx((4 + 64) / 2 * unit, rel=1e-12)
    assert mean == pytest.approx((1 + (4 + 64) / 2 + 0) / 3 * unit, rel=1e-12)


def test_storage_noise_is_the_variance_that_bf16_adds():
    rows = gaussian(20_000, 4) * 5
    stored = rows.bfloat16()
    error = (stored.double() - rows).var(0)
    assert accumulated(stored).rounding_floor[0] == pytest.approx(error.mean().item(), rel=0.03)  # 20,000 draws


def test_shift_rotation_and_row_order_leave_the_exponent():
    rows = gaussian(300, 120) * torch.arange(1, 121) ** -0.6
    turn = torch.linalg.qr(gaussian(120, 120, seed=3))[0]
    order = torch.randperm(300, generator=torch.Generator().manual_seed(4))

    def exponent(x: Tensor) -> float:
        return fit_power_law(accumulated(x).singular_values(), window=(0.02, 0.5)).exponent

    plain = exponent(rows)
    for changed in (rows + 3, rows @ turn, rows[order], 7 * rows):
        assert exponent(changed) == pytest.approx(plain, abs=1e-10)
    assert abs(exponent(rows / rows.norm(dim=1, keepdim=True)) - plain) > 1e-4  # the rows' own size does matter
