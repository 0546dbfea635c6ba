"""The lens kernels: closed forms, then what must not change them, then a float64 oracle that holds everything."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignscope.probes.kernels import LensTransport, backends, lens, lens_distance, lens_transport, tiled_reading

PI = math.pi


@pytest.fixture(scope="module", autouse=True, params=["numba", "eager"])
def float32_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test holds for both: what `auto` takes for float32."""
    if request.param == "numba":
        pytest.importorskip("numba")

    def chosen(name: str, dtype: torch.dtype, device: torch.device) -> str:
        ours = name == "auto" and dtype == torch.float32
        return request.param if ours else backends.chosen(name, dtype, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lens, "chosen", chosen)
        yield request.param


def transport_of(*logits: Tensor, **options) -> LensTransport:
    """The lens of given logits, one row a layer: with one-hot hidden rows the columns of the head are the layers."""
    z = torch.stack(logits)  # [L, V]
    return lens_transport(torch.eye(len(z), dtype=z.dtype)[:, None], z.T.contiguous(), **options)


def naive(hidden: Tensor, head: Tensor, *, bias=None, softcap=None, scale=1.0, temperature=1.0, vocab=None) -> dict:
    """Everything at once in float64, the angle from the chord: 4 asin(|sqrt p - sqrt q| / 2)."""
    z = hidden.double() @ head.double().T
    z = (z if bias is None else z + bias.double()) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = (z / temperature)[..., :vocab].log_softmax(-1)
    p, root = log_p.exp(), (log_p / 2).exp()
    return {
        "angle": 4 * torch.asin((root[1:] - root[:-1]).norm(dim=-1) / 2),
        "entropy": -(p * log_p).sum(-1),
        "log_normalizer": (z / temperature)[..., :vocab].logsumexp(-1),
        "kl_to_next": (p[:-1] * (log_p[:-1] - log_p[1:])).sum(-1),
        "kl_from_next": (p[1:] * (log_p[1:] - log_p[:-1])).sum(-1),
        "overlap": (root[1:] * root[:-1]).sum(-1),
        "log_p": log_p,
    }


