"""What has a vector to be better than? Random directions and the difference of means, fitted on the rows it was."""

from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.subject import Site, Subject
from ..baselines import fit_diffmean, random_vectors
from ..encoded import PROMPT_LAST
from ..positions import Positions
from ..quadruples import QuadrupleFile, read_quadruples
from ..reading import SharedReading
from .candidates import Candidate, Steering, first_vector, metadata_of, settings_of
from .evaluated_rows import EvaluatedRows

RANDOM, DIFFMEAN = "random", "diffmean"
EXCHANGED = "exchanged"  # the vector itself, at the strength of the other direction


def references(
    subject: Subject,
    training: Source | QuadrupleFile | None,
    vector: Steering,
    rows: EvaluatedRows,
    *,
    layer: int | None,
    random_seeds: int,
    diffmean: bool,
    allow_small: bool,
) -> tuple[dict[str, Candidate], tuple[str, ...]]:
    """random 0, random 1, ... and, where asked for, diffmean; and what a reader must know of them.

    training: rows to fit on; None: those of `rows`' file. Where that is the vector's own file, the part that the
    vector was trained on. layer, rank, positions and source token are the vector's (of a set: its first vector's).
    Raises InputError as the baselines do, for no seeds, and where no layer is known.
    """
    if random_seeds < 1:
        raise InputError(f"random_seeds={random_seeds}: expected 1 or more")
    file = rows.file if training is None else read_quadruples(training)
    options, told = fit_options(vector, rows, file, layer)
    options["allow_small"] = allow_small or bool(options["allow_small"])
    options["read"] = SharedReading(subject, [Site(options["layer"], options["component"])])
    rank = getattr(getattr(first_vector(vector), "subspace", None), "rank", 1)
    drawn = random_vectors(subject, file, rank=rank, draws=range(random_seeds), **options)
    found = {f"{RANDOM} {draw}": Candidate(vector=one) for draw, one in enumerate(drawn)}
    if diffmean:
        found[DIFFMEAN] = Candidate(vector=fit_diffmean(subject, file, **options))
    return found, told


def fit_options(
    vector: Steering, rows: EvaluatedRows, file: QuadrupleFile, layer: int | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a baseline is fitted with to stand where the vector does: options of preparing.prepare, and notices."""
    first = first_vector(vector)
    made: Mapping[str, Any] = settings_of(first)
    site = getattr(first, "site", None) or next(iter(getattr(first, "sites", ())), None)
    if layer is not None:
        site = Site(layer)
    if site is None:
        raise InputError("the vector names no site: give the layer of random directions and the difference of means")
    split_alike = "holdout" in made and metadata_of(first).get("sha256") == file.sha256
    holdout = made["holdout"] if split_alike else 0
    told: tuple[str, ...] = ()
    if file.sha256 == rows.file.sha256 and not (rows.held_out and holdout):
        told = ("random factors and the difference of means were fitted on the rows tested: they flatter these",)
    if first is not vector:
        told = (*told, f"random directions and the difference of means act at {site}, the first site of the set")
    positions = getattr(first, "positions", None)
    return {
        "layer": site.layer,
        "component": site.component,
        "positions": positions if isinstance(positions, Positions) else "all",
        "source": metadata_of(first).get("source", PROMPT_LAST) if "holdout" in made else PROMPT_LAST,
        "holdout": holdout,
        "seed": made["seed"] if split_alike else 42,
        "allow_small": made.get("allow_small", False),
        **rows.text,
    }, told
