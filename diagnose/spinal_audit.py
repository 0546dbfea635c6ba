"""SPINAL of an audit: both models traced on the same prompts, the controls that were asked for, one section."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..probes.inputs import PairFile, PromptFile
from ..probes.policy import Named, load_control
from ..probes.vocabulary import same_ids
from .manifest import model_facts, model_identity
from .spinal import SpinalTrace, compare_spinal, spinal_trace
from .spinal_compare import CONTROLS, DEFAULT_CONTROLS, NOISE_SEEDS, SpinalComparison
from .spinal_contrast import terminal_window
from .spinal_score import GRADIENTS, OF_PAIRS
from .spinal_settings import require_at_least

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from .spinal_reading import Progress

# known by their fingerprints, and by the seeds that are there: neither a spelling nor more seeds make another run
NOT_IDENTITY = ("control_checkpoints", "noise_seeds")
Stage = Callable[[str], Path | None]  # name of a stage -> folder of its shards; None without a run directory


@dataclass(frozen=True, slots=True, kw_only=True)
class SpinalSettings:
    """What the section depends on besides models and prompts; see `spinal_trace` and `compare_spinal`.

    Raises InputError for a value that cannot be used: before a model is read.
    """

    terminal: str = "last_third"
    max_tokens: int = 128
    controls: Sequence[str] = DEFAULT_CONTROLS
    control_checkpoints: Mapping[str, "Named | Subject"] = field(default_factory=dict)
    noise_seeds: int = NOISE_SEEDS
    gradient: str = "weight_share"
    allow_quantized: bool = False

    def __post_init__(self) -> None:
        terminal_window(self.terminal, 10**6)
        require_at_least(max_tokens=(self.max_tokens, 1), noise_seeds=(self.noise_seeds, 1))
        if self.gradient not in GRADIENTS:
            raise InputError(f"--gradient {self.gradient}: choose from {', '.join(GRADIENTS)}")
        for name in self.controls:
            if name not in CONTROLS:
                raise InputError(f"--controls {name}: choose from {', '.join(CONTROLS)}; checkpoints go to --control")
        for name in self.control_checkpoints:
            if name in CONTROLS or not re.fullmatch(r"\w+", name):
                raise InputError(
                    f"--control {name}=...: a name is letters, digits and _, and none of {', '.join(CONTROLS)}"
                )

    def answered(self, before: Mapping[str, Any]) -> bool:
        """Whether a finished run with these settings has as many seeds of noise as are asked for."""
        return "noise" not in self.controls or before.get("noise_seeds") == self.noise_seeds

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "terminal": self.terminal,
            "max_tokens": self.max_tokens,
            "controls": list(self.controls),
            "control_checkpoints": {name: str(path) for name, path in self.control_checkpoints.items()},
            "noise_seeds": self.noise_seeds,
            "gradient": self.gradient,
            "allow_quantized": self.allow_quantized,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a control checkpoint is opened; an adapter's base is `base`, else its own, else the reference."""

    reference: "Named | Subject | None"
    base: Named | None = None
    dtype: str = "float32"
    device: str = "auto"

    def __call__(self, control: "Named | Subject") -> "Subject":
        return load_control(control, self.reference, base=self.base, dtype=self.dtype, device=self.device)


def control_facts(
    settings: SpinalSettings, open_control: Opening, policy: "Subject", reference: "Subject"
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Identity and facts of every control, each opened and let go: memory holds one at a time.

    Raises InputError for one that is the policy or the reference, or has another depth or dtype: before anything is
    traced.
    """
    found = {}
    for name, path in settings.control_checkpoints.items():
        control = open_control(path)
        for what, other in (("policy", policy), ("reference", reference)):
            if control.fingerprint == other.fingerprint:
                raise InputError(f"--control {name}={path}: it has the weights of the {what} ({other.name})")
        for what, theirs, ours in (
            ("blocks", control.n_layers, reference.n_layers),
            ("dtype", control.dtype, reference.dtype),
        ):
            if theirs != ours:
                raise InputError(f"--control {name}={path}: {what} {theirs}, the reference has {ours}")
        found[name] = (model_identity(control), model_facts(control))
        del control
    return found


def spinal_comparison(
    policy: "Subject",
    reference: "Subject",
    open_control: Opening,
    prompts: PromptFile,
    settings: SpinalSettings,
    *,
    pairs: PairFile | None = None,
    template: str = "auto",
    eos: str = "auto",
    max_invalid: float = 0.05,
    seed: int = 0,
    stage: Stage = lambda name: None,
    progress: "Progress | None" = None,
) -> SpinalComparison:
    """Trace reference, policy and controls on the ids of one tokenizer where they share one, then compare.

    A control is opened for its own trace and let go.
    """

    def traced(role: str, model: "Subject") -> SpinalTrace:
        same_text = model.fingerprints.tokenizer is None or same_ids(policy, model)
        return spinal_trace(
            model,
            prompts,
            max_tokens=settings.max_tokens,
            template=template,
            eos=eos,
            max_invalid=max_invalid,
            seed=seed,
            shards=stage(f"trace_{role}"),
            progress=progress,
            tokenizer=policy.tokenizer if same_text else None,
            allow_quantized=settings.allow_quantized,
        )

    base, aligned = traced("reference", reference), traced("policy", policy)
    return compare_spinal(
        base,
        aligned,
        terminal=settings.terminal,
        subjects=(reference, policy),
        controls=settings.controls,
        control_traces={
            name: traced(f"control_{name}", open_control(path)) for name, path in settings.control_checkpoints.items()
        },
        noise_seeds=settings.noise_seeds,
        gradient=settings.gradient,
        pairs=pairs if settings.gradient in OF_PAIRS else None,
        prompts=prompts,
        seed=seed,
        shards=stage("spinal"),
        progress=progress,
    )
