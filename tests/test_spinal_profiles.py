"""Models of unlike depth beside each other: curves by relative depth, nothing subtracted."""

from dataclasses import replace

import numpy as np
import pytest
from spinal_models import letters, tiny_subject

from alignscope import InputError, compare_spinal, spinal_profiles, spinal_trace


@pytest.fixture(scope="module")
def traces():
    pair = [spinal_trace(tiny_subject(blocks=blocks), letters(60)) for blocks in (3, 6)]
    return [replace(t, model=replace(t.model, name=n), layers=t.layers.assign(model=n))
            for t, n in zip(pair, ("shallow", "deep"), strict=True)]  # fmt: skip


def test_each_layer_stands_at_its_share_of_the_depth(traces):
    frame = spinal_profiles(traces).to_frame()
    for trace in traces:
        rows = frame[frame.model == trace.model.name]
        assert rows.relative_depth.tolist() == pytest.approx(np.linspace(0, 1, trace.model.n_layers + 1))
        assert rows.alpha.tolist() == pytest.approx(trace.layers.alpha.tolist(), nan_ok=True)
        assert rows.angle.tolist()[:-1] == pytest.approx(trace.steps.angle.tolist())
        assert np.isnan(rows.angle.iloc[-1])


def test_it_says_that_it_is_no_contrast_and_draws_a_line_a_model(traces):
    found = spinal_profiles(traces)
    assert "no contrast" in found.summary()
    assert {"shallow", "deep"} <= {line.name for line in found.figure().data}


def test_a_contrast_of_unlike_depth_points_here(traces):
    with pytest.raises(InputError, match=r"blocks 3 in shallow, 6 in deep; their layers .* spinal_profiles"):
        compare_spinal(*traces)


def test_one_trace_and_two_of_one_name_are_refused(traces):
    with pytest.raises(InputError, match="1 traces: two or more"):
        spinal_profiles(traces[:1])
    with pytest.raises(InputError, match="two traces are named shallow"):
        spinal_profiles([traces[0], traces[0]])
