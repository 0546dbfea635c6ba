"""How much did an update change per token? Positions to rates: over a response, a prompt's responses, the prompts.

A long answer weighs as much as a short one; the interval knows only prompts, as tokens of one text are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from .report import Estimate
from .statistics import BootstrapMeans, cluster_bootstrap, estimate_from

MEASURES = ("information", "plausible_information", "kl", "reverse_kl", "entropy", "normalized_entropy")
PANEL = MEASURES[:4]  # always together: D weighs the tail, D^S what can be said, the KLs what either model says
LABELS = {
    "information": "information D of the update along {source} histories: log V less the entropy of q",
    "plausible_information": "the same over plausible tokens alone, D^S, along {source} histories",
    "kl": "KL(policy || reference) of the next token along {source} histories",
    "reverse_kl": "KL(reference || policy) of the next token along {source} histories",
    "entropy": "entropy of q = policy / reference, normalised, along {source} histories; log V is no change",
    "normalized_entropy": "the same over log V along {source} histories; 1 is no change",
    "tilt": "slope of log policy / reference on log reference, plausible tokens, along {source} histories",
}
UNITS = {"normalized_entropy": "", "tilt": ""}  # else nats a token
COUNTED = ("ok", "degenerate")  # statuses that enter means: the others have no finite value


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMeans:
    """One row a prompt of a source: the mean over its responses of their means over tokens."""

    frame: pd.DataFrame  # index: prompt_id; NaN where no token of the prompt has a finite value
    n_tokens: int
    n_responses: int
    n_finite: Mapping[str, int]  # tokens in the means, by measure
    n_infinite: Mapping[str, int]  # tokens left out of that measure alone; the rest has no value (NaN)

    @property
    def n_prompts(self) -> int:
        return len(self.frame)


def counted(positions: pd.DataFrame) -> pd.DataFrame:
    """The positions that enter means."""
    return positions[positions["status"].isin(COUNTED)]


def prompt_means(positions: pd.DataFrame, measures: Sequence[str]) -> PromptMeans:
    """Mean over tokens, then over a prompt's responses, of the finite values of each measure.

    A token is left out of a measure that is infinite there (reverse_kl, where the policy alone excludes a token of the
    vocabulary) or null (D^S without a plausible token, a tilt that does not exist), and stays in the others.
    positions: a row a response token, with `history` (which response), `prompt_id` and the measures.
    """
    values = positions[list(measures)].astype(np.float64)
    infinite = np.isinf(values)
    finite = values.mask(infinite)
    by_response = finite.groupby([positions["prompt_id"], positions["history"]], sort=True).mean()
    frame = by_response.groupby(level="prompt_id", sort=True).mean()
    return PromptMeans(
        frame=frame,
        n_tokens=len(positions),
        n_responses=len(by_response),
        n_finite={name: int(finite[name].notna().sum()) for name in measures},
        n_infinite={name: int(infinite[name].sum()) for name in measures},
    )


def rate_estimates(
    positions: pd.DataFrame,
    source: str,
    *,
    measures: Sequence[str] = MEASURES,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Rates along the histories of one source, nats a token, with a bootstrap over prompts.

    n of each estimate counts the response tokens with a finite value, n_clusters their prompts; `method` says how many
    tokens a rate lacks, `reason` so where it has none.
    """
    means = prompt_means(counted(positions), measures)
    boot = _bootstrap(means.frame, measures, resamples=resamples, level=level, seed=seed)
    return {
        name: _estimate(boot, column, means, LABELS[name].format(source=source), UNITS.get(name, "nats a token"))
        for column, name in enumerate(measures)
    }


def paired_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    measures: Sequence[str] = MEASURES,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Second minus first, by source and measure, over positions that both updates have: rows with interval and n.

    Both are tables of positions of the same histories (rows pair by source, history and position); a position that
    either update leaves out is left out of both. Raises ValueError where the histories are not the same.
    """
    keys = ["source", "prompt_id", "history", "position"]
    both = counted(first).merge(counted(second), on=keys, suffixes=("_first", "_second"))
    if not len(both):
        raise ValueError("the two updates have no position in common; read the same histories under both")
    rows = []
    for source, part in both.groupby("source", sort=False):
        delta = part[keys].assign(**{m: part[f"{m}_second"] - part[f"{m}_first"] for m in measures})
        means = prompt_means(delta, measures)
        boot = _bootstrap(means.frame, measures, resamples=resamples, level=level, seed=seed)
        for column, measure in enumerate(measures):
            label, unit = f"change of {measure}, {source}", UNITS.get(measure, "nats a token")
            estimate = _estimate(boot, column, means, label, unit, null_value=0.0)
            rows.append({"source": source, "measure": measure, **interval(estimate)})
    return pd.DataFrame(rows)


def profile_table(
    positions: pd.DataFrame,
    names: Sequence[str],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The update profile: a row a source, bucket of positions and measure, with interval, tokens and prompts.

    names: of the buckets, in order; positions carry their number. An empty bucket has no row. n_null: tokens of the
    bucket whose value is infinite or absent, which are not in the mean nor in n.
    """
    measures = [*MEASURES, "plausible_size"]
    rows = []
    for source, bucket, part in by_bucket(counted(positions)):
        means = prompt_means(part, measures)
        boot = _bootstrap(means.frame, measures, resamples=resamples, level=level, seed=seed)
        for column, measure in enumerate(measures):
            unit = "tokens" if measure == "plausible_size" else UNITS.get(measure, "nats a token")
            estimate = _estimate(boot, column, means, measure, unit)
            row = {"source": source, "bucket": names[bucket], "measure": measure, **interval(estimate)}
            rows.append(row | {"n_null": len(part) - estimate.n})
    return pd.DataFrame(rows, columns=["source", "bucket", "measure", *_INTERVAL, "n_null"])


