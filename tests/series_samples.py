"""Traces of made-up saves: readings drawn once, then changed save by save, so that what a series finds is known."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from alignscope.diagnose.spinal_reading import Readings, TracedPrompt, layer_pairs
from alignscope.diagnose.spinal_series import SeriesDistances
from alignscope.diagnose.spinal_trace import SpinalTrace, TracedModel, analyse

BLOCKS, WIDTH, PROMPTS = 6, 48, 60
SETTINGS = {
    "positions": "last", "lens": "logit", "lens_positions": 0, "temperature": 1.0, "window": (0.02, 0.2),
    "groups": 16, "seed": 0, "max_tokens": 128,
}  # fmt: skip


def start(n: int = PROMPTS, *, slope: float = 0.8, name: str = "step_0") -> SpinalTrace:
    """One model on n prompts: singular values near k^-slope, angles near .5 rad, entropies near 4 nats."""
    random = np.random.default_rng(7)
    rows = random.normal(size=(BLOCKS + 1, n, WIDTH)) * np.arange(1, WIDTH + 1) ** -slope
    readings = Readings(
        rows=rows.astype(np.float32).astype(np.float64),
        angle=0.5 + 0.05 * random.normal(size=(BLOCKS, n)),
        entropy=4.0 + 0.4 * random.normal(size=(BLOCKS + 1, n)),
        angle_sampled=np.full((BLOCKS, n), np.nan),
        entropy_sampled=np.full((BLOCKS + 1, n), np.nan),
        across=np.full((len(layer_pairs(BLOCKS)), n), np.nan),
    )
    prompts = [
        TracedPrompt(row=i + 1, prompt_id=None, digest=f"{i:04d}", ids=(1, i + 2), positions=(1,)) for i in range(n)
    ]
    model = TracedModel(
        name=name, fingerprint=name, tokenizer=None, dtype="float32", n_layers=BLOCKS, d_model=WIDTH, vocab=100
    )
    return analyse(model, prompts, readings, np.ones(n, bool), SETTINGS, {})


def moved(trace: SpinalTrace, name: str, *, angle: float = 0.0, entropy: float = 0.0, noise: int = 0) -> SpinalTrace:
    """The save `name`: every angle and entropy shifted, prompts by slightly different amounts where noise seeds one."""
    old = trace.readings
    spread = 1.0 + (0.1 * np.random.default_rng(noise).normal(size=old.angle.shape[1]) if noise else 0.0)
    readings = replace(old, angle=old.angle + angle * spread, entropy=old.entropy + entropy * spread)
    return replace(trace, readings=readings, model=replace(trace.model, name=name, fingerprint=name))


def path(trace: SpinalTrace, angles: list[float]) -> list[SpinalTrace]:
    """Saves whose angles lie that much above those of the first."""
    return [moved(trace, f"step_{i}", angle=shift, noise=i) for i, shift in enumerate(angles)]


def distances(sizes: list[float], n: int = PROMPTS) -> SeriesDistances:
    """Distances to the start of those mean sizes, and between neighbours of their differences."""
    random = np.random.default_rng(3)
    spread = 1.0 + 0.05 * random.normal(size=(1, BLOCKS + 1, n))
    to_first = np.array(sizes)[:, None, None] * spread
    to_previous = np.abs(np.diff(sizes, prepend=0.0))[:, None, None] * spread
    return SeriesDistances(to_first=to_first, to_previous=to_previous)


def scaled_saves(base: Path, folder: Path, factors: dict[int, float]) -> Path:
    """The folder with saves `checkpoint-STEP` of a model, whose matrices are the factor times those of the base."""
    for step, factor in factors.items():
        save = folder / f"checkpoint-{step}"
        shutil.copytree(base, save)
        weights = {k: v * (factor if v.ndim == 2 else 1) for k, v in load_file(save / "model.safetensors").items()}
        save_file(weights, save / "model.safetensors", metadata={"format": "pt"})
    return folder
