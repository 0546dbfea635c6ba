"""How much faster, how much smaller? Two ways to one result measured side by side, their ratio, and a goal for it.

Calls run in turn, round by round, so that a slow minute of the machine hits all of them; a ratio is one of medians.
Memory is measured apart from time, every call in a process of its own.
"""

import ctypes
import multiprocessing
import operator
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

COLUMNS = ("id", "what", "ratio", "low", "high", "goal", "met", "limit", "note")
_M_MMAP_THRESHOLD, _MAPPED = -3, 2**16  # of glibc's mallopt: blocks above so many bytes are mapped, each by itself
FOREIGN = 0.5  # cores that others may keep busy; above it a time shows nothing about a goal
_COMPARE = {"<=": operator.le, ">=": operator.ge}

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured ratio (no unit) with what it should be."""

    id: str  # C1 ... C12 of the kernels page, I1 and I2 of benchmarks/information.py
    what: str  # numerator / denominator
    ratio: float
    low: float  # the smallest and largest ratio of a single round; both the ratio where there is one measurement
    high: float
    goal: str  # "<= 1.10" or ">= 3"
    limit: str = ""  # what arithmetic allows at most
    note: str = ""
    contended: bool = False  # others used the machine: the number is shown, the goal not judged

    @property
    def met(self) -> str:
        """yes, no or contended."""
        if self.contended:
            return "contended"
        return "yes" if meets(self.ratio, self.goal) else "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of every call, a number a round."""

    wall: Mapping[str, Sequence[float]]
    processor: Mapping[str, Sequence[float]]  # over all threads of this process
    foreign: float  # cores that other processes kept busy meanwhile


def meets(value: float, goal: str) -> bool:
    """Is the value on the right side of a goal such as ">= 1.5"? ValueError for anything else than <= or >=."""
    sign, _, bound = goal.partition(" ")
    if sign not in _COMPARE:
        raise ValueError(f"a goal reads '<= number' or '>= number', got {goal!r}")
    return bool(_COMPARE[sign](value, float(bound)))


def interleaved(calls: Mapping[str, Call], rounds: int) -> Timing:
    """Every call in turn, `rounds` times after a warm-up round that does not count. ValueError: no round."""
    if rounds < 1:
        raise ValueError(f"rounds is at least 1, got {rounds}")
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    began, own, busy = time.perf_counter(), time.process_time(), _busy_seconds()
    for _ in range(rounds):
        for name, call in calls.items():
            start, used = time.perf_counter(), time.process_time()
            call()
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)
    others = _busy_seconds() - busy - (time.process_time() - own)
    return Timing(wall=wall, processor=processor, foreign=max(0.0, others / (time.perf_counter() - began)))


def time_ratio(id: str, what: str, timing: Timing, over: str, under: str, *, goal: str, limit: str = "") -> Row:
    """Median wall seconds of call `over` divided by those of call `under`."""
    seconds = {name: statistics.median(timing.wall[name]) for name in (over, under)}
    used = {name: statistics.median(timing.processor[name]) for name in (over, under)}
    by_round = [a / b for a, b in zip(timing.wall[over], timing.wall[under], strict=True)]
    return Row(
        id=id,
        what=what,
        ratio=seconds[over] / seconds[under],
        low=min(by_round),
        high=max(by_round),
        goal=goal,
        limit=limit,
        note=f"{seconds[over]:.3g} s / {seconds[under]:.3g} s (processor {used[over]:.3g} / {used[under]:.3g})",
        contended=timing.foreign > FOREIGN,
    )


def peak_megabytes(prepare: Callable[..., Call], *arguments: Any, threads: int) -> float:
    """Growth of resident memory, in MB, during the call that prepare(*arguments) returns; what it needs is made before.

    A new process for every measurement, forked from one that has imported the benchmarks and run nothing. Freed tensors
    go back to the system at once (under glibc), so that the peak is what the call holds: as it comes, malloc keeps some
    of them, other ones every time, and the same call differs by over 100 MB.
    RuntimeError (BrokenProcessPool) where it is killed, as for lack of memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.{name}" for name in ("kernels", "pairs", "information")])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, prepare, arguments, threads).result()


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, a line a row."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [getattr(row, name) for name in COLUMNS]
        lines.append("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else cell for cell in cells) + " |")
    return "\n".join(lines)


def processor_name() -> str:
    """The CPU model as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "unknown processor")


def _busy_seconds() -> float:
    """Seconds that all cores together were busy since the machine started, time stolen by a hypervisor included."""
    user, nice, system, _idle, _waiting, irq, soft_irq, stolen = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + soft_irq + stolen) / os.sysconf("SC_CLK_TCK")


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _return_what_is_freed() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not there under other C libraries
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED)  # set by hand it also stops to grow with what is freed


def _peak(prepare: Callable[..., Call], arguments: tuple[Any, ...], threads: int) -> float:
    """The largest resident size seen during the call, sampled every millisecond, over the size before it."""
    torch.set_num_threads(threads)
    _return_what_is_freed()
    call = prepare(*arguments)
    before, seen, done = _resident_megabytes(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal seen
        while not done.wait(0.001):
            seen = max(seen, _resident_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(seen, _resident_megabytes()) - before
