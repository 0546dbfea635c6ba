"""How does this version compare with bare limits and with its peers, on this machine? Writes benchmarks/RESULTS.md.

The rows are those of C1-C12 that have a benchmark (kernels.py, pairs.py), I1 and I2 (information.py), S1
(spinal_cost.py), D1 and D2 (steering_cost.py). Twenty minutes or so on two cores that nothing else uses, 8 GB of memory
for the padded peer; other work makes the rows it meets say "contended".
"""

import argparse
import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .measuring import Row

RESULTS = Path(__file__).with_name("RESULTS.md")
GOALS = [f"C{number}" for number in range(1, 13)]
PEERS = ("torch", "transformers", "numpy")  # their versions stand in the results
PROTOCOL = (
    "Times: the calls of a row ran in turn, round by round after a warm-up; `ratio` is one of median wall seconds, "
    "`low` and `high` are the extremes of single rounds, and no goal is judged (contended) where other processes kept "
    "more than half a core busy. Memory: growth of the resident size during one call, each in a process of its own, "
    "apart from the times."
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="after the warm-up (default 5; fewer are a trial)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that everything runs; its ratios mean nothing"
    )
    parser.add_argument(
        "--out", type=Path, help="file to write; default RESULTS.md beside this module, with --quick none"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    text = measure(rounds=options.rounds, threads=options.threads, quick=options.quick)
    out = options.out or (None if options.quick else RESULTS)
    if out is not None:
        out.write_text(text, encoding="utf-8")
        print(f"\nwritten: {out}")


def measure(*, rounds: int, threads: int, quick: bool) -> str:
    """Run every benchmark, show a line for each row as it comes, print and return the whole page."""
    load = os.getloadavg()[0]
    # here, not above: --help does not wait for torch
    from . import information, kernels, pairs, spinal_cost, steering_cost

    rows: list[Row] = []
    for module in (kernels, pairs, information, spinal_cost, steering_cost):
        for row in module.rows(rounds=rounds, threads=threads, quick=quick):
            print(f"{row.id:4} {row.ratio:8.2f}  goal {row.goal:8} {row.met:10} {row.what}", flush=True)
            rows.append(row)
    text = page(rows, rounds=rounds, threads=threads, load=load, quick=quick)
    print(f"\n{text}")
    return text


def page(rows: "Sequence[Row]", *, rounds: int, threads: int, load: float, quick: bool) -> str:
    """The results as Markdown: where they were measured and how, the table, and what was not measured."""
    from .measuring import processor_name, table

    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    missing = [goal for goal in GOALS if goal not in {row.id for row in rows}]
    facts = {
        "Date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "Processor": f"{processor_name()}, {os.cpu_count()} cores, {platform.system()}",
        "Threads": str(threads),
        "Versions": f"Python {platform.python_version()}, {versions}",
        "Load before": f"{load:.2f} (one minute's mean)",
        "Rounds": f"{rounds}" + ("" if rounds >= 5 else ", under the 5 that a result needs: a trial"),
    }
    about = "Made by `make bench`. Goals are the project's own; a limit is what arithmetic alone would allow."
    lines = ["# Benchmarks", "", about, ""]
    if quick:
        lines += ["**Quick: small sizes, a check that everything runs. The ratios mean nothing.**", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", PROTOCOL, "", table(rows), ""]
    if missing:
        lines += [f"No time is measured here for {', '.join(missing)}.", ""]
    lines += ["The GPU rows (G1-G10) were not run.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
