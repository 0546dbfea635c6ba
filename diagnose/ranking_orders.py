"""Estimates over rows with more than two responses: is the whole order right, and how much of it?"""

import numpy as np
import pandas as pd

from .ranking_table import NO_REFERENCE
from .report import Estimate
from .statistics import cluster_bootstrap, estimate_from

LABELS = {
    "orders_exact": ("rankings whose whole order the policy has right; a tie of the policy is never right", "share"),
    "orders_pairwise": ("pairs of a ranking that the policy has right, mean over rankings", "share"),
    "orders_tau_b": ("Kendall's tau-b of the policy's order with the given one", ""),
    "orders_exact_reference": ("the same of the reference: whole order right", "share"),
    "orders_exact_gain": ("whole orders right, policy minus reference", "share difference"),
}


def order_estimates(orders: pd.DataFrame, *, bootstrap: int, seed: int) -> dict[str, Estimate]:
    """The means of the table of `response_orders.orders_table`, over prompts; empty without such rows.

    The null value of an exact order is its chance, the mean of (orders that count as right) / n!.
    """
    if orders.empty:
        return {}
    exact, before = (orders[name].to_numpy(dtype=np.float64) for name in ("exact", "reference_exact"))
    columns = {
        "orders_exact": exact,
        "orders_pairwise": orders["pairwise"].to_numpy(dtype=np.float64),
        "orders_tau_b": orders["tau_b"].to_numpy(dtype=np.float64),
        "orders_exact_reference": before,
        "orders_exact_gain": exact - before,
    }
    chance = orders["chance_exact"].to_numpy(dtype=np.float64)
    known = chance[np.isfinite(chance)]
    nulls = {"orders_pairwise": 0.5, "orders_tau_b": 0.0, "orders_exact_gain": 0.0}
    if len(known):
        nulls |= dict.fromkeys(("orders_exact", "orders_exact_reference"), float(known.mean()))
    prompts = orders["prompt_id"].astype(str).to_numpy()
    boot = cluster_bootstrap(np.stack(list(columns.values()), axis=1), prompts, draws=bootstrap, seed=seed)
    lost = np.isnan(exact).all()
    reasons = dict.fromkeys(columns, "every ranking lost a pair" if lost else NO_REFERENCE)
    reasons["orders_tau_b"] = "every ranking lost a pair" if lost else "the policy ties all responses of every ranking"
    return {
        name: estimate_from(
            boot, j, label=LABELS[name][0], unit=LABELS[name][1], null_value=nulls.get(name), reason=reasons[name]
        )
        for j, name in enumerate(columns)
    }
