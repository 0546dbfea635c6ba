"""Angles on few tokens, and the last layer alone: closed forms, bounds, a naive float64 computation, then traces."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

from alignscope import InputError, Report, compare_spinal, spinal_trace
from alignscope.cli.main import app
from alignscope.diagnose import spinal_lens
from alignscope.diagnose.spinal_settings import TopTokens, reduced_vocabulary, top_tokens
from alignscope.diagnose.spinal_vocabulary import reduced_angles, reduced_steps

PROMPTS = letters(48, longest=20)


def fisher_rao(p: np.ndarray, q: np.ndarray) -> float:
    u, v = np.sqrt(p), np.sqrt(q)
    return float(4 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))


def logits_of(*distributions: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(distributions).log()[:, None]  # [layers, 1 place, vocabulary]


def naive(logits: np.ndarray, top: TopTokens) -> list[tuple[float, float, float]]:
    """Of one place, layer by layer and token by token."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    found = []
    for step in range(len(p) - 1):
        a, b = p[step], p[step + 1]
        kept = {*np.argsort(-a)[: top.k], *np.argsort(-b)[: top.k]} if top.union else {*np.argsort(-p[-1])[: top.k]}
        inside = np.array([v in kept for v in range(p.shape[1])])
        both = [np.append(side[inside], side[~inside].sum()) for side in (a, b)]
        dropped = math.acos(min(1.0, float(np.sqrt(a[inside] * b[inside]).sum())))
        among = [side[inside] / side[inside].sum() for side in (a, b)]
        found.append((fisher_rao(*both), fisher_rao(*among), 2 * dropped))
    return found


def test_one_token_of_three_by_hand():
    found = reduced_angles(logits_of((0.7, 0.2, 0.1), (0.1, 0.2, 0.7)), TopTokens(1, union=False))
    assert found.bucketed[0, 0] == pytest.approx(2 * math.acos(math.sqrt(0.07) + math.sqrt(0.27)), abs=1e-6)
    assert found.renormalised[0, 0] == pytest.approx(0, abs=1e-6)  # one token left: the same distribution
    assert found.dropped[0, 0] == pytest.approx(2 * math.acos(math.sqrt(0.07)), abs=1e-6)


def test_the_union_holds_the_best_tokens_of_both_layers():
    found = reduced_angles(logits_of((0.7, 0.2, 0.1), (0.1, 0.2, 0.7)), TopTokens(1, union=True))
    assert found.bucketed[0, 0] == pytest.approx(1.507434, abs=1e-6)  # tokens 1 and 3; token 2 alone is the bucket
    assert found.renormalised[0, 0] == pytest.approx(2 * math.acos(2 * math.sqrt(0.07) / 0.8), abs=1e-6)


def test_renormalising_bounds_nothing():
    """A renormalised angle can lie under the bucketed one as well as over the full one."""
    under = reduced_angles(logits_of((0.7, 0.2, 0.1), (0.1, 0.2, 0.7)), TopTokens(1, union=False))
    assert under.renormalised[0, 0] < under.bucketed[0, 0]
    over = reduced_angles(logits_of((0.5, 0.3, 0.2), (0.3, 0.5, 0.2)), TopTokens(2, union=False))
    assert over.renormalised[0, 0] == pytest.approx(2 * math.acos(2 * math.sqrt(0.15) / 0.8), abs=1e-6)
    assert over.renormalised[0, 0] > 2 * math.acos(2 * math.sqrt(0.15) + 0.2) + 0.01


def test_all_tokens_give_the_full_angle():
    logits = torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(-1).numpy()
    for union in (False, True):
        found = reduced_angles(logits, TopTokens(20, union=union))
        for angle in found:
            assert angle[1, 2] == pytest.approx(fisher_rao(p[1, 2], p[2, 2]), abs=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 15), st.booleans(), st.floats(0.1, 8.0))
def test_every_form_is_that_of_a_naive_computation_and_two_of_them_are_bounds(seed, k, union, spread):
    logits = spread * torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(seed))
    top = TopTokens(k, union)
    found = reduced_angles(logits, top)
    p = logits.double().softmax(-1).numpy()[:, 0]
    for step, (bucketed, renormalised, dropped) in enumerate(naive(logits.double().numpy()[:, 0], top)):
        assert found.bucketed[step, 0] == pytest.approx(bucketed, abs=1e-5)
        assert found.renormalised[step, 0] == pytest.approx(renormalised, abs=1e-5)
        assert found.dropped[step, 0] == pytest.approx(dropped, abs=1e-4)  # acos of the naive form near 0
        full = fisher_rao(p[step], p[step + 1])
        assert found.bucketed[step, 0] - 1e-6 <= full <= found.dropped[step, 0] + 1e-6


