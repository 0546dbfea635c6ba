"""Pair tables in, the preference sections of a report out: ranking with its companions, rewards, objectives."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import InputError
from ..probes.pair_table import PairScores
from ..probes.samples import SampleScores
from .companions import companion_sections
from .objectives_section import objectives_section
from .ranking import DEFAULT_BETA
from .ranking_report import ranking_report
from .report import SectionResult
from .reward_report import require_setting_name, reward_report
from .spinal_score import OF_PAIRS

ID = "in_distribution"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings:
    """What the preference numbers depend on besides the tables; see `ranking_report` and `reward_report`.

    beta: of the DPO training. None: TRL's default is assumed, and every section that depends on it says so.
    """

    beta: float | None = None
    ties: str = "half"
    smoothing: str = "jeffreys"
    assumed_preference: float | None = None
    same_training: bool = False
    shifts: Mapping[str, str] | None = None
    seed: int = 0
    bootstrap: int = 2000

    @property
    def beta_given(self) -> bool:
        return self.beta is not None

    @property
    def training_beta(self) -> float:
        """The beta that the numbers are computed with."""
        return DEFAULT_BETA if self.beta is None else self.beta


def require_shifted(names: Collection[str], sections: Collection[str]) -> None:
    """Shifted sets have names of their own, and a section that reads them. Raises InputError."""
    for name in names:
        require_setting_name(name)
        if name == ID:
            raise InputError(f"--shifted {ID}=...: this is the name of the main pairs; choose another one")
    if names and "rewards" not in sections:
        raise InputError("--shifted: shifted sets are read by the section rewards, which is not computed here")


def require_pairs(pairs: object, sections: Collection[str], *, prompts: object, gradient: str = "weight_share") -> None:
    """Refuse to begin without pairs that a section would read. Raises InputError naming it."""
    if pairs is not None:
        return
    readers = [name for name in ("ranking", "rewards", "information") if name in sections]
    if readers:
        raise InputError(
            f"--pairs missing: {' and '.join(readers)} cannot do without; --only weights can, "
            "and --only spinal beside --prompts"
        )
    if "spinal" in sections and prompts is None:
        raise InputError("--pairs missing: spinal reads their prompts; give --pairs or --prompts")
    if "spinal" in sections and gradient in OF_PAIRS:
        raise InputError(f"--pairs missing: --gradient {gradient} is measured on preference pairs")


def ranking_sections(
    scores: PairScores,
    settings: PreferenceSettings,
    *,
    companions_only: bool = False,
    samples: SampleScores | None = None,
) -> list[SectionResult]:
    """Sections ranking, length, displacement; or without the first, for a report on rewards alone.

    samples: completions drawn from the reference, for the displacement that is forced on them.
    """
    report = ranking_report(
        scores,
        beta=settings.training_beta,
        beta_given=settings.beta_given,
        ties=settings.ties,
        smoothing=settings.smoothing,
        assumed_preference=settings.assumed_preference,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
    )
    companions = companion_sections(scores, report, reference_samples=samples)
    return companions if companions_only else [report.section(), *companions]


def reward_sections(
    scores: PairScores, shifted: Mapping[str, PairScores], settings: PreferenceSettings
) -> list[SectionResult]:
    """Sections rewards, objectives."""
    report = reward_report(
        {ID: scores, **shifted},
        beta=settings.training_beta,
        beta_given=settings.beta_given,
        in_distribution=ID,
        shifts=settings.shifts,
        same_training=settings.same_training,
        ties=settings.ties,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
    )
    objectives = objectives_section(
        scores,
        beta=settings.training_beta,
        beta_given=settings.beta_given,
        smoothing=settings.smoothing,
        preference=settings.assumed_preference,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
    )
    return [report.section(), objectives]
