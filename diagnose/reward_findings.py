"""What the comparison of rewards says, in plain sentences: rules on intervals and adjusted p, never on a bare value."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .phrases import in_points, in_share
from .ranking_findings import noise_finding, unmoved_finding
from .report import Estimate, Finding
from .rewards import minimum_detectable_gap
from .statistics import MIN_CLUSTERS

Estimates = Mapping[str, Estimate]
SIGNIFICANT = 0.05
BETA_RATIOS = (0.5, 2.0)  # a fitted beta outside this band of the given one is told


def reward_headline(estimates: Estimates, shifted: Sequence[str]) -> str:
    """One sentence: both accuracies in-distribution, the gap, and what the shifted sets say."""
    implicit, explicit = estimates["accuracy_implicit"], estimates["accuracy_explicit"]
    if implicit.value is None and explicit.value is None:
        first = f"No in-distribution reward accuracy: {implicit.reason}"
    elif explicit.value is None:
        first = f"The implicit reward is right on {in_share(implicit)} of the pairs; no explicit one: {explicit.reason}"
    elif implicit.value is None:
        first = f"The explicit reward is right on {in_share(explicit)} of the pairs; no implicit one: {implicit.reason}"
    else:
        first = (
            f"In-distribution the implicit reward is right on {in_share(implicit)} of the pairs, the explicit one on "
            f"{in_share(explicit)}: a gap of {in_points(estimates['gap'])}"
        )
    mean = estimates["mean_gap_shifted"]
    if mean.value is not None:
        both = [name for name in shifted if _known(estimates[f"gap_{name}"])]
        sets = f"{len(both)} shifted sets" if len(both) > 1 else f"the shifted set {both[0]}"
        return f"{first}; over {sets} the mean gap is {in_points(mean)}."
    return f"{first}."


def reward_findings(
    estimates: Estimates,
    shifted: Sequence[str],
    holms: Mapping[str, float],
    *,
    beta: float,
    noise_floor: Mapping[str, Any] | None = None,
    same_training: bool = False,
    unmoved: bool = False,
) -> tuple[Finding, ...]:
    """The findings of the section; those without an interval to rest on are left out.

    unmoved: policy and reference gave the same log-probabilities on every pair: there is no implicit reward.
    """
    if unmoved:
        found = [unmoved_finding(section="rewards", rests_on="accuracy_implicit"), _length(estimates, "explicit")]
        return tuple(finding for finding in found if finding is not None)
    found = [
        noise_finding(noise_floor, section="rewards", rests_on="accuracy_implicit"),
        _headline(estimates, shifted),
        _few_prompts(estimates),
        *(_length(estimates, which) for which in ("implicit", "explicit")),
        _gap(estimates, same_training=same_training),
        *(_emptied(estimates, name) for name in shifted),
        _too_few(estimates),
        _shift(estimates, shifted, holms),
        _excess(estimates, shifted),
        _beta(estimates, beta),
    ]
    return tuple(finding for finding in found if finding is not None)


def _headline(estimates: Estimates, shifted: Sequence[str]) -> Finding:
    names = [n for n in ("accuracy_implicit", "accuracy_explicit", "gap", "mean_gap_shifted") if _known(estimates[n])]
    return _finding("info", reward_headline(estimates, shifted), names or ["accuracy_implicit"])


def _few_prompts(estimates: Estimates) -> Finding | None:
    for name in ("accuracy_implicit", "accuracy_explicit"):
        number = estimates[name]
        if number.value is not None and (number.n_clusters or 0) < MIN_CLUSTERS:
            return _finding(
                "notice",
                f"The {number.n} in-distribution pairs stand on {number.n_clusters} prompts only: no interval, and no "
                "rule on one was applied.",
                [name],
                "Score pairs from at least 20 prompts, better some hundred.",
            )
    return None


def _length(estimates: Estimates, which: str) -> Finding | None:
    """Alarm unless the reward is above the better of the two rules on length."""
    over, accuracy = estimates[f"{which}_over_length"], estimates[f"accuracy_{which}"]
    rules = (estimates["shorter_wins"], estimates["longer_wins"])
    if all(rule.value == rule.low == rule.high for rule in rules):  # answers of one length: both rules guess
        return None
    if over.low is None or over.high is None or over.low > 0:
        return None
    relation = "is worse than" if over.high < 0 else "is not measurably better than"
    return _finding(
        "alarm",
        f"The {which} reward ({in_share(accuracy)} right) {relation} the better rule on length alone: the difference "
        f"is {in_points(over)}.",
        [f"{which}_over_length", f"accuracy_{which}", "shorter_wins", "longer_wins"],
        "Do not use it as a judge before it clears this baseline; the table disagreement splits by length.",
    )


def _gap(estimates: Estimates, *, same_training: bool) -> Finding | None:
    gap, p = estimates["gap"], estimates["gap_p"]
    if gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
        return None
    better = "explicit" if gap.low > 0 else "implicit"
    shown = "" if p.value is None else f" (p {p.value:.2g})"
    return _finding(
        "info",
        f"In-distribution the {better} reward is right more often, on the same pairs: explicit minus implicit is "
        f"{in_points(gap)}{shown}.",
        ["gap", "gap_p"],
        "" if same_training else "It may come of other training pairs, base or template, unless --same-training holds.",
    )


def _emptied(estimates: Estimates, name: str) -> Finding | None:
    """Alarm: a set that was asked for says nothing."""
    numbers = (estimates[f"accuracy_implicit_{name}"], estimates[f"accuracy_explicit_{name}"])
    if any(number.value is not None for number in numbers):
        return None
    return _finding(
        "alarm",
        f"The shifted set {name} has no number: {numbers[0].reason}.",
        [f"accuracy_implicit_{name}"],
        "Give a set of other pairs: prompts that the main pairs ask too, and pairs that are in both, are left out.",
    )


def _too_few(estimates: Estimates) -> Finding | None:
    gap, least = estimates["gap"], estimates["minimum_detectable_gap"]
    if gap.low is None or gap.high is None or not gap.low <= 0 <= gap.high or least.value is None:
        return None
    return _finding(
        "notice",
        f"In-distribution no gap is measurable, which is no proof of none: {gap.n} pairs show one of "
        f"{100 * least.value:.1f} points with 80 % power.",
        ["gap", "minimum_detectable_gap"],
        f"To show a gap of 3 points some {_pairs_for(0.03, estimates['disagreement']):,} pairs are needed where the "
        "rewards disagree as often as here; more with several pairs a prompt.",
    )


def _pairs_for(gap: float, disagreement: Estimate) -> int:
    """Pairs that show a gap with 80 % power, at the disagreement found; rounded up to two digits."""
    least = minimum_detectable_gap(float(disagreement.value or 0.0), 1) ** 2 / gap**2
    digit = 10 ** max(0, len(str(math.ceil(least))) - 2)
    return math.ceil(least / digit) * digit


def _shift(estimates: Estimates, shifted: Sequence[str], holms: Mapping[str, float]) -> Finding | None:
    """Gap on one side of 0 under shift: in the mean by its interval; above it also in a setting, by Holm's p."""
    mean = estimates["mean_gap_shifted"]
    gaps = {name: estimates[f"gap_{name}"] for name in shifted}
    told = [name for name, gap in gaps.items() if gap.low is not None and (gap.value or 0.0) > 0]
    sure = [name for name in told if holms.get(name, 1.0) < SIGNIFICANT]
    above = mean.low is not None and mean.low > 0
    if mean.high is not None and mean.high < 0:
        return _finding(
            "notice",
            "Under shift the implicit reward is right more often than the explicit one: the mean gap is "
            f"{in_points(mean)}.",
            ["mean_gap_shifted"],
            "Look at the sets one by one, beside what length alone gets there, before choosing a judge by this mean.",
        )
    if not above and not sure:
        return None
    parts = [f"over the shifted sets the mean gap is {in_points(mean)}"] if above else []
    parts += [f"{name}: {in_points(estimates[f'gap_{name}'])}, Holm p {holms[name]:.2g}" for name in sure]
    return _finding(
        "notice",
        f"Under shift the explicit reward is right more often than the implicit one: {'; '.join(parts)}.",
        ["mean_gap_shifted", *(f"gap_{name}" for name in sure)],
        "On such data judge with the explicit model, not with the policy's log-ratio.",
    )


