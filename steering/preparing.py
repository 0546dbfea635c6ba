"""What is a vector fitted on? Quadruples as ids, split by prompt, with the site and the positions settled.

Training and the baselines prepare alike, so that they see the same rows, tokens and source states.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..probes.encoding import Encoder
from ..probes.inputs import Source
from ..probes.subject import EditPositions, Site, Subject, Tokens
from .encoded import PROMPT_LAST, EncodedQuadruple, encode_quadruples, quadruple_encoder
from .factors import Factors
from .model_fit import model_fingerprint, require_layer
from .positions import Positions
from .quadruples import QuadrupleFile, read_quadruples, require_enough, split
from .reading import Reading, read_states, states_at
from .separation import measured_factors
from .subspace import Subspace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """Rows to fit on and rows held out, in ids."""

    subject: Subject
    site: Site
    positions: Positions  # with a prefix that is a number
    source: str
    train: tuple[EncodedQuadruple, ...]
    held: tuple[EncodedQuadruple, ...]
    file: QuadrupleFile  # without the rows set aside
    settings: dict[str, Any]  # JSON values
    read: Reading = field(default=read_states, repr=False)  # how states are read: see SharedReading

    def source_states(self, held: bool = False) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n2 d"]]:
        """States at the source token of x_c and of x, prompts cut behind it; float32, CPU."""
        rows = self.held if held else self.train
        if not rows:
            return torch.zeros(0, self.subject.d_model), torch.zeros(0, self.subject.d_model)
        where = self.subject, self.site
        return (
            states_at(*where, [row.positive for row in rows], [row.positive_place for row in rows], self.read),
            states_at(*where, [row.negative for row in rows], [row.negative_place for row in rows], self.read),
        )

    def factors(self, subspace: Subspace) -> Factors:
        """f+ and f- along S: mean coordinates of the source states, AUROC on the prompts held out."""
        return measured_factors(subspace, *self.source_states(), *self.source_states(held=True))

    def metadata(self, metrics: dict[str, Any], notices: Sequence[str] = ()) -> dict[str, Any]:
        """For SteeringVector.metadata: all that made the vector, as JSON values."""
        aside = [f"{n} rows were set aside: {reason}" for reason, n in self.file.reasons.items()]
        return {
            "source": self.source,
            "settings": self.settings,
            "sha256": self.file.sha256,
            "seed": self.settings["seed"],
            "data": {
                "name": self.file.source,
                "n_rows": self.file.n_rows,
                "n_train": len(self.train),
                "n_held_out": len(self.held),
                "n_built": self.file.n_built,
                "set_aside": self.file.reasons,
            },
            "metrics": metrics,
            "notices": [*self.file.notices, *aside, *notices],
            "fingerprint": model_fingerprint(self.subject),
        }


def prepare(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    component: str = "resid_post",
    source: str = PROMPT_LAST,
    positions: str | Positions = "all",
    prefix: int | str = "auto",
    max_response_tokens: int = 128,
    holdout: float | int = 0.2,
    seed: int = 42,
    allow_small: bool = False,
    template: str | None = None,
    eos: str = "auto",
    read: Reading = read_states,
) -> Prepared:
    """Read, encode and split. positions: a name with `prefix`, or Positions, whose own prefix then holds.

    template, eos: how text becomes ids, as of TextPolicy; template None: strings as one user turn where the tokenizer
    has a chat template, raw where not. Raises InputError for a layer that is not there, fewer than 16 usable rows
    (unless allow_small), a source text that a prompt lacks, positions with the prompt lengths of one batch.
    """
    if getattr(subject, "anatomy", None) is None:
        raise InputError(f"{subject.name}: steering is fitted on a transformers model; load or wrap it")
    site = Site(layer, component)
    require_layer(site, subject.n_layers, subject.name)
    asked = positions if isinstance(positions, Positions) else Positions(positions, prefix)
    asked.to_dict()  # refuses prompt lengths
    file = read_quadruples(quadruples)
    encoder = quadruple_encoder(subject, template, eos, file.source)
    found, file = encode_quadruples(encoder, file, source=source, max_response_tokens=max_response_tokens)
    require_enough(file, allow_small=allow_small)
    train, held = split(file.quadruples, holdout, seed=seed)
    return Prepared(
        subject=subject,
        site=site,
        positions=_resolved(asked, encoder, subject, templated=encoder.renderer.templates(file[0].negative_input)),
        source=source,
        train=tuple(found[row.row] for row in train),
        held=tuple(found[row.row] for row in held),
        file=file,
        settings={
            "max_response_tokens": max_response_tokens,
            "holdout": holdout,
            "seed": seed,
            "allow_small": allow_small,
            "template": encoder.policy.template,
            "eos": eos,
        },
        read=read,
    )


def one_way(directions: str) -> tuple[str, ...]:
    """The notice that a vector needs which was trained to elicit or to suppress alone."""
    return () if directions == "both" else (f"trained to {directions} only: the other direction is not its own",)


def edited_tokens(positions: EditPositions, length: int, prompt: int) -> list[int]:
    """Places of a row of `length` tokens, `prompt` of them the prompt's, that are edited."""
    tokens = Tokens(index=torch.arange(length)[None], prompt=torch.tensor([prompt]))
    return positions.at(tokens)[0].nonzero()[:, 0].tolist()


def _resolved(positions: Positions, encoder: Encoder, subject: Subject, *, templated: bool) -> Positions:
    """With a number for prefix="auto": what templated prompts share, or of raw text the BOS."""
    if templated or positions.prefix != "auto":
        return positions.resolved(subject)
    return replace(positions, prefix=int(encoder.bos_id is not None and encoder.prefix[:1] == (encoder.bos_id,)))
