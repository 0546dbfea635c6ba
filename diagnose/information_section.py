"""What the differential information says in words: the section "information" with its numbers, tables and findings."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from ..probes.histories import SOURCES
from .displacement import MOVED
from .fixed_length import ESTIMATES as SEQUENCE
from .identities import blanked, failed, identity_table
from .information_analysis import flat_rates
from .information_findings import information_findings
from .information_rates import MEASURES, row_estimate
from .information_tokens import LISTS
from .report import Estimate, Finding, Section, SectionResult

if TYPE_CHECKING:
    from .information_report import InformationReport

LAW = {"beta": "label_beta", "cubic": "label_cubic", "nonlinearity_p": "label_nonlinearity_p"}
MOVES = (*MOVED, "on_policy", "share_chosen_fell")
NAMES = (
    *(f"{source}_{name}" for source in SOURCES for name in (*MEASURES, "tilt")),
    *(f"candidates_{source}" for source in SOURCES),
    *(f"sequence_{name}" for name in SEQUENCE),
    *LAW.values(),
    "generator_beta",
    *(f"moved_{name}" for name in MOVES),
)  # that the estimates of the section can have
TABLES = {
    "profile": "a row a source, bucket of positions (response tokens from 1; end: end of sequence) and measure",
    "tokens": "the tokens that carry the update, by source, bucket and list: "
    + "; ".join(f"{name}: {about}" for name, about in LISTS.items()),
    "tilt": "slope a of log(policy / reference) on log reference over plausible tokens, by source and bucket (weights "
    "(policy + reference) / 2, ours); quartiles over positions; n_null: positions without one",
    "positions": "a row a response token: D (information), D^S, KL both ways, log-ratio of the token that stands there",
    "top_tokens": "the 10 tokens of largest q at every position",
    "strips": "some responses token by token, those of largest KL",
    "identities": "identities that hold for any two models, checked on this data",
    "candidates": "a row a prompt with several responses of one source: entropy of q over them",
    "sequences": "a row a prompt: entropy of q over all strings of one length; raw_unreliable where it was refused",
    "reliability": "pairs by predicted preference, at the fitted and at the training's beta",
    "displacement": "where the probability of chosen and rejected answers went: changes, quadrants of their signs, and "
    "what sampling from the reference predicts",
    "updates": "rates of every step of the chain, over the same histories",
}
CLAIM = (
    "one preprint reports that updates of high entropy go with better open-ended instruction following, those of low "
    "entropy with better knowledge-intensive answers (arXiv 2505.23761): not established, and nothing here rests on it"
)


def information_section(found: "InformationReport") -> SectionResult:
    """Section "information". An identity that fails blanks every number."""
    estimates = blanked(_estimates(found), found.identities)
    tables = _tables(found)
    findings = _findings(found, estimates)
    section = Section(
        name="information",
        title="Differential information: what the update added",
        question=f"How much did training change {found.policy} from {found.reference} at each response token, at which "
        "tokens, and did it sharpen or smooth?",
        summary=_summary(found, estimates, findings),
        estimates=estimates,
        tables={name: TABLES[name] for name in tables},
        settings=dict(found.settings),
        counts=dict(found.counts) | {f"left out: {reason}": n for reason, n in found.excluded.items()},
        warnings=[*found.warnings, *_law_warnings(found), *_sequence_warnings(found), CLAIM],
    )
    return SectionResult(section=section, tables=tables, findings=findings)


def _estimates(found: "InformationReport") -> dict[str, Estimate]:
    estimates = flat_rates(found.rates)
    estimates |= {f"{source}_tilt": estimate for source, estimate in found.tilt_rates.items()}
    estimates |= {f"candidates_{source}": estimate for source, estimate in found.candidate_rates.items()}
    if found.sequence is not None:
        drawn = {name: found.settings[name] for name in ("level", "resamples", "seed") if name in found.settings}
        estimates |= {f"sequence_{name}": estimate for name, estimate in found.sequence.estimates(**drawn).items()}
    if found.label_law is not None:
        estimates |= {LAW[name]: estimate for name, estimate in found.label_law.estimates.items()}
        estimates["generator_beta"] = found.generator_law
    if found.displacement is not None:
        estimates |= {f"moved_{name}": found.displacement.estimates[name] for name in MOVES}
    return estimates


def _tables(found: "InformationReport") -> dict[str, pd.DataFrame]:
    strips = found.texts.merge(found.positions, on=["history", "position"], how="left")
    columns = [
        "history",
        "prompt_id",
        "source",
        "position",
        "text",
        "plausible_information",
        "kl",
        "log_ratio",
        "status",
    ]
    tables = {
        "profile": found.profile,
        "tokens": found.tokens,
        "tilt": found.tilt,
        "strips": strips[columns],
        "identities": identity_table(found.identities),
        "positions": found.positions,
        "top_tokens": found.tops,
    }
    if len(found.candidates):
        tables["candidates"] = found.candidates
    if found.sequence is not None:
        tables["sequences"] = found.sequence.to_frame()
    if found.label_law is not None:
        tables["reliability"] = found.label_law.reliability
    if found.displacement is not None:
        tables["displacement"] = found.displacement.to_frame()
    if len(found.updates):
        tables["updates"] = found.updates
    return tables


def _findings(found: "InformationReport", estimates: Mapping[str, Estimate]) -> tuple[Finding, ...]:
    buckets = {
        str(source): {str(row["bucket"]): row_estimate(row) for _, row in part.iterrows()}
        for source, part in found.profile.query("measure == 'plausible_information'").groupby("source", sort=False)
    }
    rates = {name: e for name, e in flat_rates(found.rates).items() if name in estimates}
    rules = information_findings(rates, floor=found.noise_floor.effective, identities=found.identities, buckets=buckets)
    if failed(found.identities):
        return rules
    loud = [source for source in found.rates if _above_floor(found, source)]
    more = [*(_measured(source, found) for source in loud), *(_tilt(source, found) for source in loud)]
    return (*rules, *(finding for finding in (*more, _law(found), _moved(found)) if finding is not None))


def _above_floor(found: "InformationReport", source: str) -> bool:
    low = found.rates[source]["plausible_information"].low
    return low is not None and low > found.noise_floor.effective


def _measured(source: str, found: "InformationReport") -> Finding:
    """The rates of a source in one sentence."""
    rates = found.rates[source]
    return Finding(
        severity="info",
        section="information",
        sentence=f"Along {source} responses the update added {_short(rates['plausible_information'])} nats a token of "
        f"information about what can be said next (D^S), and KL(policy || reference) is {_short(rates['kl'])}; "
        f"{found.noise_floor.effective:.2g} would be rounding.",
        rests_on=[f"information.{source}_plausible_information", f"information.{source}_kl"],
    )


def _tilt(source: str, found: "InformationReport") -> Finding | None:
    """Sharpened or smoothed, where the slope's interval is clear of 0."""
    estimate = found.tilt_rates.get(source)
    if estimate is None or estimate.low is None or estimate.high is None or estimate.low <= 0 <= estimate.high:
        return None
    whole = found.tilt.query("source == @source and bucket == 'all'").iloc[0]
    word = "sharpened" if estimate.low > 0 else "smoothed"
    return Finding(
        severity="info",
        section="information",
        sentence=f"Along {source} responses the update {word} the reference: slope {_short(estimate)} of the log-ratio "
        f"on log reference, a line that explains {whole['r2']:.0%} of it (R^2).",
        rests_on=[f"information.{source}_tilt"],
    )


