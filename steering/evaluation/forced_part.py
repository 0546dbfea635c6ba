"""Faithfulness and both directions as parts of a report: what was forced, and what was generated."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ...diagnose.report import Estimate
from ...errors import InputError
from ...probes.inputs import Source
from ...probes.pair_rows import plain_text
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..quadruples import Quadruple, QuadrupleFile
from .both_ways import FULL, SELECTED, bidirectionality
from .both_ways_table import Bidirectionality
from .candidates import ELICIT, WAYS, Candidate, Steering
from .evaluated_rows import EvaluatedRows
from .faithful_table import VECTOR, Faithfulness
from .flips import FlipRule
from .named_baselines import PROMPT, fit_baselines
from .opening_odds import opening_odds
from .prompt_rows import ANOTHER, BY_CONSTRUCTION, with_another, with_prompt
from .references import DIFFMEAN, EXCHANGED, RANDOM
from .refusals import Openings
from .report_parts import Part
from .shares import POINTS, missing
from .sides import NO_EDIT
from .teacher_forcing import faithfulness

OTHERS = {
    EXCHANGED: "itself at the strength of the other direction",
    RANDOM: "random directions",
    DIFFMEAN: "the difference of means",
    PROMPT: "asking",
}


def faithfulness_part(
    subject: Subject,
    vector: Steering,
    rows: EvaluatedRows,
    source: Source | QuadrupleFile,
    *,
    names: Sequence[str],
    compare: Mapping[str, Steering],
    training: QuadrupleFile | None,
    keep: Path | None,
    epochs: int | None,
    allow_small: bool,
    openings: Openings | None,
    resamples: int,
    seed: int,
    how: str,
    progress: Progress | None,
) -> Part:
    """KL of all methods both ways. names: baselines, trained for `epochs` and kept in the folder `keep`; how: "rows" of
    evaluated_rows. openings: of answers with the concept and without it, for their log-odds too.
    """
    fitted, told = fit_baselines(
        subject, names, vector, rows, training, keep=keep, epochs=epochs, allow_small=allow_small, progress=progress
    )
    found = faithfulness(
        subject, source, vector, compare={**compare, **fitted}, training=training, rows=how, allow_small=allow_small,
        resamples=resamples, seed=seed, progress=progress, **rows.text,
    )  # fmt: skip
    found = with_another(subject, found, rows)
    if PROMPT in names:
        found = with_prompt(subject, found, rows)
    notices = [*found.notices, *told]
    if PROMPT in names:
        notices.append(f"To {ELICIT}, {BY_CONSTRUCTION}")
    part = forced_part(found, prompt=PROMPT in names, warnings=notices, names=names)
    if openings is None:
        return part
    odds = opening_odds(subject, rows, found.methods, openings, resamples=resamples, seed=seed, progress=progress)
    estimates, tables = {**part.estimates, **odds.estimates}, {**part.tables, "openings": odds.frame}
    return replace(part, estimates=estimates, tables=tables)


def forced_part(found: Faithfulness, *, prompt: bool, warnings: Sequence[str], names: Sequence[str]) -> Part:
    """The table of methods, and the vector's numbers beside those of OTHERS."""
    estimates: dict[str, Estimate] = {}
    for way in WAYS:
        own = found.row(VECTOR, way)
        estimates[f"recovered_{way}"] = _named(own.recovered, f"Share of the KL that the vector recovers, {way}")
        estimates[f"kl_{way}"] = _named(own.kl, f"KL with the vector, {way}")
        another = f"Share of the KL that another prompt of the same kind recovers, {way}"
        estimates[f"recovered_another_{way}"] = _named(found.row(ANOTHER, way).recovered, another)
        estimates[f"kl_unedited_{way}"] = _named(found.row(NO_EDIT, way).kl, f"KL without an edit, {way}")
        for other, words in OTHERS.items():
            if other != PROMPT or prompt:
                label = f"Recovered share of the vector less that of {words}, {way}"
                estimates[f"over_{other}_{way}"] = _over(found, other, way, label)
    table = found.to_frame()
    bare = table[table.method == NO_EDIT].set_index("direction")["kl"]
    table.insert([*table.columns].index("recovered"), "kl_none", table["direction"].map(bare))
    return Part(
        estimates=estimates,
        tables={"methods": table, "rows": found.examples},
        warnings=warnings,
        settings=dict(found.settings) | {"baselines": list(names)},
        counts={"rows": found.rows[0].n_rows},
        told=found.summary(),
    )


