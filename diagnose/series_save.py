"""One save of a series: scored, traced, compared with the start and with the save before it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from ..errors import InputError
from ..probes.encoding import TextPolicy
from ..probes.inputs import PairFile, PromptFile
from ..probes.pair_table import PairScores
from ..probes.policy import Named, is_adapter, load_policy_and_reference
from ..probes.scoring import score_pairs
from ..probes.shards import item_key
from ..probes.vocabulary import same_ids
from .information_audit import information_of
from .information_floor import NoiseFloor
from .kept_sections import keep_section, kept_section
from .preference_sections import PreferenceSettings, ranking_sections, reward_sections
from .report import Estimate, SectionResult
from .series_held_out import held_out_values
from .series_steps import Save
from .spinal import SpinalTrace, compare_spinal, spinal_trace
from .spinal_distance import base_distance
from .spinal_series import SeriesDistances, SpinalSeries, spinal_series
from .spinal_series_noise import noise_sizes
from .weights import weight_spectrum

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from .audit import Progress

# raised when a change moves a number of the section: those kept before are then not used
INFORMATION_VERSION, WEIGHTS_VERSION = 1, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is measured of every save, and how."""

    sections: tuple[str, ...]
    pairs: PairFile | None  # None without "ranking" and "rewards"
    prompts: PromptFile | None  # None without "spinal"
    text: TextPolicy
    preferences: PreferenceSettings
    reward: Any
    terminal: str
    max_tokens: int
    allow_quantized: bool
    max_invalid: float
    batch_tokens: int
    cache: Path
    seed: int


@dataclass(slots=True, kw_only=True)
class Models:
    """Opens the saves one after the other; a reference that is a model of its own is read once."""

    reference: Named
    base: Named | None
    dtype: str
    device: str
    held: "Subject | None" = None

    def open(self, save: Save) -> "tuple[Subject, Subject]":
        """The save and the reference: an adapter's shares its weights where the reference is its base."""
        against = self.reference if self.held is None else self.held
        adapted = is_adapter(save.path) or is_adapter(self.reference)
        subject, other = load_policy_and_reference(
            save.path, against, base=self.base if adapted else None, dtype=self.dtype, device=self.device
        )
        assert other is not None  # a reference was given
        if getattr(other, "model", other) is not getattr(subject, "model", subject):
            self.held = other
        return subject, other


@dataclass(slots=True, kw_only=True)
class Ladder:
    """What is carried from save to save. Of models only the previous save's: for the distance to the next."""

    traces: list[SpinalTrace] = field(default_factory=list)  # the first is the start's
    previous: "tuple[Subject, SpinalTrace] | None" = None
    to_first: list[Float[np.ndarray, "layers N"]] = field(default_factory=list)
    to_previous: list[Float[np.ndarray, "layers N"]] = field(default_factory=list)
    tables: list[PairScores] = field(default_factory=list)
    floor: NoiseFloor | None = None  # of the start, for the section information

    @property
    def common(self) -> Bool[np.ndarray, "N"]:
        """Prompts that are finite in all saves."""
        return np.logical_and.reduce([trace.kept for trace in self.traces])

    def noise(
        self, start: "Subject", what: Measured, seeds: int, shards: Path, progress: "Progress | None"
    ) -> dict[str, Estimate]:
        """What noise as large as the update of the last save moves, by quantity."""
        assert self.previous is not None  # a save was traced
        trace, common = self.traces[0], self.common
        return noise_sizes(
            trace if (trace.kept == common).all() else trace.restricted(common),
            (start, self.previous[0]),
            terminal=what.terminal,
            seeds=seeds,
            seed=what.seed,
            shards=shards,
            progress=progress,
        )

    def followed(
        self, steps: Sequence[int], what: Measured, noise: Mapping[str, Estimate] | None = None
    ) -> SpinalSeries:
        """The trajectory over the prompts that are finite in all saves."""
        common = self.common
        distances = SeriesDistances(
            to_first=np.stack(self.to_first)[:, :, common], to_previous=np.stack(self.to_previous)[:, :, common]
        )
        held_out = None
        if self.tables:
            held_out = held_out_values(self.tables, what.preferences.training_beta, ties=what.preferences.ties)
        return spinal_series(
            self.traces,
            steps=[0, *steps],
            terminal=what.terminal,
            distances=distances,
            held_out=held_out,
            noise=noise,
            seed=what.seed,
        )


