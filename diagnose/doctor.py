"""Is this checkpoint measurable: is its read-out proved, do its scores hold still, what are its tokenizer and file?"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from .doctor_checks import Check, anatomy_check, forward_checks
from .doctor_texts import text_checks
from .doctor_weights import (
    adapter_check,
    loading_check,
    memory_check,
    precision_check,
    precision_floor_check,
    reference_checks,
)
from .probe_rows import probe_rows, tokenizer_of
from .report import Cost, Estimate, Finding, Section, SectionResult, finite
from .run_directory import peak_memory_mb

if TYPE_CHECKING:
    from ..probes.subject import Subject

# that the section's estimates can have: those of the checks that are numbers
NAMES = (
    *("loading", "anatomy", "repeat", "batch", "right_padding", "row_order", "left_padding", "causality", "speed"),
    *("precision_of_the_file", "precision_floor", "adapter", "tokenizer_round_trip", "tokenizer_length"),
    *("length_limit", "distance_to_the_reference", "memory"),
)
COLUMNS = ("check", "value", "unit", "threshold", "verdict", "advice")


def examine(
    subject: "Subject", texts: Sequence[str] | None = None, *, reference: "Subject | None" = None
) -> SectionResult:
    """Check one model: table `checks` (check, value, unit, threshold, verdict ok | notice | alarm, advice).

    A score is the summed log-probability of a text's tokens after the first; invariances are the largest change of a
    score per scored token, in nats, over 16 rows of 2 to 64 tokens. texts: probe with these instead (the first 16).
    reference: the model it will be compared with. Alarms and notices become findings.
    Raises InputError where none of `texts` can be read by the model.

        alignscope.diagnose.doctor.examine(alignscope.load("runs/dpo")).section.summary
    """
    started = time.perf_counter()
    probe = probe_rows(subject, texts)
    tokenizer = tokenizer_of(subject)
    known_pad = None if tokenizer is None else tokenizer.pad_token_id
    pad = known_pad if known_pad is not None and known_pad < subject.vocab_size else 0
    sometimes = (precision_floor_check(subject, probe, pad), adapter_check(subject, probe, pad))
    checks = [
        loading_check(subject),
        anatomy_check(subject),
        *forward_checks(subject, probe, pad),
        precision_check(subject, reference),
        *(check for check in sometimes if check is not None),
        *text_checks(subject, texts),
        *(reference_checks(subject, reference, probe, pad) if reference is not None else []),
        memory_check(subject),
    ]
    table = pd.DataFrame([{column: getattr(check, column) for column in COLUMNS} for check in checks])
    section = Section(
        name="doctor",
        title=f"Doctor: {subject.name}",
        question=f"Can {subject.name} be measured, and how far can its numbers be trusted?",
        summary=_summary(checks),
        estimates={_key(check): _estimate(check) for check in checks if check.number is not None},
        tables={"checks": "one check: what was measured, against which threshold, and what to do"},
        settings={
            "probe": probe.source,
            "rows": len(probe.rows),
            "scored_tokens": probe.n_scored,
            "extra_pads": probe.pads,
            "dtype": subject.dtype,
            "device": subject.device,
        },
        counts={verdict: sum(check.verdict == verdict for check in checks) for verdict in ("ok", "notice", "alarm")},
        cost=Cost(seconds=time.perf_counter() - started, peak_memory_mb=peak_memory_mb()),
    )
    findings = tuple(_finding(check) for check in checks if check.verdict != "ok")
    return SectionResult(section=section, tables={"checks": table}, findings=findings)


def _summary(checks: list[Check]) -> str:
    alarms = [check.check for check in checks if check.verdict == "alarm"]
    notices = [check.check for check in checks if check.verdict == "notice"]
    if alarms:
        return f"Not to be measured as it is: {', '.join(alarms)}."
    noticed = f" Keep in mind: {', '.join(notices)}." if notices else ""
    return f"Measurable: {len(checks)} checks, no alarm.{noticed}"


def _key(check: Check) -> str:
    return check.check.replace(" ", "_")


def _estimate(check: Check) -> Estimate:
    value = finite(check.number)
    return Estimate(
        label=check.check,
        value=value,
        level=None,
        n=check.n,
        unit=check.unit,
        method="exact; one measurement",
        reason="NaN or infinity in the logits of the probe rows" if value is None else None,
    )


def _finding(check: Check) -> Finding:
    value = f" ({check.value}{' ' + check.unit if check.unit else ''})" if check.value else ""
    return Finding(
        severity="alarm" if check.verdict == "alarm" else "notice",
        section="doctor",
        sentence=f"{check.check.capitalize()}{value}: {check.advice}.",
        rests_on=[f"doctor.{_key(check)}"] if check.number is not None else [],
        next_step=check.advice if check.verdict == "alarm" else "",
    )
