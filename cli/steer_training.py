"""`alignscope steer train`: a vector from quadruples or preference pairs, by CDAS or by what it has to beat."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from ..steering import Positions, SteeringVector

DATA, WHERE, TRAINING, OTHERS, MODEL, OUTPUT = (
    "Data",
    "Where it acts",
    "Training (a method that does not take an option refuses it)",
    "Of other methods than cdas",
    "Model",
    "Output",
)


def train(
    checkpoint: Checkpoint,
    quadruples: Annotated[
        Path,
        typer.Argument(
            help="Rows negative_input, negative_output, positive_input, positive_output (.jsonl, .json, .csv, "
            ".parquet); or preference pairs with --concept.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The vector, .safetensors.", show_default=False, rich_help_panel=OUTPUT)
    ],
    layer: Annotated[
        int | None, typer.Option(help="Block it acts behind, 0-based.", min=0, rich_help_panel=WHERE)
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Train behind each of these blocks (4,8,12, or scan: all of them) and keep the one with the smallest "
            "worst KL on held-out rows; cdas and das.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    component: Annotated[
        str | None,
        typer.Option(help="resid_post (default), resid_pre, attn_out or mlp_out.", rich_help_panel=WHERE),
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Tokens edited: all (default), prompt or generation.", rich_help_panel=WHERE)
    ] = None,
    last: Annotated[
        int | None, typer.Option(help="Of the prompt only the last so many.", min=1, rich_help_panel=WHERE)
    ] = None,
    span: Annotated[
        str | None, typer.Option(help="Only real tokens START-STOP, 0-based, STOP not included.", rich_help_panel=WHERE)
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Leading tokens left alone, or auto (default: what all templated prompts begin with, or the BOS).",
            rich_help_panel=WHERE,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Token whose state is taken from the other run: prompt_last (default), or a text in every prompt.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    concept: Annotated[
        str | None,
        typer.Option(
            help="What the positive outputs show, in a few words; preference pairs need it.", rich_help_panel=DATA
        ),
    ] = None,
    shows: Annotated[
        str | None,
        typer.Option(help="Of preference pairs, what shows it: chosen (default), rejected.", rich_help_panel=DATA),
    ] = None,
    concept_template: Annotated[
        str | None,
        typer.Option(
            help="Text with {prompt} and {concept} that calls for it; default '{prompt}', a blank line, 'Include this "
            "in your answer: {concept}'.",
            rich_help_panel=DATA,
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(help="Share of rows not trained on, by prompt (default 0.2).", min=0, rich_help_panel=DATA),
    ] = None,
    max_response_tokens: Annotated[
        int | None, typer.Option(help="Responses are cut to so many (default 128).", min=1, rich_help_panel=DATA)
    ] = None,
    allow_small: Annotated[
        bool, typer.Option("--allow-small", help="Take fewer than 16 usable rows.", rich_help_panel=DATA)
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            help="auto, chat, none or a Jinja file; default chat where the tokenizer has a template, else none.",
            rich_help_panel=DATA,
        ),
    ] = None,
    eos: Annotated[
        str | None,
        typer.Option(help="End of sequence after responses: auto (default), append or none.", rich_help_panel=DATA),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="cdas, das, diffmean, caa, pca, lat, probe, ssv, lang, bipo, reps, random or ablate.",
            rich_help_panel=TRAINING,
        ),
    ] = "cdas",
    rank: Annotated[
        int | None, typer.Option(help="Dimensions of the subspace (default 1).", min=1, rich_help_panel=TRAINING)
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="jsd (default), kl_source, kl_edited or ce.", rich_help_panel=TRAINING)
    ] = None,
    directions: Annotated[
        str | None, typer.Option(help="both (default), elicit or suppress.", rich_help_panel=TRAINING)
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Start: random (default) or diffmean.", rich_help_panel=TRAINING)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Rate of the first step, falls to 0 (default 0.04).", rich_help_panel=TRAINING)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the rows (default 18; bipo 12).", min=1, rich_help_panel=TRAINING)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="cdas, das: stop after so many epochs without a smaller held-out loss, and keep the best (default: "
            "never).",
            min=1,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a step (default 8).", min=1, rich_help_panel=TRAINING)
    ] = None,
    grad_clip: Annotated[
        float | None, typer.Option(help="Largest norm of a gradient (default 1).", rich_help_panel=TRAINING)
    ] = None,
    reduction: Annotated[
        str | None, typer.Option(help="Mean over token (default) or example.", rich_help_panel=TRAINING)
    ] = None,
    cache_bytes: Annotated[
        float | None,
        typer.Option(help="What may be kept of runs of the model (default 2e9).", min=0, rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of split, start and batches (default 42).", rich_help_panel=TRAINING)
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="diffmean, probe, ablate: states of all tokens (default), or last.", rich_help_panel=OTHERS),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(help="Length of what is added: difference, largest, gap (f+ - f-), unit.", rich_help_panel=OTHERS),
    ] = None,
    pca: Annotated[
        str | None, typer.Option(help="pca: pca_diff (default), pca_center or pca_positive.", rich_help_panel=OTHERS)
    ] = None,
    l1: Annotated[float | None, typer.Option(help="probe: penalty (default 0.001).", rich_help_panel=OTHERS)] = None,
    beta: Annotated[float | None, typer.Option(help="bipo: of its DPO (default 0.1).", rich_help_panel=OTHERS)] = None,
    draw: Annotated[
        int | None, typer.Option(help="random: seed of the direction (default 0).", rich_help_panel=OTHERS)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of an adapter (folder, .gguf file or hub id).", rich_help_panel=MODEL)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32 (default), bfloat16 or float16.", rich_help_panel=MODEL)
    ] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...", rich_help_panel=MODEL)] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The summary as JSON on stdout, for machines.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Train a vector that makes a model show a concept, or keep it back; says how well the prompts separate along it.

    \b
    As the paper does:  alignscope steer train my-model/ quadruples.jsonl --layer 12 -o vector.safetensors
    Choose the layer:   alignscope steer train my-model/ quadruples.jsonl --layers 8,12,16 -o vector.safetensors
    Preference pairs:   alignscope steer train my-model/ pairs.jsonl --concept "a refusal" --layer 12 -o v.safetensors
    What to beat:       alignscope steer train my-model/ quadruples.jsonl --method diffmean --layer 12 -o m.safetensors
    In Python:          alignscope.train_cdas(alignscope.load("my-model"), "quadruples.jsonl", layer=12).save("vector")
    """
    from ..errors import InputError
    from .output_file import require_free

    if (layer is None) == (layers is None):
        raise InputError("behind which block? Give one of --layer L and --layers L1,L2,... (or --layers scan: all)")
    scanned = None if layers is None else _layers(layers)
    if out.suffix != ".safetensors":
        out = out.with_name(f"{out.name}.safetensors")
    require_free(out, overwrite=overwrite)

    from ..probes.loading import load
    from ..steering.by_name import require_options, scan_options, train_by_name
    from ..steering.quadruples import read_quadruples
    from .progress import progress_bar

    given = {
        "component": component, "source": source, "positions": _positions(positions, last, span, prefix),
        "holdout": holdout, "max_response_tokens": max_response_tokens, "allow_small": allow_small or None,
        "template": template, "eos": eos, "rank": rank, "loss": loss, "directions": directions, "init": init,
        "lr": lr, "epochs": epochs, "batch_size": batch_size, "grad_clip": grad_clip, "reduction": reduction,
        "cache_bytes": cache_bytes, "seed": seed, "tokens": tokens, "norm": norm, "pca": pca, "l1": l1, "beta": beta,
        "draw": draw, "patience": patience,
    }  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    require_options(method, chosen)
    settled = {} if layers is None else scan_options(method)
    file = read_quadruples(quadruples, concept=concept, template=concept_template, shows=shows or "chosen")
    subject = load(checkpoint, base=base, dtype=dtype, device=device)
    scan = None
    with progress_bar(quiet) as progress:
        if layers is not None:
            from ..steering.evaluation import scan_layers

            scan = scan_layers(subject, file, scanned, progress=progress, **settled, **chosen)
            vector = scan.vector
        else:
            assert layer is not None
            vector = train_by_name(method, subject, file, layer=layer, progress=progress, **chosen)
    if scan is not None:
        vector = _with_scan(vector, scan)
    saved = vector.save(out)

    from .steer_text import print_trained

    print_trained(vector, saved, checkpoint, scan, base=base, as_json=as_json)


