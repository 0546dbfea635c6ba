"""Views of a finished run: tables in the terminal, one static HTML file."""

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[Path, typer.Argument(help="Run directory that audit, trace or demo wrote.", show_default=False)]


def show(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="The whole report as JSON on stdout.")] = False,
) -> None:
    """Print the findings and the estimates of a run.

    Example: alignscope show runs/demo
    """
    from ..diagnose.report import Report

    report = Report.load(run)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    from rich.console import Console

    from .terminal import print_report

    print_report(report, Console())


def page(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write a run as one self-contained HTML page (works offline and from the file system).

    Example: alignscope page runs/demo -o demo.html
    """
    from ..dashboards.page import render_page
    from ..diagnose.report import Report
    from ..diagnose.run_directory import write_atomically
    from ..errors import InputError

    report = Report.load(run)
    try:
        write_atomically(out, render_page(report))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another -o") from error
    typer.echo(str(out))
