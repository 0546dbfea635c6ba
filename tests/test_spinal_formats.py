"""Packed low-bit weights have no exponent unless it is asked for; formats are not subtracted; a GGUF is ordinary."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

import alignscope
from alignscope import compare_spinal, spinal_trace
from alignscope.cli.main import app
from alignscope.diagnose.spinal_formats import NOISE_FLOOR, packed_format

PROMPTS = letters(48, longest=20)


def quantised(scheme: str, **options):
    """A live model whose configuration names a scheme, as that of a packed checkpoint does."""
    model = tiny_model(**options)
    model.config.quantization_config = {"quant_method": scheme}
    return alignscope.wrap(model, tiny_tokenizer())


@pytest.fixture(scope="module")
def plain():
    return spinal_trace(tiny_subject(), PROMPTS)


@pytest.fixture(scope="module")
def packed():
    return spinal_trace(quantised("bitsandbytes"), PROMPTS)


def test_packed_weights_have_no_exponent_and_the_reason_says_how_to_get_one(packed, plain):
    assert packed.layers.alpha.isna().all()
    assert packed.layers.reason.str.contains(r"packed weights \(bitsandbytes\).*allow_quantized").all()
    estimate = packed.section().section.estimates["alpha_terminal"]
    assert estimate.value is None
    assert "packed weights (bitsandbytes)" in estimate.reason
    assert np.array_equal(packed.readings.angle, plain.readings.angle)  # the read-out stands


def test_the_noise_floor_is_stated(packed):
    assert any(NOISE_FLOOR in text for text in packed.warnings)


def test_four_bits_in_blocks_of_32_are_noise_of_8_percent():
    blocks = np.random.default_rng(0).normal(size=(20_000, 32))
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    step = (high - low) / 15
    rounded = np.round((blocks - low) / step) * step + low
    assert np.linalg.norm(rounded - blocks) / np.linalg.norm(blocks) == pytest.approx(0.08, abs=0.005)
    assert "is noise of 8 %" in NOISE_FLOOR


def test_allowed_it_has_the_exponents_of_its_rows_and_still_the_warning(plain):
    trace = spinal_trace(quantised("bitsandbytes"), PROMPTS, allow_quantized=True)
    assert trace.layers.alpha.dropna().tolist() == plain.layers.alpha.dropna().tolist()
    assert any(NOISE_FLOOR in text for text in trace.warnings)
    assert trace.section().section.settings["allow_quantized"] is True


def test_a_contrast_of_packed_models_has_no_exponent_anywhere():
    prompts = letters(92, longest=12)  # 46 in either half: enough for an exponent
    pair = [
        spinal_trace(quantised("bitsandbytes", changed=4, scale=scale), prompts, lens_positions=0)
        for scale in (1.0, 1.2)
    ]
    found = compare_spinal(*pair)
    assert found.contrast.d_alpha.isna().all()
    assert "packed weights" in found.estimates["d_alpha_terminal"].reason
    assert found.halves.table.d_alpha.isna().all()
    assert found.detected.effects["alpha"].value is None
    assert found.estimates["d_transport_terminal"].value is not None


def test_unlike_formats_are_subtracted_only_where_both_allow_it(plain):
    pair = [
        [spinal_trace(m, PROMPTS, allow_quantized=allowed) for allowed in (False, True)]
        for m in (quantised("gguf"), tiny_subject(changed=4, scale=1.2))
    ]
    refused = compare_spinal(pair[0][0], pair[1][0], controls=()).estimates["d_alpha_terminal"]
    assert refused.value is None
    assert "weights of unlike formats (gguf and not quantised)" in refused.reason
    assert compare_spinal(pair[0][0], pair[1][1], controls=()).estimates["d_alpha_terminal"].value is None
    both = compare_spinal(pair[0][1], pair[1][1], controls=()).estimates["d_alpha_terminal"]
    assert both.value == pytest.approx(
        compare_spinal(plain, pair[1][0], controls=()).estimates["d_alpha_terminal"].value, abs=1e-12
    )


@pytest.mark.parametrize("allowed", [False, True])
def test_an_audit_has_exponents_of_packed_models_only_where_it_is_told_to(allowed, tmp_path):
    models = [quantised("bitsandbytes", changed=4, scale=1.2), quantised("bitsandbytes")]
    report = alignscope.audit(
        *models,
        prompts=[{"prompt": text} for text in PROMPTS],
        only="spinal",
        controls=(),
        allow_quantized=allowed,
        out=tmp_path / "run",
    )
    assert (report.estimate("spinal.d_alpha_terminal").value is not None) == allowed
    assert report.manifest.settings["allow_quantized"] is allowed


def test_an_unpacked_gguf_is_an_ordinary_model_with_a_notice(plain):
    trace = spinal_trace(quantised("gguf"), PROMPTS)
    assert trace.layers.alpha.dropna().tolist() == plain.layers.alpha.dropna().tolist()
    notices = [f.sentence for f in trace.section().findings if f.severity == "notice"]
    assert len(notices) == 1
    assert "were quantised (gguf) and are computed in float32" in notices[0]
    assert not any(f.severity == "notice" for f in plain.section().findings)
    assert not any(NOISE_FLOOR in text for text in trace.warnings)


@pytest.mark.parametrize(
    ("facts", "dtype", "expected"),
    [
        ({}, torch.float32, None),
        ({"quantization": None}, torch.bfloat16, None),
        ({"quantization": "GGUF Q4_1, unpacked"}, torch.float32, None),
        ({"quantization": "gptq"}, torch.float16, "gptq"),
        ({}, torch.int8, "int8"),
        ({}, torch.float8_e4m3fn, "float8_e4m3fn"),
    ],
)
def test_packed_formats_are_told_by_scheme_and_by_dtype(facts, dtype, expected):
    weight = torch.nn.Parameter(torch.zeros(2, 2).to(dtype), requires_grad=False)
    model = SimpleNamespace(parameters=lambda: iter([weight]))
    assert packed_format(SimpleNamespace(facts=facts, model=model)) == expected


def test_the_series_command_hands_the_switch_on(tmp_path, monkeypatch):
    given = {}

    def taken(*arguments, **options):
        given.update(options)
        raise alignscope.InputError("seen")

    monkeypatch.setattr("alignscope.diagnose.series_run.series", taken)
    (tmp_path / "pairs.jsonl").touch()
    options = ["--pairs", str(tmp_path / "pairs.jsonl"), "--allow-quantized", "--out", str(tmp_path / "run")]
    CliRunner().invoke(app, ["series", "a", "--reference", "b", *options])
    assert given["allow_quantized"] is True
