"""Steering vectors in the terminal: what a file says of itself, and how training went."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..steering import SteeringVector

_SHOWN = 4  # coordinates of a higher rank that are printed


def print_trained(
    vector: "SteeringVector", saved: Path, model: str, scan: Any, *, base: str | None, as_json: bool
) -> None:
    """The summary of a training, where the vector lies, and what to type next."""
    from ..steering.describing import vector_facts

    facts = {"vector": str(saved), **vector_facts(vector)}
    of_base = "" if base is None else f" --base {shlex.quote(base)}"
    command = f"alignscope steer apply {shlex.quote(str(saved))} {shlex.quote(model)}{of_base} --prompt '...'"
    if as_json:
        typer.echo(json.dumps({**facts, "next": command}, indent=2, allow_nan=False))
        return
    console = _console()
    if scan is not None:
        print_scan(scan, console)
    print_facts(str(saved), facts, console, settings=False)
    if vector.edit == "ablate":
        told = "a file acts behind one block; baselines.everywhere(vector, subject) takes the direction out behind all"
        _row(console, "", told)
    _row(console, "saved", str(saved))
    _row(console, "next", command)


def print_scan(scan: Any, console: "Console") -> None:
    """A row a layer: KL on held-out rows by direction, the worse of both, and how often it would be the choice."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("layer", "KL elicit", "KL suppress", "worst KL [95 %]", "chosen in"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in scan.rows:
        times = "" if row.times_best is None else f"{row.times_best:.0%} of resamples"
        mark = "> " if row.layer == scan.chosen else ""
        ways = [_value(row.kl[way].value) for way in ("elicit", "suppress")]
        table.add_row(f"{mark}{row.layer}", *ways, escape(str(row.worst).removesuffix(row.worst.unit).strip()), times)
    console.print(table)
    console.print(escape(scan.summary()), soft_wrap=True)
    console.print()


def print_facts(name: str, facts: Mapping[str, Any], console: "Console | None" = None, *, settings: bool) -> None:
    """What vector_facts found, a line a subject."""
    from rich.markup import escape

    console = console or _console()
    console.print(f"[bold]{escape(name)}[/]: {escape(_what(facts))}", soft_wrap=True, highlight=False)
    for label, text in _lines(facts, settings=settings):
        _row(console, label, text)


def print_set(name: str, facts: Mapping[str, Any], n: int) -> None:
    """What set_facts found of a set of n vectors, before the vectors themselves."""
    from rich.markup import escape

    console = _console()
    how = "solved together at one site (joint)" if facts["joint"] else "one after another (sequential)"
    console.print(f"[bold]{escape(name)}[/]: a set of {n}, clamps {how}", soft_wrap=True, highlight=False)
    for pair in facts["cosines"]:
        place = f"block {pair['site']['layer']} ({pair['site']['component']})"
        _row(console, "|cos|", f"{pair['cosine']:.4f} of vectors {pair['first']} and {pair['second']} at {place}")
    for notice in facts["notices"]:
        _row(console, "notice", notice)


def _what(facts: Mapping[str, Any]) -> str:
    edit = {"clamp": f"a clamp of rank {facts['rank']}", "add": "a vector to add", "ablate": "an ablation"}
    site = facts["site"]
    method = f"{facts['method']}, " if facts["method"] else ""
    return f"{method}{edit[facts['edit']]} at block {site['layer']} ({site['component']}), width {facts['width']}"


def _lines(facts: Mapping[str, Any], *, settings: bool) -> Iterator[tuple[str, str]]:
    """(label, text) of what the file says; left out where it does not."""
    from ..steering.describing import told_positions

    yield "tokens", told_positions(facts["positions"])
    if facts["length"] is not None:
        yield "length", f"{facts['length']:.4g} (strength multiplies it)"
    if facts["factors"] is not None:
        yield from _factor_lines(facts["factors"])
    if facts["data"] is not None:
        yield "rows", _rows(facts["data"])
        yield "held-out loss", _losses(facts)
    if settings:
        yield from _settings_lines(facts)
    for notice in facts["notices"]:
        yield "notice", notice


