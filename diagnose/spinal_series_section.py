"""What a checkpoint series says in words: the section "series" and its findings. No sentence assumes a sign."""

from typing import TYPE_CHECKING

from .changepoints import Onset
from .report import Finding, Section, SectionResult
from .spinal_series_rules import WORDS, Alarm, false_alarm_words
from .spinal_series_signals import NAMES

if TYPE_CHECKING:
    from .spinal_series import SpinalSeries

TRAJECTORY = (
    "a row a signal and save: value over the last blocks and change against the start, with intervals, n prompts, p of "
    "the change (all saves tested together), and which rule fired there"
)
LAYERS = (
    "a row a save and layer (0 = embeddings): exponent, angle of the step that leaves the layer, entropy, distance to "
    "the start's read-out, with intervals; n prompts"
)

AUDIT_WANTED = (
    "Audit the save that matters with --controls, and --control NAME=PATH for SFT only or shuffled labels of equal "
    "steps: what those show too is not due to the preferences."
)


def series_section(series: "SpinalSeries") -> SectionResult:
    """Section "series": when did the run begin to change the read-out, and when did it break?"""
    section = Section(
        name="series",
        title="Checkpoint series",
        question=f"At which of the {len(series.steps)} saves did contraction and transport begin to change, and did "
        "the run break?",
        summary=series_summary(series),
        estimates=dict(series.estimates),
        tables={"trajectory": TRAJECTORY, "layers": LAYERS},
        settings=dict(series.settings),
        counts=dict(series.counts),
        warnings=list(series.warnings),
    )
    tables = {"trajectory": series.trajectory, "layers": series.layers}
    return SectionResult(
        section=section, tables=tables, findings=(*_alarms(series), *_quiet(series), _onset_finding(series))
    )


def series_summary(series: "SpinalSeries") -> str:
    """One to three sentences: what began when, what noise alone moves where that is known, and what broke when."""
    first, last = series.steps[0], series.steps[-1]
    where = f"Over {len(series.steps)} saves (steps {first:g} to {last:g}) on {series.counts['prompts']} prompts"
    noise = f" {_beside(series)}" if series.settings["noise_control"] else ""
    return f"{where}, {_began(series)}.{noise} {_broke(series)}"


def _began(series: "SpinalSeries") -> str:
    seen = {letter: answer for letter, answer in series.onsets.items() if answer.seen}
    if seen:
        return "; ".join(f"{WORDS[letter]} {_when(answer)}" for letter, answer in seen.items())
    last = [WORDS[letter] for letter, answer in series.onsets.items() if answer.answer.startswith("at the last save")]
    if last:
        return f"only the last save differs clearly from the start ({', '.join(last)}), which no later save confirms"
    if all(answer.answer == "not tested" for answer in series.onsets.values()):
        return f"whether anything changed could not be tested: {series.onset.reason}"
    return "no signal changed by more than the choice of prompts explains at two saves in a row"


def _when(answer: Onset) -> str:
    way = "rose" if answer.direction > 0 else "fell"
    if answer.answer == "before the first save":
        return f"{way} before the first save after the start (step {answer.first_significant:g})"
    return f"{way} between steps {answer.last_quiet:g} and {answer.first_significant:g}"


def _broke(series: "SpinalSeries") -> str:
    if series.alarms:
        named = sorted({(alarm.step, _rule(alarm)) for alarm in series.alarms})
        return "Alarms: " + "; ".join(f"step {step:g} ({rule})" for step, rule in named) + "."
    if _judged(series):
        return "No rule for a broken run fired."
    few = next((sums if isinstance(sums, str) else sums.reason for sums in series.cusums.values()), "")
    return f"No plain rule for a broken run fired; the CUSUM has no answer ({few})."


def _rule(alarm: Alarm) -> str:
    return f"CUSUM of {WORDS[alarm.signal]}" if alarm.rule == "cusum" else alarm.rule.replace("_", " ")


def _alarms(series: "SpinalSeries") -> list[Finding]:
    found = []
    for alarm in series.alarms:
        again = f" So at {', '.join(f'{step:g}' for step in alarm.later)}." if alarm.later else ""
        found.append(
            Finding(
                severity="alarm",
                section="series",
                sentence=alarm.sentence + again,
                rests_on=[f"series.{name}" for name in alarm.rests_on],
                next_step=alarm.next_step,
            )
        )
    return found


def _quiet(series: "SpinalSeries") -> list[Finding]:
    """That the rules ran and found nothing, with how often they err: silence is an answer only then."""
    if series.alarms or not _judged(series):
        return []
    return [
        Finding(
            severity="info",
            section="series",
            sentence=f"{_broke(series)} {false_alarm_words(len(series.steps) - 1)}",
            rests_on=["series.first_alarm", "series.false_alarm_rate"],
        )
    ]


def _judged(series: "SpinalSeries") -> bool:
    """The CUSUM of some signal had enough increments."""
    return any(not isinstance(sums, str) and sums.reason is None for sums in series.cusums.values())


def _onset_finding(series: "SpinalSeries") -> Finding:
    began = _began(series)
    sizes = [name for name in series.estimates if name.startswith("noise_")]
    return Finding(
        severity="notice" if series.onset.seen else "info",
        section="series",
        sentence=f"{began[0].upper()}{began[1:]}. {_beside(series)}",
        rests_on=[
            "series.onset",
            *(f"series.onset_{NAMES[letter]}" for letter in series.onsets),
            *(f"series.{name}" for name in sizes),
        ],
        next_step=AUDIT_WANTED if series.onset.seen else "",
    )


def _beside(series: "SpinalSeries") -> str:
    """What noise of the weights alone moves, beside what the last save did; that it may, where it was not asked for."""
    sized = series.settings["noise_control"]
    if not sized:
        return "Weight noise of the same size may move these signals too."
    parts = [_noise(series, name, size) for name, size in sized.items() if size is not None]
    if not parts:
        reason = series.estimates[f"noise_{next(iter(sized))}"].reason
        return f"What noise of the weights alone moves is not known: {reason}."
    return f"Noise of the weights alone moves: {', '.join(parts)}."


def _noise(series: "SpinalSeries", name: str, size: float) -> str:
    found = series.estimates.get(f"noise_{name}")
    if found is None:
        return f"{name} by {size:.3g}"
    last = (series.estimates.get(f"d_{name}") or series.estimates[name]).value
    return f"{name} by {found}" + ("" if last is None else f" (the last save: {last:.3g})")
