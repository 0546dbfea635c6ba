"""Does one vector put the concept in and take it out? Flips and teacher-forced KL in both directions, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

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
from .evaluated_rows import EvaluatedRows, evaluated_rows
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
    sides = {}
    for direction in WAYS:
        shares = forced_side(
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
        judged = {NO_EDIT: outputs.unedited(direction, rule)}
        for name, one in methods.items():
            if one.strength(direction) is not None:
                judged[name] = outputs.steered(direction, one, rule)
        sides[direction] = _Side(
            direction=direction, methods=methods, shares=shares, judged=judged, data=data, ours=_ours(flips)
        )
    return Bidirectionality(
        rows=tuple(side.row() for side in sides.values()),
        asymmetry=_asymmetry(sides, FULL),
        asymmetry_selected=_asymmetry(sides, SELECTED) if SELECTED in methods else None,
        outputs=pd.concat([side.outputs() for side in sides.values()], ignore_index=True),
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Side:
    """One direction: what was forced and what was generated, by method."""

    direction: str
    methods: Mapping[str, Candidate]
    shares: DirectionShares
    judged: Mapping[str, Flips]  # of no edit, and of the methods that have a strength in this direction
    data: EvaluatedRows
    ours: bool  # the rule of flips is one of ours

    def row(self) -> DirectionRow:
        return DirectionRow(
            direction=self.direction,
            flips_before=self._rate(NO_EDIT),
            kl_before=self.shares.kl_estimate(NO_EDIT, f"KL of {NO_EDIT}, {self.direction}"),
            full=self._at(FULL),
            selected=self._at(SELECTED) if SELECTED in self.methods else None,
            n_rows=self.shares.n_rows,
            n_tokens=int(self.shares.n_tokens.sum()),
            one_way=self.methods[FULL].one_way,
        )

    def absent(self, name: str) -> str:
        """Why a method has no numbers in this direction."""
        return self.methods[name].absent(self.direction)

    def outputs(self) -> pd.DataFrame:
        """A line a method and row."""
        rows = [row.row for row in self.data.quadruples]
        parts = [
            pd.DataFrame({"method": name, "row": rows, "output": flips.outputs, "flipped": flips.flipped})
            for name, flips in self.judged.items()
        ]
        table = pd.concat(parts, ignore_index=True).astype({"flipped": "boolean"})
        table.insert(0, "direction", self.direction)
        return table

    def _at(self, name: str) -> AtStrength:
        flips = self.judged.get(name)
        absent = self.absent(name)
        return AtStrength(
            strength=self.methods[name].strength(self.direction),
            flips=self._rate(name),
            n_not_judged=0 if flips is None else len(flips.flipped) - flips.n_judged,
            kl=self.shares.kl_estimate(name, f"KL at {name}, {self.direction}", absent),
            recovered=self.shares.recovered_estimate(name, f"recovered share at {name}, {self.direction}", absent),
        )

    def _rate(self, name: str) -> Estimate:
        label = f"flips of {name}, {self.direction}"
        if name not in self.judged:
            return missing(label, "share", self.absent(name))
        level = self.shares.boot.level
        return self.judged[name].rate(self.data.clusters, label, level=level, reconstructed=self.ours)


def _rule(flips: str | FlipRule) -> FlipRule:
    if not isinstance(flips, str):
        return flips
    if flips not in RULES:
        raise InputError(f"flips '{flips}': expected {', '.join(RULES)}, or a function (case, output) -> bool or None")
    return RULES[flips]


def _ours(flips: str | FlipRule) -> bool:
    return isinstance(flips, str) or bool(getattr(flips, "reconstructed", False))


def _asymmetry(sides: Mapping[str, _Side], name: str) -> Estimate:
    label = f"recovered share at {name}, {ELICIT} less {SUPPRESS}"
    for side in sides.values():
        if name not in side.shares.names:
            return missing(label, POINTS, f"{side.direction}: {side.absent(name)}")
    elicit, suppress = sides[ELICIT].shares, sides[SUPPRESS].shares
    both = difference(elicit.recovered(name), suppress.recovered(name))
    n = int(elicit.n_tokens.sum() + suppress.n_tokens.sum())
    return ratio_estimate(elicit.boot, both, n, label=label, unit=POINTS, null_value=0.0)
