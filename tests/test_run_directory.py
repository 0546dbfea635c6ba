"""The run directory: continued by the same settings, refused by others, whole whenever it is read."""

import json
import os
import signal
import subprocess
import sys

import pytest

from alignscope import InputError
from alignscope.diagnose.run_directory import RunDirectory, Stopwatch, peak_memory_mb, write_atomically

SETTINGS = {"seed": 0, "data": {"pairs": "abc"}, "settings": {"beta": 0.1, "sections": ["ranking"]}}


def test_the_same_settings_continue(tmp_path):
    first = RunDirectory(tmp_path / "run", SETTINGS)
    (first.stage("scores") / "shard").write_text("kept")
    again = RunDirectory(tmp_path / "run", json.loads(json.dumps(SETTINGS)))
    assert (again.stage("scores") / "shard").read_text() == "kept"
    assert not again.finished


def test_other_settings_are_refused_by_name_and_nothing_is_touched(tmp_path):
    RunDirectory(tmp_path, SETTINGS)
    before = (tmp_path / "run.json").read_bytes()
    other = SETTINGS | {"settings": {"beta": 0.5, "sections": ["ranking"]}}
    with pytest.raises(InputError, match=r"other settings \(settings.beta: there 0.1, now 0.5\)"):
        RunDirectory(tmp_path, other)
    assert (tmp_path / "run.json").read_bytes() == before


def test_many_differences_are_counted(tmp_path):
    RunDirectory(tmp_path, {f"k{i}": 0 for i in range(9)})
    with pytest.raises(InputError, match="and 5 more"):
        RunDirectory(tmp_path, {f"k{i}": 1 for i in range(9)})


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        RunDirectory(tmp_path / "file" / "run", SETTINGS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        RunDirectory(tmp_path / "run", SETTINGS)


def test_a_foreign_report_is_not_overwritten(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(InputError, match=r"no run\.json"):
        RunDirectory(tmp_path, SETTINGS)


def test_seconds_add_up_over_runs_and_failures(tmp_path):
    file = tmp_path / "seconds.json"
    with pytest.raises(RuntimeError), Stopwatch(file).timed("a"):
        raise RuntimeError
    first = Stopwatch(file).seconds["a"]
    watch = Stopwatch(file)
    with watch.timed("a"):
        pass
    assert first > 0
    assert Stopwatch(file).seconds["a"] > first
    assert watch.total() == pytest.approx(watch.seconds["a"], abs=1e-3)
    assert watch.cost("a").peak_memory_mb == pytest.approx(peak_memory_mb(), rel=0.5)


def test_the_seconds_of_a_killed_run_count(tmp_path):
    """SIGKILL runs no `finally`: what was written at the last tick is what the next run adds to."""
    file = tmp_path / "seconds.json"
    file.write_text('{"ranking": 100.0, "spinal": 7.0}')
    program = f"""
import itertools, os, pathlib, signal, time
from alignscope.diagnose.run_directory import Stopwatch
watch = Stopwatch(pathlib.Path({str(file)!r}))
with watch.timed("ranking"):
    progress = watch.ticking(None)
    for done in itertools.count():
        progress("scoring policy", done, 10**9)
        time.sleep(0.01)
        if watch.seconds != Stopwatch(watch.file).seconds:
            os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert process.returncode == -signal.SIGKILL
    watch = Stopwatch(file)
    assert watch.seconds["ranking"] > 101
    assert watch.seconds["spinal"] == 7
    killed = watch.seconds["ranking"]
    with watch.timed("ranking"):
        pass
    assert watch.seconds["ranking"] == pytest.approx(killed, abs=0.5)


def test_a_tick_writes_at_most_once_a_second_and_passes_progress_on(tmp_path):
    file, seen = tmp_path / "seconds.json", []
    watch = Stopwatch(file)
    progress = watch.ticking(lambda *told: seen.append(told))
    watch.tick()  # outside a stage: nothing to write
    with watch.timed("a"):
        progress("scoring", 1, 2)
        assert not file.exists()
    assert seen == [("scoring", 1, 2)]
    assert file.exists()
    with Stopwatch().timed("a"):
        Stopwatch().ticking(None)("scoring", 1, 2)  # without a file: nothing to write


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b'{"a": "1"}', b'{"a": null}', b'{"a": NaN}'])
def test_damaged_seconds_start_at_zero(tmp_path, content):
    run = RunDirectory(tmp_path, SETTINGS)
    (run.stages / "seconds.json").write_bytes(content)
    assert RunDirectory(tmp_path, SETTINGS).watch.seconds == {}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b"{}", b'"run"'])
def test_damaged_settings_are_refused_with_their_path(tmp_path, content):
    RunDirectory(tmp_path, SETTINGS)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json: not .*choose another --out, or delete the folder"):
        RunDirectory(tmp_path, SETTINGS)


def test_an_atomic_write_leaves_no_temporary_file(tmp_path):
    write_atomically(tmp_path / "x.json", "1")
    write_atomically(tmp_path / "x.json", "2")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "2"
