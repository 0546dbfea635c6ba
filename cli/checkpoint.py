"""Commands about one checkpoint: its SPINAL trace, and whether it can be measured at all."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

Checkpoint = Annotated[str, typer.Argument(help="Folder, adapter folder, .gguf file or hub id.", show_default=False)]


def trace(
    checkpoint: Checkpoint,
    prompts: Annotated[
        Path,
        typer.Option(
            help="Prompts: .jsonl, .csv or .parquet with a `prompt` column, or a .json list.", show_default=False
        ),
    ],
    out: options.Out,
    base: options.Base = None,
    template: options.Template = "auto",
    max_tokens: options.MaxTokens = 128,
    max_invalid: options.MaxInvalid = 0.05,
    fail_if: options.FailIf = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how the residual stream of one model contracts and travels, layer by layer (SPINAL).

    Example: alignscope trace my-model/ --prompts prompts.jsonl --out runs/trace
    """
    from ..diagnose.gates import Gate

    gates = [Gate.parse(text) for text in fail_if or []]

    from ..diagnose.trace_run import trace_run
    from .finish import command_line, finish
    from .progress import progress_bar

    with progress_bar(quiet) as progress:
        report = trace_run(
            checkpoint,
            prompts,
            out=out,
            base=base,
            template=template,
            max_tokens=max_tokens,
            max_invalid=max_invalid,
            seed=seed,
            dtype=dtype,
            device=device,
            progress=progress,
            command=command_line(),
        )
    finish(report, out, gates, as_json=as_json, quiet=quiet)


def doctor(
    checkpoint: Checkpoint,
    reference: Annotated[
        str | None, typer.Option(help="Check this model beside it: tokenizer, template, head width.")
    ] = None,
    base: options.Base = None,
    prompts: Annotated[Path | None, typer.Option(help="Texts to probe with; default: 16 built in.")] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Say whether a checkpoint is measurable: read-out, batch and padding invariance, tokenizer, template, memory.

    Example: alignscope doctor my-model/
    """
    from ..diagnose.doctor import examine
    from ..probes.inputs import read_prompts
    from ..probes.policy import load_policy_and_reference

    subject, other = load_policy_and_reference(checkpoint, reference, base=base, dtype=dtype, device=device)
    texts = [p.text for p in read_prompts(prompts) if isinstance(p.text, str)] if prompts else None
    result = examine(subject, texts, reference=other)
    if as_json:
        import json

        typer.echo(
            json.dumps(
                {
                    "section": result.section.model_dump(),
                    "findings": [f.model_dump() for f in result.findings],
                    "checks": result.tables["checks"].to_dict(orient="records"),
                },
                indent=2,
                default=str,
            )
        )
        return
    from rich.console import Console

    from .terminal import print_checks

    print_checks(result, Console())
