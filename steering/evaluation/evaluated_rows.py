"""Which rows is a vector tried on? Quadruples as ids, those it was trained on left out where it says which."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.subject import Subject
from ..encoded import PROMPT_LAST, EncodedQuadruple, encode_quadruples, quadruple_encoder
from ..quadruples import Quadruple, QuadrupleFile, connected, read_quadruples, require_enough, split
from .candidates import Steering, first_vector, metadata_of, settings_of

ROWS = ("auto", "all", "held_out")
# how text becomes ids, as train_cdas has it
TEXT: Mapping[str, Any] = {"template": None, "eos": "auto", "max_response_tokens": 128}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluatedRows:
    """Rows as texts and as ids, in the same order; clusters: rows linked by an equal input have one number."""

    quadruples: tuple[Quadruple, ...]
    encoded: tuple[EncodedQuadruple, ...]
    clusters: Int[np.ndarray, "N"]
    file: QuadrupleFile  # without the rows set aside
    held_out: bool  # only rows that the vector was not trained on, of its own file
    own: bool  # the file is the one that the vector was trained on
    text: Mapping[str, Any]  # template, eos, max_response_tokens
    notices: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """For a result: all of this that could change a number."""
        return {"rows": "held_out" if self.held_out else "all", "sha256": self.file.sha256, **self.text}


def evaluated_rows(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    vector: Steering,
    *,
    rows: str = "auto",
    template: str | None = None,
    eos: str | None = None,
    max_response_tokens: int | None = None,
) -> EvaluatedRows:
    """rows: "all"; "held_out", what training held out of the vector's own file; "auto": held out where there are any.

    template, eos, max_response_tokens: None: as the vector was made with, or of one from elsewhere as train_cdas has
    them. Raises InputError where no row can be used, and for "held_out" of another file than the vector was trained on
    or of one that was trained on whole.
    """
    if rows not in ROWS:
        raise InputError(f"rows '{rows}': expected one of {', '.join(ROWS)}")
    if getattr(subject, "anatomy", None) is None:
        raise InputError(f"{subject.name}: steering is evaluated on a transformers model; load or wrap it")
    made = settings_of(first_vector(vector))
    given = {"template": template, "eos": eos, "max_response_tokens": max_response_tokens}
    options = dict(TEXT) | {name: made[name] for name in TEXT if name in made}
    options |= {name: value for name, value in given.items() if value is not None}
    file = read_quadruples(quadruples)
    encoder = quadruple_encoder(subject, options["template"], options["eos"], file.source)
    longest = options["max_response_tokens"]
    found, file = encode_quadruples(encoder, file, source=PROMPT_LAST, max_response_tokens=longest)
    require_enough(file, allow_small=True)
    made_of = metadata_of(first_vector(vector))
    own = made_of.get("sha256") == file.sha256
    holdout = float(made.get("holdout", 0)) if own else 0.0
    if rows == "held_out" and not holdout:
        why = "the vector was trained on all of them" if own else "they are not the rows that the vector was trained on"
        raise InputError(f"{file.source}: no rows are held out: {why}; pass rows='all'")
    held_out = holdout > 0 and rows != "all"
    if held_out:
        _require_its_rows(file, made_of["data"])
    chosen = split(file.quadruples, holdout, seed=int(made["seed"]))[1] if held_out else file.quadruples
    told = [f"{n} rows were set aside: {reason}" for reason, n in file.reasons.items()]
    if own and not held_out:
        told.append("the vector was trained on these rows: they flatter it")
    if held_out and (chose := _chosen_by_rows_held_out(made_of)):
        told.append(f"the rows held out of training chose the vector's {' and '.join(chose)}: they flatter it")
    return EvaluatedRows(
        quadruples=tuple(chosen),
        encoded=tuple(found[row.row] for row in chosen),
        clusters=np.array(connected(chosen)),
        file=file,
        held_out=held_out,
        own=own,
        text=options,
        notices=(*file.notices, *told),
    )


def _chosen_by_rows_held_out(made_of: Mapping[str, Any]) -> list[str]:
    kept = (made_of.get("metrics") or {}).get("kept_step")
    return [what for what, did in (("layer", made_of.get("layer_scan")), ("epoch", kept is not None)) if did]


def _require_its_rows(file: QuadrupleFile, data: Mapping[str, Any]) -> None:
    """Rows set aside decide what is held out: with others set aside than in training it cannot be told."""
    trained = data["n_train"] + data["n_held_out"]
    if len(file) != trained:
        raise InputError(
            f"{file.source}: {len(file)} usable rows, {trained} when the vector was trained, so that what was held out "
            "is not known; leave template, eos and max_response_tokens as they were, or pass rows='all'"
        )
