"""Weights of the ladder's adapters on their dequantised base, against what was written down when they were trained."""

import math

import pytest

import alignscope
from alignscope.diagnose.weights import block_changes


@pytest.mark.real
def test_ladder_moved_as_far_as_its_readme_says(ladder, ladder_reference):
    """The README gives |dW| / |W| over the adapted matrices: .00319 for dpo/step_100."""
    policy = alignscope.load(ladder_reference, adapter=ladder / "dpo" / "step_100")
    table = block_changes(policy.without_adapter(), policy)
    whole = math.sqrt((table.delta_norm**2).sum() / (table.base_norm**2).sum())
    assert round(whole, 5) == 0.00319
