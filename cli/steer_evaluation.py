"""`alignscope steer evaluate` and `sweep`: does a vector work, what does it break, and at which strength?"""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .audit import named

ROWS, VECTOR, BESIDE, GENERATION, SWEEP, MODEL, OUTPUT = (
    "Rows",
    "Vector",
    "What it is held against, and what it may break",
    "Generation",
    "Sweep",
    "Model",
    "Output",
)
Vector = Annotated[Path, typer.Argument(help="The vector, .safetensors.", show_default=False)]
Model = Annotated[
    str, typer.Argument(help="Folder, adapter folder, .gguf file or hub id.", show_default=False, metavar="MODEL")
]
Training = Annotated[
    Path | None,
    typer.Option(
        help="Quadruples to fit baselines and the scorer on; default: of the tested file's rows what it can.",
        rich_help_panel=ROWS,
    ),
]
Concept = Annotated[
    str | None, typer.Option(help="What the rows show, where they name no concept.", rich_help_panel=ROWS)
]
Rows = Annotated[
    str,
    typer.Option(
        help="Of the vector's own training file: auto (held out, if any), held_out or all.", rich_help_panel=ROWS
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="auto, chat, none or a Jinja file, in every part; default: as the vector was made with.",
        rich_help_panel=ROWS,
    ),
]
Eos = Annotated[
    str | None,
    typer.Option(
        help="End of sequence after responses: auto, append or none; default: as the vector was made with.",
        rich_help_panel=ROWS,
    ),
]
Scorer = Annotated[
    str,
    typer.Option(
        help="offline (the unsteered model's probabilities), keyword:REGEX or reward:FOLDER.", rich_help_panel=SWEEP
    ),
]
Split = Annotated[float, typer.Option(help="Share of the prompts that choose the strength.", rich_help_panel=SWEEP)]
Temperature = Annotated[float, typer.Option(help="Of the sweep's answers; 0: greedy.", min=0, rich_help_panel=SWEEP)]
Batch = Annotated[
    int, typer.Option(help="Answers generated at a time; moves no number.", min=1, rich_help_panel=GENERATION)
]
OtherWeights = Annotated[
    bool,
    typer.Option("--allow-other-weights", help="Try it on a fine-tuned sibling of its model.", rich_help_panel=VECTOR),
]
Resamples = Annotated[int, typer.Option(help="Resamples of an interval.", min=1, rich_help_panel=OUTPUT)]


