"""What stands at a site while a model reads? States at chosen tokens, and the last residuals at others, in one pass."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..probes.encoding import Ids
from ..probes.padding import padded
from ..probes.scored_rows import batches
from ..probes.subject import Site, Subject
from .positions import Positions

BATCH_TOKENS = 4096  # padded tokens of a pass without gradients


class _Reader:
    """An edit that changes nothing, and keeps what it was shown: whatever component a site is, it is read there."""

    positions = Positions()
    key = "reader"

    def __init__(self) -> None:
        self.h: Tensor | None = None

    def __call__(
        self, h: Float[Tensor, "*batch d"], where: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        self.h = h.detach()
        return h.clone()


@torch.no_grad()
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
    found: dict[int, tuple[Tensor, Tensor]] = {}
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    last, reader = subject.n_layers, _Reader()
    for batch in batches([len(rows[i]) for i in order], BATCH_TOKENS):
        chosen = order[batch]
        ids, mask = padded([rows[i] for i in chosen], 0)
        with subject.editing({site: reader}):
            residual = subject.trace(ids, mask, reduce=lambda layer, h, mask: h, layers=[last])[last]
        assert reader.h is not None
        for k, i in enumerate(chosen):
            here = torch.tensor(at[i], dtype=torch.long, device=residual.device)
            there = torch.tensor([] if last_at is None else last_at[i], dtype=torch.long, device=residual.device)
            found[i] = reader.h[k, here].clone(), residual[k, there].clone()
    return [found[i] for i in range(len(rows))]


def states_at(subject: Subject, site: Site, prompts: Sequence[Ids], places: Sequence[int]) -> Float[Tensor, "n d"]:
    """The state at the site of one token of every prompt, which is cut behind it; float32 on the CPU."""
    cut = [prompt[: place + 1] for prompt, place in zip(prompts, places, strict=True)]
    return torch.cat([state for state, _ in read_states(subject, site, cut, [[p] for p in places])]).float().cpu()
