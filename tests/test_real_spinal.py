"""SPINAL of a real model: SmolLM2-135M-Instruct on 64 real prompts."""

import math
from pathlib import Path

import numpy as np
import pytest

import alignscope
from alignscope.diagnose.spinal import SpinalTrace, compare_spinal, spinal_trace
from alignscope.diagnose.spinal_estimates import TRACE_NAMES

pytestmark = pytest.mark.real
N = 64


@pytest.fixture(scope="module")
def trace(data_folder: Path, ladder_reference: Path) -> SpinalTrace:
    pairs = alignscope.read_pairs(data_folder / "data" / "hh_harmless" / "test.jsonl").take(N + 16)
    prompts = [prompt.text for prompt in pairs.prompts(limit=N)]
    return spinal_trace(alignscope.load(ladder_reference), prompts, template="none", lens_positions=1)


def test_the_embeddings_have_no_spectrum_because_every_prompt_ends_alike(trace):
    first = trace.layers.iloc[0]
    assert trace.n == N
    assert math.isnan(first.alpha)
    assert first.reason.startswith(f"all {N} rows are the same")


def test_every_block_has_finite_numbers_in_their_ranges(trace):
    blocks, steps = trace.layers.iloc[1:], trace.steps
    assert len(blocks) == len(steps) == 30
    for name in ("alpha", "alpha_low", "alpha_high", "rankme", "entropy", "entropy_low", "entropy_high", "r_squared"):
        assert np.isfinite(blocks[name]).all()
    assert (blocks.n_points == 11).all()  # r = 63: ranks 2 to 12
    assert blocks.entropy.between(0, math.log(49_152)).all()
    assert steps.angle.between(0, math.pi).all()
    assert steps.angle_sampled.between(0, math.pi).all()
    assert steps.angle.iloc[0] > 3  # embeddings to block 1: 3.13 on 512 prompts
    assert set(trace.section().section.estimates) == set(TRACE_NAMES)


def test_the_reference_does_not_differ_from_itself(trace):
    found = compare_spinal(trace, trace)
    assert not found.alarm
    assert not found.controls["halves"].alarm
    assert found.window == (21, 30)
