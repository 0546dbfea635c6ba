"""Which prompts is a vector tried on? A file of prompts, or the plain inputs x of quadruples; also its own data."""

import json
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..probes.inputs import Prompt, PromptFile, Source, read_prompts
from ..probes.row_files import read_rows
from .quadruple_rows import COLUMNS
from .quadruples import QuadrupleFile, read_quadruples


def plain_inputs(source: Source) -> PromptFile:
    """Prompts as of read_prompts; of quadruples their `negative_input`.

    >>> plain_inputs(["Name a fish."])[0].text
    'Name a fish.'
    """
    if isinstance(source, PromptFile):
        return source
    rows = source if isinstance(source, str | os.PathLike) else list(source)
    if set(COLUMNS) <= set(read_rows(rows, what="prompts", bare="prompt").columns):
        return _of_quadruples(read_quadruples(rows))
    return read_prompts(rows)


def own_inputs(metadata: Mapping[str, Any]) -> PromptFile | None:
    """The plain inputs of the file that a vector was made on; None where no file of that content is there now."""
    name, digest = (metadata.get("data") or {}).get("name"), metadata.get("sha256")
    if not name or not Path(name).is_file():
        return None
    found = plain_inputs(Path(name))
    return found if found.sha256 == digest else None


def some_of(file: PromptFile, limit: int, *, seed: int = 0) -> PromptFile:
    """Its distinct prompts in order, at most so many: more are sampled without replacement, seeded."""
    found = list({json.dumps(prompt.text, ensure_ascii=False): prompt for prompt in file}.values())
    if len(found) > limit:
        found = [found[i] for i in sorted(random.Random(seed).sample(range(len(found)), limit))]
    return replace(file, prompts=tuple(found))


def _of_quadruples(file: QuadrupleFile) -> PromptFile:
    prompts = tuple(Prompt(row=row.row, text=row.negative_input, prompt_id=row.quadruple_id) for row in file)
    return PromptFile(prompts=prompts, invalid=file.invalid, source=file.source, sha256=file.sha256, n_rows=file.n_rows)
