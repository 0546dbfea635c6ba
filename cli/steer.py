"""Commands about steering vectors."""

import typer

from .steer_evaluation import evaluate, sweep

steer_app = typer.Typer(help="Vectors that change what a model says along one direction: train, try and ship them.")


@steer_app.callback()
def _steer() -> None: ...


steer_app.command("sweep")(sweep)
steer_app.command("evaluate")(evaluate)
