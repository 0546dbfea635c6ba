"""What does it cost to ship a vector as one that other tools add everywhere? KL at what the steered model says."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..diagnose.report import Estimate
from ..diagnose.statistics import cluster_bootstrap, estimate_from
from ..errors import InputError
from ..probes.huggingface import HuggingFaceSubject
from ..probes.inputs import PromptFile, Source
from ..probes.kernels.row_values import row_values
from ..probes.scored_rows import TokenSequence
from ..probes.shards import Progress
from ..probes.subject import Subject
from .edits import Add
from .evaluation.applying import applying
from .formats.directions import direction
from .losses import kl_source
from .plain_inputs import plain_inputs, some_of
from .positions import Positions
from .runs import Edits, Runs
from .steered_texts import encoded_prompts, together
from .vector import SteeringVector

ROWS = 8  # of a pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCost:
    """Nats a token, over what the model says at strength 1 behind the prompts; n: tokens, clusters: prompts.

    exported: KL(with the vector : with what is exported). off: KL(with the vector : without), the scale to read it on.
    """

    exported: Estimate
    off: Estimate

    def summary(self) -> str:
        return (
            f"KL of the vector at strength 1 to its export at coefficient 1: {self.exported}; to no edit at all: "
            f"{self.off} ({self.exported.n} generated tokens behind {self.exported.n_clusters} prompts)"
        )


@torch.no_grad()
def export_cost(
    subject: Subject,
    vectors: Sequence[SteeringVector],
    prompts: Source | PromptFile,
    *,
    template: str | None = None,
    max_new_tokens: int = 32,
    limit: int = 64,
    seed: int = 0,
    allow_other_weights: bool = False,
    progress: Progress | None = None,
) -> ExportCost:
    """Mean KL(p : q) a token; p: the model under the vectors at strength 1, q: under (f+ - f-) w added everywhere.

    An add is exported as itself, without its positions. Tokens: the greedy continuation under p of each prompt, its end
    included, both read teacher-forced; p is also held against the model without an edit. At most `limit` distinct
    prompts, sampled with `seed`; intervals resample whole prompts, from 20 on. The choice of tokens is reconstructed.
    template: as the vector was made where None. Raises InputError for what has no direction to add (see
    formats.directions) and where a vector does not belong on the model.
    """
    if not isinstance(subject, HuggingFaceSubject):
        raise InputError(f"{subject.name}: this carrier generates no ids; load the checkpoint with transformers")
    applying(subject, together(vectors, allow_other_weights))  # refuses what does not belong on the model
    exported: Edits = {vector.site: Add(direction(vector), positions=Positions()) for vector in vectors}
    edits: Edits = {vector.site: vector.edit_for(1.0) for vector in vectors}
    file = some_of(plain_inputs(prompts), limit, seed=seed)
    asked, _ = encoded_prompts(subject, file, vectors, template=template, room=max_new_tokens)
    values: list[np.ndarray] = []
    clusters: list[int] = []
    for start in range(0, len(asked), ROWS):
        some = [ids for _, ids in asked[start : start + ROWS]]
        with subject.editing(edits):
            said = subject.generate_ids(some, max_new_tokens=max_new_tokens)
        pairs = [(k, ids, answer) for k, (ids, answer) in enumerate(zip(some, said, strict=True), start) if answer]
        if pairs:
            sequences = [TokenSequence(ids=(*ids, *answer), start=len(ids)) for _, ids, answer in pairs]
            values.append(_divergences(Runs(subject=subject, sequences=sequences), edits, exported))
            clusters += [k for k, _, answer in pairs for _ in answer]
        if progress is not None:
            progress("comparing with the export", start + len(some), len(asked))
    rows = np.concatenate([np.empty((0, 2)), *values])
    boot = cluster_bootstrap(rows, np.array(clusters, dtype=int), seed=seed)
    found = [
        estimate_from(boot, column, label=label, unit="nats a token", null_value=0.0, reconstructed=True)
        for column, label in enumerate(("KL(vector : export)", "KL(vector : no edit)"))
    ]
    return ExportCost(exported=found[0], off=found[1])


def _divergences(runs: Runs, edits: Edits, exported: Edits) -> np.ndarray:
    """[n, 2] float64: KL of the edits to the exported ones and to none, at every token of the answers."""
    steered, added, off = (runs.residuals(one, range(len(runs))) for one in (edits, exported, {}))

    def divergence(h: Tensor, part: slice) -> Tensor:
        return kl_source(runs.subject.readout(h).double(), runs.subject.readout(steered[part]).double())

    found = [row_values(divergence, h, runs.subject.vocab_size) for h in (added, off)]
    return torch.stack(found, dim=1).cpu().numpy()
