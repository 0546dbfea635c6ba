"""Which ways are there to make a vector, and what can be set of each? Names for the command line and for loops.

vector = train_by_name("probe", subject, "quadruples.jsonl", layer=12, l1=1e-2)
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..errors import InputError
from ..probes.inputs import Source
from ..probes.shards import Progress
from ..probes.subject import Subject
from . import baselines
from .preparing import prepare
from .quadruples import QuadrupleFile
from .reading import Reading, read_states
from .training import train_cdas
from .vector import SteeringVector

_GIVEN = {"subject", "quadruples", "layer", "progress", "read", "options"}  # no settings of a method


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A function that makes a vector, what of it the name settles, and options that have another name here."""

    function: Callable[..., SteeringVector]
    settled: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)  # name here -> parameter


METHODS: Mapping[str, Method] = {
    "cdas": Method(function=train_cdas),
    "das": Method(function=train_cdas, settled={"loss": "ce"}),
    "diffmean": Method(function=baselines.fit_diffmean),
    "caa": Method(function=baselines.fit_diffmean, settled={"tokens": "last"}),
    "pca": Method(function=baselines.fit_pca, renamed={"pca": "method"}),
    "lat": Method(function=baselines.fit_lat),
    "probe": Method(function=baselines.fit_probe),
    "ssv": Method(function=baselines.fit_ssv, settled={"lang": False}),
    "lang": Method(function=baselines.fit_ssv, settled={"lang": True}),
    "bipo": Method(function=baselines.fit_bipo),
    "reps": Method(function=baselines.fit_reps),
    "random": Method(function=baselines.random_vector),
    "ablate": Method(function=baselines.ablation),
}


@cache
def options_of(name: str) -> frozenset[str]:
    """What can be set of a method, beside its layer. InputError for a name that is none."""
    method = _method(name)
    taken = set(inspect.signature(method.function).parameters)
    if "options" in taken:  # handed on
        taken |= set(inspect.signature(prepare).parameters)
    taken -= {*method.settled, *method.renamed.values(), *_GIVEN}
    return frozenset(taken | set(method.renamed))


def require_options(name: str, given: Iterable[str]) -> None:
    """InputError, naming them, for options that the method does not take."""
    unknown = sorted(set(given) - options_of(name))
    if unknown:
        others = {option: [other for other in METHODS if option in options_of(other)] for option in unknown}
        told = "; ".join(f"{option} is of {', '.join(names) or 'no method'}" for option, names in others.items())
        raise InputError(f"method '{name}' takes no {', '.join(unknown)} ({told})")


def train_by_name(
    name: str,
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    read: Reading = read_states,
    progress: Progress | None = None,
    **options: Any,
) -> SteeringVector:
    """The vector of one of METHODS; options: those of its function, `options_of(name)`.

    read: how states are read; a SharedReading spares methods that read the same ones to read them again.

    Of "pca" the way is option `pca`. "ablate" takes the direction out behind one block: see baselines.everywhere.
    Raises InputError for another name, for options that the method does not take, and as its function does.
    """
    require_options(name, options)
    method = _method(name)
    given = {method.renamed.get(option, option): value for option, value in options.items()}
    if "progress" in inspect.signature(method.function).parameters:
        given["progress"] = progress
    return method.function(subject, quadruples, layer=layer, read=read, **method.settled, **given)


def scan_options(name: str) -> Mapping[str, Any]:
    """What the name settles of a method whose vectors scan_layers trains. InputError, naming those, for another."""
    method = _method(name)
    if method.function is not train_cdas:
        known = " or ".join(other for other, one in METHODS.items() if one.function is train_cdas)
        raise InputError(f"method '{name}': scan_layers scans with {known}; give one layer (--layer)")
    return method.settled


def _method(name: str) -> Method:
    if name in ("loreft", "lora"):
        raise InputError(
            f"method '{name}': it has no direction, so no file of a vector holds it; in Python: "
            f"alignscope.steering.baselines.fit_{name}(subject, quadruples, layer=...).applied(subject)"
        )
    if name == "prompt":
        raise InputError(
            "method 'prompt': it asks in words and has no direction, so there is nothing to train and no file of a "
            "vector; steer evaluate --baselines prompt measures it beside a vector; in Python: "
            "alignscope.steering.evaluate_steering(..., baselines=['prompt'])"
        )
    if name not in METHODS:
        raise InputError(f"method '{name}': expected one of {', '.join(METHODS)}")
    return METHODS[name]
