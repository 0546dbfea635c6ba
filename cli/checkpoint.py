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
    eos: options.Eos = "auto",
    max_tokens: options.MaxTokens = 128,
    preset: Annotated[
        str, typer.Option(help="robust, or paper_guess (a reading of a summary of the paper).")
    ] = "robust",
    window: Annotated[
        str | None,
        typer.Option(help="Ranks of the exponent as shares, FIRST-LAST, or auto; default: the preset's (0.02-0.2)."),
    ] = None,
    estimator: Annotated[
        str, typer.Option(help="Of the exponent: ols, wls, local_median, rank_half, hill or clauset.")
    ] = "ols",
    row_scale: Annotated[str | None, typer.Option(help="Scale rows before their spectrum: rms or l2.")] = None,
    uncentred: Annotated[bool, typer.Option("--uncentred", help="Do not take the mean row away.")] = False,
    drop_top: Annotated[
        int, typer.Option(help="Also without so many dimensions of largest variance; a gate compares.", min=0)
    ] = 0,
    stack: Annotated[
        int | None, typer.Option(help="Also the mean exponent over disjoint stacks of so many prompts.")
    ] = None,
    half_sample: Annotated[
        bool, typer.Option("--half-sample", help="Also the exponent corrected for few rows, where that is allowed.")
    ] = False,
    positions: Annotated[
        str, typer.Option(help="Rows of the spectrum: last, mean or all of a prompt's positions, or so many of them.")
    ] = "last",
    lens: Annotated[
        str | None,
        typer.Option(help="Folder of a tuned lens (`alignscope lens train`) to read out through, or final_only."),
    ] = None,
    shared_lens: Annotated[
        bool, typer.Option("--shared-lens", help="Allow the lens of another model of the same shape.")
    ] = False,
    lens_positions: Annotated[
        str | None,
        typer.Option(
            help="Positions read beside the last: so many inside a prompt (default: the preset's, 4), last (none), all "
            "or response."
        ),
    ] = None,
    vocabulary: Annotated[
        str, typer.Option(help="Also angles on few tokens: K or top_k=K of the last layer, union=K of both layers.")
    ] = "full",
    allow_quantized: options.AllowQuantized = False,
    max_invalid: options.MaxInvalid = 0.05,
    fail_if: options.FailIf = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how the residual stream of one model contracts and travels, layer by layer (SPINAL).

    \b
    As it is:           alignscope trace my-model/ --prompts prompts.jsonl --out runs/trace
    Another estimator:  alignscope trace my-model/ --prompts prompts.jsonl --estimator hill --out runs/hill
    A tuned lens:       alignscope trace my-model/ --prompts prompts.jsonl --lens lenses/my-model --out runs/tuned
    All positions:      alignscope trace my-model/ --prompts prompts.jsonl --positions all --out runs/pooled
    """
    from ..diagnose.gates import Gate, require_estimates

    gates = [Gate.parse(text) for text in fail_if or []]

    from ..diagnose.spinal_estimates import REDUCED_NAMES, TRACE_NAMES
    from ..diagnose.trace_run import trace_run
    from .finish import command_line, finish
    from .progress import progress_bar

    require_estimates(gates, {"spinal_trace": TRACE_NAMES if vocabulary == "full" else TRACE_NAMES + REDUCED_NAMES})
    with progress_bar(quiet) as progress:
        report = trace_run(
            checkpoint,
            prompts,
            out=out,
            base=base,
            template=template,
            eos=eos,
            max_tokens=max_tokens,
            max_invalid=max_invalid,
            seed=seed,
            dtype=dtype,
            device=device,
            options={
                "preset": preset,
                "window": None if window is None else _window(window),
                "estimator": estimator,
                "row_scale": row_scale,
                "center": not uncentred,
                "drop_top": drop_top,
                "stack": "all" if stack is None else stack,
                "bias": "half_sample" if half_sample else None,
                "positions": _count(positions),
                "lens": "logit" if lens is None else lens,
                "shared_lens": shared_lens,
                "lens_positions": None if lens_positions is None else _count(lens_positions),
                "vocabulary": _count(vocabulary),
                "allow_quantized": allow_quantized,
            },
            progress=progress,
            command=command_line(),
        )
    finish(report, out, gates, as_json=as_json, quiet=quiet)


def _count(text: str) -> str | int:
    """A number where the option holds one; its word otherwise, which the library checks."""
    return int(text) if text.isdecimal() else text


def _window(text: str) -> tuple[float, float] | str:
    """FIRST-LAST as shares of the ranks, or auto. Raises InputError for another form."""
    from ..errors import InputError

    first, _, last = text.partition("-")
    if text == "auto":
        return text
    try:
        return float(first), float(last)
    except ValueError as error:
        raise InputError(f"--window {text}: expected two shares of the ranks, as 0.02-0.2, or auto") from error


def doctor(
    checkpoint: Checkpoint,
    reference: Annotated[
        str | None, typer.Option(help="Check this model beside it: tokenizer, template, head width.")
    ] = None,
    base: options.Base = None,
    prompts: Annotated[Path | None, typer.Option(help="Texts to probe with; default: 16 built in.")] = None,
    fail_if: options.FailIf = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Say whether a checkpoint is measurable: read-out, batch and padding invariance, tokenizer, template, memory.

    \b
    One model:      alignscope doctor my-model/
    A gate in CI:   alignscope doctor my-model/ --fail-if 'doctor.batch>5e-6'
    """
    from ..diagnose.gates import Gate, require_estimates

    gates = [Gate.parse(text) for text in fail_if or []]

    from ..diagnose.doctor import NAMES
    from ..diagnose.doctor_run import doctor_run
    from .finish import command_line, report_gates

    require_estimates(gates, {"doctor": NAMES})
    report = doctor_run(
        checkpoint, reference, base=base, prompts=prompts, dtype=dtype, device=device, command=command_line()
    )
    if as_json:
        import json

        checks = report.to_frame("doctor.checks").to_dict(orient="records")
        typer.echo(json.dumps(report.model_dump() | {"checks": checks}, indent=2, default=str))
    else:
        from rich.console import Console

        from .terminal import print_checks

        print_checks(report, Console())
    report_gates(report, gates)
