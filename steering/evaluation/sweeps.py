"""Which strength do I ship? One answer a prompt and strength, rated, chosen on half of the prompts.

found = sweep(subject, prompts, vector, [0.5, 1, 1.5, 2, 3], scorer, seed=0, out="runs/sweep")
found.selected(), found.estimates["elicit_reported_score"]
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ...diagnose.report import Estimate, Finding
from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..encoded import quadruple_encoder
from ..factors import numbers_of
from ..quadruples import QuadrupleFile
from .applying import Steering
from .asked import AskedFile, AskedPrompt, encoded, read_asked
from .generating import Generation, Wanted, generate_steered
from .kept import KeptGenerations, vector_key
from .ratings import DIRECTIONS, RATINGS, Scorer, checked_ratings, rating_score
from .selecting import Selection, select_strength
from .strength_groups import first_part

Strengths = Sequence[float | int] | Mapping[str, Sequence[float | int]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """Answers with their ratings, and the strengths that they choose.

    outputs: a row an answer: concept, direction, prompt_id, prompt, half, strength, output, n_tokens, finished, the
    three ratings and the score (NaN where missing).
    """

    outputs: pd.DataFrame
    selection: Selection
    settings: Mapping[str, Any]
    counts: Mapping[str, int]  # prompts used, and set aside by reason

    @property
    def estimates(self) -> Mapping[str, Estimate]:
        """`elicit_reported_score`, `elicit_optimism`, ...: see Selection."""
        return self.selection.estimates

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What to mind: a grid that is too short, no use in steering, missing ratings."""
        return self.selection.findings

    def selected(self, concept: str | None = None, direction: str | None = None) -> float:
        """The strength chosen for a concept and direction; ValueError unless exactly one is meant."""
        return self.selection.strength(concept, direction)

    def to_frame(self) -> pd.DataFrame:
        """A row a concept and direction: the strength and its scores."""
        return self.selection.to_frame()

    def curve_frame(self) -> pd.DataFrame:
        """A row a concept, direction, half and strength: the mean score with its interval."""
        return self.selection.curve.copy()

    def outputs_frame(self) -> pd.DataFrame:
        """A row an answer."""
        return self.outputs.copy()

    def summary(self) -> str:
        return " ".join([self.selection.summary(), *(finding.sentence for finding in self.findings)])


