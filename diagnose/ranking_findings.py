"""What the ranking numbers say, in plain sentences: every finding is a rule on an interval, never on a bare value."""

from collections.abc import Mapping
from typing import Any, Literal

from .phrases import in_points, in_share, percent
from .ranking import AGREE
from .ranking_estimates import CHANCE, LN2, LOW_LOSS
from .report import Estimate, Finding
from .statistics import MIN_CLUSTERS

Estimates = Mapping[str, Estimate]
NOISE_SHARE = 0.01  # pairs inside the noise floor from which on it is an alarm
RESOLUTION = 1e-3  # nats a completion: sums by two sound float32 scorers agree to about that


def headline(estimates: Estimates, *, beta: float) -> str:
    """One sentence: the policy, its reference, the best that training could reach, and length alone."""
    accuracy, reference = estimates["accuracy"], estimates["reference_accuracy"]
    if accuracy.value is None:
        return f"No ranking accuracy: {accuracy.reason}."
    parts = [f"The policy ranks {in_share(accuracy)} of the pairs right"]
    if reference.value is not None:
        parts[0] += f", its reference {percent(reference.value)}"
    if (ideal := estimates["idealized_accuracy"].value) is not None:
        assumed = " (under the assumed strength of preference)" if _assumed(estimates) else ""
        parts.append(f"a perfectly trained one would reach {percent(ideal)} at beta {beta:g}{assumed}")
    if low_loss := estimates["share_needs_low_loss"].value:
        parts.append(f"{percent(low_loss)} of the pairs are ranked right only if their loss falls below {LOW_LOSS:g}")
    if (length := _better_length(estimates)) is not None:
        name, value = length
        parts.append(f"{name.removesuffix('_wins')}-wins alone gets {percent(value)}")
    return "; ".join(parts) + "."


def ranking_findings(
    estimates: Estimates,
    *,
    beta: float,
    mismatches: int,
    noise_floor: Mapping[str, Any] | None = None,
    unmoved: bool = False,
) -> tuple[Finding, ...]:
    """The findings of the section; those without an interval to rest on are left out.

    unmoved: policy and reference gave the same log-probabilities on every pair, and nothing else is worth a finding.
    """
    if unmoved:
        return (unmoved_finding(section="ranking", rests_on="accuracy"), _headline(estimates, beta))
    found = [
        _theorem(mismatches),
        noise_finding(noise_floor, section="ranking", rests_on="accuracy"),
        _headline(estimates, beta),
        _few_prompts(estimates),
        _length(estimates),
        _no_better_than_chance(estimates),
        _residualised(estimates),
        _gain(estimates),
        _reward_alone(estimates),
        _room(estimates, beta),
        _overfitted(estimates),
        _displaced(estimates),
    ]
    return tuple(finding for finding in found if finding is not None)


def _theorem(mismatches: int) -> Finding | None:
    if not mismatches:
        return None
    return _finding(
        "alarm",
        f"In {mismatches} pairs the DPO loss and the order of the log-probabilities contradict each other, which "
        "is impossible (Theorem 4.1 of arXiv 2405.19534): the scores are damaged.",
        ["accuracy", "dpo_loss"],
        "Score the pairs again. If the contradiction stays, please report it: it is a fault of the scorer.",
    )


def unmoved_finding(*, section: str, rests_on: str) -> Finding:
    """Alarm: there is no training to speak of in these numbers."""
    return Finding(
        severity="alarm",
        section=section,
        sentence="Policy and reference give exactly the same log-probabilities on every pair: they are the same "
        "weights, or the adapter is not applied. Nothing here says anything about training.",
        rests_on=[f"{section}.{rests_on}"],
        next_step="Name the checkpoint that training saved as --policy, and the one it started from as --reference.",
    )


