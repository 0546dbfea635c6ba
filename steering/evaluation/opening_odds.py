"""How are answers about to begin? Log-odds of openings with the concept against those without it, of every method.

Of refusal these are the openings that refuse and those that comply; nothing is generated.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...diagnose.report import Estimate
from ...diagnose.statistics import cluster_bootstrap, estimate_from
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..encoded import quadruple_encoder
from .candidates import ELICIT, WAYS, Candidate
from .evaluated_rows import EvaluatedRows
from .faithful_table import VECTOR
from .first_tokens import next_log_probs
from .references import RANDOM
from .refusals import Openings, first_tokens
from .shares import cells, missing

ODDS = "nats"
COLUMNS = ("before", "after", "change", "leaning_before", "leaning_after")
LABELS: Mapping[str, str] = {
    "before": "Log-odds of openings with the concept, unsteered",
    "after": "Log-odds of openings with the concept, steered",
    "change": "Change of the log-odds of openings with the concept",
    "leaning_before": "Prompts with an opening with the concept likelier than one without it, unsteered",
    "leaning_after": "Prompts with an opening with the concept likelier than one without it, steered",
}
NAMES: Mapping[str, str] = {"before": "opening_log_odds_before", "change": "opening_log_odds_change"}  # of the report


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpeningOdds:
    """estimates: `opening_log_odds_before_elicit`, `..._change_suppress` and so on, of the vector, nats.

    frame: a line a method and direction: COLUMNS with their intervals, over the prompts that are steered (x to elicit,
    x_c to suppress), the same before and after. Random directions have one line, the mean over them.
    """

    frame: pd.DataFrame
    estimates: Mapping[str, Estimate]


def opening_odds(
    subject: Subject,
    data: EvaluatedRows,
    methods: Mapping[str, Candidate],
    openings: Openings,
    *,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> OpeningOdds:
    """logsumexp of the log-probabilities of refusing first tokens less that of compliant ones, nats, at the last token.

    openings.refusing: of answers with the concept; tokens that both kinds begin with are left out (see first_tokens).
    Whole prompts are resampled. Raises InputError where no first token tells the two kinds.
    """
    encoder = quadruple_encoder(subject, data.text["template"], "none", "prompts")
    shown, plain, _ = first_tokens(encoder, openings)
    lines: list[dict[str, Any]] = []
    done, total = 0, len(WAYS) + sum(one.strength(way) is not None for way in WAYS for one in methods.values())
    estimates: dict[str, Estimate] = {}
    for way in WAYS:
        prompts = [row.negative if way == ELICIT else row.positive for row in data.encoded]

        def odds(candidate: Candidate | None, prompts: Any = prompts, way: str = way) -> Float[np.ndarray, "N"]:
            nonlocal done
            with nullcontext() if candidate is None else candidate.context(subject, way):
                scores = next_log_probs(subject, prompts, [*shown, *plain])
            done += 1
            if progress is not None:
                progress("openings", done, total)
            found = scores[:, : len(shown)].logsumexp(1) - scores[:, len(shown) :].logsumexp(1)
            return np.asarray(found.numpy(), dtype=np.float64)

        before = odds(None)
        draws = [one for name, one in methods.items() if name.startswith(RANDOM)]
        asked = {name: one for name, one in methods.items() if not name.startswith(RANDOM)}
        for name, candidate in asked.items():
            if candidate.strength(way) is None:
                line = {column: missing(LABELS[column], ODDS, candidate.absent(way)) for column in COLUMNS}
            else:
                line = _line(before, odds(candidate), data.clusters, resamples, seed)
            lines.append(_row(name, way, candidate.strength(way), line))
            if name == VECTOR:
                estimates |= {f"{NAMES[column]}_{way}": line[column] for column in NAMES}
        if draws:
            mean = np.mean([odds(one) for one in draws], axis=0)
            lines.append(_row(RANDOM, way, draws[0].strength(way), _line(before, mean, data.clusters, resamples, seed)))
    return OpeningOdds(frame=pd.DataFrame(lines), estimates=estimates)


def _line(
    before: Float[np.ndarray, "N"], after: Float[np.ndarray, "N2"], clusters: Any, resamples: int, seed: int
) -> dict[str, Estimate]:
    values = np.stack([before, after, after - before, before > 0, after > 0], axis=1).astype(np.float64)
    boot = cluster_bootstrap(values, clusters, draws=resamples, seed=seed)
    found = {}
    for place, column in enumerate(COLUMNS):
        share = column.startswith("leaning")
        units: dict[str, Any] = {} if share else {"unit": ODDS, "null_value": 0.0}
        found[column] = estimate_from(boot, place, label=LABELS[column], **units)
    return found


def _row(method: str, way: str, strength: float | None, line: Mapping[str, Estimate]) -> dict[str, Any]:
    found: dict[str, Any] = {"method": method, "direction": way, "strength": strength}
    for column, estimate in line.items():
        found |= cells(column, estimate)
    first = line["change"]
    return found | {"n": first.n, "n_prompts": first.n_clusters, "reason": first.reason}
