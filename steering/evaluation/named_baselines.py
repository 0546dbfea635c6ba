"""Baselines by name, fitted where the vector stands; each is kept once it is fitted, so that a killed run goes on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.shards import Progress, prefixed
from ...probes.subject import Site, Subject
from .. import baselines as fits
from ..baselines.lora import EDITS_ONLY
from ..baselines.trained import FACTORS
from ..by_name import train_by_name
from ..preparing import prepare
from ..quadruples import QuadrupleFile, read_quadruples
from ..reading import SharedReading
from ..vector import SteeringVector
from .applying import Undirected
from .candidates import ELICIT, SUPPRESS, WAYS, Candidate, Steering
from .evaluated_rows import EvaluatedRows, evaluated_rows
from .references import DIFFMEAN, RANDOM, fit_options
from .sides import forced_side

PROMPT = "prompt"
ALWAYS = (DIFFMEAN, RANDOM)  # beside every vector, asked for or not
# they elicit, and are no vectors
_UNDIRECTED: Mapping[str, Callable[..., Undirected]] = {"loreft": fits.fit_loreft, "lora": fits.fit_lora}
TRAINED = ("das", "ssv", "lang", "bipo", "reps", *_UNDIRECTED)  # by gradient
_FITTED = ("pca", "lat", "probe", *TRAINED, "ablate")
_STRONG = ("lang", "reps")  # trained at strengths of 2 to 20: one of them has to be chosen
BASELINES = (*ALWAYS, *_FITTED, PROMPT)


def require_baselines(names: Sequence[str], epochs: int | None = None) -> None:
    """InputError, naming those there are, for another or one named twice, and for epochs where none is trained."""
    for place, name in enumerate(names):
        if name not in BASELINES:
            raise InputError(f"baseline '{name}': expected some of {', '.join(BASELINES)}")
        if name in names[:place]:
            raise InputError(f"baseline '{name}' is named twice")
    if epochs is not None and not {*names} & {*TRAINED}:
        raise InputError(f"baseline epochs {epochs}: no baseline is trained; they are of {', '.join(TRAINED)}")
    if epochs is not None and epochs < 1:
        raise InputError(f"baseline epochs {epochs}: expected 1 or more")


def require_fitted(
    subject: Subject,
    vector: Steering,
    rows: EvaluatedRows,
    training: QuadrupleFile | None,
    *,
    allow_small: bool = False,
) -> None:
    """InputError for rows (training None: the file of `rows`) on which no baseline can be fitted; runs nothing."""
    file = rows.file if training is None else training
    options, _ = fit_options(vector, rows, file, None)
    prepare(subject, file, **options | {"allow_small": allow_small or bool(options["allow_small"])})


def fit_baselines(
    subject: Subject,
    names: Sequence[str],
    vector: Steering,
    rows: EvaluatedRows,
    training: Source | QuadrupleFile | None,
    *,
    keep: Path | None = None,
    epochs: int | None = None,
    allow_small: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Candidate], tuple[str, ...]]:
    """Those that `faithfulness` does not bring itself, at the vector's block; and what a reader must know.

    training: None: the rows that the vector was trained on, of the file of `rows`. keep: a folder for those fitted.
    epochs: of those that are trained; None: as many as each method's own default.
    Lang and RePS take the strength, of 2, 4, ..., 20, that has the smallest KL on the training rows [reconstructed];
    LoReFT and LoRA are on, and elicit only; `ablate` takes its direction out behind every block.
    """
    found: dict[str, Candidate] = {}
    told: list[str] = []
    wanted = [name for name in names if name in _FITTED]
    if not wanted:
        return found, ()
    file = rows.file if training is None else read_quadruples(training)
    options, flattered = fit_options(vector, rows, file, None)
    options["allow_small"] = allow_small or bool(options["allow_small"])
    read = SharedReading(subject, [Site(options["layer"], options["component"])])
    for name in wanted:
        more = {} if epochs is None or name not in TRAINED else {"epochs": epochs}
        one = _fitted(subject, name, file, options | more, read, keep, progress)
        if name in _STRONG:
            found[name] = _strongest(subject, one, file, options)
            tried = ", ".join(f"{found[name].strength(way):g} to {way}" for way in WAYS)
            told.append(f"{name}: strengths {tried}: of those it is trained at, of smallest KL on the training rows")
        elif name in _UNDIRECTED:
            found[name] = Candidate(vector=one, elicit=1, suppress=None)
        elif name == "ablate" and isinstance(one, SteeringVector):
            found[name] = Candidate(vector=fits.everywhere(one, subject))
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
    read: SharedReading,
    keep: Path | None,
    progress: Progress | None,
) -> SteeringVector | Undirected:
    """LoReFT and LoRA are no files of vectors: they are trained again, to the same weights, where they act by rule."""
    told = None if progress is None else prefixed(progress, name)
    if name in _UNDIRECTED:
        without = EDITS_ONLY if name == "lora" else ("positions",)
        given = {key: value for key, value in options.items() if key not in without}
        return _UNDIRECTED[name](subject, file, progress=told, **given)
    at = None if keep is None else keep / f"{name}.safetensors"
    if at is not None and at.exists():
        return SteeringVector.load(at)
    one = train_by_name(name, subject, file, read=read, progress=told, **options)
    if at is None:
        return one
    one.save(at)
    return SteeringVector.load(at)


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
