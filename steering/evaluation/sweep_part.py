"""The sweep as a part of a report: the strength that half of the prompts chose, and what it is worth on the others."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType
from typing import Any

import pandas as pd

from ...diagnose.report import Estimate
from ...diagnose.statistics import MIN_CLUSTERS
from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..quadruples import QuadrupleFile
from ..vector import SteeringVector
from .applying import Steering
from .asked import AskedFile, read_asked
from .candidates import ELICIT, SUPPRESS, WAYS
from .evaluated_rows import EvaluatedRows
from .named_scorers import named_scorer
from .ratings import Scorer
from .report_names import OF_SWEEP
from .report_parts import Part, rehomed, with_texts
from .sweeps import Strengths, Sweep, grid_of, sweep

CHOSEN = "the highest mean score of the prompts that choose; ties to the smallest |strength|"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepRequest:
    """What is swept, and how; scorer: a name of named_scorers, which is fitted on `quadruples`, or a function."""

    prompts: AskedFile
    strengths: Strengths
    scorer: str | Scorer
    quadruples: QuadrupleFile | None
    split: float = 0.5
    temperature: float | int = 1.0
    max_new_tokens: int = 128
    batch_size: int = 16
    draws: int = 2000
    seed: int = 0
    template: str | None = None  # as the vector reads text


def require_grid(vector: SteeringVector, strengths: Strengths) -> None:
    """InputError for a strength that the vector does not know, before anything is made."""
    for strength in {strength for grid in grid_of(strengths).values() for strength in grid}:
        vector.edit_for(strength)


def asked_prompts(source: Source | QuadrupleFile, *, concept: str | None = None, direction: str = "both") -> AskedFile:
    """Prompts of a direction; of plain ones that do not say theirs: elicit, unless it is asked for.

    InputError for another direction, and where none is left.
    """
    if direction not in ("both", *WAYS):
        raise InputError(f"direction '{direction}': expected both, {' or '.join(WAYS)}")
    file = read_asked(source, concept=concept or "", direction=WAYS[0] if direction == "both" else direction)
    kept = tuple(prompt for prompt in file.prompts if direction in ("both", prompt.direction))
    if not kept:
        raise InputError(f"{file.source}: no prompt to {direction} among {len(file.prompts)}")
    return replace(file, prompts=kept)


def tested_file(data: EvaluatedRows) -> QuadrupleFile:
    """The rows that are tested, as a file of their own."""
    return replace(data.file, quadruples=data.quadruples, invalid=())


def tested_prompts(data: EvaluatedRows, concept: str | None, direction: str) -> AskedFile:
    """x to elicit and x_c to suppress, of the rows that are tested."""
    return asked_prompts(tested_file(data), concept=concept, direction=direction)


def scorer_name(scorer: str | Scorer) -> str:
    """What a run is known by: the name; of a function without one also a hash of its code."""
    return scorer if isinstance(scorer, str) else function_name(scorer)


def function_name(function: Any) -> str:
    """Its `name`, or its own name and a hash of its code, as two functions may have one name."""
    if isinstance(name := getattr(function, "name", None), str):
        return name
    called = getattr(function, "__name__", type(function).__name__)
    code = getattr(function, "__code__", None)
    if code is None:
        return str(called)
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    return f"{called} {hashlib.sha256(repr((_plain(code), _plain(held))).encode()).hexdigest()[:12]}"


def _plain(value: Any) -> Any:
    """What is the same in another process: no address."""
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, _plain(value.co_consts)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return value if isinstance(value, str | bytes | int | float | complex | None) else type(value).__name__


def swept(
    subject: Subject, vector: Steering, request: SweepRequest, keep: Path | None, progress: Progress | None
) -> Part:
    """The part; answers are kept in `keep`, a line each."""
    scorer = request.scorer
    if isinstance(scorer, str):
        if request.quadruples is None:
            raise InputError(f"scorer '{scorer}': no quadruples to fit it on")
        scorer = named_scorer(
            subject, scorer, request.quadruples, request.prompts.prompts, max_new_tokens=request.max_new_tokens,
            temperature=request.temperature, seed=request.seed, template=request.template,
        )  # fmt: skip
    rows = [
        {"prompt": one.text, "prompt_id": one.prompt_id, "concept": one.concept, "direction": one.direction}
        for one in request.prompts.prompts
    ]
    ways = {one.direction for one in request.prompts.prompts}
    grid = request.strengths
    found = sweep(
        subject,
        rows,
        vector,
        grid if isinstance(grid, Mapping) else dict.fromkeys(sorted(ways), grid),
        scorer,
        split=request.split,
        seed=request.seed,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        batch_size=request.batch_size,
        template=request.template,
        out=keep,
        draws=request.draws,
        progress=progress,
    )
    return sweep_part(found, request.prompts, warnings=_wrong_sides(vector, found.settings["strengths"], ways))


def _wrong_sides(vector: Steering, grid: Mapping[str, Sequence[float]], ways: Collection[str]) -> list[str]:
    """Directions swept with strengths of the other one alone. An ablation has no other."""
    if getattr(vector, "edit", None) == "ablate":
        return []
    sides = {ELICIT: (1, "above"), SUPPRESS: (-1, "below")}
    return [
        f"to {way} takes strengths {word} 0, and the grid has none: its scores are those of the other direction"
        for way, (sign, word) in sides.items()
        if way in ways and not any(sign * s > 0 for s in grid[way])
    ]


def sweep_part(found: Sweep, file: AskedFile, *, warnings: Sequence[str] = ()) -> Part:
    """What a sweep says, under the names of the section."""
    ways = [way for way in WAYS if way in {*found.to_frame().direction}]
    names = {f"{way}_{name}": f"{name}_{way}" for way in ways for name in OF_SWEEP}
    ours = bool(found.settings["reconstructed"])
    estimates = {f"selected_{way}": _chosen(found.to_frame(), way, ours) for way in ways}
    estimates |= {names[name]: estimate for name, estimate in found.estimates.items()}
    of_list = ("prompts", "prompts_sha256")
    settings = {name: value for name, value in found.settings.items() if name not in of_list}
    answers = with_texts(found.outputs_frame(), "prompt")
    several = [way for way in ways if (found.to_frame().direction == way).sum() > 1]
    if several:
        warnings = [
            *warnings,
            f"to {' and to '.join(several)} a strength was chosen for each concept: what is measured at a chosen "
            "strength is measured at 1 and -1 instead",
        ]
    return Part(
        estimates=estimates,
        tables={"sweep_curve": found.curve_frame(), "selection": found.to_frame(), "answers": answers},
        findings=rehomed(found.findings, names),
        warnings=list(warnings),
        settings=settings | {"prompts": file.source, "prompts_sha256": file.sha256},
        counts={**found.counts, **file.reasons},
        told=found.selection.summary(),
    )


def selected_strengths(part: Part | None) -> dict[str, float]:
    """Direction -> the strength chosen, of those that have one."""
    given: Mapping[str, Estimate] = {} if part is None else part.estimates
    found = {way: given[f"selected_{way}"].value for way in WAYS if f"selected_{way}" in given}
    return {way: value for way, value in found.items() if value is not None}


def choosing_ids(part: Part | None) -> set[str]:
    """Ids of the prompts that chose a strength, in either direction: what they chose is not tested on them."""
    if part is None:
        return set()
    answers = part.tables["answers"]
    return {*answers[answers.half == "selection"].prompt_id}


def _chosen(groups: pd.DataFrame, way: str, ours: bool) -> Estimate:
    rows = groups[groups.direction == way]
    n = int(rows.n_selection.sum())
    label = f"Strength chosen to {way}"
    if len(rows) == 1:
        value, times = float(rows.strength.iloc[0]), float(rows.times_selected.iloc[0])
        often = f"fewer than {MIN_CLUSTERS} prompts choose" if times != times else f"{times:.0%} of resamples choose it"
        told = f"a strength of the grid has no interval; {often}"
        return Estimate(label=label, value=value, level=None, n=n, method=CHOSEN, reason=told, reconstructed=ours)
    reason = f"one for each of {len(rows)} concepts: see table selection"
    return Estimate(label=label, value=None, n=n, method="not computed", reason=reason)
