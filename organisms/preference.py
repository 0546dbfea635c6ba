"""Builds the preference organism: base, SFT, DPO ladder, shuffled-label control, reward head, and files of pairs.

    folder/base  sft  dpo/step_0025 .. step_0400  shuffled  reward        ordinary Hugging Face folders (safetensors)
    folder/pairs.jsonl  shifted.jsonl  prompts.jsonl  training_pairs.jsonl  world.json  organism.json

`truth.py` says what an audit of these files should find.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ..cache import cache_folder
from ..errors import InputError
from .building import Builder, Progress
from .finished import CARD, build_once, read_card
from .recipe import Recipe
from .train import one_thread
from .world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceOrganism:
    """Paths of a finished organism. Every model is an ordinary Hugging Face folder with the same tokenizer."""

    folder: Path
    base: Path                                # also the reference of DPO
    sft: Path                                 # base, then trained on the majority's choice
    dpo: Path                                 # the last of dpo_steps
    dpo_steps: tuple[Path, ...]
    shuffled: Path                            # control: DPO on votes dealt out at random among the pairs
    reward: Path                              # LlamaForSequenceClassification with one label
    pairs: Path                               # evaluation pairs on training prompts, with votes
    shifted: Path                             # the same on held-out topics
    prompts: Path                             # the training prompts
    training_pairs: Path
    recipe: Recipe
    seed: int

    @property
    def beta(self) -> float:
        """Of the DPO loss; an audit of the organism is given this one."""
        return self.recipe.beta

    @property
    def eos(self) -> str:
        """EOS policy under which an audit scores log pi(response, EOS | prompt): the template brings the EOS."""
        return "auto"

    @property
    def world(self) -> World:
        """The generator that the base was trained on."""
        parts = json.loads((self.folder / "world.json").read_text(encoding="utf-8"))
        return World(np.array(parts["initial"]), np.array(parts["transition"]))


def build_preference_organism(
    folder: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PreferenceOrganism:
    """Train the organism into `folder`, or return the one that is there.

    folder: None takes a folder of the cache ($ALIGNSCOPE_CACHE, default the user's cache folder), named by recipe and
        seed. It appears whole or not at all: a killed build leaves nothing that could be taken for an organism.
    progress: called as progress(stage, done, total) with the optimiser steps of base, sft, dpo, shuffled, reward.
    Deterministic on CPU: the same seed gives the same weights on one machine with one version of torch.
    Raises InputError where the folder holds something else, or an organism of another recipe or seed.

    >>> build_preference_organism("organism").dpo                     # doctest: +SKIP
    PosixPath('organism/dpo/step_0400')
    """
    chosen = recipe or Recipe()
    key = chosen.key(seed)
    path = Path(folder) if folder is not None else cache_folder() / "organisms" / f"preference-{key}"

    def build(partial: Path) -> dict[str, Any]:
        with one_thread():
            quality = Builder(partial, chosen, seed, progress).build()
        return {
            "recipe": asdict(chosen), "seed": seed, "quality": quality,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    build_once(path, key, build)
    return open_preference_organism(path)


def open_preference_organism(folder: str | os.PathLike[str]) -> PreferenceOrganism:
    """The organism that `build_preference_organism` left in `folder`."""
    path = Path(folder)
    card = read_card(path)
    if card is None or "recipe" not in card:
        raise InputError(f"{path}: no {CARD} here, so no finished organism; `alignscope organism preference` makes one")
    recipe = Recipe(**card["recipe"])
    steps = tuple(path / "dpo" / f"step_{i:04d}" for i in recipe.dpo_kept)
    return PreferenceOrganism(
        folder=path, base=path / "base", sft=path / "sft", dpo=steps[-1], dpo_steps=steps,
        shuffled=path / "shuffled", reward=path / "reward", pairs=path / "pairs.jsonl",
        shifted=path / "shifted.jsonl", prompts=path / "prompts.jsonl",
        training_pairs=path / "training_pairs.jsonl", recipe=recipe, seed=card["seed"],
    )
