"""The doctor as a report: checkpoint in, checks out, with a manifest and numbers that gates can name."""

import os

from ..errors import InputError
from ..probes.inputs import check_invalid, read_prompts
from ..probes.policy import load_policy_and_reference
from .doctor import examine
from .manifest import data_facts, model_facts, package_versions
from .naming import short_name
from .report import Manifest, Report

PROBED = 16  # texts that the doctor reads


def doctor_run(
    checkpoint: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    prompts: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    command: str = "doctor_run(...)",
) -> Report:
    """Examine one checkpoint (doctor.examine), beside `reference` where one is given.

    prompts: a file whose first 16 prompts, plain strings, are the texts to probe with. Raises InputError for a model
    that cannot be opened, and for message lists among these prompts.
    """
    file = None if prompts is None else read_prompts(prompts)
    plain = None
    if file is not None:
        check_invalid(file)
        used = [prompt.text for prompt in file][:PROBED]
        plain = [text for text in used if isinstance(text, str)]
        if len(plain) < len(used):
            n = len(used) - len(plain)
            raise InputError(f"{prompts}: {n} of the first {len(used)} prompts are message lists; give plain strings")
    subject, other = load_policy_and_reference(checkpoint, reference, base=base, dtype=dtype, device=device)
    result = examine(subject, plain, reference=other)
    models = {"model": subject} | ({} if other is None else {"reference": other})
    return Report.assemble(
        title=f"Doctor: {short_name(subject.name)}",
        question=result.section.question,
        manifest=Manifest(
            command=command,
            models={role: model_facts(model) for role, model in models.items()},
            data={} if file is None else {"prompts": data_facts(file)},
            settings=dict(result.section.settings),
            packages=package_versions(),
            device=subject.device,
            dtype=subject.dtype,
            seed=0,
            wall_seconds=0.0 if result.section.cost is None else result.section.cost.seconds,
        ),
        results=[result],
    )
