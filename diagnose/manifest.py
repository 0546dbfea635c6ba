"""Facts for the manifest: everything the numbers of a run depend on."""

import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..probes.inputs import Invalid, PairFile, PromptFile, SampleFile

if TYPE_CHECKING:
    from ..probes.subject import RewardSubject, Subject

_COMPUTING = (
    "alignscope",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "gguf",
    "safetensors",
    "numpy",
    "numba",
    "scipy",
    "pandas",
)


def package_versions() -> dict[str, str]:
    """Python and the packages that compute, by name; 'not installed' where one is missing."""
    versions = {"python": platform.python_version()}
    for name in _COMPUTING:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def data_facts(file: PairFile | PromptFile | SampleFile) -> dict[str, Any]:
    """Source, sha256, rows read and rows set aside by reason."""
    return {
        "source": file.source,
        "sha256": file.sha256,
        "rows": file.n_rows,
        "usable": len(file),
        "set_aside": count_reasons(file.invalid),
        "set_aside_rows": first_rows(file.invalid),
    }


def first_rows(invalid: Iterable[Invalid], n: int = 5) -> list[str]:
    """The first n rows of every reason, as 'row 17 (id): reason, detail'."""
    seen: dict[str, int] = {}
    shown = []
    for row in invalid:
        seen[row.reason] = seen.get(row.reason, 0) + 1
        if seen[row.reason] <= n:
            shown.append(f"row {row.row}{f' ({row.name})' if row.name else ''}: {row.reason}, {row.detail}")
    return shown


def count_reasons(invalid: Any) -> dict[str, int]:
    """How many rows were set aside for each reason, most frequent first."""
    counts: dict[str, int] = {}
    for row in invalid:
        counts[row.reason] = counts.get(row.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def model_facts(model: "Subject | RewardSubject") -> dict[str, Any]:
    """Name, fingerprints of weights, config, tokenizer and template, and what loading found out."""
    return {"name": model.name, "fingerprints": asdict(model.fingerprints), **model.facts}


def model_identity(model: "Subject | RewardSubject") -> dict[str, Any]:
    """What a number depends on besides the weights: all of it must be the same for a run to continue."""
    facts = {name: model.facts.get(name) for name in ("dtype", "attention", "readout", "reward_index")}
    return {"fingerprint": model.fingerprint, **{name: value for name, value in facts.items() if value is not None}}
