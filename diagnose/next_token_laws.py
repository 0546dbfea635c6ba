"""The next token after K histories under policy and reference: log-ratios, their normaliser, and draws."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

BLOCK_ENTRIES = 2**20  # logits of a model in float64 at a time: 8 MB
BELOW_ONE = 1 - 2.0**-50  # a level that rounding makes 1 would point behind the last token


class NoRatioError(ValueError):
    """After a history the two models have no finite ratio to draw from; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """One token for each of M histories, and its logarithms in nats."""

    tokens: Int[np.ndarray, "M"]
    ratio: Float[np.ndarray, "M"]  # log policy - log reference, each normalised over the whole vocabulary
    policy: Float[np.ndarray, "M"]  # log policy
    proposal: Float[np.ndarray, "M"]  # log of what it was drawn from


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Laws:
    """Both models' next-token distributions after K histories; float64 is made of some rows at a time."""

    policy: Shaped[Tensor, "K V"]  # logits
    reference: Shaped[Tensor, "K V"]
    excluded: Bool[Tensor, "V"]  # left out of every sum; the probabilities are normalised with them
    log_normalizer: Float[np.ndarray, "K"]  # log Z_t, Z_t = sum of policy / reference
    log_support: float | None  # log of the number of tokens in the sums; None where histories differ in it

    def draw(
        self, rows: Int[np.ndarray, "M"], levels: Float[np.ndarray, "M"], proposal: str, temperature: int | float = 1.0
    ) -> Drawn:
        """A token after each of the histories `rows`, by inversion at `levels` in [0, 1).

        proposal: "local" (ratio / Z_t), "policy" or "reference" at `temperature`, without what is excluded and what the
        policy cannot say.
        """
        parts = []
        for at in _blocks(len(rows), _block(self.policy)):
            ratio, policy, law = self._proposal(rows[at], proposal, temperature)
            edges = law.exp().cumsum(-1)
            level = torch.from_numpy(levels[at]).to(edges).clamp(max=BELOW_ONE)[:, None]
            parts.append(_picked(torch.searchsorted(edges, level * edges[:, -1:], right=True), ratio, policy, law))
        return _joined(parts)

    def at(self, tokens: Int[np.ndarray, "K"], proposal: str, temperature: int | float = 1.0) -> Drawn:
        """What `draw` says of these tokens, one after each history."""
        parts = []
        for rows in _blocks(len(tokens), _block(self.policy)):
            ratio, policy, law = self._proposal(rows, proposal, temperature)
            parts.append(_picked(torch.from_numpy(tokens[rows])[:, None].to(law.device), ratio, policy, law))
        return _joined(parts)

    def _proposal(
        self, rows: Int[np.ndarray, "M"], proposal: str, temperature: int | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log policy - log reference, log policy, and the log of the proposal, [M, V]."""
        ratio, policy, reference = _log_ratio(self.policy, self.reference, self.excluded, rows)
        logits = {"local": ratio, "policy": policy / temperature, "reference": reference / temperature}[proposal]
        return ratio, policy, logits.masked_fill(ratio.isneginf(), -torch.inf).log_softmax(-1)


def laws_of(policy_logits: Any, reference_logits: Any, n_rows: int, excluded_ids: Sequence[int] = ()) -> Laws:
    """Laws of the logits [K, V] of both models after `n_rows` = K histories, torch or numpy.

    An id that both exclude (-inf) leaves the sums as `excluded_ids` do. ValueError: other shapes; NaN or +inf; an id
    that the reference alone excludes (its ratio is infinite); nothing left to say (the last three as NoRatioError);
    excluded ids outside the vocabulary.
    """
    policy, reference = (torch.as_tensor(logits) for logits in (policy_logits, reference_logits))
    if policy.ndim != 2 or policy.shape != reference.shape or len(policy) != n_rows:
        raise ValueError(
            f"a step gives logits [K, V] for its {n_rows} histories, got {tuple(policy.shape)} of the policy and "
            f"{tuple(reference.shape)} of the reference"
        )
    outside = [i for i in excluded_ids if not 0 <= i < policy.shape[1]]
    if outside:
        raise ValueError(f"excluded id {outside[0]} is not among the {policy.shape[1]} ids of the logits")
    reference = reference.to(policy.device)
    excluded = torch.zeros(policy.shape[1], dtype=torch.bool, device=policy.device)
    excluded[list(excluded_ids)] = True
    log_z, counts = [], []
    for rows in _blocks(n_rows, _block(policy)):
        ratio, _, _ = _log_ratio(policy, reference, excluded, rows)
        if ratio.isnan().any():
            raise NoRatioError("a step gave NaN or +inf logits, or excluded every id")
        if ratio.isposinf().any():
            raise NoRatioError("the reference excludes (-inf) an id that the policy allows: their ratio is infinite")
        log_z.append(ratio.logsumexp(-1).cpu().numpy())
        both = (policy[rows].isneginf() & reference[rows].isneginf()) | excluded
        counts.append((~both).sum(-1).cpu().numpy())
    log_normalizer, support = np.concatenate(log_z), np.concatenate(counts)
    if np.isneginf(log_normalizer).any():
        raise NoRatioError("after a history no id is left that the policy can say and that is not excluded")
    same = (support == support[0]).all()
    return Laws(
        policy=policy,
        reference=reference,
        excluded=excluded,
        log_normalizer=log_normalizer,
        log_support=math.log(support[0]) if same else None,
    )


def _picked(token: Tensor, ratio: Tensor, policy: Tensor, law: Tensor) -> list[np.ndarray]:
    """Columns of `Drawn` for one token a row, [M, 1]."""
    return [token[:, 0].cpu().numpy(), *(part.gather(-1, token)[:, 0].cpu().numpy() for part in (ratio, policy, law))]


def _joined(parts: list[list[np.ndarray]]) -> Drawn:
    tokens, ratio, policy, law = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Drawn(tokens=tokens, ratio=ratio, policy=policy, proposal=law)


def _block(logits: Tensor) -> int:
    return max(1, BLOCK_ENTRIES // logits.shape[1])


def _blocks(n_rows: int, size: int) -> Iterator[Int[np.ndarray, "_"]]:
    return (np.arange(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


@torch.no_grad()
def _log_ratio(
    policy: Tensor, reference: Tensor, excluded: Tensor, rows: Int[np.ndarray, "M"]
) -> tuple[Tensor, Tensor, Tensor]:
    """log policy - log reference of some rows, -inf where excluded or never said; and both logarithms, float64."""
    at = torch.from_numpy(rows).to(policy.device)
    log_p, log_r = (logits[at].double().log_softmax(-1) for logits in (policy, reference))
    nowhere = log_p.isneginf() & log_r.isneginf()  # -inf - -inf
    return (log_p - log_r).masked_fill(nowhere | excluded, -torch.inf), log_p, log_r
