"""Figures of the section "information": how much the update added, where, at which tokens, and to which end."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..diagnose.information_rates import row_estimate
from ..diagnose.report import Estimate
from .drawing import GRID, INK, MUTED, POLICY, SOURCE_LOOKS, Look, canvas, null_line, safe, table_with
from .information_panels import PANELS, Series, bare_note, dodge, measure_panels, points, tick_axis
from .information_token_figures import carrying_tokens, token_strip
from .intervals import interval_marks, reliability_curves, row_axis
from .wording import moved, number, stated

WHOLE = "all"  # every position, beside the buckets
NAMED = 2  # sources that a title speaks of
_FITTED, _TRAINED = Look(INK, "solid", "circle"), Look(POLICY, "dash", "square")
_SINCE_SAVE = "since the save before"


def information_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """The section's figures by name; one whose table or columns are missing is left out.

    tables: `profile`, `tokens`, `strips`, `tilt`, `updates`, `reliability`, `candidates` of the section "information".
    settings: `noise_floor` (drawn) and `beta` of the training (named), where they are given.
    No figure where an identity of the table `identities` fails: then no number of the section is shown.
    """
    settings = settings or {}
    checks = table_with(tables, "identities", "ok")
    if checks is not None and (checks["ok"] == "no").any():
        return {}
    floor = _floor(settings)
    made = {
        "profile": _profile(tables, estimates, floor),
        "tokens": carrying_tokens(tables),
        "strip": token_strip(tables),
        "tilt": _tilt(tables, estimates),
        "updates": _updates(tables, floor),
        "reliability": _reliability(tables, estimates, settings),
        "candidates": _candidates(tables, estimates),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _floor(settings: Mapping[str, Any]) -> float | None:
    found = (settings.get("noise_floor") or {}).get("effective")
    return None if found is None else float(found)


def _profile(
    tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate], floor: float | None
) -> go.Figure | None:
    if table_with(tables, "profile", "source", "bucket", "measure", "value") is None:
        return None
    rows = _with_whole(tables["profile"][tables["profile"].measure.isin(list(PANELS))], estimates)
    ticks = ordered_buckets(rows.bucket)
    sources = list(dict.fromkeys(rows.source))
    series = [
        Series(
            name=source,
            group=source,
            look=SOURCE_LOOKS[source],
            rows=rows[rows.source == source].assign(
                x=rows.bucket.map(ticks.index) + dodge(k, len(sources)),
                where=f"{source}, " + rows.bucket.map(lambda name: _positions(str(name))),
            ),
        )
        for k, source in enumerate(sources)
    ]
    figure = measure_panels(
        series,
        ticks=ticks,
        title=_profile_title(rows, floor),
        how="Left in each panel the mean over all response tokens, then by position of the token in its response (end: "
        "end of sequence). A mark is a mean over prompts, with its interval. D weighs every token of the vocabulary "
        "alike and is ruled by those that neither model says; D^S looks at those that can be said; the two KLs weigh "
        "by what the policy and what the reference would say. 0 is no change." + bare_note(rows, "value"),
        x="response token",
        floor=floor,
    )
    if WHOLE in ticks:
        figure.add_vline(x=0.5, line={"color": GRID, "width": 1.5}, layer="below", row="all", col="all")
    return figure


def _with_whole(profile: pd.DataFrame, estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """The profile after the rates over all positions, which stand among the estimates."""
    found = [
        {
            "source": source, "bucket": WHOLE, "measure": measure, "value": e.value, "low": e.low, "high": e.high,
            "n": e.n, "n_prompts": e.n_clusters, "unit": e.unit, "reason": e.reason,
        }
        for source in dict.fromkeys(profile.source)
        for measure in PANELS
        if (e := estimates.get(f"{source}_{measure}")) is not None and e.value is not None
    ]  # fmt: skip
    if not found:
        return profile
    numbers = dict.fromkeys(("value", "low", "high"), float)
    return pd.concat([pd.DataFrame(found).astype(numbers | {"reason": object}), profile], ignore_index=True)


def _profile_title(rows: pd.DataFrame, floor: float | None) -> str:
    """Where D^S is largest along the first source; or that nothing is above the floor."""
    judged = rows[rows.measure.isin(["information", "plausible_information", "kl"]) & rows.value.notna()]
    if floor is not None and len(judged) and (judged.high.fillna(judged.value) < floor).all():
        if judged.high.isna().any():
            return f"Nothing is above the floor of {number(floor)} nats a token; what has no interval is not judged"
        return f"No measurable change at any position: every rate is under {number(floor)} nats a token"
    known = rows[(rows.measure == "plausible_information") & rows.value.notna() & (rows.bucket != WHOLE)]
    if not len(known):
        return "How much the update changed, by position in the response"
    first = known[known.source == known.source.iloc[0]]
    top = first.loc[first.value.idxmax()]
    if not _clear(first, top):
        return f"How much the update changed along {top.source} responses, by position: no part stands out clearly"
    where = _positions(str(top.bucket))
    return f"Along {top.source} responses the update adds most (D^S) at {where}: {stated(row_estimate(top))}"


def _tilt(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    if table_with(tables, "tilt", "source", "bucket", "value") is None:
        return None
    rows = tables["tilt"]
    sources, ticks = list(dict.fromkeys(rows.source)), ordered_buckets(rows.bucket)
    said = [
        f"along {source} {'responses the reference was' if source == sources[0] else 'ones'} {text}"
        for source in sources
        if (
            text := moved(
                estimates.get(f"{source}_tilt"), "sharpened", "smoothed",
                unclear="neither clearly sharpened nor smoothed", bare="tilted by",
            )
        )
    ]  # fmt: skip
    title = "; ".join(said[:NAMED]) or "was the reference sharpened or smoothed?"
    figure = canvas(
        title=title[0].upper() + title[1:],
        how="The slope of the log-ratio, policy over reference, on the reference's log-probability among the tokens "
        "that can be said. Above 0 the update made likely tokens likelier (sharpened), below 0 it evened them out "
        "(smoothed); sampling at temperature t is a slope of 1/t - 1. A mark is the mean over prompts with its "
        "interval, the pale bar the middle half of all positions, its stroke their median. R^2 (hover) says how much "
        "of the change the slope explains. The weights of the slope are ours." + bare_note(rows, "slope"),
        x="response token",
        y="slope a of log-ratio on log ref",
        height=430,
    )
    null_line(figure, 0.0)
    for k, source in enumerate(sources):
        some = rows[(rows.source == source) & rows.value.notna()]
        at = some.bucket.map(ticks.index) + dodge(k, len(sources))
        _quartiles(figure, some.assign(x=at), source)
        points(
            figure,
            some.assign(x=at, where=f"{source}, " + some.bucket.map(lambda name: _positions(str(name)))),
            source,
            SOURCE_LOOKS[source],
            more=[f"<br>R² {number(r2, 2)}, unweighted slope {number(a, 3)}" for r2, a in _pairs(some)],
        )
    if WHOLE in ticks and len(ticks) > 1:
        figure.add_vline(x=0.5, line={"color": GRID, "width": 1.5}, layer="below")
    tick_axis(figure, ticks)
    for text, y in (("sharpened", 1), ("smoothed", 0)):
        figure.add_annotation(
            x=1, y=y, xref="paper", yref="paper", xanchor="right", yanchor="top" if y else "bottom", text=text,
            showarrow=False, font={"color": MUTED, "size": 12},
        )  # fmt: skip
    return figure


def _pairs(rows: pd.DataFrame) -> list[tuple[float, float]]:
    return list(zip(rows.r2.astype(float), rows.unweighted.astype(float), strict=True))


def _quartiles(figure: go.Figure, rows: pd.DataFrame, source: str) -> None:
    """A pale bar from the lower to the upper quartile of positions, and a stroke at the median."""
    if not {"q25", "median", "q75"} <= set(rows.columns):
        return
    look = SOURCE_LOOKS[source]
    figure.add_bar(
        x=rows.x.to_numpy(), y=(rows.q75 - rows.q25).to_numpy(dtype=float), base=rows.q25.to_numpy(dtype=float),
        width=0.13, marker={"color": look.colour, "opacity": 0.22, "line": {"width": 0}}, showlegend=False,
        name=f"{source}: middle half of positions", legendgroup=source,
        customdata=rows[["q25", "q75"]].to_numpy(dtype=float),
        hovertemplate="middle half of positions:<br>%{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=rows.x.to_numpy(), y=rows["median"].to_numpy(dtype=float), mode="markers", showlegend=False,
        name=f"{source}: median of positions", legendgroup=source,
        marker={"symbol": "line-ew-open", "size": 12, "color": look.colour, "line": {"width": 1.5}},
        hovertemplate="median of positions %{y:.3g}<extra></extra>",
    )  # fmt: skip


def _updates(tables: Mapping[str, pd.DataFrame], floor: float | None) -> go.Figure | None:
    if table_with(tables, "updates", "from", "to", "source", "measure", "value") is None:
        return None
    rows = tables["updates"][tables["updates"].measure.isin(list(PANELS))]
    if "bucket" in rows:
        rows = rows[rows.bucket == WHOLE]
    start, saves = str(rows["from"].iloc[0]), list(dict.fromkeys(rows["to"]))
    sources = list(dict.fromkeys(rows.source))
    first = (rows["from"] == start) & (rows["to"] == saves[0])  # since the start and since the save before, both
    kinds = {"": rows["from"] == start, f", {_SINCE_SAVE}": (rows["from"] != start) | first}
    series = []
    for k, source in enumerate(sources):
        for j, (kind, mask) in enumerate(kinds.items()):
            some = rows[mask & (rows.source == source)]
            look = SOURCE_LOOKS[source]
            series.append(
                Series(
                    name=source + kind,
                    group=source,
                    look=Look(look.colour, "solid", look.symbol) if j == 0 else Look(look.colour, "dot", "circle"),
                    rows=some.assign(
                        x=some["to"].map(saves.index) + dodge(2 * k + j, 2 * len(sources)),
                        where=source + ", " + some["from"].astype(str) + " to " + some["to"].astype(str),
                    ),
                    joined=True,
                )
            )
    return measure_panels(
        series,
        ticks=[_short(save) for save in saves],
        title=_updates_title(rows, start),
        how=f"The rates of every step of the training, over the same responses: from {start} to each save, and from "
        "each save to the next (dotted lines, round marks). The rates of steps do not add up to that of the whole way: "
        "an update may take back what the one before did. A mark is a mean over prompts, with its interval."
        + bare_note(rows, "value"),
        x="save",
        floor=floor,
    )


def _clear(rows: pd.DataFrame, top: pd.Series) -> bool:
    """Whether the interval of the largest lies above those of all others that have a value."""
    others = rows.drop(index=top.name)
    return bool(pd.notna(top.low) and others.high.notna().all() and (others.high < top.low).all())


def _updates_title(rows: pd.DataFrame, start: str) -> str:
    """The step that moved farthest in KL, along the first source."""
    kl = rows[(rows.measure == "kl") & (rows.source == rows.source.iloc[0]) & rows.value.notna()]
    steps = kl[(kl["from"] != start) | (kl["to"] == rows["to"].iloc[0])]
    if len(steps) < 2:
        return "How much every step of the training changed"
    top = steps.loc[steps.value.idxmax()]
    if not _clear(steps, top):
        return "How much every step of the training changed"
    return (
        f"Of {len(steps)} steps the one from {top['from']} to {top['to']} moved farthest: KL "
        f"{stated(row_estimate(top))} along {top.source} responses"
    )


def _short(name: str, most: int = 12) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _reliability(
    tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate], settings: Mapping[str, Any]
) -> go.Figure | None:
    table = table_with(tables, "reliability", "at", "confidence", "observed")
    if table is None:
        return None
    beta = settings.get("beta")
    fitted = stated(estimates.get("label_beta"))
    trained = "" if beta is None else f"; it was trained at {number(float(beta))}"
    figure = canvas(
        title=f"The labels follow the policy's log-ratios best at beta = {fitted}{trained}"
        if fitted
        else "Do the labels follow the policy's log-ratios as DPO assumes?",
        how="Pairs are cut into bins by the preference that sigmoid(beta times the gap of log-ratios) predicts, folded "
        "to 0.5 and above; the height of a point is the share of labels that agree, the line through it its Wilson "
        "interval. On the diagonal the prediction is deserved, below it the policy is over-confident. The points at "
        "the fitted beta lie about the diagonal by construction: bends, not height, speak against the law there. At "
        "the training's beta both count.",
        x="preference predicted [share]",
        y="labels that agree [share]",
        height=420,
    )
    labels = {"fitted": ("at the fitted beta", _FITTED), "trained": ("at the training's beta", _TRAINED)}
    reliability_curves(figure, {label: (table[table["at"] == name], look) for name, (label, look) in labels.items()})
    return figure


def _candidates(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    table = table_with(tables, "candidates", "source", "normalized_entropy", "n_candidates")
    if table is None:
        return None
    sources = list(dict.fromkeys(table.source))
    means = {source: stated(estimates.get(f"candidates_{source}")) for source in sources}
    named = [f"{source} responses {said}" for source, said in means.items() if said]
    gone = int(tables["candidates"].normalized_entropy.isna().sum())
    figure = canvas(
        title=f"Entropy of the update over a prompt's candidates, share of its largest: {', '.join(named[:NAMED])}"
        if named
        else "Does the update single out one candidate?",
        how="A small mark is a prompt with several responses of one source: entropy of policy / reference over them, "
        "as a share of its largest value. 1: the update prefers none of them; near 0: it singles out one. The large "
        "mark is the mean over prompts with its interval. It is a property of these responses, not of all that could "
        "be said." + (f" Not shown: {gone} prompts with one response alone." if gone else ""),
        x="entropy, share of log K",
        y="source of the responses",
        height=170 + 80 * len(sources),
    )
    null_line(figure, 1.0, horizontal=False)
    for i, source in enumerate(sources):
        some, look = table[table.source == source], SOURCE_LOOKS[source]
        figure.add_scatter(
            x=some.normalized_entropy.to_numpy(dtype=float),
            y=[i + 0.08 + 0.05 * (k % 5) for k in range(len(some))],
            mode="markers", showlegend=False, name=f"{source}: prompts",
            marker={"color": look.colour, "symbol": f"{look.symbol}-open", "size": 6, "opacity": 0.6},
            customdata=[f"{safe(prompt)}<br>{n:,} candidates"
                        for prompt, n in zip(some.prompt_id, some.n_candidates, strict=True)],
            hovertemplate="%{customdata}<br>%{x:.3f}<extra></extra>",
        )  # fmt: skip
        e = estimates.get(f"candidates_{source}")
        if e is not None and e.value is not None:
            interval_marks(figure, source, look, {i: e}, -0.15)
    figure.update_xaxes(range=[-0.02, 1.16], tickvals=[0, 0.25, 0.5, 0.75, 1])
    row_axis(figure, sources)
    figure.update_layout(showlegend=False)
    return figure


def ordered_buckets(buckets: Iterable[str]) -> list[str]:
    """All positions first, then buckets by their first position, the end of sequence last."""

    def place(name: str) -> tuple[bool, int]:
        start = re.match(r"\d+", name)
        return name == "end", int(start[0]) if start else 0

    return sorted(dict.fromkeys(map(str, buckets)), key=place)


def _positions(bucket: str) -> str:
    """A bucket in words."""
    return {WHOLE: "all tokens", "end": "the end of sequence"}.get(bucket, f"tokens {bucket}")
