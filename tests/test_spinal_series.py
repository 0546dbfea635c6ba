"""A series of saves: identical ones say nothing, planted changes are found at their save, rules name their step."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from series_samples import BLOCKS, PROMPTS, distances, moved, path, start

import alignscope
from alignscope import InputError
from alignscope.diagnose.spinal_compare import compare_spinal
from alignscope.diagnose.spinal_reading import layer_pairs
from alignscope.diagnose.spinal_series import HeldOut, SeriesDistances, spinal_series, together
from alignscope.diagnose.spinal_series_rules import against_best, entropy_alarms, loss_alarms, speed_alarms
from alignscope.diagnose.spinal_series_signals import Signals, increments_of, read_signals, trajectory_table
from alignscope.diagnose.spinal_trace import jackknife_se

STEPS = [100 * i for i in range(12)]


@pytest.fixture(scope="module")
def base():
    return start()


@pytest.fixture(scope="module")
def jump(base):
    """Increments of .001 +-.0003 rad, the one of save 10 .014 robust SDs larger than the median."""
    random = np.random.default_rng(2)
    steps = 0.001 + 0.0003 * random.normal(size=11)
    earlier = steps[:9]
    middle = np.median(earlier)
    steps[9] = middle + 14 * 1.4826 * np.median(np.abs(earlier - middle))
    angles = [0.0, *np.cumsum(steps).tolist()]
    return [moved(base, f"step_{i}", angle=shift) for i, shift in enumerate(angles)]


def same(base, n: int = 12):
    """n saves of one model, traced apart: the readings differ by round-off."""
    return [
        replace(moved(base, f"step_{i}", angle=1e-7 * (i % 3)), model=replace(base.model, name=f"step_{i}"))
        for i in range(n)
    ]


def of(series, letter: str) -> pd.DataFrame:
    return series.trajectory[series.trajectory.signal == letter].reset_index(drop=True)


def test_twelve_identical_checkpoints_have_no_onset_and_no_alarm(base):
    nothing = np.zeros((11, BLOCKS + 1, PROMPTS))
    series = spinal_series(same(base), steps=STEPS, distances=SeriesDistances(to_first=nothing, to_previous=nothing))
    assert series.alarms == ()
    assert {answer.answer for letter, answer in series.onsets.items() if letter != "E"} == {"not seen"}
    assert series.onset.answer == "not seen"
    assert (series.trajectory.change.dropna() == 0).all()
    assert {sums.alarm for sums in series.cusums.values()} == {None}
    assert [sums.reason for sums in series.cusums.values()] == [None] * 4
    assert "identical weights" in series.warnings[0]
    assert "No rule for a broken run fired" in series.summary()


def test_weights_that_differ_by_round_off_have_no_onset_and_no_alarm(base):
    """A paired test finds a shift of 3e-6 that has one sign: what batching may move is not tested."""
    saves = [moved(base, f"step_{i}", angle=3e-6 if i >= 9 else 0.0, noise=i + 1) for i in range(12)]
    series = spinal_series(saves, steps=STEPS)
    assert series.alarms == ()
    assert not series.onset.seen


def test_a_jump_of_14_robust_sds_alarms_at_that_save(jump):
    series = spinal_series(jump, steps=STEPS)
    assert [(alarm.rule, alarm.signal, alarm.step) for alarm in series.alarms] == [("cusum", "T", 1000.0)]
    assert series.cusums["T"].z[9] == pytest.approx(14.0, rel=1e-6)
    assert series.section().findings[0].severity == "alarm"
    assert "At step 1000 transport" in series.section().findings[0].sentence
    assert series.estimates["first_alarm"].value == 1000.0
    assert of(series, "T").alarm.iloc[10] == "cusum"


def test_the_rate_of_false_alarms_stands_beside_the_rule(jump):
    series = spinal_series(jump, steps=STEPS)
    rate = series.estimates["false_alarm_rate"]
    assert rate.low < rate.value < rate.high
    assert rate.n == 100_000
    assert f"Of series of 11 increments of noise alone {100 * rate.value:.1f} % alarm" in series.alarms[0].sentence


def test_increments_are_a_training_step_not_a_save(base):
    """Uneven saves of a steady drift: the increments are equal, though the changes are not."""
    steps = [0, 1, 3, 4, 10, 11, 13, 20, 21, 30, 70]
    saves = [moved(base, f"step_{step}", angle=0.001 * step) for step in steps]
    series = spinal_series(saves, steps=steps)
    assert series.alarms == ()
    assert series.cusums["T"].z[9] == pytest.approx(0.0, abs=1e-6)


def test_increments_of_the_exponent_have_their_jackknife_error_a_training_step():
    value = np.array([0.5, 0.7, 0.7 + 5e-6])  # the last one moved less than batching may
    groups = value[:, None] + np.random.default_rng(0).normal(size=(3, 16))
    signals = Signals(by_prompt={}, by_sample={"A": (value, groups)}, missing={})
    found = increments_of(signals, "A", steps=np.array([0.0, 10.0, 14.0]), clusters=np.arange(20), seed=0)
    assert found.value.tolist() == pytest.approx([0.02, 0.0])
    errors = [float(jackknife_se(groups[i + 1] - groups[i])) for i in range(2)]
    assert found.se.tolist() == pytest.approx([errors[0] / 10, errors[1] / 4])


def test_an_onset_lies_between_the_saves_around_it(base):
    series = spinal_series(path(base, [0.0, 0.0, 0.0, 0.05, 0.06, 0.07]), steps=[0, 5, 10, 20, 40, 80])
    assert (series.onset.answer, series.onset.last_quiet, series.onset.first_significant) == ("interval", 10.0, 20.0)
    assert series.onsets["T"] == series.onset
    assert series.onsets["H"].answer == "not seen"
    shown = series.estimates["onset_transport"]
    assert (shown.low, shown.value, shown.high, shown.level) == (10.0, 20.0, 20.0, None)
    assert "transport a step rose between steps 10 and 20" in series.summary()
    assert "Weight noise of the same size may move these signals too" in series.section().findings[-1].sentence


def test_a_drop_of_entropy_is_an_onset_downwards(base):
    saves = [moved(base, f"step_{i}", entropy=-0.1 * (i > 1), noise=i + 1) for i in range(4)]
    found = spinal_series(saves, steps=[0, 1, 2, 3]).onsets["H"]
    assert (found.direction, found.last_quiet, found.first_significant) == (-1, 1.0, 2.0)


def test_the_last_save_alone_is_not_confirmed(base):
    series = spinal_series(path(base, [0.0, 0.0, 0.0, 0.05]), steps=[0, 1, 2, 3])
    assert series.onset.answer == "at the last save only: not confirmed"
    assert series.estimates["onset"].value is None
    assert series.estimates["onset"].reason == "at the last save only: not confirmed (step 3)"


def test_a_change_of_spectrum_is_an_onset_of_the_exponent(base):
    steeper = start(slope=1.4)
    saves = [moved(trace, f"step_{i}") for i, trace in enumerate((base, base, steeper, steeper))]
    series = spinal_series(saves, steps=[0, 1, 2, 3])
    assert (series.onsets["A"].last_quiet, series.onsets["A"].first_significant) == (1.0, 2.0)
    assert series.onsets["A"].direction == 1
    assert of(series, "R").change.iloc[-1] < 0


def test_the_noise_control_is_printed_beside_the_onset(base):
    series = spinal_series(path(base, [0.0, 0.05, 0.06]), steps=[0, 1, 2], noise={"transport": 0.045})
    assert "Noise of the weights alone moves: transport by 0.045." in series.section().findings[-1].sentence
    with pytest.raises(InputError, match="'angle' is no quantity"):
        spinal_series(path(base, [0.0, 0.05]), steps=[0, 1], noise={"angle": 0.1})


def test_last_changes_are_those_of_a_comparison(base):
    saves = [*path(base, [0.0, 0.02]), moved(start(slope=1.4), "step_2", angle=0.05, entropy=-0.3, noise=2)]
    series = spinal_series(saves, steps=[0, 1, 2])
    pair = compare_spinal(saves[0], saves[2], controls=())
    for ours, theirs in (("d_alpha", "d_alpha"), ("d_transport", "d_transport"), ("d_entropy", "d_entropy")):
        found, expected = series.estimates[ours], pair.estimates[f"{theirs}_terminal"]
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
        assert found.n == expected.n == PROMPTS


def test_values_over_the_window_are_means_of_the_traces_own_tables(base):
    saves = path(base, [0.0, 0.02, 0.05])
    series = spinal_series(saves, steps=[0, 1, 2])
    assert series.window == (4, 6)
    blocks = base.layers.query("4 <= layer <= 6")
    assert of(series, "H").value.iloc[0] == pytest.approx(blocks.entropy.mean())
    assert of(series, "R").value.iloc[0] == pytest.approx(blocks.rankme.mean())
    assert of(series, "A").value.iloc[0] == pytest.approx(blocks.alpha.mean())
    assert of(series, "T").value.iloc[0] == pytest.approx(base.steps.query("4 <= layer <= 5").angle.mean())


def test_distance_and_speed_are_means_over_the_window_a_training_step(base):
    given = distances([0.1, 0.4])
    series = spinal_series(path(base, [0.0, 0.1, 0.2]), steps=[0, 5, 20], distances=given)
    window = slice(4, 7)
    assert of(series, "D").value.tolist() == pytest.approx([0.0, *given.to_first[:, window].mean((1, 2))])
    speeds = given.to_previous[:, window].mean((1, 2)) / [5, 15]
    assert of(series, "v").value.tolist()[1:] == pytest.approx(speeds.tolist())
    assert math.isnan(of(series, "v").value.iloc[0])
    assert of(series, "v").reason.iloc[0] == "no save before it"


def test_without_distances_d_and_v_are_null_with_their_reason(base):
    series = spinal_series(path(base, [0.0, 0.1]), steps=[0, 1])
    for letter, name in (("D", "base_distance"), ("v", "speed")):
        assert of(series, letter).value.isna().all()
        assert series.estimates[name].reason == "models not given"
    assert series.cusums["v"] == "models not given"
    assert series.estimates["d_efficiency"].value is None


def test_fewer_than_nine_increments_leave_the_cusum_without_an_answer(base):
    series = spinal_series(path(base, [0.0, 0.1, 0.2, 0.3, 0.4, 5.0]), steps=[0, 6, 12, 25, 50, 100])
    assert series.cusums["T"].reason == "too few checkpoints: 5 increments, 9 needed"
    for name in ("cusum_transport", "cusum_alpha", "cusum_entropy", "false_alarm_rate"):
        assert series.estimates[name].reason == "too few checkpoints: 5 increments, 9 needed"
    assert "too few checkpoints" in series.summary()


def test_from_eight_saves_a_broken_stick_finds_the_bend(base):
    angles = [0.02 * max(i - 4.5, 0.0) for i in range(10)]
    series = spinal_series(path(base, angles), steps=[10 * i for i in range(10)])
    found = series.estimates["break_transport"]
    assert found.low <= 45.0 <= found.high
    assert found.value == pytest.approx(45.0, abs=1.0)
    short = spinal_series(path(base, angles[:7]), steps=list(range(7))).estimates["break_transport"]
    assert short.reason == "7 saves: a broken stick needs 8"


SPEED = [math.nan, 1.0, 1.2, 0.8, 4.9, 5.1]


def test_a_speed_above_five_times_the_running_median_names_its_step():
    found = speed_alarms(np.array(SPEED), np.arange(6.0) * 10)
    assert [(alarm.step, alarm.later) for alarm in found] == []  # 5.1 is under 5 x median(1, 1.2, .8, 4.9) = 5.5
    found = speed_alarms(np.array([*SPEED[:4], 5.1, 7.0]), np.arange(6.0) * 10)
    assert [(alarm.step, alarm.later) for alarm in found] == [(40.0, (50.0,))]
    assert "At step 40 the read-out moved 5.1 rad a training step" in found[0].sentence


def test_a_speed_needs_a_pace_to_be_held_against():
    assert speed_alarms(np.array([math.nan, 1.0, 1.0, 9.0]), np.arange(4.0)) == []  # two earlier ones
    assert speed_alarms(np.array([math.nan, 0.0, 0.0, 0.0, 9.0]), np.arange(5.0)) == []  # training had not begun


def test_entropy_under_half_of_the_start_names_its_step():
    assert entropy_alarms(np.array([4.0, 3.0, 2.0]), np.arange(3.0)) == []  # half is not under half
    found = entropy_alarms(np.array([4.0, 1.9, 3.0, 1.5]), np.array([0.0, 7.0, 8.0, 9.0]))
    assert [(alarm.step, alarm.later) for alarm in found] == [(7.0, (9.0,))]


def test_the_plain_rules_run_in_a_series(base):
    saves = [*path(base, [0.0, 0.01, 0.02, 0.03]), moved(base, "step_4", angle=0.1, entropy=-2.2)]
    series = spinal_series(saves, steps=[0, 1, 2, 3, 4], distances=distances([0.1, 0.2, 0.3, 1.5]))
    assert {(alarm.rule, alarm.step) for alarm in series.alarms} == {("entropy_halved", 4.0), ("speed", 4.0)}
    for alarm in series.alarms:
        assert all(name in series.estimates for name in alarm.rests_on)


def losses(*means: float, n: int = 100) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.array(means)[:, None] + 0.05 * random.normal(size=(len(means), n))


def test_a_loss_above_the_best_earlier_save_is_held_against_that_save():
    found = against_best(losses(0.7, 0.5, 0.6, 0.4), np.arange(100), lower=True, seed=0)
    assert found.best == (0, 1, 1)
    alarms = loss_alarms(found, np.array([0.0, 10.0, 20.0, 30.0]))
    assert [(alarm.step, alarm.later) for alarm in alarms] == [(20.0, ())]
    assert "above the best save before it (step 10)" in alarms[0].sentence


def test_a_loss_whose_interval_holds_0_is_no_alarm():
    noisy = losses(0.7, 0.7) + np.random.default_rng(3).normal(size=(2, 100))
    found = against_best(noisy, np.arange(100), lower=True, seed=0)
    assert found.boot.low[0] < 0 < found.boot.high[0]
    assert loss_alarms(found, np.array([0.0, 1.0])) == []


def test_pairs_of_few_prompts_give_no_alarm():
    assert loss_alarms(against_best(losses(0.1, 9.0), np.arange(100) // 10, lower=True, seed=0), np.arange(2.0)) == []


def held(accuracy: list[float]) -> HeldOut:
    return HeldOut(clusters=np.arange(100), ranking_accuracy=(np.arange(100) < 100 * np.array(accuracy)[:, None]) * 1.0)


def test_accuracy_that_falls_while_the_read_out_moves_away_is_an_alarm(base):
    saves = path(base, [0.0, 0.01, 0.02])
    found = spinal_series(saves, steps=[0, 1, 2], distances=distances([0.1, 0.3]), held_out=held([0.5, 0.7, 0.5]))
    assert [(alarm.rule, alarm.step) for alarm in found.alarms] == [("accuracy_falls", 2.0)]
    assert "(step 1)" in found.alarms[0].sentence
    assert found.estimates["ranking_accuracy_below_best"].value == pytest.approx(-0.2)
    assert of(found, "D").alarm.iloc[2] == "accuracy_falls"


@pytest.mark.parametrize(("accuracy", "sizes"), [([0.5, 0.7, 0.5], [0.3, 0.1]), ([0.5, 0.7, 0.7], [0.1, 0.3])])
def test_accuracy_alone_or_distance_alone_is_no_alarm(base, accuracy, sizes):
    saves = path(base, [0.0, 0.01, 0.02])
    found = spinal_series(saves, steps=[0, 1, 2], distances=distances(sizes), held_out=held(accuracy))
    assert found.alarms == ()


def test_the_real_ladder_alarms_on_dpo_loss_at_step_100_and_has_too_few_saves_for_a_cusum(base, ladder):
    rows = [[json.loads(line) for line in _lines(ladder, step)] for step in LADDER[1:]]
    margins = np.array([[_margin(row) for row in save] for save in rows])
    loss = np.logaddexp(0.0, -np.vstack([np.zeros((1, margins.shape[1])), margins]))
    assert loss.mean(1) == pytest.approx([math.log(2), 0.691, 0.683, 0.668, 0.663, 0.895], abs=5e-4)  # its README
    held_out = HeldOut(clusters=np.array([row["id"] for row in rows[0]]), dpo_loss=loss)
    series = spinal_series(path(base, [0.001 * i for i in range(6)]), steps=LADDER, held_out=held_out)
    assert [(alarm.rule, alarm.step, alarm.later) for alarm in series.alarms] == [("loss_above_best", 100.0, ())]
    assert series.estimates["dpo_loss_above_best"].low > 0
    assert series.estimates["cusum_transport"].reason == "too few checkpoints: 5 increments, 9 needed"


LADDER = [0, 6, 12, 25, 50, 100]


def _lines(ladder: Path, step: int) -> list[str]:
    return (ladder / f"scores_dpo_step_{step:03d}.jsonl").read_text(encoding="utf-8").splitlines()


def _margin(row: dict) -> float:
    chosen, rejected = (row[f"logp_{side}"] - row[f"ref_logp_{side}"] for side in ("chosen", "rejected"))
    return 0.1 * (chosen - rejected)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([0, 1, 1], "steps: 1 stands twice"),
        ([0, 2, 1], "steps: 1 comes after 2"),
        ([0, 1], "2 steps for 3 traces"),
        ([0, 1, math.nan], "steps: nan is no number"),
        ([0, 1, "2"], "steps: '2' is no number"),
        ([0, 1, True], "steps: True is no number"),
    ],
)
def test_steps_that_do_not_rise_are_refused_by_name(base, steps, message):
    with pytest.raises(InputError, match=message):
        spinal_series(path(base, [0.0, 0.1, 0.2]), steps=steps)


def test_steps_may_be_an_array(base):
    assert spinal_series(path(base, [0.0, 0.1]), steps=np.array([3, 9])).steps == (3.0, 9.0)


def test_a_series_needs_two_traces_of_the_same_prompts(base):
    with pytest.raises(InputError, match="two or more saves"):
        spinal_series([base], steps=[0])
    with pytest.raises(InputError, match="prompts 60 in"):
        spinal_series([base, start(50)], steps=[0, 1])


def test_arrays_of_another_shape_are_refused(base):
    saves = path(base, [0.0, 0.1, 0.2])
    with pytest.raises(InputError, match=r"distances.to_first: \(1, 7, 60\) given.*\(2, 7, 60\)"):
        spinal_series(saves, steps=[0, 1, 2], distances=distances([0.1]))
    with pytest.raises(InputError, match=r"held_out.ranking_accuracy: \(2, 100\) given.*\(3, 100\)"):
        spinal_series(saves, steps=[0, 1, 2], held_out=held([0.5, 0.5]))


def test_a_prompt_lost_in_one_save_goes_in_all(base):
    saves = path(base, [0.0, 0.1, 0.2])
    kept = np.ones(PROMPTS, bool)
    kept[3] = False
    found, _ = together([saves[0], saves[1].restricted(kept), saves[2]])
    assert {trace.n for trace in found} == {PROMPTS - 1}
    series = spinal_series([saves[0], saves[1].restricted(kept), saves[2]], steps=[0, 1, 2])
    assert set(series.trajectory[series.trajectory.signal == "T"].n) == {PROMPTS - 1}


def test_few_prompts_are_said_not_to_be_tested():
    series = spinal_series(path(start(6), [0.0, 0.1, 0.2]), steps=[0, 1, 2])
    assert series.onsets["T"].reason == "too few prompts to test (6 clusters; 7 needed)"
    assert series.estimates["d_transport"].low is None
    assert series.estimates["d_alpha"].reason.startswith("no layer of the window has an exponent")
    assert "could not be tested" in series.summary()


def test_one_block_as_window_has_no_transport_and_says_so(base):
    series = spinal_series(path(base, [0.0, 0.1]), steps=[0, 1], terminal="last_1")
    assert series.estimates["d_transport"].reason == "one block as window: no step inside it"


def test_an_efficiency_of_the_traces_is_taken_in(base):
    """Later traces hold one; prompts without it count as unchanged in the test and are left out of the mean."""
    efficiency = np.full(PROMPTS, 0.6)
    efficiency[:5] = np.nan  # as of a path too short to have one
    saves = path(base, [0.0, 0.0, 0.0])
    found = read_signals(
        [_with_efficiency(trace, efficiency - 0.1 * i) for i, trace in enumerate(saves)],
        steps=np.arange(3.0),
        window=(4, 6),
        distances=None,
    )
    assert np.nanmean(found.by_prompt["E"], axis=1) == pytest.approx([0.6, 0.5, 0.4])
    assert "E" not in found.missing


def test_prompts_without_an_efficiency_neither_hide_nor_make_a_change():
    """A NaN in the test would spoil the whole family; as 0 it leaves the sign flips exact."""
    random = np.random.default_rng(0)
    flat = np.full((3, 30), 4.0)
    efficiency = 0.6 - 0.1 * np.arange(3.0)[:, None] * random.uniform(0.5, 1.5, 30)
    efficiency[:, :5] = np.nan
    signals = Signals(by_prompt={"H": flat, "E": efficiency}, by_sample={}, missing={})
    table = trajectory_table(signals, steps=np.arange(3.0), clusters=np.arange(30), seed=0)
    found = table[table.signal == "E"]
    assert (found.n == 25).all()
    assert (found.p.iloc[1:] < 0.01).all()
    assert found.change.iloc[-1] == pytest.approx(np.nanmean(efficiency[2] - efficiency[0]))
    assert (table[table.signal == "H"].p.iloc[1:] == 1).all()


def _with_efficiency(trace, values):
    """The same trace with ends of the window as far apart as an efficiency says."""
    across = trace.readings.across.copy()
    across[layer_pairs(6).index((4, 6))] = values * trace.readings.angle[4:6].sum(0)
    return replace(trace, readings=replace(trace.readings, across=across))


def test_every_number_is_reconstructed_and_in_the_section(jump):
    result = spinal_series(jump, steps=STEPS).section()
    assert all(estimate.reconstructed for estimate in result.section.estimates.values())
    assert set(result.tables) == set(result.section.tables) == {"trajectory", "layers"}
    for finding in result.findings:
        assert all(name.removeprefix("series.") in result.section.estimates for name in finding.rests_on)
    json.dumps(result.section.model_dump(), allow_nan=False)


def test_the_layers_are_those_of_the_traces(base):
    series = spinal_series(path(base, [0.0, 0.1]), steps=[0, 4])
    last = series.layers[series.layers.step == 4]
    assert last.alpha.tolist() == base.layers.alpha.tolist()
    assert last.angle.tolist()[:-1] == base.steps.angle.tolist()
    assert math.isnan(last.angle.iloc[-1])


def test_the_same_seed_gives_the_same_series(jump):
    first, second = (spinal_series(jump, steps=STEPS) for _ in range(2))
    pd.testing.assert_frame_equal(first.trajectory, second.trajectory)
    assert first.estimates == second.estimates


def test_the_series_is_a_public_name():
    assert alignscope.spinal_series is spinal_series
