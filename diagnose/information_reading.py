"""Two models' states beside each other: what the update changed at every response token, and which tokens carry it.

The vocabulary is met some positions at a time; of size positions x vocabulary nothing is held.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..probes.final_states import StateShards
from ..probes.histories import History, buckets_of
from ..probes.kernels.attribution_sums import AttributionSums
from ..probes.kernels.head_logits import HeadLogits, projected
from ..probes.kernels.information import BUFFER_BYTES
from ..probes.kernels.logprobs import token_log_probs
from ..probes.kernels.token_pass import BLOCK_ROWS, InformationPass
from ..probes.kernels.token_readings import OK, TokenAttribution, TokenInformation, TokenTilt

if TYPE_CHECKING:
    from ..probes.shards import Progress
    from ..probes.subject import Head, Subject

BLOCK = 128  # positions whose logits are held, of both models, or fewer where they are over BUFFER_BYTES
CHUNK = 16384  # rows of a head multiplied at a time
TOP = 10  # tokens kept a position
Group = tuple[str, int]  # source, number of the bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What reads a model's states out: its head, or the model itself where the head is not that simple."""

    name: str
    head: "Head | None"
    subject: "Subject | None"

    @classmethod
    def of(cls, subject: "Subject") -> "Tail":
        """Without the model where the head is enough, so that the model may go."""
        head = subject.head()
        kept = None if head is None else replace(head, norm=_as_it_is)
        return cls(name=subject.name, head=kept, subject=subject if head is None else None)

    def reading(self, states: Float[Tensor, "n d"], vocab: int) -> "HeadLogits | _SubjectLogits":
        """Logits of these states, a block of positions at a time."""
        if self.head is None:
            assert self.subject is not None
            return _SubjectLogits(self.subject, states, vocab)
        readout, _ = projected("", states, self.head)
        return HeadLogits(readout, vocab, max(1, min(BLOCK, len(states), BUFFER_BYTES // (8 * vocab))), CHUNK)


class _SubjectLogits:
    def __init__(self, subject: "Subject", states: Float[Tensor, "n d"], vocab: int) -> None:
        self._subject, self._states, self._vocab = subject, states, vocab

    @torch.no_grad()
    def read(self, start: int, stop: int) -> Float[Tensor, "n V"]:
        states = self._states[start:stop].to(self._subject.device)
        return self._subject.readout(states)[:, : self._vocab]


@dataclass(frozen=True, slots=True, kw_only=True)
class InformationReading:
    """One update read at every response token.

    positions: a row a token in order of the histories: history (its number), prompt_id, source, position (from 1),
    bucket (its number), token, log_ratio (log pi - log ref of that token), entropy, normalized_entropy, information,
    plausible_information, plausible_size, kl, reverse_kl (nats), policy_mass, reference_mass, tilt, tilt_unweighted,
    tilt_r2 (NaN where there is none), status.
    tops: a row a position and listed token: history, position, rank, token, q, contribution (nats); in 32 bits, as they
    are ten times as many rows as positions.
    attributions: sums over positions for every token, by (source, bucket); without lists, which are in `tops`.
    """

    positions: pd.DataFrame
    tops: pd.DataFrame
    attributions: Mapping[Group, TokenAttribution]
    vocab: int

    @property
    def log_ratios(self) -> Float[np.ndarray, "H"]:
        """log pi - log ref of every whole response, nats, in the order of the histories; NaN where a token has none."""
        return np.bincount(self.positions["history"], weights=self.positions["log_ratio"])  # pandas would skip NaN


def read_information(
    policy: tuple[StateShards, Tail],
    reference: tuple[StateShards, Tail],
    histories: Sequence[History],
    *,
    vocab: int,
    plausible: float | str = 1e-4,
    position_buckets: Sequence[int] = (5, 50),
    end_id: int | Collection[int] | None = None,
    progress: "Progress | None" = None,
    stage: str = "information",
) -> InformationReading:
    """Panel, tilt and attribution at every response token of the histories, whose states both models left on disk."""
    buckets = [buckets_of(history.response_ids, position_buckets, end_id) for history in histories]
    reading = InformationPass(vocab, plausible=plausible, top=None)
    sums: dict[Group, AttributionSums] = {}
    starts = np.concatenate([[0], np.cumsum([len(history.response_ids) for history in histories])])
    ours = policy[0]
    done, total = 0, int(starts[-1])
    columns = _Columns(total, min(TOP, vocab))
    for number, shard in enumerate(ours.shards):
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in shard])
        targets = np.concatenate([histories[i].response_ids for i in shard])
        of_group = [(histories[i].source, bucket) for i in shard for bucket in buckets[i].tolist()]
        order = np.array(sorted(range(len(rows)), key=of_group.__getitem__))  # a block then rarely has two groups
        logits: list[Tensor] = []  # the last shard's buffers go before this one has its own
        for start, logits in _blocks(policy, reference, number, order, vocab):
            some = order[start : start + len(logits[0])]
            columns.log_ratio[rows[some]] = _target_ratios(logits, targets[some])
            for group, part in groupby(range(len(some)), key=lambda k: of_group[some[k]]):
                run = list(part)
                if group not in sums:
                    sums[group] = AttributionSums(vocab, min(TOP, vocab))
                reading.update(*(z[run[0] : run[-1] + 1] for z in logits), sums=sums[group])
                columns.write(rows[some[run]], *reading.take(), *sums[group].take_lists())
        done += len(rows)
        if progress is not None:
            progress(stage, done, total)
    positions = _positions(histories, buckets, columns)
    return InformationReading(
        positions=positions,
        tops=columns.tops(positions),
        attributions={group: sums[group].attribution(copied=False) for group in sorted(sums)},
        vocab=vocab,
    )


def _blocks(
    policy: tuple[StateShards, Tail],
    reference: tuple[StateShards, Tail],
    number: int,  # of the shard
    order: Int[np.ndarray, "n"],
    vocab: int,
) -> Iterator[tuple[int, list[Float[Tensor, "_ V"]]]]:
    """First place in `order` and both models' logits there, a block of positions at a time."""
    sides = [tail.reading(shards.read(number)[torch.from_numpy(order)], vocab) for shards, tail in (policy, reference)]
    block = max(1, min(BLOCK, BUFFER_BYTES // (8 * vocab)))
    for start in range(0, len(order), block):
        yield start, [side.read(start, min(start + block, len(order))) for side in sides]


class _Columns:
    """What is said of every position, each number written once where it stays: no list of blocks grows beside it."""

    def __init__(self, n: int, top: int) -> None:
        self.log_ratio = np.full(n, np.nan)
        self.values: dict[str, Shaped[np.ndarray, "n"]] = {}
        self.status = np.full(n, OK, dtype=object)  # one string for all that share it
        self._ids = np.full((n, top), -1, dtype=np.int32)
        self._q, self._contribution = np.full((2, n, top), np.nan, dtype=np.float32)

    def write(
        self,
        rows: Int[np.ndarray, "n"],
        information: TokenInformation,
        tilt: TokenTilt,
        ids: Int[Tensor, "n top"],
        q: Float[Tensor, "n top"],
        contribution: Float[Tensor, "n top"],
    ) -> None:
        """What was found at these rows."""
        for name, value in _fields(information, tilt).items():
            column = self.values.setdefault(name, np.empty(len(self.status), dtype=value.dtype))
            column[rows] = value
        for status in np.unique(information.status):
            self.status[rows[information.status == status]] = str(status)
        for table, part in ((self._ids, ids), (self._q, q), (self._contribution, contribution)):
            table[rows] = part.cpu().numpy()

    def tops(self, positions: pd.DataFrame) -> pd.DataFrame:
        """A row a position and listed token."""
        row, rank = np.nonzero(self._ids >= 0)
        return pd.DataFrame(
            {
                "history": positions["history"].to_numpy(np.int32)[row],
                "position": positions["position"].to_numpy(np.int32)[row],
                "rank": (rank + 1).astype(np.int8),
                "token": self._ids[row, rank],
                "q": self._q[row, rank],
                "contribution": self._contribution[row, rank],
            }
        )


def _positions(
    histories: Sequence[History],
    buckets: Sequence[Int[np.ndarray, "_"]],  # of each history
    columns: _Columns,
) -> pd.DataFrame:
    """Positions in the order of the histories."""
    lengths = [len(history.response_ids) for history in histories]
    return pd.DataFrame(
        {
            "history": np.repeat(np.arange(len(histories)), lengths),
            "prompt_id": np.repeat(np.array([history.prompt_id for history in histories], object), lengths),
            "source": np.repeat(np.array([history.source for history in histories], object), lengths),
            "position": np.concatenate([np.arange(1, n + 1) for n in lengths]),
            "bucket": np.concatenate(buckets),
            "token": np.concatenate([history.response_ids for history in histories]),
            **columns.values,
            "status": columns.status,
            "log_ratio": columns.log_ratio,
        }
    )


def _fields(information: TokenInformation, tilt: TokenTilt) -> dict[str, Shaped[np.ndarray, "n"]]:
    """What is said of some positions, as columns."""
    support = information.support.double().log()
    values = {
        "entropy": information.entropy,
        "normalized_entropy": information.entropy / support,
        "information": information.information,
        "plausible_information": information.plausible_information,
        "plausible_size": information.plausible_size,
        "kl": information.kl,
        "reverse_kl": information.reverse_kl,
        "policy_mass": information.policy_mass,
        "reference_mass": information.reference_mass,
        "tilt": tilt.slope,
        "tilt_unweighted": tilt.unweighted_slope,
        "tilt_r2": tilt.r_squared,
    }
    return {name: value.cpu().numpy() for name, value in values.items()}


def _target_ratios(logits: Sequence[Float[Tensor, "n V"]], targets: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """log pi - log ref of the tokens that stand there."""
    wanted = torch.from_numpy(targets).split(BLOCK_ROWS)  # a shifted copy of a whole block is 50 MB
    log_p = [
        torch.cat(
            [token_log_probs(part, ids.to(z.device)) for part, ids in zip(z.split(BLOCK_ROWS), wanted, strict=True)]
        )
        for z in logits
    ]
    return (log_p[0] - log_p[1]).cpu().numpy()


def _as_it_is(states: Tensor) -> Tensor:
    return states
