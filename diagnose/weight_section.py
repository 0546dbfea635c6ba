"""What the weights say in words: the section "weights" and its findings. Deterministic numbers: no intervals."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .naming import short_name
from .phrases import percent
from .report import Estimate, Finding, Section, SectionResult, finite
from .weight_matrices import OVER_TRAINED, UNDER_TRAINED

if TYPE_CHECKING:
    from .weights import WeightSpectrum

EXACT = "exact"
CONCENTRATED = 0.25  # half of the change in a quarter of the blocks or fewer is called concentrated
DOMINANT = 0.5  # share of a matrix's change from which one direction is called dominant
NAMES = (
    *("alpha_median", "over_trained", "under_trained", "alpha_reference_median", "delta_share", "delta_share_largest"),
    *("delta_share_matrix", "half_change_blocks", "delta_top_median", "delta_top_ratio", "delta_top_times_rank"),
)  # that the estimates of the section can have
MIN_BLOCKS = 4  # fewer have no quarter
MATRICES = (
    "a row a matrix of a block: Clauset exponent of sigma^2 of the model, of the reference and of the difference "
    "(null: alpha_reason), size of the change and share of its first direction (null: delta_reason)"
)
BLOCKS = (
    "a row a block: |dW| / |W_reference| over all its matrices (share), over biases and gains (share_vectors); "
    "null with reason"
)


def weight_section(found: "WeightSpectrum") -> SectionResult:
    """Section "weights": how much the weights of each block moved, and along how many directions."""
    name, reference = _names(found)
    estimates = _estimates(found)
    tables, described = {"matrices": found.frame}, {"matrices": MATRICES}
    if found.blocks is not None:
        tables["blocks"], described["blocks"] = found.blocks, BLOCKS
    question = (
        f"How heavy are the tails of the spectra of {name}'s weights?"
        if reference is None
        else f"Where, how far and along how many directions did the weights of {name} move from {reference}?"
    )
    findings = tuple(_findings(found, estimates))
    section = Section(
        name="weights",
        title="Weights: size and shape of the change",
        question=question,
        summary=" ".join(finding.sentence for finding in findings[:3]),
        estimates=estimates,
        tables=described,
        settings=found.settings,
        counts={"matrices": len(found.frame), "blocks": int(found.frame.block.nunique())},
        warnings=list(found.warnings),
    )
    return SectionResult(section=section, tables=tables, findings=findings)


def shortest_run(shares: pd.Series, half: float = 0.5) -> tuple[int, int]:
    """Positions (first, last) of the shortest run of blocks that holds `half` of the summed shares; ties: the earlier.

    The whole range where only that holds it. ValueError: nothing to share out.
    """
    values = shares.fillna(0).to_numpy(dtype=float)
    if not values.sum() > 0:
        raise ValueError("the shares add up to 0: there is no run that holds half of them")
    total = np.concatenate([[0.0], np.cumsum(values)])
    for length in range(1, len(values) + 1):
        sums = total[length:] - total[:-length]
        if sums.max() >= half * values.sum() * (1 - 1e-12):  # equal shares add up with rounding
            first = int(np.flatnonzero(sums >= sums.max() * (1 - 1e-12))[0])
            return first, first + length - 1
    return 0, len(values) - 1


def _estimates(found: "WeightSpectrum") -> dict[str, Estimate]:
    frame, blocks, missing = found.frame, found.blocks, found.reason
    estimates = {
        "alpha_median": _median("tail exponent of the model's matrices", frame.alpha_lambda_pdf, "of its matrices"),
        "over_trained": _flagged("over-trained", f"exponent under {OVER_TRAINED:g}", frame),
        "under_trained": _flagged("under-trained", f"exponent over {UNDER_TRAINED:g}", frame),
    }
    if blocks is None:
        blank = pd.Series(dtype=float)
        return estimates | _change_estimates(frame.assign(delta_top=math.nan), blank, blank, missing)
    estimates["alpha_reference_median"] = _median(
        "tail exponent of the reference's matrices", frame.alpha_lambda_pdf_reference, "of its matrices"
    )
    return estimates | _change_estimates(frame, blocks.share, blocks.block, missing)


def _change_estimates(
    frame: pd.DataFrame, shares: pd.Series, numbers: pd.Series, missing: str | None
) -> dict[str, Estimate]:
    n, changed = len(frame), frame[frame.delta_top.notna()]
    whole, largest, single, run, where = math.nan, math.nan, math.nan, math.nan, ["", "", ""]
    if missing is None:
        whole = math.sqrt((frame.delta_norm**2).sum() / (frame.norm**2).sum())
        top = int(shares.fillna(-1).to_numpy().argmax())
        first, last = shortest_run(shares)
        row = frame.iloc[int(frame.delta_share.fillna(-1).to_numpy().argmax())]
        largest, single, run = float(shares.iloc[top]), float(row.delta_share), float(last - first + 1)
        where = [f"block {numbers.iloc[top]}", f"{row.matrix} of block {row.block}"]
        ends = (
            f"block {numbers.iloc[first]}" if first == last else f"blocks {numbers.iloc[first]} to {numbers.iloc[last]}"
        )
        where = [f": {text}" for text in (*where, ends)]
    estimates = {
        "delta_share": _exact("size of the change, all matrices of the blocks", whole, n, missing, unit="share"),
        "delta_share_largest": _exact(
            f"size of the change of the block that changed most{where[0]}", largest, n, missing, unit="share"
        ),
        "delta_share_matrix": _exact(
            f"size of the change of the matrix that changed most{where[1]}", single, n, missing, unit="share"
        ),
        "half_change_blocks": _exact(
            f"shortest run of blocks that holds half of the relative change{where[2]}",
            run,
            len(shares),
            missing,
            unit="blocks",
            null_value=float(math.ceil(len(shares) / 2)) if len(shares) else None,
        ),
    }
    for name, column, label, null in (
        ("delta_top_median", "delta_top", "share of a matrix's change along its first direction", None),
        (
            "delta_top_ratio",
            "delta_top_ratio",
            "share of the first direction, over that in Gaussian noise of the matrix's shape",
            1.0,
        ),
        (
            "delta_top_times_rank",
            "delta_top_times_rank",
            "share of the first direction, over 1 / rank of the adapter",
            1.0,
        ),
    ):
        values = changed[column].dropna() if column in changed else pd.Series(dtype=float)
        estimates[name] = _exact(
            label,
            float(values.median()) if len(values) else math.nan,
            len(values),
            missing or "the change is not that of a LoRA adapter on this reference",
            method=f"exact, median over {len(values)} changed matrices",
            unit="share" if column == "delta_top" else "",
            null_value=null,
        )
    return estimates


def _exact(
    label: str,
    value: float,
    n: int,
    reason: str | None,
    *,
    method: str = EXACT,
    unit: str = "",
    null_value: float | None = None,
    ours: bool = True,
) -> Estimate:
    """A number that nothing was sampled for."""
    return Estimate(
        label=label,
        value=finite(value),
        level=None,
        n=n,
        unit=unit,
        method=method,
        reason=None if math.isfinite(value) else reason,
        null_value=null_value,
        reconstructed=ours,
    )


def _median(label: str, values: pd.Series, whose: str) -> Estimate:
    some = values.dropna()
    return _exact(
        f"{label}, median",
        float(some.median()) if len(some) else math.nan,
        len(some),
        f"none {whose} has 10 eigenvalues to fit",
        method=f"exact, median over {len(some)} matrices; Clauset fit, x_min by smallest KS; no p-value",
        ours=False,
    )


def _flagged(word: str, rule: str, frame: pd.DataFrame) -> Estimate:
    """Share of the matrices that WeightWatcher's convention gives this name."""
    fitted = frame[frame.alpha_lambda_pdf.notna()]
    label = f"share of matrices that WeightWatcher's convention calls {word} ({rule})"
    value = float((fitted.weightwatcher_flag == word).mean()) if len(fitted) else math.nan
    return _exact(label, value, len(fitted), "no matrix has an exponent", unit="share", ours=False)


