"""What do the numbers of a steering vector say in plain sentences? Rules on intervals, never on a bare value."""

from collections.abc import Iterator, Mapping
from typing import Literal

from ...diagnose.phrases import in_points, in_share
from ...diagnose.report import Estimate, Finding
from .candidates import ELICIT, SUPPRESS, WAYS
from .report_parts import SECTION

BROKEN = 1.1  # ratio of perplexities of unrelated texts above which the edit breaks them [reconstructed]


def steering_findings(estimates: Mapping[str, Estimate]) -> list[Finding]:
    """Rules over the estimates of the section "steering", each on the ends of an interval; without one nothing is said.

    recovered below 0: does harm; over_random reaching 0 or below: no better than random directions; over_exchanged, of
    a direction that works: than itself at the strength of the other direction; over_diffmean: than the difference of
    means; over_prompt below 0: prompting is stronger; a direction that works (recovered and over_random above 0) beside
    one that does not, asymmetry clear of 0: one way; perplexity ratio above 1.1 [reconstructed]: breaks unrelated text;
    detection_auroc reaching 0.5 or below: does not tell texts apart; most answers flipped before: flips say little; 0
    selected where most answers flip at strength 1: the scorer does not rate what the vector does;
    opening_log_odds_change clear of 0: answers are about to begin as asked, or the other way round.
    """
    found: list[Finding] = []
    for way in WAYS:
        found += [*_of_shares(estimates, way), *_of_openings(estimates, way), *_of_flips(estimates, way)]
        found += _broken(estimates, way)
    return [*found, *_one_way(estimates), *_blind(estimates)]


def works(estimates: Mapping[str, Estimate], way: str) -> bool:
    """Whether the vector recovers more than nothing in this direction, and more than random directions where known."""
    recovered, over = estimates.get(f"recovered_{way}"), estimates.get(f"over_random_{way}")
    return _above(recovered, 0.0) and (over is None or over.low is None or over.low > 0)


def _of_shares(estimates: Mapping[str, Estimate], way: str) -> Iterator[Finding]:
    own, exchanged, random, means, prompt = (
        estimates.get(f"{name}_{way}")
        for name in ("recovered", "over_exchanged", "over_random", "over_diffmean", "over_prompt")
    )
    names = [f"recovered_{way}"]
    if own is not None and _below(own, 0.0):
        yield _finding(
            "alarm",
            f"Steered to {way}, the model is further from what it would say to the other prompt than without the "
            f"vector: recovered share of the KL {in_share(own)}.",
            names,
            "Do not use it in this direction; look at its sign, its layer and its strength.",
        )
    elif random is not None and random.low is not None and random.low <= 0:
        yield _finding(
            "alarm",
            f"To {way}, the vector is no better than random directions: its recovered share less theirs is "
            f"{in_points(random)}.",
            [*names, f"over_random_{way}"],
            "Train on more rows, at another layer (steer train --layers), or with another method.",
        )
    elif own is not None and works(estimates, way) and exchanged is not None and _reaches(exchanged, 0.0):
        yield _finding(
            "alarm",
            f"To {way}, the vector recovers {in_share(own)} of the KL, but not by the concept: at the strength of the "
            f"other direction it recovers as much (difference {in_points(exchanged)}).",
            [*names, f"over_exchanged_{way}"],
            "It moves what both kinds of prompts have in common; train at another layer, or on rows whose prompts "
            "differ in the concept alone.",
        )
    elif own is not None and works(estimates, way):
        yield _finding(
            "info",
            f"To {way}, the vector recovers {in_share(own)} of the KL to the run of the other prompt.",
            names,
            "",
        )
    if means is not None and means.low is not None and means.low <= 0:
        worse = _below(means, 0.0)
        yield _finding(
            "notice",
            f"To {way}, the vector is {'worse' if worse else 'no better'} than the difference of means, which costs no "
            f"training: recovered share less its {in_points(means)}.",
            [*names, f"over_diffmean_{way}"],
            "Ship the difference of means (steer train --method diffmean), or say what else speaks for this vector.",
        )
    if prompt is not None and _below(prompt, 0.0):
        yield _finding(
            "notice",
            f"To {way}, prompting is stronger: the vector's recovered share less that of a prompt that asks for it is "
            f"{in_points(prompt)}.",
            [*names, f"over_prompt_{way}"],
            "Where the prompt is yours to write, ask; a vector is for where it is not.",
        )


