"""How often does a CUSUM alarm on noise alone? Simulated by length of the series; the table in changepoints.py.

python -m benchmarks.false_alarms [--runs 100000] [--lengths 9 12 ...]

Independent normal increments, no standard error of their own, an alarm in either direction. Beside it the textbook's
rule: alarm at 5 against mean and SD of the first 8 increments, which are never renewed.
"""

import argparse

import numpy as np

from alignscope.diagnose.changepoints import ALARM_AT, BURN_IN, DRIFT, RUNS, cusum_sums
from alignscope.diagnose.statistics import wilson

LENGTHS = (9, 10, 12, 14, 16, 20, 25, 30, 40, 50, 60, 80, 100)
TEXTBOOK_ALARM = 5.0
CHUNK = 10_000  # series at a time


def noise(runs: int, n: int, seed: int) -> np.ndarray:
    """`runs` series of n independent standard normal increments."""
    return np.random.default_rng([seed, n]).normal(size=(runs, n))


def alarmed(increments: np.ndarray) -> int:
    """How many series alarm under the rule of the package."""
    _, up, down = cusum_sums(increments, np.zeros_like(increments))
    return int((np.maximum(up, down) >= ALARM_AT).any(1).sum())


def textbook_alarmed(increments: np.ndarray) -> int:
    """How many alarm with a reference of the first 8 increments for good, at 5."""
    first = increments[:, :BURN_IN]
    z = (increments - first.mean(1, keepdims=True)) / first.std(1, ddof=1, keepdims=True)
    reached = np.zeros(len(z), dtype=bool)
    up, down = np.zeros((2, len(z)))
    for i in range(BURN_IN, z.shape[1]):
        up, down = np.maximum(0.0, up + z[:, i] - DRIFT), np.maximum(0.0, down - z[:, i] - DRIFT)
        reached |= np.maximum(up, down) >= TEXTBOOK_ALARM
    return int(reached.sum())


def simulated(runs: int, n: int, *, seed: int = 0) -> tuple[int, int]:
    """Series of n increments that alarm under the package's rule, and under the textbook's."""
    counts = [0, 0]
    for part, start in enumerate(range(0, runs, CHUNK)):
        increments = noise(min(CHUNK, runs - start), n, seed + part)
        counts[0] += alarmed(increments)
        counts[1] += textbook_alarmed(increments)
    return counts[0], counts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="series a length")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="increments a series")
    given = parser.parse_args()
    print(f"{given.runs:,} series a length\n")
    print("| increments | alarms | share | low | high | textbook |")
    print("|---|---|---|---|---|---|")
    for n in given.lengths:
        ours, theirs = simulated(given.runs, n)
        low, high = wilson(ours, given.runs)
        print(f"| {n} | {ours} | {ours / given.runs:.4f} | {low:.4f} | {high:.4f} | {theirs / given.runs:.4f} |")


if __name__ == "__main__":
    main()
