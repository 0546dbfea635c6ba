"""Do quantised weights allow an exponent? Packed ones only where it is asked for, unpacked ones as any other.

Reconstructed: the rule is ours. Intervals cover the choice of prompts, not what rounding did to the weights.
"""

from typing import TYPE_CHECKING, Any

from ..probes.block_weights import FLOATS
from .report import Finding

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from .spinal_trace import SpinalTrace

# of SmolLM2-135M-Instruct on 512 prompts (spinal.md, section 6); 4-bit rounding: 16 levels over each 32 Gaussian values
NOISE_FLOOR = (
    "Of their noise floor this much is known: random noise of 1 % of every matrix of a 135M model moved steps by up to "
    ".045 rad and exponents by up to .0024, and rounding Gaussian weights to 4 bits in blocks of 32 is noise of 8 %"
)


def packed_format(subject: "Subject") -> str | None:
    """The low-bit format that the model computes in; None for plain floats, GGUF files unpacked on loading among them.

    Of a checkpoint that names a scheme its name, also where the weights in memory look plain: activations may not be.
    """
    scheme = subject.facts.get("quantization")
    if scheme is not None:
        return None if scheme == "gguf" or scheme.endswith(", unpacked") else scheme
    model: Any = getattr(subject, "model", None)
    if model is None:
        return None
    odd = [str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.dtype not in FLOATS]
    if not odd and not getattr(model, "is_quantized", False):
        return None
    return odd[0] if odd else "quantised"


def format_facts(subject: "Subject", *, allowed: bool) -> dict[str, Any]:
    """For the settings of a trace; `no_exponents`: why it may have none."""
    packed = packed_format(subject)
    refused = f"packed weights ({packed}): rounding shapes the spectrum; allow_quantized (--allow-quantized) fits it"
    return {
        "allow_quantized": allowed,
        "quantization": packed or subject.facts.get("quantization"),
        "packed": packed,
        "no_exponents": None if packed is None or allowed else refused,
    }


def format_warning(settings: dict[str, Any]) -> list[str]:
    """What must be said of packed weights beside every number."""
    packed = settings.get("packed")
    if packed is None:
        return []
    exponents = "exponents are left out" if settings.get("no_exponents") else "exponents hold the rounding, too"
    return [f"packed weights ({packed}): {exponents}, and no interval covers it. {NOISE_FLOOR}"]


def unlike_formats(first: "SpinalTrace", second: "SpinalTrace") -> str | None:
    """Why the exponents of two traces may not be subtracted for the format of their weights."""
    sides = [trace.settings for trace in (first, second)]
    refused = next((side["no_exponents"] for side in sides if side.get("no_exponents")), None)
    if refused is not None:
        return str(refused)
    formats = [side.get("quantization") for side in sides]
    if formats[0] == formats[1] or all(side.get("allow_quantized") for side in sides):
        return None
    said = " and ".join(form or "not quantised" for form in formats)
    return f"weights of unlike formats ({said}): rounding would count as training; allow_quantized on both allows it"


def unpacked_finding(trace: "SpinalTrace") -> list[Finding]:
    """Says that a quantised file was unpacked: an ordinary model, but that of the rounded weights."""
    scheme = trace.settings.get("quantization")
    if scheme is None or trace.settings.get("packed"):
        return []
    return [
        Finding(
            severity="notice",
            section="spinal_trace",
            sentence=f"The weights of {trace.model.name} were quantised ({scheme}) and are computed in "
            f"{trace.model.dtype}: every number is that of the rounded model.",
            rests_on=[],
            next_step="Compare it with models of the same format only, an adapter on it among them.",
        )
    ]
