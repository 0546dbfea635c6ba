"""Entry point of `alignscope`: the commands, and what becomes of an error.

Exit codes: 0 done; 1 a --fail-if gate fired; 2 bad input; 3 an unexpected failure (a bug); 130 interrupted.
"""

import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import InputError
from . import audit, checkpoint, demo, information, lens, sample, score, series, steer, views

INTERRUPTED = "alignscope: interrupted; what was finished is kept, the same command continues"


class _Commands(TyperGroup):
    """The commands; on Ctrl-C they say what became of the work (typer alone would leave without a word)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    name="alignscope",
    cls=_Commands,
    help="What preference training did to a language model: audits of checkpoints, in numbers with intervals.",
    epilog="Start here: `alignscope demo` trains small models with known answers and audits them; no network.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: nothing is cut at 80 columns, and rich is not imported for it
    pretty_exceptions_enable=False,
)
app.command("audit")(audit.audit)
app.command("score")(score.score)
app.command("sample")(sample.sample)
app.command("series")(series.series)
app.command("trace")(checkpoint.trace)
app.command("doctor")(checkpoint.doctor)
app.command("information")(information.information)
app.command("show")(views.show)
app.command("page")(views.page)
app.command("demo")(demo.demo)
app.add_typer(demo.organism_app, name="organism")
app.add_typer(lens.lens_app, name="lens")
app.add_typer(steer.steer_app, name="steer")


def _version(value: bool) -> bool:
    if value:
        from .. import __version__

        typer.echo(f"alignscope {__version__}")
        raise typer.Exit
    return value


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None: ...


def main() -> None:
    """Run the command line; every user error is one message on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        typer.echo(f"alignscope: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo(INTERRUPTED, err=True)
        sys.exit(130)
    except Exception:  # noqa: BLE001  the last frame: an uncaught error would exit with 1, which means a fired gate
        traceback.print_exc()
        typer.echo(
            "alignscope: this is a bug in alignscope, not in your input; please report the lines above", err=True
        )
        sys.exit(3)


if __name__ == "__main__":
    main()
