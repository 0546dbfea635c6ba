"""Which response is to become likelier than which, and how likely was either? What trained baselines are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...probes.encoding import Ids
from ...probes.scored_rows import TokenSequence
from ...probes.subject import EditPositions, Site
from ..edits import Add
from ..encoded import EncodedQuadruple
from ..preparing import Prepared
from ..runs import Edits, Runs, blocks_below, require_edited

PASS_ROWS = 16  # runs of a pass without gradients


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """Two responses to one prompt, n rows: one to be made likelier, the other less likely."""

    runs: Runs
    first: int  # of its runs: from here on n wanted ones, then the n others
    reference: Float[Tensor, "2 n"]  # log pi of wanted and other by the unsteered model, summed, nats, float64
    lengths: Float[Tensor, "2 n"]  # tokens

    def log_probs(self, edits: Edits, rows: Sequence[int]) -> Float[Tensor, "2 B"]:
        """log pi of wanted and other under the edits, summed; one pass: wanted runs of all rows, then the others."""
        n = self.lengths.shape[1]
        places = [self.first + side * n + row for side in (0, 1) for row in rows]
        return totals(self.runs, edits, places).reshape(2, -1)


def preference_pairs(
    data: Prepared, rows: Sequence[EncodedQuadruple], directions: Sequence[str], cache_bytes: float | int
) -> tuple[dict[str, Choices], list[str]]:
    """The pairs of each direction; elicit: behind x, y_c and then y; suppress: behind x_c, y and then y_c.

    Also why runs are not kept, see `kept_runs`.
    """
    asked: list[tuple[Ids, Ids]] = []
    for name in directions:
        shown = [(row.negative if name == "elicit" else row.positive, row.positive_response) for row in rows]
        plain = [(prompt, row.negative_response) for (prompt, _), row in zip(shown, rows, strict=True)]
        asked += [*shown, *plain] if name == "elicit" else [*plain, *shown]
    runs, told = kept_runs(data, asked, data.site, data.positions, cache_bytes)
    with torch.no_grad():
        parts = [totals(runs, {}, some.tolist()) for some in torch.arange(len(runs)).split(PASS_ROWS)]
    reference = torch.cat(parts).reshape(len(directions), 2, -1)
    lengths = torch.tensor([run.n_scored for run in runs.sequences]).to(reference).reshape(reference.shape)
    found = {
        name: Choices(runs=runs, first=2 * len(rows) * i, reference=reference[i], lengths=lengths[i])
        for i, name in enumerate(directions)
    }
    return found, told


def kept_runs(
    data: Prepared,
    pairs: Sequence[tuple[Ids, Ids]],
    site: Site,
    positions: EditPositions,
    cache_bytes: float | int,
) -> tuple[Runs, list[str]]:
    """Runs of prompts and responses that begin behind the blocks below `site`, the lowest that is edited.

    Or that are read from the start, and why: more than cache_bytes, or a model that does not go on from its middle.
    Raises InputError where a run has no edited token.
    """
    sequences = [TokenSequence(ids=(*prompt, *answer), start=len(prompt)) for prompt, answer in pairs]
    require_edited(positions, sequences)
    runs = Runs(subject=data.subject, sequences=sequences)
    step = torch.randn(data.subject.d_model, generator=torch.Generator().manual_seed(0))
    trial = {site: Add(step / step.norm(), positions=positions)}
    if runs.n_bytes > cache_bytes:
        return runs, [f"runs are read from the start: {runs.n_bytes:.3g} bytes are above cache_bytes"]
    problem = runs.keep(blocks_below(site), lambda chosen: trial)
    return runs, [] if problem is None else [f"runs are read from the start: {problem}"]


def totals(runs: Runs, edits: Edits, places: Sequence[int]) -> Float[Tensor, "B"]:
    """log pi of the response of these runs, summed over its tokens, nats, float64."""
    return torch.stack([tokens.sum() for tokens in runs.token_log_probs(edits, places)])
