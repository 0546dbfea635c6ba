"""Change points of arrays: the page's exact answers first, then what must not change them, then noise and oracles."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import alignscope
from alignscope.diagnose.changepoints import (
    FALSE_ALARMS,
    RUNS,
    breakpoint_interval,
    broken_stick,
    cusum,
    cusum_sums,
    false_alarms,
    onset,
)

ROOT = Path(alignscope.__file__).parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # the benchmarks are no part of the package

from benchmarks.false_alarms import simulated  # noqa: E402

REFERENCE = [0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0]
Z = 3 / (1.4826 * 0.5)  # the first 3 after the reference: median 0, MAD 1/2
LATER = 3 / 1.4826  # the next ones: the MAD of 9, 10, 11 values is 1


def test_the_cusum_of_three_after_the_reference():
    found = cusum(np.array([*REFERENCE, 3.0, 3.0, 3.0, 3.0]))
    sums = [Z - 0.5, Z + LATER - 1.0, Z + 2 * LATER - 1.5, Z + 3 * LATER - 2.0]
    assert found.up[8:] == pytest.approx(sums, abs=1e-12)
    assert found.up[8:] == pytest.approx([3.5469, 5.0704, 6.5939, 8.1174], abs=5e-5)  # as the page prints them
    assert found.alarm is None
    assert found.reason is None
    assert (found.up[:8] == 0).all()
    assert np.isnan(found.z[:8]).all()


def test_one_ten_alarms_at_once():
    found = cusum(np.array([*REFERENCE, 10.0]))
    assert found.z[8] == pytest.approx(10 / (1.4826 * 0.5), abs=1e-12)  # 13.490
    assert (found.rise, found.fall, found.alarm) == (8, None, 8)


def test_drops_are_the_mirror_of_rises():
    increments = np.array([*REFERENCE, 3.0, -20.0, 2.0])
    found, mirrored = cusum(increments), cusum(-increments)
    assert mirrored.down.tolist() == found.up.tolist()
    assert mirrored.up.tolist() == found.down.tolist()
    assert (mirrored.rise, mirrored.fall) == (found.fall, found.rise) == (9, None)


@pytest.mark.parametrize("n", [0, 1, 5, 8])
def test_fewer_than_nine_increments_have_no_answer_and_say_how_many_there_are(n):
    found = cusum(np.arange(n, dtype=float) ** 3)
    assert found.reason == f"too few checkpoints: {n} increments, 9 needed"
    assert found.alarm is None


def test_nine_increments_have_an_answer():
    assert cusum(np.zeros(9)).reason is None


def test_a_series_that_never_moves_has_z_0():
    found = cusum(np.zeros(40))
    assert (found.z[8:] == 0).all()
    assert found.alarm is None


def test_a_move_where_nothing_had_moved_is_infinite_and_alarms():
    found = cusum(np.array([*[0.0] * 8, 0.25, -0.25, 0.0]))
    assert found.z[8] == np.inf
    assert found.z[9] == -np.inf
    assert found.up.tolist()[8:] == [np.inf, 0.0, 0.0]  # an endless drop empties the sum of rises
    assert found.alarm == 8


def test_increments_that_differ_by_rounding_are_equal():
    increments = np.diff(np.cumsum(np.full(30, 0.001)))
    assert len(set(increments.tolist())) > 1
    assert (cusum(increments).z[8:] == 0).all()


def test_an_increment_within_its_own_error_is_no_alarm():
    increments = np.array([*[0.0] * 8, 0.25])
    se = np.full(9, 0.125)
    assert cusum(increments, se).z[8] == 2.0
    assert cusum(increments, se).alarm is None


def test_the_larger_of_spread_and_own_error_counts():
    increments = np.array([*REFERENCE, 10.0])
    assert cusum(increments, np.full(9, 5.0)).z[8] == 2.0
    assert cusum(increments, np.full(9, 0.01)).z[8] == cusum(increments).z[8]


def test_only_the_error_of_the_increment_itself_counts():
    se = np.full(9, 100.0)
    se[8] = 0.0
    assert cusum(np.array([*REFERENCE, 10.0]), se).alarm == 8


@given(
    st.lists(st.integers(-20, 20), min_size=9, max_size=20),
    st.sampled_from([0.25, 2.0, 1024.0]),
    st.integers(-5, 5),
)
@settings(max_examples=60, deadline=None)
def test_unit_and_level_of_the_increments_do_not_matter(values, scale, shift):
    increments = np.array(values, dtype=float)
    found, other = cusum(increments), cusum(scale * (increments + shift))
    assert other.up == pytest.approx(found.up)
    assert other.down == pytest.approx(found.down)


@given(st.lists(st.floats(-5, 5), min_size=10, max_size=25))
@settings(max_examples=60, deadline=None)
def test_later_increments_do_not_change_earlier_sums(values):
    increments = np.array(values)
    assert cusum(increments[:-1]).up.tolist() == cusum(increments).up.tolist()[:-1]


def test_a_naive_loop_gives_the_same_sums():
    random = np.random.default_rng(5)
    increments, se = random.standard_t(3, size=30), random.uniform(0, 2, size=30)
    up = down = 0.0
    rises, drops = [], []
    for i in range(8, 30):
        earlier = sorted(increments[:i].tolist())
        middle = (earlier[(i - 1) // 2] + earlier[i // 2]) / 2
        off = sorted(abs(x - middle) for x in earlier)
        z = (increments[i] - middle) / max(1.4826 * (off[(i - 1) // 2] + off[i // 2]) / 2, se[i])
        up, down = max(0.0, up + z - 0.5), max(0.0, down - z - 0.5)
        rises.append(up)
        drops.append(down)
    found = cusum(increments, se)
    assert found.up[8:] == pytest.approx(rises)
    assert found.down[8:] == pytest.approx(drops)


def test_series_taken_together_give_what_each_gives_alone():
    increments = np.random.default_rng(2).normal(size=(5, 15))
    _, up, down = cusum_sums(increments, np.zeros_like(increments))
    for i, row in enumerate(increments):
        assert up[i].tolist() == cusum(row).up.tolist()
        assert down[i].tolist() == cusum(row).down.tolist()


@pytest.mark.parametrize(
    ("increments", "se"),
    [([np.nan] * 9, None), ([np.inf] * 9, None), ([0.0] * 9, [-1.0] * 9), ([0.0] * 9, [np.nan] * 9)],
)
def test_values_that_are_no_increments_are_refused(increments, se):
    with pytest.raises(ValueError, match="finite"):
        cusum(np.array(increments), None if se is None else np.array(se))


def test_the_false_alarms_of_noise_are_those_of_the_table():
    """20,000 other series of noise: within 4 standard errors of the table's share."""
    for n in (12, 20):
        share = FALSE_ALARMS[n] / RUNS
        found = simulated(20_000, n, seed=1_000)[0] / 20_000
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) * (1 / 20_000 + 1 / RUNS))


