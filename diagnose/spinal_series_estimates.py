"""Headline numbers of a checkpoint series as `Estimate`s; all of them are reconstructed, as the criterion is unread."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from .changepoints import ALARM_AT, MIN_INCREMENTS, Break, Cusum, Onset, false_alarms
from .report import Estimate, finite
from .spinal_estimates import BOOTSTRAP, FEW_CLUSTERS, estimate, ours
from .spinal_series_rules import EARLIER, RULES, WORDS, AgainstBest, Alarm
from .spinal_series_signals import FLIPPED, NAMES, UNITS, WATCHED
from .spinal_trace import SAMPLING_ONLY
from .statistics import estimate_from

STEPS = "training steps"
TOO_FEW = "too few checkpoints"

HELD_OUT_NAMES = {"dpo_loss": "dpo_loss_above_best", "ranking_accuracy": "ranking_accuracy_below_best"}
SERIES_NAMES = (  # that the estimates of the section can have
    *(name if letter in "Dv" else f"d_{name}" for letter, name in NAMES.items()),
    *("onset", *(f"onset_{NAMES[letter]}" for letter in (*FLIPPED, "A"))),
    *(f"break_{NAMES[letter]}" for letter in ("T", "H")),
    *(f"cusum_{NAMES[letter]}" for letter in WATCHED),
    *("false_alarm_rate", "first_alarm", "n_alarms", *(f"n_alarms_{rule}" for rule in RULES), "n_onsets"),
    *HELD_OUT_NAMES.values(),
)


def series_estimates(
    *,
    trajectory: pd.DataFrame,
    onsets: Mapping[str, Onset],
    breaks: Mapping[str, Break],
    cusums: Mapping[str, Cusum | str],
    alarms: Sequence[Alarm],
    held_out: Mapping[str, AgainstBest],
    steps: Float[np.ndarray, "saves"],
    count: Mapping[str, int],
) -> dict[str, Estimate]:
    """The last save's changes, onset and broken stick of each signal, CUSUM with its false alarms, held-out values."""
    found = {**_last_changes(trajectory, count), "onset": _onset("any signal", earliest(onsets), count)}
    found |= {f"onset_{NAMES[letter]}": _onset(WORDS[letter], answer, count) for letter, answer in onsets.items()}
    found |= {f"break_{NAMES[letter]}": _break(letter, stick, count) for letter, stick in breaks.items()}
    found |= {f"cusum_{NAMES[letter]}": _cusum(letter, cusums[letter], len(steps) - 1) for letter in WATCHED}
    found["false_alarm_rate"] = _false_alarms(len(steps) - 1)
    first = min((alarm.step for alarm in alarms), default=None)
    found["first_alarm"] = Estimate(
        label="first step at which a rule for a broken run fired",
        value=first,
        level=None,
        n=len(steps),
        unit=STEPS,
        method=f"CUSUM of 4 signals and the plain rules; {len(alarms)} fired",
        reason=None if alarms else "no rule fired",
    )
    found |= _counts(onsets, alarms, _unread(trajectory, cusums, held_out, len(steps)), len(steps))
    found |= {name: _held_out(name, key, against, alarms, steps) for name, key, against in _named(held_out)}
    return {name: ours(number) for name, number in found.items()}


def earliest(onsets: Mapping[str, Onset]) -> Onset:
    """Of several signals the first confirmed onset, else the weaker answer that says most."""
    seen = [answer for answer in onsets.values() if answer.seen]
    if seen:
        return min(seen, key=lambda answer: (answer.first_significant or 0.0, answer.last_quiet or 0.0))
    for weaker in ("at the last save only: not confirmed", "not seen"):
        if found := [answer for answer in onsets.values() if answer.answer == weaker]:
            return found[0]
    return next(iter(onsets.values()))


def _last_changes(trajectory: pd.DataFrame, count: Mapping[str, int]) -> dict[str, Estimate]:
    found = {}
    for letter, name in NAMES.items():
        row = trajectory[trajectory.signal == letter].iloc[-1]
        plain = letter in ("D", "v")
        columns = ("value", "low", "high") if plain else ("change", "change_low", "change_high")
        numbers = [float(row[column]) for column in columns]
        jackknifed = letter in ("A", "R")
        if math.isfinite(numbers[0]):
            missing = "fewer prompts than jackknife groups" if jackknifed else FEW_CLUSTERS
        else:
            missing = row.reason or "no prompt has a value"
        jackknife = f"paired delete-group jackknife, ranks fixed; {SAMPLING_ONLY}"
        found[name if plain else f"d_{name}"] = estimate(
            f"{WORDS[letter]} over the last blocks, " + ("last save" if plain else "last save minus the start"),
            *numbers,
            n=int(row.n),
            n_clusters=min(int(row.n), count["n_clusters"]),
            unit=UNITS[letter],
            method=jackknife if jackknifed else BOOTSTRAP,
            reason=missing,
            null_value=None if plain else 0.0,
        )
    return found


def _onset(what: str, answer: Onset, count: Mapping[str, int]) -> Estimate:
    """The first significant save; the ends are the steps between which it lies, no interval of some coverage."""
    reason = None
    if not answer.seen:
        at = "" if answer.first_significant is None else f" (step {answer.first_significant:g})"
        reason = answer.reason or f"{answer.answer}{at}"
    return Estimate(
        label=f"first save at which {what} had clearly changed",
        value=answer.first_significant if answer.seen else None,
        low=answer.last_quiet if answer.seen else None,
        high=answer.first_significant if answer.seen else None,
        level=None,
        n=count["n"],
        n_clusters=count["n_clusters"],
        unit=STEPS,
        method="changed after the lower and by the upper step: significant at two successive saves in one direction, "
        "all saves tested together (sign flips of T, H, E; t with Holm for A)",
        reason=reason,
    )


