"""The tokens that carry an update: lists of them as bars, and responses laid out token by token."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .drawing import GRID, INK, MUTED, PAPER, POLICY, REFERENCE, SOURCE_LOOKS, canvas, safe, table_with
from .wording import number

# list of the table `tokens` -> its entry in the menu, its axis; in the order of the menu
LISTS = {
    "policy_gained": ("gained: share of KL", "mean of π log(π / ref) [nats]"),
    "policy_lost": ("lost: share of KL", "mean of π log(π / ref) [nats]"),
    "plausible_information": ("share of D<sup>S</sup>", "mean of q<sup>S</sup> log(|S| q<sup>S</sup>) [nats]"),
    "plausible": ("q where plausible", "mean q among plausible tokens"),
    "suppressed": ("suppressed where plausible", "mean log(π / ref) [nats]"),
    "full": ("q, whole vocabulary", "mean q over the whole vocabulary"),
}
LABEL = 16  # characters of a token beside its bar
MENU_ROOM = 36  # px above the marks for a menu; a second one stands above it, as narrow windows hold one beside none
LINE = 48  # characters of a line of a strip
LINES = 24  # of a strip at most
LINE_HEIGHT = 26  # px
SATURATED = 0.95  # share of tokens that the colours tell apart
MARKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}  # for characters that leave no mark
# column of the table `strips` -> its button, its colours
MEASURES = {
    "kl": ("KL", [[0, PAPER], [1, POLICY]]),
    "plausible_information": ("D<sup>S</sup>", [[0, PAPER], [1, POLICY]]),
    "log_ratio": ("log-ratio", [[0, REFERENCE], [0.5, PAPER], [1, POLICY]]),
}
_TOKEN_COLUMNS = (
    "source", "bucket", "list", "rank", "token", "text", "score", "mean_q", "mean_policy", "mean_reference",
    "share_in_top", "n_plausible", "n_positions", "context",
)  # fmt: skip
_MENU: dict[str, Any] = {
    "bgcolor": PAPER, "bordercolor": MUTED, "font": {"color": INK, "size": 12}, "y": 1, "yanchor": "bottom",
    "x": 0, "xanchor": "left", "showactive": True,
}  # fmt: skip


def carrying_tokens(tables: Mapping[str, pd.DataFrame]) -> go.Figure | None:
    """The lists of the table `tokens` over all positions as bars; a menu for the list, one for the source."""
    table = table_with(tables, "tokens", *_TOKEN_COLUMNS)
    if table is None:
        return None
    table = table[table.bucket == "all"].sort_values("rank", kind="stable")
    lists = [name for name in LISTS if (table["list"] == name).any()]
    if not lists:
        return None
    sources = list(dict.fromkeys(table.source))
    figure = canvas(
        title=_tokens_title(table, sources[0]),
        how="A bar is a token (␣ is a space) and its mean over all positions of one source; the menus pick list and "
        "source. The numbers at a bar are the token's mean probability under the reference and, after the arrow, "
        "under the policy. Gained and lost weigh by what the policy says; q = policy / reference, normalised, weighs "
        "by how much a token's odds grew, so that over the whole vocabulary tokens lead that neither model ever "
        "says. Suppressed: fell most where one of the models would say it, at 5 positions or more. These are means "
        "over the positions that were read, without intervals: bars of like length are not told apart.",
        x=LISTS[lists[0]][1],
        y="token",
        height=170 + 30 * int(table["rank"].max()),
    )
    choices = {name: _bars(table[table["list"] == name], sources) for name in lists}
    for k, source in enumerate(sources):
        figure.add_bar(
            **{part: values[k] for part, values in choices[lists[0]]["data"].items()},
            orientation="h", name=source, visible=k == 0, showlegend=False,
            marker={"color": SOURCE_LOOKS[source].colour, "line": {"width": 0}},
            textposition="outside", textfont={"size": 11}, cliponaxis=False, constraintext="none",
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    menus = [
        {
            **_MENU, **_row(0), "type": "dropdown",
            "buttons": [
                {
                    "label": LISTS[name][0], "method": "update",
                    "args": [
                        choices[name]["data"],
                        {"xaxis.title.text": LISTS[name][1], "xaxis.range": choices[name]["range"]},
                    ],
                }
                for name in lists
            ],
        }
    ]  # fmt: skip
    if len(sources) > 1:
        menus.append(_source_menu(sources))
    figure.update_layout(updatemenus=menus, margin_t=figure.layout.margin.t + MENU_ROOM * len(menus) - 30, bargap=0.25)
    figure.update_xaxes(range=choices[lists[0]]["range"], nticks=6, zeroline=True, zerolinecolor=MUTED)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont={"size": 12})
    return figure


def _tokens_title(table: pd.DataFrame, source: str) -> str:
    some = table[table.source == source]

    def first(name: str) -> str:
        return ", ".join(visible(text) for text in some[some["list"] == name].text.head(3))

    gained, lost = first("policy_gained"), first("suppressed")
    parts = [f"the largest shares of KL are those of {gained}"] * bool(gained)
    parts += [f"{'those ' if gained else 'tokens '}pushed down most where plausible are {lost}"] * bool(lost)
    return f"Along {source} responses {'; '.join(parts)}" if parts else "Tokens that carry the update"


def _source_menu(sources: Sequence[str]) -> dict[str, Any]:
    return {
        **_MENU, **_row(1), "type": "dropdown",
        "buttons": [
            {"label": f"{source} responses", "method": "restyle", "args": [{"visible": [s == source for s in sources]}]}
            for source in sources
        ],
    }  # fmt: skip


def _bars(rows: pd.DataFrame, sources: Sequence[str]) -> dict[str, Any]:
    """Of one list: what each source's trace draws, and the axis that all of them fit on."""
    parts = [rows[rows.source == source] for source in sources]
    low, high = min(float(rows.score.min()), 0.0), max(float(rows.score.max()), 0.0)
    room = 0.75 * (high - low)  # for the numbers at the bars, in a narrow window too
    return {
        "data": {
            "x": [part.score.astype(float).tolist() for part in parts],
            "y": [_labels(part) for part in parts],
            "text": [[_from_to(row) for row in part.to_dict("records")] for part in parts],
            "customdata": [[_about(row) for row in part.to_dict("records")] for part in parts],
        },
        "range": [low - room * (low < 0), high + room * (high > 0)],
    }


