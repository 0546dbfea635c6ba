"""The section "information" as an audit and a series make it: on the pairs and samples that they have."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..probes.inputs import PairFile, SampleFile
from .history_sets import HistoryInput
from .information import information_report
from .information_floor import NoiseFloor

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from .information_report import InformationReport

READ_AS = ("template", "eos", "boundary", "over_length", "max_length", "batch_tokens", "max_invalid")


def information_of(
    subject: "Subject",
    other: "Subject",
    pairs: PairFile,
    reading: Mapping[str, Any],
    *,
    beta: float | None,
    seed: int,
    policy_samples: SampleFile | None = None,
    reference_samples: SampleFile | None = None,
    shards: Path | None = None,
    reference_states: Path | None = None,
    floor: NoiseFloor | None = None,
    share_prefix: str | bool = "auto",
) -> "InformationReport":
    """Of the pairs and the samples beside them. reading: how text is read, those of `READ_AS`, and `progress`."""
    samples = {"policy": policy_samples, "reference": reference_samples}
    given = HistoryInput(pairs=pairs, responses={name: file for name, file in samples.items() if file is not None})
    return information_report(
        subject,
        other,
        given,
        beta=beta,
        measure_floor=True if floor is None else floor,
        seed=seed,
        share_prefix=share_prefix,
        shards=shards,
        reference_states=reference_states,
        progress=reading["progress"],
        **{name: reading[name] for name in READ_AS},
    )
