"""The reconstructed composite: exact answers first, then nulls with reasons, invariances, and the jackknife."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignscope.diagnose.spinal_components import (
    FLOOR,
    Curves,
    coherence,
    concentration,
    path_of,
    scale,
    transport_share,
)
from alignscope.diagnose.spinal_composite import COMPONENTS, NOT_COMPARABLE, composite
from alignscope.diagnose.spinal_composite_estimates import composite_estimates, delete_group_means

L = 30
WINDOW = (21, 30)
ROOT = math.sqrt(2)


def planted():
    """Exponents .5 + .01 l, steps .6 - .01 l; aligned + .1 from block 21, - .05 from step 21. Index 0 is NaN."""
    blocks, steps = np.arange(L + 1.0), np.arange(float(L))
    alpha, angle = 0.5 + 0.01 * blocks, 0.6 - 0.01 * steps
    alpha[0], angle[0] = np.nan, np.nan
    return alpha, angle, alpha + 0.1 * (blocks >= 21), angle - 0.05 * (steps >= 21)


S_A = 1.4826 * 0.01 * 7.5  # median of |l - 15.5|, l = 1..30
S_L = 1.4826 * 0.01 * 7.0  # median of |l - 15|, l = 1..29
DELTA = 0.1 / S_A + 0.05 / S_L
GRADIENT = sum(range(21, 31)) / sum(range(1, 31)) - 1 / 3
NORMS = {"gradient_base": np.ones(L), "gradient_aligned": np.arange(1.0, L + 1)}


def bumped():
    """The base with its exponent of block 25 moved by its scale."""
    alpha, angle, *_ = planted()
    alpha[25] += S_A
    return alpha, angle


def values(found, *names):
    return [found.parts[name].value for name in names]


def test_a_planted_pair_has_its_exact_score():
    found = composite(*planted(), WINDOW, gradient_base=np.arange(1.0, L + 1), gradient_aligned=np.ones(L))
    assert values(found, "scale_alpha", "scale_angle") == pytest.approx([S_A, S_L])
    assert found.delta.value == pytest.approx(DELTA)
    assert values(found, "coherence_base", "coherence_aligned") == pytest.approx([1.0, 1.0])
    assert values(found, "concentration_base", "concentration_aligned") == pytest.approx([GRADIENT, 0.0], abs=1e-12)
    assert found.score.value == pytest.approx((DELTA - GRADIENT) / 3)
    swapped = composite(*planted(), WINDOW, **NORMS)
    assert swapped.score.value == pytest.approx((DELTA + GRADIENT) / 3)
    assert [round(x, 6) for x in (S_A, S_L, DELTA, GRADIENT, swapped.score.value)] == [
        0.111195, 0.103782, 1.381100, 0.215054, 0.532051
    ]  # fmt: skip


def test_one_bent_block_costs_coherence():
    alpha, angle = bumped()
    curve = Curves(alpha=alpha, angle=angle)
    kappa = [0, 0, 1, 2, 1, 0, 0]  # at blocks 22 to 28
    assert coherence(curve, WINDOW, (S_A, S_L)) == pytest.approx(np.mean([1 / (1 + k) for k in kappa]))  # .761905
    assert coherence(curve, WINDOW, (S_A, S_L), "straightness") == pytest.approx(0.376561, abs=5e-7)
    found = composite(*planted()[:2], alpha, angle, WINDOW)
    assert found.parts["coherence_aligned"].value == pytest.approx(16 / 21)
    assert found.coherence.value == pytest.approx(16 / 21 - 1)


def test_straightness_and_cosine_of_a_right_angle():
    """Path (0,0) -> (1,0) -> (1,1)."""
    curve = Curves(alpha=np.array([9.0, 0.0, 1.0, 1.0, 5.0]), angle=np.array([9.0, 0.0, 0.0, 1.0]))
    assert coherence(curve, (1, 4), (1.0, 1.0), "straightness") == pytest.approx(ROOT / 2)
    assert coherence(curve, (1, 4), (1.0, 1.0), "cosine") == pytest.approx(0.0)
    assert coherence(curve, (1, 4), (1.0, 1.0)) == pytest.approx(1 / (1 + ROOT))  # |(0,1) - (1,0)|


def test_cosine_of_straight_on_is_1_and_of_back_is_minus_1():
    for turn, cosine in ((2.0, 1.0), (0.0, -1.0)):
        curve = Curves(alpha=np.array([0.0, 0.0, 1.0, turn, 0.0]), angle=np.array([0.0, 0.3, 0.3, 0.3]))
        assert coherence(curve, (1, 4), (0.5, 1.0), "cosine") == pytest.approx(cosine)


@pytest.mark.parametrize(
    ("kind", "expected"), [("scaled", DELTA), ("raw", 0.15), ("sum", 10 * 0.1 + 9 * 0.05)]
)  # 10 blocks, 9 steps
def test_the_forms_of_delta(kind, expected):
    assert composite(*planted(), WINDOW, delta=kind).delta.value == pytest.approx(expected)


def test_delta_of_a_single_model_is_the_aligned_models_and_sum_is_the_difference_of_two():
    alpha_b, angle_b, alpha_a, angle_a = planted()
    base, aligned = (
        composite(alpha_b, angle_b, alpha, angle, WINDOW, delta="single_model").delta.value
        for alpha, angle in ((alpha_b, angle_b), (alpha_a, angle_a))
    )
    assert aligned == pytest.approx(sum(alpha_a[21:31]) - sum(angle_a[21:30]))
    assert composite(*planted(), WINDOW, delta="sum").delta.value == pytest.approx(aligned - base)


def test_coherence_by_efficiency_takes_the_measured_numbers():
    found = composite(*planted(), WINDOW, coherence="efficiency", efficiency=(0.5, 0.75), **NORMS)
    assert values(found, "coherence_base", "coherence_aligned", "coherence") == [0.5, 0.75, 0.25]
    assert found.score.value == pytest.approx((DELTA + 0.25 + GRADIENT) / 3)


def test_efficiency_is_printed_beside_every_other_coherence():
    assert composite(*planted(), WINDOW, efficiency=(0.5, 0.75)).parts["efficiency"].value == 0.25
    absent = composite(*planted(), WINDOW, efficiency=(math.nan, 0.75))
    assert "not measured" in absent.parts["efficiency"].reason
    assert absent.parts["efficiency_aligned"].value == 0.75


def test_the_path_ends_where_steps_end():
    assert [*path_of((21, 30), 30)] == [*range(21, 30)]  # inner points 22..28
    assert [*path_of((21, 29), 30)] == [*range(21, 30)]
    assert [*path_of((10, 15), 30)] == [*range(10, 16)]


@settings(max_examples=20, deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5))
def test_points_beyond_the_window_do_not_enter(alpha_move, angle_move):
    alpha, angle, *_ = planted()
    moved = Curves(alpha=alpha.copy(), angle=angle.copy())
    moved.alpha[[9, 16]] += alpha_move
    moved.angle[[9, 16]] += angle_move
    for kind in ("curvature", "straightness", "cosine"):
        assert coherence(moved, (10, 15), (1.0, 1.0), kind) == coherence(
            Curves(alpha=alpha, angle=angle), (10, 15), (1.0, 1.0), kind
        )


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0, 100.0], 1.4826),
        ([0.0, 0.0, 0.0, 0.0, 5.0], math.sqrt(5.0)),  # more than half alike: the sample deviation
        ([0.1 + 0.2, 0.3, 0.1 + 0.2, 0.3, 5.0], 4.7 / math.sqrt(5.0)),  # alike up to rounding
        ([2.0, 2.0], FLOOR),
        ([1.0, np.nan, 3.0], 1.4826),
    ],
)
def test_scales(x, expected):
    assert scale(np.array(x)) == pytest.approx(expected)


def test_a_single_value_has_no_scale_and_then_there_is_no_delta():
    assert math.isnan(scale(np.array([1.0, np.nan])))
    angle, alpha = np.array([0.0, 0.5]), np.array([0.0, 1.0, 2.0])
    found = composite(alpha, angle, alpha, angle, (1, 2))
    assert found.delta.reason == "fewer than 2 angles in the base: no scale"
    assert found.parts["scale_angle"].value is None
    assert composite(alpha, angle, alpha, angle, (1, 2), delta="raw").delta.value == 0.0


@pytest.mark.parametrize(
    ("norms", "inside", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], range(2, 4), 0.0),  # uniform
        ([0.0, 0.0, 0.0, 2.0], range(3, 4), 0.75),
        ([1.0, 0.0, 0.0, 0.0], range(3, 4), -0.25),
        ([1.0, 2.0, 3.0, 4.0], range(4), 0.0),  # everything is inside
    ],
)
def test_concentration(norms, inside, expected):
    assert concentration(np.array(norms), inside) == pytest.approx(expected)


def test_weight_share_is_one_number_a_pair_in_place_of_a_difference():
    found = composite(*planted(), WINDOW, weight_share=np.arange(1.0, L + 1))
    assert found.concentration.value == pytest.approx(GRADIENT)
    assert found.score.value == pytest.approx((DELTA + GRADIENT) / 3)
    assert "concentration_base" not in found.parts


def test_transport_share_is_of_steps_with_both_ends_inside():
    found = composite(*planted(), WINDOW, gradient="transport_share")
    assert found.concentration.value == pytest.approx(1 - 9 / 29)  # all of |dL| lies in 9 of 29 steps
    angle = np.array([7.0, 1.0, 3.0, 2.0])
    zero = Curves(alpha=np.zeros(5), angle=np.zeros(4))
    moved = Curves(alpha=np.zeros(5), angle=angle)  # steps 1, 2, 3 differ by 1, 3, 2; step 0 by what does not count
    assert transport_share(zero, moved, (2, 3)) == pytest.approx(3 / 6 - 1 / 3)


def test_weights_of_the_score():
    found = composite(*planted(), WINDOW, **NORMS, weights=(0.5, 0.25, 0.25))
    assert found.score.value == pytest.approx(0.5 * DELTA + 0.25 * GRADIENT)


# ---- null, with the reason


def test_a_missing_exponent_in_the_window_is_named_and_leaves_no_score():
    alpha_b, angle_b, alpha_a, angle_a = planted()
    alpha_a[[23, 24]] = np.nan
    found = composite(alpha_b, angle_b, alpha_a, angle_a, WINDOW, **NORMS)
    reason = "the aligned model has no exponent at layers 23, 24"
    assert (found.delta.value, found.delta.reason) == (None, reason)
    assert (found.coherence.value, found.coherence.reason) == (None, reason)
    assert found.parts["coherence_base"].value == pytest.approx(1.0)
    assert found.concentration.value == pytest.approx(GRADIENT)
    assert (found.score.value, found.score.reason) == (None, reason)  # said once


def test_a_missing_exponent_of_the_last_block_leaves_coherence():
    alpha_b, angle_b, alpha_a, angle_a = planted()
    alpha_b[30] = np.nan
    found = composite(alpha_b, angle_b, alpha_a, angle_a, WINDOW)
    assert found.delta.reason == "the base model has no exponent at layer 30"
    assert found.coherence.value == pytest.approx(0.0, abs=1e-12)


def test_a_missing_exponent_outside_the_window_only_leaves_the_scale():
    alpha_b, angle_b, alpha_a, angle_a = planted()
    alpha_b[3], alpha_a[3] = np.nan, np.nan
    found = composite(alpha_b, angle_b, alpha_a, angle_a, WINDOW)
    assert found.parts["scale_alpha"].value == pytest.approx(scale(np.delete(alpha_b[1:], 2)))
    assert found.delta.value == pytest.approx(0.1 / scale(np.delete(alpha_b[1:], 2)) + 0.05 / S_L)


def test_a_missing_angle_is_named():
    alpha_b, angle_b, alpha_a, angle_a = planted()
    angle_b[25] = np.nan
    assert (
        composite(alpha_b, angle_b, alpha_a, angle_a, WINDOW).delta.reason == "the base model has no angle at step 25"
    )
    share = composite(alpha_b, angle_b, alpha_a, angle_a, WINDOW, gradient="transport_share")
    assert share.concentration.reason == "the base model has no angle at step 25"


def test_the_single_model_needs_no_base():
    alpha_b, angle_b, alpha_a, angle_a = planted()
    alpha_b[25] = np.nan
    assert composite(alpha_b, angle_b, alpha_a, angle_a, WINDOW, delta="single_model").delta.value is not None


@pytest.mark.parametrize(
    ("window", "kind", "reason"),
    [
        ((28, 30), "curvature", "blocks 28 to 30 hold 2 points of the path: curvature needs 3"),
        ((28, 30), "cosine", "blocks 28 to 30 hold 2 points of the path: cosine needs 3"),
        ((30, 30), "straightness", "blocks 30 to 30 hold 0 points of the path: straightness needs 2"),
        ((28, 30), "straightness", None),
        ((27, 30), "curvature", None),
        ((20, 22), "curvature", None),  # before the last block there is a step more
    ],
)
def test_a_short_window_has_no_coherence(window, kind, reason):
    found = composite(*planted(), window, coherence=kind)
    assert found.parts["coherence_base"].reason == reason


def test_one_block_has_no_step():
    assert composite(*planted(), (30, 30)).delta.reason == "block 30 alone: no step inside the window"


def test_a_path_that_stands_still_has_no_direction():
    alpha, angle, *_ = planted()
    alpha[21:], angle[21:] = 0.7, 0.4
    for kind in ("straightness", "cosine"):
        found = composite(alpha, angle, *planted()[2:], WINDOW, coherence=kind)
        assert found.coherence.reason == "the path of the base model stands still"
    assert composite(alpha, angle, alpha, angle, WINDOW).coherence.value == 0.0  # kappa is 0, not undefined


def test_identical_models_differ_in_nothing_and_have_no_score():
    alpha, angle, *_ = planted()
    found = composite(alpha, angle, alpha, angle, WINDOW, weight_share=np.zeros(L), efficiency=(0.5, 0.5))
    assert values(found, "delta", "coherence", "efficiency") == [0.0, 0.0, 0.0]
    assert (found.concentration.value, found.concentration.reason) == (None, "identical weights")
    assert (found.score.value, found.score.reason) == (None, "identical weights")
    share = composite(alpha, angle, alpha, angle, WINDOW, gradient="transport_share").concentration
    assert (share.value, share.reason) == (None, "no step differs between the models")


def test_norms_that_are_missing_are_a_reason():
    assert composite(*planted(), WINDOW, no_gradient="models not given").score.reason == "models not given"
    half = composite(*planted(), WINDOW, gradient_base=np.ones(L), no_gradient="no pairs")
    assert (half.concentration.value, half.concentration.reason) == (None, "no pairs")
    assert half.parts["concentration_base"].value == pytest.approx(0.0)
    torn = np.ones(L)
    torn[[3, 7]] = np.nan
    assert composite(*planted(), WINDOW, weight_share=torn).score.reason == "no weight_share at blocks 4, 8"
    still = composite(*planted(), WINDOW, gradient_base=np.zeros(L), gradient_aligned=np.ones(L))
    assert still.score.reason == "every norm is 0"


def test_all_reasons_of_a_missing_score_are_given():
    found = composite(*planted(), (28, 30))
    assert found.score.reason == f"{found.coherence.reason}; {found.concentration.reason}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"window": (0, 5)}, "within blocks 1 to 30"),
        ({"window": (25, 31)}, "within blocks 1 to 30"),
        ({"window": (5, 4)}, "first <= last"),
        ({"weights": (0.5, 0.5)}, "three that add to 1"),
        ({"weights": (0.5, 0.5, 0.5)}, "three that add to 1"),
        ({"weights": (0.5, 0.5, math.nan)}, "three that add to 1"),
        ({"delta": "mean"}, "expected one of scaled, raw"),
        ({"coherence": "smooth"}, "expected one of curvature"),
        ({"gradient": "loss"}, "expected one of weight_share"),
        ({"weight_share": np.ones(L), "gradient_base": np.ones(L)}, "one number a pair"),
        ({"weight_share": np.ones(L), "gradient": "residual"}, "expected one of the two"),
        ({"gradient_base": np.ones(L), "gradient": "transport_share"}, "one number a pair"),
        ({"weight_share": np.ones(L - 1)}, "has 29 values"),
        ({"weight_share": -np.ones(L)}, "norms are >= 0"),
    ],
)
def test_bad_arguments_are_refused(more, message):
    arguments = {"window": WINDOW} | more
    with pytest.raises(ValueError, match=message):
        composite(*planted(), arguments.pop("window"), **arguments)


def test_curves_of_other_shapes_are_refused():
    alpha_b, angle_b, alpha_a, angle_a = planted()
    with pytest.raises(ValueError, match=r"expected \[L \+ 1\] and \[L\]"):
        composite(alpha_b[:-1], angle_b, alpha_a, angle_a, WINDOW)
    with pytest.raises(ValueError, match="30 blocks in the base, 29 in the aligned model"):
        composite(alpha_b, angle_b, alpha_a[:-1], angle_a[:-1], (20, 29))


# ---- what must not change it


@settings(max_examples=20, deadline=None)
@given(st.floats(-10, 10), st.floats(-10, 10))
def test_embeddings_and_step_0_enter_nothing(alpha, angle):
    curves = planted()
    whole = composite(*curves, WINDOW, gradient="transport_share")
    for curve, value in zip(curves, (alpha, angle, -alpha, 2 * angle), strict=True):
        curve[0] = value
    moved = composite(*curves, WINDOW, gradient="transport_share")
    assert moved.to_frame().value.tolist()[:-2] == pytest.approx(whole.to_frame().value.tolist()[:-2], nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(-3, 3))
def test_units_and_levels_do_not_matter(of_alpha, of_angle, level):
    alpha_b, angle_b, alpha_a, angle_a = planted()
    alpha_a[25] += 0.07
    moved = [of_alpha * alpha_b + level, of_angle * angle_b, of_alpha * alpha_a + level, of_angle * angle_a]
    for kind in ("curvature", "straightness", "cosine"):
        whole = composite(alpha_b, angle_b, alpha_a, angle_a, WINDOW, coherence=kind, **NORMS)
        same = composite(*moved, WINDOW, coherence=kind, **NORMS)
        assert values(same, *COMPONENTS, "score") == pytest.approx(values(whole, *COMPONENTS, "score"), rel=1e-6)


def test_exchanging_the_models_turns_the_sign():
    alpha_b, angle_b, alpha_a, angle_a = planted()
    there = composite(alpha_b, angle_b, alpha_a, angle_a, WINDOW, delta="raw").delta.value
    assert composite(alpha_a, angle_a, alpha_b, angle_b, WINDOW, delta="raw").delta.value == pytest.approx(-there)


def test_every_part_is_marked_as_ours():
    full = composite(*planted(), WINDOW, efficiency=(0.5, 0.6), **NORMS)
    for found in (full, composite(*planted(), WINDOW)):
        assert all(part.reconstructed and part.note == NOT_COMPARABLE for part in found.parts.values())
        assert all((part.value is None) == bool(part.reason) for part in found.parts.values())
        frame = found.to_frame()
        assert frame.reconstructed.all()
        assert (frame.note == NOT_COMPARABLE).all()
        assert {"delta", "coherence", "concentration", "score", "efficiency"} <= {*frame.part}


def test_the_summary_says_whose_score_it_is_and_why_there_is_none():
    whole = composite(*planted(), WINDOW, **NORMS).summary()
    assert whole.startswith(
        "Over blocks 21 to 30, aligned against base: contraction less transport (Delta) +1.381, coherence of the path "
        "+0.000, concentration of the change +0.215; score +0.532."
    )
    without = composite(*planted(), WINDOW, no_gradient="models not given").summary()
    assert "concentration of the change n/a; no score: models not given" in without
    assert NOT_COMPARABLE in whole
    assert NOT_COMPARABLE in without


# ---- the jackknife


def sample(n=40, n_groups=8, seed=0):
    """Angles of n prompts for two models [2, L, n], group labels, and delete-group exponents [2, G, L + 1]."""
    random = np.random.default_rng(seed)
    alpha_b, angle_b, alpha_a, angle_a = (np.nan_to_num(curve) for curve in planted())
    shared = 0.05 * random.normal(size=(L, n))
    angles = np.stack([a[:, None] + shared + 0.05 * random.normal(size=(L, n)) for a in (angle_b, angle_a)])
    labels = np.arange(n) % n_groups
    alphas = np.stack([alpha_b, alpha_a])[:, None] + 0.002 * random.normal(size=(2, n_groups, L + 1))
    return alpha_b, alpha_a, angles, labels, alphas


def estimates_of(alpha_b, alpha_a, angles, labels, alphas, options=None, **more):
    n_groups = alphas.shape[1]
    found = composite(alpha_b, angles[0].mean(1), alpha_a, angles[1].mean(1), WINDOW, **(options or {}))
    groups = tuple(delete_group_means(a, labels, n_groups) if n_groups else np.zeros((0, L)) for a in angles)
    n = angles.shape[2]
    return found, composite_estimates(
        found, alpha_groups=(alphas[0], alphas[1]), angle_groups=groups, n=n, n_clusters=n, **more
    )


def naive_parts(alpha_b, angle_b, alpha_a, angle_a, s_a, s_l):
    """Delta and S_coh from their definitions, block by block."""
    delta = np.mean([alpha_a[b] - alpha_b[b] for b in range(21, 31)]) / s_a
    delta -= np.mean([angle_a[s] - angle_b[s] for s in range(21, 30)]) / s_l
    smooth = []
    for alpha, angle in ((alpha_b, angle_b), (alpha_a, angle_a)):
        bends = []
        for b in range(22, 29):
            x = (alpha[b + 1] - 2 * alpha[b] + alpha[b - 1]) / s_a
            y = (angle[b + 1] - 2 * angle[b] + angle[b - 1]) / s_l
            bends.append(1 / (1 + math.hypot(x, y)))
        smooth.append(np.mean(bends))
    return np.array([delta, smooth[0], smooth[1], smooth[1] - smooth[0]])


def test_the_jackknife_equals_a_naive_loop_with_the_scales_held():
    alpha_b, alpha_a, angles, labels, alphas = sample()
    found, estimates = estimates_of(alpha_b, alpha_a, angles, labels, alphas, {"weight_share": np.arange(1.0, L + 1)})
    s_a, s_l = found.given.size
    theta = []
    for group in range(8):
        outside = angles[:, :, labels != group].mean(2)
        theta.append(naive_parts(alphas[0, group], outside[0], alphas[1, group], outside[1], s_a, s_l))
    theta = np.array(theta)
    parts = np.c_[theta, (theta[:, 0] + theta[:, 3]) / 3]
    se = np.sqrt(7 / 8 * ((parts - parts.mean(0)) ** 2).sum(0))
    names = ("delta", "coherence_base", "coherence_aligned", "coherence", "score")
    for name, expected in zip(names, se, strict=True):
        got = estimates[name]
        assert got.value == found.parts[name].value
        assert (got.high - got.value, got.value - got.low) == pytest.approx((2.364624 * expected,) * 2, rel=1e-5)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    """One step inside the window, whose angles in four prompts of the aligned model are 1, 2, 3, 4."""
    angles = np.zeros((2, 4, 4))
    angles[1, 2] = [1.0, 2.0, 3.0, 4.0]
    found = composite(np.zeros(5), angles[0].mean(1), np.zeros(5), angles[1].mean(1), (2, 3), delta="raw")
    groups = tuple(delete_group_means(a, np.arange(4), 4) for a in angles)
    got = composite_estimates(
        found, alpha_groups=(np.zeros((4, 5)), np.zeros((4, 5))), angle_groups=groups, n=4, n_clusters=4
    )["delta"]
    assert got.value == -2.5
    assert got.high - got.value == pytest.approx(3.182446 * math.sqrt(5 / 12), rel=1e-6)  # t_3 x .645497


def test_delete_group_means_leave_a_group_out_and_a_missing_value_in_its_row_alone():
    labels = np.array([0, 1, 1, 2])
    found = delete_group_means(np.array([[1.0, 2.0, 4.0, 9.0], [1.0, np.nan, 4.0, 9.0]]), labels, 3)
    assert found.tolist() == [[5.0, 6.5], [5.0, 5.0], [7 / 3, 2.5]]
    assert np.isnan(delete_group_means(np.ones((1, 3)), np.zeros(3, dtype=int), 2)[0, 0])
    with pytest.raises(ValueError, match="groups 0 to 2: expected 0 to 1"):
        delete_group_means(np.ones((1, 4)), labels, 2)


def test_concentration_of_weights_is_exact_and_adds_no_variance():
    alpha_b, alpha_a, angles, labels, alphas = sample()
    share = {"weight_share": np.arange(1.0, L + 1)}
    _, estimates = estimates_of(alpha_b, alpha_a, angles, labels, alphas, share)
    got = estimates["concentration"]
    assert (got.value, got.low, got.level, got.n) == (pytest.approx(GRADIENT), None, None, L)
    _, other = estimates_of(alpha_b, alpha_a, angles, labels, alphas, {"weight_share": np.ones(L)})
    assert other["score"].high - other["score"].low == pytest.approx(estimates["score"].high - estimates["score"].low)


def test_concentration_of_transport_moves_with_the_prompts():
    alpha_b, alpha_a, angles, labels, alphas = sample()
    found, estimates = estimates_of(alpha_b, alpha_a, angles, labels, alphas, {"gradient": "transport_share"})
    got = estimates["concentration"]
    assert got.low < found.concentration.value < got.high
    assert (got.n, got.unit) == (40, "")


def test_norms_of_pairs_add_their_own_variance_to_the_score():
    random = np.random.default_rng(3)
    norms = 1 + random.random((2, L))
    groups = norms[:, None] * (1 + 0.01 * random.normal(size=(2, 5, L)))
    options = {"gradient_base": norms[0], "gradient_aligned": norms[1]}
    _, held = estimates_of(*sample(), options, norm_groups=(groups[0] * 0 + norms[0], groups[1] * 0 + norms[1]))
    found, moved = estimates_of(*sample(), options, norm_groups=(groups[0], groups[1]), n_pairs=32)
    theta = groups[1][:, 20:].sum(1) / groups[1].sum(1) - groups[0][:, 20:].sum(1) / groups[0].sum(1)
    se = math.sqrt(4 / 5 * ((theta - theta.mean()) ** 2).sum())
    got = moved["concentration"]
    assert got.high - found.concentration.value == pytest.approx(2.776445 * se, rel=1e-5)  # 5 groups: t_4
    assert got.n == 32
    reach = [(e["score"].high - e["score"].low) / 2 / 2.776445 for e in (moved, held)]
    assert reach[0] ** 2 - reach[1] ** 2 == pytest.approx((se / 3) ** 2, rel=1e-5)
    assert "variance of G added" in moved["score"].method


def test_norms_of_pairs_without_groups_have_no_interval_and_neither_has_the_score():
    found, estimates = estimates_of(*sample(), NORMS)
    for name in ("concentration", "concentration_base", "score"):
        assert estimates[name].value == found.parts[name].value
        assert (estimates[name].low, estimates[name].reason) == (
            None, "the norms came without those of delete-group samples of pairs"
        )  # fmt: skip
    assert estimates["delta"].low is not None


def test_efficiency_has_an_interval_where_its_groups_are_given():
    groups = (np.array([0.5, 0.52, 0.48, 0.5, 0.5, 0.5, 0.5, 0.5]), np.full(8, 0.6))
    options = {"efficiency": (0.5, 0.6), "coherence": "efficiency"}
    _, estimates = estimates_of(*sample(), options, efficiency_groups=groups)
    assert estimates["coherence"] == estimates["efficiency"].model_copy(update={"label": estimates["coherence"].label})
    assert estimates["efficiency_base"].high - 0.5 == pytest.approx(2.364624 * math.sqrt(7 / 8 * 8e-4), rel=1e-5)
    _, bare = estimates_of(*sample(), options)
    assert (bare["coherence"].value, bare["coherence"].low) == (pytest.approx(0.1), None)
    assert "delete-group means" in bare["coherence"].reason


def test_without_groups_or_with_a_hole_in_one_there_are_values_and_a_reason():
    alpha_b, alpha_a, angles, labels, alphas = sample()
    share = {"weight_share": np.ones(L)}
    found, none = estimates_of(alpha_b, alpha_a, angles, labels, alphas[:, :0], share)
    assert none["delta"].value == found.delta.value
    assert (none["delta"].low, none["score"].reason) == (None, "fewer prompts than jackknife groups")
    alphas[1, 3, 25] = np.nan
    _, torn = estimates_of(alpha_b, alpha_a, angles, labels, alphas, share)
    assert torn["delta"].low is None
    assert "without one of the groups" in torn["score"].reason
    assert torn["coherence_base"].low is not None


def test_a_null_component_keeps_its_own_reason_in_the_estimates():
    alpha_b, alpha_a, angles, labels, alphas = sample()
    alpha_b[24] = np.nan
    found, estimates = estimates_of(alpha_b, alpha_a, angles, labels, alphas)
    for name in ("delta", "coherence", "score"):
        assert (estimates[name].value, estimates[name].reason) == (None, found.parts[name].reason)


def test_identical_models_have_intervals_of_no_width():
    alpha_b, _, angles, labels, alphas = sample()
    _, estimates = estimates_of(alpha_b, alpha_b, angles[[0, 0]], labels, alphas[[0, 0]])
    for name in ("delta", "coherence"):
        assert (estimates[name].value, estimates[name].low, estimates[name].high) == (0.0, 0.0, 0.0)


def test_every_estimate_is_marked_as_ours_and_names_its_groups():
    options = {"gradient_base": np.ones(L), "gradient_aligned": np.ones(L)}
    for more in (options, {"weight_share": np.ones(L)}, {}):
        _, estimates = estimates_of(*sample(), more)
        assert {"delta", "coherence", "concentration", "score", "coherence_base", "coherence_aligned"} <= {*estimates}
        assert all(estimate.reconstructed and NOT_COMPARABLE in estimate.method for estimate in estimates.values())
        for name in ("delta", "coherence", "score"):
            assert "8 random groups of prompts" in estimates[name].method
            assert "prompts outside it" in estimates[name].method


def test_groups_that_do_not_fit_are_refused():
    found, _ = estimates_of(*sample())
    count = {"n": 8, "n_clusters": 8}

    def curves(layers, groups=(8, 8)):
        return tuple(np.ones((g, layers)) for g in groups)

    with pytest.raises(ValueError, match="the same groups in both"):
        composite_estimates(found, alpha_groups=curves(L + 1, (8, 4)), angle_groups=curves(L, (8, 4)), **count)
    with pytest.raises(ValueError, match="and 30 steps"):
        composite_estimates(found, alpha_groups=curves(L), angle_groups=curves(L - 1), **count)
    with_norms = composite(*planted(), WINDOW, **NORMS)
    groups = {"alpha_groups": curves(L + 1), "angle_groups": curves(L), "norm_groups": curves(L, (5, 4))}
    with pytest.raises(ValueError, match="delete-group norms"):
        composite_estimates(with_norms, **groups, **count)


def test_intervals_of_delta_cover_the_truth():
    """200 samples of 64 prompts in 16 groups; exponents held. Binomial error .015."""
    alpha_b, angle_b, alpha_a, angle_a = (np.nan_to_num(curve) for curve in planted())
    random = np.random.default_rng(5)
    labels = np.arange(64) % 16
    covered = 0
    for _ in range(200):
        shared = 0.1 * random.normal(size=(L, 64))
        angles = np.stack([a[:, None] + shared + 0.05 * random.normal(size=(L, 64)) for a in (angle_b, angle_a)])
        alphas = np.broadcast_to(np.stack([alpha_b, alpha_a])[:, None], (2, 16, L + 1)).copy()
        got = estimates_of(alpha_b, alpha_a, angles, labels, alphas, {"delta": "raw"})[1]["delta"]
        covered += got.low <= 0.15 <= got.high
    assert 0.9 < covered / 200 <= 0.99
