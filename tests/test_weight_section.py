"""The section "weights": rules and their words, the schema, the figures. The numbers have test_weights.py."""

import re

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from spinal_models import tiny_model

import alignscope
from alignscope.dashboards.weight_figures import MAX_KINDS, weight_figures
from alignscope.diagnose.report import Manifest, Report
from alignscope.diagnose.weight_section import shortest_run
from alignscope.diagnose.weights import weight_spectrum

# peft asks transformers by a name that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

BLOCKS = 8
MANIFEST = Manifest(
    command="", models={}, data={}, settings={}, packages={}, device="cpu", dtype="", seed=0, wall_seconds=0.0
)


def spectrum(change_weights):
    """A tiny Llama of 8 blocks that `change_weights(blocks)` has altered, against the one before."""
    base, policy = tiny_model(blocks=BLOCKS, width=32), tiny_model(blocks=BLOCKS, width=32)
    torch.manual_seed(0)
    with torch.no_grad():
        change_weights(policy.model.layers)
    return weight_spectrum(alignscope.wrap(policy), alignscope.wrap(base))


def noise(blocks, size: float = 0.01) -> None:
    for parameter in blocks.parameters():
        if parameter.ndim == 2:
            parameter.add_(size * torch.randn_like(parameter))


@pytest.fixture(scope="module")
def spread():
    return spectrum(noise)


@pytest.fixture(scope="module")
def planted():
    """Blocks 5 to 7 move a hundred times as far, along one direction."""

    def plant(blocks):
        noise(blocks, 1e-4)
        for block in blocks[4:7]:
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter.add_(torch.randn(len(parameter), 1) @ torch.randn(1, parameter.shape[1]) * 0.01)

    return spectrum(plant)


@pytest.fixture(scope="module")
def alone():
    return weight_spectrum(alignscope.wrap(tiny_model(blocks=BLOCKS, width=32)))


@pytest.fixture(scope="module")
def same():
    return spectrum(lambda blocks: None)