def _over(found: Faithfulness, other: str, way: str, label: str) -> Estimate:
    if other == PROMPT and way == ELICIT:
        return missing(label, POINTS, BY_CONSTRUCTION)
    if other == EXCHANGED and all(row.method != EXCHANGED for row in found.rows):
        return missing(label, POINTS, "the vector works one way only, so no strengths can be exchanged")
    for method in (VECTOR, other):
        recovered = found.row(method, way).recovered
        if recovered.value is None:
            return missing(label, POINTS, f"{method}: {recovered.reason}")
    return _named(found.compared(VECTOR, other, way), label)


def _named(estimate: Estimate, label: str) -> Estimate:
    return estimate.model_copy(update={"label": label})


def both_ways_part(
    subject: Subject,
    vector: Steering,
    rows: EvaluatedRows,
    source: Source | QuadrupleFile,
    *,
    selected: Mapping[str, float],
    choosing: set[str],
    flips: str | FlipRule,
    how: str,
    max_new_tokens: int,
    batch_size: int,
    resamples: int,
    seed: int,
    progress: Progress | None,
) -> Part:
    """Flips and shares in both directions; with strengths selected, on the rows that did not choose them."""
    tested, warnings = rows.quadruples, []
    strengths = None
    if selected:
        own = Candidate.of(vector)
        strengths = {way: selected.get(way, own.strength(way)) for way in WAYS}
        chose = {cluster for row, cluster in zip(tested, rows.clusters, strict=True) if row.quadruple_id in choosing}
        tested = tuple(row for row, cluster in zip(tested, rows.clusters, strict=True) if cluster not in chose)
        if not tested:
            raise InputError("no row is left whose prompts did not choose the strength: give more rows, or a split")
        # a part of the file: under its own name, so that it does not pass for the file that was trained on
        source = replace(rows.file, quadruples=tested, invalid=(), sha256=f"part of {rows.file.sha256}")
        how = "all"
        warnings = [f"flips and table both_ways are of the {len(tested)} rows that did not choose the strength"]
    found = bidirectionality(
        subject, source, vector, selected=strengths, flips=flips, rows=how, max_new_tokens=max_new_tokens,
        batch_size=batch_size, resamples=resamples, seed=seed, progress=progress, **rows.text,
    )  # fmt: skip
    return generated_part(found, tested, warnings=warnings)


def generated_part(found: Bidirectionality, rows: Sequence[Quadruple], *, warnings: Sequence[str]) -> Part:
    """The table of both directions, and what the model said without and with the vector."""
    estimates = {"asymmetry": found.asymmetry}
    if found.asymmetry_selected is not None:
        estimates["asymmetry_selected"] = found.asymmetry_selected
    for row in found.rows:
        way = row.direction
        estimates[f"flips_before_{way}"] = _named(row.flips_before, f"Answers that count as flipped unsteered, {way}")
        estimates[f"flips_{way}"] = _named(row.full.flips, f"Answers that flip at strength 1, {way}")
        if row.selected is not None:
            at = f"at strength {row.selected.strength:g}" if row.selected.strength is not None else "selected"
            estimates[f"flips_selected_{way}"] = _named(row.selected.flips, f"Answers that flip {at}, {way}")
            label = f"Share of the KL recovered {at}, {way}"
            estimates[f"recovered_selected_{way}"] = _named(row.selected.recovered, label)
    return Part(
        estimates=estimates,
        tables={"both_ways": found.to_frame(), "examples": examples(found.outputs, rows)},
        warnings=warnings,
        settings={name: found.settings[name] for name in ("flips", "selected", "max_new_tokens")},
        counts={"rows": len(rows)},
        told=found.summary(),
    )


def examples(outputs: pd.DataFrame, rows: Sequence[Quadruple]) -> pd.DataFrame:
    """A line a direction and row: prompt, the data's own answer to the other prompt, outputs, and whether they flip."""
    said = {(line["direction"], line["method"], line["row"]): line for line in outputs.to_dict("records")}
    columns = {NO_EDIT: "without", FULL: "with", SELECTED: "selected"}
    there = [method for method in columns if method in {*outputs.method}]
    found = []
    for way in WAYS:
        for row in rows:
            plain, shown = (row.negative_input, row.positive_output), (row.positive_input, row.negative_output)
            prompt, target = plain if way == ELICIT else shown
            line = {"direction": way, "row": row.row, "prompt": plain_text(prompt), "target": plain_text(target)}
            for method in there:
                one = said.get((way, method, row.row))
                line[f"output_{columns[method]}"] = None if one is None else one["output"]
                flipped = None if one is None else one["flipped"]
                line[f"flipped_{columns[method]}"] = None if flipped is None or pd.isna(flipped) else bool(flipped)
            found.append(line)
    frame = pd.DataFrame(found)
    return frame.astype({name: "boolean" for name in frame if str(name).startswith("flipped_")})
