"""The base read again, a little otherwise: under a chat template. A control of a contrast; nothing was trained.

What it shows, the template shows. The base with random weights added: `spinal_noise`.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from ..errors import InputError
from ..probes.encoding import Encoder
from ..probes.inputs import PromptFile, read_prompts
from .spinal_distance import NOT_LOGIT
from .spinal_nulls import Control
from .spinal_reading import Folder, Progress, ReadOptions, opened, prepare_prompts, read_prompts_of
from .spinal_rows import text_policy
from .spinal_trace import SpinalTrace, analyse
from .statistics import MIN_CLUSTERS

if TYPE_CHECKING:
    from ..probes.subject import Subject

Prompts = str | os.PathLike[str] | Iterable[Any] | PromptFile


def template_control(
    trace: SpinalTrace,
    aligned_trace: SpinalTrace,
    subjects: "tuple[Subject, Subject] | None",
    prompts: Prompts | None,
    *,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> Control:
    """The base under the aligned model's chat template, against the raw text that both models were read with.

    Prompts that were cut to `max_tokens` are left out: cut text under a template is another text.
    """

    def without(reason: str) -> Control:
        return Control(name="template", kind="template", reason=reason)

    if subjects is None or prompts is None:
        return without("models or prompts not given")
    if trace.settings["lens"] != "logit":
        return without(NOT_LOGIT)
    if trace.token_hash != aligned_trace.token_hash:
        return without("the models read the texts as different ids")
    text = trace.settings["text"]
    if text["template"] not in ("auto", "none"):
        return without("the prompts were read under a template; there is no raw reading to compare with")
    file = read_prompts(prompts)
    if any(not isinstance(prompt.text, str) for prompt in file):
        return without("the prompts are message lists, which have no raw reading")
    base, aligned = subjects
    try:
        encoder = Encoder(
            aligned.tokenizer,
            text_policy("chat", text["eos"], trace.settings["lens_positions"], max_tokens=10**9, limit=base.limit),
            vocab_rows=base.vocab_size,
            limit=base.limit,
            source=file.source,
        )
    except InputError as error:  # no tokenizer, or one without a template
        return without(str(error))
    positions = {name: trace.settings[name] for name in ("lens_positions", "positions", "seed")}
    whole = {p.digest: p for p in prepare_prompts(file, encoder, max_tokens=10**9, **positions)[0]}
    uncut = np.array(
        [len(p.ids) < trace.settings["max_tokens"] and p.digest in whole for p in trace.prompts], dtype=bool
    )
    if uncut.sum() < MIN_CLUSTERS:
        return without(f"{int(uncut.sum())} prompts are shorter than max_tokens; {MIN_CLUSTERS} are needed")
    templated = [whole[p.digest] if left else p for p, left in zip(trace.prompts, uncut, strict=True)]
    found = replace(trace, prompts=tuple(templated), settings=trace.settings | {"text": encoder.facts()})
    again = read_again(found, base, "chat template", uncut, subfolder(shards, "template"), progress)
    return without(again) if isinstance(again, str) else Control(name="template", kind="template", traces=(again,))


def read_again(
    trace: SpinalTrace,
    subject: "Subject",
    what: str,
    kept: Bool[np.ndarray, "N"],
    shards: Path | None,
    progress: Progress | None,
) -> SpinalTrace | str:
    """The prompts of a trace read by a subject of the same shape; a reason where most of them are not finite."""
    settings = trace.settings
    model = replace(trace.model, name=f"{trace.model.name} ({what})", fingerprint=subject.fingerprint)

    def told(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(f"control, {what}", done, total)

    readings = read_prompts_of(
        subject,
        trace.prompts,
        vocab=model.vocab,
        temperature=settings["temperature"],
        batch_size=settings["batch_size"],
        options=ReadOptions.of(settings),
        shards=shards,
        progress=told,
    )
    left = kept & readings.finite
    if 2 * left.sum() < kept.sum():
        return f"{what}: only {int(left.sum())} of {int(kept.sum())} prompts are finite"
    return analyse(model, trace.prompts, readings, left, settings, trace.counts)


def subfolder(shards: Folder | None, name: str) -> Path | None:
    return None if shards is None else opened(Path(shards) / name)
