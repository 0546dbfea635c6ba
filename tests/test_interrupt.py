"""Ctrl-C: one sentence that says what became of the work, and exit code 130; other ends keep their codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# a shell that starts the tests in the background has SIGINT ignored, which a child inherits
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from alignscope.cli.main import main
main()
"""


def writing_end(pipe: Path, process: subprocess.Popen) -> int:
    """The pipe, once the command has opened the other end; fails where the command ends before."""
    while process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.02)
    pytest.fail(f"the command ended before it read its rows: {process.communicate()[1]}")


def interrupted(process: subprocess.Popen) -> tuple[str, str]:
    """What it said after Ctrl-C, pressed again where nothing happens: a busy machine may deliver it inside a callback
    of the interpreter, which drops exceptions."""
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    pytest.fail(f"six interrupts did not end the command: {process.communicate()}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "--policy", "p", "--reference", "r", "--pairs", "{pipe}", "--out", "{out}", "--quiet"],
        ["trace", "model", "--prompts", "{pipe}", "--out", "{out}"],
    ],
)
def test_an_interrupt_says_what_is_kept_and_exits_with_130(tmp_path, arguments):
    """The command reads its rows from a pipe that never says anything: it is interrupted while it waits."""
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    given = [argument.format(pipe=pipe, out=tmp_path / "run") for argument in arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = writing_end(pipe, process)
    stdout, stderr = interrupted(process)
    os.close(end)
    assert process.returncode == 130
    assert stderr == "alignscope: interrupted; what was finished is kept, the same command continues\n"
    assert stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show"], 2, "Missing argument"),
        (["no-such-command"], 2, "No such command"),
        (["audit", "--beta", "much"], 2, "Invalid value"),
        (["show", "nowhere"], 2, "alignscope: nowhere: no report.json there"),
        (["--version"], 0, "alignscope "),
        (["show", "--help"], 0, "Usage"),
    ],
)
def test_every_other_end_keeps_its_code(arguments, code, words):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
