"""At which save did a run break? A CUSUM of four signals, and four plain rules, each naming its step.

The paper's criterion is not published: all rules are reconstructed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Shaped

from .changepoints import ALARM_AT, Cusum, false_alarms
from .spinal_series_signals import NAMES
from .statistics import BootstrapMeans, cluster_bootstrap

TIMES_MEDIAN, EARLIER = 5.0, 3  # a median of fewer than 3 earlier speeds is no pace
SHARE_OF_START = 0.5
HELD_OUT = ("ranking_accuracy", "dpo_loss")
RULES = ("cusum", "speed", "entropy_halved", "accuracy_falls", "loss_above_best")
DRAWS = 2_000  # of the bootstrap over held-out pairs
WORDS = {
    "A": "contraction (the spectrum's exponent)", "T": "transport a step", "H": "the entropy of the read-out",
    "E": "geodesic efficiency", "R": "RankMe", "D": "the distance to the start", "v": "the speed of the read-out",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """Values of every save on the same held-out pairs; the first save is the start.

    ranking_accuracy: credit of a pair, 1 right, 1/2 tie, 0 wrong. dpo_loss: nats. clusters: prompts of the pairs.
    """

    clusters: Shaped[np.ndarray, "pairs"]
    ranking_accuracy: Float[np.ndarray, "saves pairs"] | None = None
    dpo_loss: Float[np.ndarray, "saves pairs"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A rule that fired, at which step first, and at which later ones too."""

    rule: str  # of RULES
    signal: str  # letter of the series, or name of the held-out value
    step: float
    later: tuple[float, ...] = ()
    sentence: str
    next_step: str = ""
    rests_on: tuple[str, ...] = field(default=())  # names of estimates, without the section


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AgainstBest:
    """Every save after the first minus the best earlier one, paired over pairs, with percentile intervals."""

    boot: BootstrapMeans
    best: tuple[int, ...]  # the earlier save that each is held against


def cusum_alarms(cusums: Mapping[str, Cusum], steps: Float[np.ndarray, "saves"]) -> list[Alarm]:
    """Signals whose increments rose or fell for good; steps[i + 1] is where increment i ends."""
    found = []
    for letter, sums in cusums.items():
        for direction, at, reached in (("rise", sums.rise, sums.up), ("drop", sums.fall, sums.down)):
            if at is None:
                continue
            step = float(steps[at + 1])
            found.append(
                Alarm(
                    rule="cusum",
                    signal=letter,
                    step=step,
                    sentence=f"At step {step:g} {WORDS[letter]} broke with its own past: the CUSUM of the {direction} "
                    f"in its increments a training step reached {_size(reached[at])} (alarm at {ALARM_AT:g}). "
                    f"{false_alarm_words(len(sums.z))}",
                    next_step=f"Look at the saves around step {step:g}: training log, gradient norm, generated text.",
                    rests_on=(f"cusum_{NAMES[letter]}",),
                )
            )
    return found


def false_alarm_words(n: int) -> str:
    """How often noise alone alarms in a series of n increments, as a sentence."""
    known = false_alarms(n)
    if known is None:
        return f"How often noise alone alarms was not simulated for {n} increments."
    return (
        f"Of series of {n} increments of noise alone {100 * known.rate:.1f} % alarm, a signal (simulated, "
        f"n = {known.runs:,}, independent normal increments)."
    )


def speed_alarms(speed: Float[np.ndarray, "saves"], steps: Float[np.ndarray, "saves"]) -> list[Alarm]:
    """v > 5 x the median of all earlier speeds, if there are 3 and it is above 0; speed[0] is not read."""
    medians = {i: float(np.median(speed[1:i])) for i in range(1 + EARLIER, len(speed))}
    hits = [i for i, median in medians.items() if median > 0 and speed[i] > TIMES_MEDIAN * median]
    if not hits:
        return []
    first = hits[0]
    return [
        Alarm(
            rule="speed",
            signal="v",
            step=float(steps[first]),
            later=tuple(float(steps[i]) for i in hits[1:]),
            sentence=f"At step {steps[first]:g} the read-out moved {speed[first]:.3g} rad a training step, more than "
            f"{TIMES_MEDIAN:g} times the median {medians[first]:.3g} of the {first - 1} saves before.",
            next_step="Look for a spike in the gradient norm or a change of the learning rate before this save.",
            rests_on=("speed",),
        )
    ]


