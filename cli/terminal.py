"""A report as tables in the terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..diagnose.report import Estimate, Report

_STYLE = {"alarm": "bold red", "notice": "yellow", "info": "cyan"}
_WIDE = 100  # columns from which a table shows unit and method


def print_report(report: "Report", console: "Console") -> None:
    """Title, findings worst first, then a table of estimates a section."""
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{escape(report.title)}[/bold]\n{escape(report.question)}\n")
    for finding in report.findings:
        console.print(f"[{_STYLE[finding.severity]}]{finding.severity:>6}[/]  {escape(finding.sentence)}")
        if finding.next_step:
            console.print(f"        -> {escape(finding.next_step)}")
    for section in report.sections:
        console.print(f"\n[bold]{escape(section.title)}[/bold]  {escape(section.question)}")
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("estimate", no_wrap=True)
        table.add_column("value", justify="right")
        table.add_column("95 % interval")
        table.add_column("n", justify="right")
        if console.width >= _WIDE:
            table.add_column("what it is", style="dim")
        for name, estimate in section.estimates.items():
            cells = [name, *_cells(estimate)]
            table.add_row(*(escape(c) for c in ([*cells, estimate.label] if console.width >= _WIDE else cells)))
        console.print(table)
        for warning in section.warnings:
            console.print(f"[yellow]warning[/]  {escape(warning)}")
        if section.cost:
            console.print(f"[dim]{section.cost.seconds:.0f} s, peak {section.cost.peak_memory_mb:.0f} MB[/dim]")


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
        console.print(f"[{_STYLE[finding.severity]}]{finding.severity:>6}[/]  {escape(finding.sentence)}")


def _cells(estimate: "Estimate") -> tuple[str, str, str]:
    unit = "" if estimate.unit in ("", "share", "share difference", "p") else f" {estimate.unit}"
    n = str(estimate.n) if estimate.n_clusters is None else f"{estimate.n} ({estimate.n_clusters})"
    if estimate.value is None:
        return "-", estimate.reason or "", n
    if estimate.low is None or estimate.high is None:
        interval = "" if estimate.level is None else (estimate.reason or "")
    else:
        interval = f"[{estimate.low:.4g}, {estimate.high:.4g}]"
    return f"{estimate.value:.4g}{unit}", interval, n
