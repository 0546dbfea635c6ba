"""How a run ends: the report on stdout, where it lies, and the gates."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import InputError

if TYPE_CHECKING:
    from ..diagnose.gates import Gate
    from ..diagnose.report import Report


def command_line() -> str:
    """The command as given, quoted so that it can be given again."""
    return shlex.join(["alignscope", *sys.argv[1:]])


def finish(report: "Report", out: Path, gates: "Sequence[Gate]", *, as_json: bool, quiet: bool) -> None:
    """Print the report, name the next commands, exit with 1 if a gate fires."""
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        from rich.console import Console

        from .terminal import print_report

        print_report(report, Console())
    if not quiet:
        typer.echo(
            f"\nreport: {out / 'report.json'}\npage:   alignscope page {shlex.quote(str(out))} -o report.html", err=True
        )
    report_gates(report, gates)


def report_gates(report: "Report", gates: "Sequence[Gate]") -> None:
    """Exit with 1 if a gate fires, and say which."""
    fired, unread = [], None
    for gate in gates:
        try:
            fired += [gate] if gate.fires(report) else []
        except InputError as error:  # told after those that fired
            unread = error
    for gate in fired:
        estimate = report.estimate(gate.estimate)
        typer.echo(f"gate fired: {gate.text}  ({gate.estimate} = {estimate})", err=True)
    if unread is not None:
        raise unread
    if fired:
        raise typer.Exit(1)