def score(
    subject: "Subject", other: "Subject", what: Measured, ladder: Ladder, folder: Path, progress: "Progress | None"
) -> list[SectionResult]:
    """The preference sections of a save; its table goes to the ladder."""
    text = what.text
    assert what.pairs is not None  # there with these sections
    table = score_pairs(
        subject,
        other,
        what.pairs,
        reward=what.reward,
        template=text.template,
        eos=text.eos,
        boundary=text.boundary,
        over_length=text.over_length,
        max_length=text.max_length,
        batch_tokens=what.batch_tokens,
        cache=what.cache,
        max_invalid=what.max_invalid,
        shards=folder / "scores",
        progress=progress,
    )
    ladder.tables.append(table)
    found = ranking_sections(table, what.preferences) if "ranking" in what.sections else []
    return [*found, *(reward_sections(table, {}, what.preferences) if "rewards" in what.sections else [])]


def information(
    subject: "Subject",
    other: "Subject",
    what: Measured,
    ladder: Ladder,
    folders: tuple[Path, Path],
    progress: "Progress | None",
) -> SectionResult:
    """The section "information" of a save, without its tables; kept. folders: of the start and of the save."""
    assert what.pairs is not None  # there with the section
    file, text = folders[1] / "information.json", asdict(what.text)
    reading = text | {"batch_tokens": what.batch_tokens, "max_invalid": what.max_invalid, "progress": progress}
    beta = what.preferences.training_beta if what.preferences.beta_given else None
    facts = {**text, "pairs": what.pairs.sha256, "beta": beta, "seed": what.seed}
    key = item_key(INFORMATION_VERSION, subject.fingerprint, other.fingerprint, facts)
    kept = kept_section(file, key)
    if kept is not None:
        return kept
    report = information_of(
        subject,
        other,
        what.pairs,
        reading,
        beta=beta,
        seed=what.seed,
        shards=folders[1] / "states",
        reference_states=folders[0] / "states",
        floor=ladder.floor,
    )
    ladder.floor = report.noise_floor
    return keep_section(file, key, report.section())


def weights(subject: "Subject", other: "Subject", folder: Path) -> SectionResult:
    """The section "weights" of a save against the start, without its tables; kept in the folder: spectra take long."""
    file = folder / "weights.json"
    key = item_key(WEIGHTS_VERSION, subject.fingerprint, other.fingerprint)
    return kept_section(file, key) or keep_section(file, key, weight_spectrum(subject, other).section())


def trace(
    subject: "Subject",
    other: "Subject",
    what: Measured,
    ladder: Ladder,
    folders: tuple[Path, Path],
    progress: "Progress | None",
) -> SectionResult:
    """The section "spinal" of a save against the start; traces and distances go to the ladder.

    folders: of the start and of the save. Raises InputError where the save reads other ids than the start.
    """
    if not ladder.traces:
        ladder.traces.append(_traced(other, other, what, folders[0], progress))
    start, found = ladder.traces[0], _traced(subject, other, what, folders[1], progress)
    shards = folders[1] / "distance"
    comparison = compare_spinal(
        start,
        found,
        terminal=what.terminal,
        subjects=(other, subject),
        controls=(),
        seed=what.seed,
        shards=shards,
        progress=progress,
    )
    last = ladder.previous or (other, start)
    ladder.to_first.append(_everywhere(comparison.base_distance, comparison.base.kept))
    ladder.to_previous.append(_between(last, (subject, found), shards, progress))
    ladder.traces.append(found)
    ladder.previous = (subject, found)
    return comparison.section()


def _traced(
    subject: "Subject", other: "Subject", what: Measured, folder: Path, progress: "Progress | None"
) -> SpinalTrace:
    assert what.prompts is not None  # there with the section spinal
    same_text = subject.fingerprints.tokenizer is None or same_ids(other, subject)
    return spinal_trace(
        subject,
        what.prompts,
        max_tokens=what.max_tokens,
        template=what.text.template,
        eos=what.text.eos,
        max_invalid=what.max_invalid,
        seed=what.seed,
        shards=folder / "trace",
        progress=progress,
        tokenizer=other.tokenizer if same_text else None,
        allow_quantized=what.allow_quantized,
    )


def _everywhere(
    distance: Float[np.ndarray, "layers n"] | None, kept: Bool[np.ndarray, "N"]
) -> Float[np.ndarray, "layers N"]:
    """A distance of the kept prompts on all of them, NaN elsewhere: saves may lose different prompts."""
    if distance is None:
        raise InputError("a save reads other token ids than the reference: no distances; use --only ranking")
    whole = np.full((len(distance), len(kept)), np.nan)
    whole[:, kept] = distance
    return whole


def _between(
    first: "tuple[Subject, SpinalTrace]",
    second: "tuple[Subject, SpinalTrace]",
    shards: Path,
    progress: "Progress | None",
) -> Float[np.ndarray, "layers N"]:
    both = first[1].kept & second[1].kept
    a, b = (one if (one.kept == both).all() else one.restricted(both) for one in (first[1], second[1]))
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
