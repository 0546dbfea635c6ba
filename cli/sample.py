"""Completions of a model's own, for the numbers that need samples of policy or reference."""

import json
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .checkpoint import Checkpoint


def sample(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="The samples, a .jsonl file.", show_default=False)],
    prompts: Annotated[Path | None, typer.Option(help="Prompts: file with a column `prompt`.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Or pairs: their distinct prompts are taken.")] = None,
    base: options.Base = None,
    n: Annotated[int, typer.Option("-n", help="Completions a prompt.", min=1)] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longer ones are cut, and say so.", min=1)] = 128,
    limit: Annotated[int, typer.Option(help="With --pairs: so many distinct prompts at most, seeded.", min=1)] = 512,
    template: options.Template = "auto",
    max_invalid: options.MaxInvalid = 0.05,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Prompts a batch.", min=1)] = 16,
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw completions from a model at temperature 1, nothing cut off: what --reference-samples and others take.

    \b
    alignscope sample sft/ --pairs pairs.jsonl -n 2 --max-new-tokens 64 -o reference_samples.jsonl
    alignscope audit --policy dpo/ --reference sft/ --pairs pairs.jsonl \\
        --reference-samples reference_samples.jsonl --out runs/audit
    """
    from ..errors import InputError

    if out.suffix != ".jsonl":
        raise InputError(f"{out}: samples are written as .jsonl; name the file so")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; --overwrite replaces it")
    if (prompts is None) == (pairs is None):
        raise InputError("what should the model answer? Give --prompts FILE or --pairs FILE, one of them")
    asked = prompts or pairs
    assert asked is not None
    from .. import load
    from ..probes.drawing import draw_samples
    from ..probes.inputs import distinct_prompts, read_pairs, read_prompts
    from .progress import progress_bar

    chosen = read_prompts(asked) if pairs is None else distinct_prompts(read_pairs(pairs), limit, seed)
    with progress_bar(quiet) as progress:
        rows = draw_samples(
            load(checkpoint, base=base, dtype=dtype, device=device),
            chosen,
            n=n,
            max_tokens=max_new_tokens,
            template=template,
            batch_size=batch_size,
            seed=seed,
            max_invalid=max_invalid,
            progress=progress,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    cut, other = sum(not row["finished"] for row in rows), sum(not row["same_ids"] for row in rows)
    typer.echo(f"{len(rows)} completions of {len(chosen)} prompts, {cut} cut at {max_new_tokens} tokens: {out}")
    if other:
        typer.echo(f"notice: the text of {other} becomes other ids than were drawn; they are scored by those")
