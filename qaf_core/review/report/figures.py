"""The report's charts: Plotly figures that print on A4 and open without a network."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from qaf_core.review import palette
from qaf_core.review.charts import style
from qaf_core.review.decision.changes import Changes, Reliability
from qaf_core.review.decision.economics import ASSUMPTIONS, BusinessCase
from qaf_core.review.decision.verdict import CriterionVerdict
from qaf_core.text.said import Translate

WIDTH_PX = 680  # A4 without its margins, at 96 dots an inch
#: As the report's own text. The first two come with the report: with others that share a sign between a
#: letter and a radical (見 and ⾒), what is searched and copied from a PDF would be the radical.
FONTS = (
    '"Report Japanese", "Report Japanese Rare", "Noto Sans JP", "Noto Sans CJK JP", "Hiragino Sans", '
    '"Yu Gothic UI", Meiryo, "Segoe UI", Helvetica, Arial, sans-serif'
)
INK, GROUND = "#1F2937", "#FFFFFF"
COLOURS = {"pass": "#00805C", "fail": "#C0392B", "open": "#B7791F"}
#: What stands for each of these colours on a dark ground.
DARK = {
    INK: "#E6EBF2",
    GROUND: "#10161F",
    "#00805C": "#2BC49A",
    "#C0392B": "#F07167",
    "#B7791F": "#E6A93C",
    "#0072B2": "#56B4E9",
    "#D55E00": "#F0803C",
}
LESS, MORE = "#0B6FA8", "#C65500"  # of cells: deep enough for white numbers, on a dark ground too
MOST_CONFUSED = 25  # classes; more do not fit a page
MOST_SIDE_BY_SIDE = 10
LONGEST_LABEL = 30


def criteria_figure(rows: Sequence[CriterionVerdict], _: Translate) -> go.Figure:
    """How much of each limit is used: 100 % is the limit, left of it is passed.

    Of a floor, what is used is the shortfall that the floor allows.
    """
    shown = [row for row in rows if row.value is not None and _used(row, row.value) is not None]
    figure = go.Figure()
    for row in reversed(shown):
        value, ends = _used(row, row.value or 0.0), [_used(row, row.low or 0.0), _used(row, row.high or 0.0)]
        low, high = min(map(_number, ends)), max(map(_number, ends))
        figure.add_trace(
            go.Bar(
                x=[value],
                y=[_two_lines(row.criterion.title().text(_))],
                orientation="h",
                marker={"color": COLOURS[row.status]},
                width=0.5,
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [high - _number(value)],
                    "arrayminus": [_number(value) - low],
                    "thickness": 1.6,
                    "width": 5,
                    "color": INK,
                },
                hovertemplate="%{y}: %{x:.0f} %<extra></extra>",
                showlegend=False,
            )
        )
    figure.add_vline(x=100, line={"color": INK, "width": 2, "dash": "dash"})
    finish(figure, 108 + 44 * max(1, len(shown)))
    top = max([130.0, *(1.05 * _number(_used(row, row.high or 0.0)) for row in shown)])
    least = min([0.0, *(1.05 * _number(_used(row, row.low or 0.0)) for row in shown)])
    figure.update_xaxes(
        title_text=_("Share of the limit that is used (%)<br>left of the dashed line: passed"),
        range=[max(least, -100.0), min(top, 400.0)],
    )
    figure.update_yaxes(automargin=True)
    return figure


def _used(row: CriterionVerdict, value: float) -> float | None:
    limit = row.criterion.limit
    if row.criterion.at_least:
        return None if limit >= 1 else 100 * (1 - value) / (1 - limit)
    return None if limit <= 0 else 100 * value / limit


def _number(value: float | None) -> float:
    return 0.0 if value is None else value


def confusion_figure(changes: Changes, _: Translate) -> go.Figure | None:
    """Answers by true class: of few classes before, after and their difference; of more the difference.

    None for very many classes.
    """
    count = len(changes.classes)
    if count > MOST_CONFUSED:
        return None
    panels = [(_("Difference"), changes.confusion_after - changes.confusion_before, True)]
    if count <= MOST_SIDE_BY_SIDE:
        panels[:0] = [
            (_("Original"), changes.confusion_before, False),
            (_("Compressed"), changes.confusion_after, False),
        ]
    figure = make_subplots(
        cols=len(panels), shared_yaxes=True, horizontal_spacing=0.02,
        subplot_titles=[title for title, _cells, _signed in panels] if len(panels) > 1 else None,
    )  # fmt: skip
    names = [_label(name, 30 if len(panels) == 1 else 10) for name in changes.classes]
    for place, (_title, cells, signed) in enumerate(panels, start=1):
        figure.add_trace(_heatmap(cells, names, signed), 1, place)
    finish(figure, 170 + (34 if len(panels) == 1 else 22) * count)
    figure.update_xaxes(title_text=_("Answer"), type="category", showgrid=False, tickangle=-90)
    figure.update_yaxes(type="category", autorange="reversed", automargin=True, showgrid=False)
    figure.update_yaxes(title_text=_("True class"), col=1)
    return figure


def _heatmap(cells: NDArray[np.int64], names: Sequence[str], signed: bool) -> go.Heatmap:
    """Counts in a square; the diagonal of a difference is good where it grows, so colours tell signs only."""
    most = max(1, int(abs(cells).max()))
    form = "+d" if signed else "d"
    scale = [[0, LESS], [0.5, GROUND], [1, MORE]] if signed else [[0, GROUND], [1, LESS]]
    return go.Heatmap(
        z=cells.tolist(),
        x=list(names),
        y=list(names),
        zmin=-most if signed else 0,
        zmax=most,
        colorscale=scale,
        text=[
            [format(cell, form).replace("-", "−") if cell else "" for cell in row] for row in cells.tolist()
        ],
        texttemplate="%{text}",
        showscale=False,
        xgap=1,
        ygap=1,
        hovertemplate="%{y} → %{x}: %{z:" + form + "}<extra></extra>",
    )


def robustness_figure(result: Mapping[str, Any], names: Mapping[str, str], _: Translate) -> go.Figure:
    """The score of both networks at five severities of each disturbance."""
    rows = result["disturbances"]
    figure = make_subplots(
        cols=len(rows), shared_yaxes=True, horizontal_spacing=0.02,
        subplot_titles=[_two_lines(names[name], 14) for name in rows],
    )  # fmt: skip
    for place, row in enumerate(rows.values(), start=1):
        for side, label, mark in (
            ("original", _("Original"), palette.ORIGINAL_MARK),
            ("compressed", _("Compressed"), palette.METHOD_MARKS["joint"]),
        ):
            trace = go.Scatter(
                x=list(range(1, len(row[side]) + 1)),
                y=[100 * value for value in row[side]],
                mode="lines+markers",
                name=label,
                legendgroup=side,
                showlegend=place == 1,
                line={"color": mark.light},
                marker={"symbol": mark.symbol, "size": 7},
            )
            figure.add_trace(trace, 1, place)
    finish(figure, 300)
    figure.update_layout(legend={"y": 1.16}, margin={"t": 64})
    figure.update_xaxes(dtick=1, title_text="")
    figure.update_xaxes(title_text=_("Severity"), col=(len(rows) + 1) // 2)
    figure.update_yaxes(title_text="%", col=1)
    return figure


def reliability_figure(both: tuple[Reliability, Reliability], _: Translate) -> go.Figure:
    """How often answers of a confidence are right, of both networks."""
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[0, 100],
            y=[0, 100],
            mode="lines",
            line={"color": "#9CA3AF", "dash": "dot"},
            name=_("as sure as right"),
            hoverinfo="skip",
        )
    )
    for curve, name, mark in (
        (both[0], _("Original"), palette.ORIGINAL_MARK),
        (both[1], _("Compressed"), palette.METHOD_MARKS["joint"]),
    ):
        filled = [place for place, count in enumerate(curve.counts) if count]
        figure.add_trace(
            go.Scatter(
                x=[100 * curve.confidence[place] for place in filled],
                y=[100 * curve.accuracy[place] for place in filled],
                mode="lines+markers",
                name=name,
                line={"color": mark.light},
                marker={"symbol": mark.symbol, "size": 9},
            )
        )
    finish(figure, 340)
    figure.update_xaxes(title_text=_("Confidence (%)"), range=[0, 103])
    figure.update_yaxes(title_text=_("Right (%)"), range=[0, 103])
    return figure


def break_even_figure(case: BusinessCase, _: Translate) -> go.Figure:
    """What is gained so far, month by month, with the band of the simulation."""
    months = list(case.months)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=months + months[::-1],
            y=[*case.net_high, *case.net_low[::-1]],
            fill="toself",
            mode="lines",
            fillcolor="rgba(0,114,178,0.16)",
            line={"width": 0},
            name=_("5 to 95 % of the simulation"),
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(x=months, y=list(case.net), mode="lines", name=_("likely"), line={"color": "#0072B2"})
    )
    figure.add_hline(y=0, line={"color": INK, "width": 1, "dash": "dash"})
    finish(figure, 330)
    figure.update_xaxes(title_text=_("Months"))
    figure.update_yaxes(
        title_text=_("Gained so far ({currency})").format(currency=html.escape(case.currency)),
        tickformat=",.3~s",
    )
    return figure


def tornado_figure(case: BusinessCase, _: Translate) -> go.Figure:
    """What each assumption moves between its low and its high value, the widest first."""
    likely = case.net[-1]
    names = [_(ASSUMPTIONS[name][0]) for name, _low, _high in case.tornado]
    figure = go.Figure()
    lows, highs = [low for _name, low, _high in case.tornado], [high for _name, _low, high in case.tornado]
    for ends, label, colour in ((lows, _("low"), "#D55E00"), (highs, _("high"), "#0072B2")):
        figure.add_trace(
            go.Bar(
                y=names,
                x=[end - likely for end in ends],
                base=likely,
                orientation="h",
                name=label,
                marker={"color": colour},
                customdata=ends,
                hovertemplate="%{y}: %{customdata:,.0f}<extra></extra>",
            )
        )
    finish(figure, 120 + 32 * max(1, len(names)))
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(
        title_text=_("Net after {months} months ({currency})").format(
            months=case.months[-1], currency=html.escape(case.currency)
        ),
        tickformat=",.3~s",
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def finish(figure: go.Figure, height_px: int) -> go.Figure:
    """The report's ground, font and size."""
    style(figure, height_px=height_px)
    figure.update_layout(
        width=WIDTH_PX,
        template="plotly_white",
        paper_bgcolor=GROUND,
        plot_bgcolor=GROUND,
        font={
            "family": FONTS,
            "size": 12,
        },
        margin={"l": 10, "r": 24, "t": 30, "b": 48},
        dragmode=False,
    )
    return figure


def on_screen(figure: go.Figure, *, dark: bool) -> go.Figure:
    """A figure of the report as wide as its place on a screen, on a light or a dark ground."""
    text: str = figure.to_json()
    if dark:
        for light, other in DARK.items():
            text = text.replace(light, other)
    shown = go.Figure(json.loads(text))
    shown.update_layout(template="plotly_dark" if dark else "plotly_white", width=None, font=None)
    shown.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return shown


def _two_lines(text: str, longest: int = LONGEST_LABEL) -> str:
    """A longer text as a label of two lines; a number is not parted from what follows it."""
    kept = re.sub(r"(?<=\d) ", "\u00a0", text)
    lines = textwrap.wrap(kept, longest if kept.isascii() else max(10, longest * 2 // 3))
    return "<br>".join(_label(line, longest) for line in lines[:2])


def _label(text: str, longest: int = LONGEST_LABEL) -> str:
    """A text as a label: Plotly reads tags in labels, so they are escaped."""
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…", quote=False)
