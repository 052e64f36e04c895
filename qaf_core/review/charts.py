"""Rows to Plotly figures, for the screens and the report alike: no Streamlit, no store, no state.

Every text a person reads passes through the caller's translation function, the argument ``_``. Fonts and
grounds are left to the page the figure stands on; only the colours of the series are set here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

from qaf_core.factorization.options import METHODS, Method
from qaf_core.review import palette
from qaf_core.review.metrics import metric_label
from qaf_core.review.palette import Mark
from qaf_core.review.pareto import pareto_front
from qaf_core.review.points import RunPoint
from qaf_core.review.units import percent_text, size_text, with_prefix
from qaf_core.text.said import Translate, untranslated

CostAxis = Literal["size", "bops"]
ROW_HEIGHT_PX = 24
MOST_TICKS = 6
NEAR = 0.15  # a metric this far below the best is still shown in a close-up


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """The relative reconstruction errors of one run, one entry per layer; None where nothing is known yet."""

    title: str
    names: tuple[str, ...]
    float_errors: tuple[float | None, ...]
    quantized_errors: tuple[float | None, ...]


def tradeoff_figure(
    points: Sequence[RunPoint],
    *,
    axis: CostAxis,
    dark: bool = False,
    floor: float | None = None,
    _: Translate = untranslated,
) -> go.Figure:
    """The metric against size or bit-operations, with 95 % intervals, the original and the Pareto front.

    Args:
        points: Runs of one model, evaluated on the same images by the same metric; method ``original`` is
            drawn as a star.
        axis: What stands on the horizontal axis.
        dark: Whether the ground is dark.
        floor: Runs below this fraction are drawn, open, at the lower edge, with their value written
            beside them; None gives everything its place.
        _: Translation of texts.

    Returns:
        A figure whose points carry the run's id as first entry of ``customdata`` (empty for the original).
    """
    figure = go.Figure()
    _add_front(figure, points, axis, dark, _)
    others = sorted({p.method for p in points} - {*METHODS, "original"})
    for method in (*METHODS, *others, "original"):
        chosen = [p for p in points if p.method == method]
        if chosen:
            figure.add_trace(_run_trace(chosen, method, axis, dark, floor or 0.0, _))
    titles = {
        "size": _("Model size (smaller is better)"),
        "bops": _("Bit-operations per image, BOPs (fewer is better)"),
    }
    style(figure, height_px=430)
    figure.update_layout(hovermode="closest", dragmode=False, clickmode="event+select")
    figure.update_xaxes(title_text=titles[axis], **_cost_ticks([_cost(p, axis) for p in points], axis))
    metric = metric_label(points[0].metric if points else None, _)
    figure.update_yaxes(title_text=f"{metric} (%)", ticksuffix=" ", automargin=True)
    if floor is not None:
        top = max((p.high for p in points), default=1.0)
        figure.update_yaxes(range=[100 * (floor - 0.08 * (top - floor)), 100 * (top + 0.06 * (top - floor))])
    return figure


def closeup_floor(points: Sequence[RunPoint]) -> float | None:
    """Where a close-up of the best runs ends, as a fraction; None where all are near each other."""
    if not points:
        return None
    best = max(point.value for point in points)
    near = [point.low for point in points if point.value >= best - NEAR]
    return None if len(near) == len(points) else max(0.0, min(near) - 0.02)


def _cost(point: RunPoint, axis: CostAxis) -> float:
    return point.size_bytes if axis == "size" else point.bops


def _add_front(
    figure: go.Figure, points: Sequence[RunPoint], axis: CostAxis, dark: bool, _: Translate
) -> None:
    front = pareto_front([_cost(p, axis) for p in points], [p.value for p in points])
    if len(front) < 2:
        return
    chosen = [points[index] for index in front]
    figure.add_trace(
        go.Scatter(
            x=[_cost(p, axis) for p in chosen],
            y=[100 * p.value for p in chosen],
            mode="lines",
            name=_("Best trade-offs"),
            hoverinfo="skip",
            line={"color": palette.OTHER_MARK.colour(dark), "width": 1.5, "dash": "dot", "shape": "hv"},
        )
    )


def _run_trace(
    points: Sequence[RunPoint], method: str, axis: CostAxis, dark: bool, floor: float, _: Translate
) -> go.Scatter:
    original = method == "original"
    mark = palette.ORIGINAL_MARK if original else palette.method_mark(method)
    colour = mark.colour(dark)
    below = [p.value < floor for p in points]
    return go.Scatter(
        x=[_cost(p, axis) for p in points],
        y=[100 * max(p.value, floor) for p in points],
        error_y={
            "type": "data",
            "symmetric": False,
            "thickness": 1.2,
            "width": 4,
            "color": colour,
            "array": [0 if out else 100 * (p.high - p.value) for p, out in zip(points, below, strict=True)],
            "arrayminus": [
                0 if out else 100 * (p.value - p.low) for p, out in zip(points, below, strict=True)
            ],
        },
        mode="markers+text" if any(below) else "markers",
        text=[f"↓ {percent_text(p.value)}" if out else "" for p, out in zip(points, below, strict=True)],
        textposition="middle right",
        name=_("Original") if original else method_label(method, _),
        marker={
            "color": colour,
            "symbol": [
                f"{mark.symbol}-open" if out or p.is_partial else mark.symbol
                for p, out in zip(points, below, strict=True)
            ],
            "size": 15 if original else 11,
            "line": {"width": 1, "color": "#0F151E" if dark else "#FFFFFF"},
        },
        customdata=[[p.run_id] for p in points],
        hovertext=[_hover(p, _) for p in points],
        hovertemplate="%{hovertext}<extra></extra>",
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )


def _hover(point: RunPoint, _: Translate) -> str:
    interval = f"{percent_text(point.low)} … {percent_text(point.high)}"
    lines = [
        f"<b>{point.title}</b>",
        _("{metric} {value} ({interval})").format(
            metric=metric_label(point.metric, _), value=percent_text(point.value), interval=interval
        ),
        _("Size {size}, {bops} per image").format(
            size=size_text(point.size_bytes), bops=with_prefix(point.bops, "BOPs")
        ),
    ]
    if point.summary:
        lines.append(point.summary)
    if point.run_id:
        lines.append(f"<i>{_('Click to open the run')}</i>")
    return "<br>".join(lines)


def _cost_ticks(values: Sequence[float], axis: CostAxis) -> dict[str, Any]:
    """A logarithmic axis with few round ticks that carry their unit."""
    positive = [v for v in values if v > 0 and math.isfinite(v)]
    if not positive:
        return {"type": "linear"}
    low, high = min(positive) / 1.35, max(positive) * 1.35
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 5), (1,)):
        ticks = [t for decade in decades for digit in digits if low <= (t := digit * 10.0**decade) <= high]
        if len(ticks) <= MOST_TICKS:
            break
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [with_prefix(tick, "B" if axis == "size" else "") for tick in ticks],
        "tickangle": 0,
    }


def method_label(method: str, _: Translate = untranslated) -> str:
    """The name of a method on screens."""
    labels: dict[str, str] = {
        Method.JOINT: _("Joint"),
        Method.PAPER: _("Paper"),
        Method.SEQUENTIAL: _("Sequential"),
        Method.DENSE: _("Dense"),
        "original": _("Original"),
    }
    return labels.get(method, method)


def convergence_figure(
    iterations: Sequence[Mapping[str, Any]], *, dark: bool = False, _: Translate = untranslated
) -> go.Figure:
    """The layer's relative error by iteration: of the floating-point factors and of those on the grid.

    Args:
        iterations: Rows with ``iteration``, ``float_error`` and ``quantized_error`` (relative, not percent).
        dark: Whether the ground is dark.
        _: Translation of texts.
    """
    figure = go.Figure()
    for key, name, mark in (
        ("quantized_error", _("Quantized (on the grid)"), palette.QUANTIZED_MARK),
        ("float_error", _("Float (without the grid)"), palette.FLOAT_MARK),
    ):
        _add_line(figure, iterations, key, name, mark, dark, scale=100)
    style(figure, height_px=300)
    figure.update_xaxes(title_text=_("Iteration"), rangemode="tozero")
    figure.update_yaxes(title_text=_("Layer error (%)"), rangemode="normal")
    return figure


def residual_figure(
    iterations: Sequence[Mapping[str, Any]], *, dark: bool = False, _: Translate = untranslated
) -> go.Figure:
    """Primal and dual residual by iteration on a logarithmic axis; rows as for ``convergence_figure``."""
    figure = go.Figure()
    for key, name, mark in (
        ("primal_residual", _("Distance from the grid"), palette.PRIMAL_MARK),
        ("dual_residual", _("Change per step"), palette.DUAL_MARK),
    ):
        positive = [row for row in iterations if (row.get(key) or 0) > 0]
        _add_line(figure, positive, key, name, mark, dark)
    style(figure, height_px=300)
    if not any(len(trace.x) for trace in figure.data):
        figure.add_annotation(
            text=_("They begin with the integer steps"),
            showarrow=False,
            x=0.5,
            y=0.5,
            xref="paper",
            yref="paper",
        )
        figure.update_layout(xaxis_visible=False, yaxis_visible=False, showlegend=False)
    figure.update_xaxes(title_text=_("Iteration"))
    figure.update_yaxes(title_text=_("Residual (log scale)"), type="log", exponentformat="power", nticks=6)
    return figure


def _add_line(
    figure: go.Figure,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    name: str,
    mark: Mark,
    dark: bool,
    scale: float = 1.0,
) -> None:
    shown = [row for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    figure.add_trace(
        go.Scatter(
            x=[row["iteration"] for row in shown],
            y=[scale * row[key] for row in shown],
            name=name,
            mode="lines+markers" if len(shown) <= 60 else "lines",
            line={"color": mark.colour(dark), "dash": mark.dash, "width": 2},
            marker={"symbol": mark.symbol, "size": 5},
            hovertemplate="%{y:.3g}" + (" %" if scale == 100 else ""),
        )
    )
    figure.update_layout(hovermode="x unified")


def layer_error_figure(
    runs: Sequence[LayerErrors], *, dark: bool = False, _: Translate = untranslated
) -> go.Figure:
    """Relative reconstruction error per layer: a filled mark on the grid, an open one before rounding.

    Args:
        runs: One run, or two to compare; layers are matched by name and keep the first run's order.
        dark: Whether the ground is dark.
        _: Translation of texts.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.names))
    figure = go.Figure()
    for position, run in enumerate(runs):
        mark = (palette.QUANTIZED_MARK, palette.SECOND_RUN_MARK)[position % 2]
        _add_dumbbells(figure, run, mark, dark, run.title if len(runs) > 1 else "", _)
    errors = [e for run in runs for e in (*run.float_errors, *run.quantized_errors) if e is not None]
    reach = 100 * max(errors, default=0.01)
    style(figure, height_px=90 + ROW_HEIGHT_PX * max(len(names), 3))
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(
        title_text=_("Layer error (% of the norm of the weights)"), range=[-0.02 * reach, 1.06 * reach]
    )
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=names,
        tickmode="array",
        tickvals=names,
        range=[len(names) - 0.4, -0.6],
    )
    return figure


