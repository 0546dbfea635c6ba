"""What a contrast and its controls say together, in words."""

import math
from typing import TYPE_CHECKING

import pandas as pd

from .report import Finding

if TYPE_CHECKING:
    from .spinal_compare import SpinalComparison

WORDS = {
    "d_alpha_terminal": "the exponent",
    "d_transport_terminal": "the mean step of the read-out",
    "d_entropy_terminal": "the entropy of the read-out",
    "d_efficiency_terminal": "the straightness of the way",
}
MORE = "more than"  # how a verdict begins that says so
CANNOT_TELL = "It cannot tell preference training from any training of this size"
CONTROLS_WANTED = (
    "Give an SFT-only checkpoint, or DPO on shuffled labels, of equal steps, as a control (--control NAME=PATH): what "
    "those show too is not due to the preferences."
)


def controls_findings(comparison: "SpinalComparison") -> list[Finding]:
    """A finding a control that was given: what is left of every headline, or why the control is not there."""
    table = comparison.control_effects
    return [_finding(comparison, str(name), rows) for name, rows in table.groupby("control", sort=False)]


def caveat(comparison: "SpinalComparison") -> str:
    """What the comparison cannot tell unless it shows more than every control that was trained; else empty."""
    trained = comparison.control_effects[comparison.control_effects.kind == "trained"]
    more = trained.verdict.astype(str).str.startswith(MORE)
    exceeded = trained.assign(more=more).groupby("control").more.any()
    return "" if len(exceeded) and exceeded.all() else f" {CANNOT_TELL}."


def beside_controls(comparison: "SpinalComparison") -> str:
    """One clause a headline that has controls: of how many of them it is more; empty without controls."""
    parts = []
    for quantity, rows in comparison.control_effects.groupby("quantity", sort=False):
        judged = rows[rows.verdict.notna() & (rows.kind != "template")]
        if len(judged):
            more = judged.verdict.str.startswith(MORE)
            parts.append(f"{WORDS[str(quantity)]} {int(more.sum())} of {len(judged)} ({', '.join(judged.control)})")
    return f" More than its controls show: {'; '.join(parts)}." if parts else ""


def _finding(comparison: "SpinalComparison", name: str, rows: pd.DataFrame) -> Finding:
    kind = rows.kind.iloc[0]
    known = rows[rows.verdict.notna()]
    told = {"trained": _trained, "template": _template, "noise": _noise}[kind]
    base, aligned = comparison.names
    sentence = (
        told(name, base, aligned, known) + _fewer(comparison, known)
        if len(known)
        else f"Control {name}: not there ({rows.reason.iloc[0] or 'no number'})."
    )
    clear = kind == "trained" and known.verdict.str.startswith(MORE).any()
    return Finding(
        severity="notice" if clear else "info",
        section="spinal",
        sentence=sentence,
        rests_on=[f"spinal.{quantity}" for quantity in known.quantity] or ["spinal.d_transport_terminal"],
        next_step=CONTROLS_WANTED if kind == "trained" and not len(known) else "",
    )


def _fewer(comparison: "SpinalComparison", rows: pd.DataFrame) -> str:
    n, whole = int(rows.n.min()), comparison.base.n
    return f" On {n} of the {whole} prompts: the others cannot be read so." if n < whole else ""


def _trained(name: str, base: str, aligned: str, rows: pd.DataFrame) -> str:
    parts = [
        f"{WORDS[str(row.quantity)]} {_size(row, 'effect')}, {_size(row, 'control_effect')} in {name}, the rest "
        f"{_size(row, 'net')}: {row.verdict}"
        for row in rows.itertuples()
    ]
    return f"Control {name} (against {base}, over the last blocks; {aligned} first): {'; '.join(parts)}."


def _template(name: str, base: str, aligned: str, rows: pd.DataFrame) -> str:
    parts = [f"{WORDS[str(row.quantity)]} {_size(row, 'control_effect')}" for row in rows.itertuples()]
    return f"Control {name}: the chat template alone moves {base} over the last blocks by as much as this: " + (
        f"{'; '.join(parts)} (the effect of training: {'; '.join(_size(row, 'effect') for row in rows.itertuples())})."
    )


def _noise(name: str, base: str, aligned: str, rows: pd.DataFrame) -> str:
    parts = [
        f"{WORDS[str(row.quantity)]} {_size(row, 'effect')}, of the seed that moved most "
        f"{_size(row, 'control_effect')} ({row.verdict}, p = {row.p:.2g})"
        for row in rows.itertuples()
    ]
    return (
        f"Control {name}: random weights as large as the update of each matrix of the blocks of {base} (head, "
        f"embeddings and gains stay): {'; '.join(parts)}."
    )


def _size(row: object, name: str) -> str:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    unit = f" {row.unit}" if getattr(row, "unit", "") else ""  # type: ignore[attr-defined]
    if not math.isfinite(value):
        return "not known"
    return f"{value:+.3g} [{low:.3g}, {high:.3g}]{unit}" if math.isfinite(low) else f"{value:+.3g}{unit}"
