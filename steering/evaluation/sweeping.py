"""Which strength is worth shipping? A sweep as a report of its own; a killed run continues.

sweep_steering(subject, "pirate.safetensors", [-1, 0, 0.5, 1, 2], quadruples="test.jsonl", out="runs/sweep").summary()
"""

from typing import Any

from ...diagnose.report import Report
from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..quadruples import QuadrupleFile, read_quadruples
from ..vector import SteeringVector
from .candidates import settings_of
from .evaluated_rows import evaluated_rows
from .evaluating import as_json, settled
from .named_scorers import require_rated, require_scorer
from .ratings import Scorer
from .refusals import OPENINGS
from .steering_run import GivenVector, Make, Named, data_facts, steering_report, vector_warnings
from .sweep_part import SweepRequest, asked_prompts, require_grid, scorer_name, swept, tested_file, tested_prompts
from .sweeps import Strengths

QUESTION = "Which strength serves best on prompts that did not choose it, and how much would choosing on them flatter?"


def sweep_steering(
    subject: Subject,
    vector: SteeringVector | Named,
    strengths: Strengths,
    *,
    prompts: Source | None = None,
    quadruples: Source | QuadrupleFile | None = None,
    training: Source | QuadrupleFile | None = None,
    concept: str | None = None,
    direction: str = "both",
    scorer: str | Scorer = "offline",
    split: float = 0.5,
    temperature: float | int = 1.0,
    max_new_tokens: int = 128,
    rows: str = "auto",
    template: str | None = None,
    eos: str | None = None,
    allow_other_weights: bool = False,
    batch_size: int = 16,
    draws: int = 2000,
    seed: int = 0,
    out: Named | None = None,
    progress: Progress | None = None,
    command: str = "sweep_steering(...)",
) -> Report:
    """A report with the section "steering" that holds the sweep alone.

    prompts: as of read_asked; those that do not say their direction are to elicit, unless `direction` says suppress.
    quadruples: instead, x to elicit and x_c to suppress; of the vector's own training file the rows held out.
    template, eos: how text becomes ids; None: as the vector was made with.
    scorer: a function, or offline, keyword:REGEX, reward:FOLDER, which are fitted on `training`, else on `quadruples`.
    For the rest see `sweep` and evaluate_steering. Raises InputError as they do.
    """
    if (prompts is None) == (quadruples is None):
        raise InputError("what is asked? Give prompts (--prompts) or quadruples (--quadruples), one of them")
    given = GivenVector.of(vector, allow_other_weights=allow_other_weights)
    given.vector.applied(subject, 0)  # refused here if it does not belong on the model
    require_grid(given.vector, strengths)
    fitted_on = None if training is None else read_quadruples(training, concept=concept)
    warnings: list[str] = []
    file: QuadrupleFile | None = None
    fit: QuadrupleFile | None = fitted_on
    if quadruples is not None:
        file = read_quadruples(quadruples, concept=concept)
        data = evaluated_rows(subject, file, given.vector, rows=rows, template=template, eos=eos)
        asked = tested_prompts(data, concept, direction)
        fit = tested_file(data) if fitted_on is None else fitted_on
        facts = data_facts(data.file, "quadruples")
        warnings += data.notices
        if fitted_on is None and isinstance(scorer, str):
            warnings.append("the scorer was fitted on the rows that are swept: give others (training=, --training)")
    else:
        source = settled(prompts)
        assert source is not None
        asked = asked_prompts(source, concept=concept, direction=direction)
        facts = data_facts(source, "prompts", "prompt")
    if isinstance(scorer, str):
        require_scorer(scorer, fit is not None)
        require_rated(scorer, asked.prompts, fit)
    request = SweepRequest(
        prompts=asked, strengths=strengths, scorer=scorer, quadruples=fit, split=split, temperature=temperature,
        max_new_tokens=max_new_tokens, batch_size=batch_size, draws=draws, seed=seed,
        template=template or settings_of(given.vector).get("template"),
    )  # fmt: skip
    plan: dict[str, Make] = {
        "sweep": lambda parts, told, keep: swept(subject, given.vector, request, keep, told),
    }
    inputs: dict[str, Any] = {"quadruples" if file is not None else "prompts": facts}
    if fitted_on is not None:
        inputs["training"] = data_facts(fitted_on, "quadruples")
    return steering_report(
        subject,
        given,
        plan,
        kind="steering sweep",
        title="Sweep",
        question=QUESTION,
        data=inputs,
        compare={},
        settings={
            "strengths": as_json(strengths),
            "scorer": scorer_name(scorer),
            "split": split,
            "temperature": float(temperature),
            "max_new_tokens": max_new_tokens,
            "rows": rows,
            "template": template,
            "eos": eos,
            "concept": concept,
            "direction": direction,
            "draws": draws,
        },
        free={"batch_size": batch_size},
        warnings=[*vector_warnings(given, file, OPENINGS.refusing), *warnings],
        asked=(),
        out=out,
        seed=seed,
        progress=progress,
        command=command,
    )
