"""A ladder of checkpoints: one trajectory of every number, when it began, whether it broke."""

from pathlib import Path
from typing import Annotated

import typer

from . import options


def series(
    steps: Annotated[
        list[str],
        typer.Argument(
            help="Saves of one run, names ending in the step (step_006, checkpoint-500), or the folder of a run.",
            show_default=False,
        ),
    ],
    out: options.Out,
    reference: Annotated[
        str, typer.Option(help="The model training started from: step 0 of the series.", show_default=False)
    ],
    pairs: Annotated[Path | None, typer.Option(help="Held-out preference pairs; --only weights reads none.")] = None,
    base: options.Base = None,
    reward: options.Reward = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts for SPINAL; default: those of the pairs, at most 512.")
    ] = None,
    numbers: Annotated[
        str | None, typer.Option("--steps", help="Training steps of the saves, as 6,12,25, where names do not say.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated sections: ranking, rewards, spinal, information, weights. Default: all but the last "
            "two, which take long."
        ),
    ] = None,
    beta: options.Beta = None,
    ties: options.Ties = "half",
    smoothing: options.Smoothing = "jeffreys",
    assumed_preference: options.AssumedPreference = None,
    terminal: options.Terminal = "last_third",
    noise_seeds: Annotated[
        int, typer.Option(help="Seeds of noise as large as the last save's update, to set beside the onset.", min=0)
    ] = 0,
    allow_quantized: options.AllowQuantized = False,
    template: options.Template = "auto",
    eos: options.Eos = "auto",
    boundary: options.Boundary = "refuse",
    over_length: options.OverLength = "drop",
    max_length: options.MaxLength = None,
    max_tokens: options.MaxTokens = 128,
    max_invalid: options.MaxInvalid = 0.05,
    fail_if: options.FailIf = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    batch_tokens: options.BatchTokens = 8192,
    seed: options.Seed = 0,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Do not keep or reuse reference scores between runs.")
    ] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Follow every number of every diagnostic over the saves of a training run: when did it begin, did it break?

    \b
    A run folder:   alignscope series runs/dpo/ --reference sft/ --pairs test.jsonl --out runs/series
    Some saves:     alignscope series dpo/step_* --reference base/ --pairs test.jsonl --out runs/series
    With noise:     alignscope series ... --noise-seeds 3
    A gate in CI:   alignscope series ... --fail-if 'series.n_alarms>0'
    """
    from ..diagnose.gates import Gate, require_estimates

    gates = [Gate.parse(text) for text in fail_if or []]
    asked = None if numbers is None else _numbers(numbers)
    if gates:
        from ..diagnose.estimate_names import series_estimate_names
        from ..diagnose.series_run import series_sections

        wanted = series_sections(only, reward, noise_seeds)
        require_estimates(gates, series_estimate_names(wanted, noise=noise_seeds > 0))

    from ..cache import cache_folder
    from ..diagnose.series_run import series as run_series
    from .finish import command_line, finish
    from .progress import progress_bar

    with progress_bar(quiet) as progress:
        report = run_series(
            steps,
            reference,
            pairs,
            out=out,
            numbers=asked,
            base=base,
            reward=reward,
            prompts=prompts,
            only=only,
            template=template,
            eos=eos,
            boundary=boundary,
            over_length=over_length,
            max_length=max_length,
            beta=beta,
            ties=ties,
            smoothing=smoothing,
            assumed_preference=assumed_preference,
            terminal=terminal,
            noise_seeds=noise_seeds,
            allow_quantized=allow_quantized,
            max_tokens=max_tokens,
            max_invalid=max_invalid,
            seed=seed,
            dtype=dtype,
            device=device,
            batch_tokens=batch_tokens,
            cache=None if no_cache else cache_folder(),
            progress=progress,
            command=command_line(),
        )
    finish(report, out, gates, as_json=as_json, quiet=quiet)


def _numbers(text: str) -> list[int]:
    """Whole numbers between commas. Raises InputError naming the one that is none."""
    from ..errors import InputError

    found = []
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise InputError(f"--steps {text}: {part.strip()!r} is no training step; expected 6,12,25 or the like")
        found.append(int(part))
    return found