def _break(letter: str, stick: Break, count: Mapping[str, int]) -> Estimate:
    return estimate(
        f"step at which the slope of {WORDS[letter]} changes most",
        *(math.nan if number is None else number for number in (stick.step, stick.low, stick.high)),
        **count,
        unit=STEPS,
        method="broken stick of two straight lines over steps; prompts resampled, percentile (held the truth in 89 of "
        "100 simulations): covers the choice of prompts, neither the training run nor the shape",
        reason=stick.reason,
    )


def _cusum(letter: str, sums: Cusum | str, n: int) -> Estimate:
    largest, reason = math.nan, sums if isinstance(sums, str) else sums.reason
    if not isinstance(sums, str) and reason is None:
        largest = float(max(sums.up.max(), sums.down.max()))
        reason = None if math.isfinite(largest) else "infinite: it moved where nothing had moved before"
    return Estimate(
        label=f"largest CUSUM of the increments of {WORDS[letter]} (alarm at {ALARM_AT:g})",
        value=finite(largest),
        level=None,
        n=n,
        method="against median and MAD of all earlier increments a training step, at least 8 of them",
        reason=reason,
    )


def _false_alarms(n: int) -> Estimate:
    known = false_alarms(n)
    few = f"{TOO_FEW}: {n} increments, {MIN_INCREMENTS} needed"
    return Estimate(
        label=f"share of series of {n} increments of noise alone that a CUSUM alarms on, a signal",
        value=known.rate if known else None,
        low=known.low if known else None,
        high=known.high if known else None,
        n=known.runs if known else 0,
        unit="share",
        method="simulated: independent normal increments without an error of their own; Wilson's interval",
        reason=None if known else few if n < MIN_INCREMENTS else f"not simulated for {n} increments",
    )


def _unread(
    trajectory: pd.DataFrame, cusums: Mapping[str, Cusum | str], held_out: Mapping[str, AgainstBest], n_saves: int
) -> dict[str, str]:
    """Rule -> why it could not be read, so that its silence is no answer."""
    missing = {letter: rows.value.isna().all() for letter, rows in trajectory.groupby("signal")}
    reasons = [sums if isinstance(sums, str) else sums.reason for sums in cusums.values()]
    found = {}
    if all(reasons):
        found["cusum"] = str(reasons[0])
    if missing["v"] or n_saves < 2 + EARLIER:
        found["speed"] = "no distances" if missing["v"] else f"under {1 + EARLIER} saves after the start"
    if "ranking_accuracy" not in held_out or missing["D"]:
        found["accuracy_falls"] = "no distances" if missing["D"] else "no held-out pairs"
    if "dpo_loss" not in held_out:
        found["loss_above_best"] = "no held-out pairs"
    return found


def _counts(
    onsets: Mapping[str, Onset], alarms: Sequence[Alarm], unread: Mapping[str, str], n_saves: int
) -> dict[str, Estimate]:
    """Numbers that are always there, for gates: 0 also where a rule could not be read, which `method` then says."""

    def count(label: str, value: int, method: str) -> Estimate:
        return Estimate(label=label, value=value, level=None, n=n_saves, method=method)

    silent = "; ".join(f"{rule} could not be read: {reason}" for rule, reason in unread.items())
    found = {
        "n_alarms": count(
            "rules for a broken run that fired, of all kinds",
            len(alarms),
            f"exact count, a rule and signal once{f'; {silent}' if silent else ''}",
        )
    }
    for rule in RULES:
        fired = sum(alarm.rule == rule for alarm in alarms)
        method = f"exact count; it could not be read: {unread[rule]}" if rule in unread else "exact count"
        found[f"n_alarms_{rule}"] = count(f"times that the rule {rule} fired", fired, method)
    untested = [NAMES[letter] for letter, answer in onsets.items() if answer.answer == "not tested"]
    found["n_onsets"] = count(
        "signals that had clearly changed at two saves in a row",
        sum(answer.seen for answer in onsets.values()),
        f"exact count, of {len(onsets)} signals{'; not tested: ' + ', '.join(untested) if untested else ''}",
    )
    return found


def _named(held_out: Mapping[str, AgainstBest]) -> list[tuple[str, str, AgainstBest]]:
    return [(HELD_OUT_NAMES[key], key, against) for key, against in held_out.items()]


def _held_out(
    name: str, key: str, against: AgainstBest, alarms: Sequence[Alarm], steps: Float[np.ndarray, "saves"]
) -> Estimate:
    """At the step that alarmed, or else at the last save."""
    at = next((alarm.step for alarm in alarms if alarm.signal == key), float(steps[-1]))
    column = int(np.flatnonzero(steps == at)[0]) - 1
    loss = key == "dpo_loss"
    what = "held-out DPO loss" if loss else "held-out ranking accuracy"
    return estimate_from(
        against.boot,
        column,
        label=f"{what} at step {at:g} minus that of the best save before it (step {steps[against.best[column]]:g})",
        unit="nats" if loss else "share difference",
        null_value=0.0,
    )