def noise_finding(floor: Mapping[str, Any] | None, *, section: str, rests_on: str) -> Finding | None:
    """Alarm where rounding below float32 could turn the order of more than 1 % of the pairs."""
    share = None if floor is None else floor.get("share_inside")
    if floor is None or share is None or share <= NOISE_SHARE:
        return None
    return Finding(
        severity="alarm",
        section=section,
        sentence=f"The margins of {percent(share)} of the pairs lie within {floor['p95']:.2g} nats: what computing "
        f"below float32 moved a margin by (95th percentile of {floor['n']} pairs scored again in float32).",
        rests_on=[f"{section}.{rests_on}"],
        next_step="Score in float32 (--dtype float32).",
    )


def _headline(estimates: Estimates, beta: float) -> Finding:
    names = ("accuracy", "reference_accuracy", "idealized_accuracy", "share_needs_low_loss")
    length = _better_length(estimates)
    rests_on = [name for name in names if estimates[name].value is not None] + ([length[0]] if length else [])
    return _finding("info", headline(estimates, beta=beta), rests_on or ["accuracy"])


def _few_prompts(estimates: Estimates) -> Finding | None:
    accuracy = estimates["accuracy"]
    if accuracy.value is None or (accuracy.n_clusters or 0) >= MIN_CLUSTERS:
        return None
    return _finding(
        "notice",
        f"The {accuracy.n} pairs stand on {accuracy.n_clusters} prompts only: no interval, and no rule on one was "
        "applied.",
        ["accuracy"],
        "Score pairs from at least 20 prompts, better some hundred.",
    )


def _length(estimates: Estimates) -> Finding | None:
    """Alarm unless the policy is above the better of the two rules on length."""
    over, length = estimates["accuracy_over_length"], _better_length(estimates)
    if over.low is None or over.high is None or over.value is None or length is None or over.low > 0:
        return None
    if _all_of_one_length(estimates):
        return None
    name, value = length
    rule = f"preferring the {name.removesuffix('_wins')} answer"
    relation = "is better than" if over.high < 0 else "does as well as"
    return _finding(
        "alarm",
        f"Simply {rule} ({percent(value)} right) {relation} the policy's ranking, as far as these pairs can tell: "
        f"the difference is {in_points(over)}.",
        ["accuracy_over_length", "accuracy", name],
        "Do not read the ranking accuracy as preference learning; look at accuracy_normalised, at the residualised "
        "accuracies, and score more pairs.",
    )


def _no_better_than_chance(estimates: Estimates) -> Finding | None:
    """Told where the rules on length guess too, and cannot say it."""
    accuracy = estimates["accuracy"]
    if accuracy.low is None or accuracy.low > CHANCE or not _all_of_one_length(estimates):
        return None
    return _finding(
        "notice",
        f"The policy ranks {in_share(accuracy)} of the pairs right: not distinguishable from guessing, on answers that "
        "are all of one length.",
        ["accuracy"],
        "Score more pairs before reading anything into the order.",
    )


def _residualised(estimates: Estimates) -> Finding | None:
    rest = estimates["residualised_accuracy"]
    if rest.low is None or rest.high is None or not rest.low <= 0.5 <= rest.high or _all_of_one_length(estimates):
        return None
    return _finding(
        "notice",
        f"Without what answer length predicts, the policy ranks {in_share(rest)} right: chance is not excluded.",
        ["residualised_accuracy"],
        "Compare with reward_residualised_accuracy, which asks the same of what training changed."
        if estimates["reward_residualised_accuracy"].value is not None
        else "Give --reference: the reward's residualised accuracy asks the same of what training changed.",
    )


def _gain(estimates: Estimates) -> Finding | None:
    gain = estimates["accuracy_gain"]
    if gain.low is None or gain.high is None:
        return None
    if gain.low > 0:
        return _finding(
            "info",
            f"Training improved the ranking itself, by {in_points(gain)} over the reference.",
            ["accuracy_gain", "learned_of_wrong", "lost_of_right"],
        )
    if gain.high < 0:
        return _finding(
            "notice",
            f"The policy ranks fewer pairs right than its reference did, by {in_points(gain)}.",
            ["accuracy_gain", "learned_of_wrong", "lost_of_right"],
            "Look at the pairs that were right before (table pairs: reference_right 1, ranked_right 0).",
        )
    return None


