"""Two models' states beside each other: what the update changed at every response token, and which tokens carry it.

The vocabulary is met some positions at a time; of size positions x vocabulary nothing is held.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..probes.final_states import StateShards
from ..probes.histories import History, buckets_of
from ..probes.kernels.head_logits import HeadLogits, projected
from ..probes.kernels.information import BUFFER_BYTES
from ..probes.kernels.logprobs import token_log_probs
from ..probes.kernels.token_pass import InformationPass
from ..probes.kernels.token_readings import TokenAttribution

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
    tops: a row a position and listed token: history, position, rank, token, q, contribution (nats).
    attributions: sums over positions for every token, by (source, bucket).
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
    passes: dict[Group, InformationPass] = {}
    places: dict[Group, list[Int[np.ndarray, "n"]]] = {}  # which positions each pass has read, in its order
    starts = np.concatenate([[0], np.cumsum([len(history.response_ids) for history in histories])])
    (ours, our_tail), (theirs, their_tail) = policy, reference
    done, total = 0, int(starts[-1])
    log_ratio = np.full(total, np.nan)
    block = max(1, min(BLOCK, BUFFER_BYTES // (8 * vocab)))
    for number, shard in enumerate(ours.shards):
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in shard])
        targets = np.concatenate([histories[i].response_ids for i in shard])
        of_group = [(histories[i].source, bucket) for i in shard for bucket in buckets[i].tolist()]
        order = np.array(sorted(range(len(rows)), key=of_group.__getitem__))  # a block then rarely has two groups
        sides = [
            tail.reading(shards.read(number)[torch.from_numpy(order)], vocab)
            for shards, tail in ((ours, our_tail), (theirs, their_tail))
        ]
        for start in range(0, len(order), block):
            some = order[start : start + block]
            logits = [side.read(start, start + len(some)) for side in sides]
            log_ratio[rows[some]] = _target_ratios(logits, targets[some])
            for group, part in groupby(range(len(some)), key=lambda k: of_group[some[k]]):
                run = list(part)
                reading = passes.setdefault(group, InformationPass(vocab, plausible=plausible, top=TOP))
                reading.update(*(z[run[0] : run[-1] + 1] for z in logits))
                places.setdefault(group, []).append(rows[some[run]])
        done += len(rows)
        if progress is not None:
            progress(stage, done, total)
    positions, tops = _tables(histories, buckets, passes, {g: np.concatenate(part) for g, part in places.items()})
    positions["log_ratio"] = log_ratio
    attributions = {group: reading.attribution() for group, reading in sorted(passes.items())}
    return InformationReading(positions=positions, tops=tops, attributions=attributions, vocab=vocab)


def _tables(
    histories: Sequence[History],
    buckets: Sequence[Int[np.ndarray, "_"]],  # of each history
    passes: Mapping[Group, InformationPass],
    places: Mapping[Group, Int[np.ndarray, "_"]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Positions in the order of the histories, and the listed tokens of each."""
    lengths = [len(history.response_ids) for history in histories]
    positions = pd.DataFrame(
        {
            "history": np.repeat(np.arange(len(histories)), lengths),
            "prompt_id": np.repeat(np.array([history.prompt_id for history in histories], object), lengths),
            "source": np.repeat(np.array([history.source for history in histories], object), lengths),
            "position": np.concatenate([np.arange(1, n + 1) for n in lengths]),
            "bucket": np.concatenate(buckets),
            "token": np.concatenate([history.response_ids for history in histories]),
        }
    )
    order = np.concatenate(list(places.values()))
    where = np.argsort(order)
    found = [_fields(reading) for reading in passes.values()]
    for name in found[0]:
        positions[name] = np.concatenate([fields[name] for fields in found])[where]
    parts = [(places[group], reading.attribution()) for group, reading in passes.items()]
    tops = pd.concat([_listed(positions, rows, found) for rows, found in parts], ignore_index=True)
    return positions, tops.sort_values(["history", "position", "rank"], kind="stable").reset_index(drop=True)


def _fields(reading: InformationPass) -> dict[str, Any]:
    """What a pass says of its positions, as columns."""
    information, tilt = reading.information(), reading.tilt()
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
    return {name: value.cpu().numpy() for name, value in values.items()} | {"status": information.status}


def _listed(positions: pd.DataFrame, rows: Int[np.ndarray, "n"], found: TokenAttribution) -> pd.DataFrame:
    """A row a position and listed token of one pass."""
    n, top = found.ids.shape
    table = pd.DataFrame(
        {
            "history": np.repeat(positions["history"].to_numpy()[rows], top),
            "position": np.repeat(positions["position"].to_numpy()[rows], top),
            "rank": np.tile(np.arange(1, top + 1), n),
            "token": found.ids.cpu().numpy().ravel(),
            "q": found.q.cpu().numpy().ravel(),
            "contribution": found.contribution.cpu().numpy().ravel(),
        }
    )
    return table[table["token"] >= 0]


def _target_ratios(logits: Sequence[Float[Tensor, "n V"]], targets: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """log pi - log ref of the tokens that stand there."""
    wanted = torch.from_numpy(targets)
    log_p = [token_log_probs(z, wanted.to(z.device)).double().cpu() for z in logits]
    return (log_p[0] - log_p[1]).numpy()


def _as_it_is(states: Tensor) -> Tensor:
    return states