def _excess(estimates: Estimates, shifted: Sequence[str]) -> Finding | None:
    worse = [name for name in shifted if (low := estimates[f"excess_drop_{name}"].low) is not None and low > 0]
    if not worse:
        return None
    parts = [f"{name} by {in_points(estimates[f'excess_drop_{name}'])}" for name in worse]
    return _finding(
        "notice",
        f"Leaving the training distribution costs the implicit reward more than the explicit one: {'; '.join(parts)}.",
        [f"excess_drop_{name}" for name in worse],
        "Each such number is one of several; the mean over the shifted sets is the headline.",
    )


def _beta(estimates: Estimates, beta: float) -> Finding | None:
    ratio, fitted = estimates["beta_ratio"], estimates["beta_hat"]
    if ratio.low is None or ratio.high is None or fitted.value is None:
        return None
    low, high = BETA_RATIOS
    if ratio.high >= low and ratio.low <= high:
        return None
    if ratio.high < 0:
        return _finding(
            "notice",
            f"The larger the implicit margin, the more often the other answer was preferred: the beta that fits these "
            f"pairs is {fitted.value:.3g} ({fitted.low:.3g} to {fitted.high:.3g}), below 0.",
            ["beta_hat", "beta_ratio"],
            "Check that chosen and rejected were not exchanged, in these pairs or in those of the training.",
        )
    small = ratio.high < low
    says = "surer than it is right (over-confident)" if small else "less sure than it is right (under-trained)"
    return _finding(
        "notice",
        f"The beta that fits these pairs is {fitted.value:.3g} ({fitted.low:.3g} to {fitted.high:.3g}), not {beta:g}: "
        f"the implicit reward is {says}.",
        ["beta_hat", "beta_ratio"],
        "Scale its margins by the fitted beta before reading them as probabilities, or take an earlier checkpoint."
        if small
        else "Check that beta is the one of the training; else train longer, or scale the margins by the fitted beta.",
    )


def _known(estimate: Estimate) -> bool:
    return estimate.value is not None


def _finding(
    severity: Literal["info", "notice", "alarm"], sentence: str, names: Sequence[str], next_step: str = ""
) -> Finding:
    return Finding(
        severity=severity,
        section="rewards",
        sentence=sentence,
        rests_on=[f"rewards.{name}" for name in names],
        next_step=next_step,
    )