def sweep(
    subject: Subject,
    prompts: Source | QuadrupleFile,
    vector: Steering,
    strengths: Strengths,
    scorer: Scorer,
    *,
    split: float = 0.5,
    seed: int = 0,
    concept: str = "",
    direction: str = "elicit",
    max_new_tokens: int = 128,
    temperature: float | int = 1.0,
    batch_size: int = 16,
    template: str | None = None,
    out: str | os.PathLike[str] | None = None,
    draws: int = 2000,
    progress: Progress | None = None,
) -> Sweep:
    """One answer for every prompt and strength, rated by `scorer`; the first half of the prompts chooses the strength.

    prompts: as of read_asked: strings or rows with prompt, prompt_id, concept, direction; or quadruples, of which x is
        to elicit and x_c to suppress. concept, direction: of rows that do not say.
    strengths: the grid, 0 (off) allowed, for both directions; or a grid a direction. +1 is f+, -1 is f-: to suppress
        with a clamp or an add, strengths are negative.
    scorer: (prompt, output, concept) -> ratings of concept, instruction and fluency; see ratings.Scorer.
    temperature: 0 is greedy, for flips; 1 draws, for judged answers, with noise that depends on seed and prompt alone.
    template: None: strings as one user turn where the tokenizer has a chat template, as training reads them.
    out: a folder for finished answers; a run that is given it again continues, also with more strengths or prompts.
    split, draws: see select_strength, which does the choosing.
    Raises InputError for prompts, strengths or settings that cannot be used, answers in `out` that were made otherwise,
    and a scorer that rates nothing, or outside [0, 2].
    """
    grid = grid_of(strengths)
    encoder = quadruple_encoder(subject, template, "none", "prompts")
    file = encoded(read_asked(prompts, concept=concept, direction=direction), encoder, max_new_tokens)
    _require_halves(file, grid, split)
    asked = [(prompt, strength) for prompt in file.prompts for strength in grid[prompt.direction]]
    how = {
        "model": subject.fingerprint,
        "vector": vector_key(vector),
        "max_new_tokens": max_new_tokens,
        "temperature": float(temperature),
        "seed": seed,
    }
    wanted = [Wanted(prompt.ids, strength) for prompt, strength in asked]
    kept = None if out is None else KeptGenerations(out, how)
    made = _generated(
        subject,
        vector,
        wanted,
        kept,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    rated = []
    for one, answer in zip(asked, made, strict=True):
        rated.append(_rated(*one, answer, scorer))
        if progress is not None:
            progress("rating", len(rated), len(asked))  # minutes, where a model rates
    outputs = pd.DataFrame(rated)
    try:
        selection = select_strength(outputs, split=split, seed=seed, draws=draws)
    except ValueError as error:
        raise InputError(f"{file.source}: {error}") from error
    ours = bool(getattr(scorer, "reconstructed", False))
    if ours:
        told = {name: e.model_copy(update={"reconstructed": True}) for name, e in selection.estimates.items()}
        selection = replace(selection, estimates=told)
    return Sweep(
        outputs=_with_halves(outputs, selection),
        selection=selection,
        settings={
            **how,
            "strengths": grid,
            "split": split,
            "draws": draws,
            "template": encoder.policy.template,
            "prompts": file.source,
            "prompts_sha256": file.sha256,
            "scorer": getattr(scorer, "name", getattr(scorer, "__name__", type(scorer).__name__)),
            "reconstructed": ours,
        },
        counts={"prompts": len(file.prompts), **file.reasons},
    )


def grid_of(strengths: Strengths) -> dict[str, list[float]]:
    """Direction -> strengths, ascending, each once."""
    given = strengths if isinstance(strengths, Mapping) else dict.fromkeys(DIRECTIONS, strengths)
    if unknown := given.keys() - {*DIRECTIONS}:
        raise InputError(f"strengths of '{sorted(unknown)[0]}': expected directions {' and '.join(DIRECTIONS)}")
    grid = {name: _ascending(values) for name, values in given.items()}
    if not grid or not all(grid.values()):
        raise InputError("no strengths to try")
    return grid


def _ascending(strengths: object) -> list[float]:
    found = numbers_of(strengths)
    if not isinstance(found, list):
        raise InputError(f"strengths={found:g}: expected a sequence of them, such as [{found:g}]")
    return sorted({strength + 0.0 for strength in found})  # -0.0 is 0.0


def _require_halves(file: AskedFile, grid: Mapping[str, Sequence[float]], split: float) -> None:
    """Before anything is generated: what the choosing would refuse."""
    if not 0 < split < 1:
        raise InputError(f"split={split}: expected a share of the prompts in (0, 1)")
    groups: dict[tuple[str, str], list[str]] = {}
    for prompt in file.prompts:
        groups.setdefault((prompt.concept, prompt.direction), []).append(prompt.prompt_id)
    for (concept, direction), ids in groups.items():
        if direction not in grid:
            raise InputError(f"{file.source}: prompts to {direction}, and no strengths for that direction")
        try:
            first_part(ids, split)
        except ValueError as error:
            raise InputError(f"{file.source}: concept {concept!r}, {direction}: {error}") from error


def _generated(
    subject: Subject, vector: Steering, wanted: Sequence[Wanted], kept: KeptGenerations | None, **options: Any
) -> list[Generation]:
    """Answers that are kept, and the others made; equal ones once."""
    known = {} if kept is None else {one: answer for one in wanted if (answer := kept.get(one)) is not None}
    missing = [one for one in dict.fromkeys(wanted) if one not in known]

    def keep(places: Sequence[int], made: Sequence[Generation]) -> None:
        if kept is not None:
            kept.add([missing[i] for i in places], made)

    made = generate_steered(subject, vector, missing, keep=keep, **options)
    known |= dict(zip(missing, made, strict=True))
    return [known[one] for one in wanted]


def _rated(prompt: AskedPrompt, strength: float, answer: Generation, scorer: Scorer) -> dict[str, Any]:
    where = f"prompt {prompt.prompt_id}, strength {strength:g}"
    ratings = checked_ratings(scorer(prompt.text, answer.text, prompt.concept), where)
    score = rating_score(*(None if rating != rating else rating for rating in ratings), direction=prompt.direction)
    return {
        "concept": prompt.concept,
        "direction": prompt.direction,
        "prompt_id": prompt.prompt_id,
        "prompt": prompt.text,
        "cluster": prompt.cluster,
        "strength": strength,
        "output": answer.text,
        "n_tokens": answer.n_tokens,
        "finished": answer.finished,
        **dict(zip(RATINGS, ratings, strict=True)),
        "score": float("nan") if score is None else score,
    }


def _with_halves(outputs: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    return outputs.merge(selection.halves, on=["concept", "direction", "prompt_id"], how="left", validate="m:1")
