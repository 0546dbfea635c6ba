"""Does one vector put the concept in and take it out? Flips and teacher-forced KL in both directions, side by side."""

from collections.abc import Mapping

import pandas as pd

from ...diagnose.report import Estimate
from ...diagnose.statistics import LEVEL
from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..quadruples import QuadrupleFile
from ..reading import BATCH_TOKENS
from .both_ways_table import AtStrength, Bidirectionality, DirectionRow
from .candidates import ELICIT, SUPPRESS, WAYS, Candidate, Steering, Strengths
from .evaluated_rows import evaluated_rows
from .flips import FlipRule, Flips, Outputs, begins_with_target, same_answer
from .shares import POINTS, DirectionShares, difference, missing, ratio_estimate
from .sides import NO_EDIT, forced_side

RULES: Mapping[str, FlipRule] = {"same_answer": same_answer, "begins_with_target": begins_with_target}
FULL, SELECTED = "strength 1", "selected strength"


def bidirectionality(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    vector: Steering,
    *,
    selected: Strengths | None = None,
    flips: str | FlipRule = "same_answer",
    rows: str = "auto",
    max_new_tokens: int = 128,
    batch_size: int = 16,
    template: str | None = None,
    eos: str | None = None,
    max_response_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
    progress: Progress | None = None,
) -> Bidirectionality:
    """Flips of greedy answers, KL(q : p) before and after, its recovered share; x steered to elicit, x_c to suppress.

    flips: "same_answer" (what the unedited model says to the other prompt), "begins_with_target" (the row's own
    answer), or a function (FlipCase, output) -> bool, or None where it cannot be judged: such rows are counted and left
    out of the rate. selected: strengths from a sweep, {"elicit": ..., "suppress": ...} in the vector's own scale, or
    one number s for s and -s; choose them on other rows than these.
    Rates have Wilson's interval on prompts; KL, shares and the asymmetry the intervals of `faithfulness`, which see for
    the other arguments. Greedy decoding, at most max_new_tokens, from the ids that teacher forcing reads.
    Raises InputError as faithfulness does, and for a rule that is none.
    """
    rule = _rule(flips)
    own = Candidate.of(vector)
    methods = {FULL: own}
    if selected is not None:
        methods[SELECTED] = Candidate.of(own.vector, selected)
    data = evaluated_rows(
        subject,
        quadruples,
        own.vector,
        rows=rows,
        template=template,
        eos=eos,
        max_response_tokens=max_response_tokens,
    )
    outputs = Outputs(subject, data, max_new_tokens=max_new_tokens, batch_size=batch_size)
    sides: dict[str, DirectionShares] = {}
    judged: dict[tuple[str, str], Flips] = {}
    for direction in WAYS:
        sides[direction] = forced_side(
            subject,
            data,
            direction,
            methods,
            batch_tokens=batch_tokens,
            resamples=resamples,
            seed=seed,
            level=level,
            progress=progress,
        )
        judged[direction, NO_EDIT] = outputs.unedited(direction, rule)
        for name, one in methods.items():
            if one.strength(direction) is not None:
                judged[direction, name] = outputs.steered(direction, one, rule)

    def at(direction: str, name: str) -> AtStrength:
        found, side, absent = judged.get((direction, name)), sides[direction], methods[name].absent(direction)
        told = f"{name}, {direction}"
        label = f"flips at {told}"
        return AtStrength(
            strength=methods[name].strength(direction),
            flips=missing(label, "share", absent) if found is None else found.rate(data.clusters, label, level=level),
            n_not_judged=0 if found is None else len(found.flipped) - found.n_judged,
            kl=side.kl_estimate(name, f"KL at {told}", absent),
            recovered=side.recovered_estimate(name, f"recovered share at {told}", absent),
        )

    found = tuple(
        DirectionRow(
            direction=direction,
            flips_before=judged[direction, NO_EDIT].rate(data.clusters, f"flips unedited, {direction}", level=level),
            kl_before=sides[direction].kl_estimate(NO_EDIT, f"KL unedited, {direction}"),
            full=at(direction, FULL),
            selected=at(direction, SELECTED) if SELECTED in methods else None,
            n_rows=sides[direction].n_rows,
            n_tokens=int(sides[direction].n_tokens.sum()),
            one_way=own.one_way,
        )
        for direction in WAYS
    )
    return Bidirectionality(
        rows=found,
        asymmetry=_asymmetry(sides, FULL, own),
        asymmetry_selected=_asymmetry(sides, SELECTED, methods[SELECTED]) if SELECTED in methods else None,
        outputs=_table(judged, [row.row for row in data.quadruples]),
        settings={
            "flips": flips if isinstance(flips, str) else getattr(flips, "__name__", type(flips).__name__),
            "selected": {way: methods[SELECTED].strength(way) for way in WAYS} if SELECTED in methods else None,
            "max_new_tokens": max_new_tokens,
            "resamples": resamples,
            "seed": seed,
            "level": level,
            **data.settings,
        },
        notices=data.notices,
    )


def _rule(flips: str | FlipRule) -> FlipRule:
    if not isinstance(flips, str):
        return flips
    if flips not in RULES:
        raise InputError(f"flips '{flips}': expected {', '.join(RULES)}, or a function (case, output) -> bool or None")
    return RULES[flips]


def _asymmetry(sides: Mapping[str, DirectionShares], name: str, candidate: Candidate) -> Estimate:
    label = f"recovered share at {name}, elicit less suppress"
    for direction in WAYS:
        if name not in sides[direction].names:
            return missing(label, POINTS, f"{direction}: {candidate.absent(direction)}")
    elicit, suppress = sides[ELICIT], sides[SUPPRESS]
    both = difference(elicit.recovered(name), suppress.recovered(name))
    n = int(elicit.n_tokens.sum() + suppress.n_tokens.sum())
    return ratio_estimate(elicit.boot, both, n, label=label, unit=POINTS, null_value=0.0)


def _table(judged: Mapping[tuple[str, str], Flips], rows: list[int]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {"direction": direction, "method": name, "row": rows, "output": flips.outputs, "flipped": flips.flipped}
        )
        for (direction, name), flips in judged.items()
    ]
    return pd.concat(parts, ignore_index=True).astype({"flipped": "boolean"})
