"""Which positions a trace rests on: rows by hand and by numpy, prompts kept whole, then what must not change them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, compare_spinal, spinal_trace
from alignscope.diagnose import spinal_reading
from alignscope.diagnose.effective_rows import effective_rows
from alignscope.diagnose.spinal_noise import of_noise
from alignscope.diagnose.spinal_spectra import RowSpectrum, group_labels, half_rows

PROMPTS = letters(48, longest=20)
LAYER = 4


@pytest.fixture(scope="module")
def subject():
    return tiny_subject()


@pytest.fixture(scope="module")
def plain(subject):
    return spinal_trace(subject, PROMPTS)


@pytest.fixture(scope="module")
def pooled(subject):
    return spinal_trace(subject, PROMPTS, positions="all")


def own_rows(subject, prompt) -> np.ndarray:
    """[layers, T, d] of a prompt alone, BOS (position 0) left out; float64."""
    ids = torch.tensor([prompt.ids])
    kept = subject.trace(ids, torch.ones_like(ids), reduce=lambda layer, h, mask: h[0, 1 : len(prompt.ids)].double())
    return torch.stack([kept[layer] for layer in range(subject.n_layers + 1)]).numpy()


def singular_values(rows: np.ndarray) -> np.ndarray:
    return np.linalg.svd(rows - rows.mean(0), compute_uv=False)


def test_mean_is_the_mean_of_the_measured_positions():
    exact = alignscope.wrap(tiny_model().double(), tiny_tokenizer())  # float64: what is left is which rows are averaged
    trace = spinal_trace(exact, PROMPTS[:20], positions="mean")
    for i in (0, 7):
        by_hand = own_rows(exact, trace.prompts[i]).mean(1)
        np.testing.assert_allclose(trace.readings.spectrum_rows[:, i], by_hand, rtol=2**-23, atol=1e-12)
    assert trace.readings.owner.tolist() == list(range(20))


def test_all_is_the_spectrum_of_the_pooled_centred_rows(subject, pooled):
    rows = np.concatenate([own_rows(subject, prompt) for prompt in pooled.prompts], 1)
    assert len(pooled.readings.owner) == rows.shape[1] == sum(len(prompt.ids) - 1 for prompt in pooled.prompts)
    for layer in (1, LAYER):
        expected = singular_values(rows[layer])
        assert pooled.spectra[layer] == pytest.approx(expected, rel=1e-5)
    assert pooled.layers.rows_per_column.iloc[0] == rows.shape[1] / 64


def test_leaving_a_group_out_takes_whole_prompts_with_all_their_rows(subject, pooled):
    groups = group_labels(pooled.clusters, 16, pooled.settings["seed"])
    left = [own_rows(subject, prompt)[LAYER] for prompt, g in zip(pooled.prompts, groups, strict=True) if g != 3]
    assert pooled.jackknife_spectra[3, LAYER] == pytest.approx(singular_values(np.concatenate(left)), rel=1e-5)


def test_prompts_of_one_cluster_share_a_group_and_a_half():
    clusters, owner = np.array([0, 1, 0, 2, 3]), np.array([0, 0, 1, 2, 2, 2, 3, 4])
    halves = half_rows(clusters, owner, seed=0)
    assert len(halves) == 8
    for half in halves:
        inside = np.unique(clusters[owner[half]])
        assert len(inside) == 2
        assert half.tolist() == np.flatnonzero(np.isin(clusters[owner], inside)).tolist()
    assert half_rows(clusters[:4], owner[:-1], seed=0) == []  # 3 clusters


def test_so_many_positions_are_the_last_and_sampled_ones(subject):
    first, again = (spinal_trace(subject, PROMPTS, positions=3) for _ in range(2))
    other = spinal_trace(subject, PROMPTS, positions=3, seed=1)
    assert [p.rows for p in first.prompts] == [p.rows for p in again.prompts]
    assert [p.rows for p in first.prompts] != [p.rows for p in other.prompts]
    for prompt in first.prompts:
        last = len(prompt.ids) - 1
        assert prompt.rows[-1] == last
        assert len(set(prompt.rows)) == 3
        assert 1 <= prompt.rows[0] < 1 + (last - 1) // 2 + 1 <= prompt.rows[1] + 1 <= last  # one a half of 1..last-1
    i = 5
    rows = own_rows(subject, first.prompts[i])[:, np.array(first.prompts[i].rows) - 1]
    np.testing.assert_allclose(first.readings.take(np.array([i])).spectrum_rows, rows, rtol=1e-4, atol=1e-5)


def test_one_position_is_the_last_token(subject, plain):
    trace = spinal_trace(subject, PROMPTS, positions=1)
    assert np.array_equal(trace.readings.spectrum_rows, plain.readings.rows)
    assert trace.layers.alpha.dropna().to_numpy() == pytest.approx(plain.layers.alpha.dropna().to_numpy(), abs=1e-12)


def test_other_rows_move_no_read_out_and_the_default_holds_none(subject, plain, pooled):
    assert np.array_equal(pooled.readings.angle, plain.readings.angle)
    assert np.array_equal(pooled.readings.rows, plain.readings.rows)
    assert plain.readings.pooled is None
    assert "n_eff" not in plain.layers
    assert not plain.prompts[0].rows


@pytest.mark.parametrize("positions", ["mean", "all"])
def test_neither_batch_size_nor_order_change_an_exponent(subject, positions):
    trace = spinal_trace(subject, PROMPTS, positions=positions)
    alone = spinal_trace(subject, PROMPTS, positions=positions, batch_size=1)
    turned = spinal_trace(subject, PROMPTS[::-1], positions=positions)
    names = ["alpha", "alpha_low", "half_sample_ratio", "rankme"] + ["n_eff"] * (positions != "mean")
    for other, tolerance in ((alone, 1e-5), (turned, 1e-10)):
        pd.testing.assert_frame_equal(other.layers[names], trace.layers[names], rtol=tolerance, atol=tolerance)


def test_pooled_rows_say_what_they_are_worth(pooled):
    rows = pooled.readings.spectrum_rows[LAYER]
    assert pooled.layers.n_eff[LAYER] == effective_rows(rows, pooled.readings.owner).n_eff
    assert pooled.layers.n_eff[LAYER] < len(rows) == pooled.layers.n_rows[LAYER]
    assert not pooled.layers.few_effective_rows.any()  # over 4 * 64
    assert "positions of a prompt, worth" in pooled.section().section.estimates["alpha_terminal"].method


def test_few_effective_rows_are_flagged(subject):
    trace = spinal_trace(subject, PROMPTS[:20], positions=4)
    assert trace.layers.few_effective_rows.all()  # 80 rows, 256 wanted
    assert any("worth fewer than 4 independent ones a column" in text for text in trace.warnings)
    assert np.isfinite(trace.layers.alpha[LAYER])  # 46 rows are enough, though 20 prompts are not


def test_the_half_sample_correction_counts_effective_rows(subject):
    trace = spinal_trace(subject, PROMPTS, positions="all", bias="half_sample")
    assert np.isfinite(trace.layers.alpha_corrected[LAYER])
    refused = spinal_trace(subject, PROMPTS[:20], positions=4, bias="half_sample").layers.alpha_corrected_reason[LAYER]
    assert "256 (4 d) needed" in refused


def test_a_prompt_with_a_bad_row_leaves_with_all_its_rows(pooled):
    rows = pooled.readings.pooled.copy()
    rows[2, pooled.readings.owner == 7, 0] = np.nan
    readings = replace(pooled.readings, pooled=rows)
    assert np.flatnonzero(~readings.finite).tolist() == [7]
    assert readings.first_nonfinite(7) == 2
    left = readings.take(readings.finite)
    assert np.isfinite(left.spectrum_rows).all()
    assert len(left.owner) == len(readings.owner) - readings.n_pooled[7]
    assert pooled.restricted(readings.finite).n == 47


def test_traces_of_other_positions_are_not_compared(plain, pooled):
    with pytest.raises(InputError, match=r"positions last in .* all in"):
        compare_spinal(plain, pooled)


def test_a_pooled_trace_compared_with_itself_differs_nowhere(pooled):
    found = compare_spinal(pooled, pooled)
    assert (found.contrast.d_alpha.dropna() == 0).all()
    assert found.halves.table.d_alpha.notna().any()


def test_controls_read_the_rows_that_the_traces_did(subject, pooled):
    models = (subject, tiny_subject(changed=4, scale=1.2))

    def rows(start, noisy, _):
        return noisy.prompts == start.prompts, noisy.readings.pooled.shape

    found = of_noise(pooled, models, rows, seeds=1, seed=0)
    assert found == [(True, pooled.readings.pooled.shape)]
    aligned = spinal_trace(models[1], PROMPTS, positions="all")
    compared = compare_spinal(pooled, aligned, subjects=models, controls=("noise",), noise_seeds=1)
    effects = compared.control_effects.set_index("quantity")
    assert np.isfinite(effects.control_effect["d_alpha_terminal"])


def test_a_pooled_trace_is_loaded_and_resumed_as_it_was(subject, pooled, tmp_path):
    again = type(pooled).load(pooled.save(tmp_path / "saved"))
    assert np.array_equal(again.readings.pooled, pooled.readings.pooled)
    assert again.prompts == pooled.prompts
    first = spinal_trace(subject, PROMPTS, positions="mean", shards=tmp_path / "shards")
    (tmp_path / "shards" / "trace" / "trace.json").unlink()
    resumed = spinal_trace(subject, PROMPTS, positions="mean", shards=tmp_path / "shards")
    assert np.array_equal(resumed.spectra, first.spectra)
    other = spinal_trace(subject, PROMPTS, positions="all", shards=tmp_path / "shards")
    assert np.array_equal(other.spectra, pooled.spectra)  # no shard of the means


def test_rows_that_would_not_fit_are_refused_before_they_are_read(subject, plain, monkeypatch):
    monkeypatch.setattr(spinal_reading, "available_bytes", lambda: 600_000)  # 48 last tokens x 7 layers fit
    spinal_trace(subject, PROMPTS)
    with pytest.raises(InputError, match=r"48 prompts and \d+ rows of theirs x 7 layers .* positions=m"):
        spinal_trace(subject, PROMPTS, positions="all")


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("keep", [199, 150, 101, 80, 40])
def test_a_downdated_spectrum_is_that_of_the_rows(center, keep):
    rows = np.random.default_rng(0).normal(size=(200, 30)) * np.arange(1, 31) ** -0.5 + 2.0
    chosen = np.sort(np.random.default_rng(1).permutation(200)[:keep])
    plain, fast = (RowSpectrum(rows, center=center, downdate=d).subset(chosen) for d in (False, True))
    assert fast == pytest.approx(plain, rel=1e-9)
