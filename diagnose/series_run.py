"""A ladder of checkpoints as a run: every save scored and traced against one reference, one trajectory out."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..probes.encoding import TextPolicy
from ..probes.inputs import PairFile, PromptFile, check_invalid, distinct_prompts, read_pairs, read_prompts
from ..probes.pair_table import PairScores
from ..probes.policy import Named, is_adapter, load_judge, load_policy_and_reference
from ..probes.rendering import template_file_hash
from ..probes.scoring import score_pairs
from ..probes.vocabulary import same_ids
from .manifest import count_reasons, data_facts, model_facts, model_identity, package_versions
from .naming import short_name
from .preference_sections import PreferenceSettings, ranking_sections, reward_sections
from .ranking_report import require_ranking_settings
from .report import Manifest, Report, SectionResult
from .run_directory import RunDirectory
from .series_metrics import held_out_values, metrics_section
from .series_steps import Save, saves
from .spinal import SpinalTrace, compare_spinal, spinal_trace
from .spinal_contrast import terminal_window
from .spinal_distance import base_distance
from .spinal_series import SeriesDistances, spinal_series
from .spinal_settings import require_at_least

if TYPE_CHECKING:
    from pathlib import Path

    from ..probes.subject import Subject
    from .audit import Progress

SECTIONS = ("ranking", "rewards", "spinal")


@dataclass(slots=True, kw_only=True)
class _Kept:
    """What is carried from save to save: the start's trace, the last model, and what was measured so far."""

    start: "SpinalTrace | None" = None
    previous: "tuple[Subject, SpinalTrace] | None" = None
    traces: "list[SpinalTrace]"
    to_first: list[Float[np.ndarray, "layers N"]]
    to_previous: list[Float[np.ndarray, "layers N"]]
    tables: list[PairScores]
    results: dict[int, list[SectionResult]]


