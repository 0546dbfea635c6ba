"""From what was read at every token to what is said of the update: pure functions, no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from .candidates import candidate_information
from .displacement import Displacement, displacement_table
from .history_sets import HistorySet
from .identities import Identity, unknown
from .information_rates import COUNTED, MEASURES, UNITS, interval, profile_table, rate_estimates
from .information_reading import InformationReading
from .power_law import LabelLaw, fit_label_law
from .report import Estimate
from .response_identities import OPENING, response_identities
from .statistics import cluster_bootstrap, estimate_from

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_ENDS = "no end of a sample is scored (eos='none'): without it the identity does not hold"
STRIPS = 3  # responses of each source that are shown token by token
CANDIDATES = ("source", "prompt_id", "n_candidates", "n_repeats", "normalized_entropy", "ess", "history", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def options(self) -> dict[str, Any]:
        return {"resamples": self.resamples, "level": self.level, "seed": self.seed}


def rates_by_source(
    positions: pd.DataFrame, resampling: Resampling, measures: Sequence[str] = MEASURES
) -> dict[str, dict[str, Estimate]]:
    """source -> measure -> rate, sources in the order in which they stand."""
    return {
        str(source): rate_estimates(part, str(source), measures=measures, **resampling.options())
        for source, part in positions.groupby("source", sort=False)
    }


def update_rows(
    positions: pd.DataFrame, before: str, after: str, resampling: Resampling, names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rates of one update of a chain as rows of a table: over all positions, and by bucket (`names`)."""
    step = {"from": before, "to": after}
    rows = [
        {**step, "source": source, "bucket": "all", "measure": measure, **interval(estimate)}
        for source, found in rates_by_source(positions, resampling).items()
        for measure, estimate in found.items()
    ]
    if not names:
        return rows
    parts = profile_table(positions, names, **resampling.options())
    parts = parts[parts["measure"].isin(MEASURES)]
    return rows + [{**step, **row} for row in parts.to_dict("records")]


def response_table(reading: InformationReading, given: HistorySet) -> pd.DataFrame:
    """A row a response: prompt_id, source, truncated, n_tokens, log_ratio (nats, of the whole response)."""
    return pd.DataFrame(
        {
            "prompt_id": [history.prompt_id for history in given.histories],
            "source": [history.source for history in given.histories],
            "truncated": [history.truncated for history in given.histories],
            "n_tokens": [len(history.response_ids) for history in given.histories],
            "key": [history.response_ids for history in given.histories],
            "log_ratio": reading.log_ratios,
        }
    )


def pair_checks(
    responses: pd.DataFrame, given: HistorySet, *, beta: float | None, resampling: Resampling, in_sample: bool = False
) -> tuple[LabelLaw, Displacement] | None:
    """The label law and the displacement of the pairs, which stand first; None without pairs.

    Whether chosen answers fell beyond what sampling predicts is not said of cut samples, nor where no end is scored.
    """
    n = given.n_pairs
    if n == 0:
        return None
    pairs = responses.iloc[: 2 * n]
    chosen, rejected = pairs["log_ratio"].to_numpy()[::2], pairs["log_ratio"].to_numpy()[1::2]
    usable = np.isfinite(chosen) & np.isfinite(rejected)
    clusters = pairs["prompt_id"].to_numpy()[::2][usable]
    lengths = pairs["n_tokens"].to_numpy().reshape(-1, 2)[usable]
    chosen, rejected = chosen[usable], rejected[usable]
    drawn = responses[(responses["source"] == "reference") & np.isfinite(responses["log_ratio"])]
    cut = int(drawn["truncated"].sum())
    draws, seed = resampling.resamples, resampling.seed
    law = fit_label_law(
        chosen - rejected,
        clusters,
        labels=given.preferences[usable],
        in_sample=in_sample,
        trained_beta=beta,
        bootstrap=draws,
        seed=seed,
        level=resampling.level,
    )
    moved = displacement_table(
        chosen,
        rejected,
        lengths,
        clusters,
        reference_sample_log_ratio=drawn["log_ratio"].to_numpy() if len(drawn) else None,
        sample_clusters=drawn["prompt_id"].to_numpy() if len(drawn) else None,
        bootstrap=draws,
        seed=seed,
        level=resampling.level,
    )
    if moved.beyond_sampling and (cut or not given.ends_scored):  # a part of -KL is smaller: it proves nothing alone
        why = f"{cut} of {len(drawn)} samples of the reference were cut" if cut else "no end of a sample is scored"
        why += ", so that whole ones fall by as much or more than is predicted"
        moved = replace(moved, beyond_sampling=None, reason=why)
    return law, moved


