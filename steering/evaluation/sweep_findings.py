"""What does a selection of strengths say to someone who did not write the tool?"""

import pandas as pd

from ...diagnose.report import Finding

SECTION = "sweep"
UNSURE = 0.05  # share of missing ratings from which a notice says so [reconstructed]


def selection_findings(groups: pd.DataFrame) -> list[Finding]:
    found = []
    for direction, rows in groups.groupby("direction", sort=False):
        rests_on = [f"{SECTION}.{direction}_reported_score"]
        at_end, off = rows[rows.at_end], rows[rows.strength == 0]
        if len(at_end):
            ends = ", ".join(f"{s:g}" for s in sorted({*at_end.strength}))
            found.append(
                Finding(
                    severity="notice",
                    section=SECTION,
                    sentence=f"Grid too short: the strength chosen to {direction} is the grid's end ({ends}) for "
                    f"{len(at_end)} of {len(rows)} concepts, so a better one may lie beyond.",
                    rests_on=rests_on,
                    next_step="Sweep again with strengths beyond that end.",
                )
            )
        if len(off):
            found.append(
                Finding(
                    severity="notice",
                    section=SECTION,
                    sentence=f"For {len(off)} of {len(rows)} concepts no strength served better to "
                    f"{direction} it than none at all (0).",
                    rests_on=rests_on,
                    next_step="Look at the outputs: the vector may not carry the concept, or break the text first.",
                )
            )
    return found


def missing_ratings(missing: int, n: int) -> list[Finding]:
    if missing <= UNSURE * n:
        return []
    return [
        Finding(
            severity="notice",
            section=SECTION,
            sentence=f"{missing} of {n} outputs have no score, because a rating is missing; they are left out, not 0.",
            rests_on=[],
            next_step="See what the scorer could not rate: where it fails on broken text, scores are too good.",
        )
    ]
