"""Whose responses are looked at? Pairs, samples and ready histories as one list, with what was set aside and why."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..probes.encoding import Encoder
from ..probes.histories import SOURCES, History, pair_histories, sample_histories, usable_histories
from ..probes.inputs import Invalid, PairFile, SampleFile, check_invalid, read_pairs, read_samples
from ..probes.row_files import read_rows
from ..probes.sample_rows import COMPLETION, require_full_draws
from .manifest import data_facts

Given = str | os.PathLike[str] | Iterable[Any] | PairFile | SampleFile


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryInput:
    """What was given, read but not tokenised: at most one of pairs, a file of responses and ready histories."""

    pairs: PairFile | None = None
    responses: dict[str, SampleFile] = field(default_factory=dict)  # by source
    ready: tuple[History, ...] = ()

    @property
    def files(self) -> list[PairFile | SampleFile]:
        return [*([] if self.pairs is None else [self.pairs]), *self.responses.values()]

    def facts(self) -> dict[str, dict[str, Any]]:
        """For the manifest: input -> file facts."""
        found = {} if self.pairs is None else {"pairs": data_facts(self.pairs)}
        found |= {f"{source} responses": data_facts(file) for source, file in self.responses.items()}
        return found | ({"histories": {"source": f"list of {len(self.ready)} histories"}} if self.ready else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySet:
    """Histories in their order; chosen and rejected of a pair stand next to each other, first."""

    histories: tuple[History, ...]
    invalid: tuple[Invalid, ...]
    counts: dict[str, int]
    preferences: Float[np.ndarray, "pairs"]  # P(chosen preferred) of every pair kept, in order; 1 where not said
    end_ids: tuple[int, ...] = ()  # tokens that end a text for one of the models
    ends_scored: bool = True  # False under eos="none": whether to stop is then no part of a response

    @property
    def n_pairs(self) -> int:
        return len(self.preferences)


def history_input(
    given: Given | Sequence[History],
    *,
    source: str = "dataset",
    policy_samples: Given | None = None,
    reference_samples: Given | None = None,
    expected: str | None = None,
    max_invalid: float = 0.05,
) -> HistoryInput:
    """Pairs (`prompt, chosen, rejected`), responses (`prompt` and `completion` or `response`), or `History` objects.

    source: what responses are named after. policy_samples, reference_samples: completions drawn from either model.
    expected: "pairs" or "responses", where only one of them will do.
    Raises InputError for another source, files of neither kind or not of the expected one, or too many unusable rows.
    """
    if source not in SOURCES:
        raise InputError(f"source={source!r}: expected one of {', '.join(SOURCES)}")
    drawn = {"policy": policy_samples, "reference": reference_samples}
    responses = {name: _samples(file) for name, file in drawn.items() if file is not None}
    for role, samples in responses.items():
        require_full_draws(samples, role)
    pairs: PairFile | None = None
    ready: tuple[History, ...] = ()
    if isinstance(given, PairFile):
        pairs = given
    elif isinstance(given, SampleFile):
        responses[source] = given
    else:
        if not isinstance(given, str | os.PathLike):
            given = list(given)
        n_ready = sum(isinstance(row, History) for row in given) if isinstance(given, list) else 0
        if isinstance(given, list) and 0 < n_ready < len(given):
            raise InputError(f"{n_ready} of {len(given)} rows are histories, the others are not: give one kind")
        if isinstance(given, list) and n_ready:
            ready = tuple(given)
        elif _are_responses(given):
            responses[source] = _samples(given)
        else:
            pairs = read_pairs(given)
    if (pairs is None and not ready) and drawn.get(source) is not None:
        raise InputError(
            f"source={source!r}: responses are named so and {source}_samples are given too; name the responses "
            "otherwise, as 'dataset'"
        )
    if expected is not None and (pairs is None) == (expected == "pairs"):
        other = "responses" if expected == "pairs" else "pairs"
        what = given if isinstance(given, str | os.PathLike) else "the list"
        raise InputError(f"{what}: holds {other}, not {expected}; give it as {other} (--{other})")
    found = HistoryInput(pairs=pairs, responses=responses, ready=ready)
    for file in found.files:
        check_invalid(file, max_invalid)
    return found


def encoded_histories(
    given: HistoryInput, encoder: Encoder, *, vocab_rows: int, max_invalid: float = 0.05
) -> HistorySet:
    """All of it as ids. Raises InputError where too much cannot be used, or over 5 % of the boundaries shift."""
    histories: list[History] = []
    invalid: list[Invalid] = []
    preferences: list[float] = []
    counts: dict[str, int] = {}
    if given.pairs is not None:
        found, preferences, aside, shifted = pair_histories(given.pairs, encoder)
        check_invalid(given.pairs, max_invalid, more=aside)
        histories += found
        invalid += [*given.pairs.invalid, *aside]
        counts |= {"pairs": len(found) // 2, "boundary_shift": shifted}
    for source, file in given.responses.items():
        found, aside, shifted = sample_histories(file, encoder, source)
        check_invalid(file, max_invalid, more=aside)
        histories += found
        invalid += [*file.invalid, *aside]
        counts[f"{source}_responses"] = len(found)
    if given.ready:
        found, aside = usable_histories(given.ready, vocab_rows=vocab_rows)
        if len(aside) > max_invalid * len(given.ready):
            first = aside[0]
            raise InputError(
                f"{len(aside)} of {len(given.ready)} histories cannot be read, more than max_invalid {max_invalid:g}; "
                f"the first: number {first.row}, {first.reason}: {first.detail}"
            )
        histories += found
        invalid += aside
        counts["histories"] = len(found)
    if not histories:
        raise InputError("no response is left to look at: every row was set aside")
    counts["truncated"] = sum(history.truncated for history in histories)
    return HistorySet(
        histories=tuple(histories),
        invalid=tuple(invalid),
        counts=counts,
        preferences=np.array(preferences, dtype=np.float64),
        end_ids=() if encoder.eos_id is None else (encoder.eos_id,),
        ends_scored=encoder.policy.eos != "none",
    )


def _samples(given: Any) -> SampleFile:
    return given if isinstance(given, SampleFile) else read_samples(given)


def _are_responses(given: Any) -> bool:
    """Whether a file holds one completion a row; pairs have two."""
    columns = {*read_rows(given, what="pairs or responses").columns}
    return "prompt" in columns and bool(columns & {*COMPLETION}) and not columns & {"chosen", "rejected"}