def _findings(found: "WeightSpectrum", estimates: dict[str, Estimate]) -> list[Finding]:
    if found.blocks is None:
        return _tail_findings(found, estimates)
    name, reference = _names(found)
    if found.reason is not None:
        sentence = f"The blocks of {name} do not differ from those of {reference}: {found.reason}."
        step = "Check that the right two checkpoints were named."
        same = _finding("notice", sentence, ["delta_share"], step)
        return [same, *_tail_findings(found, estimates)]
    return [
        _size_finding(found, estimates),
        *_concentration_finding(found, estimates),
        *_direction_finding(found, estimates),
        *_tail_findings(found, estimates),
    ]


def _size_finding(found: "WeightSpectrum", estimates: dict[str, Estimate]) -> Finding:
    name, reference = _names(found)
    whole, largest, single = (estimates[key] for key in ("delta_share", "delta_share_largest", "delta_share_matrix"))
    changed = int((found.frame.delta_norm > 0).sum())
    assert whole.value is not None  # there is a change
    assert largest.value is not None
    of_one = "" if single.value is None else f" (of single matrices {_after(single)}, by {_size(single.value)})"
    return _finding(
        "info",
        f"The weight matrices of {name} moved from {reference} by {_size(whole.value)} of their norm ({changed} of "
        f"{len(found.frame)} matrices); most in {_after(largest)}, by {_size(largest.value)}{of_one}.",
        ["delta_share", "delta_share_largest", "delta_share_matrix"],
        "A size says nothing of an effect: compare it with a control of equal size (noise, SFT, shuffled labels).",
    )