def _add_dumbbells(
    figure: go.Figure, run: LayerErrors, mark: Mark, dark: bool, title: str, _: Translate
) -> None:
    colour = mark.colour(dark)
    links_x: list[float | None] = []
    links_y: list[str | None] = []
    for name, before, after in zip(run.names, run.float_errors, run.quantized_errors, strict=True):
        if before is not None and after is not None:
            links_x += [100 * before, 100 * after, None]
            links_y += [name, name, None]
    figure.add_trace(
        go.Scatter(
            x=links_x,
            y=links_y,
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            line={"color": colour, "width": 2},
            opacity=0.45,
        )
    )
    suffix = f" · {title}" if title else ""
    for errors, label, symbol in (
        (run.quantized_errors, _("Quantized (on the grid)"), mark.symbol),
        (run.float_errors, _("Float (without the grid)"), f"{mark.symbol}-open"),
    ):
        figure.add_trace(
            go.Scatter(
                x=[None if e is None else 100 * e for e in errors],
                y=list(run.names),
                mode="markers",
                name=label + suffix,
                marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2}},
                hovertemplate="<b>%{y}</b><br>%{x:.1f} %<extra>" + label + suffix + "</extra>",
            )
        )


def style(figure: go.Figure, *, height_px: int) -> None:
    """What all figures share: little margin, the legend on top, no zoom lost when live data arrives."""
    figure.update_layout(
        height=height_px,
        margin={"l": 10, "r": 16, "t": 36, "b": 10},
        uirevision="kept",
        legend={
            "orientation": "h",
            "yanchor": "bottom",
            "y": 1.0,
            "xanchor": "left",
            "x": 0,
            "title": {"text": ""},
        },
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
