"""The demo: small models with known answers, trained on the spot, audited, each estimate printed beside its truth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    import pandas as pd

    from ..diagnose.report import Report

organism_app = typer.Typer(help="Small checkpoints with known answers, for tests, docs and trying things out.")
Seed = Annotated[int, typer.Option(help="Seed of the weights and of the data; another one is another organism.")]


@organism_app.command("preference")
def preference(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to put the checkpoints and pairs in.")],
    seed: Seed = 0,
    quiet: options.Quiet = False,
) -> None:
    """Train base, SFT, DPO ladder, shuffled-label control and reward head in a world that can be enumerated.

    Example: alignscope organism preference -o organism/
    """
    from ..organisms import build_preference_organism
    from .progress import progress_bar

    with progress_bar(quiet) as progress:
        organism = build_preference_organism(out, seed=seed, progress=progress)
    typer.echo(str(organism.folder))


@organism_app.command("concept")
def concept(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to put the model and the quadruples in.")],
    steps: Annotated[int, typer.Option(help="Steps of training; 500 make a model that answers without fault.")] = 500,
    seed: Seed = 0,
    quiet: options.Quiet = False,
) -> None:
    """Train a tiny model that answers in one of two ways as a flag says, with quadruples to steer it by (15 seconds).

    \b
    alignscope organism concept -o concept/
    alignscope steer train concept/model concept/train.jsonl --layer 1 -o positive.safetensors
    """
    from ..organisms.concept_files import write_concept_organism
    from .progress import progress_bar

    with progress_bar(quiet) as progress:
        files = write_concept_organism(out, seed=seed, steps=steps, progress=progress)
    typer.echo(str(files.folder))


@organism_app.callback()
def _organism() -> None: ...


def demo(
    out: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/demo"),
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train small models with known answers (two minutes), audit them, print each estimate beside its exact truth.

    Example: alignscope demo
    """
    import pandas as pd

    from ..dashboards.page import render_page
    from ..diagnose.audit import audit
    from ..diagnose.run_directory import write_atomically
    from ..organisms import build_preference_organism, reward_truth_table, truth_table
    from ..organisms.reward_truth import SHIFTED
    from ..organisms.truth import read_models
    from .finish import command_line, finish
    from .progress import progress_bar

    with progress_bar(quiet) as progress:
        organism = build_preference_organism(seed=seed, progress=progress)
        report = audit(
            organism.dpo,
            organism.base,
            organism.pairs,
            reward=organism.reward,
            prompts=organism.prompts,
            shifted={SHIFTED: organism.shifted},
            same_training=True,
            beta=organism.beta,
            eos=organism.eos,
            out=out,
            seed=seed,
            progress=progress,
            command=command_line(),
        )
    models = read_models(organism)
    expected = pd.concat([truth_table(organism, models=models), reward_truth_table(organism, models=models)])
    truths = beside_truth(report, expected)
    truths.to_csv(out / "truth.csv", index=False)
    write_atomically(out / "report.html", render_page(report))
    if as_json:
        finish(report, out, [], as_json=True, quiet=quiet)
        return
    print_truths(truths)
    typer.echo(f"\nthe audit: {out / 'report.json'}\nas a page: {out / 'report.html'} (open it in a browser)")
    typer.echo(f"in the terminal: alignscope show {out}")


def beside_truth(report: "Report", truths: "pd.DataFrame") -> "pd.DataFrame":
    """Rows estimate, value, low, high, truth, inside (is the truth in the interval), definition."""
    import pandas as pd

    rows = []
    for key, truth, definition in zip(
        truths["estimate_key"].astype(str), truths["truth"].tolist(), truths["definition"], strict=True
    ):
        estimate = report.estimate(key)
        rows.append(
            {
                "estimate": key,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "truth": truth,
                "inside": None
                if estimate.low is None or estimate.high is None
                else estimate.low <= truth <= estimate.high,
                "definition": definition,
            }
        )
    return pd.DataFrame(rows)


def print_truths(truths: "pd.DataFrame") -> None:
    """Estimate beside its exact truth, and how many intervals hold it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(96, Console().width))  # names are whole, whatever the terminal
    table = Table(
        title="Estimate beside the exact truth (by enumeration of all 256 responses)", title_justify="left", box=None
    )
    for column in ("estimate", "value", "95 % interval", "truth", "inside"):
        table.add_column(column, justify="left" if column == "estimate" else "right", no_wrap=True)
    for row in truths.itertuples(index=False):
        table.add_row(
            str(row.estimate),
            f"{row.value:.4f}",
            f"[{row.low:.4f}, {row.high:.4f}]".replace("[", "\\["),
            f"{row.truth:.4f}",
            "yes" if row.inside else "NO",
        )
    console.print()
    console.print(table)
    console.print(f"{int(truths.inside.sum())} of {len(truths)} intervals contain the truth (19 of 20 expected).")