def _concentration_finding(found: "WeightSpectrum", estimates: dict[str, Estimate]) -> list[Finding]:
    assert found.blocks is not None
    n, run = len(found.blocks), estimates["half_change_blocks"]
    if n < MIN_BLOCKS or run.value is None or run.null_value is None:
        return []
    blocks = _after(run)
    spread = f"half of the blocks' relative change; spread evenly it would take {run.null_value:.0f} of {n} blocks"
    if run.value <= CONCENTRATED * n:
        sentence = f"The update is concentrated: {blocks} {'hold' if ' to ' in blocks else 'holds'} {spread}."
    else:
        sentence = f"The update is not concentrated: no run shorter than {blocks} holds {spread}."
    return [
        _finding(
            "info",
            sentence,
            ["half_change_blocks"],
            "Where weights moved most is not where behaviour changed most: see the distance of read-outs by layer.",
        )
    ]


def _direction_finding(found: "WeightSpectrum", estimates: dict[str, Estimate]) -> list[Finding]:
    top, ratio, floor = (estimates[key] for key in ("delta_top_median", "delta_top_ratio", "delta_top_times_rank"))
    if top.value is None or ratio.value is None:
        return []
    changed = found.frame[found.frame.delta_top.notna()]
    dominant = int((changed.delta_top > DOMINANT).sum())
    verdict = (
        "One direction dominates the update" if dominant > len(changed) / 2 else "No single direction makes the update"
    )
    sentence = (
        f"{verdict}: the first holds {percent(top.value)} of the change of the median matrix, {ratio.value:.3g} times "
        f"what Gaussian noise of its shape has, and more than half in {dominant} of {len(changed)} matrices."
    )
    step = "Few gradient steps give few directions by themselves: compare with a control trained equally long."
    rests_on = ["delta_top_median", "delta_top_ratio"]
    if floor.value is not None:
        ranks = changed.adapter_rank.dropna()
        which = f"{ranks.min():.0f}" if ranks.nunique() == 1 else f"{ranks.min():.0f} to {ranks.max():.0f}"
        sentence += (
            f" An adapter of rank {which} cannot be as flat as noise: against directions of equal size within its "
            f"rank the first holds {floor.value:.3g} times its share."
        )
        rests_on.append("delta_top_times_rank")
    return [_finding("info", sentence, rests_on, step)]


def _tail_findings(found: "WeightSpectrum", estimates: dict[str, Estimate]) -> list[Finding]:
    alpha, over, under = (estimates[key] for key in ("alpha_median", "over_trained", "under_trained"))
    if alpha.value is None or over.value is None or under.value is None:
        return []
    before = estimates.get("alpha_reference_median")
    against = "" if before is None or before.value is None else f" ({before.value:.3g} in the reference)"
    n_over, n_under = round(over.value * over.n), round(under.value * under.n)
    return [
        _finding(
            "info",
            f"The tail exponent of the squared singular values is {alpha.value:.3g} in the median matrix of "
            f"{_names(found)[0]}{against}; by WeightWatcher's convention {n_over} of {over.n} matrices are "
            f"over-trained (under {OVER_TRAINED:g}) and {n_under} under-trained (over {UNDER_TRAINED:g}).",
            ["alpha_median", "over_trained", "under_trained", *(["alpha_reference_median"] if before else [])],
            "The convention is a rule of thumb, not a test: read differences between models of one family.",
        )
    ]


def _names(found: "WeightSpectrum") -> tuple[str, str | None]:
    """Both models as they are called in a sentence."""
    name, reference = (None if full is None else short_name(full) for full in found.names)
    return str(name), f"{reference} (reference)" if reference == name else reference


def _after(estimate: Estimate) -> str:
    """Where a selected number was found: what stands after the colon of its label."""
    return estimate.label.rpartition(": ")[2]


def _finding(severity: str, sentence: str, rests_on: list[str], next_step: str) -> Finding:
    return Finding.model_validate(
        {
            "severity": severity,
            "section": "weights",
            "sentence": sentence,
            "rests_on": [f"weights.{name}" for name in rests_on],
            "next_step": next_step,
        }
    )


def _size(share: float) -> str:
    """A small share with two digits that count: 0.32 %."""
    return f"{100 * share:.2g} %"
