"""What `information_report` gives: rates, profile, tokens and the checks beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import InputError
from .displacement import Displacement
from .fixed_length import FixedLengthInformation
from .generator_law import UNKNOWN
from .identities import Identity
from .information_floor import NoiseFloor
from .information_rates import paired_difference
from .power_law import LabelLaw
from .report import Estimate
from .statistics import LEVEL

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from .report import SectionResult


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InformationReport:
    """Differential information of an update along responses, by where the responses are from (arXiv 2505.23761).

    All rates are nats a token, q is proportional to policy / reference of the next token; D = log V - entropy of q.
    """

    policy: str
    reference: str
    rates: Mapping[str, Mapping[str, Estimate]]  # source -> measure (information_rates.MEASURES)
    profile: pd.DataFrame  # source, bucket of positions, measure
    tokens: pd.DataFrame  # information_tokens.COLUMNS
    tilt: pd.DataFrame  # source, bucket: slope of log policy / reference on log reference
    tilt_rates: Mapping[str, Estimate]  # source -> that slope over all positions
    candidates: pd.DataFrame  # a row a prompt and source of samples; empty where no prompt has two
    candidate_rates: Mapping[str, Estimate]  # source -> mean H_K / log K
    sequence: FixedLengthInformation | None  # None where it was not asked for
    label_law: LabelLaw | None  # None without pairs
    displacement: Displacement | None  # None without pairs
    identities: tuple[Identity, ...]
    noise_floor: NoiseFloor
    positions: pd.DataFrame  # InformationReading.positions
    tops: pd.DataFrame
    texts: pd.DataFrame  # history, position, piece: the tokens of the responses that are shown as strips
    updates: pd.DataFrame  # rates of every update of a chain: from, to, source, measure
    excluded: Mapping[str, int]  # reason -> rows or positions left out
    counts: Mapping[str, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def generator_law(self) -> Estimate:
        """Null: what wrote the responses of a file is not known. See `fit_generator_law` where it is."""
        return Estimate(
            label="slope of log p_chosen / p_rejected of the generators on log pi / pi_ref",
            value=None,
            n=0,
            method="none",
            reason=UNKNOWN,
        )

    def compare(self, other: "InformationReport", *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Which update moved further? The other's rates minus these, paired over the positions of the same histories.

        Raises ValueError where the two were not read along the same responses, token by token.
        """
        keys = ["source", "prompt_id", "history", "position", "token"]
        if not self.positions[keys].equals(other.positions[keys]):
            raise ValueError(
                f"the reports were read along other responses ({len(self.positions)} and {len(other.positions)} "
                "tokens): only updates over the same pairs and samples are subtracted"
            )
        level = self.settings.get("level", LEVEL)
        return paired_difference(self.positions, other.positions, resamples=resamples, seed=seed, level=level)

    def section(self) -> "SectionResult":
        """The report's section "information"."""
        from .information_section import information_section

        return information_section(self)

    def to_frame(self) -> pd.DataFrame:
        """A row a source and measure, with interval."""
        return pd.DataFrame(
            [
                {"source": source, "measure": name, **estimate.model_dump()}
                for source, found in self.rates.items()
                for name, estimate in found.items()
            ]
        )

    def summary(self) -> str:
        """One to three sentences that a non-author can quote."""
        return self.section().section.summary

    def figure(self) -> "go.Figure":
        """The update profile by position; `figures()` gives all. Raises InputError where an identity fails."""
        found = self.figures()
        if "profile" not in found:
            raise InputError(f"no figure is drawn of refused numbers: {self.summary()} See `identities`")
        return found["profile"]

    def figures(self) -> "dict[str, go.Figure]":
        """The figures of this section by name."""
        from ..dashboards.information_figures import information_figures

        result = self.section()
        return information_figures(result.tables, result.section.estimates, settings=result.section.settings)
