"""A ladder of checkpoints as a run: every save scored and traced against one reference, one trajectory out."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..probes.encoding import TextPolicy
from ..probes.inputs import PairFile, PromptFile, check_invalid, prompts_or_distinct, read_pairs
from ..probes.policy import Named, is_adapter, load_judge
from ..probes.rendering import template_file_hash
from ..probes.shards import prefixed
from .audit_sections import ON_REQUEST
from .manifest import count_reasons, data_facts, model_facts, model_identity, package_versions
from .model_findings import model_findings
from .naming import asked_for, short_name
from .preference_sections import PreferenceSettings, require_pairs
from .ranking_report import require_ranking_settings
from .report import Finding, Manifest, Report, SectionResult
from .run_directory import RunDirectory
from .series_metrics import metrics_section
from .series_save import Ladder, Measured, Models, information, score, trace, weights
from .series_steps import Save, save_hash, saves
from .spinal_audit import NOT_IDENTITY
from .spinal_contrast import terminal_window
from .spinal_reading import MIN_WINDOW
from .spinal_settings import require_at_least

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from .audit import Progress

SECTIONS = ("ranking", "rewards", "spinal", "information", "weights")
START = "step_00000000"  # stage of the reference


def series(
    steps: "Sequence[str | os.PathLike[str]]",
    reference: Named,
    pairs: "str | os.PathLike[str] | Iterable[Any] | PairFile | None" = None,
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
    noise_seeds: int = 0,
    allow_quantized: bool = False,
    max_tokens: int = 128,
    max_invalid: float = 0.05,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    batch_tokens: int = 8192,
    cache: str | os.PathLike[str] | None = None,
    progress: "Progress | None" = None,
    command: str = "series(...)",
) -> Report:
    """Every diagnostic of every save of one training run, against the model it started from (step 0).

    steps: checkpoints, adapters, or one run folder with `checkpoint-*`; numbers: their training steps where the names
        do not end in them. reference: what training started from, scored and traced once.
    pairs: None for weights, and for spinal beside prompts.
    only: of ("ranking", "rewards", "spinal", "information", "weights"); rewards needs `reward`, the last two come only
        where they are named. Other keywords as in `audit`.
    noise_seeds: seeds of the noise control: the reference with Gaussian noise as large as the update of the last save,
        a trace each, whose size is printed beside the onset. 0: none.
    out: run directory. The same command continues a killed run: finished scores, traces and spectra are not made again,
        though each save is opened; so do other noise seeds. Scores of the reference are kept there where `cache` names
        no folder.
    In memory are a save, the one before it, and the reference where it is not their common base.
    Raises InputError for saves, files or settings that cannot be used.
    """
    found = saves(steps, numbers)
    wanted = series_sections(only, reward, noise_seeds)
    require_pairs(pairs, wanted, prompts=prompts)
    text = TextPolicy(template, eos, boundary, max_length, over_length)
    preferences = PreferenceSettings(
        beta=beta, ties=ties, smoothing=smoothing, assumed_preference=assumed_preference, seed=seed
    )
    require_ranking_settings((preferences.training_beta,), 1, ties, smoothing, assumed_preference, 1)
    require_at_least(max_tokens=(max_tokens, 1), batch_tokens=(batch_tokens, 1))
    terminal_window(terminal, 10**6)
    if base is not None and not any(is_adapter(model) for model in (reference, reward, *(s.path for s in found))):
        raise InputError(f"--base {base}: neither a save nor reference or reward is an adapter: nothing takes a base")
    pair_file = pairs if isinstance(pairs, PairFile) or pairs is None else read_pairs(pairs)
    if pair_file is not None:
        check_invalid(pair_file, max_invalid)
    prompt_file = prompts_or_distinct(prompts, pair_file, seed, max_invalid) if "spinal" in wanted else None
    files = {"pairs": pair_file, "prompts": prompt_file}
    data = {name: data_facts(file) for name, file in files.items() if file is not None}
    settings: dict[str, Any] = {
        "sections": list(wanted),
        "steps": [save.step for save in found],
        "template": template,
        "template_sha256": template_file_hash(template),
        "eos": eos,
        "boundary": boundary,
        "over_length": over_length,
        "max_length": max_length,
        "beta": preferences.training_beta,
        "beta_given": preferences.beta_given,
        "ties": ties,
        "smoothing": smoothing,
        "assumed_preference": assumed_preference,
        "terminal": terminal,
        "noise_seeds": noise_seeds,
        "allow_quantized": allow_quantized,
        "max_tokens": max_tokens,
        "max_invalid": max_invalid,
        "dtype": dtype,
    }
    identity = {f"step {save.step}": save_hash(save) for save in found}  # before the first is read
    judge = load_judge(reward, base=base, reference=reference, dtype=dtype, device=device)
    models = Models(reference=reference, base=base, dtype=dtype, device=device)
    subject, other = models.open(found[0])
    start = other.fingerprint
    _require_blocks(other, wanted, terminal)
    run = RunDirectory(
        out,
        {
            "kind": "series",
            "alignscope": package_versions()["alignscope"],
            "seed": seed,
            "models": {"reference": model_identity(other), **({"reward": model_identity(judge)} if judge else {})},
            "saves": identity,
            "data": {name: facts["sha256"] for name, facts in data.items()},
            "settings": {name: value for name, value in settings.items() if name not in NOT_IDENTITY},
        },
    )
    if run.finished and (before := Report.load(run.path)).manifest.settings["noise_seeds"] == noise_seeds:
        return before
    watch = run.watch
    progress = watch.ticking(progress)
    facts = {"reference": model_facts(other), **({"reward": model_facts(judge)} if judge else {})}
    what = Measured(
        sections=wanted,
        pairs=pair_file,
        prompts=prompt_file,
        text=text,
        preferences=preferences,
        reward=judge,
        terminal=terminal,
        max_tokens=max_tokens,
        allow_quantized=allow_quantized,
        max_invalid=max_invalid,
        batch_tokens=batch_tokens,
        cache=run.stage("cache") if cache is None else Path(cache),
        seed=seed,
    )
    ladder = Ladder()
    results: dict[int, list[SectionResult]] = {}
    findings: list[Finding] = []
    for save in found:
        if save is not found[0]:
            subject, other = models.open(save)
        if other.fingerprint != start:
            raise InputError(f"{save.path}: its reference is not that of the saves before it")
        facts[f"step {save.step}"] = model_facts(subject)
        findings += model_findings(subject, other, section="metrics")
        say, folder = _named(progress, save), run.stage(f"step_{save.step:08d}")
        results[save.step] = []
        if "ranking" in wanted or "rewards" in wanted:
            with watch.timed("preferences"):
                results[save.step] += score(subject, other, what, ladder, folder, say)
            table = ladder.tables[-1]
            data["pairs"] |= {"scored": len(table.frame), "set_aside": count_reasons(table.invalid)}
        if "spinal" in wanted:
            with watch.timed("spinal"):
                results[save.step].append(trace(subject, other, what, ladder, (run.stage(START), folder), say))
        if "information" in wanted:
            with watch.timed("information"):
                both = run.stage(START), folder
                found_here = information(subject, other, what, ladder, both, say)
            results[save.step].append(found_here)
            alarms = [finding for finding in found_here.findings if finding.severity == "alarm"]
            findings += [
                alarm.model_copy(update={"section": "metrics", "sentence": f"Step {save.step}: {alarm.sentence}"})
                for alarm in alarms
            ]
        if "weights" in wanted:
            with watch.timed("weights"):
                results[save.step].append(weights(subject, other, folder))

    sections = [metrics_section(results, findings=findings)]
    if "spinal" in wanted:
        with watch.timed("spinal"):
            noise = ladder.noise(other, what, noise_seeds, run.stage("noise"), progress) if noise_seeds else None
            followed = ladder.followed([save.step for save in found], what, noise).section()
        sections.insert(0, followed.costed(watch.cost("spinal")))
    report = Report.assemble(
        title=f"Series of {len(found)} saves against {short_name(str(reference))}",
        question=f"When did training from {short_name(str(reference))} begin to change the model, and did it break, "
        f"over steps {found[0].step} to {found[-1].step}?",
        manifest=Manifest(
            command=command,
            models=facts,
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
    shutil.rmtree(run.stage(START) / "states", ignore_errors=True)  # of the section information: large, made again
    return report


def series_sections(only: Sequence[str] | str | None, reward: object, noise_seeds: int = 0) -> tuple[str, ...]:
    """What is measured of every save: what is named, else all that the inputs allow but what takes long."""
    require_at_least(noise_seeds=(noise_seeds, 0))
    asked = asked_for(only, SECTIONS)
    if asked is not None and "rewards" in asked and reward is None:
        raise InputError("--only rewards: the explicit reward is missing; give --reward")
    default = [name for name in SECTIONS if name not in ON_REQUEST and (name != "rewards" or reward is not None)]
    wanted = tuple(name for name in SECTIONS if name in (default if asked is None else asked))
    if noise_seeds and "spinal" not in wanted:
        raise InputError("--noise-seeds: noise is traced for the section spinal, which is not computed here")
    return wanted


def _require_blocks(reference: "Subject", wanted: Sequence[str], terminal: str) -> None:
    """Refuse before anything is traced what `spinal_series` would refuse at the end."""
    if "spinal" not in wanted:
        return
    if terminal == "last_third" and reference.n_layers < MIN_WINDOW:
        raise InputError(f"{reference.name}: {reference.n_layers} blocks, the last third needs 3; use --only ranking")
    terminal_window(terminal, reference.n_layers)


def _named(progress: "Progress | None", save: Save) -> "Progress | None":
    return None if progress is None else prefixed(progress, f"step {save.step}")
