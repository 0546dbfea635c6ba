"""A trace captured in bfloat16: rounding has a spectrum too, and must not pass for the model's."""

import math

import numpy as np
import pytest
import torch
from spinal_models import letters, tiny_model
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope.diagnose.spinal import SpinalTrace, spinal_trace
from alignscope.diagnose.spinal_controls import halves_control


def traced(offset: float, **options) -> SpinalTrace:
    """In bfloat16, around a mean of `offset` in every column: the larger, the coarser the storage."""
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(offset)
    return spinal_trace(alignscope.wrap(model.to(torch.bfloat16), tiny_tokenizer()), letters(120), **options)


@pytest.fixture(scope="module")
def plain() -> SpinalTrace:
    return traced(0.0)


@pytest.fixture(scope="module")
def coarse() -> SpinalTrace:
    """Ranks 48 to 64 of 64 lie under the floor."""
    return traced(1.0, window=(0.1, 0.9))


def test_a_bfloat16_trace_well_above_its_floor_is_an_ordinary_one(plain):
    blocks = plain.layers.iloc[1:]
    assert plain.model.dtype == "bfloat16"
    assert (blocks.alpha == blocks.alpha_plain).all()
    assert (blocks.floor_ratio > 100).all()
    assert (blocks.n_ranks == 64).all()
    assert not any("float32" in warning for warning in plain.warnings)


def test_the_floor_gate_fails_where_the_window_of_all_ranks_reaches_under_it(coarse):
    blocks = coarse.layers.iloc[1:]
    assert blocks.alpha.notna().all()
    assert (blocks.n_ranks < 64).all()
    assert (blocks.floor_ratio < 1).all()
    assert all("floor" in failed for failed in blocks.gates_failed)
    assert all("the window reaches under the rounding floor" in reason for reason in blocks.reason)


def test_exponents_that_hang_on_the_floor_carry_a_warning(coarse):
    moved = (coarse.layers.alpha - coarse.layers.alpha_plain).abs()
    assert moved.max() > 0.02
    (warning,) = [warning for warning in coarse.warnings if "capture in float32" in warning]
    assert f"{(moved > 0.02).sum()} exponents by more than 0.02" in warning


def test_ranks_under_the_floor_have_no_local_slope(coarse):
    last = coarse.local_slopes.groupby("layer")["rank"].max()
    n_ranks = coarse.layers.set_index("layer").n_ranks
    assert {*last.index} >= {*range(1, 7)}
    assert (last * math.sqrt(2) <= n_ranks.loc[last.index] + 0.5).all()


def test_halves_are_deflated_as_the_whole_is(coarse):
    """Undeflated halves are fitted to rounding: ratios of 1.40 to 1.66 were measured, against .99 to 1.04."""
    assert coarse.layers.half_sample_ratio.iloc[1:].between(0.9, 1.1).all()


@pytest.mark.parametrize("offset", [8.0, 32.0])
def test_what_is_lost_to_rounding_is_called_so_in_the_trace_and_has_no_exponent_in_the_control(offset):
    found = traced(offset)
    blocks = found.layers.iloc[2:]
    assert blocks.alpha.isna().all()
    assert all(
        reason.endswith("ranks lie under the rounding floor of bfloat16; trace in float32") for reason in blocks.reason
    )
    control = halves_control(found, (4, 6), seed=0)
    assert np.isnan(control.table.d_alpha).all()
    assert math.isnan(control.alpha_p)
