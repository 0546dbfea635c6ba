"""What changed among the tokens that can be said? The few entries of S at each position, kept as a sparse list."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from .column_peaks import column_entries, largest
from .information_rows import RowSums
from .token_readings import FEW, FLAT, NON_FINITE, OK, UNSUPPORTED, TokenTilt

FLAT_SPREAD = 1e-5  # nats of log ref over S; float32 logits of size 16 are rounded at 1e-6
Reaching = Callable[[Tensor, Tensor, RowSums, Tensor, Tensor], tuple[Tensor, Tensor]]  # as reaching_tokens
SLACK = 1e-9  # nats by which candidates may miss the threshold, before their probabilities decide


@dataclass(frozen=True, slots=True, kw_only=True)
class PlausibleTokens:
    """The plausible tokens of some positions, one entry each, in the order of the positions; float64."""

    position: Int[Tensor, "E"]
    token: Int[Tensor, "E"]
    policy: Float[Tensor, "E"]  # log pi
    reference: Float[Tensor, "E"]  # log ref

    @property
    def change(self) -> Float[Tensor, "E"]:
        """d' = log pi - log ref, nats; infinite where one model excludes the token."""
        return self.policy - self.reference

    def totals(self, values: Tensor, n: int) -> Float[Tensor, "n"]:
        """Sum of an entry's value over S, for each of n positions."""
        return torch.zeros(n, dtype=torch.float64, device=values.device).index_add_(0, self.position, values.double())

    def shares(self, n: int) -> tuple[Float[Tensor, "E"], Float[Tensor, "n"]]:
        """log q^S of every entry and the entropy of q^S at each position; an infinite d makes a point mass."""
        change = self.change
        lowest = torch.full((n,), -torch.inf, dtype=torch.float64, device=change.device)
        peak = lowest.scatter_reduce(0, self.position, change, "amax")
        peak = torch.where(peak.isfinite(), peak, 0.0)[self.position]
        change = change - peak
        weight = change.exp()
        total = self.totals(weight, n)
        mean = self.totals(torch.where(weight > 0, weight * change, 0.0), n) / total
        log_share = torch.where(weight > 0, change - total.log()[self.position], -torch.inf)
        return log_share, torch.nan_to_num(total.log() - mean, nan=0.0).clamp(min=0.0)


def parse_plausible(plausible: float | str) -> tuple[int | None, float]:
    """(k, 0) of "topk", or (None, threshold). ValueError for anything else."""
    if isinstance(plausible, str):
        found = re.fullmatch(r"top([1-9]\d*)", plausible)
        if found is None:
            raise ValueError(f"plausible is a probability or 'top64' (any number), got {plausible!r}")
        return int(found[1]), 0.0
    if not 0 < plausible < 1:
        raise ValueError(f"plausible is a probability in (0, 1), or 'top64', got {plausible}")
    return None, plausible


def find_plausible(
    policy: Float[Tensor, "n V"],
    reference: Float[Tensor, "n V"],
    rows: RowSums,
    top: int | None,
    threshold: float,
    reaching: "Reaching | None" = None,
) -> PlausibleTokens:
    """The tokens with pi or ref >= threshold, or those among either model's `top` likeliest; none in a broken row.

    reaching: what finds candidates by their logits; None: reaching_tokens.
    """
    if top is None:
        lowest = math.log(threshold) - SLACK
        bounds = [
            (normalizer + lowest).masked_fill(rows.broken, torch.inf)
            for normalizer in (rows.policy_normalizer, rows.reference_normalizer)
        ]
        position, token = (reaching or reaching_tokens)(policy, reference, rows, *bounds)
    else:
        position, token = _listed_by_either(policy, reference, rows, top)
    log_p = policy[position, token].double() - rows.policy_normalizer[position]
    log_r = reference[position, token].double() - rows.reference_normalizer[position]
    if top is None:
        kept = ((log_p.exp() >= threshold) | (log_r.exp() >= threshold)).nonzero()[:, 0]
        position, token, log_p, log_r = (values[kept] for values in (position, token, log_p, log_r))
    return PlausibleTokens(position=position, token=token, policy=log_p, reference=log_r)


