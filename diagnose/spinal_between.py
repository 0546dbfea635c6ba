"""How far apart do two models read the same place of the same text, layer by layer? Without a trace of either.

alignscope.spinal_distance(base, aligned, prompts).to_frame()
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..errors import InputError
from ..probes.encoding import Encoder, TextPolicy
from ..probes.inputs import Invalid, PromptFile, check_invalid, read_prompts
from ..probes.vocabulary import require_same_tokenizer
from .naming import short_name
from .spinal_lens import lens_between, lens_vocabulary
from .spinal_reading import Progress, batches_of, prepare_prompts
from .spinal_rows import TracedPrompt, captured
from .spinal_settings import require_at_least
from .spinal_trace import bootstrap_means, cluster_codes

if TYPE_CHECKING:
    from ..probes.subject import Subject

READOUTS = ("own", "base")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpinalDistance:
    """Fisher-Rao distance of two models' read-outs at the same layer, prompt and last token; radians in [0, pi]."""

    distance: Float[np.ndarray, "layers N"]
    prompts: tuple[TracedPrompt, ...]
    names: tuple[str, str]
    settings: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """A row a layer: mean over prompts, its 95 % interval (cluster bootstrap), n prompts."""
        clusters = cluster_codes(self.prompts)
        mean, low, high = bootstrap_means(self.distance, clusters, self.settings["seed"])
        n = np.isfinite(self.distance).sum(1)
        columns = {"distance": mean, "distance_low": low, "distance_high": high, "n": n}
        return pd.DataFrame({"layer": np.arange(len(mean)), **columns})

    def summary(self) -> str:
        """Where the two read-outs are farthest apart."""
        table = self.to_frame()
        if not table.n.max():
            return f"{self.names[1]} and {self.names[0]} have no prompt with finite rows in both."
        top = table.iloc[int(table.distance.fillna(-1.0).to_numpy().argmax())]
        return (
            f"On {int(top.n)} prompts the read-outs of {self.names[1]} and {self.names[0]} are farthest apart at layer "
            f"{int(top.layer)}: {top.distance:.3g} [{top.distance_low:.3g}, {top.distance_high:.3g}] rad of 3.14."
        )


def spinal_distance(
    base: "Subject",
    aligned: "Subject",
    prompts: "str | os.PathLike[str] | Iterable[Any] | PromptFile",
    *,
    readout: str = "own",
    max_tokens: int = 128,
    temperature: float = 1.0,
    template: str = "auto",
    eos: str = "auto",
    batch_size: int = 16,
    max_invalid: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpinalDistance:
    """2 arccos sum_v sqrt(p_l^base p_l^aligned) at the last token of every prompt, l = 0 (embeddings) to L.

    Both models read a batch, then the next: nothing of size prompts x layers x width is held. Ids and vocabulary are
    those of one tokenizer, which both must share. readout: "own" (each through its own final norm and head) or "base"
    (both through the base's: what a changed head or norm adds is left out). A prompt with a NaN in either is NaN; more
    of them than the share `max_invalid` stop, naming row and layer.
    Raises InputError for other tokenizers, depths, or (readout="base") widths. Ours, for SPINAL (arXiv 2601.06238).
    """
    if readout not in READOUTS:
        raise InputError(f"readout={readout!r}: expected one of {', '.join(READOUTS)}")
    require_at_least(max_tokens=(max_tokens, 1), batch_size=(batch_size, 1))
    require_same_tokenizer(aligned, base)
    for what, theirs, ours in (("blocks", base.n_layers, aligned.n_layers), ("width", base.d_model, aligned.d_model)):
        if theirs != ours and (what == "blocks" or readout == "base"):
            raise InputError(f"{what} {theirs} in {base.name}, {ours} in {aligned.name}: their layers are not the same")
    file = read_prompts(prompts)
    encoder = Encoder(
        base.tokenizer,
        TextPolicy(template, eos),
        vocab_rows=min(base.vocab_size, aligned.vocab_size),
        limit=min((s.limit for s in (base, aligned) if s.limit is not None), default=None),
        source=file.source,
    )
    traced, invalid, _ = prepare_prompts(file, encoder, max_tokens=max_tokens, lens_positions=0, seed=seed)
    check_invalid(file, max_invalid, more=invalid)
    if not traced:
        raise InputError(f"{file.source}: no prompt is left to read")
    reader = base if readout == "base" else aligned
    vocab = min(lens_vocabulary(base), lens_vocabulary(reader))
    found = np.empty((base.n_layers + 1, len(traced)))
    done = 0
    for batch in batches_of(traced, batch_size):
        some = [traced[i] for i in batch]
        rows = [captured(subject, some)[0] for subject in (base, aligned)]
        found[:, batch] = lens_between(base, reader, *rows, vocab=vocab, temperature=temperature)
        done += len(batch)
        if progress is not None:
            progress("same-layer distance", done, len(traced))
    check_invalid(file, max_invalid, more=[*invalid, *_nonfinite(found, traced)])
    return SpinalDistance(
        distance=found,
        prompts=tuple(traced),
        names=(short_name(base.name), short_name(aligned.name)),
        settings={
            "readout": readout,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "vocabulary": vocab,
            "seed": seed,
            "text": encoder.facts(),
        },
    )


def _nonfinite(distance: Float[np.ndarray, "layers N"], prompts: list[TracedPrompt]) -> list[Invalid]:
    bad = ~np.isfinite(distance)
    return [
        Invalid(
            row=prompts[i].row,
            reason="nonfinite_row",
            detail=f"NaN or infinity at the last token from layer {int(bad[:, i].argmax())} on",
            name=prompts[i].prompt_id or "",
        )
        for i in np.flatnonzero(bad.any(0)).tolist()
    ]
