"""The concept organism as files, to train and try steering vectors on from the shell.

    folder/model                     an ordinary Hugging Face folder (safetensors) with its tokenizer
    folder/train.jsonl  test.jsonl   quadruples: 72 to train on, 256 of other contents to test on
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ..errors import InputError
from ..probes.quiet import quiet_loading
from .concept import Progress, build_concept_organism
from .finished import build_once


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptFiles:
    """Paths of a finished concept organism."""

    folder: Path
    model: Path
    train: Path  # quadruples
    test: Path


def write_concept_organism(
    folder: str | os.PathLike[str], *, seed: int = 0, steps: int = 500, progress: Progress | None = None
) -> ConceptFiles:
    """Train the organism of `build_concept_organism` into `folder`, or return the one that is there.

    Raises InputError for fewer than one step, and where the folder holds something else or cannot be written.

    >>> write_concept_organism("concept").train                     # doctest: +SKIP
    PosixPath('concept/train.jsonl')
    """
    if steps < 1:
        raise InputError(f"steps={steps}: expected 1 or more (500 make an organism that answers without fault)")
    path = Path(folder)

    def build(partial: Path) -> dict[str, Any]:
        organism = build_concept_organism(seed, steps=steps, progress=progress)
        with quiet_loading(offline=True):
            organism.subject.model.save_pretrained(partial / "model")
        organism.subject.tokenizer.save_pretrained(partial / "model")
        _write(partial / "train.jsonl", organism.quadruples)
        _write(partial / "test.jsonl", organism.fresh)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {"kind": "concept", "seed": seed, "steps": steps, "versions": versions}

    build_once(path, f"concept-{steps}-{seed}", build)
    return ConceptFiles(folder=path, model=path / "model", train=path / "train.jsonl", test=path / "test.jsonl")


def _write(file: Path, rows: Sequence[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
