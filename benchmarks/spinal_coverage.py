"""Do SPINAL's intervals and alarms keep their promise? Made-up layers with known exponents; not a timed benchmark.

python -m benchmarks.spinal_coverage --simulations 200 --splits 100

1. Exponents of Gaussian rows with singular values k^-a, N = 4 d: bias of the estimate, and how often the 95 % interval
   holds the expected estimate at that N (the mean over simulations), which is what a jackknife can cover.
2. One model against itself on disjoint halves of its prompts: how often a family of tests alarms (nominal 5 %).
"""

import argparse
from typing import Any

import numpy as np

from alignscope.diagnose.spinal_controls import halves_control
from alignscope.diagnose.spinal_reading import Readings, TracedPrompt, layer_pairs
from alignscope.diagnose.spinal_trace import SpinalTrace, TracedModel, analyse

SETTINGS: dict[str, Any] = {
    "positions": "last", "lens": "logit", "lens_positions": 0, "temperature": 1.0, "window": (0.02, 0.2),
    "groups": 16, "seed": 0, "max_tokens": 128, "centering": "column",
}  # fmt: skip


def made_up(rows: np.ndarray, random: np.random.Generator, seed: int) -> SpinalTrace:
    """A trace of given residual rows [layers, N, d]; angles and entropies are correlated over layers, as real ones."""
    layers, n, width = rows.shape
    prompt = 0.3 * random.normal(size=n)
    readings = Readings(
        rows=rows.astype(np.float32),
        angle=np.abs(0.5 + prompt + 0.2 * random.normal(size=(layers - 1, n))),
        entropy=np.abs(4.0 + prompt + 0.2 * random.normal(size=(layers, n))),
        angle_sampled=np.full((layers - 1, n), np.nan),
        entropy_sampled=np.full((layers, n), np.nan),
        across=np.full((len(layer_pairs(layers - 1)), n), np.nan),
    )
    prompts = [
        TracedPrompt(row=i + 1, prompt_id=None, digest=f"{i:05d}", ids=(1, i + 2), positions=(1,)) for i in range(n)
    ]
    model = TracedModel(
        name="made up", fingerprint="x", tokenizer=None, dtype="float32", n_layers=layers - 1, d_model=width, vocab=100
    )
    return analyse(model, prompts, readings, np.ones(n, bool), SETTINGS | {"seed": seed}, {})


def coverage(exponents: tuple[float, ...], width: int, simulations: int) -> list[dict[str, float]]:
    """Bias and coverage of each exponent, a layer an exponent."""
    n, decay = 4 * width, np.arange(1, width + 1)
    found = []
    for number in range(simulations):
        random = np.random.default_rng(number)
        rows = np.stack([random.normal(size=(n, width)) * decay**-a for a in exponents])
        layers = made_up(rows, random, number).layers
        found.append(layers[["alpha", "alpha_low", "alpha_high"]].to_numpy())
    values = np.array(found)  # [simulations, layers, 3]
    expected = values[:, :, 0].mean(0)
    held = ((values[:, :, 1] <= expected) & (expected <= values[:, :, 2])).mean(0)
    spread = values[:, :, 0].std(0, ddof=1)
    return [
        {"true": a, "expected": float(e), "bias": float(e - a), "sd": float(s), "coverage": float(h)}
        for a, e, s, h in zip(exponents, expected, spread, held, strict=True)
    ]


def alarms(width: int, blocks: int, prompts: int, splits: int) -> int:
    """Splits of one model's prompts into halves of which a family of tests says that they differ."""
    random = np.random.default_rng(0)
    steps = random.normal(size=(blocks + 1, prompts, width)) * np.arange(1, width + 1) ** -0.6
    trace = made_up(steps.cumsum(0), random, 0)
    return sum(halves_control(trace, (blocks - 3, blocks), seed=seed).alarm for seed in range(splits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    print(f"{4 * arguments.width} Gaussian rows of width {arguments.width}, {arguments.simulations} simulations")
    print("| true | expected | bias | SD | intervals that hold the expected value |")
    print("|---|---|---|---|---|")
    for row in coverage((0.5, 0.75, 1.0), arguments.width, arguments.simulations):
        print(
            f"| {row['true']} | {row['expected']:.4f} | {row['bias']:+.4f} | {row['sd']:.4f} | {row['coverage']:.1%} |",
            flush=True,
        )
    found = alarms(64, 12, 256, arguments.splits)
    print(f"\nalarms of one model against itself: {found} of {arguments.splits} splits (nominal 5 %)")


if __name__ == "__main__":
    main()
