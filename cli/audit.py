"""The main command: two checkpoints and a file of pairs in, a report out."""

from pathlib import Path
from typing import Annotated

import typer

from . import options


def audit(
    context: typer.Context,
    out: options.Out,
    policy: Annotated[
        str | None, typer.Option(help="Checkpoint to audit: folder, adapter folder, .gguf file or hub id.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Preference pairs: .jsonl, .csv or .parquet; --only weights reads none.")
    ] = None,
    reference: options.Reference = None,
    base: options.Base = None,
    reward: options.Reward = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts for SPINAL; default: those of the pairs, at most 512.")
    ] = None,
    shifted: Annotated[
        list[str] | None,
        typer.Option(
            "--shifted",
            metavar="NAME=FILE",
            help="Pairs from elsewhere, to see whether either reward still holds there; repeatable.",
        ),
    ] = None,
    shift_kind: Annotated[
        list[str] | None,
        typer.Option(
            "--shift-kind",
            metavar="NAME=KIND",
            help="prompt (other questions) or response (the same questions, other answers); default: found out.",
        ),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="A pair table (of `alignscope score`, or your own) in place of models; --shifted too."),
    ] = None,
    reference_samples: Annotated[
        Path | None,
        typer.Option(
            help="Completions drawn from the reference (prompt, completion): how far even those fell, by force."
        ),
    ] = None,
    policy_samples: Annotated[
        Path | None, typer.Option(help="Completions drawn from the policy, for the section information.")
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
    same_training: Annotated[
        bool,
        typer.Option("--same-training", help="Policy and reward model share base, training pairs and template."),
    ] = False,
    share_prefix: options.SharePrefix = "auto",
    ches: options.Ches = False,
    mismatched: options.Mismatched = False,
    terminal: options.Terminal = "last_third",
    controls: Annotated[
        bool,
        typer.Option("--controls", help="More controls of SPINAL: the chat template, noise as large as the update."),
    ] = False,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="NAME=PATH",
            help="A checkpoint trained from the reference without the preferences (SFT, shuffled DPO); repeatable.",
        ),
    ] = None,
    noise_seeds: Annotated[
        int, typer.Option(help="Seeds of the noise control; p can fall to 1 / (seeds + 1).", min=1)
    ] = 3,
    gradient: Annotated[
        str,
        typer.Option(
            help="What the composite's G rests on: weight_share (no pairs), gradient, residual, lens_local (32 pairs, "
            "a backward pass each) or transport_share."
        ),
    ] = "weight_share",
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
    """Say what preference training did to a checkpoint: ranking accuracy, reward accuracy, SPINAL, with intervals.

    \b
    Two folders:    alignscope audit --policy dpo/ --reference sft/ --pairs test.jsonl --out runs/dpo
    An adapter:     alignscope audit --policy lora/ --reference base/ --pairs test.jsonl --out runs/lora
    Under shift:    alignscope audit ... --reward rm/ --only ranking,rewards --shifted maths=maths.jsonl
    From a table:   alignscope audit --scores pairs.parquet --out runs/table
    Token by token: alignscope audit ... --only ranking,information
    With controls:  alignscope audit ... --only spinal --controls --control shuffled=dpo_shuffled/
    A gate in CI:   alignscope audit ... --only ranking --fail-if 'ranking.reward_accuracy.low<0.5'
    """
    from ..diagnose.gates import Gate, require_estimates

    gates = [Gate.parse(text) for text in fail_if or []]
    elsewhere = named(shifted or [], "--shifted", "maths=maths.jsonl")
    kinds = named(shift_kind or [], "--shift-kind", "french=response")
    shifts = {name: kind if " " in kind else f"{kind} shift" for name, kind in kinds.items()}

    from ..cache import cache_folder
    from ..diagnose import table_audit
    from ..diagnose.audit import audit as run_audit
    from ..diagnose.audit_sections import wanted_sections
    from ..diagnose.estimate_names import audit_estimate_names
    from ..diagnose.preference_sections import PreferenceSettings
    from ..errors import InputError
    from .finish import command_line, finish
    from .progress import progress_bar

    if scores is not None:
        if surplus := given(context, OF_MODELS):
            raise InputError(f"--scores reads a table and opens no model: leave {', '.join(surplus)} away")
        settings = PreferenceSettings(
            beta=beta,
            ties=ties,
            smoothing=smoothing,
            assumed_preference=assumed_preference,
            same_training=same_training,
            shifts=shifts,
            seed=seed,
        )
        require_estimates(gates, audit_estimate_names(table_audit.wanted_sections(only), elsewhere))
        report = table_audit.audit_tables(
            scores,
            shifted=elsewhere,
            only=only,
            out=out,
            settings=settings,
            max_invalid=max_invalid,
            command=command_line(),
        )
        finish(report, out, gates, as_json=as_json, quiet=quiet)
        return
    if policy is None:
        missing = "--policy and --pairs" if pairs is None else "--policy"
        raise InputError(f"{missing} missing: name a checkpoint and its pairs, or a pair table with --scores")
    wanted = wanted_sections(only, reference, reward, elsewhere)
    require_estimates(gates, audit_estimate_names(wanted, elsewhere))
    with progress_bar(quiet) as progress:
        report = run_audit(
            policy,
            reference,
            pairs,
            base=base,
            reward=reward,
            prompts=prompts,
            shifted=elsewhere,
            reference_samples=reference_samples,
            policy_samples=policy_samples,
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
            same_training=same_training,
            shifts=shifts,
            share_prefix=options.share_prefix(share_prefix),
            states=ches,
            mismatched=mismatched,
            terminal=terminal,
            max_tokens=max_tokens,
            controls=("halves", "template", "noise") if controls else ("halves",),
            control_checkpoints=named(control or [], "--control", "sft=runs/sft"),
            noise_seeds=noise_seeds,
            gradient=gradient,
            allow_quantized=allow_quantized,
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


# options that say how models are opened or read: they mean nothing beside a finished table
OF_MODELS = (
    "policy", "pairs", "reference", "base", "reward", "prompts", "reference_samples", "policy_samples", "share_prefix",
    "ches", "mismatched", "terminal", "controls", "control", "noise_seeds", "gradient", "allow_quantized", "template",
    "eos", "boundary", "over_length", "max_length", "max_tokens", "dtype", "device", "batch_tokens", "no_cache",
)  # fmt: skip


def given(context: typer.Context, names: tuple[str, ...]) -> list[str]:
    """Those of the options that stand on the command line, as they are written there."""
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    ]


def named(texts: list[str], option: str, example: str) -> dict[str, str]:
    """NAME=VALUE options by name. Raises InputError for another form or a name given twice."""
    from ..errors import InputError

    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise InputError(f"{option} {text}: expected NAME=..., for instance {example}")
        if name in found:
            raise InputError(f"{option} {text}: the name {name} stands for {found[name]} already")
        found[name] = value
    return found