def by_bucket(positions: pd.DataFrame) -> list[tuple[str, int, pd.DataFrame]]:
    """Source, number of the bucket and its positions, in that order."""
    grouped = positions.groupby(["source", "bucket"], sort=True)
    return [(str(source), int(bucket), part) for (source, bucket), part in grouped]  # type: ignore[call-overload]


def tilt_table(
    positions: pd.DataFrame,
    names: Sequence[str],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The sharpen / smooth index a by source and bucket ("all" for every position): mean, interval, quartiles, R^2.

    a > 0: the update reinforces what the reference favours (policy ~ reference^(1 + a)); a < 0: it smooths.
    Positions with fewer than 3 plausible tokens, or with equally likely ones, have none: counted in n_null.
    """
    rows = []
    whole = counted(positions)
    parts = [(str(source), "all", part) for source, part in whole.groupby("source", sort=True)]
    parts += [(source, names[bucket], part) for source, bucket, part in by_bucket(whole)]
    for source, bucket, part in parts:
        known = part[part["tilt"].notna()]
        row: dict[str, object] = {"source": source, "bucket": bucket, "n_null": len(part) - len(known)}
        measures = ["tilt", "tilt_unweighted", "tilt_r2"]
        if len(known):
            means = prompt_means(known, measures)
            boot = _bootstrap(means.frame, measures, resamples=resamples, level=level, seed=seed)
            row |= interval(_estimate(boot, 0, means, "tilt", ""))
            row |= {"unweighted": float(boot.mean[1]), "r2": float(boot.mean[2])}
            quartiles = known["tilt"].quantile([0.25, 0.5, 0.75]).to_list()
            row |= dict(zip(("q25", "median", "q75"), quartiles, strict=True))
        rows.append(row)
    columns = ["source", "bucket", *_INTERVAL, "q25", "median", "q75", "unweighted", "r2", "n_null"]
    return pd.DataFrame(rows, columns=columns)


_INTERVAL = ("value", "low", "high", "n", "n_prompts", "unit", "reason")


def interval(estimate: Estimate) -> dict[str, object]:
    """An estimate as cells of a table."""
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "n_prompts": estimate.n_clusters,
        "unit": estimate.unit,
        "reason": estimate.reason,
    }


def row_estimate(row: Any) -> Estimate:
    """Such cells as an estimate again: a row of a table that has a column `measure`."""

    def number(name: str) -> float | None:
        return None if pd.isna(row[name]) else float(row[name])

    return Estimate(
        label=str(row["measure"]),
        value=number("value"),
        low=number("low"),
        high=number("high"),
        n=int(row["n"]),
        n_clusters=None if pd.isna(row["n_prompts"]) else int(row["n_prompts"]),
        unit=str(row["unit"]),
        method="cluster bootstrap, percentile",
        reason=None if pd.isna(row["reason"]) else str(row["reason"]),
    )


def _bootstrap(
    frame: pd.DataFrame, measures: Sequence[str], *, resamples: int, level: float, seed: int
) -> BootstrapMeans:
    values: Float[np.ndarray, "P K"] = frame[list(measures)].to_numpy(dtype=np.float64)
    return cluster_bootstrap(values, np.arange(len(frame)), draws=resamples, seed=seed, level=level)


def _estimate(
    boot: BootstrapMeans, column: int, means: PromptMeans, label: str, unit: str, null_value: float | None = None
) -> Estimate:
    found = estimate_from(boot, column, label=label, unit=unit, null_value=null_value)
    measure = str(means.frame.columns[column])
    n, lacking = means.n_finite[measure], _lacking(means, measure)
    changes: dict[str, object] = {"n": n}
    if n == 0:
        changes["reason"] = f"no finite value at {means.n_tokens} tokens: {lacking}"
    elif found.low is None:
        changes["reason"] = f"too few prompts: {found.reason}"
    if n and lacking:
        changes["method"] = f"{found.method}; not in it: {lacking}"
    return found.model_copy(update=changes)


def _lacking(means: PromptMeans, measure: str) -> str:
    """Which tokens a measure's mean lacks; empty where none."""
    infinite = means.n_infinite[measure]
    absent = means.n_tokens - means.n_finite[measure] - infinite
    told = [f"{infinite} tokens where it is infinite (one model alone excludes a token)"] if infinite else []
    return ", ".join([*told, *([f"{absent} tokens where it has no value"] if absent else [])])
