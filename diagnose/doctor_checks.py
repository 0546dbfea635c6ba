"""One row of the doctor's table, and the measurements of a forward pass that give most of them."""

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..probes.padding import padded
from .probe_rows import ProbeRows, row_scores, scores_of

if TYPE_CHECKING:
    from ..probes.subject import Subject

Verdict = Literal["ok", "notice", "alarm"]

OK_NATS = 5e-6  # per scored token: what float32 round-off leaves on real models (house rule 3)
NOTICE_NATS = 5e-4
OK_LOGIT = 1e-5  # of the largest logit
NOTICE_LOGIT = 1e-4
_INVARIANCE = f"<= {OK_NATS:g} ok, <= {NOTICE_NATS:g} notice"
REPLACED = "what they hold is replaced before the model sees it, so the pad's id cannot matter"
_HALF = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`value` as shown; `number` where it is one, for gates and estimates."""

    check: str
    value: str
    unit: str = ""
    threshold: str = ""
    verdict: Verdict = "ok"
    advice: str = ""
    number: float | None = None
    n: int = 1  # rows, tokens or texts that the number rests on


def forward_checks(subject: "Subject", probe: ProbeRows, pad: int) -> list[Check]:
    """repeat, batch, padding, row order, left padding, causality and cost, in one order and on one set of rows."""
    ids, mask = padded(probe.rows, pad)
    started = time.perf_counter()
    with torch.no_grad():
        logits = subject.logits(ids, mask)
        seconds = time.perf_counter() - started
        repeated = float((subject.logits(ids, mask) - logits).abs().max())
    batched = scores_of(logits, ids, mask)
    del logits  # rows x tokens x vocabulary
    n_tokens = mask.sum(-1) - 1
    alone = torch.cat([row_scores(subject, *padded([row], pad)) for row in probe.rows])

    def moved(scores: torch.Tensor) -> float:
        return float(((scores - batched).abs() / n_tokens).max())

    other_pad = (pad + 1) % subject.vocab_size
    wide = row_scores(subject, *padded(probe.rows, other_pad, extra=probe.pads))
    reversed_ = row_scores(subject, ids.flip(0), mask.flip(0)).flip(0)
    left = row_scores(subject, *padded(probe.rows, pad, extra=1, left=True))
    rows, n = f"{len(probe.rows)} rows, {probe.n_scored} scored tokens, {probe.source}", probe.n_scored
    half = subject.dtype in _HALF
    return [
        _repeat(repeated, n),
        _invariance("batch", moved(alone), n, half, f"a batch of {len(probe.rows)} against one row at a time; {rows}"),
        _invariance(
            "right padding",
            moved(wide),
            n,
            half,
            f"{probe.pads} more pads on the right ({REPLACED}); {rows}",
        ),
        _invariance("row order", moved(reversed_), n, half, "the same rows in reverse order"),
        _left(moved(left), n, half),
        _causality(subject, probe, pad),
        _cost(subject, seconds, int(mask.sum())),
    ]


def _repeat(difference: float, n: int) -> Check:
    verdict: Verdict = "ok" if difference == 0 else "notice" if math.isfinite(difference) else "alarm"
    advice = {
        "ok": "the same batch twice is bit-equal",
        "notice": "the same batch gives other numbers a second time (atomic sums on the device, or sampling in the "
        "model): margins below this are noise",
        "alarm": "NaN or infinity in the logits: load with --dtype float32; if they stay, use an earlier checkpoint",
    }[verdict]
    return Check(
        check="repeat",
        value=f"{difference:.2g}",
        unit="logits",
        threshold="0 ok",
        verdict=verdict,
        advice=advice,
        number=difference,
        n=n,
    )


def _invariance(check: str, nats: float, n: int, half: bool, how: str) -> Check:
    verdict: Verdict = "ok" if nats <= OK_NATS else "notice" if nats <= NOTICE_NATS or half else "alarm"
    advice = {
        "ok": how,
        "notice": f"{how}. " + ("Load with --dtype float32" if half else "Margins below this are noise"),
        "alarm": f"{how}. Scores depend on the batch: score one row at a time (--batch-tokens 1)",
    }[verdict]
    return Check(
        check=check,
        value=f"{nats:.2g}",
        unit="nats per scored token",
        threshold=_INVARIANCE,
        verdict=verdict,
        advice=advice,
        number=nats,
        n=n,
    )


def _left(nats: float, n: int, half: bool) -> Check:
    row = _invariance("left padding", nats, n, half, "pads on the left, with mask and positions")
    if row.verdict != "alarm":
        return row
    return replace(
        row, advice="left padding moves the scores: score right-padded only (alignscope does); generate one by one"
    )


def _causality(subject: "Subject", probe: ProbeRows, pad: int) -> Check:
    """Change the last id of the longest row: no earlier logit may move."""
    row = max((list(ids) for ids in probe.rows), key=len)
    changed = [*row[:-1], (row[-1] + 1) % subject.vocab_size]
    with torch.no_grad():
        before, after = (subject.logits(*padded([r], pad))[0, :-1] for r in (row, changed))
    relative = float((before - after).abs().max() / before.abs().max().clamp(min=1e-12))
    ok = relative <= OK_LOGIT
    return Check(
        check="causality",
        value=f"{relative:.2g}",
        unit="of the largest logit",
        threshold=f"<= {OK_LOGIT:g}",
        verdict="ok" if ok else "alarm",
        advice="another last token moves no earlier logit"
        if ok
        else "a later token changes earlier logits: not a causal language model, or a leak; no log-probability of it "
        "means anything",
        number=relative,
        n=len(row) - 1,
    )


def _cost(subject: "Subject", seconds: float, n_tokens: int) -> Check:
    return Check(
        check="speed",
        value=f"{n_tokens / seconds:.0f}",
        unit="tokens/s",
        advice=f"one batch of {n_tokens} tokens took {1000 * seconds:.0f} ms on {subject.device} in {subject.dtype}",
        number=n_tokens / seconds,
        n=n_tokens,
    )


def anatomy_check(subject: "Subject") -> Check:
    """The read-out as probed and proved on load; a model whose proof fails never gets here."""
    anatomy: Any = getattr(subject, "anatomy", None)
    error = float(subject.facts.get("anatomy_error", getattr(anatomy, "error", 0.0)))
    verdict: Verdict = "ok" if error <= OK_LOGIT else "notice"
    return Check(
        check="anatomy",
        value=f"{error:.2g}",
        unit="of the largest logit",
        threshold=f"<= {OK_LOGIT:g} ok, <= {NOTICE_LOGIT:g} notice, else refused",
        verdict=verdict,
        advice=describe_anatomy(subject, anatomy),
        number=error,
        n=9,
    )


def describe_anatomy(subject: "Subject", anatomy: Any) -> str:
    """Blocks, tail, head and what follows the head, in words."""
    if anatomy is None:
        return f"{subject.n_layers} blocks of width {subject.d_model}"
    tail = " + ".join(type(module).__name__ for module in anatomy.tail) or "none"
    return (
        f"{subject.n_layers} blocks at {anatomy.blocks_path}, width {subject.d_model}; tail {tail}; head "
        f"{type(anatomy.head).__name__} [{subject.vocab_size} rows]; after the head: {anatomy.transform or 'nothing'}"
    )
