"""How numbers and names are said on a page: as many digits as the interval bears, words for opaque names."""

import math
from collections.abc import Mapping

from ..diagnose.report import Estimate

MINUS = "\N{MINUS SIGN}"
PLAIN_UNITS = ("", "share", "share difference", "p")  # said by the label, not beside the number

VERDICTS = {1.0: "right", 0.5: "tie", 0.0: "wrong"}
REASONS = {  # why rows were set aside, and what is said of rows that were kept
    "not_a_row": "the line or entry is no row of columns",
    "not_a_list": "the responses, ranks or scores of a ranking are no list",
    "too_few_responses": "a ranking of fewer than two responses",
    "ranks_invalid": "the ranks or scores do not order the responses",
    "duplicate_id": "the id is that of a ranking before",
    "missing_field": "a column that the row needs is missing or empty",
    "not_string": "a prompt or completion is not text",
    "mixed_forms": "strings and messages are mixed in one row",
    "not_encodable": "the tokenizer has no ids for the text",
    "template_refused": "the chat template refuses the messages",
    "empty_prompt": "the prompt is empty",
    "empty_completion": "a completion is empty",
    "identical_completions": "chosen and rejected are the same",
    "prompt_mismatch": "chosen and rejected answer different prompts",
    "no_context": "nothing precedes the first token to be scored",
    "no_scored_token": "no token of the completion could be scored",
    "no_token": "the prompt has no token of its own",
    "no_response": "there is no answer behind the prompt, which lens_positions='response' reads",
    "too_long": "longer than the model's context",
    "non_finite_policy": "the policy gave no finite score",
    "non_finite_reference": "the reference gave no finite score",
    "nonfinite_row": "the model's residual stream is not finite",
    "label_invalid": "the label is neither a nor b",
    "finished_invalid": "`finished` is neither true nor false",
    "sampling_invalid": "say unreadably how they were drawn (temperature, top_p, top_k, min_p)",
    "votes_invalid": "the votes or the preference are no share of anything",
    "duplicate_pair": "the same pair stood there before",
    "not_in_reference": "the table of the reference's scores holds no such pair",
    "boundary_shift": "kept: the prompt's last token merges with the completion; both sides start earlier",
    "special_in_text": "kept: raw text holds special tokens",
    "human_tie": "kept out of the accuracies: people were undecided",
    "swapped": "kept: turned round so that chosen is what most people preferred",
    "contradicting_pair": "kept: the same two completions also stand the other way round",
}


def number(value: float | int, decimals: int | None = None) -> str:
    """A number with a true minus sign: `decimals` places, or four significant digits where None."""
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
        if float(text.replace(",", "")) == 0:
            text = text.lstrip("-")  # no minus before a rounded zero
    elif value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif 1e-4 <= abs(value) < 1e5:
        text = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", MINUS)


def decimals(estimate: Estimate) -> int | None:
    """Places that show the interval's half-width with two digits; None without an interval."""
    if estimate.low is None or estimate.high is None or estimate.high <= estimate.low:
        return None
    half = (estimate.high - estimate.low) / 2
    places = 1 - math.floor(math.log10(half))
    return max(places, 0) if places <= 6 else None


def value_text(estimate: Estimate) -> str:
    """The value alone, or a dash."""
    return "–" if estimate.value is None else number(estimate.value, decimals(estimate))


def interval_text(estimate: Estimate) -> str:
    """'0.58 to 0.64', or nothing."""
    if estimate.low is None or estimate.high is None:
        return ""
    places = decimals(estimate)
    return f"{number(estimate.low, places)} to {number(estimate.high, places)}"


def stated(estimate: Estimate | None) -> str | None:
    """'0.612 [0.580, 0.644] nats' for a title; None where there is no value."""
    if estimate is None or estimate.value is None:
        return None
    places = decimals(estimate)
    text = number(estimate.value, places)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{number(estimate.low, places)}, {number(estimate.high, places)}]"
    return text if estimate.unit in PLAIN_UNITS else f"{text} {estimate.unit}"


def moved(
    estimate: Estimate | None, up: str, down: str, *, unclear: str = "no clear change", bare: str = "changed by"
) -> str | None:
    """'<up> by 0.12 [0.08, 0.16] nats' where the interval leaves 0 out, '<unclear> (...)' where it does not.

    Without an interval: '<bare> 0.12 nats (no interval)'.
    """
    if estimate is None or estimate.value is None:
        return None
    if estimate.low is None or estimate.high is None:
        return f"{bare} {stated(estimate)} (no interval)"
    if estimate.low <= 0 <= estimate.high:
        return f"{unclear} ({stated(estimate)})"
    places = decimals(estimate)
    ends = sorted((abs(estimate.low), abs(estimate.high)))
    size = f"{number(abs(estimate.value), places)} [{number(ends[0], places)}, {number(ends[1], places)}]"
    unit = "" if estimate.unit in PLAIN_UNITS else f" {estimate.unit}"
    return f"{up if estimate.value > 0 else down} by {size}{unit}"


def p_text(p: float) -> str:
    """'p = 0.012', 'p < 0.001': two significant digits."""
    return "p < 0.001" if p < 0.001 else f"p = {number(float(f'{p:.2g}'))}"


def missing(estimates: Mapping[str, Estimate], names: list[str]) -> str:
    """One sentence a missing estimate, with its reason; empty where all are there."""
    gone = [estimates[name] for name in names if name in estimates and estimates[name].value is None]
    return " ".join(f"Not shown: {e.label} ({e.reason})." for e in gone)


def size(megabytes: float | int) -> str:
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


def duration(seconds: float | int) -> str:
    """'3 min 12 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
