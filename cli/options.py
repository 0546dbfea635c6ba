"""Options that several commands share, worded once."""

from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[
    Path,
    typer.Option(
        "--out", help="Run directory; an unfinished run with the same settings continues.", show_default=False
    ),
]
Base = Annotated[str | None, typer.Option(help="Base model of an adapter (folder, .gguf file or hub id).")]
Reference = Annotated[
    str | None,
    typer.Option(
        help="The model training started from; of the policy itself 'adapter-disabled' (the adapter off) or "
        "'adapter:NAME' (another one on it, as the 'ref' that TRL keeps)."
    ),
]
Reward = Annotated[str | None, typer.Option(help="Reward model (sequence classifier with one output).")]
Boundary = Annotated[
    str, typer.Option(help="Prompts that merge with their completion in over 5 % of pairs: refuse or accept.")
]
OverLength = Annotated[str, typer.Option(help="Pairs longer than the model's limit: drop or prompt_left.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest prompt + completion, tokens; default the model's limit.")]
BatchTokens = Annotated[int, typer.Option(help="Padded tokens a batch: memory against speed; moves no number.", min=1)]
Template = Annotated[
    str, typer.Option(help="auto (chat template for message lists only), chat, none, or a Jinja file.")
]
Eos = Annotated[str, typer.Option(help="End-of-sequence token after completions: auto, append or none.")]
Dtype = Annotated[str, typer.Option(help="float32 (default), bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Seed = Annotated[int, typer.Option(help="Seed of every resample and sample.")]
MaxInvalid = Annotated[float, typer.Option(help="Share of unusable rows above which the run stops.", min=0, max=1)]
MaxTokens = Annotated[int, typer.Option(help="Prompts are cut from the left to this many tokens for SPINAL.", min=1)]
Beta = Annotated[
    float | None,
    typer.Option(help="Beta of the policy's DPO training; TRL's default, 0.1, is assumed where it is left out."),
]
Ties = Annotated[str, typer.Option(help="Credit of a tie: half, strict (0) or ge (1).")]
Smoothing = Annotated[str, typer.Option(help="Preference from votes: jeffreys, laplace or clip.")]
AssumedPreference = Annotated[
    float | None,
    typer.Option(help="P(chosen preferred) to assume where pairs have one label, e.g. 0.75; without it R* is null."),
]
Terminal = Annotated[
    str, typer.Option(help="Terminal blocks: last_third, last_K (as last_4), or FIRST-LAST (as 21-30).")
]
AllowQuantized = Annotated[bool, typer.Option("--allow-quantized", help="Exponents also of packed low-bit weights.")]
AsJson = Annotated[bool, typer.Option("--json", help="The report as JSON on stdout, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def gate_option(example: str) -> Any:
    """--fail-if with an example that names an estimate of the command's report."""
    told = f"Gate: exit 1 if it holds, e.g. '{example}'; repeatable; .low/.high name interval ends."
    return typer.Option("--fail-if", help=told)


FailIf = Annotated[list[str] | None, gate_option("ranking.accuracy<0.6")]
SharePrefix = Annotated[
    str, typer.Option(help="Score both answers of a pair behind one pass over the prompt: auto, on or off.")
]
Ches = Annotated[
    bool, typer.Option("--ches", help="Read hidden states too: which pairs endanger the chosen answer (one more pass).")
]
Mismatched = Annotated[
    bool, typer.Option("--mismatched", help="Score answers after the wrong prompt too: KTO's reference point z0.")
]


def share_prefix(given: str) -> str | bool:
    """The library's value of --share-prefix. Raises InputError for another word."""
    values: dict[str, str | bool] = {"auto": "auto", "on": True, "off": False}
    if given not in values:
        from ..errors import InputError

        raise InputError(f"--share-prefix {given}: choose from {', '.join(values)}")
    return values[given]
