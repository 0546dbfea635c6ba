"""The trace of a model: closed forms of the lens, then batch, order and padding, resuming, and bad input."""

import json
import math
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import PIECES, tiny_tokenizer

import alignscope
from alignscope import InputError
from alignscope.diagnose import spinal_reading
from alignscope.diagnose.spinal import SpinalTrace, spinal_trace
from alignscope.diagnose.spinal_lens import lens_between, lens_steps, lens_vocabulary
from alignscope.diagnose.spinal_reading import sampled_positions
from alignscope.probes.subject import Head


def logits_are_rows(vocab: int, *, fused: bool, offset: float = 0.0) -> SimpleNamespace:
    """The smallest read-out: the residual stream is the logits themselves, with or without a head for the kernel."""
    head = Head(weight=torch.eye(vocab), bias=None, softcap=None, scale=1.0, norm=lambda h: h, vocab=vocab)
    return SimpleNamespace(device="cpu", head=lambda: head if fused else None, readout=lambda h: h + offset)


def log_rows(*distributions: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(distributions).clamp(min=1e-30).log()[:, None]  # [layers, 1 place, vocabulary]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("p", "q", "angle"),
    [
        ((0.5, 0.5), (1.0, 0.0), math.pi / 2),
        ((0.25, 0.75), (0.75, 0.25), math.pi / 3),
        ((0.25, 0.25, 0.25, 0.25), (1.0, 0.0, 0.0, 0.0), 2 * math.pi / 3),
        ((0.7, 0.2, 0.1), (0.1, 0.2, 0.7), 1.507434),
    ],
)
def test_angles_of_known_distributions(p, q, angle, fused):
    subject = logits_are_rows(len(p), fused=fused)
    rows = log_rows(p, q)
    steps, entropy, _ = lens_steps(subject, rows, vocab=len(p))
    assert steps[0, 0] == pytest.approx(angle, abs=1e-6)
    assert entropy[0, 0] == pytest.approx(-sum(x * math.log(x) for x in p if x), abs=1e-6)
    between = lens_between(subject, subject, rows[:1], rows[1:], vocab=len(p))
    assert between[0, 0] == pytest.approx(angle, abs=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("e", [1e-3, 1e-4, 1e-5])
def test_small_angles_survive_float32(e, fused):
    rows = torch.tensor([[[0.0, 0.0]], [[e, 0.0]]])
    assert lens_steps(logits_are_rows(2, fused=fused), rows, vocab=2)[0][0, 0] == pytest.approx(e / 2, rel=1e-3)


@pytest.mark.parametrize("fused", [True, False])
def test_the_order_of_the_vocabulary_and_padding_do_not_change_an_angle(fused):
    rows = torch.randn(4, 9, 40, generator=torch.Generator().manual_seed(0))
    angle, entropy, _ = lens_steps(logits_are_rows(40, fused=fused), rows, vocab=40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    moved = lens_steps(logits_are_rows(40, fused=fused), rows[..., order], vocab=40)
    padded = torch.cat([rows, torch.full((4, 9, 8), 50.0)], -1)
    ignored = lens_steps(logits_are_rows(48, fused=fused), padded, vocab=40)
    for other in (moved, ignored):
        assert np.abs(other[0] - angle).max() < 1e-5
        assert np.abs(other[1] - entropy).max() < 1e-5


def test_a_constant_on_all_logits_does_not_change_an_angle():
    rows = torch.randn(4, 9, 40, generator=torch.Generator().manual_seed(0))
    plain, shifted = (lens_steps(logits_are_rows(40, fused=False, offset=o), rows, vocab=40) for o in (0.0, 8.0))
    assert np.abs(plain[0] - shifted[0]).max() < 1e-5


def test_the_fallback_agrees_with_the_kernel_on_a_model(subject):
    rows = torch.randn(5, 7, subject.d_model, generator=torch.Generator().manual_seed(0))
    plain = SimpleNamespace(device="cpu", head=lambda: None, readout=subject.readout)
    vocab = lens_vocabulary(subject)
    fused, tiled = (lens_steps(s, rows, vocab=vocab) for s in (subject, plain))
    assert np.abs(fused[0] - tiled[0]).max() < 1e-5
    assert np.abs(fused[1] - tiled[1]).max() < 1e-5
    between = [lens_between(s, s, rows, rows.flip(0), vocab=vocab) for s in (subject, plain)]
    assert np.abs(between[0] - between[1]).max() < 1e-5


@pytest.fixture(scope="module")
def subject():
    return tiny_subject()


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return letters(120)


@pytest.fixture(scope="module")
def trace(subject, prompts) -> SpinalTrace:
    return spinal_trace(subject, prompts)


def same(first: SpinalTrace, second: SpinalTrace, tolerance: float) -> None:
    for table in ("layers", "steps", "local_slopes"):
        a, b = getattr(first, table), getattr(second, table)
        numbers = [c for c in a.select_dtypes("number") if c != "floor_ratio"]  # ~1e13 in float32
        pd.testing.assert_frame_equal(a[numbers], b[numbers], rtol=tolerance, atol=tolerance)


def test_every_layer_and_step_is_there_with_intervals_around_the_values(trace):
    assert trace.layers.layer.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert trace.steps.layer.tolist() == [0, 1, 2, 3, 4, 5]
    blocks = trace.layers.iloc[1:]
    for name in ("alpha", "rankme", "participation_ratio", "stable_rank", "entropy", "entropy_sampled"):
        assert (blocks[f"{name}_low"] < blocks[name]).all()
        assert (blocks[name] < blocks[f"{name}_high"]).all()
    assert trace.steps.angle.between(0, math.pi).all()
    assert blocks.entropy.between(0, math.log(len(PIECES))).all()
    assert (trace.steps.n_sampled == 120).all()
    assert trace.jackknife.shape == (16, 7)
    assert trace.gates.shape[0] == 7
    assert trace.per_prompt.shape[0] == 7 * 120


def test_the_numbers_are_those_of_the_logits_themselves(subject, prompts, trace):
    """Entropy of the last layer against the model's own distribution, prompt by prompt, in float64."""
    prompt = trace.prompts[3]
    ids = torch.tensor([prompt.ids])
    logits = subject.logits(ids, torch.ones_like(ids))[0, -1, : len(PIECES)].double()
    p = logits.softmax(-1)
    assert trace.readings.entropy[-1, 3] == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)
    final = trace.per_prompt.query("layer == 6")
    assert final[final.row == prompt.row].entropy.item() == trace.readings.entropy[-1, 3]


def test_rows_are_those_of_the_unpadded_prompt_alone(prompts):
    subject = alignscope.wrap(tiny_model().double(), tiny_tokenizer())  # float64: what is left is where rows are read
    trace = spinal_trace(subject, prompts[:20])
    prompt = trace.prompts[5]
    ids = torch.tensor([prompt.ids])
    kept = subject.trace(ids, torch.ones_like(ids), reduce=lambda layer, h, mask: h[0, -1].float())
    rows = torch.stack([kept[layer] for layer in range(7)]).numpy()
    np.testing.assert_allclose(trace.readings.rows[:, 5], rows, rtol=2**-23, atol=1e-12)  # a float32 ulp at most


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_changes_no_number(subject, prompts, trace, batch_size):
    same(spinal_trace(subject, prompts, batch_size=batch_size), trace, 1e-5)


def test_the_order_of_the_prompts_changes_nothing(subject, prompts, trace):
    other = spinal_trace(subject, prompts[::-1])
    same(other, trace, 1e-10)
    assert other.token_hash == trace.token_hash


def test_another_seed_draws_other_positions_and_groups(subject, prompts, trace):
    other = spinal_trace(subject, prompts, seed=1)
    assert (other.layers.alpha.dropna() == trace.layers.alpha.dropna()).all()
    assert (other.steps.angle == trace.steps.angle).all()
    assert (other.steps.angle_sampled != trace.steps.angle_sampled).all()
    assert (other.layers.alpha_low.dropna() != trace.layers.alpha_low.dropna()).all()


def test_prompts_that_end_in_one_token_have_no_spectrum_at_layer_0(subject):
    found = spinal_trace(subject, [f"{text}." for text in letters(60)])
    first = found.layers.iloc[0]
    assert math.isnan(first.alpha)
    assert math.isnan(first.rankme)
    assert first.reason == "all 60 rows are the same: every prompt gives this layer the same input"
    assert found.layers.alpha.iloc[1:].notna().all()


def test_positions_come_from_equal_strata_and_never_from_bos_or_the_end():
    ids = tuple(range(100, 121))  # 21 ids: 1 .. 19 may be sampled
    found = sampled_positions(ids, 1, 4, 0)
    assert [1 + i * 19 // 4 <= p < 1 + (i + 1) * 19 // 4 for i, p in enumerate(found)] == [True] * 4
    assert found == sampled_positions(ids, 1, 4, 0)
    assert len({sampled_positions(ids, 1, 4, seed) for seed in range(20)}) > 10
    assert sampled_positions(ids[:4], 1, 4, 0) == (1, 2)
    assert sampled_positions(ids[:2], 1, 4, 0) == ()
    assert sampled_positions(ids, 1, 0, 0) == ()


def test_prompts_of_one_token_have_no_sampled_position(subject):
    found = spinal_trace(subject, list("abcdefghijklmnopqrstuvwxyz"))
    assert found.n == 26
    assert (found.steps.n_sampled == 0).all()
    assert found.steps.angle_sampled.isna().all()
    assert found.steps.angle.notna().all()


def test_prompts_are_cut_from_the_left_then_repeated_ones_are_dropped(subject):
    found = spinal_trace(subject, ["hello world", "yellow world", "cello", "the cello"], max_tokens=6)
    bos, end = PIECES["<bos>"], tuple(PIECES[c] for c in "world")
    assert {prompt.ids for prompt in found.prompts} == {(bos, *end), tuple(PIECES[c] for c in ("<bos>", *"cello"))}
    assert found.counts["duplicate_prompts"] == 2
    assert found.counts["prompts"] == 2
    assert found.warnings[0] == "2 prompts repeat the tokens of another and were dropped"


def test_prompts_that_share_an_id_are_one_cluster(subject):
    rows = [{"prompt": text, "prompt_id": str(i // 2)} for i, text in enumerate(letters(60))]
    estimates = spinal_trace(subject, rows).section().section.estimates
    assert (estimates["path_length"].n, estimates["path_length"].n_clusters) == (60, 30)


@pytest.mark.parametrize("n", [1, 2, 12, 45])
def test_few_prompts_have_angles_and_entropies_but_no_exponent(subject, n):
    found = spinal_trace(subject, letters(n))
    assert found.layers.alpha.isna().all()
    assert found.layers.entropy.notna().all()
    assert found.steps.angle.notna().all()
    assert f"{n} prompts: no exponent (46 are needed)" in found.warnings[0]
    section = found.section().section
    assert section.estimates["alpha_terminal"].value is None
    assert "has an exponent" in section.estimates["alpha_terminal"].reason
    low = section.estimates["path_length"].low
    assert (low is None) == (n < 20)


def test_more_columns_dropped_than_the_model_is_wide_are_refused_before_it_runs(subject, monkeypatch):
    monkeypatch.setattr("alignscope.diagnose.spinal.read_prompts_of", lambda *_, **__: pytest.fail("the model ran"))
    width = subject.d_model
    with pytest.raises(InputError, match=rf"drop_top={width} \(--drop-top\): .* is {width} wide"):
        spinal_trace(subject, letters(60), drop_top=width)


def test_the_trace_says_what_summed_up_its_read_outs(trace):
    assert trace.settings["lens_backend"] in ("numba", "eager")


def test_46_to_499_prompts_carry_a_warning(trace):
    assert any("compare models at this same number only" in warning for warning in trace.warnings)


def test_a_trace_comes_back_from_its_folder_as_it_was(trace, tmp_path):
    back = SpinalTrace.load(trace.save(tmp_path / "trace"))
    for table in ("layers", "steps", "local_slopes"):
        pd.testing.assert_frame_equal(getattr(back, table), getattr(trace, table))
    for field in fields(spinal_reading.Readings):
        np.testing.assert_array_equal(getattr(back.readings, field.name), getattr(trace.readings, field.name))
    for name in ("model", "prompts", "settings", "counts", "warnings", "token_hash", "text_hash"):
        assert getattr(back, name) == getattr(trace, name)
    np.testing.assert_array_equal(back.jackknife, trace.jackknife)


def test_a_folder_without_a_trace_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no readable trace\.json"):
        SpinalTrace.load(tmp_path)
    (tmp_path / "trace.json").write_text(json.dumps({"trace_version": 99}))
    with pytest.raises(InputError, match="trace version 99"):
        SpinalTrace.load(tmp_path)


class KilledError(Exception):
    """Stands for a signal that ends the process between two batches."""


def test_a_killed_trace_repeats_one_batch_at_most_and_gives_the_same(subject, prompts, trace, tmp_path):
    seen = []

    def die(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        if len(seen) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        spinal_trace(subject, prompts, shards=tmp_path, progress=die)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("batch_*.npz")}
    assert len(kept) == 3
    again = spinal_trace(subject, prompts, shards=tmp_path)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept  # read, not made again
    for table in ("layers", "steps", "local_slopes"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(trace, table))
    stages = []
    third = spinal_trace(subject, prompts, shards=tmp_path, progress=lambda *call: stages.append(call))
    assert stages == []  # finished: nothing is done again
    pd.testing.assert_frame_equal(third.layers, trace.layers)


def test_progress_counts_tokens_then_layers(subject, prompts):
    calls = []
    counts = spinal_trace(subject, prompts[:40], progress=lambda *call: calls.append(call)).counts
    tracing = [call for call in calls if call[0].startswith("tracing")]
    spectra = [call for call in calls if call[0].startswith("spectra")]
    assert tracing[-1][1] == tracing[-1][2] == counts["tokens"]
    assert [done for _, done, _ in tracing] == sorted(done for _, done, _ in tracing)
    assert [call[1:] for call in spectra] == [(i, 7) for i in range(1, 8)]


@pytest.mark.parametrize("damage", [b"", b"not an archive"])
def test_a_torn_or_foreign_shard_is_read_again_from_the_model(subject, prompts, trace, tmp_path, damage):
    spinal_trace(subject, prompts, shards=tmp_path)
    (tmp_path / "trace" / "trace.json").unlink()
    first, second = sorted(tmp_path.glob("batch_*.npz"))[:2]
    first.write_bytes(damage)
    os.replace(second, tmp_path / "batch_00002.npz")
    same(spinal_trace(subject, prompts, shards=tmp_path), trace, 0)


def test_shards_of_other_settings_are_not_taken(subject, prompts, tmp_path):
    warm = spinal_trace(subject, prompts[:40], shards=tmp_path, temperature=2.0)
    cold = spinal_trace(subject, prompts[:40], shards=tmp_path)
    assert (cold.layers.entropy < warm.layers.entropy).all()


def test_prompts_with_nan_rows_are_dropped_counted_and_named(prompts):
    model = tiny_model()
    subject = alignscope.wrap(model, tiny_tokenizer())
    texts = [text.replace("z", "y") for text in prompts]
    clean = spinal_trace(subject, texts)
    with torch.no_grad():
        model.model.embed_tokens.weight[PIECES["z"]] = torch.nan
    found = spinal_trace(subject, [*texts, "zebra", "maze"])
    assert found.counts["nonfinite_rows"] == 2
    assert found.n == clean.n
    same(found, clean, 1e-9)
    with pytest.raises(
        InputError, match=r"nonfinite_row \(first: row \d+, NaN or infinity at the last token from layer"
    ):
        spinal_trace(subject, [*texts, "zebra", "maze"], max_invalid=0.01)


def test_rows_that_do_not_fit_are_refused_before_the_first_pass(subject, prompts, monkeypatch):
    monkeypatch.setattr(spinal_reading, "available_bytes", lambda: 100_000)
    with pytest.raises(InputError, match=r"120 prompts x 7 layers x 64 columns .* give fewer prompts"):
        spinal_trace(subject, prompts)


def test_free_memory_is_known_here_and_positive():
    free = spinal_reading.available_bytes()
    assert (free is not None and free > 2**20) if Path("/proc/meminfo").exists() else free is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "paper"}, "preset='paper': expected one of robust, paper_guess"),
        ({"positions": "first"}, "positions='first': expected last, mean, all, or a number from 1 on"),
        ({"positions": 0}, "positions=0"),
        ({"lens_positions": -1}, "lens_positions=-1: expected last, all, response, or a number from 0 on"),
        ({"positions": "all", "stack": 50}, "stack is of prompts with one row each"),
        ({"lens": "no/such/lens"}, "no/such/lens"),
        ({"lens": 3}, "lens=3: expected 'logit', a TunedLens, or the folder"),
        ({"stack": 32}, "stack=32: expected 'all', or at least 46 rows"),
        ({"row_scale": "max"}, "row_scale='max': expected one of None, rms, l2"),
        ({"estimator": "mle"}, "estimator='mle': expected one of ols, wls"),
        ({"bias": "jackknife"}, "bias='jackknife': expected one of None, half_sample"),
        ({"vocabulary": "top_k"}, "vocabulary='top_k': the model has .* tokens; take 'full'"),
        ({"vocabulary": "top_p=3"}, "vocabulary='top_p=3': expected 'full', a number of tokens"),
        ({"drop_top": -1}, "drop_top=-1: at least 0"),
        ({"window": (0.2, 0.02)}, "window="),
        ({"groups": 1}, "groups=1: at least 2"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"template": "chat"}, "template"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(subject, options, message):
    with pytest.raises(InputError, match=message):
        spinal_trace(subject, ["a", "b"], **options)


def test_a_file_whose_prompts_are_empty_is_refused(subject):
    with pytest.raises(InputError, match="nothing is left"):
        spinal_trace(subject, ["", " "])


def test_the_section_holds_its_tables_and_says_what_it_rests_on(trace):
    result = trace.section()
    assert result.section.name == "spinal_trace"
    assert {*result.tables} == {*result.section.tables} == {"layers", "steps", "local_slopes"}
    assert "covers sampling, not finite-N bias" in result.section.estimates["alpha_terminal"].method
    json.dumps(result.section.model_dump())
    known = {f"spinal_trace.{name}" for name in result.section.estimates}
    assert all({*finding.rests_on} <= known for finding in result.findings)
    assert trace.summary() == result.section.summary
    assert "120 prompts" in trace.summary()
    pd.testing.assert_frame_equal(trace.to_frame(), trace.layers)
    column_names = (
        "model layer alpha alpha_low alpha_high r_squared curvature n_points first_rank last_rank gates_passed"
    )
    column_names += (
        " reason entropy entropy_low entropy_high rankme participation_ratio stable_rank alpha_wide alpha_bulk"
    )
    assert {*column_names.split(), "half_sample_ratio", "jitter"} <= {*trace.layers}
    assert {"model", "layer", "angle", "angle_low", "angle_high"} <= {*trace.steps}
