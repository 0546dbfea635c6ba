"""What every save of a series makes of the same held-out pairs: the values that the plain rules read."""

from collections.abc import Sequence

import numpy as np

from ..probes.pair_table import PairScores
from .ranking import credit, dpo_loss
from .spinal_series import HeldOut


def held_out_values(tables: Sequence[PairScores], beta: float, *, ties: str = "half") -> HeldOut:
    """Credit of the ranking and DPO loss of every save on the pairs that all saves have; the first row is step 0.

    Human ties are left out. The start is the reference itself: its loss is log 2 on every pair.
    """
    ids = [set(table["pair_id"]) for table in tables]
    common = set.intersection(*ids)
    first = tables[0].frame
    judged = first[first.pair_id.isin(common) & ~first.human_tie.astype(bool)]
    order = judged.pair_id.tolist()
    credits, losses = [], []
    for number, table in enumerate([tables[0], *tables]):
        frame = table.frame.set_index("pair_id").loc[order]
        chosen, rejected = (frame[f"policy_{side}"].to_numpy(dtype=float) for side in ("chosen", "rejected"))
        ref_chosen, ref_rejected = (frame[f"reference_{side}"].to_numpy(dtype=float) for side in ("chosen", "rejected"))
        if number == 0:
            chosen, rejected = ref_chosen, ref_rejected
        credits.append(np.asarray(credit(chosen - rejected, ties), dtype=float))
        losses.append(np.asarray(dpo_loss(chosen - ref_chosen, rejected - ref_rejected, beta), dtype=float))
    return HeldOut(
        clusters=judged.prompt_id.to_numpy(dtype=object).astype(str),
        ranking_accuracy=np.stack(credits),
        dpo_loss=np.stack(losses),
    )
