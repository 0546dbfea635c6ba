"""The benchmarks: ratios and goals on known numbers, both ways to one score, and rows that come out complete.

How fast anything is, is no test.
"""

import re
import sys
import time
from pathlib import Path

import pytest
import torch

import alignscope
from alignscope.probes.sequence_scores import TokenSequence, score_sequences

ROOT = Path(alignscope.__file__).parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # the benchmarks are no part of the package: they are run from the repository's root

from benchmarks import information, kernels, measuring, pairs, run  # noqa: E402
from benchmarks.measuring import Row, Timing, interleaved, meets, peak_megabytes, table, time_ratio  # noqa: E402

TIMING = Timing(
    wall={"slow": [2.0, 9.0, 3.0], "fast": [1.0, 2.0, 1.5]},
    processor={"slow": [4.0, 18.0, 6.0], "fast": [2.0, 4.0, 3.0]},
    foreign=0.5,
)


def row(**changes) -> Row:
    values = {"id": "C1", "what": "a / b", "ratio": 1.5, "low": 1.25, "high": 2.0, "goal": ">= 1.5"}
    return Row(**values | changes)


def filled(megabytes: int):
    """A call that holds this many MB for a while."""

    def call() -> None:
        held = torch.ones(megabytes * 2**20, dtype=torch.uint8)
        time.sleep(0.05)
        del held

    return call


# ---- ratios and goals


def test_a_ratio_is_one_of_medians_and_its_range_is_over_rounds():
    made = time_ratio("C1", "slow / fast", TIMING, "slow", "fast", goal=">= 2", limit="4")
    assert made.ratio == 3.0 / 1.5  # not 14/4.5, which one slow round moves
    assert (made.low, made.high) == (2.0, 4.5)
    assert made.note == "3 s / 1.5 s (processor 6 / 3)"


@pytest.mark.parametrize(
    ("value", "goal", "expected"),
    [
        (1.1, "<= 1.10", True),
        (1.11, "<= 1.10", False),
        (3.0, ">= 3", True),
        (2.99, ">= 3", False),
        (float("nan"), ">= 3", False),
    ],
)
def test_a_goal_is_met_at_its_bound(value, goal, expected):
    assert meets(value, goal) is expected


@pytest.mark.parametrize("goal", ["3", "> 3", "about 3", ""])
def test_a_goal_that_cannot_be_judged_is_refused(goal):
    with pytest.raises(ValueError, match="a goal reads"):
        meets(3.0, goal)


def test_nothing_is_claimed_beside_a_foreign_load():
    assert row().met == "yes"
    assert row(ratio=1.49).met == "no"
    assert row(contended=True).met == "contended"
    assert not time_ratio("C1", "", TIMING, "slow", "fast", goal=">= 1").contended, "half a core is allowed"
    busy = Timing(wall=TIMING.wall, processor=TIMING.processor, foreign=0.51)
    assert time_ratio("C1", "", busy, "slow", "fast", goal=">= 1").met == "contended"


def test_calls_run_in_turn_and_the_warm_up_does_not_count():
    order = []
    timing = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "abababab"
    assert [len(timing.wall[name]) for name in "ab"] == [len(timing.processor[name]) for name in "ab"] == [3, 3]


def test_a_call_that_waits_costs_wall_time_only():
    timing = interleaved({"wait": lambda: time.sleep(0.05)}, 2)
    assert min(timing.wall["wait"]) >= 0.05
    assert max(timing.processor["wait"]) < 0.04


def test_at_least_one_round():
    with pytest.raises(ValueError, match="rounds is at least 1, got 0"):
        interleaved({}, 0)


def test_peak_memory_is_what_the_call_held():
    assert peak_megabytes(filled, 64, threads=1) == pytest.approx(64, abs=8)  # pages of the process itself come and go


# ---- the page


def test_a_table_has_a_line_a_row_and_a_cell_a_column():
    lines = table([row(), row(id="C2", limit="2.5", contended=True)]).splitlines()
    assert lines[0] == "| id | what | ratio | low | high | goal | met | limit | note |"
    assert lines[2:] == [
        "| C1 | a / b | 1.50 | 1.25 | 2.00 | >= 1.5 | yes |  |  |",
        "| C2 | a / b | 1.50 | 1.25 | 2.00 | >= 1.5 | contended | 2.5 |  |",
    ]