def _labels(rows: pd.DataFrame) -> list[str]:
    """The tokens, short; two that read alike are told apart by their ids."""
    short = [_cut(visible(text), LABEL) for text in rows.text]
    return [safe(text if short.count(text) == 1 else f"{text} #{i}") for text, i in zip(short, rows.token, strict=True)]


def _from_to(row: Mapping[Hashable, Any]) -> str:
    return f"{_probability(row['mean_reference'])} → {_probability(row['mean_policy'])}"


def _about(row: Mapping[Hashable, Any]) -> str:
    place = visible(str(row["context"])).replace("␣", " ") if row["context"] else "none: it leads nowhere by itself"
    return (
        f"<b>{safe(visible(row['text']))}</b>, id {row['token']}, {safe(row['source'])} responses<br>"
        f"score {number(row['score'])}<br>mean q {_probability(row['mean_q'])}, "
        f"policy {_probability(row['mean_policy'])}, reference {_probability(row['mean_reference'])}<br>"
        f"among the 10 largest q at {100 * row['share_in_top']:.1f} % of {row['n_positions']:,} positions<br>"
        f"plausible at {row['n_plausible']:,} of them<br>after: {safe(place)}"
    )


def _probability(share: float) -> str:
    return number(float(f"{share:.2g}"))


