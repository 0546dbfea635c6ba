"""`alignscope steer inspect` and `convert`: what a file holds, and what is lost where it becomes another tool's."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..probes.inputs import PromptFile
    from ..probes.subject import Subject
    from ..steering import SteeringVector
    from ..steering.export_cost import ExportCost
    from ..steering.formats.directions import Export

VECTOR, COST, OUTPUT = "Vector", "What the export costs", "Output"
File = Annotated[
    Path,
    typer.Argument(
        help="The vector: .safetensors, or .gguf, .svec, .pt of other tools; or the folder of a set.",
        show_default=False,
    ),
]
Layer = Annotated[int | None, typer.Option(help="Of a file with several layers, this one alone.", min=0)]


def inspect(
    file: File,
    layer: Layer = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON on stdout, for machines.")] = False,
) -> None:
    """Say what a vector's file holds: where it acts, how far, what it was made of and on which model. Loads no model.

    \b
    alignscope steer inspect vector.safetensors
    alignscope steer inspect control_vector.gguf --json
    alignscope steer inspect set/
    """
    from ..steering.conversion import format_of, read_vectors
    from ..steering.describing import vector_facts
    from ..steering.set_files import is_set

    if is_set(file):
        _inspect_set(file, layer, as_json=as_json)
        return
    found = [vector_facts(vector) for vector in read_vectors(file, layer=layer)]
    if as_json:
        shown = {"file": str(file), "format": format_of(file), "vectors": found}
        typer.echo(json.dumps(shown, indent=2, allow_nan=False))
        return
    from .steer_text import print_facts

    for facts in found:
        print_facts(str(file), facts, settings=True)


def _inspect_set(folder: Path, layer: int | None, *, as_json: bool) -> None:
    from ..steering.conversion import SET, read_together
    from ..steering.describing import vector_facts
    from ..steering.set_files import load_set, read_card, set_facts

    vectors = read_together([folder], layer=layer)
    members = zip(read_card(folder)[1], load_set(folder).vectors, strict=True)
    files = [str(member.file) for member, vector in members if layer is None or vector.site.layer == layer]
    each = [{"file": file, **vector_facts(one)} for file, one in zip(files, vectors.vectors, strict=True)]
    facts = set_facts(vectors)
    if as_json:
        shown = {"file": str(folder), "format": SET, **facts, "vectors": each}
        typer.echo(json.dumps(shown, indent=2, allow_nan=False))
        return
    from .steer_text import print_facts, print_set

    print_set(str(folder), facts, len(each))
    for one in each:
        print_facts(one["file"], one, settings=True)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="The vector as it is; also a set, and AxBench's {Method}_weight.pt or its folder.",
            show_default=False,
            metavar="IN",
        ),
    ],
    target: Annotated[Path, typer.Argument(help="What to write.", show_default=False, metavar="OUT")],
    to: Annotated[
        str | None,
        typer.Option(
            help="safetensors, gguf (llama.cpp, repeng, EasySteer), svec (activation-steering) or steering-vectors; "
            "default: by the ending of OUT (.safetensors, .gguf, .svec, .pt).",
            rich_help_panel=VECTOR,
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Of a file with several layers, this one alone.", min=0, rich_help_panel=VECTOR)
    ] = None,
    row: Annotated[
        int | None,
        typer.Option(help="Of AxBench's weights, the concept of this row, from 0.", min=0, rich_help_panel=VECTOR),
    ] = None,
    concept: Annotated[
        str | None,
        typer.Option(help="The same by its text in metadata.jsonl.", rich_help_panel=VECTOR),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model it belongs to: measures what the export costs; gives a file of another tool a fingerprint.",
            rich_help_panel=COST,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to measure it behind, or quadruples; default: the inputs of the vector's own data.",
            rich_help_panel=COST,
        ),
    ] = None,
    allow_other_weights: Annotated[
        bool,
        typer.Option("--allow-other-weights", help="Measure on a sibling of its model.", rich_help_panel=COST),
    ] = False,
    limit: Annotated[
        int, typer.Option(help="At most so many distinct prompts, sampled.", min=1, rich_help_panel=COST)
    ] = 64,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of the steered model behind each prompt.", min=1, rich_help_panel=COST)
    ] = 32,
    seed: Annotated[int, typer.Option(help="Of that sample and of the interval.", rich_help_panel=COST)] = 0,
    base: options.Base = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="What was written, lost and measured as JSON.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Write a vector as a file of another tool, or theirs as one of ours; says what is lost and, with a model, its KL.

    \b
    For llama.cpp:   alignscope steer convert vector.safetensors vector.gguf --model my-model/ --prompts prompts.jsonl
    From another:    alignscope steer convert control_vector.gguf vector.safetensors --layer 12 --model my-model/
    Of AxBench:      alignscope steer convert DiffMean_weight.pt vector.safetensors --row 3 --model my-model/
    In Python:       alignscope.SteeringVector.load("vector.safetensors").to_gguf("vector.gguf")
    """
    from ..errors import InputError
    from ..steering.conversion import OWN, bound, format_of, read_vectors, require_writable, write_vectors
    from ..steering.files import ENDING
    from .output_file import require_free
    from .steer_applying import told_warnings

    kinds = format_of(source), format_of(target, to)
    if kinds[0] == kinds[1] and layer is None:
        raise InputError(f"{source} and {target}: both are {kinds[0]}; copy the file, or name another format with --to")
    if prompts is not None and model is None:
        raise InputError("--prompts without --model: what the export costs is measured on a model; give it too")
    if row is not None and concept is not None:
        raise InputError("give --row or --concept, one of them")
    if kinds[1] == OWN and not target.name.endswith(ENDING):
        target = target.with_name(f"{target.name}{ENDING}")
    require_free(target, overwrite=overwrite)
    vectors = read_vectors(source, layer=layer, concept=concept if row is None else row)
    asked = _asked(vectors, prompts) if model is not None and kinds[1] != OWN else None
    cost: ExportCost | str | None = None
    if model is not None:
        from ..probes.loading import load

        subject = load(model, base=base, dtype=dtype, device=device)
        with told_warnings():
            vectors = [bound(vector, subject, allow_other_weights=allow_other_weights) for vector in vectors]
            require_writable(vectors, target, name=to)
            if kinds[1] != OWN:
                cost = _cost(
                    subject, vectors, asked, limit=limit, max_new_tokens=max_new_tokens, seed=seed, quiet=quiet
                )
    export = write_vectors(vectors, target, name=to)  # last: what is refused leaves no file
    _print(export, kinds[1], cost, as_json=as_json)


