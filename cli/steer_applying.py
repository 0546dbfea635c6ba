"""`alignscope steer apply`: what a model says without a vector and with it."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from . import options

VECTOR, TEXT, OUTPUT = "Vector", "Text", "Output"


def apply(
    vector: Annotated[
        Path,
        typer.Argument(
            help="The vector: .safetensors, or .gguf, .svec, .pt of other tools; or the folder of a set.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        str, typer.Argument(help="Folder, adapter folder, .gguf file or hub id.", show_default=False, metavar="MODEL")
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeatable.", rich_help_panel=TEXT)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file of prompts, or quadruples, whose plain inputs are taken.", rich_help_panel=TEXT),
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            help="Another vector or set that acts with it; repeatable, in order, each at the same strength.",
            rich_help_panel=VECTOR,
        ),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="Of several vectors, each clamps what the one before left, and only the last is sure to reach its "
            "target; default: those of one site are solved together, or as the set was saved.",
            rich_help_panel=VECTOR,
        ),
    ] = False,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="+1 clamps to f+, -1 to f-; multiplies what is added; repeatable (default 1). Without the vector is "
            "always shown.",
            rich_help_panel=VECTOR,
        ),
    ] = None,
    neutral: Annotated[
        bool, typer.Option("--neutral", help="Also clamped to the middle of f+ and f-.", rich_help_panel=VECTOR)
    ] = False,
    scale: Annotated[
        str,
        typer.Option(
            help="Of a clamp: mid (middle + strength * half difference), or zero, as published multipliers.",
            rich_help_panel=VECTOR,
        ),
    ] = "mid",
    mode: Annotated[
        str,
        typer.Option(help="Of a clamp of rank 1: set, min (only raises) or max (only lowers).", rich_help_panel=VECTOR),
    ] = "set",
    layer: Annotated[
        int | None,
        typer.Option(help="Of VECTOR, where it holds several layers, this one.", min=0, rich_help_panel=VECTOR),
    ] = None,
    allow_other_weights: Annotated[
        bool,
        typer.Option(
            "--allow-other-weights", help="Try it on a fine-tuned sibling of its model.", rich_help_panel=VECTOR
        ),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longer answers are cut.", min=1, rich_help_panel=TEXT)] = 64,
    temperature: Annotated[
        float, typer.Option(help="0: greedy; above: drawn, each strength from one seed.", min=0, rich_help_panel=TEXT)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", rich_help_panel=TEXT)] = 0,
    template: Annotated[
        str | None,
        typer.Option(help="auto, chat, none or a Jinja file; default: as the vector was made.", rich_help_panel=TEXT),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a batch.", min=1, rich_help_panel=TEXT)] = 16,
    base: options.Base = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write prompt, strength, output as .jsonl instead.", rich_help_panel=OUTPUT),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The rows as JSON on stdout, for machines.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Show what a model says without a vector and with it, strength by strength; greedy unless told otherwise.

    \b
    One prompt:    alignscope steer apply vector.safetensors my-model/ --prompt "How was your day?"
    Strengths:     alignscope steer apply vector.safetensors my-model/ --prompts p.jsonl --strength 1 --strength -1
    Several:       alignscope steer apply vector.safetensors my-model/ --with second.safetensors --prompts p.jsonl
    A saved set:   alignscope steer apply set/ my-model/ --prompts p.jsonl
    To a file:     alignscope steer apply vector.safetensors my-model/ --prompts p.jsonl -o outputs.jsonl
    In Python:     with vector.applied(subject, 1.0): subject.generate(["How was your day?"])
    """
    from ..errors import InputError
    from .output_file import require_free

    if not prompt and prompts is None:
        raise InputError("what should the model answer? Give --prompt TEXT (repeatable) or --prompts FILE")
    if prompt and prompts is not None:
        raise InputError("give --prompt or --prompts, one of them")
    for place, text in enumerate(prompt or [], 1):
        if not text.strip():
            raise InputError(f"--prompt {text!r}: prompt {place} is empty; give the text that the model is to continue")
    if out is not None:
        require_free(out, overwrite=overwrite, endings=(".jsonl",))

    from ..probes.loading import load
    from ..steering.conversion import read_together
    from ..steering.steered_texts import steered_texts
    from .progress import progress_bar

    vectors = read_together([vector, *(with_ or [])], layer=layer, joint=False if sequential else None)
    if sequential and len(vectors.vectors) == 1:
        raise InputError("--sequential: of several vectors, and this is one; give the others with --with FILE")
    for notice in vectors.notices():
        typer.echo(f"notice: {notice}", err=True)
    subject = load(checkpoint, base=base, dtype=dtype, device=device)
    with told_warnings(), progress_bar(quiet) as progress:
        found = steered_texts(
            subject,
            vectors,
            prompt or prompts or "",
            strengths=strength or ([] if neutral else [1.0]),
            neutral=neutral,
            scale=scale,
            mode=mode,
            template=template,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            allow_other_weights=allow_other_weights,
            progress=progress,
        )
    for aside in found.invalid:
        typer.echo(f"set aside: row {aside.row}, {aside.reason}: {aside.detail}", err=True)
    rows = found.to_rows()
    if out is not None:
        from ..steering.files import write_bytes

        write_bytes(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif out is not None:
        typer.echo(f"{len(rows)} outputs: {out}")
    else:
        from .steer_text import print_texts

        print_texts(rows)


@contextmanager
def told_warnings() -> Iterator[None]:
    """Warnings of the library as notices on stderr, each once, in place of lines of source."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(one.message) for one in caught):
        typer.echo(f"notice: {text}", err=True)