def _reward_alone(estimates: Estimates) -> Finding | None:
    """Reward accuracy above chance while the ranking is not above the reference's: both hold, and it says why."""
    gain, reward = estimates["accuracy_gain"], estimates["reward_accuracy"]
    if gain.low is None or reward.low is None or gain.low > 0 or reward.low <= CHANCE:
        return None
    return _finding(
        "info",
        f"Training moved the right way in {in_share(reward)} of the pairs (reward accuracy, as training logs show it), "
        f"but the ranking is not measurably better than the reference's: {in_points(gain)}. Both hold: the loss asks "
        "for a change of the log-ratio, and where the reference is wrong by many nats the order stays as it was.",
        ["reward_accuracy", "accuracy_gain"],
        "To judge which answer the model prefers read the ranking accuracy; to judge it as a reward model, the other.",
    )


def _room(estimates: Estimates, beta: float) -> Finding | None:
    gap, hard = estimates["gap"], estimates["share_hard"]
    if gap.low is None or gap.low <= 0:
        return None
    assumed = ", under the assumed strength of preference" if _assumed(estimates) else ""
    more = f" {percent(hard.value)} of the pairs stay wrong even then." if hard.value is not None else ""
    return _finding(
        "info",
        f"The policy is {in_points(gap)} below what perfect training could reach from this reference at "
        f"beta {beta:g}{assumed}.{more}",
        ["gap", "idealized_accuracy", "share_hard"],
        "A smaller beta or a reference trained on the chosen answers first raises the limit; the pairs to look at "
        "have difficulty_class 'flippable' and ranked_right 0.",
    )


def _overfitted(estimates: Estimates) -> Finding | None:
    loss = estimates["dpo_loss"]
    if loss.value is None or loss.low is None or loss.low <= LN2 + AGREE:  # a mean of ln 2 may end above it
        return None
    return _finding(
        "notice",
        f"The mean DPO loss on these pairs is {loss.value:.3f} ({loss.low:.3f} to {loss.high:.3f}), above the "
        f"{LN2:.3f} of the untrained reference: the policy is surer than it is right.",
        ["dpo_loss"],
        "Compare with an earlier checkpoint, or with the beta of the training, which these numbers must be given.",
    )


def _displaced(estimates: Estimates) -> Finding | None:
    chosen, rejected = estimates["displacement_chosen"], estimates["displacement_rejected"]
    if chosen.value is None or chosen.low is None or chosen.high is None or rejected.value is None:
        return None
    if chosen.high >= -RESOLUTION:
        return None
    verb = "lost" if rejected.value < 0 else "gained"
    return _finding(
        "notice",
        f"The chosen completions became less likely, by {-chosen.value:.3g} nats on average ({-chosen.high:.3g} to "
        f"{-chosen.low:.3g}); the rejected ones {verb} {abs(rejected.value):.3g}.",
        ["displacement_chosen", "displacement_rejected", "share_chosen_fell"],
        "Read samples of the policy. Some fall is forced where the chosen answers are the reference's own samples.",
    )


def _finding(
    severity: Literal["info", "notice", "alarm"], sentence: str, names: list[str], next_step: str = ""
) -> Finding:
    return Finding(
        severity=severity,
        section="ranking",
        sentence=sentence,
        rests_on=[f"ranking.{name}" for name in names],
        next_step=next_step,
    )


def _better_length(estimates: Estimates) -> tuple[str, float] | None:
    """The rule on length alone with the higher accuracy; shorter-wins where they are equal."""
    shorter, longer = estimates["shorter_wins"].value, estimates["longer_wins"].value
    if shorter is None or longer is None:
        return None
    return ("longer_wins", longer) if longer > shorter else ("shorter_wins", shorter)


def _all_of_one_length(estimates: Estimates) -> bool:
    """Where no two answers differ in length, both rules guess: losing to them is losing to chance."""
    rules = (estimates["shorter_wins"], estimates["longer_wins"])
    return all(rule.value == rule.low == rule.high == CHANCE for rule in rules)


def _assumed(estimates: Estimates) -> bool:
    return "assuming" in estimates["idealized_accuracy"].label
