"""Turning and efficiency of a traced model against its own distributions; distances through one head or each."""

import math

import numpy as np
import pytest
import torch
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, spinal_distance
from alignscope.diagnose.spinal import SpinalTrace, compare_spinal, spinal_trace
from alignscope.diagnose.spinal_lens import lens_vocabulary


@pytest.fixture(scope="module")
def subject():
    return tiny_subject()


@pytest.fixture(scope="module")
def trace(subject) -> SpinalTrace:
    return spinal_trace(subject, letters(60))


@pytest.fixture(scope="module")
def distances(subject, trace) -> np.ndarray:
    """Fisher-Rao distances of all layers of all prompts, by arccos in float64: [N, layers, layers]."""
    with torch.no_grad():
        logits = subject.readout(torch.from_numpy(trace.readings.rows))[..., : lens_vocabulary(subject)].double()
    u = logits.softmax(-1).sqrt().numpy()  # [layers, N, V]
    return 2 * np.arccos(np.clip(np.einsum("anv,bnv->nab", u, u), -1, 1))


def test_efficiency_is_the_chord_over_the_way(trace, distances):
    for first, last in ((1, 6), (4, 6)):
        steps = sum(distances[:, layer, layer + 1] for layer in range(first, last))
        expected = distances[:, first, last] / steps
        assert trace.readings.efficiency(first, last) == pytest.approx(expected, abs=1e-4)
    estimates = trace.section().section.estimates
    assert estimates["efficiency_terminal"].value == pytest.approx(expected.mean(), abs=1e-4)
    assert estimates["efficiency_path"].low < estimates["efficiency_path"].value < estimates["efficiency_path"].high


def test_ends_that_were_not_compared_have_no_efficiency(trace):
    assert trace.readings.efficiency(2, 5) is None


def test_turning_is_the_law_of_cosines_on_the_sphere(trace, distances):
    neighbours = ((-1, 0), (0, 1), (-1, 1))
    a, b, c = (np.stack([distances[:, layer + i, layer + j] for layer in range(2, 6)]) / 2 for i, j in neighbours)
    cosine = (np.cos(c) - np.cos(a) * np.cos(b)) / (np.sin(a) * np.sin(b))
    assert trace.readings.turning == pytest.approx(math.pi - np.arccos(np.clip(cosine, -1, 1)), abs=2e-3)
    column = trace.layers.turning.to_numpy()
    assert np.isnan(column[[0, 1, 6]]).all()
    assert column[2:6] == pytest.approx(trace.readings.turning.mean(1), abs=1e-9)


def test_the_difference_of_efficiency_is_paired(subject, trace):
    other = spinal_trace(tiny_subject(changed=5, scale=1.3), letters(60))
    found = compare_spinal(trace, other, controls=()).estimates["d_efficiency_terminal"]
    expected = (other.readings.efficiency(4, 6) - trace.readings.efficiency(4, 6)).mean()
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high


def test_another_window_has_no_efficiency_and_says_why(trace):
    found = compare_spinal(trace, trace, terminal=(2, 5), controls=()).estimates["d_efficiency_terminal"]
    assert found.value is None
    assert "were not compared" in found.reason


def test_a_changed_head_moves_the_distance_but_not_the_residual(subject, trace):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    other = alignscope.wrap(model, tiny_tokenizer())
    found = compare_spinal(trace, spinal_trace(other, letters(60)), subjects=(subject, other), controls=())
    assert found.estimates["base_distance_terminal"].value > 0.01
    assert found.estimates["base_distance_terminal_residual"].value == pytest.approx(0.0, abs=1e-6)


def test_with_one_head_both_distances_are_the_same(subject, trace):
    other = tiny_subject(changed=5, scale=1.3)
    found = compare_spinal(trace, spinal_trace(other, letters(60)), subjects=(subject, other), controls=())
    assert (found.contrast.base_distance == found.contrast.base_distance_residual).all()
    assert found.contrast.base_distance[6] > 1e-3


def test_the_distance_without_traces_is_that_of_the_comparison(subject, trace):
    other = tiny_subject(changed=5, scale=1.3)
    compared = compare_spinal(trace, spinal_trace(other, letters(60)), subjects=(subject, other), controls=())
    alone = spinal_distance(subject, other, letters(60), batch_size=7)
    assert alone.distance == pytest.approx(compared.base_distance, abs=1e-5)
    frame = alone.to_frame()
    assert frame.distance.to_numpy() == pytest.approx(compared.contrast.base_distance, abs=1e-5)
    assert (frame.n == len(trace.prompts)).all()
    assert "farthest apart at layer" in alone.summary()


def test_the_distance_through_the_base_s_head_leaves_a_changed_head_out(subject):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    other = alignscope.wrap(model, tiny_tokenizer())
    assert spinal_distance(subject, other, letters(60)).distance[6].mean() > 0.01
    assert spinal_distance(subject, other, letters(60), readout="base").distance.max() < 1e-6


def test_models_of_other_depth_and_readouts_that_do_not_exist_are_refused(subject):
    deeper = alignscope.wrap(tiny_model(blocks=7), tiny_tokenizer())
    with pytest.raises(InputError, match=r"blocks 6 in .*, 7 in"):
        spinal_distance(subject, deeper, letters(60))
    with pytest.raises(InputError, match="expected one of own, base"):
        spinal_distance(subject, subject, letters(60), readout="aligned")
