"""The preference sections from pair tables alone: no model is opened, so it takes seconds and runs anywhere."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..probes.pair_table import PairScores
from ..probes.pair_table_checks import require_rows
from .manifest import count_reasons, first_rows, package_versions
from .naming import short_name
from .preference_sections import ID, PreferenceSettings, ranking_sections, require_shifted, reward_sections
from .ranking_report import require_ranking_settings
from .report import Manifest, Report, SectionResult
from .run_directory import RunDirectory, Stopwatch

SECTIONS = ("ranking", "rewards")
Table = str | os.PathLike[str] | PairScores


def audit_tables(
    scores: Table,
    *,
    shifted: Mapping[str, Table] | None = None,
    only: Sequence[str] | str | None = None,
    out: str | os.PathLike[str] | None = None,
    settings: PreferenceSettings | None = None,
    max_invalid: float = 0.05,
    command: str = "alignscope.audit_tables(...)",
) -> Report:
    """Ranking and reward sections of a pair table, and of shifted ones beside it.

    scores, shifted: tables that `alignscope score` or `PairScores.save` wrote, or anybody's with `policy_chosen` and
        `policy_rejected` (.parquet, .csv, .jsonl; see PairScores.read). The sections are those of `audit`.
    max_invalid: share of rows set aside above which nothing is computed.
    out: run directory; a finished one is read back, one of other settings or tables refused.
    Raises InputError for a table or setting that cannot be used.
    """
    settings = settings or PreferenceSettings()
    wanted = wanted_sections(only)
    require_ranking_settings(
        (settings.training_beta,), 1, settings.ties, settings.smoothing, settings.assumed_preference, settings.bootstrap
    )
    require_shifted(shifted or {}, wanted)
    main = _read(scores)
    elsewhere = {name: _read(table) for name, table in (shifted or {}).items()}
    for name, table in {ID: main, **elsewhere}.items():
        require_rows(table, name, max_invalid)
    data = {"scores": _facts(scores, main)}
    data |= {f"shifted {name}": _facts((shifted or {})[name], table) for name, table in elsewhere.items()}
    given: dict[str, Any] = {
        "sections": list(wanted),
        "beta": settings.training_beta,
        "beta_given": settings.beta_given,
        "ties": settings.ties,
        "smoothing": settings.smoothing,
        "assumed_preference": settings.assumed_preference,
        "same_training": settings.same_training,
        "shifts": dict(settings.shifts or {}),
        "bootstrap": settings.bootstrap,
    }
    run = None
    if out is not None:
        identity = {
            "kind": "audit of tables",
            "alignscope": package_versions()["alignscope"],
            "seed": settings.seed,
            "data": {name: facts["sha256"] for name, facts in data.items()},
            "settings": given,
        }
        run = RunDirectory(out, identity)
        if run.finished:
            return Report.load(run.path)
    watch = run.watch if run else Stopwatch()
    results: list[SectionResult] = []
    for name in wanted:
        with watch.timed(name):
            if name == "ranking":
                found = ranking_sections(main, settings)
            else:
                found = reward_sections(main, elsewhere, settings)
                if "ranking" not in wanted:
                    found += ranking_sections(main, settings, companions_only=True)
        results += [found[0].costed(watch.cost(name)), *found[1:]]
    policy = str(main.settings.get("policy") or "a pair table")
    report = Report.assemble(
        title=f"Audit of {short_name(policy)}",
        question=f"What did preference training do to {short_name(policy)}, on {len(main)} scored pairs?",
        manifest=Manifest(
            command=command,
            models=_models(main),
            data=data,
            settings=given,
            packages=package_versions(),
            device="none: read from tables",
            dtype=str(main.settings.get("dtype") or "not known"),
            seed=settings.seed,
            wall_seconds=watch.total(),
        ),
        results=results,
    )
    if run is not None:
        report.save(run.path)
    return report


def wanted_sections(only: Sequence[str] | str | None) -> tuple[str, ...]:
    """The sections to compute from tables: those named, else all. Raises InputError for another name."""
    if isinstance(only, str):
        only = [name.strip() for name in only.split(",")]
    unknown = sorted({*(only or ())} - {*SECTIONS})
    if unknown or (only is not None and not list(only)):
        raise InputError(f"--only {','.join(unknown)}: pair tables hold no more than {', '.join(SECTIONS)}")
    return tuple(name for name in SECTIONS if only is None or name in only)


def _read(table: Table) -> PairScores:
    return table if isinstance(table, PairScores) else PairScores.read(table)


def _facts(source: Table, table: PairScores) -> dict[str, Any]:
    """Where a table came from, what it holds, and a hash that two runs can be compared by."""
    if isinstance(source, PairScores):
        name, digest = "a table in memory", hashlib.sha256(source.frame.to_csv(index=False).encode()).hexdigest()
    else:
        name, digest = os.fspath(source), hashlib.sha256(Path(source).read_bytes()).hexdigest()
    facts = {"source": name, "sha256": digest, "scored": len(table), "set_aside": count_reasons(table.invalid)}
    return facts | {"set_aside_rows": first_rows(table.invalid)}


def _models(scores: PairScores) -> dict[str, dict[str, Any]]:
    """What the table says of the models it was scored with."""
    found = {}
    for role in ("policy", "reference"):
        if name := scores.settings.get(role):
            found[role] = {"name": name, "fingerprints": {"combined": scores.settings.get(f"{role}_fingerprint")}}
    if origin := scores.settings.get("explicit"):
        found["reward"] = {"name": origin, "fingerprints": {}}
    return found
