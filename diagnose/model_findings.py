"""Do the two models of an audit belong side by side? Rules over what loading found out, not over any score."""

from typing import TYPE_CHECKING

from ..probes.policy import passed_over
from .naming import short_name
from .report import Finding

if TYPE_CHECKING:
    from ..probes.subject import Subject


def model_findings(policy: "Subject", reference: "Subject | None", *, section: str) -> tuple[Finding, ...]:
    """Findings about an adapter that does nothing, one that was passed over, and models stored in unlike precision."""
    found = [_idle_adapter(policy, section), _passed_over(policy, reference, section)]
    if reference is not None:
        found.append(_unlike_precision(policy, reference, section))
    return tuple(finding for finding in found if finding is not None)


def _idle_adapter(policy: "Subject", section: str) -> Finding | None:
    if not policy.facts.get("adapter_changes_nothing"):
        return None
    return Finding(
        severity="alarm",
        section=section,
        sentence=f"The adapter {short_name(policy.name)} changes nothing on the ids it was tried on: the model gives "
        "the same logits with it and without it.",
        rests_on=[],
        next_step="It is an untrained adapter or the wrong folder: name the one that training saved.",
    )


def _passed_over(policy: "Subject", reference: "Subject | None", section: str) -> Finding | None:
    sentence = passed_over(policy, reference)
    if sentence is None:
        return None
    return Finding(
        severity="notice",
        section=section,
        sentence=f"{sentence[0].upper()}{sentence[1:]}. Log-ratios and implicit rewards hold the earlier training too.",
        rests_on=[],
        next_step="Give --reference adapter:ref for what this training changed.",
    )


def _unlike_precision(policy: "Subject", reference: "Subject", section: str) -> Finding | None:
    """Rounding of one side would count as training. Float32 against bfloat16 on disk is the mildest case."""
    sides = [_precision(model) for model in (policy, reference)]
    if sides[0] == sides[1] or None in sides:
        return None
    quantised = any(model.facts.get("quantization") for model in (policy, reference))
    return Finding(
        severity="alarm" if quantised else "notice",
        section=section,
        sentence=f"{short_name(policy.name)} is stored as {sides[0]}, {short_name(reference.name)} as {sides[1]}: what "
        "rounding did to one of them counts as training in every number below.",
        rests_on=[],
        next_step="Compare two models of one format, or an adapter on its own base.",
    )


def _precision(model: "Subject") -> str | None:
    """How the weights were stored; of an adapter its base's format. None for a live model, which has no file."""
    stored = model.facts.get("dtype_on_disk")
    return model.facts.get("quantization") or (stored and stored.split(", ")[0])  # the most frequent one of the tensors