def _law(found: "InformationReport") -> Finding | None:
    law = found.label_law
    if law is None or law.beta.value is None or law.beta.low is None or law.comparison is None:
        return None
    return Finding(
        severity="info" if "lies inside" in law.comparison else "notice",
        section="information",
        sentence=law.summary(),
        rests_on=["information.label_beta"],
        next_step=""
        if "lies inside" in law.comparison
        else "Read table reliability, and the rewards section's calibration.",
    )


def _moved(found: "InformationReport") -> Finding | None:
    moved = found.displacement
    if moved is None or moved.estimates["chosen"].low is None:
        return None
    return Finding(
        severity="notice" if moved.beyond_sampling else "info",
        section="information",
        sentence=moved.summary(),
        rests_on=["information.moved_chosen", "information.moved_on_policy"],
    )


def _summary(found: "InformationReport", estimates: Mapping[str, Estimate], findings: tuple[Finding, ...]) -> str:
    if failed(found.identities):
        return "No number: an identity that holds for any two models fails on this data."
    said = [finding.sentence for finding in findings if finding.severity != "alarm"]
    return " ".join(said[:3]) if said else f"{len(found.positions)} response tokens were read."


def _law_warnings(found: "InformationReport") -> tuple[str, ...]:
    return () if found.label_law is None else found.label_law.warnings


def _sequence_warnings(found: "InformationReport") -> tuple[str, ...]:
    return () if found.sequence is None else found.sequence.warnings


def _short(estimate: Estimate) -> str:
    assert estimate.value is not None
    interval = "" if estimate.low is None else f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    return f"{estimate.value:.3g}{interval}"
