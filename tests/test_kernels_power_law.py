"""Power-law fits of spectra: exact spectra, windows and gates, then the known bias of Gaussian samples."""

import numpy as np
import pytest
import torch

from alignscope.probes.kernels import SpectrumAccumulator, corrected_exponent, fit_power_law


def power(exponent: float, n: int) -> np.ndarray:
    return np.arange(1, n + 1) ** -exponent


def broken_line() -> np.ndarray:
    k = np.arange(1, 512)
    return np.where(k <= 40, k**-0.6, 40**-0.6 * (k / 40) ** -1.2)


@pytest.mark.parametrize("estimator", ["ols", "wls"])
@pytest.mark.parametrize(("exponent", "n"), [(0.75, 511), (0.7, 512)])
def test_a_power_law_gives_its_exponent_back(exponent, n, estimator):
    fit = fit_power_law(torch.from_numpy(power(exponent, n)), estimator=estimator)
    assert fit.exponent == pytest.approx(exponent, abs=1e-12)
    assert (fit.first_rank, fit.last_rank, fit.n_points, fit.n_ranks) == (11, 102, 92, n)
    assert fit.r_squared == pytest.approx(1, abs=1e-12)
    assert fit.curvature == pytest.approx(0, abs=1e-12)
    assert fit.half_exponents == pytest.approx((exponent, exponent), abs=1e-12)
    assert fit.reason is None
    assert fit.warning is None


@pytest.mark.parametrize(
    ("n_ranks", "n_points"), [(31, 5), (45, 8), (63, 11), (109, 19), (110, 20), (2047, 369), (1, 0), (150, 28)]
)
def test_points_in_the_window(n_ranks, n_points):
    fit = fit_power_law(power(0.75, n_ranks))
    assert fit.n_points == n_points
    assert (fit.exponent is None) == (fit.reason is not None) == (n_points < 8)
    assert (fit.warning is not None) == (8 <= n_points < 20)
    if n_points < 8:
        assert fit.reason.startswith(f"too few modes: {n_points} ranks")
        assert fit.r_squared is fit.curvature is fit.half_exponents is None


def test_window_ends_are_not_moved_by_binary_fractions():
    assert fit_power_law(power(0.75, 150)).first_rank == 3  # 0.02 * 150
    assert fit_power_law(power(0.75, 300), window=(0.07, 0.29)).last_rank == 87  # 0.29 * 300 = 86.99999999999999


def test_a_broken_line_is_seen_by_r_squared_curvature_and_halves():
    fit = fit_power_law(broken_line())
    assert fit.exponent == pytest.approx(0.907733, abs=1e-6)
    assert fit.r_squared == pytest.approx(0.971384, abs=1e-6)
    assert fit.curvature == pytest.approx(-0.252498, abs=1e-6)
    assert fit.half_exponents == pytest.approx((0.6, 1.162009), abs=1e-6)
    assert fit_power_law(broken_line(), estimator="wls").exponent == pytest.approx(0.822679, abs=1e-6)


def test_zeros_past_the_rank_never_count():
    padded = np.concatenate([power(0.75, 511), np.full(89, 1e-9)])
    assert fit_power_law(padded) == fit_power_law(power(0.75, 511))


def test_a_window_of_ranks_is_taken_as_it_is():
    fractions, ranks = fit_power_law(broken_line()), fit_power_law(broken_line(), window=(11, 102))
    assert ranks == fractions
    cut = fit_power_law(power(0.75, 60), window=(11, 102))
    assert (cut.first_rank, cut.last_rank, cut.n_points) == (11, 60, 50)


def test_a_flat_spectrum_has_exponent_zero_and_no_r_squared():
    fit = fit_power_law(np.full(512, 0.3))
    assert fit.exponent == pytest.approx(0, abs=1e-12)
    assert fit.r_squared is None
    assert fit.reason is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_spectra_have_a_reason(bad):
    spectrum = power(0.75, 300)
    spectrum[250] = bad
    assert fit_power_law(spectrum).reason == "1 of 300 singular values not finite"
    assert fit_power_law(np.zeros(300)).reason.startswith("too few modes: 0")
    assert fit_power_law(np.zeros(0)).reason.startswith("too few modes: 0")


