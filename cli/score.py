"""The pair table alone: log-probabilities of both completions of every pair, for any number of later questions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..probes.pair_table import PairScores


def score(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The table: .parquet (with settings), .csv or .jsonl (plain).", show_default=False
        ),
    ],
    policy: Annotated[
        str | None, typer.Option(help="Checkpoint to score: folder, adapter folder, .gguf file or hub id.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Preference pairs or rankings: .jsonl, .json, .csv or .parquet.")
    ] = None,
    reference: options.Reference = None,
    reward: options.Reward = None,
    base: options.Base = None,
    policy_table: Annotated[
        Path | None, typer.Option(help="Join instead of scoring: the table that gets further columns.")
    ] = None,
    reference_table: Annotated[
        Path | None, typer.Option(help="Table whose policy columns become the reference of --policy-table.")
    ] = None,
    reward_table: Annotated[
        Path | None, typer.Option(help="Table whose explicit scores are put beside those of --policy-table.")
    ] = None,
    template: options.Template = "auto",
    eos: options.Eos = "auto",
    boundary: options.Boundary = "refuse",
    over_length: options.OverLength = "drop",
    max_length: options.MaxLength = None,
    share_prefix: options.SharePrefix = "auto",
    ches: options.Ches = False,
    mismatched: options.Mismatched = False,
    max_invalid: options.MaxInvalid = 0.05,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    batch_tokens: options.BatchTokens = 8192,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not keep or reuse scores between runs.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Counts and settings as JSON on stdout.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the table of log-probabilities that all preference numbers rest on, one row a pair.

    A killed run is continued by the same command. Tables scored apart, say on two machines, are joined by pair_id.

    \b
    Two models:     alignscope score --policy dpo/ --reference sft/ --pairs test.jsonl -o dpo.parquet
    A reward model: alignscope score --policy dpo/ --reward rm/ --pairs test.jsonl -o dpo.parquet
    Apart, joined:  alignscope score --policy dpo/ --pairs test.jsonl -o dpo.parquet
                    alignscope score --policy sft/ --pairs test.jsonl -o sft.parquet
                    alignscope score --policy-table dpo.parquet --reference-table sft.parquet -o both.parquet
    In Python:      alignscope.ranking_report(alignscope.PairScores.read("dpo.parquet"))
    """
    from ..errors import InputError

    joins = [policy_table, reference_table, reward_table]
    if any(joins):
        named = {"--policy": policy, "--pairs": pairs, "--reference": reference, "--reward": reward, "--base": base}
        models = [option for option, value in named.items() if value is not None]
        if models:
            raise InputError(f"{', '.join(models)} with tables to join: score models and join tables in two commands")
        if policy_table is None or not any(joins[1:]):
            raise InputError("to join tables, give --policy-table and one of --reference-table and --reward-table")
        from ..probes.score_table import join_tables

        scores = join_tables(
            policy_table, reference_table, reward_table, out, max_invalid=max_invalid, overwrite=overwrite
        )
        _finish(scores, out, as_json=as_json, quiet=quiet)
        return
    if policy is None or pairs is None:
        raise InputError("give --policy and --pairs to score, or --policy-table and --reference-table to join tables")
    shared = options.share_prefix(share_prefix)

    from ..cache import cache_folder
    from ..probes.score_table import score_table
    from .progress import progress_bar

    with progress_bar(quiet) as progress:
        scores = score_table(
            policy,
            reference,
            pairs,
            out,
            base=base,
            reward=reward,
            dtype=dtype,
            device=device,
            max_invalid=max_invalid,
            overwrite=overwrite,
            template=template,
            eos=eos,
            boundary=boundary,
            over_length=over_length,
            max_length=max_length,
            share_prefix=shared,
            states=ches,
            mismatched=mismatched,
            batch_tokens=batch_tokens,
            cache=None if no_cache else cache_folder(),
            progress=progress,
        )
    _finish(scores, out, as_json=as_json, quiet=quiet)


def _finish(scores: "PairScores", out: Path, *, as_json: bool, quiet: bool) -> None:
    """What was scored, what to know about it, what was set aside and where the table lies."""
    from ..diagnose.manifest import count_reasons, first_rows

    rows = first_rows(scores.invalid)
    if as_json:
        import json

        facts = {
            "table": str(out),
            "counts": scores.counts,
            "set_aside": count_reasons(scores.invalid),
            "set_aside_rows": rows,
            "notices": list(scores.notices),
            "settings": scores.settings,
        }
        typer.echo(json.dumps(facts, indent=2, default=str))
    else:
        typer.echo(scores.summary())
        for notice in scores.notices:
            typer.echo(f"notice: {notice}")
        for row in rows:
            typer.echo(f"set aside: {row}")
    if not quiet:
        plain = "" if out.suffix.lower() in ("", ".parquet") else " (columns alone: settings are kept in .parquet only)"
        typer.echo(f"table: {out}{plain}", err=True)