def _of_openings(estimates: Mapping[str, Estimate], way: str) -> Iterator[Finding]:
    """Also where shares of the KL say otherwise: between unrelated requests most of the KL is what they are about."""
    change = estimates.get(f"opening_log_odds_change_{way}")
    if change is None or not (_above(change, 0.0) or _below(change, 0.0)):
        return
    as_asked = _above(change, 0.0) is (way == ELICIT)
    moved = "likelier" if _above(change, 0.0) else "less likely"
    wrong = "" if as_asked else ", not what was asked"
    yield _finding(
        "info" if as_asked else "alarm",
        f"Steered to {way}, answers that begin with the concept become {moved}{wrong}: "
        f"log-odds {change.value:+.2f} nats ({change.low:+.2f} to {change.high:+.2f}).",
        [f"opening_log_odds_change_{way}", f"opening_log_odds_before_{way}"],
        "" if as_asked else "Look at table openings: at its sign, and at what other methods do.",
    )


def _of_flips(estimates: Mapping[str, Estimate], way: str) -> Iterator[Finding]:
    before, selected, flips = (estimates.get(f"{name}_{way}") for name in ("flips_before", "selected", "flips"))
    if before is not None and _above(before, 0.5):
        yield _finding(
            "notice",
            f"To {way} there is little to flip: {in_share(before)} of the answers count as flipped without the vector.",
            [f"flips_before_{way}"],
            "Read table examples: the model may not do what the vector takes away, or the rule (--flips) be too wide.",
        )
    if selected is not None and selected.value == 0 and flips is not None and _above(flips, 0.5):
        yield _finding(
            "notice",
            f"To {way} the sweep chose 0, no edit, although {in_share(flips)} of the answers flip at full strength: "
            "the scorer does not rate what the vector does.",
            [f"selected_{way}", f"flips_{way}"],
            "Read table answers, and give a scorer that knows the concept (--scorer).",
        )


def _broken(estimates: Mapping[str, Estimate], way: str) -> Iterator[Finding]:
    ratio = estimates.get(f"perplexity_ratio_{way}")
    if _above(ratio, BROKEN):
        yield _finding(
            "alarm",
            f"Steered to {way}, the model reads unrelated texts worse: their perplexity is multiplied by {ratio}, "
            f"above {BROKEN:g} (a bound of ours).",
            [f"perplexity_ratio_{way}", f"unrelated_kl_{way}"],
            "Try a smaller strength, or another layer, before this vector is used.",
        )


def _one_way(estimates: Mapping[str, Estimate]) -> Iterator[Finding]:
    for way, other in ((ELICIT, SUPPRESS), (SUPPRESS, ELICIT)):
        far = estimates.get(f"recovered_{other}")
        if far is None or not works(estimates, way) or works(estimates, other):
            continue
        gap = estimates.get("asymmetry")
        if far.value is None:
            yield _finding(
                "notice", f"The vector works one way only: it can {way}, not {other} ({far.reason}).",
                [f"recovered_{way}"], "Do not expect it to take back what it does.",
            )  # fmt: skip
        elif gap is not None and (_above(gap, 0.0) if way == ELICIT else _below(gap, 0.0)):
            yield _finding(
                "notice",
                f"The vector works one way only: it recovers {in_share(estimates[f'recovered_{way}'])} of the KL to "
                f"{way}, {in_share(far)} to {other}; elicit less suppress {in_points(gap)}.",
                [f"recovered_{way}", f"recovered_{other}", "asymmetry"],
                f"Use it to {way} only, or train with directions='both'.",
            )


def _blind(estimates: Mapping[str, Estimate]) -> Iterator[Finding]:
    auroc = estimates.get("detection_auroc")
    if auroc is not None and _reaches(auroc, 0.5):
        yield _finding(
            "notice",
            f"Along the vector, texts with the concept and without are not told apart: AUROC {auroc}; 0.5 is chance"
            f"{', and below it the order is turned round' if _below(auroc, 0.5) else ''}.",
            ["detection_auroc"],
            "Do not use it to detect the concept.",
        )


def _finding(severity: Literal["info", "notice", "alarm"], sentence: str, names: list[str], next_step: str) -> Finding:
    return Finding(
        severity=severity,
        section=SECTION,
        sentence=sentence,
        rests_on=[f"{SECTION}.{name}" for name in names],
        next_step=next_step,
    )


def _above(estimate: Estimate | None, bound: float) -> bool:
    return estimate is not None and estimate.low is not None and estimate.low > bound


def _reaches(estimate: Estimate, bound: float) -> bool:
    """Whether the interval reaches down to the bound."""
    return estimate.low is not None and estimate.low <= bound


def _below(estimate: Estimate | None, bound: float) -> bool:
    return estimate is not None and estimate.high is not None and estimate.high < bound
