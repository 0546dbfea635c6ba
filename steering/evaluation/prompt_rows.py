"""What does asking do, beside a vector, and what another prompt? The KL of such runs, on the same rows."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...diagnose.report import Estimate
from ...errors import InputError
from ...probes.pair_rows import RowError
from ...probes.scored_rows import TokenSequence
from ...probes.subject import Subject
from ..baselines import prompted
from ..encoded import RunPair, quadruple_encoder
from .candidates import ELICIT, SUPPRESS, WAYS
from .evaluated_rows import EvaluatedRows
from .faithful_table import Faithfulness, FaithfulnessRow
from .forced import forced_kl
from .named_baselines import PROMPT
from .shares import NATS, SHARE, DirectionShares, missing

ANOTHER = "another prompt"
BY_CONSTRUCTION = "the prompt that asks gives the run that KL is measured to: its share is 1 by construction"


def with_prompt(subject: Subject, found: Faithfulness, data: EvaluatedRows) -> Faithfulness:
    """The same with rows "prompt", paired with the others: the ceiling.

    elicit: x_c itself, whose run q is, so the KL is 0 by construction. suppress: x_c with the words that forbid (see
    baselines.prompted) against x. Empty, with the reason, where the rows name no concept or a prompt cannot be read.
    """
    sums, reason = _suppressing(subject, data)
    return _with_row(
        found, data, PROMPT, {ELICIT: np.zeros(len(data.encoded)), SUPPRESS: sums}, reason, exact=(ELICIT,)
    )


def with_another(subject: Subject, found: Faithfulness, data: EvaluatedRows) -> Faithfulness:
    """The same with rows "another prompt": the run of another row's prompt of the kind that q is of, unedited.

    What such a prompt recovers is what two prompts of one kind have in common, the concept included: a vector that
    recovers more moves something else besides. Empty, with the reason, where no other row's prompt can be read.
    """
    columns: dict[str, Float[np.ndarray, "N"] | None] = {}
    for way in WAYS:
        pairs = _others(subject, data, way)
        columns[way] = None if pairs is None else forced_kl(subject, pairs, [nullcontext]).sums.numpy()[:, 0]
    return _with_row(found, data, ANOTHER, columns, "no other row has a prompt of its own that the model can read")


def _others(subject: Subject, data: EvaluatedRows, way: str) -> list[RunPair] | None:
    """Each row's answer behind its own prompt of the other kind (source), and behind that of the next row's (base)."""
    pairs, n = [], len(data.encoded)
    for i, row in enumerate(data.encoded):
        prompt, response = (
            (row.positive, row.positive_response) if way == ELICIT else (row.negative, row.negative_response)
        )
        longest = (subject.limit or len(response) + 2**20) - len(response)
        for k in range(1, n):
            other, cluster = data.encoded[(i + k) % n], data.clusters[(i + k) % n]
            ids = other.positive if way == ELICIT else other.negative
            if cluster != data.clusters[i] and len(ids) <= longest:
                break
        else:
            return None
        pairs.append(
            RunPair(
                base=TokenSequence(ids=(*ids, *response), start=len(ids)),
                source=TokenSequence(ids=(*prompt, *response), start=len(prompt)),
                place=row.negative_place,
                elicit=way == ELICIT,
            )
        )
    return pairs


def _with_row(
    found: Faithfulness,
    data: EvaluatedRows,
    name: str,
    columns: Mapping[str, Float[np.ndarray, "N"] | None],
    reason: str,
    exact: Sequence[str] = (),
) -> Faithfulness:
    """columns: KL sums of each row by direction, None for the reason; exact: directions without chance."""
    sides, rows, examples = dict(found.sides), list(found.rows), [found.examples]
    for way in WAYS:
        column, side = columns[way], sides[way]
        if column is not None:
            side = sides[way] = DirectionShares.resampled(
                (*side.names, name),
                np.column_stack([side.sums, column]),
                side.n_tokens,
                data.clusters,
                resamples=found.settings["resamples"],
                seed=found.settings["seed"],
                level=found.settings["level"],
            )
            numbers = [row.row for row in data.quadruples]
            examples.append(
                pd.DataFrame(
                    {"method": name, "direction": way, "row": numbers, "prompt": data.clusters,
                     "n_tokens": side.n_tokens, "kl": column / side.n_tokens}
                )
            )  # fmt: skip
        rows.append(_row(side, name, way, reason, exact=way in exact))
    return replace(found, sides=sides, rows=tuple(rows), examples=pd.concat(examples, ignore_index=True))


def _row(side: DirectionShares, name: str, way: str, reason: str, *, exact: bool) -> FaithfulnessRow:
    kl_label, label = f"KL of {name}, {way}", f"recovered share of {name}, {way}"
    if name not in side.names:
        kl, recovered = missing(kl_label, NATS, reason), missing(label, SHARE, reason)
    else:
        kl, recovered = side.kl_estimate(name, kl_label), side.recovered_estimate(name, label)
        if exact:
            kl, recovered = _exact(kl), _exact(recovered)
    return FaithfulnessRow(
        method=name,
        direction=way,
        strength=None,
        kl=kl,
        recovered=recovered,
        n_rows=side.n_rows,
        n_tokens=int(side.n_tokens.sum()),
    )


def _exact(estimate: Estimate) -> Estimate:
    if estimate.value is None:
        return estimate
    return estimate.model_copy(
        update={"low": None, "high": None, "level": None, "reason": None, "method": "exact, by construction"}
    )


def _suppressing(subject: Subject, data: EvaluatedRows) -> tuple[Float[np.ndarray, "N"] | None, str]:
    """KL sums of the runs whose prompt forbids the concept, nats; or why there are none."""
    try:
        texts = prompted(subject, replace(data.file, quadruples=data.quadruples), SUPPRESS)
    except InputError as error:
        return None, f"{error} (concept=, --concept)"
    encoder = quadruple_encoder(subject, data.text["template"], data.text["eos"], data.file.source)
    pairs = []
    for text, row, ids in zip(texts, data.quadruples, data.encoded, strict=True):
        try:
            before, after = encoder.encode_apart(text, row.negative_output, row.row)
        except RowError as error:
            return None, f"row {row.row}: the prompt that forbids cannot be read ({error.reason})"
        response = ids.negative_response
        if after[: len(response)] != response:
            return None, f"row {row.row}: the template writes the answer otherwise behind the prompt that forbids"
        if encoder.max_length is not None and len(before) + len(response) > encoder.max_length:
            return None, f"row {row.row}: the prompt that forbids is longer than the model reads"
        pairs.append(
            RunPair(
                base=TokenSequence(ids=(*before, *response), start=len(before)),
                source=TokenSequence(ids=(*ids.negative, *response), start=len(ids.negative)),
                place=ids.negative_place,
                elicit=False,
            )
        )
    return forced_kl(subject, pairs, [nullcontext]).sums.numpy()[:, 0], ""