def evaluate(
    vector: Vector,
    checkpoint: Model,
    quadruples: Annotated[
        Path,
        typer.Option(
            help="Rows to test on: negative_input, negative_output, positive_input, positive_output.",
            show_default=False,
            rich_help_panel=ROWS,
        ),
    ],
    out: options.Out,
    training: Training = None,
    concept: Concept = None,
    rows: Rows = "auto",
    template: Template = None,
    eos: Eos = None,
    compare: Annotated[
        list[str] | None, typer.Option(help="NAME=VECTOR: another vector; repeatable.", rich_help_panel=BESIDE)
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            help="Between commas: diffmean,random (always there), pca, lat, probe, das, ssv, lang, bipo, reps, "
            "loreft, lora, ablate, prompt; fitted on --training behind the vector's block.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    baseline_epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the rows of those trained by gradient; default: each method's own, 12 to 24.",
            min=1,
            rich_help_panel=BESIDE,
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="Unrelated texts: KL and perplexity, before and after.", rich_help_panel=BESIDE),
    ] = None,
    benign: Annotated[
        Path | None,
        typer.Option(help="Prompts that deserve an answer: refusals before and after.", rich_help_panel=BESIDE),
    ] = None,
    choices: Annotated[
        Path | None,
        typer.Option(help="Questions with `choices` and `answer`: right ones before, after.", rich_help_panel=BESIDE),
    ] = None,
    openings: Annotated[
        Path | None,
        typer.Option(
            help="Quadruples of refusal: how answers to benign prompts begin that refuse; default: the rows' own, "
            "where they are of refusal, else built in.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    positive: Annotated[
        Path | None, typer.Option(help="Texts with the concept, for detection.", rich_help_panel=BESIDE)
    ] = None,
    negative: Annotated[
        Path | None, typer.Option(help="Texts without it, for detection.", rich_help_panel=BESIDE)
    ] = None,
    hard: Annotated[
        Path | None, typer.Option(help="Texts that look like it and are not.", rich_help_panel=BESIDE)
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option(
            help="Grid to sweep, as -2,-1,0,1,2; half of the rows choose, and the rest is tested at the choice.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    scorer: Scorer = "offline",
    split: Split = 0.5,
    temperature: Temperature = 1.0,
    flips: Annotated[
        str,
        typer.Option(
            help="What counts as a flip: same_answer (as unsteered to the other prompt), begins_with_target (the "
            "row's answer), opening (begins as the rows' answers with the concept do).",
            rich_help_panel=GENERATION,
        ),
    ] = "same_answer",
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of an answer, at most.", min=1, rich_help_panel=GENERATION)
    ] = 128,
    batch_size: Batch = 16,
    only: Annotated[
        str | None,
        typer.Option(
            help="Some of sweep, faithfulness, both_ways, side_effects, detection; default: all with inputs.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    allow_small: Annotated[
        bool, typer.Option("--allow-small", help="Fit baselines on fewer than 16 rows.", rich_help_panel=ROWS)
    ] = False,
    allow_other_weights: OtherWeights = False,
    resamples: Resamples = 2000,
    fail_if: Annotated[list[str] | None, options.gate_option("steering.recovered_elicit.low<0.5")] = None,
    base: options.Base = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say whether a vector works, both ways, better than what costs nothing, and what it breaks.

    \b
    The least:      alignscope steer evaluate v.safetensors my-model/ --quadruples test.jsonl --training train.jsonl \
--out runs/v
    All of it:      alignscope steer evaluate v.safetensors my-model/ --quadruples test.jsonl --training train.jsonl \
--baselines pca,reps,prompt --strengths -2,-1,0,1,2 --texts wiki.jsonl --benign safe.jsonl --out runs/all
    A gate in CI:   alignscope steer evaluate ... --fail-if 'steering.recovered_elicit.low<0.5'
    In Python:      alignscope.steering.evaluate_steering(alignscope.load("my-model"), "v.safetensors", "test.jsonl")
    """
    from ..diagnose.gates import Gate, require_estimates

    gates = [Gate.parse(text) for text in fail_if or []]
    beside = named(compare or [], "--compare", "sibling=other.safetensors")
    grid = None if strengths is None else _grid(strengths)
    asked = [name.strip() for name in (baselines or "").split(",") if name.strip()]

    from ..probes.loading import load
    from ..steering.evaluation.evaluating import evaluate_steering
    from ..steering.evaluation.report_names import NAMES
    from .finish import command_line, finish
    from .progress import progress_bar

    require_estimates(gates, {"steering": NAMES})
    subject = load(checkpoint, base=base, dtype=dtype, device=device)
    with progress_bar(quiet) as progress:
        report = evaluate_steering(
            subject,
            vector,
            quadruples,
            training=training,
            compare=beside,
            baselines=asked,
            baseline_epochs=baseline_epochs,
            texts=texts,
            benign=benign,
            choices=choices,
            openings=openings,
            positive=positive,
            negative=negative,
            hard=hard,
            strengths=grid,
            scorer=scorer,
            split=split,
            temperature=temperature,
            flips=flips,
            max_new_tokens=max_new_tokens,
            rows=rows,
            template=template,
            eos=eos,
            concept=concept,
            only=only,
            allow_small=allow_small,
            allow_other_weights=allow_other_weights,
            batch_size=batch_size,
            resamples=resamples,
            seed=seed,
            out=out,
            progress=progress,
            command=command_line(),
        )
    finish(report, out, gates, as_json=as_json, quiet=quiet)


def sweep(
    vector: Vector,
    checkpoint: Model,
    strengths: Annotated[
        str,
        typer.Option(
            help="The grid, as -2,-1,-0.5,0,0.5,1,2; 0 is off, +1 is f+, -1 is f-.",
            show_default=False,
            rich_help_panel=SWEEP,
        ),
    ],
    out: options.Out,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts: `prompt`, optional `prompt_id`, `concept`, `direction`; not with --quadruples.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    quadruples: Annotated[
        Path | None,
        typer.Option(help="Or quadruples: x to elicit, x_c to suppress.", rich_help_panel=ROWS),
    ] = None,
    training: Training = None,
    concept: Concept = None,
    direction: Annotated[str, typer.Option(help="both, elicit or suppress.", rich_help_panel=ROWS)] = "both",
    rows: Rows = "auto",
    template: Template = None,
    eos: Eos = None,
    scorer: Scorer = "offline",
    split: Split = 0.5,
    temperature: Temperature = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of an answer, at most.", min=1, rich_help_panel=GENERATION)
    ] = 128,
    batch_size: Batch = 16,
    allow_other_weights: OtherWeights = False,
    resamples: Resamples = 2000,
    fail_if: Annotated[list[str] | None, options.gate_option("steering.reported_score_elicit.low<1")] = None,
    base: options.Base = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the strength that serves best: half of the prompts choose it, the other half says what it is worth.

    \b
    Quadruples:     alignscope steer sweep v.safetensors my-model/ --quadruples test.jsonl --training train.jsonl \
--strengths -2,-1,-0.5,0,0.5,1,2 --out runs/sweep
    Own prompts:    alignscope steer sweep v.safetensors my-model/ --prompts prompts.jsonl --concept "pirate speech" \
--training train.jsonl --scorer 'keyword:ahoy|matey' --strengths 0,0.5,1,2 --out runs/sweep
    In Python:      alignscope.steering.sweep_steering(alignscope.load("my-model"), "v.safetensors", [0, 1, 2], ...)
    """
    from ..diagnose.gates import Gate, require_estimates

    gates = [Gate.parse(text) for text in fail_if or []]
    grid = _grid(strengths)

    from ..probes.loading import load
    from ..steering.evaluation.report_names import BY_PART
    from ..steering.evaluation.sweeping import sweep_steering
    from .finish import command_line, finish
    from .progress import progress_bar

    require_estimates(gates, {"steering": BY_PART["sweep"]})
    subject = load(checkpoint, base=base, dtype=dtype, device=device)
    with progress_bar(quiet) as progress:
        report = sweep_steering(
            subject,
            vector,
            grid,
            prompts=prompts,
            quadruples=quadruples,
            training=training,
            concept=concept,
            direction=direction,
            scorer=scorer,
            split=split,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            rows=rows,
            template=template,
            eos=eos,
            allow_other_weights=allow_other_weights,
            batch_size=batch_size,
            draws=resamples,
            seed=seed,
            out=out,
            progress=progress,
            command=command_line(),
        )
    finish(report, out, gates, as_json=as_json, quiet=quiet)


def _grid(text: str) -> list[float]:
    """Numbers between commas."""
    import math

    from ..errors import InputError

    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise InputError(f"--strengths {text}: expected numbers between commas, as -2,-1,0,1,2")
    return found
