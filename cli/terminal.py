"""A report as tables in the terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from ..diagnose.report import Estimate, Report

_STYLE = {"alarm": "bold red", "notice": "yellow", "info": "cyan"}
_LABEL = 28  # columns that the label of a number needs; without them a table leaves labels out
_INTERVAL = "95 % interval"
_VALUE = 13  # columns of a value with a short unit; a longer unit goes on


def print_report(report: "Report", console: "Console") -> None:
    """Title, findings worst first, then a table of estimates a section."""
    from rich.markup import escape

    console.print(f"[bold]{escape(report.title)}[/bold]\n{escape(report.question)}\n")
    for finding in report.findings:
        _print_beside(console, f"[{_STYLE[finding.severity]}]{finding.severity:>6}[/]", finding.sentence)
        if finding.next_step:
            _print_beside(console, f"{'->':>6}", finding.next_step)
    for section in report.sections:
        console.print(f"\n[bold]{escape(section.title)}[/bold]  {escape(section.question)}")
        if section.estimates:
            console.print(_table(section.estimates, console.width))
        for what, names in _absent(section.estimates).items():
            _print_beside(console, f"[dim]{what[0]}[/dim]", f"{', '.join(names)}: {what[1]}", style="dim")
        for warning in section.warnings:
            _print_beside(console, "[yellow]warning[/]", warning)
        if section.cost:
            console.print(f"[dim]{section.cost.seconds:.0f} s, peak {section.cost.peak_memory_mb:.0f} MB[/dim]")


def _print_beside(console: "Console", mark: str, text: str, *, style: str = "") -> None:
    """Text in a column of its own, so that its further lines do not run under the mark (which is markup)."""
    from rich.markup import escape
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(style=style, overflow="fold")
    grid.add_row(mark, escape(text))
    console.print(grid)


def _table(estimates: "Mapping[str, Estimate]", width: int) -> "Table":
    """A row an estimate. Names, intervals and n are never cut; a long unit goes on under its number."""
    from rich.markup import escape
    from rich.table import Table

    cells = {name: _cells(estimate) for name, estimate in estimates.items()}
    names = max(map(len, cells))
    intervals, counts = (max(len(row[k]) for row in cells.values()) for k in (1, 2))
    room = width - max(intervals, len(_INTERVAL)) - counts - 6  # for names and values
    words = max(5, *(len(word) for row in cells.values() for word in row[0].split()))
    wide = room - names - max(words, _VALUE) - 2 >= _LABEL
    words = max(words, _VALUE) if wide else words
    gap = 2 if names + words <= room else 1
    room += 3 * (2 - gap)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, gap, 0, 0))
    table.add_column("estimate", width=max(10, min(room - words, names)), overflow="fold")
    table.add_column("value", justify="right", max_width=words if wide else None)
    table.add_column(_INTERVAL, no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    if wide:
        table.add_column("what it is", style="dim")
    for name, row in cells.items():
        shown = (name, *row, estimates[name].label) if wide else (name, *row)
        table.add_row(*map(escape, shown))
    return table


def _absent(estimates: "Mapping[str, Estimate]") -> "dict[tuple[str, str], list[str]]":
    """What is missing and why -> names; said once below the table, not in every row of it."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, estimate in estimates.items():
        no_interval = estimate.level is not None and (estimate.low is None or estimate.high is None)
        if estimate.value is None or no_interval:
            what = "no value" if estimate.value is None else "no interval"
            found.setdefault((what, estimate.reason or ""), []).append(name)
    return found


def print_checks(report: "Report", console: "Console") -> None:
    """The doctor's table, a row a check, then what follows from it."""
    from rich.markup import escape
    from rich.table import Table

    verdicts = {"ok": "green", "notice": "yellow", "alarm": "bold red"}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("check", "value", "unit", "threshold", "verdict", "advice"):
        table.add_column(column, overflow="fold")
    for row in report.to_frame("doctor.checks").itertuples(index=False):
        table.add_row(
            escape(str(row.check)),
            escape(str(row.value)),
            escape(str(row.unit)),
            escape(str(row.threshold)),
            f"[{verdicts[str(row.verdict)]}]{row.verdict}[/]",
            escape(str(row.advice)),
        )
    section = report.section("doctor")
    console.print(f"[bold]{escape(section.title)}[/bold]  {escape(section.summary)}")
    console.print(table)
    for finding in report.findings:
        _print_beside(console, f"[{_STYLE[finding.severity]}]{finding.severity:>6}[/]", finding.sentence)


def _cells(estimate: "Estimate") -> tuple[str, str, str]:
    """Value with unit, interval, n with clusters; a dash where there is no value."""
    unit = "" if estimate.unit in ("", "share", "share difference", "p") else f" {estimate.unit}"
    n = str(estimate.n) if estimate.n_clusters is None else f"{estimate.n} ({estimate.n_clusters})"
    if estimate.value is None:
        return "-", "", n
    known = estimate.low is not None and estimate.high is not None
    return f"{estimate.value:.4g}{unit}", f"[{estimate.low:.4g}, {estimate.high:.4g}]" if known else "", n
