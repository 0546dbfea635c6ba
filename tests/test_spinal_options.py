"""Other ways to an exponent in a trace: each does what its formula says, and the defaults stay as they are."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from spinal_models import letters, tiny_subject

from alignscope import InputError, compare_spinal, spinal_trace
from alignscope.diagnose.spinal_options import SpectrumOptions, exponents_with, scaled
from alignscope.diagnose.spinal_sensitivity import add_options, corrected, stacked
from alignscope.diagnose.spinal_settings import preset_values
from alignscope.diagnose.spinal_spectra import RowSpectrum
from alignscope.probes.kernels import fit_power_law
from alignscope.probes.tuned_lens import TunedLens

PROMPTS = letters(120)
LAYER = 4


@pytest.fixture(scope="module")
def subject():
    return tiny_subject()


@pytest.fixture(scope="module")
def plain(subject):
    return spinal_trace(subject, PROMPTS)


def singular_values(rows: np.ndarray) -> np.ndarray:
    return np.linalg.svd(rows.astype(np.float64), compute_uv=False)


@pytest.mark.parametrize("estimator", ["wls", "local_median", "rank_half", "hill", "clauset"])
def test_alpha_and_its_groups_are_those_of_the_estimator(subject, plain, estimator):
    trace = spinal_trace(subject, PROMPTS, estimator=estimator)
    sigma = plain.spectra[LAYER][plain.spectra[LAYER] > 0]
    fit = fit_power_law(sigma, estimator=estimator)
    row = trace.layers.iloc[LAYER]
    if fit.exponent is None:  # no octave inside the window of a tiny model
        assert math.isnan(row.alpha)
        assert row.reason == fit.reason
        return
    assert row.alpha == pytest.approx(fit.exponent, rel=1e-9)
    group = fit_power_law(
        trace.jackknife_spectra[3, LAYER], window=(fit.first_rank, fit.last_rank), estimator=estimator
    )
    assert trace.jackknife[3, LAYER] == pytest.approx(group.exponent, rel=1e-9)
    assert row.alpha_low < row.alpha < row.alpha_high


def test_a_comparison_uses_the_estimator_of_its_traces(subject):
    pair = [spinal_trace(m, PROMPTS, estimator="hill") for m in (subject, tiny_subject(changed=4, scale=1.2))]
    found = compare_spinal(*pair, controls=()).contrast
    difference = pair[1].layers.alpha - pair[0].layers.alpha
    assert found.d_alpha[LAYER] == pytest.approx(difference[LAYER], abs=1e-9)


def test_uncentred_rows_keep_the_mean_direction(subject, plain):
    trace = spinal_trace(subject, PROMPTS, center=False)
    rows = trace.readings.rows[LAYER]
    assert trace.spectra[LAYER][:64] == pytest.approx(singular_values(rows), rel=1e-5)
    assert trace.spectra[LAYER][0] > plain.spectra[LAYER][0]
    half = RowSpectrum(rows, center=False).subset(np.arange(30))
    assert half[:30] == pytest.approx(singular_values(rows[:30]), rel=1e-4)


@pytest.mark.parametrize(("scale", "size"), [("rms", math.sqrt(64)), ("l2", 1.0)])
def test_rows_are_scaled_to_one_size(subject, scale, size):
    trace = spinal_trace(subject, PROMPTS, row_scale=scale)
    rows = scaled(trace.readings.rows, scale)
    assert np.linalg.norm(rows, axis=-1) == pytest.approx(size, rel=1e-5)
    centred = rows[LAYER] - rows[LAYER].mean(0)
    assert trace.spectra[LAYER][:60] == pytest.approx(singular_values(centred)[:60], rel=1e-4)


def test_a_row_of_zeros_stays_when_rows_are_scaled():
    assert (scaled(np.zeros((2, 3, 4), np.float32), "rms") == 0).all()


def test_the_outliers_gate_compares_with_and_without_the_largest_columns(subject, plain):
    trace = spinal_trace(subject, PROMPTS, drop_top=3)
    row = trace.layers.iloc[LAYER]
    rows = trace.readings.rows[LAYER].astype(np.float64)
    left = np.delete(rows, np.argsort(-rows.var(0), kind="stable")[:3], axis=1)
    sigma = singular_values(left - left.mean(0))
    expected = exponents_with(sigma[None], int(row.first_rank), int(row.last_rank))[0]
    assert row.alpha_without_top == pytest.approx(expected, rel=1e-6)
    assert ("outliers" in str(row.gates_failed)) == (abs(expected / row.alpha - 1) > 0.1)
    assert row.alpha == plain.layers.alpha[LAYER]


def test_an_outlier_dimension_fails_the_gate():
    layers = pd.DataFrame({"alpha": [1.0], "first_rank": [2], "last_rank": [12], "gates_failed": [""]})
    layers["reason"], layers["gates_passed"] = None, True
    rows = np.random.default_rng(0).normal(size=(1, 80, 60)) * np.arange(1, 61) ** -0.3
    rows[..., 0] *= 200
    options = SpectrumOptions(drop_top=1)
    add_options(layers, rows, np.arange(80), (0.02, 0.2), options, 0)
    assert layers.gates_failed[0] == "outliers"
    assert not layers.gates_passed[0]
    assert "leaving out 1 dimensions changes alpha by" in layers.reason[0]


def test_the_correction_is_refused_under_four_rows_a_column(subject):
    trace = spinal_trace(subject, PROMPTS, bias="half_sample")
    row = trace.layers.iloc[LAYER]
    assert math.isnan(row.alpha_corrected)
    assert "256 (4 d) needed" in row.alpha_corrected_reason


def test_the_correction_takes_away_what_halving_the_rows_adds():
    random = np.random.default_rng(0)
    rows = random.normal(size=(800, 100)) * np.arange(1, 101) ** -0.5
    options = SpectrumOptions(bias="half_sample")
    value, reason = corrected(rows, np.arange(800), (0.1, 0.9), options, 0)
    plain = fit_power_law(RowSpectrum(rows).values(), window=(0.1, 0.9)).exponent
    assert reason is None
    assert abs(value - 0.5) < abs(plain - 0.5) / 2
    assert corrected(rows, np.arange(800), (0.1, 0.9), SpectrumOptions(), 0)[1] is None


def test_stacks_are_averaged_with_their_spread():
    random = np.random.default_rng(0)
    rows = random.normal(size=(256, 100)) * np.arange(1, 101) ** -0.5
    value, low, high, n = stacked(rows, (0.02, 0.2), SpectrumOptions(stack=64))
    each = [fit_power_law(RowSpectrum(rows[i : i + 64]).values()).exponent for i in range(0, 256, 64)]
    assert value == pytest.approx(np.mean(each))
    assert high - value == pytest.approx(3.182446 * np.std(each, ddof=1) / 2)
    assert low < value
    assert n == 4


def test_the_number_of_stacks_stands_beside_their_mean(subject):
    layers = spinal_trace(subject, PROMPTS, stack=50).layers
    assert layers.n_stacks[1:].tolist() == [2] * 6  # 120 prompts: two stacks of 50
    alone = spinal_trace(subject, PROMPTS, stack=70).layers
    assert alone.n_stacks[1:].tolist() == [1] * 6
    assert alone.alpha_stacked.isna().all()


def test_the_automatic_window_is_a_trace_of_its_own(subject, plain):
    trace = spinal_trace(subject, PROMPTS, window="auto")
    assert trace.settings["window"] == trace.section().section.settings["window"] == "auto"
    with pytest.raises(InputError, match="a contrast needs fixed ones"):
        compare_spinal(trace, trace)
    with pytest.raises(InputError, match="estimator"):
        compare_spinal(plain, spinal_trace(subject, PROMPTS, estimator="wls"))


def test_a_trace_with_options_is_loaded_as_it_was_saved(subject, tmp_path):
    trace = spinal_trace(subject, PROMPTS, window="auto", stack=60, drop_top=2, row_scale="l2")
    again = type(trace).load(trace.save(tmp_path))
    assert again.settings == trace.settings
    pd.testing.assert_frame_equal(again.layers, trace.layers)


@pytest.mark.parametrize(("preset", "values"), [("robust", [(0.02, 0.2), 4]), ("paper_guess", [(0.1, 0.9), 0])])
def test_a_preset_sets_what_was_left_alone(preset, values):
    assert list(preset_values(preset, window=None, lens_positions=None).values()) == values
    assert list(preset_values(preset, window=None, lens_positions=2).values()) == [values[0], 2]


@pytest.mark.parametrize("preset", ["robust", "paper_guess"])
def test_what_is_given_wins_over_a_preset_also_where_it_is_another_preset_s_value(subject, preset):
    found = spinal_trace(subject, PROMPTS, preset=preset, window=(0.02, 0.2), lens_positions=4).settings
    assert (found["window"], found["lens_positions"]) == ((0.02, 0.2), 4)
    left = spinal_trace(subject, PROMPTS, preset="paper_guess").settings
    assert (left["window"], left["lens_positions"]) == ((0.1, 0.9), 0)


# ---- through a tuned lens


def test_the_lens_that_translates_nothing_is_the_logit_lens(subject, plain):
    trace = spinal_trace(subject, PROMPTS, lens=TunedLens.identity(subject))
    assert np.array_equal(trace.readings.angle, plain.readings.angle)
    assert trace.settings["lens"] == "tuned"


def shifting(subject, layer: int = 2) -> TunedLens:
    """A lens that moves the read-out of one layer."""
    lens = TunedLens.identity(subject)
    bias = lens.bias.clone()
    bias[layer] = 2.0 * torch.randn(lens.d_model, generator=torch.Generator().manual_seed(0))
    return replace(lens, bias=bias, kept=tuple(i == layer for i in range(lens.n_layers)))


def test_a_lens_moves_the_read_out_of_its_layer_and_no_spectrum(subject, plain, tmp_path):
    lens = shifting(subject)
    trace = spinal_trace(subject, PROMPTS, lens=lens.save(tmp_path / "lens"), shards=tmp_path / "shards")
    moved = np.abs(trace.readings.angle - plain.readings.angle).max(1) > 1e-3
    assert moved.tolist() == [False, True, True, False, False, False]
    assert np.array_equal(trace.spectra, plain.spectra)
    again = spinal_trace(subject, PROMPTS, shards=tmp_path / "shards")
    assert np.array_equal(again.readings.angle, plain.readings.angle)  # no shard of the other lens


def test_a_lens_of_another_model_is_refused_unless_it_is_shared(subject):
    other = tiny_subject(changed=3, scale=1.1)
    with pytest.raises(InputError, match="has other weights"):
        spinal_trace(other, PROMPTS, lens=shifting(subject))
    shared = spinal_trace(other, PROMPTS, lens=shifting(subject), shared_lens=True)
    found = compare_spinal(spinal_trace(subject, PROMPTS, lens=shifting(subject)), shared, controls=("noise",))
    assert not any("lens of its own" in text for text in found.warnings)
    assert found.estimates["base_distance_terminal"].reason == "models not given"
    own = compare_spinal(spinal_trace(subject, PROMPTS, lens=shifting(subject, 3)), shared, controls=())
    assert any("lens of its own" in text for text in own.warnings)


def test_a_read_out_through_a_lens_is_not_compared_with_one_without(subject, plain):
    with pytest.raises(InputError, match="cannot be compared: lens"):
        compare_spinal(plain, spinal_trace(subject, PROMPTS, lens=shifting(subject)))
