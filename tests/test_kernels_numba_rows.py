"""The compiled sums of token information: those of torch, to the last digits of float64."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from alignscope.probes.kernels import InformationPass, token_information
from alignscope.probes.kernels.information_rows import ARRAYS, RowSums, row_sums
from alignscope.probes.kernels.plausible_tokens import reaching_tokens

numba = pytest.importorskip("numba")

from alignscope.probes.kernels import numba_rows  # noqa: E402


class Totals(dict):
    """A plain sum by name."""

    def add(self, name, weights, factor):
        self[name] = self.get(name, 0) + weights.T @ factor


def sides(n, vocab, *, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    policy = spread * torch.randn(n, vocab, generator=generator)
    return policy, policy + 0.3 * torch.randn(n, vocab, generator=generator)


def by_torch(policy, reference, totals=None):
    return row_sums(policy, reference, torch.empty(ARRAYS, *policy.shape, dtype=torch.float64), totals)


def assert_same(ours, theirs, size=1.0):
    """size: of the numbers that are subtracted on the way."""
    for field in fields(RowSums):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13 * size, msg=field.name)


@numba.njit
def exponentials(x):
    found = np.empty_like(x)
    for i in range(len(x)):
        found[i] = numba_rows._exponential(x[i])
    return found


def test_the_exponential_is_right_to_the_last_digit_and_exact_at_0():
    x = np.concatenate([np.linspace(-708, 700, 100_001), np.random.default_rng(0).normal(size=10_000)])
    assert np.abs(exponentials(x) / np.exp(x) - 1).max() < 4.5e-16
    assert exponentials(np.zeros(1)) == 1
    assert 0 < exponentials(np.array([-1e4, -np.inf])).max() < 1e-307


@pytest.mark.parametrize("vocab", [2, 7, 8, 13, 1024, 5003])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_sum_is_that_of_torch(vocab, threads):
    policy, reference = sides(5, vocab)
    ours, theirs = Totals(), Totals()
    expected = by_torch(policy, reference, theirs)
    torch.set_num_threads(threads)
    try:
        fused = numba_rows.FusedRows()
        assert_same(fused(policy, reference), expected)
        assert_same(fused(policy, reference, ours), expected)
    finally:
        torch.set_num_threads(1)
    assert {*ours} == {*theirs}
    for name, total in theirs.items():
        torch.testing.assert_close(ours[name], total, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shift", [0.0, 250.0, 1e3, -1e4])
def test_logits_too_large_for_an_exponential_are_shifted(shift):
    policy, reference = sides(3, 500)
    found = numba_rows.FusedRows()(policy + shift, reference)
    assert_same(found, by_torch(policy + shift, reference), size=max(1.0, abs(shift)))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("column", [0, 70, 99])
def test_what_is_not_finite_is_left_to_torch_with_nothing_summed(poison, side, column):
    logits = sides(4, 100)
    logits[side][2, column] = poison
    totals = Totals()
    assert numba_rows.FusedRows()(*logits, totals) is None
    assert not totals


@pytest.mark.parametrize("vocab", [5, 64, 83])
def test_the_same_tokens_reach_a_bound(vocab):
    policy, reference = sides(6, vocab)
    rows = by_torch(policy, reference)
    bounds = rows.policy_normalizer - 3, rows.reference_normalizer - 2.5
    ours = numba_rows.FusedRows.reaching_tokens(policy, reference, rows, *bounds)
    theirs = reaching_tokens(policy, reference, rows, *bounds)
    assert len(theirs[0]) > 3
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


# ---- a whole pass


def passed(backend, policy, reference, **options):
    reading = InformationPass(policy.shape[1], backend=backend, **options)
    reading.update(policy, reference)
    return reading.information(), reading.tilt(), reading.attribution()


@pytest.mark.parametrize("plausible", [1e-3, "top9"])
@pytest.mark.parametrize("n", [0, 1, 150])
def test_a_pass_gives_the_same_by_either(plausible, n):
    logits = sides(n, 203)
    both = [passed(backend, *logits, plausible=plausible, top=4) for backend in ("numba", "eager")]
    for one, other in zip(*both, strict=True):
        for field in fields(one):
            ours, theirs = getattr(one, field.name), getattr(other, field.name)
            if isinstance(ours, torch.Tensor):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, equal_nan=True, msg=field.name)
            else:
                assert np.array_equal(ours, theirs), field.name


def test_a_row_that_is_no_distribution_harms_no_other():
    policy, reference = sides(200, 50)
    policy[70, 3], reference[120, 7] = torch.nan, -torch.inf
    found = [passed(backend, policy, reference) for backend in ("numba", "eager")]
    assert (found[0][0].status == found[1][0].status).all()
    assert (found[0][0].status != "ok").nonzero()[0].tolist() == [70, 120]
    torch.testing.assert_close(found[0][0].kl, found[1][0].kl, rtol=1e-9, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(found[0][2].q_total, found[1][2].q_total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)])
def test_half_precision_is_upcast(dtypes):
    logits = [z.to(dtype) for z, dtype in zip(sides(3, 90), dtypes, strict=True)]
    exact = token_information(*(z.double() for z in logits))
    torch.testing.assert_close(passed("numba", *logits)[0].entropy, exact.entropy, rtol=1e-12, atol=0)


def test_logits_cut_from_wider_ones_are_those_alone():
    policy, reference = sides(3, 90)
    reading = InformationPass(60, backend="numba")
    reading.update(policy, reference)
    alone = passed("numba", policy[:, :60].clone(), reference[:, :60].clone())[0]
    assert torch.equal(reading.information().entropy, alone.entropy)


@pytest.mark.parametrize(("backend", "words"), [("numba", "float32 on the CPU"), ("cuda", "not available")])
def test_a_backend_that_cannot_do_it_is_refused(backend, words):
    reading = InformationPass(5, backend=backend)
    with pytest.raises(ValueError, match=words):
        reading.update(torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.float64))
