"""Baselines by name, fitted where the vector stands; each is kept once it is fitted, so that a killed run goes on."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from .. import baselines as fits
from ..affine import AffineSteering
from ..baselines.trained import FACTORS
from ..quadruples import QuadrupleFile, read_quadruples
from ..vector import SteeringVector
from .candidates import ELICIT, SUPPRESS, WAYS, Candidate, Steering
from .evaluated_rows import EvaluatedRows, evaluated_rows
from .references import DIFFMEAN, RANDOM, fit_options
from .sides import forced_side

PROMPT = "prompt"
ALWAYS = (DIFFMEAN, RANDOM)  # beside every vector, asked for or not
_FITS: Mapping[str, Callable[..., SteeringVector | AffineSteering]] = {
    "pca": fits.fit_pca,
    "lat": fits.fit_lat,
    "probe": fits.fit_probe,
    "ssv": fits.fit_ssv,
    "lang": partial(fits.fit_ssv, lang=True),
    "bipo": fits.fit_bipo,
    "reps": fits.fit_reps,
    "loreft": fits.fit_loreft,
    "ablate": fits.ablation,
}
_TRAINED = ("ssv", "lang", "bipo", "reps", "loreft")  # by steps, which they tell
_STRONG = ("lang", "reps")  # trained at strengths of 2 to 20: one of them has to be chosen
BASELINES = (*ALWAYS, *_FITS, PROMPT)


def require_baselines(names: Sequence[str]) -> None:
    """InputError, naming those there are, for another one or one named twice."""
    for place, name in enumerate(names):
        if name not in BASELINES:
            raise InputError(f"baseline '{name}': expected some of {', '.join(BASELINES)}")
        if name in names[:place]:
            raise InputError(f"baseline '{name}' is named twice")


def fit_baselines(
    subject: Subject,
    names: Sequence[str],
    vector: Steering,
    rows: EvaluatedRows,
    training: Source | QuadrupleFile | None,
    *,
    keep: Path | None = None,
    allow_small: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Candidate], tuple[str, ...]]:
    """Those that `faithfulness` does not bring itself, at the vector's block; and what a reader must know.

    training: None: the rows that the vector was trained on, of the file of `rows`. keep: a folder for those fitted.
    Lang and RePS take the strength, of 2, 4, ..., 20, that has the smallest KL on the training rows [reconstructed];
    LoReFT is on, and elicits only; `ablate` takes its direction out behind every block.
    """
    found: dict[str, Candidate] = {}
    told: list[str] = []
    wanted = [name for name in names if name in _FITS]
    if not wanted:
        return found, ()
    file = rows.file if training is None else read_quadruples(training)
    options, flattered = fit_options(vector, rows, file, None)
    options["allow_small"] = allow_small or bool(options["allow_small"])
    for name in wanted:
        one = _fitted(subject, name, file, options, keep, progress)
        if name in _STRONG:
            found[name] = _strongest(subject, one, file, options)
            tried = ", ".join(f"{found[name].strength(way):g} to {way}" for way in WAYS)
            told.append(f"{name}: strengths {tried}: of those it is trained at, of smallest KL on the training rows")
        elif name == "loreft":
            found[name] = Candidate(vector=one, elicit=1, suppress=None)
        elif name == "ablate" and isinstance(one, SteeringVector):
            found[name] = Candidate(vector=fits.everywhere(one, subject), elicit=1, suppress=1)
        else:
            found[name] = Candidate(vector=one)
    if flattered:
        told.append(f"{', '.join(wanted)}: fitted on the rows tested, which flatters them")
    return found, tuple(told)


def _fitted(
    subject: Subject,
    name: str,
    file: QuadrupleFile,
    options: Mapping[str, Any],
    keep: Path | None,
    progress: Progress | None,
) -> SteeringVector | AffineSteering:
    """LoReFT is no file: it is trained again, to the same weights."""
    at = None if keep is None or name == "loreft" else keep / f"{name}.safetensors"
    if at is not None and at.exists():
        return SteeringVector.load(at)
    given = {key: value for key, value in options.items() if name != "loreft" or key != "positions"}
    if name in _TRAINED:
        given["progress"] = None if progress is None else _named(progress, name)
    one = _FITS[name](subject, file, **given)
    if at is not None:
        one.save(at)
        return SteeringVector.load(at)
    return one


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def _strongest(subject: Subject, vector: Steering, file: QuadrupleFile, options: Mapping[str, Any]) -> Candidate:
    """With the strength of each direction that has the smallest KL on the training rows, the smaller of equals."""
    text = {name: options[name] for name in ("template", "eos", "max_response_tokens")}
    data = evaluated_rows(subject, file, vector, rows="all", **text)
    tried = {str(factor): Candidate(vector=vector, elicit=factor, suppress=-factor) for factor in FACTORS}
    best = {}
    for way in WAYS:
        side = forced_side(subject, data, way, tried, resamples=1)
        kls = {factor: side.kl(str(factor))[0] for factor in FACTORS}
        best[way] = min(FACTORS, key=kls.__getitem__)
    return Candidate(vector=vector, elicit=best[ELICIT], suppress=-best[SUPPRESS])