@pytest.mark.parametrize("union", [False, True])
def test_a_small_angle_beside_a_small_tail_survives_float32(union):
    e = 1e-4
    logits = torch.tensor([[[0.0, 0.0, -16.0]], [[e, 0.0, -16.0]]])
    found = reduced_angles(logits, TopTokens(2, union))
    assert found.bucketed[0, 0] == pytest.approx(e / 2, rel=2e-3)
    assert found.renormalised[0, 0] == pytest.approx(e / 2, rel=2e-3)


def test_a_row_that_is_not_finite_has_no_angle_and_takes_no_other_along():
    logits = torch.zeros(3, 2, 8)
    logits[0, 1, 3] = torch.nan
    found = reduced_angles(logits, TopTokens(2, union=False))
    assert np.isnan(found.bucketed).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    ("given", "top", "said"),
    [
        ("full", None, "full"),
        (7, TopTokens(7, False), "top_k=7"),
        ("top_k=7", TopTokens(7, False), "top_k=7"),
        ("top_k", TopTokens(100, False), "top_k=100"),
        ("union", TopTokens(100, True), "union_top_k=100"),
        ("union=9", TopTokens(9, True), "union_top_k=9"),
        ("union_top_k=9", TopTokens(9, True), "union_top_k=9"),
    ],
)
def test_spellings(given, top, said):
    assert top_tokens(given) == top
    assert reduced_vocabulary(given, 1000) == said
    assert top_tokens(said) == top


@pytest.mark.parametrize("given", [0, -1, True, "top_k=", "top_k=0", "top_k=x", "union=1.5", "", "all"])
def test_what_is_no_vocabulary_is_refused(given):
    with pytest.raises(InputError, match="expected 'full', a number of tokens"):
        top_tokens(given)


# ---- in a trace, and by the command


@pytest.fixture(scope="module")
def subject():
    return tiny_subject()


@pytest.fixture(scope="module")
def plain(subject):
    return spinal_trace(subject, PROMPTS)


@pytest.mark.parametrize("vocabulary", [5, "union=5"])
def test_a_trace_gives_all_forms_beside_the_angle_over_all_tokens(subject, plain, vocabulary):
    trace = spinal_trace(subject, PROMPTS, vocabulary=vocabulary, temperature=2.0)
    full = spinal_trace(subject, PROMPTS, temperature=2.0)
    assert np.array_equal(trace.readings.angle, full.readings.angle)
    prompt, place = trace.prompts[4], 4
    ids = torch.tensor([prompt.ids])
    kept = subject.trace(ids, torch.ones_like(ids), reduce=lambda layer, h, mask: h[:, -1].float())
    rows = torch.stack([kept[layer] for layer in range(7)])
    logits = subject.readout(rows)[:, 0, : trace.model.vocab].detach().double().numpy() / 2.0
    expected = naive(logits, top_tokens(vocabulary))
    found = trace.readings
    for step, (bucketed, renormalised, _) in enumerate(expected):
        assert found.angle_bucketed[step, place] == pytest.approx(bucketed, abs=1e-5)
        assert found.angle_renormalised[step, place] == pytest.approx(renormalised, abs=1e-5)
    assert (found.angle_bucketed <= found.angle + 1e-6).all()
    assert (found.angle <= found.angle_dropped + 1e-6).all()
    table = trace.steps
    assert (table.angle_bucketed_low < table.angle_bucketed).all()
    estimates = trace.section().section.estimates
    for form in ("bucketed", "renormalised"):
        assert estimates[f"angle_terminal_{form}"].reconstructed
        mean = getattr(found, f"angle_{form}")[4:6].mean()
        assert estimates[f"angle_terminal_{form}"].value == pytest.approx(mean, rel=1e-9)
    assert "angle_terminal_bucketed" not in plain.section().section.estimates


def test_neither_blocks_nor_batches_change_a_reduced_angle(subject, monkeypatch):
    rows = torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(0))
    top = TopTokens(5, union=True)
    whole = reduced_steps(subject, rows, vocab=40, top=top)
    monkeypatch.setattr(spinal_lens, "TILE_BYTES", 1)  # a place at a time
    for one, other in zip(whole, reduced_steps(subject, rows, vocab=40, top=top), strict=True):
        assert one.shape == (3, 9)
        assert np.abs(one - other).max() < 1e-6
    traces = [spinal_trace(subject, PROMPTS, vocabulary=5, batch_size=n).readings for n in (1, 16)]
    assert np.abs(traces[0].angle_bucketed - traces[1].angle_bucketed).max() < 1e-5
    assert np.abs(traces[0].angle_renormalised - traces[1].angle_renormalised).max() < 1e-5


