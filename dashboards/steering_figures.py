"""Figures of the section "steering": does it work, at which strength, behind which block, what does it break?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..diagnose.report import Estimate
from .drawing import MUTED, POLICY_LOOK, REFERENCE_LOOK, WRONG, Look, canvas, null_line, safe, table_with
from .intervals import arms, interval_marks, room_for_values, row_axis
from .profiles import layer_profile
from .wording import number, stated

ELICIT, SUPPRESS = WAYS = ("elicit", "suppress")
LOOKS: Mapping[str, Look] = {ELICIT: POLICY_LOOK, SUPPRESS: REFERENCE_LOOK}
OFFSETS = {ELICIT: -0.17, SUPPRESS: 0.17}
LOWEST = -1.0  # recovered shares below it stand at the edge: one vector that breaks the model would squeeze the rest
BOUND = 1.1  # ratio of perplexities that the findings call broken (ours)
NAMES = {
    "vector": "the vector",
    "exchanged": "the vector, strengths exchanged",
    "diffmean": "difference of means",
    "random": "random directions",
    "prompt": "asking (prompt)",
    "another prompt": "another prompt of the kind",
}
PAIRS = {"flips": "answers that flip", "refusals": "benign prompts refused", "capability": "questions answered right"}


def steering_figures(
    tables: Mapping[str, pd.DataFrame],
    estimates: Mapping[str, Estimate],
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, go.Figure]:
    """The section's figures by name; one whose table or numbers are missing is left out.

    methods: recovered share of every method both ways; sweep: score by strength, both halves; layers: KL by block;
    before_after: flips, refusals and right answers; perplexity: of unrelated texts, edited over base.
    """
    made = {
        "methods": _methods(tables, estimates),
        "sweep": _sweep(tables, estimates),
        "before_after": _before_after(estimates),
        "perplexity": _perplexity(estimates),
        "layers": _layers(tables),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


# ---- methods


def _methods(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    table = table_with(tables, "methods", "method", "direction", "recovered", "n_rows", "n_tokens")
    if table is None:
        return None
    table = table[table.method != "no edit"]
    methods = list(dict.fromkeys(table.method))
    if not methods:
        return None
    tokens = {str(way): int(rows.n_tokens.iloc[0]) for way, rows in table.groupby("direction", sort=False)}
    n = ", ".join(f"{count:,} response tokens to {way}" for way, count in tokens.items())
    gone = _gone(tables["methods"])
    figure = canvas(
        title=f"{_methods_title(estimates)} (n = {int(table.n_rows.iloc[0]):,} rows)",
        how="A mark is the share of KL(q : p) that a method takes away: q is what the unedited model says to the other "
        f"prompt, p the edited model, behind the same {n}. Whole prompts were resampled for the intervals. 0 is no "
        "edit, 1 what the other prompt does; below 0 the edit does harm"
        + (f" (marks at the left edge lie below {number(LOWEST)})" if (table.recovered < LOWEST).any() else "")
        + ". Random directions: the mean of several clamps. To elicit, asking is 1 by construction."
        + gone,
        x="recovered share of the KL",
        y="",
        height=150 + 62 * len(methods),
    )
    for value in (0.0, 1.0):
        null_line(figure, value, horizontal=False)
    shown: list[Estimate] = []
    for way in WAYS:
        rows = table[table.direction == way]
        found = {methods.index(str(row["method"])): _share(row) for row in rows.to_dict("records")}
        inside = {i: e for i, e in found.items() if e.value is not None and e.value >= LOWEST}
        shown += [e.model_copy(update={"low": _clipped(e.low), "high": _clipped(e.high)}) for e in inside.values()]
        interval_marks(figure, f"to {way}", LOOKS[way], inside, OFFSETS[way])
        _outside(figure, way, {i: e for i, e in found.items() if i not in inside}, bool(inside))
    edge = LOWEST if (table.recovered < LOWEST).any() else 0.0
    ends = [*shown, _point(1.0), _point(edge)]
    room_for_values(figure, ends, 0.0, room=0.3)
    row_axis(figure, [safe(NAMES.get(name, name)) for name in methods])
    return figure


def _outside(figure: go.Figure, way: str, found: Mapping[int, Estimate], named: bool) -> None:
    """Marks at the left edge of what lies below it, with their values at the right."""
    if not found:
        return
    look = LOOKS[way]
    figure.add_scatter(
        x=[LOWEST] * len(found), y=[i + OFFSETS[way] for i in found], mode="markers", name=f"to {way}",
        showlegend=not named, marker={"symbol": "triangle-left", "size": 11, "color": look.colour},
        customdata=[f"{safe(e.label)}<br>{safe(stated(e))}<br>n = {e.n:,}" for e in found.values()],
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    for i, e in found.items():
        figure.add_annotation(
            x=1, xref="paper", xanchor="right", y=i + OFFSETS[way], text=number(e.value or 0.0), showarrow=False,
            font={"color": look.colour, "size": 12},
        )  # fmt: skip


def _methods_title(estimates: Mapping[str, Estimate]) -> str:
    said = []
    for way in WAYS:
        own = estimates.get(f"recovered_{way}")
        if own is not None and own.value is not None:
            text = f"{stated(own.model_copy(update={'unit': ''}))} of the KL to {way}"
            said.append(text)
    if not said:
        return "How much of the KL each method recovers"
    random = [_over_random(estimates, way) for way in WAYS]
    worse = [way for way, sure in zip(WAYS, random, strict=True) if sure is False]
    end = f"; to {' and to '.join(worse)} no more than random directions is sure" if worse else ""
    return f"The vector recovers {' and '.join(said)}{end}"


def _over_random(estimates: Mapping[str, Estimate], way: str) -> bool | None:
    over = estimates.get(f"over_random_{way}")
    return None if over is None or over.low is None else over.low > 0


def _gone(table: pd.DataFrame) -> str:
    rows = table[table.recovered.isna()]
    if not len(rows):
        return ""
    said = [f"{NAMES.get(row['method'], row['method'])} to {row['direction']} ({row['reason']})"
            for row in rows.to_dict("records")]  # fmt: skip
    return f" Not shown: {'; '.join(said)}."


def _share(row: Mapping[Any, Any]) -> Estimate:
    low, high = (_number(row.get(f"recovered_{name}")) for name in ("low", "high"))
    spread = _number(row.get("recovered_sd"))
    strength = _number(row.get("strength"))
    at = "" if strength is None else f" at strength {number(strength)}"
    told = "" if spread is None else f", standard deviation over directions {number(spread)}"
    return Estimate(
        label=f"{NAMES.get(row['method'], row['method'])}, to {row['direction']}{at}{told}",
        value=float(row["recovered"]),
        low=low,
        high=high,
        n=int(row["n_tokens"]),
        method="cluster bootstrap",
        reason=None if low is not None else "no interval",
    )


# ---- sweep


def _sweep(tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimate]) -> go.Figure | None:
    table = table_with(tables, "sweep_curve", "direction", "half", "strength", "score", "n")
    if table is None:
        return None
    several = table.concept.nunique() > 1
    curve = _mean_curve(table) if several else table
    ways = [way for way in WAYS if (curve.direction == way).any()]
    n = {half: int(rows.groupby(["direction", "strength"]).n.sum().max()) for half, rows in table.groupby("half")}
    figure = make_subplots(
        rows=len(ways),
        cols=1,
        figure=canvas(
            title=_sweep_title(estimates, ways),
            how="Each prompt is answered once at every strength and rated from 0 to 2 (harmonic mean of concept, "
            f"instruction and fluency; to suppress, 2 less the concept). The first half of the prompts (n = "
            f"{n.get('selection', 0):,} answers a strength) chooses the highest mean (red line); what the other half "
            f"(n = {n.get('reported', 0):,}) gives there is reported. The gap of the halves there is the optimism of "
            "choosing and reporting on the same prompts. Strength 0 is the unsteered model, 1 is f+, −1 is f−."
            + (" Means over concepts, without intervals; each concept has a strength of its own." if several else ""),
            x="strength",
            y="score (0 to 2)",
            height=120 + 210 * len(ways),
        ),
        subplot_titles=[_heading(estimates, way) for way in ways],
        vertical_spacing=0.3 / len(ways),
    )
    halves = (("selection", "chooses", "dash", "circle-open"), ("reported", "is reported", "solid", "circle"))
    for k, way in enumerate(ways, 1):
        at = {"row": k, "col": 1}
        for half, words, dash, symbol in halves:
            rows = curve[(curve.direction == way) & (curve.half == half)].sort_values("strength")
            look = LOOKS[way] if half == "reported" else Look(MUTED, "dash", "circle")
            figure.add_scatter(
                x=rows.strength.to_numpy(dtype=float), y=rows.score.to_numpy(dtype=float), mode="lines+markers",
                name=f"half that {words} (n = {n.get(half, 0):,})", legendgroup=half,
                showlegend=k == 1, line={"color": look.colour, "dash": dash, "width": 1.8},
                marker={"color": look.colour, "symbol": symbol, "size": 8},
                error_y=arms(rows, "score", look.colour), customdata=rows.n.to_numpy(),
                hovertemplate="strength %{x:g}<br>score %{y:.3g}<br>n = %{customdata}<extra></extra>", **at,
            )  # fmt: skip
        chosen = estimates.get(f"selected_{way}")
        if chosen is not None and chosen.value is not None:
            figure.add_vline(x=chosen.value, line={"color": WRONG, "width": 1.5}, layer="below", **at)
        figure.update_yaxes(range=[-0.08, 2.08], title_text="score (0 to 2)", title_font_size=13, **at)
        figure.update_xaxes(title_text="strength" if k == len(ways) else None, **at)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        margin_b=figure.layout.margin.b + 34,
        legend={"yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    )
    return figure


def _mean_curve(table: pd.DataFrame) -> pd.DataFrame:
    """Means over concepts; no interval, as prompts of concepts may be the same."""
    keys = ["direction", "half", "strength"]
    found = table.groupby(keys, as_index=False, sort=False).agg(score=("score", "mean"), n=("n", "sum"))
    return found.assign(low=np.nan, high=np.nan)


def _heading(estimates: Mapping[str, Estimate], way: str) -> str:
    chosen = estimates.get(f"selected_{way}")
    return f"to {way}" + ("" if chosen is None or chosen.value is None else f": {number(chosen.value)} chosen")


def _sweep_title(estimates: Mapping[str, Estimate], ways: list[str]) -> str:
    said = []
    for way in ways:
        chosen, score = estimates.get(f"selected_{way}"), estimates.get(f"reported_score_{way}")
        if score is None or score.value is None:
            continue
        at = "" if chosen is None or chosen.value is None else f" at strength {number(chosen.value)}"
        said.append(f"{stated(score)} to {way}{at}")
    return f"On prompts that did not choose, the score is {'; '.join(said)}" if said else "Score by strength"


# ---- what it breaks


def _before_after(estimates: Mapping[str, Estimate]) -> go.Figure | None:
    rows = []
    for name, words in PAIRS.items():
        for way in WAYS:
            before = estimates.get(f"{name}_before_{way}")
            after = estimates.get(f"{name}_{way}" if name == "flips" else f"{name}_after_{way}")
            if before is not None and after is not None and before.value is not None and after.value is not None:
                rows.append((f"{words},<br>to {way}", way, before, after))
    if not rows:
        return None
    figure = canvas(
        title=_pairs_title(estimates),
        how="Shares of the same rows without the vector (hollow) and with it (filled), with their intervals, and the "
        "shift as a line. Flips are wanted; refusals of prompts that deserve an answer and lost right answers are not. "
        "Flips are at strength 1 (−1 to suppress); the others at the selected strength, where one was.",
        x="share of rows",
        y="",
        height=150 + 66 * len(rows),
    )
    for i, (_, _, before, after) in enumerate(rows):
        figure.add_scatter(
            x=[before.value, after.value], y=[i - 0.16, i + 0.16], mode="lines", line={"color": MUTED, "width": 1.5},
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    hollow = {i: before for i, (_, _, before, _) in enumerate(rows)}
    interval_marks(figure, "without", Look(MUTED, "dash", "circle-open"), hollow, -0.16)
    for way in WAYS:
        filled = {i: after for i, (_, one, _, after) in enumerate(rows) if one == way}
        interval_marks(figure, f"steered to {way}", LOOKS[way], filled, 0.16)
    room_for_values(figure, [e for _, _, *both in rows for e in both], 0.0, room=0.28)
    row_axis(figure, [label for label, *_ in rows])
    return figure


def _pairs_title(estimates: Mapping[str, Estimate]) -> str:
    said = []
    for way in WAYS:
        before, after = estimates.get(f"flips_before_{way}"), estimates.get(f"flips_{way}")
        if before is not None and after is not None and before.value is not None and after.value is not None:
            said.append(f"from {number(100 * before.value, 0)} to {number(100 * after.value, 0)} % to {way}")
    if said:
        n = next(e.n for way in WAYS if (e := estimates.get(f"flips_{way}")) is not None and e.value is not None)
        return f"Answers that flip: {', '.join(said)} (n = {n:,} rows)"
    return "What the vector changes on the same rows"


def _perplexity(estimates: Mapping[str, Estimate]) -> go.Figure | None:
    found = {i: e for i, way in enumerate(WAYS)
             if (e := estimates.get(f"perplexity_ratio_{way}")) is not None and e.value is not None}  # fmt: skip
    if not found:
        return None
    n = max(e.n_clusters or 0 for e in found.values())
    said = [f"{stated(e)} when steered to {WAYS[i]}" for i, e in found.items()]
    figure = canvas(
        title=f"Perplexity of {n:,} unrelated texts is multiplied by {', by '.join(said)}",
        how="Perplexity with the vector over perplexity without it, on the same tokens of texts that have nothing to "
        "do with the concept: 1 (dashed) is no change, above it the texts read worse. The dotted line, "
        f"{number(BOUND)}, is a bound of ours above which the report says that the vector breaks unrelated text.",
        x="perplexity, edited / base",
        y="",
        height=150 + 62 * len(found),
    )
    null_line(figure, 1.0, horizontal=False)
    figure.add_vline(x=BOUND, line={"color": WRONG, "width": 1.2, "dash": "dot"}, layer="below")
    labels = [f"to {WAYS[i]}" for i in found]
    for place, (i, e) in enumerate(found.items()):
        interval_marks(figure, f"to {WAYS[i]}", LOOKS[WAYS[i]], {place: e}, 0.0)
    room_for_values(figure, [*found.values(), _point(BOUND)], 1.0, room=0.28)
    row_axis(figure, labels)
    figure.update_layout(showlegend=False)
    return figure


# ---- layers


def _layers(tables: Mapping[str, pd.DataFrame]) -> go.Figure | None:
    table = table_with(tables, "layers", "layer", "kl_elicit", "kl_suppress", "worst_kl")
    if table is None:
        return None
    rows = pd.concat(
        [
            pd.DataFrame(
                {"model": f"to {way}", "layer": table.layer, "kl": table[f"kl_{way}"],
                 "kl_low": table.get(f"kl_{way}_low"), "kl_high": table.get(f"kl_{way}_high")}
            )
            for way in WAYS
        ],
        ignore_index=True,
    )  # fmt: skip
    rows = rows.astype({"kl": float, "kl_low": float, "kl_high": float})
    chosen = table[table.chosen.astype(bool)] if "chosen" in table else table.iloc[:0]
    title = f"KL on held-out rows, behind each of {len(table)} blocks"
    if len(chosen):
        one = chosen.iloc[0]
        worst = number(float(one.worst_kl))
        title = f"Behind block {int(one.layer)} the worse of both KL is smallest, {worst} nats a token"
    n = f" (n = {int(table.n_tokens.iloc[0]):,} tokens of {int(table.n_prompts.iloc[0]):,} prompts)" if (
        {"n_tokens", "n_prompts"} <= set(table.columns)
    ) else ""  # fmt: skip
    figure = layer_profile(
        rows,
        value="kl",
        unit="nats a token",
        y_title="KL(q : p)",
        x_title="block that the vector acts behind (0-based)",
        title=title,
        how=f"One vector a block, trained on the same rows, each tried on rows held out of training{n}: KL of what the "
        "other prompt's run says against the edited run, with the interval as a band. The block with the smallest "
        "worse of both is chosen; its KL took part in the choice, so that it is a little too good.",
        appearance={f"to {way}": look for way, look in LOOKS.items()},
    )
    if len(chosen):
        figure.add_vline(x=float(chosen.layer.iloc[0]), line={"color": WRONG, "width": 1.5}, layer="below")
    figure.update_yaxes(rangemode="tozero")
    return figure


def _point(value: float) -> Estimate:
    return Estimate(label="", value=value, level=None, n=0, method="")


def _clipped(end: float | None) -> float | None:
    return None if end is None else max(end, LOWEST)


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