def _layers(text: str) -> list[int] | None:
    """Blocks by number; None: all ("scan", or "all"). InputError for another form."""
    from ..errors import InputError

    if text in ("all", "scan"):
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--layers {text}: expected numbers of blocks such as 4,8,12, or scan: all of them")
    return [int(part) for part in parts]


def _positions(where: str | None, last: int | None, span: str | None, prefix: str | None) -> "Positions | None":
    """What was asked of the edited tokens; None: nothing. InputError for another form."""
    if where is None and last is None and span is None and prefix is None:
        return None
    from ..errors import InputError
    from ..steering import Positions

    first, _, stop = (span or "0-1").partition("-")
    if not (first.isdecimal() and stop.isdecimal()):
        raise InputError(f"--span {span}: expected START-STOP, such as 0-5")
    if prefix is not None and prefix != "auto" and not prefix.isdecimal():
        raise InputError(f"--prefix {prefix}: expected a number of tokens, or auto")
    return Positions(
        where or "all",
        prefix=int(prefix) if prefix is not None and prefix.isdecimal() else "auto",
        last=last,
        span=None if span is None else (int(first), int(stop)),
    )


def _with_scan(vector: "SteeringVector", scan: Any) -> "SteeringVector":
    """The vector with the table of the scan that chose its layer."""
    import json
    from dataclasses import replace

    table = json.loads(scan.to_frame().to_json(orient="records", double_precision=15))
    return replace(vector, metadata={**vector.metadata, "layer_scan": table})
