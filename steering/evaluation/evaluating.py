"""Does a vector work, both ways, and what does it break? The whole evaluation as one report; a killed run continues.

evaluate_steering(subject, "pirate.safetensors", "test.jsonl", training="train.jsonl", out="runs/pirate").summary()
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...diagnose.naming import asked_for
from ...diagnose.report import Report
from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..encoded import quadruple_encoder
from ..quadruples import QuadrupleFile, read_quadruples
from ..sets import SteeringSet
from ..vector import SteeringVector
from .applying import Undirected
from .both_ways import RULES
from .candidates import WAYS, Candidate
from .detecting import DetectionTexts, read_detection
from .effect_inputs import EffectInputs, read_effects
from .effects_part import detection_part, effects_part
from .evaluated_rows import evaluated_rows
from .flips import FlipRule, OpeningRule
from .forced_part import both_ways_part, faithfulness_part
from .named_baselines import ALWAYS, PROMPT, require_baselines, require_fitted
from .named_scorers import require_scorer
from .prompt_rows import ANOTHER
from .ratings import Scorer
from .refusals import OPENINGS, Openings, first_tokens, openings_of
from .report_names import PARTS
from .report_parts import Part
from .report_section import LACKING, QUESTION
from .steering_run import GivenVector, Make, Named, data_facts, is_of_refusal, steering_report, vector_warnings
from .sweep_part import (
    SweepRequest,
    choosing_ids,
    function_name,
    require_grid,
    scorer_name,
    selected_strengths,
    swept,
    tested_file,
    tested_prompts,
)
from .sweeps import Strengths
from .teacher_forcing import named_candidates

OPENING = "opening"
FLIPS = (*RULES, OPENING)


def evaluate_steering(
    subject: Subject,
    vector: SteeringVector | Named,
    quadruples: Source | QuadrupleFile,
    *,
    training: Source | QuadrupleFile | None = None,
    compare: Mapping[str, SteeringVector | Named] | None = None,
    baselines: Sequence[str] = (),
    baseline_epochs: int | None = None,
    texts: Source | None = None,
    benign: Source | None = None,
    choices: Source | None = None,
    openings: Source | QuadrupleFile | None = None,
    positive: Source | None = None,
    negative: Source | None = None,
    hard: Source | None = None,
    strengths: Strengths | None = None,
    scorer: str | Scorer = "offline",
    split: float = 0.5,
    temperature: float | int = 1.0,
    flips: str | FlipRule = "same_answer",
    max_new_tokens: int = 128,
    rows: str = "auto",
    template: str | None = None,
    eos: str | None = None,
    concept: str | None = None,
    only: Sequence[str] | str | None = None,
    allow_small: bool = False,
    allow_other_weights: bool = False,
    batch_size: int = 16,
    resamples: int = 2000,
    seed: int = 0,
    out: Named | None = None,
    progress: Progress | None = None,
    command: str = "evaluate_steering(...)",
) -> Report:
    """The section "steering": sweep, faithfulness, both directions, side effects, detection, as far as inputs go.

    quadruples: rows to test on; of the vector's own training file those held out (rows: see evaluated_rows).
    training: rows to fit random factors, the difference of means and `baselines` (names of named_baselines) on.
    baseline_epochs: of baselines that are trained by gradient (None: each method's default).
    compare: more vectors by name. texts, benign, choices, openings (quadruples of refusal): see side_effects; openings
        default to the rows' own outputs where they are of refusal. positive, negative, hard: see detection.
    strengths: a grid for the sweep, on the tested rows; half of them choose, and flips, shares at the chosen strength
        and side effects then take it, the first two on the other half. scorer: a function, or offline, keyword:REGEX,
        reward:FOLDER. Without strengths: 1 to elicit, -1 to suppress.
    flips: same_answer, begins_with_target, opening (begins as the answers y_c of the rows do; ours) or a function. With
    "opening", or rows of refusal, the table `openings` has the log-odds of such a beginning, of every method.
    template, eos: how text becomes ids, in every part; None: as the vector was made with.
    concept: text for rows that name none. only: some of sweep, faithfulness, both_ways, side_effects, detection.
    out: run directory: finished parts, fitted baselines and answers are kept there, and the same call continues.
    What was not given is left out, and the section's warnings say what to give.
    Raises InputError for inputs, names or strengths that cannot be used, before the first part runs and `out` is made;
    and where `out` holds another run.
    """
    require_baselines(baselines, baseline_epochs)
    require_vector(vector)
    given = GivenVector.of(vector, allow_other_weights=allow_other_weights)
    others = {
        name: GivenVector.of(one, allow_other_weights=allow_other_weights) for name, one in (compare or {}).items()
    }
    for one in (given, *others.values()):
        one.vector.applied(subject, 0)  # refused here if it does not belong on the model
    file = read_quadruples(quadruples, concept=concept)
    fitted_on = None if training is None else read_quadruples(training, concept=concept)
    sources = {
        "texts": (settled(texts), "texts", "text"),
        "benign": (settled(benign), "prompts", "prompt"),
        "choices": (settled(choices), "questions", None),
        "positive": (settled(positive), "texts", "text"),
        "negative": (settled(negative), "texts", "text"),
        "hard": (settled(hard), "texts", "text"),
    }
    inputs = {name: source for name, (source, _, _) in sources.items()}
    wanted = planned(only, inputs, sweeps=strengths is not None)
    if "sweep" in wanted and isinstance(scorer, str):
        require_scorer(scorer, fitted=True)
    if strengths is not None:
        require_grid(given.vector, strengths)
    data = evaluated_rows(subject, file, given.vector, rows=rows, template=template, eos=eos)
    rule = _rule(flips, file)
    refusals = None if openings is None else read_quadruples(openings)
    if refusals is None and is_of_refusal(file, OPENINGS.refusing):
        refusals = file
    warnings = vector_warnings(given, file, OPENINGS.refusing)
    if label := Candidate.of(given.vector).one_way:
        warnings.append(f"the vector is {label}")
    warnings += data.notices
    request = None
    if "sweep" in wanted and strengths is not None:
        request = SweepRequest(
            prompts=tested_prompts(data, concept, "both"), strengths=strengths, scorer=scorer,
            quadruples=tested_file(data) if fitted_on is None else fitted_on, split=split, temperature=temperature,
            max_new_tokens=max_new_tokens, batch_size=batch_size, draws=resamples, seed=seed,
            template=data.text["template"],
        )  # fmt: skip
        if fitted_on is None and isinstance(scorer, str):
            warnings.append("the scorer was fitted on the rows that are swept: give others (training=, --training)")
    if "faithfulness" in wanted:
        require_compared(others, baselines)
        require_fitted(subject, given.vector, data, fitted_on, allow_small=allow_small)
    effects: EffectInputs | None = None
    if "side_effects" in wanted:
        effects = read_effects(
            subject, texts=_there(inputs["texts"]), benign=inputs["benign"], choices=inputs["choices"],
            openings=refusals, max_new_tokens=max_new_tokens, template=data.text["template"],
        )  # fmt: skip
    begins: Openings | None = None
    if "faithfulness" in wanted and (isinstance(rule, OpeningRule) or is_of_refusal(file, OPENINGS.refusing)):
        begins, told_openings = _openings(subject, file, data.text["template"])
        warnings += told_openings
    detected: DetectionTexts | None = None
    if "detection" in wanted:
        detected = read_detection(
            subject, given.vector, _there(inputs["positive"]), _there(inputs["negative"]), hard=inputs["hard"],
            template=data.text["template"], seed=seed,
        )  # fmt: skip
    makes: dict[str, Make] = {
        "sweep": lambda parts, told, keep: swept(subject, given.vector, _there(request), keep, told),
        "faithfulness": lambda parts, told, keep: faithfulness_part(
            subject, given.vector, data, file, names=baselines,
            compare={name: one.vector for name, one in others.items()}, training=fitted_on, keep=keep,
            epochs=baseline_epochs, allow_small=allow_small, openings=begins, resamples=resamples, seed=seed, how=rows,
            progress=told,
        ),
        "both_ways": lambda parts, told, keep: both_ways_part(
            subject, given.vector, data, file, selected=selected_strengths(parts.get("sweep")),
            choosing=choosing_ids(parts.get("sweep")), flips=rule, how=rows, max_new_tokens=max_new_tokens,
            batch_size=batch_size, resamples=resamples, seed=seed, progress=told,
        ),
        "side_effects": lambda parts, told, keep: effects_part(
            subject, given.vector, tried_strengths(given.vector, parts.get("sweep")), _there(effects),
            batch_size=batch_size, seed=seed, warnings=_not_selected(parts.get("sweep")), progress=told,
        ),
        "detection": lambda parts, told, keep: detection_part(subject, given.vector, _there(detected), seed=seed),
    }  # fmt: skip
    facts = {"quadruples": data_facts(data.file, "quadruples")}
    if fitted_on is not None:
        facts["training"] = data_facts(fitted_on, "quadruples")
    if openings is not None and refusals is not None:
        facts["openings"] = data_facts(refusals, "quadruples")
    facts |= {name: data_facts(one, what, bare) for name, (one, what, bare) in sources.items() if one is not None}
    settings = {
        "parts": wanted,
        "baselines": list(baselines),
        "baseline_epochs": baseline_epochs,
        "strengths": as_json(strengths),
        "scorer": scorer_name(scorer) if "sweep" in wanted else None,
        "split": split,
        "temperature": float(temperature),
        "flips": flips if isinstance(flips, str) else function_name(flips),
        "max_new_tokens": max_new_tokens,
        "rows": rows,
        "template": template,
        "eos": eos,
        "concept": concept,
        "allow_small": allow_small,
        "resamples": resamples,
    }
    return steering_report(
        subject,
        given,
        {name: makes[name] for name in wanted},
        kind="steering",
        title="Steering",
        question=QUESTION,
        data=facts,
        compare=others,
        settings=settings,
        free={"batch_size": batch_size},
        warnings=warnings,
        asked=PARTS if only is None else (),
        out=out,
        seed=seed,
        progress=progress,
        command=command,
    )


def planned(only: Sequence[str] | str | None, inputs: Mapping[str, Source | None], *, sweeps: bool) -> list[str]:
    """The parts that are run, in their order. InputError for one that is asked for without its inputs, and for inputs
    that need others beside them.
    """
    there = {name for name, one in inputs.items() if one is not None}
    can = {"faithfulness", "both_ways", *(["sweep"] if sweeps else [])}
    if "texts" in there:
        can.add("side_effects")
    elif alone := sorted(there & {"benign", "choices"}):
        raise InputError(f"{alone[0]} without texts: give unrelated texts beside them (texts=, --texts)")
    if {"positive", "negative"} <= there:
        can.add("detection")
    elif there & {"positive", "negative", "hard"}:
        raise InputError(f"detection needs both kinds of texts: {LACKING['detection'].partition(': ')[2]}")
    names = asked_for(only, PARTS)
    if names is None:
        return [name for name in PARTS if name in can]
    if lacking := [name for name in names if name not in can]:
        raise InputError(f"--only {lacking[0]}: {LACKING[lacking[0]]}")
    return [name for name in PARTS if name in names]


def settled(source: Source | None) -> Source | None:
    """Rows that can be read more than once."""
    return source if source is None or isinstance(source, str | os.PathLike) else list(source)


def as_json(strengths: Strengths | None) -> Any:
    """A grid as JSON has it."""
    if strengths is None:
        return None
    if isinstance(strengths, Mapping):
        return {name: [float(s) for s in values] for name, values in strengths.items()}
    return [float(s) for s in strengths]


def _rule(flips: str | FlipRule, file: QuadrupleFile) -> str | FlipRule:
    if flips == OPENING:
        return OpeningRule(openings_of(file).refusing)  # what openings_of calls refusing: the outputs y_c
    if isinstance(flips, str) and flips not in RULES:
        raise InputError(f"flips '{flips}': expected {', '.join(FLIPS)}, or a function (case, output) -> bool or None")
    return flips


def tried_strengths(vector: SteeringVector, part: Part | None) -> dict[str, float | None]:
    """What each direction is tried at: the strength selected, else 1 and -1; these too where 0, no edit, was selected,
    as the unsteered model has no side effects.
    """
    own, selected = Candidate.of(vector), selected_strengths(part)
    return {way: selected.get(way) or own.strength(way) for way in WAYS}


def _openings(subject: Subject, file: QuadrupleFile, template: str | None) -> tuple[Openings | None, list[str]]:
    """How the rows' answers with the concept begin and how those without it; or why no first token tells the two."""
    found = openings_of(file)
    try:
        first_tokens(quadruple_encoder(subject, template, "none", "prompts"), found)
    except InputError as error:
        return None, [f"no log-odds of openings: {error}"]
    return found, []


def _not_selected(part: Part | None) -> list[str]:
    return [
        f"the sweep chose 0 to {way}, no edit: side effects are of full strength"
        for way, strength in selected_strengths(part).items()
        if strength == 0
    ]


def require_compared(compare: Mapping[str, GivenVector], baselines: Sequence[str]) -> None:
    """InputError for a vector beside that bears the name of a baseline, or of a row that is always there."""
    if shared := sorted((({*baselines, ANOTHER, PROMPT}) - {*ALWAYS}) & {*compare}):
        raise InputError(f"compare: '{shared[0]}' is the name of a baseline or of a row; give the vector another name")
    named_candidates({name: one.vector for name, one in compare.items()})


def require_vector(vector: object) -> None:
    """InputError for a set, affine edits and LoRA, of which this report is not made."""
    if isinstance(vector, SteeringSet | Undirected):
        raise InputError(
            f"{vector!r}: the report is of one vector; evaluate each alone, or take `faithfulness`, `sweep` and "
            "`side_effects`, which know them"
        )


def _there(value: Any) -> Any:
    """What the plan has made sure of."""
    assert value is not None
    return value