@pytest.mark.parametrize(("n", "page"), [(12, 0.010), (20, 0.036), (40, 0.054)])
def test_the_table_is_near_the_page(n, page):
    assert false_alarms(n).rate == pytest.approx(page, abs=0.004)  # the page's own simulation is of unknown size


def test_false_alarms_between_simulated_lengths_lie_on_a_line():
    low, high = FALSE_ALARMS[12], FALSE_ALARMS[14]
    assert false_alarms(13).rate == pytest.approx((low + high) / 2 / RUNS)
    assert false_alarms(12).rate == low / RUNS
    assert false_alarms(12).low < low / RUNS < false_alarms(12).high
    assert all(a < b for a, b in pairwise(FALSE_ALARMS.values()))


@pytest.mark.parametrize("n", [0, 8, 101])
def test_lengths_that_were_not_simulated_have_no_rate(n):
    assert false_alarms(n) is None


STEPS = np.array([0.0, 10, 20, 30, 40, 50])
UP, DOWN = np.array([0.0, 1, 1, 1, 1, 1]), np.array([0.0, 1, 1, -1, -1, -1])


def answer(p, change=UP):
    return onset(np.array(p), change, steps=STEPS, level=0.025)


def test_an_onset_lies_between_the_last_quiet_save_and_the_first_of_two_significant_ones():
    found = answer([np.nan, 0.5, 0.5, 0.01, 0.01, 0.5])
    assert (found.answer, found.last_quiet, found.first_significant, found.direction) == ("interval", 20.0, 30.0, 1)
    assert found.seen


def test_a_single_significant_save_is_no_onset():
    assert answer([np.nan, 0.01, 0.5, 0.01, 0.5, 0.5]).answer == "not seen"


def test_the_first_save_after_the_start_significant_is_an_onset_before_it():
    found = answer([np.nan, 0.01, 0.01, 0.5, 0.5, 0.5])
    assert (found.answer, found.last_quiet, found.first_significant) == ("before the first save", 0.0, 10.0)


def test_the_last_save_alone_is_not_confirmed():
    found = answer([np.nan, 0.5, 0.5, 0.5, 0.5, 0.01])
    assert found.answer == "at the last save only: not confirmed"
    assert not found.seen
    assert found.first_significant == 50.0


def test_two_saves_in_opposite_directions_confirm_nothing():
    assert answer([np.nan, 0.5, 0.01, 0.01, 0.5, 0.5], DOWN).answer == "not seen"


def test_a_significant_save_of_the_other_direction_is_not_quiet():
    found = answer([np.nan, 0.5, 0.01, 0.01, 0.01, 0.5], DOWN)
    assert (found.last_quiet, found.first_significant, found.direction) == (10.0, 30.0, -1)


