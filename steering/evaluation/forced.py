"""How far is what an edited run says from what the run with the other prompt says? Teacher-forced, a batch at a time.

q: next-token distribution of the unedited source run; p: of the base run, edited; both behind the same response tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from ...errors import InputError
from ...probes.scored_rows import TokenSequence, batches, residuals, rows_of
from ...probes.shards import Progress
from ...probes.subject import Subject
from ...probes.token_positions import announced_prompts
from ..encoded import RunPair
from ..losses import kl_source
from ..reading import BATCH_TOKENS

ENTRIES = 2**22  # logits of a model in float64 at a time: 32 MB

Edit = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForcedKl:
    """KL(q : p) of N pairs of runs, nats: sums over the response tokens, one column a way to edit."""

    sums: Float64[Tensor, "N M"]
    n_tokens: Int[Tensor, "N"]


@torch.no_grad()
def forced_kl(
    subject: Subject,
    pairs: Sequence[RunPair],
    edits: Sequence[Edit],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> ForcedKl:
    """KL(q : p) = sum q (log q - log p) of each response token, summed over a row's, for every edit in turn.

    edits: each makes a context in which the base run is read. Softmax and sums are float64. Of a batch of
    `batch_tokens` padded tokens the last residuals at response tokens are held, and logits of few of them at a time.
    Batches and padding change no number. Raises InputError where an edit leaves a KL that is not finite.
    """
    sums = torch.zeros(len(pairs), len(edits), dtype=torch.float64)
    widths = [max(len(pair.base.ids), len(pair.source.ids)) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: -widths[i])
    done = 0
    for batch in batches([widths[i] for i in order], batch_tokens):
        chosen = order[batch]
        target = _states(subject, [pairs[i].source for i in chosen])
        base = [pairs[i].base for i in chosen]
        edited: list[Tensor] = []
        for edit in edits:
            with announced_prompts(torch.tensor([run.start for run in base])), edit():
                edited.append(_states(subject, base))
        owner = torch.tensor(chosen).repeat_interleave(torch.tensor([run.n_scored for run in base]))
        sums.index_add_(0, owner, _token_kl(subject, target, edited))
        done += len(chosen)
        if progress is not None:
            progress("teacher forcing", done, len(pairs))
    if not torch.isfinite(sums).all():
        row, column = (~torch.isfinite(sums)).nonzero()[0].tolist()
        raise InputError(
            f"{subject.name}: the KL of pair {row} under edit {column} is not finite; the edited states overflow, or "
            "the edited run excludes a token that the other run gives: try a smaller strength"
        )
    return ForcedKl(sums=sums, n_tokens=torch.tensor([pair.base.n_scored for pair in pairs]))


def _states(subject: Subject, runs: Sequence[TokenSequence]) -> Tensor:
    """Last residuals at the places that predict the response tokens, row by row [n, d]."""
    return residuals(subject, rows_of([(run,) for run in runs]))


def _token_kl(subject: Subject, target: Tensor, edited: Sequence[Tensor]) -> Float64[Tensor, "n M"]:
    size = max(1, ENTRIES // subject.vocab_size)
    found: list[Tensor] = []
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        q = subject.readout(target[part]).double()
        found.append(torch.stack([kl_source(subject.readout(h[part]).double(), q) for h in edited], dim=1).cpu())
    return torch.cat(found)
