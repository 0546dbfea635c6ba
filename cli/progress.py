"""Progress on stderr: one line a stage with count, rate and remaining time; silent with --quiet."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


DETAIL = " | "  # as of probes/shards.py, which this does not import: it is slow to
EVERY = 2.0  # seconds between two lines of a stage in a log


class Report(Protocol):
    def __call__(self, stage: str, done: int, total: int) -> None: ...


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Report | None]:
    """Yields progress(stage, done, total). On a terminal a live bar a stage; in a log file a line at each tenth."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Bars:
    def __init__(self, bars: "Progress") -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        name, *_ = stage.split(DETAIL)
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(stage, total=total)
        self.bars.update(self.tasks[name], completed=done, total=total, description=stage)


class _Lines:
    """A log has no cursor: a line where a stage begins, at each tenth (at most one in 2 s), and at its end."""

    def __init__(self) -> None:
        self.tenths: dict[str, int] = {}
        self.started: dict[str, tuple[float, int]] = {}  # stage -> (time, done then): resumed work costs nothing
        self.printed: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        import time

        now = time.monotonic()
        stage, *detail = stage.split(DETAIL)
        start, first = self.started.setdefault(stage, (now, done))
        tenth = 10 * done // max(total, 1)
        soon = done < total and now - self.printed.get(stage, -EVERY) < EVERY
        if self.tenths.get(stage, -1) >= tenth or soon:
            return
        self.tenths[stage], self.printed[stage] = tenth, now
        left = f", about {(now - start) / (done - first) * (total - done):.0f} s left" if first < done < total else ""
        sys.stderr.write(f"{', '.join([f'{stage}: {done} of {total}', *detail])}{left}\n")
        sys.stderr.flush()
