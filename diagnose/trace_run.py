"""SPINAL of one model as a run: a checkpoint and prompts in, a report out."""

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..probes.encoding import TextPolicy
from ..probes.inputs import check_invalid, read_prompts
from ..probes.policy import load_policy_and_reference
from ..probes.rendering import template_file_hash
from .lens_choice import opened_lens
from .manifest import data_facts, model_facts, model_identity, package_versions
from .naming import short_name
from .report import Manifest, Report
from .run_directory import RunDirectory
from .spinal import spinal_trace
from .spinal_settings import check_trace_settings, preset_values, require_at_least

if TYPE_CHECKING:
    from .audit import Progress


def trace_run(
    checkpoint: str | os.PathLike[str],
    prompts: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    template: str = "auto",
    eos: str = "auto",
    max_tokens: int = 128,
    max_invalid: float = 0.05,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    progress: "Progress | None" = None,
    command: str = "trace_run(...)",
) -> Report:
    """Trace one checkpoint into the run directory `out` (resumable) and return its report.

    options: further keywords of `spinal_trace` (preset, window, estimator, lens, ...), checked before a model is read;
        a lens before anything is written.
    """
    defaults = {name: keyword.default for name, keyword in inspect.signature(spinal_trace).parameters.items()}
    options = {name: defaults[name] for name in ("preset", "window", "lens_positions")} | dict(options or {})
    check_trace_settings(defaults | options)
    options |= preset_values(options["preset"], window=options["window"], lens_positions=options["lens_positions"])
    TextPolicy(template, eos)  # refused before a model is read
    template_sha256 = template_file_hash(template)
    require_at_least(max_tokens=(max_tokens, 1))
    file = read_prompts(prompts)
    check_invalid(file, max_invalid)
    subject, _ = load_policy_and_reference(checkpoint, None, base=base, dtype=dtype, device=device)
    lens = opened_lens(options.get("lens", "logit"), subject, shared=options.get("shared_lens", False))
    settings = {
        "template": template,
        "template_sha256": template_sha256,
        "eos": eos,
        "max_tokens": max_tokens,
        "max_invalid": max_invalid,
        "dtype": subject.dtype,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
    }
    if lens is not None:
        named = options["lens"]
        settings["lens"] = os.fspath(named) if isinstance(named, str | os.PathLike) else "tuned"
        options["lens"], settings["lens_fingerprint"] = lens, lens.fingerprint
    run = RunDirectory(
        out,
        {
            "kind": "trace",
            "alignscope": package_versions()["alignscope"],
            "seed": seed,
            "models": {"policy": model_identity(subject)},
            "data": {"prompts": file.sha256},
            "settings": {name: value for name, value in settings.items() if name != "lens" or lens is None},
        },
    )
    if run.finished:
        return Report.load(run.path)
    with run.watch.timed("trace"):
        trace = spinal_trace(
            subject,
            file,
            max_tokens=max_tokens,
            template=template,
            eos=eos,
            max_invalid=max_invalid,
            seed=seed,
            shards=run.stage("trace"),
            progress=run.watch.ticking(progress),
            **options,
        )
    manifest = Manifest(
        command=command,
        models={"model": model_facts(subject)},
        data={"prompts": data_facts(file)},
        settings=settings,
        packages=package_versions(),
        device=subject.device,
        dtype=subject.dtype,
        seed=seed,
        wall_seconds=run.watch.total(),
    )
    report = Report.assemble(
        title=f"SPINAL trace of {short_name(subject.name)}",
        question=f"How does the residual stream of {short_name(subject.name)} contract and travel over its "
        f"{subject.n_layers} blocks, on {trace.n} prompts?",
        manifest=manifest,
        results=[trace.section().costed(run.watch.cost("trace"))],
    )
    report.save(run.path)
    return report