def series(
    steps: "Sequence[str | os.PathLike[str]]",
    reference: Named,
    pairs: "str | os.PathLike[str] | Iterable[Any] | PairFile",
    *,
    out: str | os.PathLike[str],
    numbers: Sequence[int] | None = None,
    base: Named | None = None,
    reward: Named | None = None,
    prompts: "str | os.PathLike[str] | Iterable[Any] | PromptFile | None" = None,
    only: Sequence[str] | str | None = None,
    template: str = "auto",
    eos: str = "auto",
    boundary: str = "refuse",
    over_length: str = "drop",
    max_length: int | None = None,
    beta: float | None = None,
    ties: str = "half",
    smoothing: str = "jeffreys",
    assumed_preference: float | None = None,
    terminal: str = "last_third",
    max_tokens: int = 128,
    max_invalid: float = 0.05,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    batch_tokens: int = 8192,
    cache: str | os.PathLike[str] | None = None,
    progress: "Progress | None" = None,
    command: str = "alignscope.series(...)",
) -> Report:
    """Every diagnostic of every save of one training run, against the model it started from (step 0).

    steps: checkpoints, adapters, or one run folder with `checkpoint-*`; numbers: their training steps where the names
        do not end in them. reference: what training started from, scored and traced once.
    only: of ("ranking", "rewards", "spinal"); rewards needs `reward`. Other keywords as in `audit`.
    out: run directory. A save that is finished there is not read again; the same command continues a killed run.
    Two models are in memory at a time, and for the distance between neighbouring saves a third.
    Raises InputError for saves, files or settings that cannot be used.
    """
    found = saves(steps, numbers)
    wanted = _sections(only, reward)
    text = TextPolicy(template, eos, boundary, max_length, over_length)
    preferences = PreferenceSettings(
        beta=beta, ties=ties, smoothing=smoothing, assumed_preference=assumed_preference, seed=seed
    )
    require_ranking_settings((preferences.training_beta,), 1, ties, smoothing, assumed_preference, 1)
    require_at_least(max_tokens=(max_tokens, 1), batch_tokens=(batch_tokens, 1))
    terminal_window(terminal, 10**6)
    pair_file = pairs if isinstance(pairs, PairFile) else read_pairs(pairs)
    check_invalid(pair_file, max_invalid)
    prompt_file = None
    if "spinal" in wanted:
        prompt_file = distinct_prompts(pair_file, seed=seed) if prompts is None else read_prompts(prompts)
        check_invalid(prompt_file, max_invalid)
    data = {"pairs": data_facts(pair_file), **({"prompts": data_facts(prompt_file)} if prompt_file else {})}
    settings: dict[str, Any] = {
        "sections": list(wanted),
        "steps": [save.step for save in found],
        "template": template,
        "template_sha256": template_file_hash(template),
        "eos": eos,
        "boundary": boundary,
        "over_length": over_length,
        "max_length": max_length,
        "beta": beta,
        "ties": ties,
        "smoothing": smoothing,
        "assumed_preference": assumed_preference,
        "terminal": terminal,
        "max_tokens": max_tokens,
        "max_invalid": max_invalid,
        "dtype": dtype,
    }
    judge = load_judge(reward, base=base, reference=reference, dtype=dtype, device=device)

    def opened(save: Save) -> "tuple[Subject, Subject]":
        adapted = is_adapter(save.path) or is_adapter(reference)
        subject, other = load_policy_and_reference(
            save.path, reference, base=base if adapted else None, dtype=dtype, device=device
        )
        assert other is not None  # a reference was given
        return subject, other

    subject, other = opened(found[0])
    start = other.fingerprint
    run = RunDirectory(
        out,
        {
            "kind": "series",
            "alignscope": package_versions()["alignscope"],
            "seed": seed,
            "models": {"reference": model_identity(other), **({"reward": model_identity(judge)} if judge else {})},
            "saves": [short_name(save.path) for save in found],
            "data": {name: facts["sha256"] for name, facts in data.items()},
            "settings": settings,
        },
    )
    if run.finished:
        return Report.load(run.path)
    watch = run.watch
    progress = watch.ticking(progress)
    models = {"reference": model_facts(other), **({"reward": model_facts(judge)} if judge else {})}
    kept = _Kept(traces=[], to_first=[], to_previous=[], tables=[], results={})

    def scored(save: Save, subject: "Subject", other: "Subject", stage: "Path") -> PairScores:
        return score_pairs(
            subject,
            other,
            pair_file,
            reward=judge,
            template=text.template,
            eos=text.eos,
            boundary=text.boundary,
            over_length=text.over_length,
            max_length=text.max_length,
            batch_tokens=batch_tokens,
            cache=cache,
            max_invalid=max_invalid,
            shards=stage / "scores",
            progress=_named(progress, save),
        )

    def traced(subject: "Subject", other: "Subject", stage: "Path", say: "Progress | None") -> SpinalTrace:
        assert prompt_file is not None
        same_text = subject.fingerprints.tokenizer is None or same_ids(other, subject)
        return spinal_trace(
            subject,
            prompt_file,
            max_tokens=max_tokens,
            template=template,
            eos=eos,
            max_invalid=max_invalid,
            seed=seed,
            shards=stage / "trace",
            progress=say,
            tokenizer=other.tokenizer if same_text else None,
        )

    for save in found:
        if save is not found[0]:
            subject, other = opened(save)
        if other.fingerprint != start:
            raise InputError(f"{save.path}: its reference is not that of the saves before it")
        models[f"step {save.step}"] = model_facts(subject)
        stage = run.stage(save.stage)
        results: list[SectionResult] = []
        if "ranking" in wanted or "rewards" in wanted:
            with watch.timed("preferences"):
                table = scored(save, subject, other, stage)
                kept.tables.append(table)
                data["pairs"] |= {"scored": len(table.frame), "set_aside": count_reasons(table.invalid)}
                results += ranking_sections(table, preferences) if "ranking" in wanted else []
                results += reward_sections(table, {}, preferences) if "rewards" in wanted else []
        if "spinal" in wanted:
            with watch.timed("spinal"):
                if kept.start is None:
                    kept.start = traced(other, other, run.stage("step_00000000"), progress)
                    kept.traces.append(kept.start)
                trace = traced(subject, other, stage, _named(progress, save))
                shards = stage / "distance"
                comparison = compare_spinal(
                    kept.start,
                    trace,
                    terminal=terminal,
                    subjects=(other, subject),
                    controls=(),
                    seed=seed,
                    shards=shards,
                    progress=_named(progress, save),
                )
                results.append(comparison.section())
                kept.to_first.append(_everywhere(comparison.base_distance, comparison.base.kept))
                last = kept.previous or (other, kept.start)
                kept.to_previous.append(_between(last, (subject, trace), shards, _named(progress, save)))
                kept.traces.append(trace)
                kept.previous = (subject, trace)
        kept.results[save.step] = results

    sections = [metrics_section(kept.results)]
    if "spinal" in wanted:
        followed = _followed(kept, found, terminal=terminal, beta=preferences.training_beta, seed=seed)
        sections.insert(0, followed.costed(watch.cost("spinal")))
    report = Report.assemble(
        title=f"Series of {len(found)} saves against {short_name(str(reference))}",
        question=f"When did training from {short_name(str(reference))} begin to change the model, and did it break, "
        f"over steps {found[0].step} to {found[-1].step}?",
        manifest=Manifest(
            command=command,
            models=models,
            data=data,
            settings=settings,
            packages=package_versions(),
            device=subject.device,
            dtype=subject.dtype,
            seed=seed,
            wall_seconds=watch.total(),
        ),
        results=sections,
    )
    report.save(run.path)
    return report


