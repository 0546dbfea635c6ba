"""Commands about a tuned lens: affine maps that let a model's own tail read its middle layers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..probes.tuned_lens import TunedLens

lens_app = typer.Typer(help="Tuned lenses: what each layer would predict, read through a map trained for it.")


@lens_app.callback()
def _lens() -> None: ...


@lens_app.command("train")
def train(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder, adapter folder, .gguf file or hub id.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the lens.", show_default=False)],
    text: Annotated[
        Path | None, typer.Option(help="Plain text (.txt): passages between blank lines, at least 40.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts: .jsonl, .csv or .parquet with a `prompt` or `text` column, or a .json list."),
    ] = None,
    base: options.Base = None,
    steps: Annotated[int, typer.Option(help="Steps of training, 8 prompts each.", min=1)] = 100,
    positions: Annotated[int, typer.Option(help="Tokens read of each prompt, beside its last.", min=0)] = 8,
    max_tokens: Annotated[int, typer.Option(help="Prompts are cut from the left to this many tokens.", min=1)] = 128,
    template: options.Template = "auto",
    eos: options.Eos = "auto",
    max_invalid: options.MaxInvalid = 0.05,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a lens that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Layers, settings and warnings as JSON on stdout.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a tuned lens, and say by layer how much nearer to the model's own answer it reads than the logit lens.

    A fifth of the prompts is held out; a layer that does not read better there keeps the logit lens.

    \b
    On prompts:  alignscope lens train my-model/ --prompts prompts.jsonl --out lens/
    On text:     alignscope lens train my-model/ --text book.txt --out lens/
    An adapter:  alignscope lens train dpo/ --base sft/ --prompts prompts.jsonl --out lens/
    In Python:   alignscope.train_lens(alignscope.load("my-model"), "prompts.jsonl").save("lens")
    """
    from ..errors import InputError

    if (text is None) == (prompts is None):
        raise InputError("give one of --text (passages) and --prompts (rows)")
    if text is not None and text.suffix.lower() != ".txt":
        raise InputError(f"--text {text}: expected a .txt file; files with a column are given with --prompts")
    if (out / "lens.json").exists() and not overwrite:
        raise InputError(f"{out}: a lens is there already; give --overwrite to replace it, or another folder")

    from ..diagnose.lens_training import train_lens
    from ..diagnose.spinal_reading import opened
    from ..probes.loading import load
    from .progress import progress_bar

    opened(out)  # refused before minutes of training
    subject = load(checkpoint, base=base, dtype=dtype, device=device)
    with progress_bar(quiet) as progress:
        lens = train_lens(
            subject,
            text or prompts or "",
            steps=steps,
            positions=positions,
            max_tokens=max_tokens,
            template=template,
            eos=eos,
            max_invalid=max_invalid,
            seed=seed,
            progress=progress,
        )
    lens.save(out)
    if as_json:
        import json

        layers = lens.layers.to_dict(orient="records")
        facts = {"lens": str(out), "model": lens.model, "layers": layers, "data": lens.data}
        facts |= {"settings": lens.settings, "warnings": list(lens.warnings)}
        typer.echo(json.dumps(facts, indent=2, default=str))
    else:
        _print(lens)
    if not quiet:
        typer.echo(f"lens: {out}", err=True)


def _print(lens: "TunedLens") -> None:
    """The summary, a row a layer, and what to know of it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=max(96, Console().width))  # rows are whole, whatever the terminal
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    for column in ("layer", "loss first", "loss last", "KL before", "KL after", "gain [95 %]", "lens"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in lens.layers.to_dict(orient="records"):
        trained = [lens.losses[step][int(row["layer"])] for step in (0, -1)]
        table.add_row(
            str(row["layer"]),
            *(f"{value:.4g}" for value in (*trained, row["kl_before"], row["kl_after"])),
            escape(f"{row['gain']:.3g} [{row['gain_low']:.3g}, {row['gain_high']:.3g}]"),
            "tuned" if row["kept"] else "logit",
        )
    console.print(escape(lens.summary()))
    console.print(table)
    for warning in lens.warnings:
        console.print(f"[yellow]warning[/]  {escape(warning)}")