def reaching_tokens(
    policy: Float[Tensor, "n V"],
    reference: Float[Tensor, "n V"],
    rows: RowSums,
    policy_bound: Float[Tensor, "n"],
    reference_bound: Float[Tensor, "n"],
) -> tuple[Int[Tensor, "E"], Int[Tensor, "E"]]:
    """Positions and tokens where either model's logit is at least its bound; position by position."""
    bounds = policy_bound, reference_bound
    hit = (rows.policy_peaks >= bounds[0][:, None]) | (rows.reference_peaks >= bounds[1][:, None])
    position, column = hit.nonzero(as_tuple=True)
    token, there = column_entries(column, policy.shape[1])
    offset = position[:, None] * policy.shape[1]
    z_policy, z_reference = (z.take(token + offset) for z in (policy, reference))
    reach = (z_policy >= bounds[0][position][:, None]) | (z_reference >= bounds[1][position][:, None])
    entry, line = (reach & there).nonzero(as_tuple=True)
    return position[entry], token[entry, line]


def _listed_by_either(policy: Tensor, reference: Tensor, rows: RowSums, top: int) -> tuple[Tensor, Tensor]:
    """Positions and tokens of either model's list of the `top` likeliest, each once."""
    lists = []
    for z, peaks in ((policy, rows.policy_peaks), (reference, rows.reference_peaks)):
        values, ids = largest(partial(z.gather, 1), peaks, z.shape[1], min(top, z.shape[1]))
        lists.append(ids.masked_fill(values.isneginf(), -1))  # a list never has a token that its model excludes
    ids = torch.cat(lists, dim=1).sort(dim=1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    position, column = ((ids >= 0) & ~again & ~rows.broken[:, None]).nonzero(as_tuple=True)
    return position, ids[position, column]


# ---------------------------------------------------------------------------------------------------------- the tilt


def tilt_over(tokens: PlausibleTokens, size: Int[Tensor, "n"], status: Shaped[np.ndarray, "n"]) -> TokenTilt:
    """The tilt of every position from its plausible tokens; `status` is that of the positions' information."""
    n = len(size)
    infinite = tokens.totals(~tokens.change.isfinite(), n) > 0
    usable = ~infinite & torch.as_tensor((status != UNSUPPORTED) & (status != NON_FINITE), device=size.device)
    spread = _spread(tokens, n)
    line = usable & (size >= 3) & (spread > FLAT_SPREAD)
    change = torch.where(line[tokens.position], tokens.change, 0.0)  # no infinity enters a sum
    reference = torch.where(line[tokens.position], tokens.reference, 0.0)

    weighted = _fit(tokens, reference, change, (tokens.policy.exp() + tokens.reference.exp()) / 2, n)
    plain = _fit(tokens, reference, change, torch.ones_like(reference), n)
    names = ("slope", "r_squared", "unweighted_slope", "unweighted_r_squared")
    values = (value.masked_fill(~line, torch.nan) for value in (*weighted, *plain))

    why = np.full(n, OK, dtype="<U11")
    why[(spread <= FLAT_SPREAD).cpu().numpy()] = FLAT
    why[(size < 3).cpu().numpy()] = FEW
    why[(~usable).cpu().numpy()] = UNSUPPORTED
    why[status == NON_FINITE] = NON_FINITE
    return TokenTilt(**dict(zip(names, values, strict=True)), status=why)


def _spread(tokens: PlausibleTokens, n: int) -> Tensor:
    """Largest minus smallest log ref over S, nats; -inf where S is empty."""
    lowest = torch.full((n,), -torch.inf, dtype=torch.float64, device=tokens.reference.device)
    high = lowest.scatter_reduce(0, tokens.position, tokens.reference, "amax")
    return high + lowest.scatter_reduce(0, tokens.position, -tokens.reference, "amax")


def _fit(tokens: PlausibleTokens, x: Tensor, y: Tensor, weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Slope and R^2 of y on x with intercept, weighted, at each position."""
    weight = weight / tokens.totals(weight, n)[tokens.position]
    x = x - tokens.totals(weight * x, n)[tokens.position]
    y = y - tokens.totals(weight * y, n)[tokens.position]
    xx, xy, yy = (tokens.totals(weight * product, n) for product in (x * x, x * y, y * y))
    return xy / xx, (xy**2 / (xx * yy)).clamp(max=1.0)
