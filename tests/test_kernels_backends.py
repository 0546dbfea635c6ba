"""The compiled sums of the lens: as exact as torch's, whatever the threads, and left out where they cannot be used."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from alignscope.probes.kernels import backends, lens_distance, lens_transport
from alignscope.probes.kernels.eager import tile_state
from alignscope.probes.kernels.sharing import side_by_side, workers

pytest.importorskip("numba")
from alignscope.probes.kernels import numba_tiles

CPU = torch.device("cpu")
PAIRS = [(0, 1), (1, 2), (2, 3), (0, 3), (1, 3)]


@pytest.fixture
def fresh_import():
    """The import is tried anew in this test, and after it."""
    backends._problem.cache_clear()
    yield
    backends._problem.cache_clear()


def in_a_new_thread(call):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def tile(columns: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, 7, columns, generator=generator) * spread).cumsum(0)


def test_the_exponential_is_that_of_float64_down_to_its_floor():
    z = np.concatenate([np.linspace(-55.4, 0, 100_001), [-56.0, -1e4, -1e30]]).astype(np.float32)
    amplitudes = np.empty_like(z)
    numba_tiles._some_stream(z, np.float32(0), amplitudes)
    exact = np.exp(z[:-3].astype(np.float64) / 2)
    assert np.abs(amplitudes[:-3] / exact - 1).max() < 2e-7
    assert amplitudes[-3:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("columns", [1, 63, 1056, 2048, 5003])
@pytest.mark.parametrize("moments", [0, 1, 2])
def test_every_sum_of_a_tile_is_that_of_float64(columns, moments):
    logits = tile(columns)
    exact = tile_state(logits.double(), PAIRS, moments)
    fused = numba_tiles.FusedTiles()
    found = fused(logits, PAIRS, moments)
    for name in ("peak", "mass", "energy", "overlap", "residual", "pilot", "forward", "backward"):
        ours, theirs = getattr(found, name), getattr(exact, name)
        if theirs is None:
            assert ours is None
        else:  # a sum of terms of both signs is right to the size of its terms
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("backend", ["numba", "eager"])
@pytest.mark.parametrize("threads", [2, 3, 16])
def test_the_number_of_threads_changes_no_number_and_is_as_it_was(threads, backend):
    generator = torch.Generator().manual_seed(2)
    hidden, head = torch.randn(4, 70, 8, generator=generator), torch.randn(500, 8, generator=generator)
    options = {"pairs": [(0, 3)], "targets": torch.arange(70), "backend": backend}
    single = lens_transport(hidden, head, **options)
    torch.set_num_threads(threads)
    try:
        several = lens_transport(hidden, head, **options)
        assert torch.get_num_threads() == threads
        assert in_a_new_thread(torch.get_num_threads) == threads
    finally:
        torch.set_num_threads(1)
    for name in ("angle", "entropy", "kl_to_next", "kl_from_next", "pair_angle", "target_log_prob"):
        torch.testing.assert_close(getattr(several, name), getattr(single, name), atol=2e-6, rtol=0)


def test_parts_come_back_in_order_and_an_error_leaves_the_threads_as_they_were():
    torch.set_num_threads(3)
    try:
        assert workers(8) == 3
        assert workers(2) == 2
        assert side_by_side(lambda part: (part, torch.get_num_threads()), range(5)) == [(i, 1) for i in range(5)]
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda part: 1 / part, [1, 0, 2])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_no_gradient_is_kept_in_any_thread():
    hidden = torch.randn(3, 64, 8, requires_grad=True)
    torch.set_num_threads(2)
    try:
        assert not lens_transport(hidden, torch.randn(50, 8)).angle.requires_grad
    finally:
        torch.set_num_threads(1)


def test_tiles_of_another_size_follow_one_another():
    fused = numba_tiles.FusedTiles()
    for columns in (512, 64, 512):
        logits = tile(columns)
        exact = tile_state(logits.double(), PAIRS, 1)
        torch.testing.assert_close(fused(logits, PAIRS, 1).overlap, exact.overlap, rtol=1e-6, atol=0)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_logit_that_is_no_number_marks_its_own_row_only(poison):
    logits = tile(200)
    logits[2, 5, 133] = poison
    fused = numba_tiles.FusedTiles()
    energy = fused(logits, PAIRS, 2).energy
    assert (~energy.isfinite()).nonzero().tolist() == [[2, 5]]


def test_logits_far_below_the_peak_cost_no_more_than_others():
    """Subnormal squares would; there are none: nothing lies between 0 and the smallest normal number."""
    logits = tile(1000, spread=60.0)
    amplitudes = np.empty(1000, dtype=np.float32)
    for row in logits.flatten(0, 1).numpy():
        numba_tiles._some_stream(row, row.max(), amplitudes)
        squares = amplitudes**2
        assert (squares == 0).any()
        assert squares[squares > 0].min() >= np.finfo(np.float32).tiny


def test_both_backends_say_the_same_of_two_models():
    generator = torch.Generator().manual_seed(1)
    sides = [torch.randn(*shape, generator=generator) for shape in ((3, 9, 8), (500, 8), (3, 9, 6), (500, 6))]
    eager, compiled = (lens_distance(*sides, backend=name) for name in ("eager", "numba"))
    assert (eager.backend, compiled.backend) == ("eager", "numba")
    for name in ("angle", "kl_ab", "kl_ba", "entropy_a", "entropy_b"):
        torch.testing.assert_close(getattr(compiled, name), getattr(eager, name), atol=5e-6, rtol=0)


def test_auto_is_numba_for_float32_on_the_cpu_alone():
    assert backends.chosen("auto", torch.float32, CPU) == "numba"
    assert backends.chosen("auto", torch.float64, CPU) == "eager"
    assert backends.chosen("auto", torch.float32, torch.device("meta")) == "eager"
    assert backends.chosen("eager", torch.float32, CPU) == "eager"


def test_numba_is_refused_where_it_does_not_fit():
    with pytest.raises(ValueError, match=r"float32 on the CPU, not for torch\.float64 on cpu: take 'auto'"):
        lens_transport(torch.zeros(2, 1, 3).double(), torch.zeros(5, 3).double(), backend="numba")


def test_without_numba_auto_is_eager_and_numba_says_what_to_install(monkeypatch, fresh_import):
    monkeypatch.delitem(sys.modules, "alignscope.probes.kernels.numba_tiles")
    monkeypatch.delattr("alignscope.probes.kernels.numba_tiles")
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    assert backends.chosen("auto", torch.float32, CPU) == "eager"
    with pytest.raises(ValueError, match=r"cannot be used \(.*numba.*\): pip install alignscope\[numba\]"):
        backends.chosen("numba", torch.float32, CPU)
