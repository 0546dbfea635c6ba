"""The detected window: exact answers first, then what enters a profile, then planted changes and pure noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignscope.diagnose.spinal_window import (
    CHANCE,
    NO_LOCATION,
    LayerEffect,
    WindowFound,
    best_window,
    change_profile,
    detect_window,
    detected,
    jaccard,
)

L = 30
profiles = st.lists(st.floats(0, 10), min_size=5, max_size=14).map(np.array)


def naive(profile):
    """All runs, from the definition."""
    blocks, found = len(profile), {}
    for first in range(1, blocks + 1):
        for last in range(first + 2, blocks + 1):
            size = last - first + 1
            if size <= 2 * blocks / 3:
                found[first, last] = sum(profile[i - 1] - profile.mean() for i in range(first, last + 1)) / size**0.5
    return found


def test_a_block_of_ones_is_found_exactly():
    found = best_window(np.array([0.0] * 20 + [1.0] * 10))
    assert found.window == (21, 30)
    assert found.score == pytest.approx(10 * (1 - 1 / 3) / math.sqrt(10))  # 2.108185
    assert found.reconstructed


@settings(max_examples=60, deadline=None)
@given(profiles)
def test_the_window_is_the_best_of_all_runs(profile):
    scores, found = naive(profile), best_window(profile)
    top = max(scores.values())
    if found.window is None:
        assert top < 1e-9
    else:
        assert found.score == pytest.approx(top, abs=1e-9)
        assert scores[found.window] == pytest.approx(top, abs=1e-9)


def test_ties_go_to_the_earlier_then_to_the_shorter():
    assert best_window(np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0.0])).window == (1, 3)
    equal = np.array(
        [0.5, 0.5, 0.5, (2 / math.sqrt(3) - 1) * 1.5, 0.0, 0.0]
    )  # 1.5 / sqrt 3 = 1.5 (2 / sqrt 3) / sqrt 4
    equal[4:] = -equal.sum() / 2  # mean 0
    assert naive(equal)[1, 3] == pytest.approx(naive(equal)[1, 4], abs=1e-15)
    assert best_window(equal + 7.0).window == (1, 3)


@pytest.mark.parametrize(("blocks", "most"), [(5, 3), (6, 4), (12, 8), (30, 20), (31, 20)])
def test_a_window_has_three_blocks_to_two_thirds(blocks, most):
    wide = np.ones(blocks)
    wide[-1] = 0.0
    first, last = best_window(wide).window
    assert last - first + 1 == most
    narrow = np.zeros(blocks)
    narrow[1] = 1.0
    assert best_window(narrow).window == (1, 3)


def test_under_five_blocks_no_length_fits():
    assert best_window(np.array([0.0, 1.0, 5.0, 5.0])).reason == "4 blocks: detection needs 5"


@pytest.mark.parametrize("profile", [np.zeros(30), np.full(30, 0.1), np.array([9.0, 0.0, 0.0, 0.0, 9.0])])
def test_a_profile_in_which_no_run_stands_out_has_no_window(profile):
    found = best_window(profile)
    assert (found.window, found.score) == (None, None)
    assert found.reason == "no 3 neighbouring blocks stand out from the others"


def test_blocks_without_a_value_are_in_no_window_and_not_in_the_mean():
    profile = np.array([0.0, 0.0, 0.0, 0.0, 2.0, np.nan, 2.0, 2.0, 2.0, 0.0])
    found = best_window(profile)
    assert found.window == (7, 9)
    assert found.score == pytest.approx(3 * (2 - 8 / 9) / math.sqrt(3))
    nothing = best_window(np.full(8, np.nan))
    assert nothing.reason == "no 3 neighbouring blocks have a difference with a standard error"


@settings(max_examples=30, deadline=None)
@given(profiles, st.floats(-5, 5), st.floats(0.1, 10))
def test_level_and_unit_of_a_profile_do_not_matter(profile, level, unit):
    profile = np.round(profile)  # ties stay ties
    there, here = best_window(profile), best_window(unit * profile + level)
    assert (there.window is None) == (here.window is None)
    if there.window is not None:
        assert here.score == pytest.approx(unit * there.score)


# ---- what enters


def flat(value=1.0, blocks=6):
    return [np.full(blocks + 1, value), np.ones(blocks + 1), np.full(blocks, 2 * value), np.ones(blocks)]


def test_a_profile_adds_both_parts_in_standard_errors():
    d_alpha, se_alpha, d_angle, se_angle = flat()
    d_alpha[3], se_alpha[3], d_angle[3], se_angle[3] = -0.04, 0.02, 0.9, 0.3
    assert change_profile(d_alpha, se_alpha, d_angle, se_angle).tolist() == pytest.approx([3, 3, 5, 3, 3, 1])


def test_embeddings_and_step_0_do_not_enter():
    arguments = flat()
    for array in arguments:
        array[0] = np.nan
    assert change_profile(*arguments).tolist() == [3, 3, 3, 3, 3, 1]
    arguments[0][0], arguments[1][0] = 1e9, 1.0
    assert change_profile(*arguments).tolist() == [3, 3, 3, 3, 3, 1]


def test_the_last_block_has_no_step():
    d_alpha, se_alpha, d_angle, se_angle = flat()
    d_alpha[6] = 4.0
    assert change_profile(d_alpha, se_alpha, d_angle, se_angle)[5] == 4.0


@pytest.mark.parametrize("hole", [(0, np.nan), (1, np.nan), (1, 0.0)])
def test_a_layer_without_an_exponent_or_its_error_has_the_transport_part_alone(hole):
    arguments = flat()
    arguments[hole[0]][2] = hole[1]
    assert change_profile(*arguments).tolist() == [3, 2, 3, 3, 3, 1]


def test_without_any_exponent_the_last_block_has_nothing():
    arguments = flat()
    arguments[0][:] = np.nan
    profile = change_profile(*arguments)
    assert profile[:5].tolist() == [2] * 5
    assert math.isnan(profile[5])


def test_what_batching_may_move_counts_as_0():
    arguments = flat(blocks=6)
    arguments[0][2], arguments[1][2] = 0.9e-5, 1e-9
    assert change_profile(*arguments)[1] == 2.0
    zero = [np.zeros(7), np.zeros(7), np.zeros(6), np.zeros(6)]
    assert change_profile(*zero).tolist() == [0.0] * 6  # a model against itself


def test_bad_shapes_and_errors_are_refused():
    arguments = flat()
    with pytest.raises(ValueError, match="lengths 7, 7, 7, 7: expected L \\+ 1"):
        change_profile(arguments[0], arguments[1], np.ones(7), np.ones(7))
    arguments[1][2] = -1.0
    with pytest.raises(ValueError, match="standard errors are >= 0"):
        change_profile(*arguments)
    with pytest.raises(ValueError, match="profiles of 6 and 7 blocks"):
        detected(best_window(np.zeros(6)), best_window(np.zeros(7)), {}, n=(5, 5))


# ---- two halves


def found_at(window, blocks=L):
    return WindowFound(profile=np.zeros(blocks), window=window, score=1.0)


def effect(value, spread=0.0, over="blocks", groups=4):
    """The same value at every layer, delete-group values -1, 0, 0, 1 times `spread` about it."""
    layers = L + 1 if over == "blocks" else L
    moves = spread * np.array([-1.0, 0.0, 0.0, 1.0])[:groups, None]
    return LayerEffect(label="x", value=np.full(layers, value), groups=value + moves + np.zeros(layers), over=over)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((21, 30), (21, 30), 1.0), ((21, 30), (26, 30), 0.5), ((1, 3), (4, 6), 0.0), ((1, 4), (3, 6), 1 / 3)],
)
def test_jaccard(first, second, expected):
    assert jaccard(first, second) == jaccard(second, first) == pytest.approx(expected)


def test_an_overlap_of_half_is_stable_and_less_is_not():
    stable = detected(found_at((21, 30)), found_at((26, 30)), {}, n=(50, 50))
    assert (stable.stable, stable.blocks, stable.reason) == (True, (26, 30), None)
    loose = detected(found_at((21, 30)), found_at((27, 30)), {}, n=(50, 50))
    assert loose.overlap.value == pytest.approx(0.4)
    assert (loose.stable, loose.blocks, loose.reason) == (False, None, NO_LOCATION)


def test_an_effect_is_read_on_the_half_that_did_not_choose_the_window():
    layers = np.arange(L + 1.0)
    one = LayerEffect(label="x", value=layers, groups=np.tile(layers, (4, 1)), over="blocks")
    two = LayerEffect(label="x", value=-layers, groups=np.tile(-layers, (4, 1)), over="blocks")
    got = detected(found_at((21, 30)), found_at((1, 3)), {"x": (one, two)}, n=(50, 50)).effects["x"]
    assert got.value == (-25.5 + 2.0) / 2  # second half over 21..30, first half over 1..3
    assert "10 and 3 blocks" in got.method


def test_effects_on_steps_have_both_ends_in_the_window():
    steps = np.arange(float(L))
    half = LayerEffect(label="x", value=steps, groups=np.tile(steps, (4, 1)), over="steps")
    got = detected(found_at((21, 30)), found_at((21, 30)), {"x": (half, half)}, n=(50, 50)).effects["x"]
    assert got.value == 25.0  # steps 21..29


def test_variances_of_the_halves_add():
    halves = (effect(1.0, 0.3), effect(3.0, 0.4))
    got = detected(found_at((1, 3)), found_at((1, 3)), {"x": halves}, n=(50, 50)).effects["x"]
    se = [math.sqrt(3 / 4 * 2 * spread**2) for spread in (0.3, 0.4)]
    assert got.value == pytest.approx(2.0)
    assert got.high - got.value == pytest.approx(3.182446 * math.hypot(*se) / 2, rel=1e-6)  # 4 groups: t_3
    assert (got.n, got.n_clusters, got.reconstructed, got.null_value) == (100, 100, True, 0.0)


def test_layers_without_a_value_are_left_out_of_an_effect():
    half = effect(1.0, 0.1)
    half.value[2], half.groups[:, 2] = np.nan, np.nan
    got = detected(found_at((1, 3)), found_at((1, 3)), {"x": (half, effect(1.0, 0.1))}, n=(50, 50)).effects["x"]
    assert "3 and 2 blocks" in got.method
    assert got.low is not None
    half.value[:], half.groups[:] = np.nan, np.nan
    got = detected(found_at((1, 3)), found_at((1, 3)), {"x": (half, half)}, n=(50, 50)).effects["x"]
    assert (got.value, got.reason) == (None, "no layer of a window has a value")


def test_without_groups_there_is_a_value_and_a_reason():
    halves = (effect(1.0, groups=0), effect(3.0, groups=0))
    got = detected(found_at((1, 3)), found_at((1, 3)), {"x": halves}, n=(5, 5)).effects["x"]
    assert (got.value, got.low) == (2.0, None)
    assert "fewer prompts than groups" in got.reason


def test_a_half_without_a_window_leaves_everything_null_with_its_reason():
    nothing = best_window(np.zeros(L))
    got = detected(found_at((1, 3)), nothing, {"x": (effect(1.0), effect(1.0))}, n=(50, 50))
    reason = "half of the prompts: no 3 neighbouring blocks stand out from the others"
    assert (got.overlap.value, got.overlap.reason, got.reason) == (None, reason, reason)
    assert (got.effects["x"].value, got.effects["x"].reason) == (None, reason)
    assert got.blocks is None
    assert got.summary() == f"No window of change was detected: {reason}."


def test_the_table_says_what_either_half_found():
    first, second = best_window(np.array([0.0] * 20 + [1.0] * 10)), found_at((26, 30))
    table = detected(first, second, {}, n=(50, 50)).to_frame()
    assert table.layer.tolist() == list(range(1, L + 1))
    assert table.layer[table.in_first].tolist() == list(range(21, 31))
    assert table.layer[table.in_second].tolist() == list(range(26, 31))
    assert table.c_first.tolist() == first.profile.tolist()
    assert table.reconstructed.all()


def test_one_window_has_a_table_and_a_sentence():
    found = best_window(np.array([0.0] * 20 + [1.0] * 10))
    assert found.to_frame().layer[found.to_frame().in_window].tolist() == list(range(21, 31))
    assert found.summary() == "The change stands out most at blocks 21 to 30, on these prompts."
    nothing = best_window(np.zeros(3))
    assert not nothing.to_frame().in_window.any()
    assert nothing.summary() == "No window of change was detected: 3 blocks: detection needs 5."


def test_the_summary_gives_windows_effects_and_the_chance_of_it():
    stable = detected(found_at((21, 30)), found_at((26, 30)), {"x": (effect(1.0, 0.1),) * 2}, n=(50, 50)).summary()
    assert "blocks 21 to 30 and 26 to 30" in stable
    assert "both hold blocks 26 to 30" in stable
    assert "x 1 [" in stable
    assert CHANCE in stable
    loose = detected(found_at((21, 30)), found_at((1, 9)), {}, n=(50, 50)).summary()
    assert loose.endswith(f"overlap 0.00: {NO_LOCATION}.")


# ---- planted changes and noise


def noisy(random, shift, from_block=21):
    """One half: exponents and angles in units of their errors, neighbouring layers correlated, a shift from a block."""
    noise = random.normal(size=(2, L + 1))
    for layer in range(1, L + 1):
        noise[:, layer] = 0.5 * noise[:, layer - 1] + math.sqrt(0.75) * noise[:, layer]
    d_alpha, d_angle = noise[0].copy(), noise[1, :L].copy()
    d_alpha[from_block:] += shift
    d_angle[from_block:] -= shift
    return d_alpha, d_angle


def found_in(half):
    return detect_window(half[0], np.ones(L + 1), half[1], np.ones(L))


def test_a_change_planted_from_block_21_is_found_where_it_is():
    random = np.random.default_rng(0)
    overlaps = 0
    for _ in range(60):
        found = detected(found_in(noisy(random, 4.0)), found_in(noisy(random, 4.0)), {}, n=(50, 50))
        assert all(jaccard(half.window, (21, 30)) > 0 for half in (found.first, found.second))
        overlaps += found.stable
        assert found.blocks is None or found.blocks[0] >= 18
    assert overlaps >= 54


def test_windows_of_pure_noise_mostly_disagree():
    """About 10 % of runs overlap by half at 30 blocks; binomial error of 150 runs .025."""
    random = np.random.default_rng(1)
    runs = [detected(found_in(noisy(random, 0.0)), found_in(noisy(random, 0.0)), {}, n=(50, 50)) for _ in range(150)]
    assert 0.02 < np.mean([run.stable for run in runs]) < 0.2


def test_cross_fitted_intervals_cover_no_effect_and_reusing_a_half_would_not():
    """Detected and estimated on one half, |mean| in errors is too large; cross-fitted it is not.

    Layers share half their variance, so that a mean over many has an error. Groups: 16 delete-group values whose
    jackknife error is the true one.
    """
    random = np.random.default_rng(2)
    covered, t_cross, t_same = 0, [], []
    for _ in range(300):
        halves, effects = [], []
        for _ in range(2):
            rows = random.normal(size=(16, L + 1)) + random.normal(size=(16, 1))  # 16 groups of prompts
            mean = rows.mean(0)
            without = (rows.sum(0) - rows) / 15
            error = rows.std(0, ddof=1) / 4
            halves.append(best_window(np.abs(mean / error)[1:]))
            effects.append(LayerEffect(label="x", value=mean, groups=without, over="blocks"))
        got = detected(*halves, {"x": (effects[0], effects[1])}, n=(16, 16)).effects["x"]
        if got.value is None:
            continue
        covered += got.low <= 0 <= got.high
        own = [e.mean(h.window) for e, h in zip(effects, halves, strict=True)]
        t_same.append(np.mean([abs(value) / se for value, se, _ in own]))
        other = [e.mean(h.window) for e, h in zip(effects[::-1], halves, strict=True)]
        t_cross.append(np.mean([abs(value) / se for value, se, _ in other]))
    assert 0.91 < covered / len(t_same) <= 0.99
    assert np.mean(t_same) > np.mean(t_cross) + 0.1
