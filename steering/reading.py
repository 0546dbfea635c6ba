"""What stands at a site while a model reads? States at chosen tokens, and the last residuals at others, in one pass."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..probes.capture import places, rows_at
from ..probes.encoding import Ids
from ..probes.padding import padded
from ..probes.scored_rows import batches
from ..probes.subject import Site, Subject
from .positions import Positions

BATCH_TOKENS = 4096  # padded tokens of a pass without gradients


@runtime_checkable
class Reading(Protocol):
    """`read_states`, or what answers in its place: `SharedReading`."""

    def __call__(
        self,
        subject: Subject,
        site: Site,
        rows: Sequence[Ids],
        at: Sequence[Sequence[int]],
        last_at: Sequence[Sequence[int]] | None = None,
    ) -> list[tuple[Float[Tensor, "_ d"], Float[Tensor, "_ d"]]]: ...


class _Reader:
    """An edit that changes nothing, and keeps what it was shown at n tokens: whatever component a site is."""

    positions = Positions()
    key = "reader"

    def __init__(self, rows: Int[Tensor, "n"], columns: Int[Tensor, "n"]) -> None:
        self.rows, self.columns = rows, columns
        self.states: Tensor | None = None  # [n, d]

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        self.states = h.detach()[self.rows.to(h.device), self.columns.to(h.device)]
        return h.clone()


def read_states(
    subject: Subject,
    site: Site,
    rows: Sequence[Ids],
    at: Sequence[Sequence[int]],
    last_at: Sequence[Sequence[int]] | None = None,
) -> list[tuple[Float[Tensor, "_ d"], Float[Tensor, "_ d"]]]:
    """For every row of ids its states at the site at the tokens `at`, and its last residuals at `last_at`; own dtype.

    Without gradient, longest rows first. The states stay on the subject's device.
    """
    return [(states[site], last) for states, last in read_sites(subject, [site], rows, at, last_at)]


@torch.no_grad()
def read_sites(
    subject: Subject,
    sites: Sequence[Site],
    rows: Sequence[Ids],
    at: Sequence[Sequence[int]],
    last_at: Sequence[Sequence[int]] | None = None,
) -> list[tuple[dict[Site, Float[Tensor, "_ d"]], Float[Tensor, "_ d"]]]:
    """As `read_states`, at several sites in one pass; no more than the tokens asked for is held of any of them."""
    found: dict[int, tuple[dict[Site, Tensor], Tensor]] = {}
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    top = subject.n_layers
    for batch in batches([len(rows[i]) for i in order], BATCH_TOKENS):
        chosen = order[batch]
        ids, mask = padded([rows[i] for i in chosen], 0)
        here = [at[i] for i in chosen]
        there = [() if last_at is None else last_at[i] for i in chosen]
        readers = {site: _Reader(*places(here)) for site in sites}
        with subject.editing(readers):
            last = subject.trace(ids, mask, reduce=rows_at(*places(there)), layers=[top])[top]
        residuals = last.split([len(some) for some in there])
        parts: dict[Site, Sequence[Tensor]] = {}
        for site, reader in readers.items():
            assert reader.states is not None  # every site of a model that was found by `editing` is passed through
            parts[site] = reader.states.split([len(some) for some in here])
        for k, i in enumerate(chosen):
            found[i] = {site: parts[site][k] for site in sites}, residuals[k]
    return [found[i] for i in range(len(rows))]


class SharedReading:
    """A `read_states` for several sites of one subject: rows that were asked for are read once, at all of the sites."""

    def __init__(self, subject: Subject, sites: Sequence[Site]) -> None:
        self.subject = subject
        self.sites = tuple(sites)
        self._kept: dict[object, list[tuple[dict[Site, Tensor], Tensor]]] = {}

    def __call__(
        self,
        subject: Subject,
        site: Site,
        rows: Sequence[Ids],
        at: Sequence[Sequence[int]],
        last_at: Sequence[Sequence[int]] | None = None,
    ) -> list[tuple[Float[Tensor, "_ d"], Float[Tensor, "_ d"]]]:
        """ValueError for a site or a subject that it is not for."""
        if subject is not self.subject or site not in self.sites:
            shown = ", ".join(map(str, self.sites))
            raise ValueError(f"site {site} of {subject.name}: this reads {self.subject.name} at {shown}")
        asked = tuple(map(tuple, rows)), tuple(map(tuple, at)), None if last_at is None else tuple(map(tuple, last_at))
        if asked not in self._kept:
            self._kept[asked] = read_sites(subject, self.sites, rows, at, last_at)
        return [(states[site], last) for states, last in self._kept[asked]]


def states_at(
    subject: Subject, site: Site, prompts: Sequence[Ids], places: Sequence[int], read: Reading = read_states
) -> Float[Tensor, "n d"]:
    """The state at the site of one token of every prompt, which is cut behind it; float32 on the CPU."""
    cut = [prompt[: place + 1] for prompt, place in zip(prompts, places, strict=True)]
    return torch.cat([state for state, _ in read(subject, site, cut, [[p] for p in places])]).float().cpu()
