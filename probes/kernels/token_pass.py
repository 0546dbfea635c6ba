"""One reading of the logits of two models, from which information, tilt and attribution all come."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .attribution_sums import AttributionSums
from .backends import chosen
from .information_rows import ARRAYS, RowSums, row_sums
from .plausible_tokens import PlausibleTokens, find_plausible, parse_plausible, reaching_tokens, tilt_over
from .token_readings import (
    DEGENERATE,
    NON_FINITE,
    OK,
    UNSUPPORTED,
    TokenAttribution,
    TokenInformation,
    TokenTilt,
)

if TYPE_CHECKING:
    from .numba_rows import FusedRows

BLOCK_ENTRIES = 2**16  # logits of a model in float64 at a time: half a megabyte an array, which a core's cache holds
FUSED_ROWS = 64  # positions that the compiled pass sums at a time: starting its threads costs as much as a few
BLOCK_ROWS = 16  # positions whose plausible tokens are worked on together: of 2,000 each they take 50 MB


class InformationPass:
    """One reading of two models' logits, some positions at a time: information, tilt and, where wanted, attribution.

    `vocab`: tokens of the shared tokenizer; logits beyond it are padding. `plausible`: S, as in `token_information`.
    `top`: the likeliest tokens of q kept a position; None leaves the attribution out. `entries`: logits of a model in
    float64 at a time, at least one position's; memory beside the results is a few times that and some hundred
    numbers for each plausible token of BLOCK_ROWS positions. `backend`: "eager" (torch), "numba" (compiled sums, the
    same to 1e-12: float32 on the CPU, alignscope[numba]), "auto".
    ValueError: vocab < 2, plausible outside (0, 1) and not "topk", top < 1; where logits are added, a backend that is
    unknown or cannot be used.

    >>> reading = InformationPass(2, top=1)
    >>> reading.update(torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2))
    >>> reading.update(torch.zeros(1, 2), torch.zeros(1, 2))
    >>> [round(value, 6) for value in reading.information().entropy.tolist()]
    [0.562335, 0.693147]
    """

    def __init__(
        self,
        vocab: int,
        *,
        plausible: float | str = 1e-4,
        top: int | None = 10,
        entries: int = BLOCK_ENTRIES,
        backend: str = "auto",
    ) -> None:
        if vocab < 2:
            raise ValueError(f"vocab is the number of shared tokens, at least 2, got {vocab}")
        if top is not None and top < 1:
            raise ValueError(f"top is the number of tokens kept a position, at least 1, got {top}")
        self._vocab, self._rows = vocab, max(1, entries // vocab)
        self._listed, self._threshold = parse_plausible(plausible)
        self._work: Tensor | None = None
        self._backend = backend
        self._fused: FusedRows | None = None
        self._information: list[dict[str, Any]] = []
        self._tilts: list[dict[str, Any]] = []
        self._sums = None if top is None else AttributionSums(vocab, min(top, vocab))

    @torch.no_grad()
    def update(
        self,
        policy_logits: Float[Tensor, "n columns"],
        reference_logits: Float[Tensor, "n others"],
        *,
        sums: AttributionSums | None = None,
    ) -> None:
        """Add positions; entries from `vocab` on are left out. ValueError: fewer columns than `vocab`.

        sums: what gets the attribution of these positions in place of the pass's own (one pass then serves groups of
        positions that are summed apart).
        """
        if min(policy_logits.shape[1], reference_logits.shape[1]) < self._vocab:
            raise ValueError(
                f"the logits have {policy_logits.shape[1]} and {reference_logits.shape[1]} columns, "
                f"fewer than the {self._vocab} shared tokens"
            )
        whole = policy_logits[:, : self._vocab], reference_logits[:, : self._vocab]
        for start in range(0, max(1, len(policy_logits)), FUSED_ROWS):
            policy, reference = (z[start : start + FUSED_ROWS] for z in whole)
            fused = self._fused_rows(policy, reference, sums or self._sums)
            for first in range(0, max(1, len(policy)), BLOCK_ROWS):
                some = slice(first, min(first + BLOCK_ROWS, len(policy)))
                self._add(policy[some], reference[some], sums or self._sums, fused and fused.at(some))

    def information(self) -> TokenInformation:
        """Of all positions so far (since the last `take`), in their order."""
        return TokenInformation(**_concatenated(self._information))

    def tilt(self) -> TokenTilt:
        """Of all positions so far (since the last `take`), in their order."""
        return TokenTilt(**_concatenated(self._tilts))

    def take(self) -> tuple[TokenInformation, TokenTilt]:
        """Of the positions since the last take, in their order. The pass forgets them, sums apart: memory is freed."""
        taken = self.information(), self.tilt()
        self._information, self._tilts = [], []
        return taken

    def attribution(self) -> TokenAttribution:
        """Of all positions so far. ValueError where the pass was told to leave it out."""
        if self._sums is None:
            raise ValueError("this pass keeps no attribution: give it top, the number of tokens kept a position")
        return self._sums.attribution()

    def _add(self, policy: Tensor, reference: Tensor, sums: AttributionSums | None, fused: RowSums | None) -> None:
        """fused: the sums, where the compiled pass has made them and added its own to `sums`."""
        rows = fused or self._row_sums(policy, reference, sums)
        reaching = reaching_tokens if fused is None or self._fused is None else self._fused.reaching_tokens
        tokens = find_plausible(policy, reference, rows, self._listed, self._threshold, reaching)
        log_share, plausible_entropy = tokens.shares(len(policy))
        values = _fields(rows, tokens, plausible_entropy)
        self._information.append(values)
        self._tilts.append(_named(tilt_over(tokens, values["plausible_size"], values["status"])))
        if sums is not None:
            sums.add_lists(policy, reference, rows)
            sums.add_plausible(tokens, log_share, values["plausible_size"], values["status"])

    def _fused_rows(self, policy: Tensor, reference: Tensor, sums: AttributionSums | None) -> RowSums | None:
        """By the compiled pass; None where that is not for these logits, or one of them is not finite."""
        dtype = torch.promote_types(torch.promote_types(policy.dtype, reference.dtype), torch.float32)
        if chosen(self._backend, dtype, policy.device) == "eager":
            return None
        if self._fused is None:
            from .numba_rows import FusedRows

            self._fused = FusedRows()
        rows = self._fused(policy, reference, sums)
        if rows is None:
            self._backend = "eager"  # tokens that are masked are so everywhere: nothing is read twice from here on
        return rows

    def _row_sums(self, policy: Tensor, reference: Tensor, sums: AttributionSums | None) -> RowSums:
        parts = []
        for start in range(0, max(1, len(policy)), self._rows):
            some = slice(start, min(start + self._rows, len(policy)))
            work = self._arrays(some.stop - start, policy.device)
            parts.append(row_sums(policy[some], reference[some], work, sums))
        return RowSums(**_concatenated([_named(part) for part in parts]))

    def _arrays(self, n: int, device: torch.device) -> Tensor:
        """Float64 arrays to work in: asking the system for memory again and again costs more than the sums."""
        if self._work is None or self._work.device != device:
            self._work = torch.empty(ARRAYS * self._rows * self._vocab, dtype=torch.float64, device=device)
        return self._work[: ARRAYS * n * self._vocab].view(ARRAYS, n, self._vocab)


def _fields(rows: RowSums, tokens: PlausibleTokens, plausible_entropy: Tensor) -> dict[str, Any]:
    """The fields of `TokenInformation` at some positions."""
    n = len(rows.broken)
    size = torch.bincount(tokens.position, minlength=n)
    values = {
        **{name: getattr(rows, name) for name in ("entropy", "kl", "reverse_kl", "log_ratio_normalizer")},
        "information": rows.support.double().log() - rows.entropy,
        "plausible_entropy": plausible_entropy.masked_fill(size == 0, torch.nan),
        "policy_mass": tokens.totals(tokens.policy.exp(), n),
        "reference_mass": tokens.totals(tokens.reference.exp(), n),
    }
    status = np.full(n, OK, dtype="<U11")
    status[(size < 2).cpu().numpy()] = DEGENERATE
    status[rows.unsupported.cpu().numpy()] = UNSUPPORTED
    status[rows.broken.cpu().numpy()] = NON_FINITE
    counts = {"plausible_size": size, "support": rows.support.masked_fill(rows.broken, 0)}
    values = {name: value.masked_fill(rows.broken, torch.nan) for name, value in values.items()}
    return {**values, **counts, "status": status}


def _named(result: Any) -> dict[str, Any]:
    """A result's fields by name, none copied."""
    return {field.name: getattr(result, field.name) for field in fields(result)}


def _concatenated(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors and arrays of the same name, one after the other."""
    if not parts:
        raise ValueError("no position was added to this pass")
    whole = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        whole[name] = torch.cat(values) if isinstance(first, Tensor) else np.concatenate(values)
    return whole