def _sections(only: Sequence[str] | str | None, reward: object) -> tuple[str, ...]:
    if isinstance(only, str):
        only = [name.strip() for name in only.split(",")]
    unknown = sorted({*(only or ())} - {*SECTIONS})
    if unknown or (only is not None and not list(only)):
        raise InputError(f"--only {','.join(unknown)}: no such section; choose from {', '.join(SECTIONS)}")
    if only is not None and "rewards" in only and reward is None:
        raise InputError("--only rewards: the explicit reward is missing; give --reward")
    return tuple(name for name in SECTIONS if (only is None and (name != "rewards" or reward)) or name in (only or ()))


def _named(progress: "Progress | None", save: Save) -> "Progress | None":
    if progress is None:
        return None
    say = progress
    return lambda stage, done, total: say(f"step {save.step}: {stage}", done, total)


def _everywhere(distance: Float[np.ndarray, "layers n"] | None, kept: np.ndarray) -> Float[np.ndarray, "layers N"]:
    """A distance of the kept prompts on all of them, NaN elsewhere: saves may lose different prompts."""
    if distance is None:
        raise InputError("the saves read other token ids than the reference: no distances; use --only ranking")
    whole = np.full((len(distance), len(kept)), np.nan)
    whole[:, kept] = distance
    return whole


def _between(
    first: "tuple[Subject, SpinalTrace]",
    second: "tuple[Subject, SpinalTrace]",
    shards: "Path",
    progress: "Progress | None",
) -> Float[np.ndarray, "layers N"]:
    both = first[1].kept & second[1].kept
    a, b = (trace if (trace.kept == both).all() else trace.restricted(both) for trace in (first[1], second[1]))
    distance, _ = base_distance(
        a,
        b,
        (first[0], second[0]),
        identical=a.model.fingerprint == b.model.fingerprint,
        warnings=[],
        shards=shards,
        progress=progress,
    )
    return _everywhere(distance, both)


def _followed(kept: _Kept, found: Sequence[Save], *, terminal: str, beta: float, seed: int) -> SectionResult:
    common = np.logical_and.reduce([trace.kept for trace in kept.traces])
    return spinal_series(
        kept.traces,
        steps=[0, *(save.step for save in found)],
        terminal=terminal,
        distances=SeriesDistances(
            to_first=np.stack(kept.to_first)[:, :, common], to_previous=np.stack(kept.to_previous)[:, :, common]
        ),
        held_out=held_out_values(kept.tables, beta) if kept.tables else None,
        seed=seed,
    ).section()
