"""Sums over positions for every token of the vocabulary, and each position's likeliest tokens of q."""

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from .column_peaks import largest
from .information_rows import RowSums
from .plausible_tokens import PlausibleTokens
from .token_readings import NON_FINITE, UNSUPPORTED, TokenAttribution

DENSE = ("q_total", "policy_total", "reference_total", "policy_change")
SPARSE = ("plausible_q", "plausible_contribution", "plausible_change")
COUNTS = ("plausible_count", "top_count")


class AttributionSums:
    """What `TokenAttribution` holds, while positions are added."""

    def __init__(self, vocab: int, top: int) -> None:
        self._top = top
        self._n_positions = 0
        self._totals = {name: torch.zeros(vocab, dtype=torch.float64) for name in (*DENSE, *SPARSE)}
        self._totals |= {name: torch.zeros(vocab, dtype=torch.int64) for name in COUNTS}
        nothing = torch.zeros(0, top, dtype=torch.float64)
        self._none = (nothing.long(), nothing, nothing)
        self._lists: list[tuple[Tensor, Tensor, Tensor]] = []
        self._met = False

    def add(self, name: str, weights: Float[Tensor, "n V"], factor: Float[Tensor, "n"]) -> None:
        """Add the rows of weights, each times its factor, to the sums of that name."""
        self._move(weights.device)
        self._totals[name].addmv_(weights.T, factor)

    def add_lists(self, policy: Float[Tensor, "n V"], reference: Float[Tensor, "n V"], rows: RowSums) -> None:
        """The likeliest tokens of q at some positions."""
        counted = ~(rows.broken | rows.unsupported)
        self._met = True
        self._n_positions += int(counted.sum())

        def change(ids: Tensor) -> Tensor:
            d = policy.gather(1, ids).double() - reference.gather(1, ids).double()
            return torch.nan_to_num(d, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)

        d, ids = largest(change, rows.change_peaks, policy.shape[1], self._top)
        log_q = d - rows.change_normalizer[:, None]
        q = log_q.exp()
        contribution = torch.where(q > 0, q * (log_q + rows.support.double().log()[:, None]), 0.0)
        ids = ids.masked_fill((q == 0) | ~counted[:, None], -1)
        q, contribution = (value.masked_fill(~counted[:, None], torch.nan) for value in (q, contribution))
        self._lists.append((ids, q, contribution))
        listed = ids[ids >= 0]
        self._totals["top_count"].index_add_(0, listed, torch.ones_like(listed))

    def add_plausible(
        self,
        tokens: PlausibleTokens,
        log_share: Float[Tensor, "E"],
        size: Int[Tensor, "n"],
        status: Shaped[np.ndarray, "n"],
    ) -> None:
        """The sums over the plausible tokens of some positions; log_share is log q^S."""
        left_out = torch.as_tensor(np.isin(status, (UNSUPPORTED, NON_FINITE)), device=size.device)
        entries = (~left_out)[tokens.position].nonzero()[:, 0]
        token, position = tokens.token[entries], tokens.position[entries]
        log_share = log_share[entries]
        share = log_share.exp()
        surplus = log_share + size[position].double().log()
        values = {
            "plausible_q": share,
            "plausible_contribution": torch.where(share > 0, share * surplus, 0.0),
            "plausible_change": tokens.change[entries],
            "plausible_count": torch.ones_like(token),
        }
        for name, value in values.items():
            self._totals[name].index_add_(0, token, value)

    def take_lists(self) -> tuple[Int[Tensor, "n top"], Float[Tensor, "n top"], Float[Tensor, "n top"]]:
        """ids, q and contribution, as in `TokenAttribution`, of the positions since they were last taken."""
        lists, self._lists = self._joined(), []
        return lists

    def attribution(self, *, copied: bool = True) -> TokenAttribution:
        """Sums over all positions so far, and the lists that were not taken. ValueError: no position was added.

        copied=False: the sums themselves, which positions added later would change.
        """
        if not self._met:
            raise ValueError("no position was added to this pass")
        ids, q, contribution = self._joined()
        totals = {name: total.clone() if copied else total for name, total in self._totals.items()}
        return TokenAttribution(ids=ids, q=q, contribution=contribution, n_positions=self._n_positions, **totals)

    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        ids, q, contribution = (torch.cat(parts) for parts in zip(*(self._lists or [self._none]), strict=True))
        return ids, q, contribution

    def _move(self, device: torch.device) -> None:
        if self._totals["q_total"].device != device:
            self._totals = {name: total.to(device) for name, total in self._totals.items()}