def _asked(vectors: "list[SteeringVector]", prompts: Path | None) -> "PromptFile | None":
    """The prompts that were given, else those of the vector's own data; None: these are gone."""
    from ..steering.plain_inputs import own_inputs, plain_inputs

    return own_inputs(vectors[0].metadata) if prompts is None else plain_inputs(prompts)


def _cost(
    subject: "Subject",
    vectors: "list[SteeringVector]",
    asked: "PromptFile | None",
    *,
    limit: int,
    max_new_tokens: int,
    seed: int,
    quiet: bool,
) -> "ExportCost | str":
    """What the export costs, or why that was not measured."""
    from ..steering.export_cost import export_cost
    from .progress import progress_bar

    if asked is None:
        return "not measured: the vector's own data are not where they were, so give --prompts"
    with progress_bar(quiet) as progress:
        return export_cost(
            subject, vectors, asked, limit=limit, max_new_tokens=max_new_tokens, seed=seed, progress=progress
        )


def _print(export: "Export", kind: str, cost: "ExportCost | str | None", *, as_json: bool) -> None:
    if as_json:
        facts: dict[str, object] = {"file": str(export.path), "format": kind, "lost": list(export.lost)}
        if isinstance(cost, str):
            facts["kl"] = {"value": None, "reason": cost}
        elif cost is not None:
            facts |= {"kl": cost.exported.model_dump(), "kl_no_edit": cost.off.model_dump()}
        typer.echo(json.dumps(facts, indent=2, allow_nan=False))
        return
    typer.echo(f"{export.path} ({kind})")
    for line in export.lost:
        typer.echo(f"lost: {line}")
    if not export.lost:
        typer.echo("nothing was lost")
    if cost is not None:
        typer.echo(cost if isinstance(cost, str) else cost.summary())
