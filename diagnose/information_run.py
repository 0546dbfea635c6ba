"""Differential information as a run: two checkpoints and responses in, a report out; a killed run continues."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..probes.encoding import TextPolicy
from ..probes.policy import is_adapter, load_policy_and_reference
from ..probes.rendering import template_file_hash
from .history_sets import history_input
from .information import check_information_settings, information_report
from .information_turns import read_models, require_in_turn
from .manifest import model_facts, model_identity, package_versions
from .naming import short_name
from .report import Manifest, Report
from .run_directory import RunDirectory
from .series_steps import Save, save_hash

if TYPE_CHECKING:
    from .audit import Progress

Named = str | os.PathLike[str]
TEXT = ("template", "eos", "boundary", "max_length", "over_length")


def information_run(
    policy: Named,
    reference: Named,
    responses: Named,
    *,
    out: Named,
    base: Named | None = None,
    policy_samples: Named | None = None,
    reference_samples: Named | None = None,
    via: Mapping[str, Named] | None = None,
    source: str = "dataset",
    expected: str | None = None,
    max_invalid: float = 0.05,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    progress: "Progress | None" = None,
    command: str = "information_run(...)",
) -> Report:
    """The report of `information_report` in the run directory `out`; finished shards of states are kept until its end.

    responses: pairs, or responses named after `source`; expected: which of the two the file has to hold. options:
    further keywords of `information_report` (beta, plausible, sequence, template, ...), checked before a model is read.
    One of them, one_at_a_time, moves no number, so that a run that ran out of memory may continue with it.
    """
    options = dict(options or {})
    check_information_settings(options)
    TextPolicy(**{name: options[name] for name in TEXT if name in options})
    template_sha256 = template_file_hash(options.get("template", "auto"))
    given = history_input(
        responses,
        source=source,
        policy_samples=policy_samples,
        reference_samples=reference_samples,
        expected=expected,
        max_invalid=max_invalid,
    )
    adapters = any(is_adapter(model) for model in (policy, reference, *(via or {}).values()))
    if base is not None and not adapters:
        raise InputError(f"--base {base}: no adapter folder among the models: nothing takes a base")
    in_turn = bool(options.pop("one_at_a_time", False))
    subject, other = _models(policy, reference, base, dtype, device, in_turn, options)
    data = given.facts()
    saves = {f"via {name}": save_hash(Save(0, os.fspath(path))) for name, path in (via or {}).items()}
    settings = {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
        "template_sha256": template_sha256,
        "via": {name: os.fspath(path) for name, path in (via or {}).items()},
        "max_invalid": max_invalid,
        "dtype": dtype,
    }
    run = RunDirectory(
        out,
        {
            "kind": "information",
            "alignscope": package_versions()["alignscope"],
            "seed": seed,
            "models": {"policy": model_identity(subject), "reference": model_identity(other), **saves},
            "data": {name: facts["sha256"] for name, facts in data.items()},
            "settings": settings,
        },
    )
    if run.finished:
        return Report.load(run.path)
    with run.watch.timed("information"):
        found = information_report(
            policy if in_turn else subject,
            reference if in_turn else other,
            given,
            via=via,
            base=base,
            one_at_a_time=in_turn,
            dtype=dtype,
            device=device,
            max_invalid=max_invalid,
            seed=seed,
            shards=run.stage("states"),
            progress=run.watch.ticking(progress),
            **options,
        )
        result = found.section()
    manifest = Manifest(
        command=command,
        models={
            "policy": model_facts(subject),
            "reference": model_facts(other),
            **{
                f"via {name}": {"name": os.fspath(path), "hash": saves[f"via {name}"]}
                for name, path in (via or {}).items()
            },
        },
        data=data,
        settings=settings,
        packages=package_versions(),
        device=subject.device,
        dtype=subject.dtype,
        seed=seed,
        wall_seconds=run.watch.total(),
    )
    report = Report.assemble(
        title=f"Information of {short_name(subject.name)} against {short_name(other.name)}",
        question=result.section.question,
        manifest=manifest,
        results=[result.costed(run.watch.cost("information"))],
    )
    report.save(run.path)
    return report


def _models(
    policy: Named,
    reference: Named,
    base: Named | None,
    dtype: str,
    device: str,
    in_turn: bool,
    options: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Both models, or in turns what they say of themselves, by which a run is known before it begins."""
    if in_turn:
        whole = options.get("sequence") == "fixed_length" or bool(options.get("paper_style"))
        require_in_turn(policy, reference, base=base, whole_sequences=whole)
        return read_models(policy, reference, base=base, dtype=dtype, device=device)
    under = base if is_adapter(policy) or is_adapter(reference) else None
    subject, other = load_policy_and_reference(policy, reference, base=under, dtype=dtype, device=device)
    assert other is not None  # a reference was named
    return subject, other
