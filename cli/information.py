"""What an update added, token by token: differential information of two checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .audit import named


def information(
    policy: Annotated[
        str, typer.Argument(help="The trained model: folder, adapter folder, .gguf file or hub id.", show_default=False)
    ],
    reference: Annotated[
        str,
        typer.Argument(
            help="The model training started from; 'adapter-disabled' or 'adapter:NAME' of the policy itself.",
            show_default=False,
        ),
    ],
    out: options.Out,
    pairs: Annotated[Path | None, typer.Option(help="Preference pairs: both responses are read.")] = None,
    responses: Annotated[
        Path | None, typer.Option(help="Or responses: file with `prompt` and `completion` (or `response`).")
    ] = None,
    policy_samples: Annotated[
        Path | None, typer.Option(help="Completions drawn from the policy (`alignscope sample`).")
    ] = None,
    reference_samples: Annotated[
        Path | None, typer.Option(help="Completions drawn from the reference (`alignscope sample`).")
    ] = None,
    via: Annotated[
        list[str] | None,
        typer.Option(help="NAME=CHECKPOINT: a save between reference and policy; repeat in order of training."),
    ] = None,
    base: options.Base = None,
    beta: Annotated[
        float | None, typer.Option(help="Beta of the DPO training, held against what the labels say.")
    ] = None,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="The pairs are those of the training: says so beside their beta.")
    ] = False,
    plausible: Annotated[
        str, typer.Option(help="Plausible tokens: probability under either model, or topK (as top64).")
    ] = "0.0001",
    buckets: Annotated[str, typer.Option(help="Last positions of the buckets of the profile.")] = "5,50",
    top_tokens: Annotated[int, typer.Option(help="Tokens a list.", min=1)] = 10,
    fixed_length: Annotated[
        int | None,
        typer.Option(help="Also the entropy over all strings of so many tokens, behind --sequence-prompts.", min=1),
    ] = None,
    sequence_prompts: Annotated[int, typer.Option(help="Prompts of it; 20 give an interval.", min=1)] = 20,
    samples: Annotated[int | None, typer.Option(help="Draws a prompt of it; default 200.", min=1)] = None,
    paper_style: Annotated[
        bool, typer.Option("--paper-style", help="32 samples of the reference instead; the gate mostly refuses them.")
    ] = False,
    no_floor: Annotated[
        bool, typer.Option("--no-floor", help="Do not measure the noise floor (a second copy of the reference).")
    ] = False,
    one_at_a_time: Annotated[
        bool,
        typer.Option("--one-at-a-time", help="Never hold both models in memory (two checkpoints, no shared weights)."),
    ] = False,
    template: options.Template = "auto",
    eos: options.Eos = "auto",
    boundary: options.Boundary = "refuse",
    over_length: options.OverLength = "drop",
    max_length: options.MaxLength = None,
    share_prefix: options.SharePrefix = "auto",
    max_invalid: options.MaxInvalid = 0.05,
    fail_if: options.FailIf = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    batch_tokens: options.BatchTokens = 8192,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what training added at every response token, and which tokens carry it.

    \b
    Two models:     alignscope information dpo/ sft/ --pairs test.jsonl --beta 0.1 --out runs/info
    With samples:   alignscope sample sft/ --pairs test.jsonl -o sft.jsonl
                    alignscope information dpo/ sft/ --pairs test.jsonl --reference-samples sft.jsonl --out runs/info
    Step by step:   alignscope information dpo/step_4 base/ --via step_1=dpo/step_1 --pairs test.jsonl --out runs/steps
    A gate in CI:   alignscope information ... --fail-if 'information.chosen_kl.low>0.5'
    """
    from ..errors import InputError

    given = responses if pairs is None else pairs
    if given is None or (pairs is not None and responses is not None):
        raise InputError("whose responses are read? Give --pairs FILE or --responses FILE, one of them")
    from ..diagnose.gates import Gate, require_estimates

    gates = [Gate.parse(text) for text in fail_if or []]
    chain = named(via or [], "--via", "step_25=dpo/step_025")
    asked = {
        "beta": beta,
        "in_sample": in_sample,
        "plausible": _plausible(plausible),
        "position_buckets": _bounds(buckets),
        "top_tokens": top_tokens,
        "sequence": None if fixed_length is None else "fixed_length",
        "length": 20 if fixed_length is None else fixed_length,
        "sequence_prompts": sequence_prompts,
        "samples": samples,
        "paper_style": paper_style,
        "measure_floor": not no_floor,
        "one_at_a_time": one_at_a_time,
        "template": template,
        "eos": eos,
        "boundary": boundary,
        "over_length": over_length,
        "max_length": max_length,
        "share_prefix": options.share_prefix(share_prefix),
        "batch_tokens": batch_tokens,
    }

    from ..diagnose.information_run import information_run
    from ..diagnose.information_section import NAMES
    from .finish import command_line, finish
    from .progress import progress_bar

    require_estimates(gates, {"information": NAMES})
    with progress_bar(quiet) as progress:
        report = information_run(
            policy,
            reference,
            given,
            out=out,
            expected="pairs" if responses is None else "responses",
            base=base,
            policy_samples=policy_samples,
            reference_samples=reference_samples,
            via=chain,
            max_invalid=max_invalid,
            seed=seed,
            dtype=dtype,
            device=device,
            options=asked,
            progress=progress,
            command=command_line(),
        )
    finish(report, out, gates, as_json=as_json, quiet=quiet)


def _plausible(text: str) -> float | str:
    """A probability, or topK."""
    from ..errors import InputError

    if text.startswith("top") and text[3:].isdecimal() and int(text[3:]) > 0:
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise InputError(f"--plausible {text}: expected a probability between 0 and 1, or topK as top64")
    return value


def _bounds(text: str) -> tuple[int, ...]:
    """Whole numbers between commas; their order is checked with the settings."""
    from ..errors import InputError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--buckets {text}: expected last positions between commas, as 5,50")
    return tuple(map(int, parts))