def _factor_lines(factors: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    n = "" if factors["n"] is None else f", n {factors['n']}"
    for label, side in (("f+", "positive"), ("f-", "negative")):
        values, spread = factors[side], factors[f"std_{side}"]
        parts = [
            f"{value:.4g}" + ("" if spread is None else f" (std {spread[k]:.3g})")
            for k, value in enumerate(values[:_SHOWN])
        ]
        more = f", ... ({len(values)} in all)" if len(values) > _SHOWN else ""
        yield label, f"{', '.join(parts)}{more}{n}"
    auroc = factors["auroc"]
    if auroc["value"] is None:
        yield "AUROC", auroc["reason"]
        return
    below = " (f+ lies below f-: 0 separates as well as 1)" if factors["positive"] < factors["negative"] else ""
    yield "AUROC", f"{auroc['value']:.3f} on {auroc['n']} held-out prompts{below}"


def _rows(data: Mapping[str, Any]) -> str:
    aside = ", ".join(f"{n} {reason}" for reason, n in data["set_aside"].items()) or "none"
    return f"{data['n_train']} trained on, {data['n_held_out']} held out, set aside: {aside} ({data['name']})"


def _losses(facts: Mapping[str, Any]) -> str:
    before, after = facts["held_out"]["before"], facts["held_out"]["after"]
    unedited = facts["held_out"].get("unedited")
    shown, absent = [], []
    for way, first in before.items():
        if first["value"] is None:
            absent.append(f"{way}: {first['reason']}")
        else:
            none = unedited[way]["value"] if unedited else None
            beside = "" if none is None else f" (no edit: {_value(none)})"
            shown.append(f"{way} {_value(first['value'])} -> {_value(after[way]['value'])}{beside}")
    if not shown:
        return absent[0].partition(": ")[2]
    known = next(first for first in before.values() if first["value"] is not None)
    name = facts["metrics"].get("loss") or facts["method"]
    if "exported_from" in facts["more"]:
        name = f"of the {facts['more']['exported_from']} it was exported from, {name}"
    return "; ".join([", ".join(shown) + f" ({name}, {known['unit']}, n {known['n']} rows)", *absent])


def _settings_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    known = facts["fingerprint"]
    if known is None:
        hint = facts["more"].get("model_hint")
        yield "model", "not said" + (f" (hint: {hint})" if hint else "") + "; fits any model of its width"
    else:
        sizes = f"{known.get('model_type')}, {known.get('n_layers')} blocks, width {known.get('hidden_size')}"
        yield "model", f"{sizes}, weights {str(known.get('weights'))[:12]}, template {str(known.get('template'))[:12]}"
    if facts["data"] is not None:
        yield "data sha256", str(facts["data"]["sha256"])
    if facts["settings"]:
        yield "settings", ", ".join(f"{name}={value}" for name, value in facts["settings"].items())
    metrics = {name: value for name, value in facts["metrics"].items() if not isinstance(value, list | dict)}
    if metrics:
        yield "metrics", ", ".join(f"{name}={_value(value)}" for name, value in metrics.items())
    more = {name: value for name, value in facts["more"].items() if isinstance(value, str | int | float)}
    if more:
        yield "more", ", ".join(f"{name}={value}" for name, value in more.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _row(console: "Console", label: str, text: str) -> None:
    """Label and text in columns of their own; a command stays whole, to be copied."""
    from rich.markup import escape
    from rich.table import Table

    if label in ("next", "saved"):
        console.print(f"[dim]{label:<14}[/]{escape(text)}", soft_wrap=True, highlight=False)
        return
    grid = Table.grid()
    grid.add_column(width=14, no_wrap=True, style="yellow" if label == "notice" else "dim")
    grid.add_column(overflow="fold")
    grid.add_row(label, escape(text))
    console.print(grid)


def _console() -> "Console":
    from rich.console import Console

    return Console(width=max(96, Console().width))  # whole lines, whatever the terminal


def print_texts(rows: Sequence[Mapping[str, Any]], console: "Console | None" = None) -> None:
    """A block a prompt: without the vector, then strength by strength. rows: as of SteeredTexts.to_rows."""
    from rich.markup import escape
    from rich.table import Table

    console = console or _console()
    shown: int | None = None
    table = Table()
    for number, row in enumerate(rows):
        if row["row"] != shown:
            shown = row["row"]
            table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
            table.add_column("strength", justify="right", no_wrap=True, style="cyan")
            table.add_column("output", overflow="fold")
            console.print(f"\n[bold]prompt {shown}[/]  {escape(_plain(row['prompt']))}", highlight=False)
        mark = "" if row["finished"] else " [dim]...[/]"
        table.add_row(label_of(row), escape(row["output"]) + mark)
        if number + 1 == len(rows) or rows[number + 1]["row"] != shown:
            console.print(table)


def label_of(row: Mapping[str, Any]) -> str:
    """off, the strength with its sign, or middle."""
    if row["strength"] is None:
        return "middle"
    return "off" if row["strength"] == 0 else f"{row['strength']:+g}"


def _plain(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
