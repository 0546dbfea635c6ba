"""Commands about steering vectors: train one, look at its file, apply it, find its strength, test it, export it."""

import typer

from .grouped import GroupedCommand
from .steer_applying import apply
from .steer_evaluation import evaluate, sweep
from .steer_files import convert, inspect
from .steer_training import train

steer_app = typer.Typer(help="Vectors that change what a model says along one direction: train, try and ship them.")


@steer_app.callback()
def _steer() -> None: ...


steer_app.command("train", cls=GroupedCommand)(train)
steer_app.command("inspect")(inspect)
steer_app.command("apply", cls=GroupedCommand)(apply)
steer_app.command("sweep", cls=GroupedCommand)(sweep)
steer_app.command("evaluate", cls=GroupedCommand)(evaluate)
steer_app.command("convert", cls=GroupedCommand)(convert)
