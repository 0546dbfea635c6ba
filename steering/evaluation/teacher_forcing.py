"""Does the steered model say what it would say to the other prompt? Teacher-forced KL beside what costs nothing."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...diagnose.statistics import LEVEL
from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..quadruples import QuadrupleFile
from ..reading import BATCH_TOKENS
from .candidates import DEFAULT, WAYS, Candidate, Steering, Strengths
from .evaluated_rows import EvaluatedRows, evaluated_rows
from .faithful_table import VECTOR, Faithfulness, FaithfulnessRow
from .references import DIFFMEAN, EXCHANGED, RANDOM, references
from .shares import DirectionShares
from .sides import NO_EDIT, forced_side


def faithfulness(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    vector: Steering,
    *,
    strengths: Strengths | None = None,
    compare: Mapping[str, Steering | Candidate] | None = None,
    training: Source | QuadrupleFile | None = None,
    random_seeds: int = 5,
    rows: str = "auto",
    layer: int | None = None,
    template: str | None = None,
    eos: str | None = None,
    max_response_tokens: int | None = None,
    allow_small: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
    progress: Progress | None = None,
) -> Faithfulness:
    """KL(q : p) of every response token, both ways, and the share of it that the vector takes away.

    elicit: base x + y_c edited, against x_c + y_c; suppress: base x_c + y edited, against x + y; q is always of an
    unedited run. recovered = 1 - KL / KL_none, means over tokens, with an interval from whole prompts resampled.

    vector: SteeringVector, SteeringSet or what else has `applied(subject, strength)`. strengths: {"elicit": 1,
    "suppress": -1} in its own scale, where one left out has no row of numbers; a number s: s and -s. An ablation
    suppresses only. compare: more of them by name, as they are (1 and -1) or as a Candidate with strengths.
    Beside it always: no edit; the vector at the strength of the other direction ("exchanged", not of a one-way vector:
    what it recovers too is not the concept's); `random_seeds` random directions (clamps with factors of their own); and
    the difference of means, unless `compare` brings a "diffmean". Both are fitted on `training`, by default the rows of
    the same file that the vector was trained on (notices say where they saw the tested rows), behind the vector's block
    or `layer`.
    rows, template, eos, max_response_tokens: see evaluated_rows; of the vector's own file, only what was held out.
    allow_small: fit the references on fewer than 16 rows. batch_tokens: padded tokens of a forward pass.
    Raises InputError for rows, names or strengths that cannot be used. Same seed, same intervals.
    """
    own = Candidate.of(vector, strengths)
    given = named_candidates(compare or {})
    data = evaluated_rows(
        subject,
        quadruples,
        own.vector,
        rows=rows,
        template=template,
        eos=eos,
        max_response_tokens=max_response_tokens,
    )
    beside, told = references(
        subject,
        training,
        own.vector,
        data,
        layer=layer,
        random_seeds=random_seeds,
        diffmean=DIFFMEAN not in given,
        allow_small=allow_small,
    )
    draws = {name: candidate for name, candidate in beside.items() if name.startswith(RANDOM)}
    control = own.exchanged()
    methods = {VECTOR: own, **({} if control is None else {EXCHANGED: control}), **given}
    methods |= {name: one for name, one in beside.items() if name not in draws} | draws
    sides = {
        direction: forced_side(
            subject,
            data,
            direction,
            methods,
            batch_tokens=batch_tokens,
            resamples=resamples,
            seed=seed,
            level=level,
            mean_of={RANDOM: tuple(draws)},
            progress=progress,
        )
        for direction in WAYS
    }
    shown = [NO_EDIT, *(name for name in methods if name not in draws), RANDOM]
    found = tuple(
        _row(sides[direction], name, direction, methods.get(name), tuple(draws)) for name in shown for direction in WAYS
    )
    return Faithfulness(
        rows=found,
        examples=pd.concat([_examples(side, direction, data) for direction, side in sides.items()], ignore_index=True),
        settings={
            "strengths": {direction: own.strength(direction) for direction in WAYS},
            "random_seeds": random_seeds,
            "resamples": resamples,
            "seed": seed,
            "level": level,
            **data.settings,
        },
        notices=(*data.notices, *told),
        sides=sides,
        methods=methods,
    )


def named_candidates(compare: Mapping[str, Steering | Candidate]) -> dict[str, Candidate]:
    """By name, with their strengths. InputError for the name of a row that is always there."""
    taken = [name for name in compare if name in (NO_EDIT, VECTOR, EXCHANGED) or name.startswith(RANDOM)]
    if taken:
        raise InputError(f"compare: '{taken[0]}' is the name of a row that is always there; expected another one")
    return {name: Candidate.of(one) for name, one in compare.items()}


def _row(
    side: DirectionShares, name: str, direction: str, candidate: Candidate | None, draws: tuple[str, ...]
) -> FaithfulnessRow:
    """candidate: None of no edit, and of random directions, whose draws are columns of the side."""
    strength = 0.0 if name == NO_EDIT else DEFAULT[direction] if candidate is None else candidate.strength(direction)
    absent = "" if candidate is None else candidate.absent(direction)
    recovered = side.recovered_estimate(name, f"recovered share of {name}, {direction}", absent)
    measured = name == RANDOM and recovered.value is not None
    return FaithfulnessRow(
        method=name,
        direction=direction,
        strength=strength,
        kl=side.kl_estimate(name, f"KL of {name}, {direction}", absent),
        recovered=recovered,
        n_rows=side.n_rows,
        n_tokens=int(side.n_tokens.sum()),
        one_way=None if candidate is None else candidate.one_way,
        of_draws=tuple(side.recovered(draw)[0] for draw in draws) if measured else (),
    )


def _examples(side: DirectionShares, direction: str, data: EvaluatedRows) -> pd.DataFrame:
    """A line a method and row."""
    kl: Float[np.ndarray, "M N"] = (side.sums / side.n_tokens[:, None]).T
    one = pd.DataFrame(
        {"row": [row.row for row in data.quadruples], "prompt": data.clusters, "n_tokens": side.n_tokens}
    )
    named = zip(side.names, kl, strict=True)
    parts = [one.assign(kl=values, method=name, direction=direction) for name, values in named]
    return pd.concat(parts, ignore_index=True)[["method", "direction", "row", "prompt", "n_tokens", "kl"]]
