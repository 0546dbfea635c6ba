"""The audit: two checkpoints and a file of pairs in, one report out; a killed run continues where it stopped."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..probes.encoding import TextPolicy
from ..probes.inputs import (
    PairFile,
    PromptFile,
    SampleFile,
    check_invalid,
    prompts_or_distinct,
    read_pairs,
    read_samples,
    require_full_draws,
)
from ..probes.policy import is_adapter, load_judge, load_policy_and_reference
from ..probes.rendering import template_file_hash
from ..probes.samples import SampleScores, score_samples
from ..probes.scoring import score_pairs
from .audit_sections import require_read, wanted_sections
from .information_audit import information_of
from .manifest import count_reasons, data_facts, first_rows, model_facts, model_identity, package_versions
from .model_findings import model_findings
from .naming import short_name
from .preference_sections import (
    PreferenceSettings,
    ranking_sections,
    require_pairs,
    reward_sections,
)
from .ranking_report import require_ranking_settings
from .report import Manifest, Report, SectionResult
from .reward_rows import require_shifts
from .run_directory import RunDirectory, Stopwatch
from .spinal_audit import NOT_IDENTITY, Opening, SpinalSettings, control_facts, spinal_comparison
from .spinal_compare import DEFAULT_CONTROLS, NOISE_SEEDS
from .spinal_contrast import terminal_window
from .spinal_settings import require_at_least
from .weights import weight_spectrum

if TYPE_CHECKING:
    from ..probes.explicit_scores import RewardFunction
    from ..probes.pair_table import PairScores
    from ..probes.subject import RewardSubject, Subject

Progress = Callable[[str, int, int], None]  # stage, done, total


def audit(
    policy: "str | os.PathLike[str] | Subject",
    reference: "str | os.PathLike[str] | Subject | None",
    pairs: "str | os.PathLike[str] | Iterable[Any] | PairFile | None" = None,
    *,
    base: str | os.PathLike[str] | None = None,
    reward: "str | os.PathLike[str] | RewardSubject | RewardFunction | None" = None,
    prompts: "str | os.PathLike[str] | Iterable[Any] | PromptFile | None" = None,
    shifted: "Mapping[str, str | os.PathLike[str] | Iterable[Any] | PairFile] | None" = None,
    reference_samples: "str | os.PathLike[str] | Iterable[Any] | SampleFile | None" = None,
    policy_samples: "str | os.PathLike[str] | Iterable[Any] | SampleFile | None" = None,
    only: Sequence[str] | str | None = None,
    out: str | os.PathLike[str] | None = None,
    template: str = "auto",
    eos: str = "auto",
    boundary: str = "refuse",
    over_length: str = "drop",
    max_length: int | None = None,
    beta: float | None = None,
    ties: str = "half",
    smoothing: str = "jeffreys",
    assumed_preference: float | None = None,
    same_training: bool = False,
    shifts: Mapping[str, str] | None = None,
    share_prefix: str | bool = "auto",
    states: bool = False,
    mismatched: bool = False,
    terminal: str = "last_third",
    max_tokens: int = 128,
    controls: Sequence[str] = DEFAULT_CONTROLS,
    control_checkpoints: "Mapping[str, str | os.PathLike[str] | Subject] | None" = None,
    noise_seeds: int = NOISE_SEEDS,
    gradient: str = "weight_share",
    allow_quantized: bool = False,
    max_invalid: float = 0.05,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    batch_tokens: int = 8192,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    command: str = "alignscope.audit(...)",
) -> Report:
    """What preference training did to `policy`, measured against `reference` on `pairs`.

    policy, reference: folder, adapter folder, .gguf file, hub id or Subject. An adapter policy whose base is the
        reference shares its weights with it, as do the references "adapter-disabled" and "adapter:NAME" (see
        score_pairs). reference=None leaves the ranking numbers that need none.
    pairs, prompts: file or rows (probes/inputs.py); without prompts, the distinct prompts of the pairs (at most 512).
        pairs=None for weights, and for spinal beside prompts.
    shifted: name -> pairs from elsewhere, for the section rewards: does either reward still hold there? Names are
        letters, digits and _.
    reference_samples, policy_samples: completions drawn from either model (read_samples, `alignscope sample`): the
        first for displacement.on_policy (see score_samples), both for the section information.
    only: sections to compute, of ("ranking", "rewards", "spinal", "information", "weights"); None computes all that the
        inputs allow but the last two, which take long. "ranking" brings length and displacement with it, "rewards" the
        objectives.
    out: run directory. Finished shards are kept there; the same call continues a killed run, others are refused. With
        another number of noise seeds the seeds that are there are not traced again.
    beta: the DPO beta of the policy's training, for the idealised accuracy and the implicit reward. None: TRL's
        default, .1, is assumed, and the sections that depend on it say so.
    same_training: policy and reward model share base, training pairs and template; else the report says "confounded".
    shifts: name -> "prompt shift" or "response shift", see reward_report.
    controls, noise_seeds, gradient: of SPINAL, see compare_spinal; allow_quantized: see spinal_trace.
    control_checkpoints: name -> checkpoint trained from the same reference without the preferences (SFT only, shuffled
        labels), traced on the same prompts.
    share_prefix, states, mismatched: see score_pairs; states gives CHES, mismatched KTO's reference point.
    progress: called as progress(stage, done, total).
    Raises InputError for a model, file or setting that cannot be used; bad rows are set aside and counted, up to the
    share `max_invalid`.
    """
    sections = wanted_sections(only, reference, reward, shifted or {})
    require_pairs(pairs, sections, prompts=prompts, gradient=gradient)
    require_read({"reference": reference_samples, "policy": policy_samples}, reference, sections)
    require_shifts(shifts or {}, shifted or {})
    text = TextPolicy(template, eos, boundary, max_length, over_length)
    spinal = SpinalSettings(
        terminal=terminal,
        max_tokens=max_tokens,
        controls=controls,
        control_checkpoints=control_checkpoints or {},
        noise_seeds=noise_seeds,
        gradient=gradient,
        allow_quantized=allow_quantized,
    )
    if control_checkpoints and "spinal" not in sections:
        raise InputError("--control: control checkpoints are read by the section spinal, which is not computed here")
    preferences = PreferenceSettings(
        beta=beta,
        ties=ties,
        smoothing=smoothing,
        assumed_preference=assumed_preference,
        same_training=same_training,
        shifts=shifts,
        seed=seed,
    )
    _require_settings(text, preferences)
    require_at_least(batch_tokens=(batch_tokens, 1))
    if callable(reward) and not hasattr(reward, "rewards") and out is not None:
        raise InputError(
            "reward: a function cannot be told from another one when a run continues; leave out= away, or give its "
            "scores as columns explicit_chosen and explicit_rejected of the pairs"
        )
    pair_file = pairs if isinstance(pairs, PairFile) or pairs is None else read_pairs(pairs)
    if pair_file is not None:
        check_invalid(pair_file, max_invalid)
    shifted_files = {name: read_pairs(source) for name, source in (shifted or {}).items()}
    for file in shifted_files.values():
        check_invalid(file, max_invalid)
    drawn = {"reference": reference_samples, "policy": policy_samples}
    samples = {role: read_samples(file) for role, file in drawn.items() if file is not None}
    for role, sample_file in samples.items():
        check_invalid(sample_file, max_invalid)
        if role == "reference":  # before any model is loaded: displacement.on_policy would be no KL
            require_full_draws(sample_file, role)
    prompt_file = prompts_or_distinct(prompts, pair_file, seed, max_invalid) if "spinal" in sections else None
    adapters = [is_adapter(model) for model in (policy, reference, reward)]
    if base is not None and not any(adapters):
        raise InputError(f"--base {base}: no adapter folder among policy, reference and reward: nothing takes a base")
    subject, other = load_policy_and_reference(
        policy, reference, base=base if any(adapters[:2]) else None, dtype=dtype, device=device
    )
    if prompt_file is not None and other is not None and terminal != "last_third":  # which may have no window: a null
        terminal_window(terminal, other.n_layers)
    judge = load_judge(reward, base=base, reference=reference, dtype=dtype, device=device)
    opening = Opening(reference=reference, base=base, dtype=dtype, device=device)
    others = {} if other is None else control_facts(spinal, opening, subject, other)

    models: dict[str, Any] = {"policy": subject, "reference": other, "reward": judge}
    models = {role: model for role, model in models.items() if hasattr(model, "fingerprints")}
    files = {"pairs": pair_file, "prompts": prompt_file}
    data = {name: data_facts(file) for name, file in files.items() if file is not None}
    data |= {f"shifted {name}": data_facts(file) for name, file in shifted_files.items()}
    data |= {f"{role} samples": data_facts(file) for role, file in samples.items()}
    settings: dict[str, Any] = {
        "sections": list(sections),
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
        "same_training": same_training,
        "shifts": dict(shifts or {}),
        "share_prefix": share_prefix,
        "states": states,
        "mismatched": mismatched,
        **spinal.facts(),
        "max_invalid": max_invalid,
        "dtype": dtype,
    }
    run = None
    if out is not None:
        identity = {role: model_identity(model) for role, model in models.items()}
        identity |= {f"control {name}": found for name, (found, _) in others.items()}
        hashes = {name: facts["sha256"] for name, facts in data.items()}
        run = RunDirectory(
            out,
            {
                "kind": "audit",
                "alignscope": package_versions()["alignscope"],
                "seed": seed,
                "models": identity,
                "data": hashes,
                "settings": {name: value for name, value in settings.items() if name not in NOT_IDENTITY},
            },
        )
        if run.finished and spinal.answered((before := Report.load(run.path)).manifest.settings):
            return before
    watch = run.watch if run else Stopwatch()
    progress = watch.ticking(progress)

    reading: dict[str, Any] = {  # the same for pairs and samples: only then do they compare
        "template": template,
        "eos": eos,
        "boundary": boundary,
        "over_length": over_length,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        "cache": cache,
        "max_invalid": max_invalid,
        "progress": progress,
    }

    def scored(name: str, file: PairFile | None) -> "PairScores":
        assert file is not None  # require_pairs
        shards = "scores" if name == "pairs" else f"scores_{name.removeprefix('shifted ')}"
        scores = score_pairs(
            subject,
            other,
            file,
            reward=judge,
            share_prefix=share_prefix,
            states=states and name == "pairs",
            mismatched=mismatched and name == "pairs",
            shards=run.stage(shards) if run else None,
            **reading,
        )
        data[name] |= _scored(scores)
        return scores

    def sampled() -> SampleScores | None:
        if "reference" not in samples or other is None:
            return None
        shards = run.stage("reference_samples") if run else None
        found = score_samples(subject, other, samples["reference"], shards=shards, **reading)
        data["reference samples"] |= _scored(found)
        return found

    results: list[SectionResult] = []
    scores = None
    if "ranking" in sections:
        with watch.timed("ranking"):
            scores = scored("pairs", pair_file)
            found = ranking_sections(scores, preferences, samples=sampled())
        results += [found[0].costed(watch.cost("ranking")), *found[1:]]
    if "rewards" in sections:
        with watch.timed("rewards"):
            scores = scored("pairs", pair_file) if scores is None else scores
            elsewhere = {name: scored(f"shifted {name}", file) for name, file in shifted_files.items()}
            found = reward_sections(scores, elsewhere, preferences)
            if "ranking" not in sections:
                found += ranking_sections(scores, preferences, companions_only=True, samples=sampled())
        results += [found[0].costed(watch.cost("rewards")), *found[1:]]
    if prompt_file is not None and other is not None:
        with watch.timed("spinal"):
            comparison = spinal_comparison(
                subject,
                other,
                opening,
                prompt_file,
                spinal,
                pairs=pair_file,
                template=template,
                eos=eos,
                max_invalid=max_invalid,
                seed=seed,
                stage=run.stage if run else lambda name: None,
                progress=progress,
            ).section()
        results.append(comparison.costed(watch.cost("spinal")))
    if "information" in sections and other is not None and pair_file is not None:
        with watch.timed("information"):
            information = information_of(
                subject,
                other,
                pair_file,
                reading,
                beta=beta,
                seed=seed,
                share_prefix=share_prefix,
                policy_samples=samples.get("policy"),
                reference_samples=samples.get("reference"),
                shards=run.stage("states") if run else None,
            ).section()
        results.append(information.costed(watch.cost("information")))
    if "weights" in sections:
        with watch.timed("weights"):
            spectra = weight_spectrum(subject, other).section()
        results.append(spectra.costed(watch.cost("weights")))

    results[0] = replace(
        results[0],
        findings=(*model_findings(subject, other, section=results[0].section.name), *results[0].findings),
    )
    manifest = Manifest(
        command=command,
        models={role: model_facts(model) for role, model in models.items()}
        | {f"control {name}": found for name, (_, found) in others.items()},
        data=data,
        settings=settings,
        packages=package_versions(),
        device=subject.device,
        dtype=subject.dtype,
        seed=seed,
        wall_seconds=watch.total(),
    )
    report = Report.assemble(
        title=f"Audit of {short_name(subject.name)}",
        question=_question(subject, other, pair_file, prompt_file),
        manifest=manifest,
        results=results,
    )
    if run is not None:
        report.save(run.path)
    return report


def _require_settings(text: TextPolicy, ranking: PreferenceSettings) -> None:
    """Refuse what can be seen to be wrong before a file is read: a bad value must not cost an hour, or a run folder."""
    template_file_hash(text.template)
    require_ranking_settings(
        (ranking.training_beta,), 1, ranking.ties, ranking.smoothing, ranking.assumed_preference, ranking.bootstrap
    )


def _scored(scores: "PairScores | SampleScores") -> dict[str, Any]:
    return {
        "scored": len(scores.frame),
        "set_aside": count_reasons(scores.invalid),
        "set_aside_rows": first_rows(scores.invalid),
    }


def _question(subject: "Subject", other: "Subject | None", pairs: PairFile | None, prompts: PromptFile | None) -> str:
    against = f", measured against {short_name(other.name)}" if other is not None else ""
    read = [] if pairs is None else [f"{len(pairs)} preference pairs"]
    read += [] if prompts is None else [f"{len(prompts)} prompts"]
    on = f", on {' and '.join(read)}" if read else ""
    return f"What did preference training do to {short_name(subject.name)}{against}{on}?"
