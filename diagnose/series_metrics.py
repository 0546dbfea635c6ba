"""Every estimate of every diagnostic against the training step: one long table, and what stands out of it."""

from collections.abc import Mapping, Sequence

import pandas as pd

from .report import Finding, Section, SectionResult

HEADLINES = (
    "ranking.accuracy",
    "ranking.reward_accuracy",
    "ranking.mean_margin",
    "ranking.dpo_loss",
    "displacement.chosen",
    "displacement.rejected",
    "spinal.d_alpha_terminal",
    "spinal.d_transport_terminal",
    "spinal.d_entropy_terminal",
    "spinal.base_distance_terminal",
    "information.chosen_plausible_information",
    "information.chosen_kl",
    "information.rejected_plausible_information",
    "information.rejected_kl",
    "information.chosen_tilt",
    "information.label_beta",
    "weights.delta_share",
    "weights.delta_share_largest",
    "weights.half_change_blocks",
    "weights.delta_top_ratio",
    "weights.alpha_median",
)
COLUMNS = ("step", "section", "name", "label", "value", "low", "high", "n", "n_clusters", "unit", "reason")


def metrics_table(found: Mapping[int, Sequence[SectionResult]]) -> pd.DataFrame:
    """A row a step and estimate, of all sections that were computed at the step."""
    rows = [
        {"step": step, "section": result.section.name, "name": name}
        | {column: getattr(estimate, column) for column in COLUMNS[3:]}
        for step, results in found.items()
        for result in results
        for name, estimate in result.section.estimates.items()
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["value", "low", "high"]
    table[numbers] = table[numbers].astype(float)
    return table


def metrics_section(found: Mapping[int, Sequence[SectionResult]], *, findings: Sequence[Finding] = ()) -> SectionResult:
    """Section "metrics": the headlines of the last save, the table of all, and which save did best.

    findings: about the models themselves. What the sections of the saves warn of is told once each.
    """
    table = metrics_table(found)
    last = max(found)
    headlines = {f"{r.section.name}.{name}": e for r in found[last] for name, e in r.section.estimates.items()}
    estimates = {
        name.replace(".", "_"): headlines[name].model_copy(update={"label": f"step {last}: {headlines[name].label}"})
        for name in HEADLINES
        if name in headlines
    }
    best, moved = _best(table), _moved(table)
    section = Section(
        name="metrics",
        title="Every number by training step",
        question="How did ranking, rewards, displacement and the residual stream move over the saves of this run?",
        summary=" ".join(filter(None, (best, moved)))
        or f"{table.step.nunique()} saves, {table.name.nunique()} numbers each.",
        estimates=estimates,
        tables={"metrics": "a row a step and estimate of any section: value, interval, n, or the reason of a null"},
        settings={"headlines": [name for name in HEADLINES if name in headlines]},
        warnings=_warnings(found),
    )
    told = list({finding.sentence: finding for finding in findings}.values())
    if best:
        rests_on = [f"metrics.{name.replace('.', '_')}" for name in ("ranking.dpo_loss", "ranking.reward_accuracy")]
        told.append(
            Finding(
                severity="info",
                section="metrics",
                sentence=best,
                rests_on=[name for name in rests_on if name.removeprefix("metrics.") in estimates],
                next_step="Intervals of neighbouring saves overlap more often than not: see the table metrics before "
                "shipping one save over another.",
            )
        )
    if moved:
        told.append(
            Finding(
                severity="info",
                section="metrics",
                sentence=moved,
                rests_on=["metrics.weights_delta_share"],
                next_step="A size says nothing of an effect; `alignscope audit --only weights` says where it lies.",
            )
        )
    return SectionResult(section=section, tables={"metrics": table}, findings=tuple(told))


def _warnings(found: Mapping[int, Sequence[SectionResult]]) -> list[str]:
    """What the sections of the saves warn of, once each; those of SPINAL stand in the section "series"."""
    sections = [result.section for results in found.values() for result in results]
    return list(dict.fromkeys(text for one in sections if one.name != "spinal" for text in one.warnings))


def _best(table: pd.DataFrame) -> str:
    """Which save has the lowest held-out DPO loss and which the highest reward accuracy, with intervals."""
    parts = []
    for name, what, lowest in (("dpo_loss", "held-out DPO loss", True), ("reward_accuracy", "reward accuracy", False)):
        rows = table[(table.section == "ranking") & (table.name == name) & table.value.notna()]
        if not len(rows):
            continue
        value = rows.value.to_numpy(dtype=float)
        row = rows.iloc[int(value.argmin() if lowest else value.argmax())]
        end = rows.iloc[int(rows.step.to_numpy().argmax())]
        last = "the last save" if end.step == row.step else f"last save, step {int(end.step)}: {_shown(end)}"
        parts.append(f"{what} is {'lowest' if lowest else 'highest'} at step {int(row.step)} ({_shown(row)}; {last})")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _moved(table: pd.DataFrame) -> str:
    """How far the weights lay from the start at the first and the last save; exact, so without intervals."""
    rows = table[(table.section == "weights") & (table.name == "delta_share") & table.value.notna()].sort_values("step")
    if not len(rows):
        return ""
    at, share = rows.step.to_numpy(dtype=int), rows.value.to_numpy(dtype=float)
    ends = [0, len(rows) - 1] if len(rows) > 1 else [0]
    parts = [f"{100 * share[i]:.2g} % of their norm at step {at[i]}" for i in ends]
    return f"The weight matrices of the blocks had moved from the start by {' and by '.join(parts)}."


def _shown(row: pd.Series) -> str:
    interval = "" if pd.isna(row.low) or pd.isna(row.high) else f" [{row.low:.3g}, {row.high:.3g}]"
    return f"{row.value:.3g}{interval}"
