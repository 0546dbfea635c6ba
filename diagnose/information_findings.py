"""What the rates of differential information say, in plain sentences: rules on intervals, never on a bare value.

The rates are per-token means of one source of histories: D (information, over the whole vocabulary), D^S
(plausible_information, over what can be said), KL and reverse KL, nats a token.
"""

from collections.abc import Iterable, Mapping

from .identities import Identity, failed
from .report import Estimate, Finding

FLOOR = 2e-3  # nats a token: below it rounding alone may be what is seen
OPENING_FACTOR = 3.0
PANEL = ("information", "plausible_information", "kl")  # what the floor is held against
_SAID = {"information": "D", "plausible_information": "D^S", "kl": "KL", "reverse_kl": "reverse KL"}


def information_findings(
    rates: Mapping[str, Estimate],
    *,
    floor: float | int = FLOOR,
    identities: Iterable[Identity] = (),
    buckets: Mapping[str, Mapping[str, Estimate]] | None = None,
    section: str = "information",
) -> tuple[Finding, ...]:
    """Findings of every source in `rates`, whose names are `<source>_information`, `<source>_plausible_information`,
    `<source>_kl` and `<source>_reverse_kl`.

    floor: nats a token, the larger of 2e-3 and the measured one. buckets: source -> bucket -> D^S, buckets in the order
    of positions, the opening first. identities: one that fails is an alarm, and the section has no other finding.
    Rules, on the ends of intervals: D, D^S and KL below the floor: no measurable change (without an interval it is said
    of these histories alone); D above it and the two others below: the change is in tokens the models never say; D^S of
    the opening above 3 times that of each other bucket: mostly in the opening tokens.
    Raises ValueError for a floor that is not positive.
    """
    if not floor > 0:
        raise ValueError(f"floor={floor}: expected nats a token, above 0")
    broken = failed(identities)
    if broken:
        return tuple(_alarm(row, section) for row in broken)
    found: list[Finding | None] = []
    for source in sources_of(rates):
        found += [_unchanged(rates, source, floor, section), _unsaid(rates, source, floor, section)]
        found.append(_opening(rates, (buckets or {}).get(source, {}), source, floor, section))
    return tuple(finding for finding in found if finding is not None)


def sources_of(rates: Mapping[str, Estimate]) -> list[str]:
    """The sources that have a D, in the order of `rates`."""
    ends = ("_plausible_information", "_information")
    return [name.removesuffix(ends[1]) for name in rates if name.endswith(ends[1]) and not name.endswith(ends[0])]


def _alarm(row: Identity, section: str) -> Finding:
    found = f"has no value ({row.reason})" if row.value is None else f"is {row.value:.4g}"
    error = "" if row.standard_error is None else f", standard error {row.standard_error:.2g}"
    return Finding(
        severity="alarm",
        section=section,
        sentence=f"An identity that holds for any two models fails: {row.name} {found}{error}, bound {row.bound:g} "
        f"(n = {row.n}). No number of this section can be trusted.",
        rests_on=[],
        next_step="Check that both models read the same ids and the same vocabulary, and that samples were drawn at "
        "temperature 1 without top-k or top-p from the model that they are named after.",
    )


def _unchanged(rates: Mapping[str, Estimate], source: str, floor: float, section: str) -> Finding | None:
    panel = _panel(rates, source)
    sure = all(_below(estimate, floor) for estimate in panel.values())
    small = all(e.value is not None and e.value < floor and (e.high is None or e.high < floor) for e in panel.values())
    if not small:
        return None
    caveat = "" if sure else f" This is said of these {panel['information'].n} rows alone: there is no interval."
    return Finding(
        severity="info",
        section=section,
        sentence=f"There is no measurable change along {source} histories: {_shown(panel)}, all below the floor of "
        f"{floor:.2g} nats a token.{caveat}",
        rests_on=_names(panel, source, section),
        next_step="" if sure else "Read histories of more prompts for an interval.",
    )


def _unsaid(rates: Mapping[str, Estimate], source: str, floor: float, section: str) -> Finding | None:
    panel = _panel(rates, source)
    said = [panel[name] for name in PANEL[1:]]
    low = panel["information"].low
    if low is None or low <= floor or not all(_below(estimate, floor) for estimate in said):
        return None
    return Finding(
        severity="notice",
        section=section,
        sentence=f"Along {source} histories the change is in tokens the models never say: {_shown(panel)}, of which D "
        f"alone, a mean over the whole vocabulary, is above the floor of {floor:.2g} nats a token.",
        rests_on=_names(panel, source, section),
        next_step="Do not read D as a change of behaviour here; table tokens shows which tokens carry it.",
    )


def _opening(
    rates: Mapping[str, Estimate], buckets: Mapping[str, Estimate], source: str, floor: float, section: str
) -> Finding | None:
    if len(buckets) < 2:
        return None
    (first, opening), *others = buckets.items()
    rest = {name: e.high for name, e in others if e.value is not None}  # a bucket that no response reaches says nothing
    highs = [high for high in rest.values() if high is not None]
    if opening.low is None or opening.low <= floor or not rest or len(highs) < len(rest):
        return None
    if opening.low <= OPENING_FACTOR * max(highs):
        return None
    return Finding(
        severity="notice",
        section=section,
        sentence=f"Along {source} histories the change is mostly in the opening tokens: D^S is {opening} in tokens "
        f"{first}, more than {OPENING_FACTOR:g} times that of every other part of answers (at most {max(highs):.3g}).",
        rests_on=[f"{section}.{source}_plausible_information"] if f"{source}_plausible_information" in rates else [],
        next_step="Table profile shows the parts; refusals, greetings and formats live in the opening.",
    )


def _panel(rates: Mapping[str, Estimate], source: str) -> dict[str, Estimate]:
    lacking = [name for name in PANEL if f"{source}_{name}" not in rates]
    if lacking:
        raise ValueError(f"rates of source {source} lack {', '.join(lacking)}: expected {', '.join(PANEL)}")
    return {name: rates[f"{source}_{name}"] for name in PANEL}


def _below(estimate: Estimate, floor: float) -> bool:
    return estimate.high is not None and estimate.high < floor


def _shown(panel: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{_SAID[name]} {estimate}" for name, estimate in panel.items())


def _names(panel: Mapping[str, Estimate], source: str, section: str) -> list[str]:
    return [f"{section}.{source}_{name}" for name in panel]
