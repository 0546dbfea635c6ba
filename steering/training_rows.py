"""What does the model say with coordinates of another run in its states? Pairs of runs of a real model, for the loop.

A source run is read once: its state at the source token and its last residuals, from which the target logits are made
again at every step. Base runs start behind their lowest edited block where the model allows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..probes.kernels.row_values import row_values
from ..probes.resuming import LowerBlocks
from ..probes.subject import Site, Subject
from .edits import Interchange
from .encoded import RunPair
from .losses import token_losses, token_weights
from .positions import Positions
from .reading import Reading, read_states
from .runs import Edits, Runs, blocks_below, predicting, require_edited, response
from .subspace import Subspace


@dataclass(slots=True, kw_only=True, eq=False)
class TrainingRows:
    """Pairs of runs on a subject; a FitRows of cdas.py. Built by `training_rows`."""

    subject: Subject
    site: Site
    positions: Positions
    pairs: Sequence[RunPair]
    source: Float[Tensor, "N d"]  # states at the source token, float32
    targets: list[Tensor] | None  # last residuals of every source run; None: the run is read again each time
    runs: Runs  # the base runs

    def __len__(self) -> int:
        return len(self.pairs)

    def token_losses(self, subspace: Subspace | None, rows: Int[Tensor, "B"], loss: str) -> Float[Tensor, "n"]:
        """The loss of each response token of these rows, in order, nats; None: of the unedited base run.

        The gradient reaches S alone.
        """
        return next(self._each(subspace, rows.tolist(), [loss]))

    def _each(self, subspace: Subspace | None, chosen: Sequence[int], losses: Sequence[str]) -> Iterator[Tensor]:
        """`token_losses` of several losses, from one pass."""
        wanted = torch.cat(self._targets(chosen))
        ids = torch.tensor([i for k in chosen for i in response(self.pairs[k].base)], device=wanted.device)

        edited = self.runs.residuals({} if subspace is None else self._edits(subspace, chosen), chosen)

        def values(h: Tensor, part: slice, loss: str) -> Tensor:
            with torch.no_grad():
                target = self.subject.readout(wanted[part])
            return token_losses(loss, self.subject.readout(h), target, ids[part])

        for loss in losses:
            yield row_values(partial(values, loss=loss), edited, self.subject.vocab_size)

    def weights(self, rows: Int[Tensor, "B"], reduction: str) -> Float[Tensor, "n"]:
        """What each response token counts: both directions half of the whole, within them as token_weights says."""
        chosen = rows.tolist()
        counts = torch.tensor([self.pairs[k].base.n_scored for k in chosen])
        mask = torch.arange(int(counts.max())) < counts[:, None]
        elicit = torch.tensor([self.pairs[k].elicit for k in chosen])
        owner = elicit.repeat_interleave(mask.sum(-1))
        sides = [side for side in (True, False) if (elicit == side).any()]
        found = torch.zeros(len(owner))
        for side in sides:
            found[owner == side] = token_weights(mask[elicit == side], reduction) / len(sides)
        return found.to(rows.device)

    @torch.no_grad()
    def mean_losses(self, subspace: Subspace | None, loss: str, batch_size: int = 16) -> dict[str, dict[str, float]]:
        """Of each direction there is, "elicit", "suppress": mean loss a response token, and KL(q : p), "kl"; nats."""
        found: dict[str, dict[str, float]] = {}
        names = dict.fromkeys([loss, "kl_source"])  # which may be one
        for way, wanted in (("elicit", True), ("suppress", False)):
            chosen = [k for k, pair in enumerate(self.pairs) if pair.elicit == wanted]
            parts = [
                torch.stack(list(self._each(subspace, chosen[start : start + batch_size], [*names])))
                for start in range(0, len(chosen), batch_size)
            ]
            if parts:
                means = dict(zip(names, torch.cat(parts, 1).double().mean(1).tolist(), strict=True))
                found[way] = {"loss": means[loss], "kl": means["kl_source"]}
        return found

    @property
    def lower(self) -> LowerBlocks | None:
        """The blocks that base runs leave out; None: they are read from the start."""
        return self.runs.lower

    def _edits(self, subspace: Subspace, chosen: Sequence[int]) -> Edits:
        source = self.source[torch.tensor(chosen, device=self.source.device)]
        return {self.site: Interchange(subspace, source, self.positions)}

    def _targets(self, chosen: Sequence[int]) -> list[Tensor]:
        if self.targets is not None:
            return [self.targets[k] for k in chosen]
        return [residual for _, residual in _read_sources(self.subject, self.site, [self.pairs[k] for k in chosen])]


def training_rows(
    subject: Subject,
    site: Site,
    positions: Positions,
    pairs: Sequence[RunPair],
    *,
    cache_bytes: float | int,
    read: Reading = read_states,
) -> tuple[TrainingRows, list[str]]:
    """The rows, and why something is not kept: more than cache_bytes, or a model that does not go on from its middle.

    read: how the source runs are read; SharedReading where several sites are trained on.
    Raises InputError where a base run has no edited token.
    """
    runs = Runs(subject=subject, sequences=[pair.base for pair in pairs])
    require_edited(positions, runs.sequences, [pair.row for pair in pairs])
    told: list[str] = []
    of_targets = sum(pair.source.n_scored for pair in pairs) * subject.d_model * 4
    kept = of_targets <= cache_bytes
    sources = _read_sources(subject, site, pairs, read, residuals=kept)
    rows = TrainingRows(
        subject=subject,
        site=site,
        positions=positions,
        pairs=pairs,
        source=torch.cat([state for state, _ in sources]).float(),
        targets=[residual for _, residual in sources] if kept else None,
        runs=runs,
    )
    if rows.targets is None:
        told.append(f"source runs are read again at every step: {of_targets:.3g} bytes are above cache_bytes")
    if of_targets + runs.n_bytes > cache_bytes:
        told.append(f"base runs are read from the start: {of_targets + runs.n_bytes:.3g} bytes are above cache_bytes")
    elif problem := _keep_base(rows):
        told.append(f"base runs are read from the start: {problem}")
    return rows, told


def _keep_base(rows: TrainingRows) -> str | None:
    """Have the rows start behind the blocks that no edit changes; or why not."""
    trial = Subspace(torch.randn(1, rows.subject.d_model, generator=torch.Generator().manual_seed(0)))
    trial = Subspace.orthonormal(trial.basis.to(rows.source.device))
    return rows.runs.keep(blocks_below(rows.site), lambda chosen: rows._edits(trial, chosen))


def _read_sources(
    subject: Subject, site: Site, pairs: Sequence[RunPair], read: Reading = read_states, *, residuals: bool = True
) -> list[tuple[Tensor, Tensor]]:
    runs = [pair.source for pair in pairs]
    at = [[pair.place] for pair in pairs]
    return read(subject, site, [run.ids for run in runs], at, [predicting(run) for run in runs] if residuals else None)