def row(values, dtype=torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.fixture(scope="module")
def stack() -> tuple[Tensor, Tensor, Tensor]:
    """hidden [5, 70, 16], head [5003, 16], bias [5003]; float32; 70 tokens are two blocks."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 70, 16, generator=generator)
    head = torch.randn(5003, 16, generator=generator) * 0.6
    return hidden, head, torch.randn(5003, generator=generator)


# ---------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-7)])
def test_two_tokens_one_of_them_three_times_likelier(dtype, tolerance):
    got = transport_of(row([0, 0], dtype), row([math.log(3), 0], dtype))
    assert got.angle.item() == pytest.approx(PI / 6, abs=tolerance)
    assert got.overlap.item() == pytest.approx(0.9659258263, abs=tolerance)
    assert got.entropy[:, 0].tolist() == pytest.approx([0.6931471806, 0.5623351446], abs=tolerance)
    assert got.kl_to_next.item() == pytest.approx(0.1438410362, abs=tolerance)
    assert got.kl_from_next.item() == pytest.approx(0.1308120359, abs=tolerance)
    assert got.precision == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-7)])
def test_two_of_four_tokens_twice_as_likely(dtype, tolerance):
    got = transport_of(torch.zeros(4, dtype=dtype), row([math.log(2), math.log(2), 0, 0], dtype))
    assert got.angle.item() == pytest.approx(0.3398369095, abs=tolerance)
    assert got.kl_to_next.item() == pytest.approx(0.0588915178, abs=tolerance)
    assert got.kl_from_next.item() == pytest.approx(0.0566330123, abs=tolerance)
    assert got.entropy[:, 0].tolist() == pytest.approx([1.3862943611, 1.3296613489], abs=tolerance)


@pytest.mark.parametrize("tile", [None, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_one_logit_of_a_thousand_raised_to_five(dtype, tolerance, tile):
    peaked = torch.zeros(1000, dtype=dtype)
    peaked[617] = 5
    got = transport_of(torch.zeros(1000, dtype=dtype), peaked, vocab_tile=tile)
    assert got.angle.item() == pytest.approx(0.6725227388, abs=tolerance)
    assert got.kl_to_next.item() == pytest.approx(0.1325099817, abs=tolerance)
    assert got.kl_from_next.item() == pytest.approx(0.5092193935, abs=tolerance)
    assert got.entropy[1].item() == pytest.approx(6.3985358855, abs=2 * tolerance)


@pytest.mark.parametrize("height", [20.0, 30.0, 40.0, 90.0, 300.0, 800.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_sharp_rows_with_different_tokens_on_top_are_pi_apart(height, dtype):
    """Neither has a variance that float can hold, as two equal rows have none."""
    left, right = row([height, 0, 0], dtype), row([0, height, 0], dtype)
    true = naive(torch.eye(2)[:, None], torch.stack([left, right]).T)["angle"].item()
    assert true > 3.1
    assert transport_of(left, right).angle.item() == pytest.approx(true, abs=1e-6)


@pytest.mark.parametrize("spread", [1.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-7)])
def test_rows_of_any_sharpness_agree_with_the_chord(spread, dtype, tolerance):
    generator = torch.Generator().manual_seed(11)
    hidden = torch.randn(4, 200, 16, generator=generator).to(dtype)
    hidden[3] = hidden[2] + 0.01 * hidden[0]  # near ones too
    head = spread * torch.randn(300, 16, generator=generator).to(dtype)
    logits = (hidden @ head.T).double()  # in the precision of the kernel: rounding of logits is no error of the angle
    root = (logits.log_softmax(-1) / 2).exp()
    true = 4 * torch.asin((root[1:] - root[:-1]).norm(dim=-1) / 2)
    found = lens_transport(hidden, head, vocab_tile=128).angle
    assert (found - true).abs().max() < tolerance * max(1.0, spread)


def test_a_tail_that_moves_both_ways_is_no_small_angle():
    """One sure token, and two unlikely halves that move by nats in opposite directions: no skew, a fourth cumulant."""
    sure = torch.zeros(1000)
    sure[3] = 23.0
    moved = sure + 5.0 * torch.where(torch.arange(1000) % 2 == 0, 1.0, -1.0)
    moved[3] = 23.0
    true = naive(torch.eye(2)[:, None], torch.stack([sure, moved]).T)["angle"].item()
    assert true > 1e-4
    assert transport_of(sure, moved).angle.item() == pytest.approx(true, rel=1e-2)


@pytest.mark.parametrize("height", [300.0, 700.0, 760.0, 800.0])
@pytest.mark.parametrize("tile", [None, 64, 200])
def test_a_peak_far_above_another_part_of_the_vocabulary_loses_nothing(height, tile):
    sharp = torch.zeros(400)
    sharp[390] = height
    flat = 0.1 * torch.randn(400, generator=torch.Generator().manual_seed(12))
    true = naive(torch.eye(2)[:, None], torch.stack([sharp, flat]).T)["angle"].item()
    for pair in ((sharp, flat), (flat, sharp)):
        assert transport_of(*pair, vocab_tile=tile).angle.item() == pytest.approx(true, abs=2e-6)


@pytest.mark.parametrize("low", [-1e9, -1e20, -1e30, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("tile", [None, 64])
def test_logits_masked_by_a_large_number_count_as_left_out(low, tile):
    generator = torch.Generator().manual_seed(13)
    hidden, head = torch.randn(3, 5, 8, generator=generator), torch.randn(200, 8, generator=generator)
    bias = torch.zeros(200)
    bias[150:] = low
    masked = lens_transport(hidden, head, bias=bias, vocab_tile=tile)
    cut = lens_transport(hidden, head[:150], vocab_tile=tile)
    assert masked.n_nonfinite == 0
    for name in ("angle", "entropy", "log_normalizer", "kl_to_next", "kl_from_next"):
        torch.testing.assert_close(getattr(masked, name), getattr(cut, name), atol=5e-6, rtol=0)


@pytest.mark.parametrize("height", [80.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disjoint_peaks_are_pi_apart(height, dtype):
    left, right = torch.full((2, 16), -height, dtype=dtype)
    left[1], right[14] = height, height  # the first and the last of 8 tiles
    got = transport_of(left, right, vocab_tile=2)
    assert got.angle.item() == pytest.approx(PI, abs=3e-7)
    assert got.overlap.item() <= 1e-30
    assert got.kl_to_next.item() == pytest.approx(2 * height, rel=1e-6)
    assert got.n_nonfinite == 0


def test_equal_logits_are_exactly_zero_apart_and_a_constant_moves_nothing():
    z = torch.randn(3001, generator=torch.Generator().manual_seed(1)) * 4
    for tile in (None, 64, 1000):
        same, shifted = transport_of(z, z, vocab_tile=tile), transport_of(z, z + 8, vocab_tile=tile)
        assert same.angle.item() == same.kl_to_next.item() == same.kl_from_next.item() == 0
        assert shifted.angle.item() <= 1e-6
        assert 0 <= shifted.kl_to_next.item() <= 1e-12


def test_softcap_acts_after_the_scale_and_before_the_temperature():
    z = row([100.0, 50.0])
    targets = torch.tensor([0])
    got = transport_of(z / 2, z, scale=1.0, softcap=30.0, targets=targets)
    capped = [29.92373902, 27.93328826]
    assert got.log_normalizer[1].item() == pytest.approx(math.log(sum(map(math.exp, capped))), abs=1e-8)
    assert got.target_log_prob[1].item() == pytest.approx(-0.1280711065, abs=1e-9)
    assert 1 - math.exp(got.target_log_prob[1].item()) == pytest.approx(0.1202092, abs=1e-7)
    scaled = transport_of(z / 4, z / 2, scale=2.0, softcap=30.0, temperature=0.5, targets=targets)
    assert scaled.log_normalizer[1].item() == pytest.approx(math.log(sum(math.exp(2 * c) for c in capped)), abs=1e-8)


@pytest.mark.parametrize("n_tiles", [1, 7, 64])
def test_small_angles_survive_where_arccos_loses_them(n_tiles):
    generator = torch.Generator().manual_seed(2)
    head = torch.randn(5003, 2, generator=generator) * torch.tensor([3.0, 1.0])
    hidden = torch.tensor([[[1.0, 0.0]], [[1.0, 1e-3]]])
    true = naive(hidden, head)["angle"].item()
    got = lens_transport(hidden, head, vocab_tile=-(-5003 // n_tiles))
    assert got.angle.item() == pytest.approx(true, rel=1e-3)  # the rounding of the float32 logits themselves

    root = (hidden @ head.T).softmax(-1).sqrt()
    by_arccos = 2 * torch.arccos((root[0] * root[1]).sum().clamp(max=1)).item()
    assert abs(by_arccos / true - 1) > 0.01


@pytest.mark.parametrize("fill", [1e4, -1e4, 1e30, math.inf, math.nan])
def test_padded_vocabulary_counts_for_nothing(fill):
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(2, 3, 4, generator=generator), torch.randn(50304, 4, generator=generator)
    hidden[0] = 0  # uniform
    head[50257:] = fill
    padded, cut = lens_transport(hidden, head, vocab=50257), lens_transport(hidden, head[:50257].clone())
    assert padded.entropy[0].tolist() == pytest.approx([math.log(50257)] * 3, abs=1e-6)
    for name in ("angle", "entropy", "log_normalizer", "kl_to_next", "kl_from_next"):
        assert torch.equal(getattr(padded, name), getattr(cut, name))
    assert padded.n_nonfinite == 0


@pytest.mark.parametrize("tile", [None, 333])
def test_small_kl_is_right_to_a_thousandth(tile):
    generator = torch.Generator().manual_seed(4)
    head = torch.randn(20000, 2, generator=generator) * torch.tensor([2.5, 1.0])
    hidden = torch.tensor([[[1.0, 0.0]], [[1.0, 1e-3]]])
    true = naive(hidden, head)
    got = lens_transport(hidden, head, vocab_tile=tile)
    assert 3e-7 < true["kl_to_next"].item() < 8e-7
    assert got.kl_to_next.item() == pytest.approx(true["kl_to_next"].item(), rel=1e-3)
    assert got.kl_from_next.item() == pytest.approx(true["kl_from_next"].item(), rel=1e-3)


@pytest.mark.parametrize("tile", [None, 100])
@pytest.mark.parametrize("lift", [3.0, 5.0, -4.0])
def test_small_kl_with_a_heavy_tail_is_read_again(lift, tile):
    """A sure token whose unlikely rest moves by nats: two cumulants miss most of this KL."""
    sure = torch.zeros(1000)
    sure[3] = 20.0
    moved = sure.clone()
    moved[::2] += lift
    true = naive(torch.eye(2)[:, None], torch.stack([sure, moved]).T)
    got = transport_of(sure, moved, vocab_tile=tile)
    for name in ("kl_to_next", "kl_from_next"):
        assert 1e-7 < true[name].item() < 1e-3
        assert getattr(got, name).item() == pytest.approx(true[name].item(), rel=1e-4)

    p = sure.double().softmax(-1)
    mean = (p * (moved - sure)).sum()
    second, third = ((p * (moved - sure - mean) ** k).sum().item() for k in (2, 3))
    assert abs((second / 2 + third / 6) / true["kl_to_next"].item() - 1) > 0.05


@pytest.mark.parametrize(
    ("p", "q", "angle"),
    [
        ((0.5, 0.5), (1, 0), PI / 2),
        ((0.25, 0.75), (0.75, 0.25), PI / 3),
        ((0.25, 0.25, 0.25, 0.25), (1, 0, 0, 0), 2 * PI / 3),
        ((0.7, 0.2, 0.1), (0.1, 0.2, 0.7), 1.507434),
    ],
)
def test_angles_of_plain_distributions(p, q, angle):
    got = transport_of(*(row(v).log().clamp(min=-800) for v in (p, q)))  # e^-400, the amplitude, is 0 enough
    assert got.angle.item() == pytest.approx(angle, abs=1e-6)
    if angle == 1.507434:
        assert got.entropy[0].item() == pytest.approx(0.801819, abs=1e-6)
        assert got.kl_to_next.item() == pytest.approx(1.167546, abs=1e-6)


@pytest.mark.parametrize("e", [1e-3, 1e-4, 1e-5])
def test_two_token_angle_is_half_the_logit_down_to_1e_5(e):
    got = transport_of(torch.zeros(2), torch.tensor([e, 0.0]))
    assert got.angle.item() == pytest.approx(e / 2, rel=1e-3)
    if e == 1e-3:
        assert got.angle.item() == pytest.approx(4.9999998e-4, rel=1e-4)


@pytest.mark.parametrize("size", [3e-2, 3.3e-3, 3.1e-3, 1e-3, 1e-5])
@pytest.mark.parametrize("spread", [0.5, 4.0])  # a flat and a sharp distribution
def test_small_angles_have_no_seam_where_the_cumulants_take_over(size, spread):
    generator = torch.Generator().manual_seed(11)
    z = torch.randn(3000, generator=generator, dtype=torch.float64) * spread
    moved = z + size * torch.randn(3000, generator=generator, dtype=torch.float64)
    true = naive(torch.eye(2, dtype=torch.float64)[:, None], torch.stack([z, moved]).T)["angle"].item()
    assert transport_of(z, moved, vocab_tile=700).angle.item() == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize("lift", [0.01, 0.05, 0.3, 2.0, 6.0])
@pytest.mark.parametrize("height", [12.0, 20.0, 30.0])
def test_small_angles_from_an_unlikely_tail(lift, height):
    sure = torch.zeros(1000, dtype=torch.float64)
    sure[3] = height
    moved = sure + lift * (torch.arange(1000) % 2 == 0)
    true = naive(torch.eye(2, dtype=torch.float64)[:, None], torch.stack([sure, moved]).T)["angle"].item()
    assert transport_of(sure, moved).angle.item() == pytest.approx(true, rel=1e-4)
    assert transport_of(sure.float(), moved.float()).angle.item() == pytest.approx(true, rel=1e-4)


def test_whole_numbers_are_numbers():
    z = row([100.0, 50.0])
    got = transport_of(z, z, softcap=30, scale=1, temperature=2, targets=torch.tensor([1], dtype=torch.int32))
    assert got.backend == "eager"
    assert torch.equal(got.entropy, transport_of(z, z, softcap=30.0, scale=1.0, temperature=2.0).entropy)


# ------------------------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize("tile", [64, 1000, 626, 1668])  # the last two: 8 and 3 parts
@pytest.mark.parametrize("block", [1, 64])
def test_tiles_and_token_blocks_move_nothing(stack, tile, block):
    hidden, head, bias = stack
    if block == 1:
        hidden = hidden[:, :3]
    whole = lens_transport(hidden, head, bias=bias, vocab_tile=5003)
    tiled = lens_transport(hidden, head, bias=bias, vocab_tile=tile, token_block=block)
    assert (whole.angle - tiled.angle).abs().max() < 1e-6
    assert (whole.entropy - tiled.entropy).abs().max() < 5e-6
    assert (whole.kl_to_next - tiled.kl_to_next).abs().max() < 5e-6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softcap": 5.0},
        {"scale": 0.25, "temperature": 0.7},
        {"softcap": 8.0, "scale": -1.5, "temperature": 2.0, "vocab": 4099},
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-10)])
def test_agrees_with_everything_at_once(stack, options, dtype, tolerance):
    hidden, head, bias = (tensor.to(dtype) for tensor in stack)
    targets = torch.randint(-1, 4099, (70,), generator=torch.Generator().manual_seed(5))
    targets[0] = -1
    got = lens_transport(hidden, head, bias=bias, targets=targets, vocab_tile=700, **options)
    true = naive(hidden, head, bias=bias, **options)
    for name in ("angle", "entropy", "log_normalizer", "kl_to_next", "kl_from_next", "overlap"):
        torch.testing.assert_close(getattr(got, name), true[name], atol=tolerance, rtol=tolerance)
    wanted = true["log_p"].gather(-1, targets.clamp(min=0).expand(5, -1)[..., None])[..., 0]
    wanted[:, targets == -1] = torch.nan
    torch.testing.assert_close(got.target_log_prob, wanted, atol=5 * tolerance, rtol=tolerance, equal_nan=True)


@given(st.integers(0, 10**6), st.floats(0.01, 6), st.integers(4, 40))
@settings(max_examples=25, deadline=None)
def test_kl_bounds_the_overlap_and_reversing_the_layers_mirrors_it(seed, spread, tile):
    z = torch.randn(3, 37, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    there, back = transport_of(*z, vocab_tile=tile), transport_of(*z.flip(0), vocab_tile=tile)
    torch.testing.assert_close(there.angle, back.angle.flip(0), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(there.kl_to_next, back.kl_from_next.flip(0), atol=1e-12, rtol=1e-3)
    bound = -2 * there.overlap.log()
    assert (bound >= -1e-14).all()
    assert (there.kl_to_next >= bound * (1 - 1e-3) - 1e-14).all()
    assert (there.angle <= PI).all()
    assert (there.entropy <= math.log(37) + 1e-12).all()


def test_vocabulary_order_is_free(stack):
    hidden, head, bias = stack
    order = torch.randperm(5003, generator=torch.Generator().manual_seed(6))
    plain, mixed = lens_transport(hidden, head, bias=bias), lens_transport(hidden, head[order], bias=bias[order])
    torch.testing.assert_close(plain.angle, mixed.angle, atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.entropy, mixed.entropy, atol=5e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_upcast_before_any_product(stack, dtype):
    hidden, head, bias = (tensor.to(dtype) for tensor in stack)
    half = lens_transport(hidden, head, bias=bias)
    single = lens_transport(hidden.float(), head.float(), bias=bias.float())
    assert torch.equal(half.angle, single.angle)
    assert torch.equal(half.entropy, single.entropy)
    assert half.precision == "float32"


def test_autocast_and_reduced_matmul_precision_are_off_inside_and_restored(stack):
    hidden, head, _ = stack
    plain = lens_transport(hidden, head).angle
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lens_transport(hidden, head).angle, plain)
        assert (hidden[0] @ head.T).dtype == torch.bfloat16
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(lens_transport(hidden, head).angle, plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_inputs_are_left_alone_and_no_graph_is_kept(stack):
    hidden, head, bias = (tensor.clone().requires_grad_() for tensor in stack)
    got = lens_transport(hidden, head, bias=bias, softcap=9.0)
    assert not got.angle.requires_grad
    assert all(torch.equal(a, b) for a, b in zip((hidden, head, bias), stack, strict=True))


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_no_tensor_grows_with_layers_tokens_or_vocabulary():
    def largest(n_layers: int, n_tokens: int, n_vocab: int) -> int:
        hidden, head = torch.zeros(n_layers, n_tokens, 4), torch.zeros(n_vocab, 4)
        with LargestTensor() as seen:
            lens_transport(hidden, head)
        return seen.numel

    sizes = [largest(8, 64, 6000), largest(16, 64, 6000), largest(8, 128, 6000), largest(8, 64, 12000)]
    assert max(sizes) <= 8 * 2**20 // 4  # one tile of float32 logits
    assert max(sizes) <= 1.1 * min(sizes)
    assert max(sizes) < 8 * 64 * 6000  # the full logits would have been larger


# ----------------------------------------------------------------------------------------------------- odd and bad


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nonfinite_rows_are_nan_counted_and_harm_no_neighbour(stack, poison):
    hidden, head, _ = stack
    clean = lens_transport(hidden, head, vocab_tile=512)
    broken = hidden.clone()
    broken[2, 7] = poison
    got = lens_transport(broken, head, vocab_tile=512)
    assert got.n_nonfinite == 1
    assert got.entropy.isnan().nonzero().tolist() == [[2, 7]]
    assert got.angle.isnan().nonzero().tolist() == [[1, 7], [2, 7]]
    assert got.kl_to_next.isnan().nonzero().tolist() == [[1, 7], [2, 7]]
    kept = ~got.angle.isnan()
    assert torch.equal(got.angle[kept], clean.angle[kept])


@pytest.mark.parametrize("poison", [-math.inf, math.inf])
def test_one_infinite_logit_spoils_its_row(poison):
    bad = torch.randn(300, generator=torch.Generator().manual_seed(7))
    good, bad[250] = bad.clone(), poison
    bias = torch.zeros(300)
    bias[250] = poison  # a forbidden token, as a bias would write it
    for tile in (None, 100):
        hidden = good.view(1, 1, 300)[..., :1].repeat(2, 1, 1)
        assert lens_transport(hidden, good[:, None], bias=bias, vocab_tile=tile).n_nonfinite == 2
        assert lens_transport(torch.ones(2, 1, 1), bad[:, None], vocab_tile=tile).n_nonfinite == 2
        got = transport_of(good, good.flip(0), vocab_tile=tile)
        assert got.n_nonfinite == 0
        spoiled = lens_transport(torch.ones(2, 1, 1), good[:, None], bias=bias, vocab_tile=tile)
        assert spoiled.n_nonfinite == 2
        assert spoiled.angle.isnan().all()


def test_very_low_but_finite_logits_are_ordinary():
    z = torch.randn(50, generator=torch.Generator().manual_seed(8))
    low = torch.cat([z, torch.full((50,), -1e30)])
    got, cut = transport_of(low, low.roll(1) * 0 + low, vocab_tile=10), transport_of(z, z, vocab_tile=10)
    assert got.n_nonfinite == 0
    torch.testing.assert_close(got.entropy, cut.entropy, atol=1e-6, rtol=0)


def test_no_tokens_give_empty_tensors():
    got = lens_transport(torch.zeros(3, 0, 4), torch.zeros(10, 4), targets=torch.zeros(0, dtype=torch.long))
    assert got.angle.shape == got.kl_to_next.shape == (2, 0)
    assert got.entropy.shape == got.target_log_prob.shape == (3, 0)
    assert got.n_nonfinite == 0
    assert lens_distance(torch.zeros(0, 4), torch.zeros(9, 4), torch.zeros(0, 4), torch.zeros(9, 4)).angle.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(1, 3, 4)}, "at least 2 layers"),
        ({"head": torch.zeros(10, 5)}, r"width of hidden, got \(10, 5\) for hidden \(2, 3, 4\)"),
        ({"vocab": 11}, "2 to 10"),
        ({"vocab": 1}, "got 1"),
        ({"softcap": 0.0}, "softcap is > 0"),
        ({"temperature": 0.0}, "temperature is > 0"),
        ({"temperature": -1.0}, "temperature is > 0"),
        ({"scale": math.nan}, "scale is finite"),
        ({"bias": torch.zeros(9)}, r"\[10\], got \(9,\)"),
        ({"targets": torch.tensor([0, 10, 1])}, r"target 10 of token 1 is outside \[-1, 10\)"),
        ({"targets": torch.tensor([0, 1, 9]), "vocab": 9}, "target 9 of token 2"),
        ({"targets": torch.tensor([0, 1])}, r"\[3\], got \(2,\)"),
        ({"backend": "triton"}, "'triton' is not available: this version has auto, eager, numba"),
        ({"backend": "fast"}, "'fast' is not available"),
        ({"token_block": 0}, "token_block"),
    ],
)
def test_bad_arguments_are_refused_naming_what_was_found(change, message):
    arguments = {"hidden": torch.zeros(2, 3, 4), "head": torch.zeros(10, 4), **change}
    with pytest.raises(ValueError, match=message):
        lens_transport(arguments.pop("hidden"), arguments.pop("head"), **arguments)


# ---------------------------------------------------------------------------------------------------- two models


def test_distance_is_the_transport_between_two_heads(stack):
    hidden, head, bias = stack
    generator = torch.Generator().manual_seed(9)
    other_hidden, other_head = torch.randn(5, 70, 9, generator=generator), torch.randn(5003, 9, generator=generator)
    got = lens_distance(
        hidden, head, other_hidden, other_head, bias_a=bias, softcap_b=3.0, scale_b=0.5, vocab=5000, vocab_tile=900
    )
    left = naive(hidden, head, bias=bias, vocab=5000)["log_p"]
    right = naive(other_hidden, other_head, softcap=3.0, scale=0.5, vocab=5000)["log_p"]
    angle = 4 * torch.asin(((left / 2).exp() - (right / 2).exp()).norm(dim=-1) / 2)
    torch.testing.assert_close(got.angle, angle, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(got.kl_ab, (left.exp() * (left - right)).sum(-1), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(got.kl_ba, (right.exp() * (right - left)).sum(-1), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(got.entropy_b, -(right.exp() * right).sum(-1), atol=1e-5, rtol=1e-5)

    one_layer = lens_distance(
        hidden[2], head, other_hidden[2], other_head, bias_a=bias, softcap_b=3.0, scale_b=0.5, vocab=5000
    )
    assert one_layer.angle.shape == (70,)
    torch.testing.assert_close(one_layer.angle, got.angle[2], atol=1e-6, rtol=0)


def test_a_model_is_at_distance_zero_from_itself_and_small_changes_are_seen(stack):
    hidden, head, _ = stack
    same = lens_distance(hidden, head, hidden, head)
    assert same.angle.abs().max() == same.kl_ab.abs().max() == same.kl_ba.abs().max() == 0
    nudge = 1e-4 * torch.randn(head.shape, generator=torch.Generator().manual_seed(10))
    got = lens_distance(hidden.double(), head.double(), hidden.double(), (head + nudge).double())
    assert (got.angle**2 / (2 * got.kl_ab) - 1).abs().max() < 1e-2  # a small step: angle^2 = 2 KL
    assert got.angle.max() < 2e-3


def test_distance_counts_broken_rows_of_both_sides(stack):
    hidden, head, _ = stack
    left, right = hidden.clone(), hidden.clone()
    left[0, 3], right[0, 3], right[1, 4] = torch.nan, torch.inf, torch.nan
    got = lens_distance(left, head, right, head)
    assert got.n_nonfinite == 3
    assert got.angle.isnan().nonzero().tolist() == [[0, 3], [1, 4]]


def test_distance_refuses_unlike_places_and_vocabularies():
    with pytest.raises(ValueError, match=r"same places, got \(3, 4\) and \(2, 4\)"):
        lens_distance(torch.zeros(3, 4), torch.zeros(10, 4), torch.zeros(2, 4), torch.zeros(10, 4))
    with pytest.raises(ValueError, match="10 and 12 rows: pass vocab"):
        lens_distance(torch.zeros(3, 4), torch.zeros(10, 4), torch.zeros(3, 4), torch.zeros(12, 4))
    with pytest.raises(ValueError, match=r"head_b is .* got \(10, 5\)"):
        lens_distance(torch.zeros(3, 4), torch.zeros(10, 4), torch.zeros(3, 4), torch.zeros(10, 5))


def test_angles_of_any_two_layers_come_in_the_order_asked_for():
    hidden, head = torch.randn(6, 7, 12), 0.5 * torch.randn(150, 12)
    pairs = [(0, 5), (1, 3), (2, 3), (4, 0), (5, 3), (2, 2), (1, 3), (0, 4)]
    found = lens_transport(hidden, head, pairs=pairs, vocab_tile=64)
    p = (hidden.double() @ head.double().T).softmax(-1)
    for row, (i, j) in enumerate(pairs):
        expected = 2 * torch.arccos((p[i] * p[j]).sqrt().sum(-1).clamp(max=1.0))
        torch.testing.assert_close(found.pair_angle[row], expected, atol=2e-6 if i != j else 1e-7, rtol=0)
    plain = lens_transport(hidden, head, vocab_tile=64)
    assert plain.pair_angle is None
    for field in ("angle", "entropy", "kl_to_next", "kl_from_next", "overlap", "log_normalizer"):
        torch.testing.assert_close(getattr(found, field), getattr(plain, field), atol=1e-9, rtol=1e-9)


def test_no_pair_asked_for_gives_an_empty_table_and_a_broken_row_reaches_its_own_pairs_only():
    hidden, head = torch.randn(4, 3, 8), torch.randn(20, 8)
    assert lens_transport(hidden, head, pairs=[]).pair_angle.shape == (0, 3)
    hidden[2, 1] = torch.nan
    found = lens_transport(hidden, head, pairs=[(0, 2), (0, 3), (2, 2)]).pair_angle
    assert found.isnan().tolist() == [[False, True, False], [False] * 3, [False, True, False]]


def test_a_pair_outside_the_layers_is_refused():
    with pytest.raises(ValueError, match=r"pair \(0, 4\): layers 0 to 3"):
        lens_transport(torch.randn(4, 3, 8), torch.randn(20, 8), pairs=[(0, 4)])


def test_without_divergences_all_else_is_the_same_and_nothing_is_read_twice(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 8, generator=generator)
    hidden[1:] = hidden[:1] + 1e-3 * torch.randn(2, 5, 8, generator=generator) ** 5  # small, skewed KLs
    head = torch.randn(40, 8, generator=generator)
    whole = lens_transport(hidden, head, pairs=[(0, 2)])
    both = lens_distance(hidden[0], head, hidden[1], head)
    monkeypatch.setattr(tiled_reading, "_read_again", lambda *_: pytest.fail("small KLs are read again"))
    bare = lens_transport(hidden, head, pairs=[(0, 2)], divergences=False)
    for name in ("angle", "entropy", "log_normalizer", "overlap", "pair_angle"):
        assert torch.equal(getattr(bare, name), getattr(whole, name))
    assert (bare.kl_to_next, bare.kl_from_next) == (None, None)
    apart = lens_distance(hidden[0], head, hidden[1], head, divergences=False)
    assert torch.equal(apart.angle, both.angle)
    assert (apart.kl_ab, apart.kl_ba) == (None, None)
