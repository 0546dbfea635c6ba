"""How good is a steered answer? Concept, instruction and fluency, each rated 0 to 2, joined by their harmonic mean.

The scale and the joining are AxBench's (stanfordnlp/axbench). A rating that could not be had is missing, never 0.
"""

import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ...errors import InputError
from ...probes.pair_rows import Text

HIGHEST = 2.0
DIRECTIONS = ("elicit", "suppress")
RATINGS = ("concept_rating", "instruction_rating", "fluency_rating")

Ratings = tuple[float | int | None, float | int | None, float | int | None]

# the whole rest of the line behind the last "Rating:"; brackets come in pairs or not at all
_RATED = re.compile(r"[ \t]*(\[\[)?[ \t]*([0-9]+(?:\.[0-9]+)?)[ \t]*(?(1)\]\])[ \t]*\.?[ \t\r]*")


@runtime_checkable
class Scorer(Protocol):
    """Rates an output: (concept, instruction, fluency), each in [0, 2], None where it could not be rated.

    concept: how much of the concept the output shows, whichever way the vector steers; `suppress` turns it round.
    """

    def __call__(self, prompt: Text, output: str, concept: str) -> Ratings: ...


def rating_score(
    concept: float | int | None,
    instruction: float | int | None,
    fluency: float | int | None,
    *,
    direction: str = "elicit",
) -> float | None:
    """Harmonic mean 3 / (1/c + 1/i + 1/f) in [0, 2], 0 if one is 0; "suppress" takes 2 - c. None if one is missing.

    Of whole ratings the values are 0, 1, 1.2, 1.5 and 2. ValueError for a rating outside [0, 2].

    >>> rating_score(2, 2, 1), rating_score(2, 0, 2), rating_score(0, 2, 2, direction="suppress")
    (1.5, 0.0, 2.0)
    """
    row = [np.nan if rating is None else float(rating) for rating in (concept, instruction, fluency)]
    found = float(rating_scores(np.array([row]), direction=direction)[0])
    return None if np.isnan(found) else found


def rating_scores(ratings: Float[np.ndarray, "n 3"], *, direction: str = "elicit") -> Float[np.ndarray, "n"]:
    """`rating_score` of rows (concept, instruction, fluency); NaN is missing. ValueError as there."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction '{direction}': expected one of {', '.join(DIRECTIONS)}")
    outside = (ratings < 0) | (ratings > HIGHEST)  # of NaN neither
    if outside.any():
        raise ValueError(f"rating {ratings[outside][0]:g}: expected 0 to {HIGHEST:g}, None (NaN) where it is missing")
    terms = ratings.astype(np.float64)
    if direction == "suppress":
        terms[:, 0] = HIGHEST - terms[:, 0]
    with np.errstate(divide="ignore"):
        return np.asarray(3.0 / (1.0 / terms).sum(1))  # 1 / 0 = inf, and 3 / inf = 0


def parse_rating(text: str) -> float | None:
    """The rating of a judge's reply: "Rating: 2" or "Rating: [[2]]", in [0, 2]; of several the last. Else None.

    It has to end its line, a full stop allowed. What is no such line is missing, not 0.

    >>> parse_rating("It is on topic. Rating: [[2]]"), parse_rating("Rating: two"), parse_rating("Rating: 7")
    (2.0, None, None)
    """
    _, mark, rest = text.rpartition("Rating:")
    found = _RATED.fullmatch(rest.split("\n", 1)[0]) if mark else None
    value = None if found is None else float(found[2])
    return value if value is not None and value <= HIGHEST else None


def checked_ratings(ratings: Any, where: str) -> tuple[float, float, float]:
    """What a scorer gave as numbers, NaN where it is missing. InputError, saying where, for anything else."""
    if not isinstance(ratings, Sequence) or isinstance(ratings, str) or len(ratings) != 3:
        raise InputError(f"{where}: the scorer gave {ratings!r}; expected (concept, instruction, fluency)")
    found = []
    for rating in ratings:
        known = isinstance(rating, float | int | np.floating | np.integer) and not np.isnan(rating)
        if rating is not None and (not known or not 0 <= rating <= HIGHEST):
            raise InputError(f"{where}: the scorer rated {rating!r}; expected 0 to {HIGHEST:g}, or None")
        found.append(float("nan") if rating is None else float(rating))
    return found[0], found[1], found[2]