@pytest.mark.parametrize(
    ("spectrum", "options", "message"),
    [
        (power(0.75, 300)[::-1].copy(), {}, "descending"),
        (power(0.75, 300) - 0.1, {}, "singular values are >= 0"),
        (power(0.75, 300), {"window": (0.2, 0.02)}, "two fractions"),
        (power(0.75, 300), {"window": (0.02, 1.2)}, "two fractions"),
        (power(0.75, 300), {"window": (0, 10)}, "1 <= first <= last"),
    ],
)
def test_bad_input_is_refused(spectrum, options, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(spectrum, **options)


def test_half_sample_correction_extrapolates_to_no_noise():
    full, first, second = (power(a, 512) for a in (0.46, 0.40, 0.44))
    fit = corrected_exponent(full, first, second, effective_rows=4 * 512)
    assert fit.exponent == pytest.approx(0.50, abs=1e-12)
    assert (fit.first_rank, fit.last_rank) == (11, 102)
    refused = corrected_exponent(full, first, second, effective_rows=4 * 512 - 1)
    assert refused.exponent is None
    assert "N_eff = 2047, 2048 (4 d) needed" in refused.reason
    assert corrected_exponent(full, first, second, effective_rows=float("nan")).exponent is None


def test_a_half_without_the_full_windows_ranks_is_no_half():
    full = power(0.46, 512)
    short = np.concatenate([full[:90], np.zeros(422)])
    fit = corrected_exponent(full, full, short, effective_rows=1e6)
    assert fit.exponent is None
    assert fit.reason == "second half: only 90 ranks, the window of the full fit ends at 102"


def gaussian_spectra(n: int, exponent: float, d: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectra of n Gaussian rows with sigma_k ~ k^-exponent in the population: full, even rows, odd rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.from_numpy(power(exponent, d))
    spectra = []
    for part in (rows, rows[::2], rows[1::2]):
        spectrum = SpectrumAccumulator(d)
        spectrum.update(part)
        spectra.append(spectrum.singular_values().numpy())
    return spectra[0], spectra[1], spectra[2]


def test_default_window_is_nearly_unbiased_at_512_rows_and_the_wide_one_is_not():
    full, first, second = gaussian_spectra(512, 0.75, 576, seed=0)
    narrow, wide = fit_power_law(full), fit_power_law(full, window=(0.1, 0.9))
    assert narrow.exponent == pytest.approx(0.745, abs=0.01)
    assert wide.exponent == pytest.approx(1.178, abs=0.01)

    def half_ratio(window: tuple[float, float]) -> float:
        whole = fit_power_law(full, window=window).exponent
        return np.mean([fit_power_law(half, window=window).exponent for half in (first, second)]) / whole - 1

    assert abs(half_ratio((0.1, 0.9))) > 0.05  # the gate that the wide window must fail
    assert abs(half_ratio((0.02, 0.2))) < 0.05


def test_correction_leaves_a_tenth_of_the_bulk_bias_at_four_rows_a_column():
    d, window = 256, (13, 230)  # d/20 .. 0.9 d; eigenvalues 1/i, so the singular exponent is 0.5
    plain, corrected = [], []
    for seed in range(3):
        spectra = gaussian_spectra(4 * d, 0.5, d, seed)
        plain.append(2 * fit_power_law(spectra[0], window=window).exponent)
        corrected.append(2 * corrected_exponent(*spectra, window=window, effective_rows=4 * d).exponent)
    assert np.mean(plain) - 1 == pytest.approx(0.17, abs=0.02)
    assert abs(np.mean(corrected) - 1) <= 0.03
