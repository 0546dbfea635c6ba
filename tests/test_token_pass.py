"""Token information from states and heads: the same numbers as from the logits, in blocks and chunks of any size."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignscope.probes.kernels import (
    InformationPass,
    TokenInformation,
    information_pass,
    token_information,
    token_information_from_hidden,
)
from alignscope.probes.kernels.column_peaks import LINES, column_entries, column_peaks, largest
from alignscope.probes.subject import Head

INF, LN3 = math.inf, math.log(3)
TENSORS = (
    *("entropy", "information", "plausible_entropy", "plausible_size", "kl", "reverse_kl"),
    *("log_ratio_normalizer", "policy_mass", "reference_mass", "support"),
)


def float64(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def states_of(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and heads of width 1 that read out exactly these logits [V]."""
    one = float64([[1.0]])
    return one, policy[:, None], one, reference[:, None]


def of(policy, reference, **options) -> TokenInformation:
    return token_information_from_hidden(*states_of(float64(policy), float64(reference)), **options)


def random_sides(n: int, vocab: int, *, seed: int = 0, dtype=torch.float64, widths=(6, 9)) -> list[Tensor]:
    """policy_hidden, policy_head, reference_hidden, reference_head."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, widths[0]), (vocab, widths[0]), (n, widths[1]), (vocab, widths[1])]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def simple_head(weight: Tensor, **changes) -> Head:
    values = {"weight": weight, "bias": None, "softcap": None, "scale": 1.0, "norm": refuse, "vocab": len(weight)}
    return Head(**values | changes)


def refuse(_: Tensor) -> Tensor:
    raise AssertionError("states have passed the norm already")


def assert_same(got: TokenInformation, expected: TokenInformation, tolerance: float) -> None:
    for name in TENSORS:
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )
    assert got.status.tolist() == expected.status.tolist()


def naive(policy: Tensor, reference: Tensor, eps: float) -> dict[str, float]:
    """One position, token by token in Python floats; every logit finite."""
    zp, zr = policy.tolist(), reference.tolist()
    total_p, total_r = (math.fsum(map(math.exp, z)) for z in (zp, zr))
    p, r = [math.exp(z) / total_p for z in zp], [math.exp(z) / total_r for z in zr]

    def entropy(ratios: list[float]) -> float:
        total = math.fsum(ratios)
        return -math.fsum(ratio / total * math.log(ratio / total) for ratio in ratios)

    likely = [v for v in range(len(p)) if p[v] >= eps or r[v] >= eps]
    ratios = [a / b for a, b in zip(p, r, strict=True)]
    return {
        "entropy": entropy(ratios),
        "information": math.log(len(p)) - entropy(ratios),
        "plausible_entropy": entropy([ratios[v] for v in likely]),
        "plausible_size": len(likely),
        "kl": math.fsum(a * math.log(a / b) for a, b in zip(p, r, strict=True)),
        "reverse_kl": math.fsum(b * math.log(b / a) for a, b in zip(p, r, strict=True)),
        "log_ratio_normalizer": math.log(math.fsum(ratios)),
        "policy_mass": math.fsum(p[v] for v in likely),
        "reference_mass": math.fsum(r[v] for v in likely),
        "support": len(p),
    }


# -------------------------------------------------------------------------------------------------- exact answers


def test_no_change_has_the_largest_entropy():
    got = of(range(100), range(100))
    assert got.entropy.item() == pytest.approx(math.log(100), rel=1e-14)
    assert max(abs(value.item()) for value in (got.information, got.kl, got.reverse_kl)) < 1e-14


@pytest.mark.parametrize(
    ("policy", "reference", "expected"),
    [
        ([LN3, 0], [0, 0], 0.5623351446),
        ([LN3, 0, 0, 0], [0, 0, 0, 0], 1.2424533249),
        ([0, 0, 0, 0], [LN3, 0, 0, 0], 1.3138340332),
    ],
)
def test_one_token_tripled(policy, reference, expected):
    got = of(policy, reference)
    assert got.entropy.item() == pytest.approx(expected, abs=1e-10)
    assert got.information.item() == pytest.approx(math.log(len(policy)) - expected, abs=1e-10)


def test_power_law_and_gaussian_log_ratios():
    ranks = torch.arange(1, 200_001, dtype=torch.float64)
    flat = torch.zeros(200_000, dtype=torch.float64)
    assert of(2 * ranks.log(), flat).entropy.item() == pytest.approx(11.7741295, abs=1e-7)
    assert of(torch.special.ndtri((ranks - 0.5) / 200_000), flat).entropy.item() == pytest.approx(11.7061787, abs=1e-7)


def test_a_change_of_the_heads_is_diluted_over_the_vocabulary_but_not_over_the_plausible_tokens():
    reference = torch.full((152_000,), -30.0)
    reference[:50] = 0
    policy = reference.clone()
    policy[:50] = 1.5 * (-1.0) ** torch.arange(50)
    exact = 1.5 * math.tanh(1.5) - math.log(math.cosh(1.5))
    got = of(policy, reference)
    assert got.plausible_size.item() == 50
    assert got.plausible_information.item() == pytest.approx(exact, abs=1e-9)
    assert got.kl.item() == pytest.approx(exact, abs=1e-7)
    assert got.information.item() == pytest.approx(0.0006053914, abs=1e-10)
    assert got.reverse_kl.item() == pytest.approx(0.8554401709, abs=1e-7)


def test_the_entropy_falls_as_the_log_ratio_is_scaled_up():
    step = 1e-5
    high, low = (of([b * LN3, 0], [0, 0]).entropy.item() for b in (1 + step, 1 - step))
    assert (high - low) / (2 * step) == pytest.approx(-3 / 16 * LN3**2, abs=1e-9)  # -b Var(d) at b = 1


def test_a_symmetric_reference_ties_sharpening_and_smoothing():
    reference = 2 * torch.special.ndtri((torch.arange(500, dtype=torch.float64) + 0.5) / 500)
    sharper, smoother = (of((1 + a) * reference, reference).entropy.item() for a in (0.5, -0.5))
    assert sharper == pytest.approx(smoother, abs=1e-12)
    assert sharper == pytest.approx(5.7242885, abs=1e-7)


def test_sharpening_a_linear_reference_has_the_higher_entropy():
    reference = torch.arange(1, 200_001, dtype=torch.float64).log()
    assert of(2 * reference, reference).entropy.item() == pytest.approx(12.0129280, abs=1e-7)
    assert of(0 * reference, reference).entropy.item() == pytest.approx(8.3699043, abs=1e-7)


# -------------------------------------------------------------------------------------------- the same as from logits


@given(
    n=st.integers(1, 9),
    vocab=st.integers(2, 90),
    block=st.integers(1, 12),
    chunk=st.integers(1, 100),
    eps=st.sampled_from([1e-6, 0.011, 0.3]),
)
@settings(max_examples=40, deadline=None)
def test_any_block_and_chunk_gives_the_naive_numbers(n, vocab, block, chunk, eps):
    policy, policy_head, reference, reference_head = random_sides(n, vocab, seed=vocab)
    got = token_information_from_hidden(
        policy, policy_head, reference, reference_head, plausible=eps, block=block, chunk=chunk
    )
    for row in range(n):
        expected = naive(policy_head @ policy[row], reference_head @ reference[row], eps)
        if expected["plausible_size"] == 0:
            continue  # nan, tested below
        for name, value in expected.items():
            assert getattr(got, name)[row].item() == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("plausible", [1e-4, "top64"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-6)])  # logits are rounded
def test_a_large_vocabulary_gives_the_numbers_of_the_full_logits(dtype, tolerance, plausible):
    sides = random_sides(37, 20_011, dtype=dtype)
    full = token_information(sides[0] @ sides[1].T, sides[2] @ sides[3].T, plausible=plausible)
    got = token_information_from_hidden(*sides, plausible=plausible, block=16, chunk=3000)
    assert_same(got, full, tolerance)
    assert full.plausible_size.min() >= 64


@pytest.mark.parametrize(
    ("options", "apply"),
    [
        ({"softcap": 3.0}, lambda z: 3 * torch.tanh(z / 3)),
        ({"scale": 0.25}, lambda z: z / 4),
        ({"scale": 0.5, "softcap": 2.0}, lambda z: 2 * torch.tanh(z / 4)),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_what_a_head_applies_is_applied(options, apply, biased):
    policy, weight, reference, plain = random_sides(5, 700)
    bias = torch.linspace(-2, 2, 700, dtype=torch.float64) if biased else None
    z = policy @ weight.T + (0 if bias is None else bias)
    head = simple_head(weight, bias=bias, **options)
    got = token_information_from_hidden(policy, head, reference, plain, chunk=128)
    assert_same(got, token_information(apply(z), reference @ plain.T), 1e-10)
    other = token_information_from_hidden(reference, plain, policy, head, chunk=128)
    assert_same(other, token_information(reference @ plain.T, apply(z)), 1e-10)


def test_half_precision_is_upcast_and_not_computed_in():
    sides = [side.bfloat16() for side in random_sides(4, 500)]
    upcast = [side.float() for side in sides]
    for got, expected in zip(
        *(vars_of(token_information_from_hidden(*some, chunk=77)) for some in (sides, upcast)), strict=True
    ):
        assert torch.equal(got, expected)


def vars_of(result: TokenInformation) -> list[Tensor]:
    return [getattr(result, name) for name in TENSORS]


def test_the_order_of_the_vocabulary_is_free():
    policy, policy_head, reference, reference_head = random_sides(6, 3000)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    plain = token_information_from_hidden(policy, policy_head, reference, reference_head)
    mixed = token_information_from_hidden(policy, policy_head[order], reference, reference_head[order])
    assert_same(mixed, plain, 1e-12)


@pytest.mark.parametrize("shift", [50.0, 1e3, -1e4])
def test_a_constant_in_either_model_moves_nothing(shift):
    policy, policy_head, reference, reference_head = random_sides(4, 600)
    moved = simple_head(policy_head, bias=torch.full((600,), shift, dtype=torch.float64))
    plain = token_information_from_hidden(policy, policy_head, reference, reference_head)
    assert_same(token_information_from_hidden(policy, moved, reference, reference_head), plain, 1e-8)
    swapped = token_information_from_hidden(reference, reference_head, policy, policy_head)
    assert_same(token_information_from_hidden(reference, reference_head, policy, moved), swapped, 1e-8)


def test_positions_added_bit_by_bit_are_positions_added_at_once():
    policy, reference = (torch.randn(150, 80, generator=torch.Generator().manual_seed(k)) for k in range(2))
    reading = InformationPass(80)
    for start, stop in ((0, 1), (1, 100), (100, 100), (100, 150)):
        reading.update(policy[start:stop], reference[start:stop])
    assert_same(reading.information(), token_information(policy, reference), 0)
    assert len(reading.tilt().slope) == 150
    assert reading.attribution().n_positions == 150


def test_positions_taken_on_the_way_are_those_kept_to_the_end_and_the_sums_stay():
    policy, reference = (torch.randn(90, 80, generator=torch.Generator().manual_seed(k)) for k in range(2))
    whole, reading = InformationPass(80), InformationPass(80)
    whole.update(policy, reference)
    taken = []
    for start, stop in ((0, 40), (40, 90)):
        reading.update(policy[start:stop], reference[start:stop])
        taken.append(reading.take())
        with pytest.raises(ValueError, match="no position"):
            reading.information()
    assert torch.equal(torch.cat([information.kl for information, _ in taken]), whole.information().kl)
    assert torch.equal(torch.cat([tilt.slope for _, tilt in taken]), whole.tilt().slope)
    assert torch.allclose(reading.attribution().q_total, whole.attribution().q_total, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ padding and odd rows


def test_padded_rows_of_a_head_do_not_count():
    padded = torch.cat([torch.zeros(151_665), torch.full((271,), 12.0)])
    sides = states_of(float64(padded), torch.zeros(151_936, dtype=torch.float64))
    heads = [simple_head(weight, vocab=151_665) for weight in (sides[1], sides[3])]
    for got in (
        token_information_from_hidden(*sides, vocab=151_665),
        token_information_from_hidden(sides[0], heads[0], sides[2], heads[1]),
    ):
        assert got.entropy.item() == pytest.approx(11.9294294, abs=1e-7)
        assert got.support.item() == 151_665
    assert token_information_from_hidden(*sides).entropy.item() == pytest.approx(5.6466734, abs=1e-7)


def test_rows_masked_by_the_bias_are_rows_cut():
    policy, policy_head, reference, reference_head = random_sides(5, 300)
    mask = torch.zeros(300, dtype=torch.float64)
    mask[277:] = -INF
    heads = [simple_head(weight, bias=mask) for weight in (policy_head, reference_head)]
    masked = token_information_from_hidden(policy, heads[0], reference, heads[1], chunk=64)
    cut = token_information_from_hidden(policy, policy_head[:277], reference, reference_head[:277])
    assert_same(masked, cut, 1e-12)


@pytest.mark.parametrize("plausible", [1e-4, 0.2, "top2"])
def test_excluded_tokens_have_the_status_and_numbers_of_the_full_logits(plausible):
    reference = float64([[0, 0, 0, 0], [0, 0, 0, -INF], [0, 0, -INF, -INF], [0, 0, 0, -40], [1, 0, 0, 0]])
    policy = float64([[LN3, 0, 0, -INF], [LN3, 0, 0, 0], [LN3, 0, -INF, -INF], [LN3, 0, 0, -INF], [40, 0, 0, 0]])
    eye = torch.eye(4, dtype=torch.float64)
    for row in range(5):
        biased = [simple_head(eye, bias=z[row]) for z in (policy, reference)]
        nothing = torch.zeros(1, 4, dtype=torch.float64)
        got = token_information_from_hidden(nothing, biased[0], nothing, biased[1], plausible=plausible, chunk=3)
        expected = token_information(policy[row : row + 1], reference[row : row + 1], plausible=plausible)
        assert_same(got, expected, 1e-12)


def test_statuses_of_excluded_tokens_and_lone_plausible_ones():
    rows = [([LN3, 0], [0, 0]), ([40, 0], [30, 0]), ([0, 0], [0, -INF]), ([0, -INF], [0, 0])]
    assert [of(*row).status[0] for row in rows] == ["ok", "degenerate", "unsupported", "ok"]
    nothing = of([0] * 10, [0] * 10, plausible=0.5)
    assert (nothing.plausible_size.item(), nothing.status[0]) == (0, "degenerate")
    assert math.isnan(nothing.plausible_entropy.item())


def test_a_token_that_one_model_excludes_is_in_no_list_of_its_likeliest():
    got = of([0, -INF, -INF], [0, 1, -INF], plausible="top2")
    assert got.plausible_size.item() == 2  # 0 of both, 1 of the reference
    assert got.reverse_kl.item() == INF


@pytest.mark.parametrize("poison", [math.nan, INF])
@pytest.mark.parametrize("side", [0, 2])
def test_a_broken_state_is_nan_and_harms_no_neighbour(poison, side):
    sides = random_sides(6, 400)
    clean = token_information_from_hidden(*sides)
    sides[side] = sides[side].clone()
    sides[side][2] = poison
    got = token_information_from_hidden(*sides, block=4)
    assert got.status.tolist() == ["ok", "ok", "non_finite", "ok", "ok", "ok"]
    assert got.kl[2].isnan()
    assert got.plausible_size[2] == got.support[2] == 0
    keep = [0, 1, 3, 4, 5]
    for name in TENSORS:
        torch.testing.assert_close(getattr(got, name)[keep], getattr(clean, name)[keep], rtol=1e-12, atol=1e-12)


def test_logits_too_large_for_an_exponential_are_shifted():
    got, plain = of([LN3 + 1e5, 1e5, 1e5], [-1e5, -1e5, -1e5]), of([LN3, 0, 0], [0, 0, 0])
    assert_same(got, plain, 1e-8)


def test_no_positions_give_empty_tensors():
    sides = random_sides(0, 50)
    got = token_information_from_hidden(*sides)
    assert got.entropy.shape == got.support.shape == got.status.shape == (0,)
    assert information_pass(*sides).attribution().n_positions == 0


# ------------------------------------------------------------------------------------------------- memory and manners


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_no_tensor_grows_with_the_positions():
    def largest_of(n: int) -> int:
        with LargestTensor() as seen:
            information_pass(*random_sides(n, 5000, dtype=torch.float32), block=16)
        return seen.numel

    assert largest_of(64) == largest_of(160) < 160 * 5000 / 2


def test_a_buffer_too_large_is_filled_by_fewer_positions(monkeypatch):
    sides = random_sides(20, 500)
    plain = token_information_from_hidden(*sides)
    monkeypatch.setattr("alignscope.probes.kernels.information.BLOCK_ENTRIES", 500)
    monkeypatch.setattr("alignscope.probes.kernels.information.BUFFER_BYTES", 3 * 500 * 16)
    with LargestTensor() as seen:
        got = token_information_from_hidden(*sides, chunk=100)
    assert 3 * 500 <= seen.numel < 6 * 500  # the places of at most 3 * 500 entries are two columns
    assert_same(got, plain, 1e-12)


def test_inputs_are_left_alone_and_no_graph_is_kept():
    sides = [side.requires_grad_() for side in random_sides(5, 300)]
    before = [side.detach().clone() for side in sides]
    assert not token_information_from_hidden(*sides).entropy.requires_grad
    assert torch.is_grad_enabled()
    logits = [(sides[0] @ sides[1].T).detach(), (sides[2] @ sides[3].T).detach()]
    kept = [z.clone() for z in logits]
    token_information(*logits)
    assert all(torch.equal(a, b) for a, b in zip([*sides, *logits], [*before, *kept], strict=True))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"block": 0}, "block and chunk are >= 1, got 0 and 16384"),
        ({}, {"chunk": 0}, "got 64 and 0"),
        ({}, {"vocab": 51}, "2 to 50"),
        ({}, {"vocab": 1}, "got 1"),
        ({}, {"plausible": 1.0}, "plausible"),
        ({2: torch.zeros(4, 9)}, {}, r"same positions, got \(3, 6\) and \(4, 9\)"),
        ({3: torch.zeros(40, 9)}, {}, "the heads have 50 and 40 tokens: pass vocab"),
        ({1: torch.zeros(50, 5)}, {}, r"width of hidden_policy, got \(50, 5\)"),
        ({3: simple_head(torch.zeros(50, 9), softcap=0.0)}, {}, "softcap_reference is > 0"),
    ],
)
def test_bad_arguments_are_refused(change, options, message):
    sides = dict(enumerate(random_sides(3, 50, dtype=torch.float32))) | change
    with pytest.raises(ValueError, match=message):
        token_information_from_hidden(*sides.values(), **options)


def test_a_pass_refuses_what_it_cannot_give():
    for options, message in (({"vocab": 1}, "at least 2, got 1"), ({"vocab": 5, "top": 0}, "at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            InformationPass(**options)
    reading = InformationPass(5, top=None)
    with pytest.raises(ValueError, match="no position"):
        reading.information()
    with pytest.raises(ValueError, match="4 and 5 columns, fewer than the 5"):
        reading.update(torch.zeros(1, 4), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="keeps no attribution"):
        reading.attribution()


# ------------------------------------------------------------------------------------------------------- column peaks


@given(n=st.integers(1, 4), vocab=st.integers(2, 400), k=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_largest_entries_are_those_of_a_sort(n, vocab, k, seed):
    rows = torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed)).round(decimals=1)  # with ties
    k = min(k, vocab)
    values, places = largest(lambda ids: rows.gather(1, ids), column_peaks(rows), vocab, k)
    assert torch.equal(values, rows.sort(-1, descending=True).values[:, :k])
    assert torch.equal(rows.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("vocab", [2, LINES - 1, LINES, 5 * LINES, 5 * LINES + 3])
def test_the_columns_hold_every_entry_once(vocab):
    columns = torch.arange(column_peaks(torch.zeros(1, vocab)).shape[1])
    places, there = column_entries(columns, vocab)
    assert sorted(places[there].tolist()) == list(range(vocab))
