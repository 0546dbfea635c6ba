"""The base read again, a little otherwise: under a chat template, or with random weights added. Controls of a contrast.

Neither was trained. What they show, the template or any change of this size shows.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..probes.block_noise import changed_blocks, noisy_blocks
from ..probes.encoding import Encoder, TextPolicy
from ..probes.inputs import PromptFile, read_prompts
from .naming import short_name
from .spinal_distance import TUNED
from .spinal_nulls import Control
from .spinal_reading import Folder, Progress, opened, prepare_prompts, read_prompts_of
from .spinal_trace import SpinalTrace, analyse

if TYPE_CHECKING:
    from ..probes.subject import Subject

Prompts = str | os.PathLike[str] | Iterable[Any] | PromptFile


def noise_control(
    trace: SpinalTrace,
    subjects: "tuple[Subject, Subject] | None",
    *,
    seeds: int,
    seed: int,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> Control:
    """The base with Gaussian noise on every matrix that training changed, as large as that change; a trace a seed."""
    if subjects is None or trace.settings["lens"] != "logit":
        return Control(name="noise", kind="noise", reason="models not given" if subjects is None else TUNED)
    base, aligned = subjects
    try:
        norms = changed_blocks(base, aligned)
    except InputError as error:
        return Control(name="noise", kind="noise", reason=str(error))
    if not norms:
        return Control(name="noise", kind="noise", reason="identical weights: there is no change to match")
    traces = []
    for number in range(seeds):
        with noisy_blocks(base, norms, seed=[seed, 7, number]) as noisy:
            traces.append(_again(trace, noisy, f"noise seed {number}", _sub(shards, f"noise_{number}"), progress))
    return Control(name="noise", kind="noise", traces=tuple(traces))


def template_control(
    trace: SpinalTrace,
    subjects: "tuple[Subject, Subject] | None",
    prompts: Prompts | None,
    *,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> Control:
    """The base under the aligned model's chat template, against the raw text that both models were read with.

    Prompts are cut from the left to as many tokens more as the template has, so that no text is lost to it.
    """

    def without(reason: str) -> Control:
        return Control(name="template", kind="template", reason=reason)

    if subjects is None or prompts is None:
        return without("models or prompts not given")
    if trace.settings["lens"] != "logit":
        return without(TUNED)
    base, aligned = subjects
    text = trace.settings["text"]
    if text.get("template") == "chat":
        return without("the prompts were read under the chat template; there is no raw reading to compare with")
    file = read_prompts(prompts)
    if any(not isinstance(prompt.text, str) for prompt in file):
        return without("the prompts are message lists, which have no raw reading")
    if getattr(aligned.tokenizer, "chat_template", None) is None:
        return without(f"the tokenizer of {short_name(aligned.name)} has no chat template")
    encoder = Encoder(
        aligned.tokenizer,
        TextPolicy("chat", text.get("eos", "auto")),
        vocab_rows=base.vocab_size,
        limit=base.limit,
        source=file.source,
    )
    seed = trace.settings["seed"]
    options = {"lens_positions": trace.settings["lens_positions"], "seed": seed}
    whole, _, _ = prepare_prompts(file, encoder, max_tokens=10**9, **options)
    raw = {prompt.digest: len(prompt.ids) for prompt in trace.prompts}
    more = [len(prompt.ids) - raw[prompt.digest] for prompt in whole if raw.get(prompt.digest, 0) < _limit(trace)]
    templated, _, _ = prepare_prompts(file, encoder, max_tokens=_limit(trace) + max(more, default=0), **options)
    if [prompt.digest for prompt in templated] != list(raw):
        return without("under the template other prompts are left than without it (repeated or too long)")
    found = replace(trace, prompts=tuple(templated), settings=trace.settings | {"text": encoder.facts()})
    return Control(
        name="template",
        kind="template",
        traces=(_again(found, base, "chat template", _sub(shards, "template"), progress),),
    )


def _limit(trace: SpinalTrace) -> int:
    return int(trace.settings["max_tokens"])


def _again(
    trace: SpinalTrace, subject: "Subject", what: str, shards: Path | None, progress: Progress | None
) -> SpinalTrace:
    """The prompts of a trace read by a subject of the same shape."""
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
        shards=shards,
        progress=told,
    )
    return analyse(model, trace.prompts, readings, readings.finite, settings, trace.counts)


def _sub(shards: Folder | None, name: str) -> Path | None:
    return None if shards is None else opened(Path(shards) / name)