def test_another_vocabulary_is_another_trace(subject, plain, tmp_path):
    trace = spinal_trace(subject, PROMPTS, vocabulary=5, shards=tmp_path)
    other = spinal_trace(subject, PROMPTS, vocabulary=9, shards=tmp_path)
    assert not np.array_equal(trace.readings.angle_bucketed, other.readings.angle_bucketed)
    with pytest.raises(InputError, match=r"angle_vocabulary top_k=5 in .* full in"):
        compare_spinal(trace, plain)


# ---- the last layer alone


def test_final_only_reads_the_last_step_and_the_last_entropy(subject, plain):
    trace = spinal_trace(subject, PROMPTS, lens="final_only", vocabulary=5)
    last = plain.readings
    assert np.abs(trace.readings.angle[-1] - last.angle[-1]).max() < 1e-6
    assert np.abs(trace.readings.entropy[-1] - last.entropy[-1]).max() < 1e-6
    assert np.isnan(trace.readings.angle[:-1]).all()
    assert np.isnan(trace.readings.entropy[:-1]).all()
    assert np.isnan(trace.readings.angle_bucketed[:-1]).all()
    assert np.isfinite(trace.readings.angle_bucketed[-1]).all()
    assert trace.kept.all()
    assert np.array_equal(trace.spectra, plain.spectra)
    assert trace.settings["lens"] == "final_only"


def test_what_final_only_does_not_read_is_null_with_the_reason(subject, tmp_path):
    trace = spinal_trace(subject, PROMPTS, lens="final_only")
    trace = type(trace).load(trace.save(tmp_path))
    estimates = trace.section().section.estimates
    for name in ("angle_terminal", "path_length", "efficiency_terminal"):
        assert estimates[name].value is None
        assert "only the last step and the entropy of the last layer" in estimates[name].reason
        assert estimates[name].reconstructed
    assert estimates["entropy_final"].low < estimates["entropy_final"].value
    assert any("final_only" in text for text in trace.warnings)


def test_a_contrast_of_last_layers_tests_the_last_step_alone(subject, plain):
    pair = [spinal_trace(m, PROMPTS, lens="final_only") for m in (subject, tiny_subject(changed=6, scale=1.5))]
    found = compare_spinal(*pair)
    assert found.transport.p.notna().tolist() == [False] * 4 + [True]
    assert found.estimates["transport_p"].value < 0.025
    assert found.halves.table.p.notna().tolist() == [False] * 5 + [True, False]  # the last layer has no step
    assert "only the last step" in found.estimates["d_transport_terminal"].reason
    assert found.figures()
    with pytest.raises(InputError, match=r"lens logit in .* final_only in"):
        compare_spinal(plain, pair[0])


def test_a_last_layer_that_is_not_finite_still_drops_the_prompt(subject):
    trace = spinal_trace(subject, PROMPTS, lens="final_only")
    entropy = trace.readings.entropy.copy()
    entropy[-1, 3] = np.nan
    broken = replace(trace.readings, entropy=entropy)
    assert np.flatnonzero(~broken.finite).tolist() == [3]
    assert broken.first_nonfinite(3) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"vocabulary": "union=5", "fail-if": "spinal_trace.angle_terminal_bucketed>9"},
        {"lens": "final_only", "positions": "mean", "lens-positions": "last"},
    ],
)
def test_the_command_takes_the_settings_and_the_report_records_them(tmp_path, options):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": text, "response": " ab 12"} for text in PROMPTS]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    options = {"positions": "2", "lens-positions": "response"} | options
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    arguments += ["--allow-quantized", "--quiet", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(
        app, ["trace", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts.json"), *arguments]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    settings = Report.load(tmp_path / "run").section("spinal_trace").settings
    if "lens" in options:
        expected = {"positions": "mean", "lens_positions": 0, "angle_vocabulary": "full", "lens": "final_only"}
    else:
        expected = {"positions": 2, "lens_positions": "response", "angle_vocabulary": "union_top_k=5", "lens": "logit"}
    assert {name: settings[name] for name in expected} == expected
    assert settings["allow_quantized"] is True
