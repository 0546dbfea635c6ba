"""One model's side of a comparison: its states on disk over all histories, and what reads them out.

Models run one after the other; the vocabulary is met later, when two sides stand beside each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import InputError
from ..probes.encoding import Encoder
from ..probes.final_states import StateShards, write_states
from ..probes.kernels import token_information
from ..probes.kernels.information import BUFFER_BYTES
from ..probes.scored_models import score_facts
from ..probes.scored_rows import TokenSequence
from ..probes.shared_prefix import choose_way
from .history_sets import HistorySet
from .identities import Identity, ratio_mass, token_identities
from .information_reading import BLOCK, InformationReading, Tail, read_information
from .naming import short_name

if TYPE_CHECKING:
    from ..probes.shards import Progress
    from ..probes.subject import Subject

EXACT, EXACT_HALF = 1e-3, 2e-2  # logits: of states through the head; below float32 relative to the largest
Side = tuple[StateShards, Tail]


@dataclass(slots=True, kw_only=True)
class Sides:
    """How histories are read: the same for every model of a report."""

    given: HistorySet
    encoder: Encoder
    vocab: int
    plausible: float | str
    buckets: tuple[int, ...]
    batch_tokens: int
    share_prefix: str | bool
    progress: "Progress | None"
    ways: dict[str, str] = field(default_factory=dict)  # model -> whether both answers stood in one row

    def read(self, subject: "Subject", folder: Path) -> Side:
        """The states of one model on disk, and what reads them out."""
        sequences = [history.sequence for history in self.given.histories]
        way = choose_way(
            subject,
            sequences,
            share=self.share_prefix,
            vocab=self.vocab,
            text_facts=score_facts(self.encoder),
            batch_tokens=self.batch_tokens,
        )
        self.ways[short_name(subject.name)] = way.told
        states = write_states(
            subject,
            sequences,
            folder,
            share_prefix=way.shared,
            batch_tokens=self.batch_tokens,
            progress=self.progress,
            stage=f"states of {short_name(subject.name)}",
        )
        tail = Tail.of(subject)
        _require_exact(subject, states, tail, sequences, self.vocab)
        return states, tail

    def between(self, policy: Side, reference: Side) -> InformationReading:
        return read_information(
            policy,
            reference,
            self.given.histories,
            vocab=self.vocab,
            plausible=self.plausible,
            position_buckets=self.buckets,
            end_id=self.given.end_ids,
            progress=self.progress,
        )


def positions_at_once(vocab: int) -> int:
    """Positions whose logits are held together, of both models: what `Tail.reading` has room for."""
    return max(1, min(BLOCK, BUFFER_BYTES // (8 * vocab)))


def _require_exact(
    subject: "Subject", states: StateShards, tail: Tail, sequences: Sequence[TokenSequence], vocab: int
) -> None:
    """Refuse where states on disk through the head are not the model's own logits to 1e-3, tried on one response."""
    first = sequences[states.shards[0][0]]
    n = min(first.n_scored, positions_at_once(vocab))
    cached = tail.reading(states.read(0)[:n], vocab).read(0, n).float().cpu()
    ids = torch.tensor([first.ids])
    places = torch.arange(first.start - 1, first.start - 1 + n)[None]
    with torch.no_grad():
        own = subject.logits(ids, torch.ones_like(ids), places)[0, :, :vocab].float().cpu()
    finite = own.isfinite()  # the others are set aside when they are read; excluded tokens are -inf
    apart = float((cached - own)[finite].abs().max()) if finite.any() else 0.0
    largest = float(own[finite].abs().max()) if finite.any() else 0.0
    allowed = EXACT if subject.dtype in ("float32", "float64") else EXACT_HALF * largest
    if not apart <= allowed or cached[~finite].isfinite().any():  # a NaN fails the first
        raise InputError(
            f"{subject.name}: its last states through its head differ from its own logits by {apart:.2g} (allowed: "
            f"{allowed:.2g}): the head does more than norm, weight, bias, scale and soft-cap, or is too coarse"
        )


def token_identities_of(policy: Side, reference: Side, vocab: int) -> list[Identity]:
    """The exact identities at up to 128 positions (fewer of a large vocabulary), spread over the first shard."""
    states = [side[0].read(0) for side in (policy, reference)]
    rows = torch.from_numpy(np.unique(np.linspace(0, len(states[0]) - 1, positions_at_once(vocab)).astype(np.int64)))
    ours, theirs = (
        side[1].reading(state[rows], vocab).read(0, len(rows)).clone()
        for side, state in zip((policy, reference), states, strict=True)
    )
    return token_identities(
        token_information(ours, theirs),
        swapped=token_information(theirs, ours),
        masses=ratio_mass(ours.cpu(), theirs.cpu()),
    )