def test_the_page_says_how_it_was_measured_and_what_was_not():
    text = run.page([row(), row(id="C12")], rounds=5, threads=2, load=0.25, quick=False)
    for fact in ("- Threads: 2", "- Rounds: 5\n", "- Load before: 0.25", f"torch {torch.__version__}", "G1-G10"):
        assert fact in text
    assert "No time is measured here for C2, C3, C4, C5, C6, C7, C8, C9, C10, C11." in text
    assert "Quick" not in text
    assert "a trial" in run.page([row()], rounds=4, threads=2, load=0.0, quick=False)


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ([], "RESULTS.md"),
        (["--quick"], None),
        (["--quick", "--out", "quick.md"], "quick.md"),
        (["--rounds", "1", "--out", "trial.md"], "trial.md"),
    ],
)
def test_quick_results_overwrite_nothing_unless_told(tmp_path, monkeypatch, capsys, arguments, written):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(run, "measure", lambda **options: "the page")  # the measuring itself is tested below
    run.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ([] if written is None else [written])


def test_help_explains_without_waiting_for_torch(capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    assert stop.value.code == 0
    assert re.search(r"--rounds.*--threads.*--quick.*--out", capsys.readouterr().out, re.DOTALL)


# ---- the peer and the inputs


def test_the_padded_way_and_ours_give_the_same_scores():
    lengths = pairs.DATA_SETS[1]
    sequences = pairs.simulated_pairs(lengths, n_pairs=10, vocabulary=pairs.TINY.vocabulary, shrink=8)
    subject = pairs.toy_subject(pairs.TINY)
    ours = [total for total, _ in score_sequences(subject, sequences)]
    padded = pairs.trl_style_padded(subject.model, sequences)  # its sums are float32
    assert padded == pytest.approx(ours, rel=1e-6)
    assert len(set(ours)) == 20


@pytest.mark.parametrize("lengths", pairs.DATA_SETS, ids=lambda lengths: lengths.name)
def test_simulated_lengths_have_the_medians_they_are_named_for(lengths):
    sequences = pairs.simulated_pairs(lengths, n_pairs=999, vocabulary=2)
    prompts = torch.tensor([float(sequence.start) for sequence in sequences[::2]])
    chosen = torch.tensor([float(sequence.n_scored) for sequence in sequences[::2]])
    assert float(prompts.median() + chosen.median()) == pytest.approx(lengths.median, abs=1)  # whole tokens
    assert float(prompts.median() / chosen.median()) == pytest.approx(lengths.prompt_over_response, rel=0.02)
    assert all(a.ids[: a.start] == b.ids[: b.start] for a, b in zip(sequences[::2], sequences[1::2], strict=True))


def test_the_arithmetic_limit_counts_padding_prompts_and_head():
    sequences = [TokenSequence(tuple(range(n)), 2) for n in (3, 6)]  # 1 and 4 scored after a prompt of 2
    shape = pairs.Shape(layers=1, width=10, heads=1, vocabulary=100)  # 1200 multiply-adds in the body, 1000 in the head
    expected = 2 * 6 * 2200 / ((2 + 5) * 1200 + 5 * 1000)
    assert pairs.arithmetic_limit(shape, sequences) == pytest.approx(expected, rel=1e-12)


# ---- everything runs


def test_quick_rows_come_out_complete():
    measured = [row for part in (kernels, pairs, information) for row in part.rows(rounds=1, threads=1, quick=True)]
    expected = ["C1", "C1", "C2", "C3", "C4", "C7", "C7", *["C11"] * 10, "C12", "I1", "I1", "I2"]
    assert [made.id for made in measured] == expected
    for made in measured:
        assert 0 < made.low <= made.ratio <= made.high < float("inf")
        assert made.met in ("yes", "no", "contended")
        assert re.search(r"\d (s|MB) / \d", made.note)
    assert len({made.what for made in measured}) == len(measured)
    assert measuring.processor_name()