def test_p_at_the_level_is_not_significant():
    assert answer([np.nan, 0.025, 0.025, 0.5, 0.5, 0.5]).answer == "not seen"


def test_nothing_significant_is_not_seen():
    found = answer([np.nan, 1.0, 1.0, 1.0, 1.0, 1.0], np.zeros(6))
    assert (found.answer, found.last_quiet, found.first_significant) == ("not seen", None, None)


@pytest.mark.parametrize("p", [[np.nan, np.nan], [np.nan, 1.5], [np.nan]])
def test_an_onset_needs_probabilities(p):
    with pytest.raises(ValueError, match=r"p-values|a save after it"):
        onset(np.array(p), np.ones(len(p)), steps=np.arange(len(p), dtype=float), level=0.025)


@pytest.mark.parametrize("at", [1.0, 2.5, 3.0, 4.9, 6.0])
def test_a_stick_is_broken_where_it_was_broken(at):
    x = np.arange(8.0)
    y = 1.0 + 0.5 * x - 2.0 * np.maximum(x - at, 0.0)
    assert broken_stick(x, y[None])[0] == pytest.approx(at, abs=1e-9)


@pytest.mark.parametrize("y", [np.zeros(8), np.full(8, 3.0), 2.0 - 0.1 * np.arange(8.0)])
def test_a_straight_stick_has_no_break(y):
    assert np.isnan(broken_stick(np.arange(8.0), y[None])[0])


def test_unevenly_spaced_large_steps_are_no_trouble():
    x = np.array([0.0, 1e5, 1.1e6, 2e6, 2.2e6, 4e6, 7e6, 9e6])
    y = np.maximum(x - 2.1e6, 0.0) * 1e-9
    assert broken_stick(x, y[None])[0] == pytest.approx(2.1e6)


def test_the_break_of_noise_is_the_best_of_a_fine_search():
    random = np.random.default_rng(11)
    x = np.cumsum(random.uniform(0.5, 2.0, size=9))

    def squares(at: float, y: np.ndarray) -> float:
        basis = np.stack([np.ones(9), x, np.maximum(x - at, 0.0)], axis=1)
        return float(((y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0]) ** 2).sum())

    for y in random.normal(size=(8, 9)):
        found = broken_stick(x, y[None])[0]
        ends = list(pairwise(x[1:-1]))
        best = min(
            (
                minimize_scalar(squares, bounds=pair, args=(y,), method="bounded", options={"xatol": 1e-9})
                for pair in ends
            ),
            key=lambda result: result.fun,
        )
        assert squares(found, y) <= best.fun + 1e-9


def test_a_stick_needs_four_points_at_rising_x():
    with pytest.raises(ValueError, match="4 or more"):
        broken_stick(np.arange(3.0), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="rising x"):
        broken_stick(np.array([0.0, 1.0, 1.0, 2.0]), np.zeros((1, 4)))


def curves(n: int, at: float, seed: int = 4) -> np.ndarray:
    """Curves of 10 saves that rise from `at` on, each prompt with its own slope and noise."""
    random = np.random.default_rng(seed)
    rise = np.maximum(np.arange(10.0) - at, 0.0)[:, None] * random.uniform(0.5, 1.5, n)
    return rise + 0.1 * random.normal(size=(10, n))


def test_intervals_of_a_break_hold_it():
    """40 sets of 60 prompts: 33 or more are expected of intervals of 95 % (89 of 100 found, a little under 95)."""
    found = [
        breakpoint_interval(np.arange(10.0), curves(60, 4.3, seed), np.arange(60), draws=300) for seed in range(40)
    ]
    assert sum(stick.low < 4.3 < stick.high for stick in found) >= 33
    assert max(stick.high - stick.low for stick in found) < 0.1
    assert {stick.n_clusters for stick in found} == {60}


def test_prompts_repeated_within_their_clusters_leave_the_interval_as_it_is():
    values = curves(40, 4.3)
    once = breakpoint_interval(np.arange(10.0), values, np.arange(40))
    twice = breakpoint_interval(np.arange(10.0), np.repeat(values, 2, axis=1), np.repeat(np.arange(40), 2))
    assert (twice.step, twice.low, twice.high) == pytest.approx((once.step, once.low, once.high))


def test_a_break_says_why_it_or_its_interval_is_missing():
    steps = np.arange(10.0)
    assert (
        breakpoint_interval(steps[:7], curves(30, 4.0)[:7], np.arange(30)).reason == "7 saves: a broken stick needs 8"
    )
    assert "straight line" in breakpoint_interval(steps, np.zeros((10, 30)), np.arange(30)).reason
    few = breakpoint_interval(steps, curves(10, 4.0), np.arange(10))
    assert few.step is not None
    assert (few.low, few.reason) == (None, "10 clusters (prompts): an interval needs 20")