def sample_identities(reading: InformationReading, responses: pd.DataFrame, given: HistorySet) -> list[Identity]:
    """The identities over drawn responses; not judged where none were given, or where their ends are not scored.

    Cut samples are draws of models that are stopped: the identities hold of them. Without the end of those that came
    to theirs, they do not.
    """
    drawn = {
        name: responses[(responses["source"] == name) & np.isfinite(responses["log_ratio"])]
        for name in ("reference", "policy")
    }
    if not given.ends_scored and any((~part["truncated"]).any() for part in drawn.values()):
        bounds = {"reference_samples": 0.0, "policy_samples": 0.0, "opening_mass_1": 1.0}
        return [unknown(name, bound, NO_ENDS) for name, bound in bounds.items()]
    return response_identities(
        reference_samples=_or_none(drawn["reference"], "log_ratio"),
        reference_clusters=_or_none(drawn["reference"], "prompt_id"),
        policy_samples=_or_none(drawn["policy"], "log_ratio"),
        policy_clusters=_or_none(drawn["policy"], "prompt_id"),
        opening=_opening(reading.positions, drawn["reference"]),
    )


def candidate_sets(responses: pd.DataFrame, resampling: Resampling) -> tuple[pd.DataFrame, dict[str, Estimate]]:
    """The candidate-set information of every prompt that has responses of one source, and its mean over prompts.

    Whole responses and cut ones are not mixed: the cut ones of a prompt are left out where it has a whole one.
    Chosen and rejected answers are one each: those sources have no sets.
    """
    rows = []
    drawn = responses[~responses["source"].isin(("chosen", "rejected"))]
    for (source, prompt), part in drawn.groupby(["source", "prompt_id"], sort=True):
        whole = part if part["truncated"].all() else part[~part["truncated"]]
        whole = whole[np.isfinite(whole["log_ratio"])]
        if not len(whole):
            continue
        different = whole.drop_duplicates("key")  # a repeat read in another batch may differ by rounding
        found = candidate_information(different["log_ratio"].to_numpy())
        rows.append(
            {
                "source": source,
                "prompt_id": prompt,
                "n_candidates": found.n_candidates,
                "n_repeats": len(whole) - len(different),
                "normalized_entropy": found.normalized_entropy,
                "ess": found.ess,
                "history": int(different.index[found.argmax]),
                "reason": found.reason,
            }
        )
    table = pd.DataFrame(rows, columns=list(CANDIDATES)).astype({"normalized_entropy": float, "ess": float})
    return table, {
        str(source): _candidate_mean(part, str(source), resampling) for source, part in table.groupby("source")
    }


def left_out(given: HistorySet, positions: pd.DataFrame) -> dict[str, int]:
    """Reason -> rows set aside, and positions that enter no mean."""
    found: dict[str, int] = {}
    for row in given.invalid:
        found[row.reason] = found.get(row.reason, 0) + 1
    statuses = positions["status"].value_counts()
    return found | {f"{name}_positions": int(n) for name, n in statuses.items() if name not in COUNTED}


def strip_texts(positions: pd.DataFrame, tokenizer: "PreTrainedTokenizerBase", given: HistorySet) -> pd.DataFrame:
    """The responses shown token by token: of each source those of largest KL a token, of at least 5 tokens."""
    means = counted_means(positions)
    rows = []
    for _, part in means.groupby("source", sort=False):
        for history in part.sort_values("kl", ascending=False)["history"].head(STRIPS):
            ids = given.histories[int(history)].response_ids
            rows += [
                {"history": int(history), "position": k, "text": tokenizer.decode([token])}
                for k, token in enumerate(ids, 1)
            ]
    return pd.DataFrame(rows, columns=["history", "position", "text"])


def counted_means(positions: pd.DataFrame) -> pd.DataFrame:
    """Mean KL of every response of at least 5 counted tokens."""
    some = positions[positions["status"].isin(COUNTED)]
    found = some.groupby(["source", "history"], sort=False)["kl"].agg(["mean", "size"]).reset_index()
    return found[found["size"] >= 5].rename(columns={"mean": "kl"})


def _candidate_mean(part: pd.DataFrame, source: str, resampling: Resampling) -> Estimate:
    values: Float[np.ndarray, "P 1"] = part["normalized_entropy"].to_numpy()[:, None]
    boot = cluster_bootstrap(
        values, part["prompt_id"].to_numpy(), draws=resampling.resamples, seed=resampling.seed, level=resampling.level
    )
    return estimate_from(
        boot,
        0,
        label=f"entropy of q over a prompt's {source} responses, share of its largest; 1: none is singled out",
        unit=UNITS["normalized_entropy"],
        null_value=1.0,
        reason="no prompt has two different responses",
    )


def _opening(positions: pd.DataFrame, drawn: pd.DataFrame) -> Float[np.ndarray, "s k"] | None:
    """Log-ratios of the first tokens of the reference's samples, NaN past the end."""
    if not len(drawn):
        return None
    some = positions[positions["history"].isin(drawn.index) & (positions["position"] <= OPENING)]
    wide = some.pivot(index="history", columns="position", values="log_ratio").reindex(drawn.index)
    return wide.to_numpy(dtype=np.float64)


def _or_none(table: pd.DataFrame, column: str) -> Any:
    return table[column].to_numpy() if len(table) else None


def flat_rates(rates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """`<source>_<measure>` -> rate, as a section names them."""
    return {f"{source}_{name}": estimate for source, found in rates.items() for name, estimate in found.items()}
