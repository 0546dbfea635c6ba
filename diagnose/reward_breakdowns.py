"""Where do implicit and explicit reward part, and on what kind of pair? Tables of the reward report."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float64

from .ranking import credit
from .ranking_breakdowns import QUARTERS
from .reward_rows import RewardRows
from .statistics import cluster_bootstrap, estimate_from

KINDS = {
    "length": "difference of length of the two completions, |tokens of chosen - tokens of rejected|",
    "overlap": "overlap of the two completions, Jaccard index of their sets of tokens",
    "difficulty": "difficulty c = log pi_ref(rejected) - log pi_ref(chosen), nats",
}
_SHARES = ("disagreement", "accuracy_implicit", "accuracy_explicit", "gap")


def pairs_table(settings: Mapping[str, RewardRows], *, beta: float, ties: str) -> pd.DataFrame:
    """A row a pair and setting: both margins, who is right, and what kind of pair it is."""
    parts = []
    for name, rows in settings.items():
        frame = rows.frame
        parts.append(
            pd.DataFrame(
                {
                    "setting": np.full(len(rows), name, dtype=object),
                    "pair_id": frame["pair_id"].astype(object),
                    "prompt_id": frame["prompt_id"].astype(object),
                    "implicit_margin": beta * rows.implicit_margin,
                    "explicit_margin": rows.explicit_margin,
                    "policy_margin": rows.policy_margin,
                    "implicit_right": np.asarray(credit(rows.implicit_margin, ties)),
                    "explicit_right": np.asarray(credit(rows.explicit_margin, ties)),
                    "length_difference": rows.length_difference,
                    "overlap": rows.overlap,
                    "difficulty": rows.difficulty,
                    "preference": rows.preference,
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    for name in ("setting", "pair_id", "prompt_id"):
        table[name] = pd.Series(table[name].tolist(), dtype=str)  # pandas' own text type: the same after Parquet
    return table


def agreement_table(settings: Mapping[str, RewardRows], *, ties: str) -> pd.DataFrame:
    """setting, implicit_right, explicit_right, n, share: four rows a setting with both rewards.

    A tie is right with ties="ge" alone.
    """
    rows = []
    for name, setting in settings.items():
        implicit, explicit = (np.asarray(credit(d, ties)) for d in (setting.implicit_margin, setting.explicit_margin))
        known = np.isfinite(implicit + explicit)
        for first in (True, False) if known.any() else ():
            for second in (True, False):
                n = int((known & ((implicit == 1) == first) & ((explicit == 1) == second)).sum())
                rows.append((name, first, second, n, n / int(known.sum())))
    names = ["setting", "implicit_right", "explicit_right", "n", "share"]
    return pd.DataFrame(rows, columns=names).astype(
        {"setting": str, "implicit_right": bool, "explicit_right": bool, "n": int, "share": float}
    )


def disagreement_table(settings: Mapping[str, RewardRows], *, ties: str, bootstrap: int, seed: int) -> pd.DataFrame:
    """How often the rewards disagree, and which is right more often, inside quarters of the pairs by `KINDS`.

    Columns setting, kind, quarter (1 = smallest), lowest, highest (of the kind's value), n, then disagreement,
    accuracy_implicit, accuracy_explicit and gap, each with _low and _high. Equal values are never split.
    """
    found = []
    for name, rows in settings.items():
        implicit, explicit = (np.asarray(credit(d, ties)) for d in (rows.implicit_margin, rows.explicit_margin))
        values = np.stack([(implicit != explicit).astype(float), implicit, explicit, explicit - implicit], axis=1)
        kinds = {"length": np.abs(rows.length_difference), "overlap": rows.overlap, "difficulty": rows.difficulty}
        for kind, measure in kinds.items():
            known = np.isfinite(measure) & np.isfinite(values).all(1)
            for quarter, inside in _quarters(measure, known):
                boot = cluster_bootstrap(values[inside], rows.clusters[inside], draws=bootstrap, seed=seed)
                row: dict[str, object] = {"setting": name, "kind": kind, "quarter": quarter}
                row |= {"lowest": float(measure[inside].min()), "highest": float(measure[inside].max())}
                row["n"] = int(inside.sum())
                for j, share in enumerate(_SHARES):
                    unit = "share difference" if share == "gap" else "share"
                    estimate = estimate_from(boot, j, label=share, unit=unit)
                    ends = zip(("", "_low", "_high"), (estimate.value, estimate.low, estimate.high), strict=True)
                    row |= {f"{share}{end}": math.nan if value is None else value for end, value in ends}
                found.append(row)
    numbers = [f"{share}{end}" for share in _SHARES for end in ("", "_low", "_high")]
    names = ["setting", "kind", "quarter", "lowest", "highest", "n", *numbers]
    types = {"setting": str, "kind": str, "quarter": int, "n": int}
    return pd.DataFrame(found, columns=names).astype(types | dict.fromkeys(["lowest", "highest", *numbers], float))


def _quarters(measure: Float64[np.ndarray, "N"], known: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(1..4, rows) for the quarters that hold rows."""
    if not known.any():
        return []
    place = np.searchsorted(np.quantile(measure[known], QUARTERS), measure) + 1
    return [(q, inside) for q in (1, 2, 3, 4) if (inside := known & (place == q)).any()]
