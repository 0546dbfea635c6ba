"""The main command: two checkpoints and a file of pairs in, a report out."""

from pathlib import Path
from typing import Annotated

import typer

from . import options


def audit(
    policy: Annotated[
        str, typer.Option(help="Checkpoint to audit: folder, adapter folder, .gguf file or hub id.", show_default=False)
    ],
    pairs: Annotated[Path, typer.Option(help="Preference pairs: .jsonl, .csv or .parquet.", show_default=False)],
    out: options.Out,
    reference: Annotated[
        str | None,
        typer.Option(help="The model training started from; 'adapter-disabled' for the policy without its adapter."),
    ] = None,
    base: options.Base = None,
    reward: Annotated[str | None, typer.Option(help="Reward model (sequence classifier with one output).")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts for SPINAL; default: those of the pairs, at most 512.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Comma-separated sections: ranking, spinal. Default: all.")] = None,
    beta: Annotated[float, typer.Option(help="Beta of the policy's DPO training.")] = 0.1,
    ties: Annotated[str, typer.Option(help="Credit of a tie: half, strict (0) or ge (1).")] = "half",
    smoothing: Annotated[str, typer.Option(help="Preference from votes: jeffreys, laplace or clip.")] = "jeffreys",
    assumed_preference: Annotated[
        float | None,
        typer.Option(
            help="P(chosen preferred) to assume where pairs have one label, e.g. 0.75; without it R* is null."
        ),
    ] = None,
    terminal: Annotated[
        str, typer.Option(help="Terminal blocks: last_third, last_K (as last_4), or FIRST-LAST (as 21-30).")
    ] = "last_third",
    template: options.Template = "auto",
    eos: options.Eos = "auto",
    boundary: Annotated[
        str, typer.Option(help="Prompts that merge with their completion in over 5 % of pairs: refuse or accept.")
    ] = "refuse",
    over_length: Annotated[
        str, typer.Option(help="Pairs longer than the model's limit: drop or prompt_left.")
    ] = "drop",
    max_length: Annotated[
        int | None, typer.Option(help="Longest prompt + completion, tokens; default the model's limit.")
    ] = None,
    max_tokens: options.MaxTokens = 128,
    max_invalid: options.MaxInvalid = 0.05,
    fail_if: options.FailIf = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    batch_tokens: Annotated[
        int, typer.Option(help="Padded tokens a batch: memory against speed; moves no number.", min=1)
    ] = 8192,
    seed: options.Seed = 0,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Do not keep or reuse reference scores between runs.")
    ] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what preference training did to a checkpoint: ranking accuracy, reward accuracy, SPINAL, with intervals.

    \b
    Two folders:    alignscope audit --policy dpo/ --reference sft/ --pairs test.jsonl --out runs/dpo
    An adapter:     alignscope audit --policy lora/ --reference base/ --pairs test.jsonl --out runs/lora
    A gate in CI:   alignscope audit ... --only ranking --fail-if 'ranking.reward_accuracy.low<0.5'
    """
    from ..diagnose.gates import Gate

    gates = [Gate.parse(text) for text in fail_if or []]

    from ..cache import cache_folder
    from ..diagnose.audit import audit as run_audit
    from .finish import command_line, finish
    from .progress import progress_bar

    with progress_bar(quiet) as progress:
        report = run_audit(
            policy,
            reference,
            pairs,
            base=base,
            reward=reward,
            prompts=prompts,
            only=only,
            out=out,
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