def entropy_alarms(entropy: Float[np.ndarray, "saves"], steps: Float[np.ndarray, "saves"]) -> list[Alarm]:
    """H < half of step 0."""
    hits = np.flatnonzero(entropy < SHARE_OF_START * entropy[0]).tolist()
    if not hits:
        return []
    first = hits[0]
    return [
        Alarm(
            rule="entropy_halved",
            signal="H",
            step=float(steps[first]),
            later=tuple(float(steps[i]) for i in hits[1:]),
            sentence=f"At step {steps[first]:g} the entropy of the read-out over the last blocks is "
            f"{entropy[first]:.3g} nats, less than half of the {entropy[0]:.3g} at the start.",
            next_step="Sample completions of this save: a collapsed policy repeats itself.",
            rests_on=("d_entropy",),
        )
    ]


def against_best(
    values: Float[np.ndarray, "saves pairs"], clusters: Shaped[np.ndarray, "pairs"], *, lower: bool, seed: int
) -> AgainstBest:
    """Every save minus the best earlier one (lowest or highest mean), paired, intervals by clusters.

    The best is chosen once, so that its own luck is not in the interval.
    """
    means = values.mean(1) * (1 if lower else -1)
    best = tuple(int(means[:i].argmin()) for i in range(1, len(values)))
    boot = cluster_bootstrap((values[1:] - values[list(best)]).T, clusters, draws=DRAWS, seed=seed)
    return AgainstBest(boot=boot, best=best)


def loss_alarms(loss: AgainstBest, steps: Float[np.ndarray, "saves"]) -> list[Alarm]:
    """Held-out DPO loss above the best earlier save: the paired interval lies above 0."""
    hits = np.flatnonzero(loss.boot.low > 0).tolist()  # NaN, where there are too few prompts, is not above
    if not hits:
        return []
    first = hits[0]
    return [
        Alarm(
            rule="loss_above_best",
            signal="dpo_loss",
            step=float(steps[first + 1]),
            later=tuple(float(steps[i + 1]) for i in hits[1:]),
            sentence=f"At step {steps[first + 1]:g} the held-out DPO loss lies {_interval(loss.boot, first)} nats "
            f"above the best save before it (step {steps[loss.best[first]]:g}).",
            next_step=f"Training past step {steps[loss.best[first]]:g} did not help on held-out pairs: consider that "
            "save, or less training.",
            rests_on=("dpo_loss_above_best",),
        )
    ]


def accuracy_alarms(
    accuracy: AgainstBest,
    distance: Float[np.ndarray, "saves N"],
    prompts: Shaped[np.ndarray, "N"],
    steps: Float[np.ndarray, "saves"],
    *,
    seed: int,
) -> list[Alarm]:
    """Held-out ranking accuracy falls while D rises: both against the best earlier save, both intervals clear of 0."""
    farther = (distance[1:] - distance[list(accuracy.best)]).T
    moved = cluster_bootstrap(farther, prompts, draws=DRAWS, seed=seed)
    hits = np.flatnonzero((accuracy.boot.high < 0) & (moved.low > 0)).tolist()
    if not hits:
        return []
    first = hits[0]
    return [
        Alarm(
            rule="accuracy_falls",
            signal="ranking_accuracy",
            step=float(steps[first + 1]),
            later=tuple(float(steps[i + 1]) for i in hits[1:]),
            sentence=f"At step {steps[first + 1]:g} the held-out ranking accuracy changed by "
            f"{_interval(accuracy.boot, first)} against the best save before it (step "
            f"{steps[accuracy.best[first]]:g}), while the read-out moved {_interval(moved, first)} rad further from "
            "the start.",
            next_step="The model still moves but no longer learns the preferences: compare both saves pair by pair.",
            rests_on=("ranking_accuracy_below_best", "base_distance"),
        )
    ]


def plain_alarms(
    *,
    speed: Float[np.ndarray, "saves"] | None,
    entropy: Float[np.ndarray, "saves"],
    distance: Float[np.ndarray, "saves N"] | None,
    prompts: Shaped[np.ndarray, "N"],
    steps: Float[np.ndarray, "saves"],
    held_out: Mapping[str, AgainstBest],
    seed: int,
) -> list[Alarm]:
    """The four plain rules, as far as there is something to read; speed and entropy are means over prompts."""
    found = entropy_alarms(entropy, steps)
    if speed is not None:
        found += speed_alarms(speed, steps)
    if distance is not None and "ranking_accuracy" in held_out:
        found += accuracy_alarms(held_out["ranking_accuracy"], distance, prompts, steps, seed=seed)
    if "dpo_loss" in held_out:
        found += loss_alarms(held_out["dpo_loss"], steps)
    return found


def _size(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "infinity: nothing had moved before"


def _interval(boot: BootstrapMeans, column: int) -> str:
    return f"{boot.mean[column]:.3g} [{boot.low[column]:.3g}, {boot.high[column]:.3g}]"
