"""What does a model say at given responses while it is edited? Runs of prompt and response, begun behind lower blocks.

Blocks below the lowest edit give what they gave before, so their outputs are kept and they are not run again.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..probes.capture import last_residuals, places
from ..probes.kernels.logprobs import token_log_probs
from ..probes.kernels.row_values import row_values
from ..probes.padding import padded
from ..probes.resuming import LowerBlocks, inputs_of, stacked
from ..probes.scored_rows import TokenSequence, batches
from ..probes.subject import Edit, EditPositions, Site, Subject
from ..probes.token_positions import announced_prompts
from .describing import told_positions
from .positions import AnyOf, Positions
from .preparing import edited_tokens
from .reading import BATCH_TOKENS

AGREE = 1e-5  # of the largest logit: resumed against whole forward passes
Edits = Mapping[Site, Edit]


@dataclass(slots=True, kw_only=True, eq=False)
class Runs:
    """Prompts and responses on a subject; positions `start` on are the response."""

    subject: Subject
    sequences: Sequence[TokenSequence]
    lower: LowerBlocks | None = None  # with `base`: the blocks that are left out
    base: list[Tensor] = field(default_factory=list)  # what each run hands to the block behind them

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def n_bytes(self) -> int:
        """What `keep` holds, in float32."""
        return sum(len(run.ids) for run in self.sequences) * self.subject.d_model * 4

    def residuals(self, edits: Edits, chosen: Sequence[int]) -> Float[Tensor, "n d"]:
        """The last residuals that predict the response tokens of these runs, in order; with gradient to the edits."""
        runs = [self.sequences[k] for k in chosen]
        ids, mask = padded([run.ids for run in runs], 0)
        rows, columns = places([predicting(run) for run in runs])
        prompts = torch.tensor([run.start for run in runs])
        with announced_prompts(prompts), self.subject.editing(edits), ExitStack() as stack:
            if self.lower is not None:
                stack.enter_context(self.lower.giving(stacked([self.base[k] for k in chosen])))
            return last_residuals(self.subject, ids, mask, rows, columns)

    def token_log_probs(self, edits: Edits, chosen: Sequence[int]) -> tuple[Float[Tensor, "_"], ...]:
        """log pi of each response token under the edits, nats, float64, a tensor a run; with gradient to the edits."""
        targets = torch.tensor([i for k in chosen for i in response(self.sequences[k])], device=self.subject.device)

        def values(h: Tensor, part: slice) -> Tensor:
            return token_log_probs(self.subject.readout(h), targets[part])

        found = row_values(values, self.residuals(edits, chosen), self.subject.vocab_size)
        return found.split([self.sequences[k].n_scored for k in chosen])

    def keep(self, count: int, trial: Callable[[Sequence[int]], Edits]) -> str | None:
        """Have the runs start behind the first `count` blocks; or why not.

        trial: edits of these runs, under which eight of them must have the same logits both ways, to 1e-5.
        """
        lower = LowerBlocks(self.subject, count)
        if lower.problem is not None:
            return lower.problem
        found: dict[int, Tensor] = {}
        order = sorted(range(len(self)), key=lambda k: -len(self.sequences[k].ids))
        for batch in batches([len(self.sequences[k].ids) for k in order], BATCH_TOKENS):
            ids, mask = padded([self.sequences[k].ids for k in order[batch]], 0)
            found |= dict(zip(order[batch], inputs_of(self.subject, count, ids, mask), strict=True))
        first = order[:: max(1, len(order) // 8)][:8]  # long and short ones
        with torch.no_grad():
            whole = self.residuals(trial(first), first)
            self.lower, self.base = lower, [found[k] for k in range(len(self))]
            off = self._off(self.residuals(trial(first), first), whole)
        if off <= AGREE:
            return None
        self.lower, self.base = None, []
        return f"going on from block {count} misses the logits by {off:.2g} of the largest (allowed: {AGREE:g})"

    def _off(self, found: Float[Tensor, "n d"], whole: Float[Tensor, "n d"]) -> float:
        """By how much the logits of residuals miss others, as a share of the largest of those, or of 1."""

        def largest(h: Tensor, part: slice) -> Tensor:
            return self.subject.readout(h).abs().amax(-1)

        def difference(h: Tensor, part: slice) -> Tensor:
            return (self.subject.readout(h) - self.subject.readout(whole[part])).abs().amax(-1)

        scale = row_values(largest, whole, self.subject.vocab_size).max().clamp(min=1.0)
        return float(row_values(difference, found, self.subject.vocab_size).max() / scale)


def blocks_below(site: Site) -> int:
    """How many blocks an edit at the site leaves as they are."""
    return site.layer + (site.component == "resid_post")


def require_edited(
    positions: EditPositions, sequences: Sequence[TokenSequence], rows: Sequence[int | None] | None = None
) -> None:
    """InputError, saying which, where a run has no edited token. rows: of the quadruples in their file, from 1."""
    for place, run in enumerate(sequences):
        if edited_tokens(positions, len(run.ids), run.start):
            continue
        row = None if rows is None else rows[place]
        where = f"run {place + 1} of {len(sequences)}" if row is None else f"row {row}"
        raise InputError(
            f"{where}: of its {len(run.ids)} tokens ({run.start} of the prompt) there is none that would be edited; "
            f"asked for: {_told(positions)}{_advice(positions, run)}"
        )


def _told(positions: EditPositions) -> str:
    """In words."""
    parts = positions.parts if isinstance(positions, AnyOf) else (positions,)
    return " or ".join(told_positions(part.to_dict()) if isinstance(part, Positions) else str(part) for part in parts)


def _advice(positions: EditPositions, run: TokenSequence) -> str:
    """What to do, where the prefix alone is in the way."""
    if not isinstance(positions, Positions):
        return ""
    bare = edited_tokens(replace(positions, prefix=0), len(run.ids), run.start)
    if not bare:
        return "; name others"
    return f". The prefix leaves out tokens {bare[0]} to {bare[-1]}: name later ones, or pass prefix=0 (--prefix 0)"


def predicting(run: TokenSequence) -> list[int]:
    """Places whose logits predict the response: one earlier than its tokens."""
    return list(range(run.start - 1, len(run.ids) - 1))


def response(run: TokenSequence) -> tuple[int, ...]:
    """The ids of the response."""
    return run.ids[run.start :]