@pytest.fixture(scope="module")
def lora():
    model = peft.get_peft_model(tiny_model(blocks=BLOCKS, width=32), peft.LoraConfig(target_modules="all-linear", r=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    subject = alignscope.wrap(model)
    return weight_spectrum(subject, subject.without_adapter())


def sentences(found) -> str:
    return " ".join(finding.sentence for finding in found.section().findings)


@pytest.mark.parametrize(
    ("shares", "run"),
    [
        ([1.0], (0, 0)),
        ([1, 1, 1, 1], (0, 1)),  # exactly half; the earlier of equals
        ([0, 0, 5, 1, 0], (2, 2)),
        ([1, 0, 3, 3, 0, 1], (2, 3)),
        ([3, 0, 0, 3], (0, 0)),
        ([0.1] * 30, (0, 14)),  # equal shares add up with rounding
    ],
)
def test_shortest_run_that_holds_half(shares, run):
    assert shortest_run(pd.Series(shares)) == run


def test_no_shares_have_no_run():
    with pytest.raises(ValueError, match="add up to 0"):
        shortest_run(pd.Series([0.0, np.nan]))


def test_even_noise_is_neither_concentrated_nor_one_direction(spread):
    assert "The update is not concentrated" in sentences(spread)
    assert "No single direction makes the update" in sentences(spread)


def test_planted_blocks_and_direction_are_named(planted):
    assert re.search("The update is concentrated: blocks (5 to 6|6 to 7) hold half", sentences(planted))
    estimates = planted.section().section.estimates
    assert estimates["half_change_blocks"].value == 2
    assert estimates["half_change_blocks"].null_value == BLOCKS / 2
    assert re.search("block [567]$", estimates["delta_share_largest"].label)


def test_a_single_block_is_named_as_one():
    found = spectrum(lambda blocks: noise(blocks[2]))
    assert "The update is concentrated: block 3 holds half" in sentences(found)
    assert "(7 of 56 matrices)" in sentences(found)


def test_two_models_of_one_name_are_told_apart(spread):
    assert "of LlamaForCausalLM moved from LlamaForCausalLM (reference) by" in sentences(spread)


def test_size_is_the_norm_of_all_changes_over_that_of_all_weights(spread):
    frame = spread.frame
    value = spread.section().section.estimates["delta_share"].value
    assert value == pytest.approx(np.linalg.norm(frame.delta_norm) / np.linalg.norm(frame.norm), rel=1e-12)


def test_one_direction_in_every_matrix_dominates():
    def rank_one(blocks):
        for parameter in blocks.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn(len(parameter), 1) @ torch.randn(1, parameter.shape[1]) * 0.01)

    found = spectrum(rank_one)
    assert found.section().section.estimates["delta_top_median"].value == pytest.approx(1, abs=1e-6)
    assert "One direction dominates the update: the first holds 100.0 %" in sentences(found)


def test_adapter_is_compared_with_its_rank(lora, spread):
    estimates = lora.section().section.estimates
    assert 1 <= estimates["delta_top_times_rank"].value <= 4
    assert "An adapter of rank 4 cannot be as flat as noise" in sentences(lora)
    missing = spread.section().section.estimates["delta_top_times_rank"]
    assert missing.value is None
    assert missing.reason == "the change is not that of a LoRA adapter on this reference"


def test_identical_weights_are_a_notice_and_null_with_the_reason(same):
    result = same.section()
    assert result.findings[0].severity == "notice"
    assert "identical weights" in result.findings[0].sentence
    for name in ("delta_share", "delta_share_largest", "delta_share_matrix", "half_change_blocks", "delta_top_median",
                 "delta_top_ratio", "delta_top_times_rank"):  # fmt: skip
        estimate = result.section.estimates[name]
        assert (estimate.value, estimate.reason) == (None, "identical weights"), name


def test_model_alone_has_exponents_and_a_reason_for_the_rest(alone):
    result = alone.section()
    assert set(result.tables) == {"matrices"}
    assert result.section.estimates["delta_share"].reason == "no reference given"
    assert result.section.estimates["alpha_median"].value == alone.frame.alpha_lambda_pdf.median()


def test_flags_are_called_a_convention(spread):
    assert "by WeightWatcher's convention" in sentences(spread)
    over = spread.section().section.estimates["over_trained"]
    assert over.value == (spread.frame.alpha_lambda_pdf < 2).mean()


def test_numbers_are_exact_and_ours_are_marked(spread):
    for name, estimate in spread.section().section.estimates.items():
        assert estimate.level is None
        assert estimate.method.startswith("exact")
        assert estimate.reconstructed == name.startswith(("delta", "half")), name


@pytest.mark.parametrize("which", ["spread", "lora", "alone", "same"])
def test_section_survives_saving_and_findings_rest_on_its_estimates(which, request, tmp_path):
    result = request.getfixturevalue(which).section()
    report = Report.assemble("title", "question", MANIFEST, [result])
    report.save(tmp_path)
    read = Report.load(tmp_path)
    assert read.model_dump() == report.model_dump()
    pd.testing.assert_frame_equal(read.to_frame("weights.matrices"), result.tables["matrices"], check_dtype=False)
    for finding in read.findings:
        for name in finding.rests_on:
            assert report.estimate(name)
    assert {name for name in read.figures() if name.startswith("weights.")}


def test_summary_is_the_first_findings(spread):
    assert spread.summary().startswith(spread.section().findings[0].sentence)


def test_heat_map_has_a_cell_a_block_and_matrix(planted):
    (heat,) = planted.figures()["delta_share"].data
    assert np.shape(heat.z) == (7, BLOCKS)
    row = list(heat.y).index("mlp.up_proj")
    expected = planted.frame[planted.frame.matrix == "mlp.up_proj"].sort_values("block").delta_share
    assert np.allclose(heat.z[row], expected)


def test_directions_are_drawn_against_noise_or_against_the_rank(spread, lora):
    plain, ranked = (found.figures()["delta_top"] for found in (spread, lora))
    assert plain.layout.yaxis.type == "log"
    assert "1 / rank" in ranked.layout.yaxis.title.text
    assert len(plain.data) == len(ranked.data) == 7
    first = lora.frame[lora.frame.kind == ranked.data[0].name]
    assert np.allclose(ranked.data[0].y, first.delta_top * 4)


def test_without_a_change_only_exponents_are_drawn(alone, same):
    assert set(alone.figures()) == {"alpha"} == set(same.figures())
    assert alone.figure().layout.meta["title"].startswith("Tail exponent")


def test_a_model_with_many_matrices_is_drawn_in_part_and_says_so():
    n = MAX_KINDS + 5
    frame = pd.DataFrame(
        {"block": 1, "matrix": [f"experts.{i}" for i in range(n)], "kind": "experts", "delta_share": np.arange(n) / n}
    )
    figure = weight_figures({"matrices": frame}, {})["delta_share"]
    assert len(figure.data[0].y) == MAX_KINDS
    assert "experts.0" not in figure.data[0].y
    assert f"the {MAX_KINDS} of {n} matrices" in figure.layout.meta["how_to_read"]


def test_names_of_matrices_cannot_become_markup():
    frame = pd.DataFrame({"block": [1], "matrix": ["<b>x</b>"], "kind": ["<b>x</b>"], "delta_share": [0.1]})
    assert weight_figures({"matrices": frame}, {})["delta_share"].data[0].y[0] == "&lt;b&gt;x&lt;/b&gt;"