def token_strip(tables: Mapping[str, pd.DataFrame]) -> go.Figure | None:
    """Responses of the table `strips` in reading order, a cell a token, coloured by one of `MEASURES`."""
    table = table_with(tables, "strips", "history", "source", "position", "text")
    if table is None:
        return None
    responses = [_laid_out(rows) for _, rows in table.groupby("history", sort=False)]
    drawn = pd.concat(responses)
    measures = [name for name in MEASURES if name in drawn and np.isfinite(drawn[name].astype(float)).any()]
    if not measures:
        return None
    first = max(range(len(responses)), key=lambda k: len(responses[k]))
    cut = sum(int(rows.n_tokens.iloc[0]) > len(rows) for rows in responses)
    figure = canvas(
        title=_strip_title(drawn),
        how="A response token by token, in reading order (␣ is a space, ↵ a new line; at the left the number of "
        "the first token of a line); the menu picks the response, the buttons what colours it. KL and D^S are of the "
        "prediction at that place: how much training changed which token could stand there. The log-ratio is of the "
        "token that does stand there: blue is likelier under the policy, orange (in italics) less likely. Colours end "
        "at the 95th percentile of all tokens shown; hover for numbers. Grey: no number. One response is an example, "
        "not an estimate." + (f" Cut to {LINES} lines: {cut} of these responses." if cut else ""),
        x="response tokens in reading order",
        y="token",
        height=212 + LINE_HEIGHT * max(int(rows.line.max()) + 1 for rows in responses),
    )
    for k, rows in enumerate(responses):
        figure.add_bar(
            x=rows.width.tolist(), base=rows.start.tolist(), y=rows.line.tolist(), orientation="h", width=0.86,
            text=_texts(rows, measures[0]), textposition="inside", insidetextanchor="middle", textangle=0,
            insidetextfont={"family": "ui-monospace, Menlo, Consolas, monospace", "size": 13},
            marker={
                "color": _colours(rows, measures[0]), "coloraxis": "coloraxis", "line": {"color": GRID, "width": 1},
            },
            name=_named(rows), visible=k == first, showlegend=False,
            customdata=[_cell(row) for row in rows.to_dict("records")], hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    axes = {name: _colour_axis(drawn, name) for name in measures}
    figure.update_layout(
        coloraxis=axes[measures[0]],
        updatemenus=[_response_menu(responses, first), _measure_buttons(responses, measures, axes)],
        margin_t=figure.layout.margin.t + 2 * MENU_ROOM - 30,
        margin_b=94,
        barmode="overlay",
    )
    figure.update_xaxes(range=[0, LINE + 1], showticklabels=False, showgrid=False, showline=False, ticks="")
    lines = max(int(rows.line.max()) for rows in responses)
    figure.update_yaxes(
        range=[lines + 0.5, -0.5], showgrid=False, showline=False, ticks="", **_line_starts(responses[first])
    )
    return figure


def _strip_title(rows: pd.DataFrame) -> str:
    known = rows[np.isfinite(rows.kl.astype(float))] if "kl" in rows else rows[:0]
    if not len(known):
        return "Responses token by token"
    top = known.iloc[int(known.kl.to_numpy(dtype=float).argmax())]
    return (
        f"Among the responses shown the update changed the prediction most where {top.shown} stands, token "
        f"{top.position} of {_named(known[known.history == top.history])}: KL {number(float(top.kl), 2)} nats"
    )


def _laid_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Cells of one response: shown, line, start and width in characters; at most `LINES` lines."""
    rows = rows.sort_values("position")
    shown = [_cut(visible(text) or "∅", LINE - 2) for text in rows.text]
    lines, starts, line, start = [], [], 0, 0.0
    widths = [len(text) + 1.0 for text in shown]
    for width in widths:
        if start + width > LINE + 1:
            line, start = line + 1, 0.0
        lines.append(line)
        starts.append(start)
        start += width
    made = rows.assign(shown=shown, line=lines, start=starts, width=widths, n_tokens=len(rows))
    return made[made.line < LINES]


def _line_starts(rows: pd.DataFrame) -> dict[str, list[Any]]:
    first = rows.groupby("line").position.min()
    return {"tickvals": first.index.tolist(), "ticktext": [str(position) for position in first]}


def _texts(rows: pd.DataFrame, measure: str) -> list[str]:
    """Tokens; in italics those that the log-ratio shows as less likely."""
    fell = (rows[measure] < 0) & (measure == "log_ratio")
    return [f"<i>{safe(text)}</i>" if down else safe(text) for text, down in zip(rows.shown, fell, strict=True)]


def _colours(rows: pd.DataFrame, measure: str) -> list[Any]:
    """Values for the colour axis, grey where there is none."""
    return [float(value) if np.isfinite(value) else GRID for value in rows[measure].astype(float)]


def _colour_axis(rows: pd.DataFrame, measure: str) -> dict[str, Any]:
    values = rows[measure].to_numpy(dtype=float)
    end = float(np.quantile(np.abs(values[np.isfinite(values)]), SATURATED)) or 1.0
    label, scale = MEASURES[measure]
    return {
        "cmin": -end if measure == "log_ratio" else 0.0,
        "cmax": end,
        "colorscale": scale,
        "colorbar": {
            "title": {"text": f"{label} [nats]", "side": "right", "font": {"size": 12}}, "thickness": 8,
            "outlinewidth": 0, "nticks": 5, "tickangle": 0, "tickfont": {"size": 11},
            "orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left", "len": 1,
        },
    }


def _response_menu(responses: Sequence[pd.DataFrame], active: int) -> dict[str, Any]:
    return {
        **_MENU, **_row(1), "type": "dropdown", "active": active,
        "buttons": [
            {
                "label": safe(_cut(f"{_named(rows)}: {''.join(rows.shown.head(8)).replace('␣', ' ').strip()}", 34)),
                "method": "update",
                "args": [
                    {"visible": [j == k for j in range(len(responses))]},
                    {f"yaxis.{part}": values for part, values in _line_starts(rows).items()},
                ],
            }
            for k, rows in enumerate(responses)
        ],
    }  # fmt: skip


def _measure_buttons(
    responses: Sequence[pd.DataFrame], measures: Sequence[str], axes: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    return {
        **_MENU, **_row(0), "type": "buttons", "direction": "right",
        "buttons": [
            {
                "label": MEASURES[name][0], "method": "update",
                "args": [
                    {
                        "marker.color": [_colours(rows, name) for rows in responses],
                        "text": [_texts(rows, name) for rows in responses],
                    },
                    {"coloraxis": axes[name]},
                ],
            }
            for name in measures
        ],
    }  # fmt: skip


def _named(rows: pd.DataFrame) -> str:
    return f"{rows.source.iloc[0]} response {rows.history.iloc[0]}"


def _cell(row: Mapping[Hashable, Any]) -> str:
    lines = [f"<b>{safe(row['shown'])}</b>, token {row['position']} of {row['n_tokens']}"]
    for name, (label, _) in MEASURES.items():
        if name in row:
            known = np.isfinite(float(row[name]))
            lines.append(f"{label} {number(float(row[name]), 3)} nats" if known else f"{label}: none ({_why(row)})")
    if "prompt_id" in row:
        lines.append(f"prompt {safe(row['prompt_id'])}")
    return "<br>".join(lines)


def _why(row: Mapping[Hashable, Any]) -> str:
    status = row.get("status")
    return safe(status) if isinstance(status, str) else "not read"


def _row(k: int) -> dict[str, Any]:
    """The k-th row of menus above the marks."""
    return {"pad": {"b": 6 + MENU_ROOM * k}}


def visible(text: str) -> str:
    """Text in which spaces, new lines and other characters without a mark can be seen."""
    return "".join(MARKS.get(c, c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
