"""Runs as points over two axes, and as lines over many."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from qaf_core.factorization.options import METHODS
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.review import palette
from qaf_core.review.charts import method_label, style
from qaf_core.review.metrics import metric_label
from qaf_core.review.tradeoffs.axes import BOPS, SIZE, VALUE, Condition, axis_label, axis_text
from qaf_core.review.tradeoffs.pareto import pareto_front
from qaf_core.review.tradeoffs.points import RunPoint
from qaf_core.runs.listing import RunRow
from qaf_core.text.said import Translate, untranslated
from qaf_core.text.units import percent_text, with_prefix

MOST_TICKS = 6
MOST_INTERVALS = 60  # points beyond that hide each other: only the best have bars, all say theirs on hover
NEAR = 0.15  # a metric this far below the best is still shown in a close-up
FAINT = 0.22


@dataclass(frozen=True, kw_only=True)
class View:
    """How points are drawn.

    Attributes:
        across, upwards: Axes.
        dark: Whether the ground is dark.
        floor: Runs below this fraction are drawn, open, at the lower edge of an upward metric; None gives
            everything its place.
        target: Drawn as a box where its conditions are of these axes.
    """

    across: str = SIZE
    upwards: str = VALUE
    dark: bool = False
    floor: float | None = None
    target: tuple[Condition, ...] = ()


def tradeoff_figure(points: Sequence[RunPoint], view: View, *, _: Translate = untranslated) -> go.Figure:
    """Points over two axes, with 95 % intervals of the metric, the original and the best trade-offs.

    Args:
        points: Runs of one model, evaluated on the same images by the same metric; method ``original`` is
            drawn as a star. Those of which an axis is not known are left out.
        view: How they are drawn.
        _: Translation of texts.

    Returns:
        A figure whose points carry the run's id as first entry of ``customdata`` (empty for the original).
    """
    shown = [p for p in points if None not in (getattr(p, view.across), getattr(p, view.upwards))]
    figure = go.Figure()
    _add_front(figure, shown, view, _)
    barred = with_bars(shown, view)
    others = sorted({p.method for p in shown} - {*METHODS, "original"})
    for method in (*METHODS, *others, "original"):
        chosen = [p for p in shown if p.method == method]
        if chosen:
            figure.add_trace(_run_trace(chosen, method, view, barred, _))
    style(figure, height_px=430)
    figure.update_layout(hovermode="closest", dragmode=False, clickmode="event+select")
    metric = shown[0].metric if shown else None
    for axis, update in ((view.across, figure.update_xaxes), (view.upwards, figure.update_yaxes)):
        title = axis_label(axis, metric, _)
        if axis == VALUE:
            update(title_text=f"{title} (%)", ticksuffix=" ", automargin=True)
        else:
            update(title_text=title, **_ticks([getattr(p, axis) for p in shown], axis))
    if view.floor is not None and view.upwards == VALUE:
        top = max((p.high for p in shown), default=1.0)
        low = view.floor - 0.08 * (top - view.floor)
        figure.update_yaxes(range=[100 * low, 100 * (top + 0.06 * (top - view.floor))])
    _add_target(figure, view)
    return figure


def closeup_floor(points: Sequence[RunPoint]) -> float | None:
    """Where a close-up of the best runs ends, as a fraction; None where all are near each other."""
    if not points:
        return None
    best = max(point.value for point in points)
    near = [point.low for point in points if point.value >= best - NEAR]
    return None if len(near) == len(points) else max(0.0, min(near) - 0.02)


def front_of(points: Sequence[RunPoint], across: str, upwards: str) -> tuple[int, ...]:
    """Positions of the points that no other beats on two axes; those with an axis unknown never count."""

    def worth(point: RunPoint, axis: str) -> float:
        value = getattr(point, axis)
        return math.nan if value is None else value if axis == VALUE else -value

    return pareto_front([-worth(p, across) for p in points], [worth(p, upwards) for p in points])


def _scale(axis: str, value: float) -> float:
    return 100 * value if axis == VALUE else value


def _add_front(figure: go.Figure, points: Sequence[RunPoint], view: View, _: Translate) -> None:
    front = front_of(points, view.across, view.upwards)
    if len(front) < 2:
        return
    chosen = [points[index] for index in front]
    figure.add_trace(
        go.Scatter(
            x=[_scale(view.across, getattr(p, view.across)) for p in chosen],
            y=[_scale(view.upwards, getattr(p, view.upwards)) for p in chosen],
            mode="lines",
            name=_("Best trade-offs"),
            hoverinfo="skip",
            line={"color": palette.OTHER_MARK.colour(view.dark), "width": 1.5, "dash": "dot", "shape": "hv"},
        )
    )


def _run_trace(
    points: Sequence[RunPoint], method: str, view: View, barred: Collection[RunPoint], _: Translate
) -> go.Scatter:
    original = method == "original"
    mark = palette.ORIGINAL_MARK if original else palette.method_mark(method)
    colour, floor = mark.colour(view.dark), (view.floor or 0.0) if view.upwards == VALUE else -math.inf
    below = [getattr(p, view.upwards) < floor for p in points]
    axes = dict.fromkeys((SIZE, BOPS, view.across, view.upwards))
    labels = {axis: axis_label(axis, None, _) for axis in axes if axis != VALUE}
    errors = {
        f"error_{letter}": _intervals(points, below, barred, colour)
        for letter, axis in (("x", view.across), ("y", view.upwards))
        if axis == VALUE
    }
    return go.Scatter(
        x=np.array([_scale(view.across, getattr(p, view.across)) for p in points]),
        y=np.array([_scale(view.upwards, max(getattr(p, view.upwards), floor)) for p in points]),
        **errors,
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
            "size": np.array([15 if original or p.stands_out else 11 for p in points]),
            "opacity": np.array([1 if original or p.stands_out is not False else FAINT for p in points]),
            "line": {"width": 1, "color": "#0F151E" if view.dark else "#FFFFFF"},
        },
        customdata=np.array([[p.run_id] for p in points]),
        hovertext=[_hover(p, labels, _) for p in points],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def with_bars(points: Sequence[RunPoint], view: View) -> Collection[RunPoint]:
    """The points whose intervals are drawn: all, or of very many the best trade-offs and the original."""
    if len(points) <= MOST_INTERVALS:
        return points
    front = set(front_of(points, view.across, view.upwards))
    return [p for place, p in enumerate(points) if place in front or p.method == "original"]


def _intervals(
    points: Sequence[RunPoint], below: Sequence[bool], barred: Collection[RunPoint], colour: str
) -> dict[str, Any]:
    pairs = [(p, out if p in barred else None) for p, out in zip(points, below, strict=True)]
    return {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 4, "color": colour,
        "array": [_bar(p, out, p.high - p.value) for p, out in pairs],
        "arrayminus": [_bar(p, out, p.value - p.low) for p, out in pairs],
    }  # fmt: skip


def _bar(point: RunPoint, below: bool | None, length: float) -> float | None:
    """An end of an interval in percent; none of points that do not stand out, 0 of those out of sight."""
    return None if below is None or point.stands_out is False else 0 if below else 100 * length


def _hover(point: RunPoint, labels: Mapping[str, str], _: Translate) -> str:
    interval = f"{percent_text(point.low)} … {percent_text(point.high)}"
    lines = [
        f"<b>{point.title}</b>",
        _("{metric} {value} ({interval})").format(
            metric=metric_label(point.metric, _), value=percent_text(point.value), interval=interval
        ),
    ]
    if point.difference:
        lines.append(point.difference)
    lines += [f"{label}: {axis_text(axis, getattr(point, axis))}" for axis, label in labels.items()]
    if point.summary:
        lines.append(point.summary)
    if point.run_id:
        lines.append(f"<i>{_('Click to open the run')}</i>")
    return "<br>".join(lines)


def _add_target(figure: go.Figure, view: View) -> None:
    """The target as a box: open to the side that nothing limits."""
    box: dict[str, Any] = {"x0": 0, "x1": 1, "y0": 0, "y1": 1, "xref": "x domain", "yref": "y domain"}
    limited = False
    for letter, axis in (("x", view.across), ("y", view.upwards)):
        conditions = [condition for condition in view.target if condition.axis == axis]
        if conditions:
            limited = True
            box[f"{letter}ref"] = letter
            box[f"{letter}0"], box[f"{letter}1"] = _reach(figure, letter, axis, conditions)
    if limited:
        colour = palette.METHOD_MARKS["sequential"].colour(view.dark)
        figure.add_shape(
            type="rect",
            **box,
            layer="below",
            line={"color": colour, "width": 1.5},
            fillcolor=colour,
            opacity=0.13,
        )


def _reach(figure: go.Figure, letter: str, axis: str, conditions: Sequence[Condition]) -> tuple[float, float]:
    """From where to where conditions leave an axis open, ends of the drawn range included."""
    values = [v for trace in figure.data for v in trace[letter] if v is not None]
    limits = [_scale(axis, condition.limit) for condition in conditions]
    everything = [v for v in (*values, *limits) if v > 0] or [1.0]
    low, high = min(everything) / 10, max(everything) * 10
    if axis == VALUE:
        low, high = 0.0, 100.0
    for condition, limit in zip(conditions, limits, strict=True):
        low, high = (max(low, limit), high) if condition.at_least else (low, min(high, limit))
    return low, max(low, high)


def _ticks(values: Sequence[float], axis: str) -> dict[str, Any]:
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
        "ticktext": [with_prefix(tick, "") if axis == BOPS else axis_text(axis, tick) for tick in ticks],
        "tickangle": 0,
    }


def parallel_figure(
    rows: Sequence[RunRow],
    stands_out: Mapping[str, bool | None],
    *,
    dark: bool = False,
    _: Translate = untranslated,
) -> go.Figure:
    """Every run as a line: what its plan is made of, and what came of it.

    Args:
        rows: Measured runs of one model.
        stands_out: By run, whether it passes the target; empty where there is none, then lines are coloured
            by the metric.
        dark: Whether the ground is dark.
        _: Translation of texts.
    """
    structures = sorted({name for row in rows for name in row.shares})
    columns: list[tuple[str, list[float | None], bool]] = [
        (
            _("Share of {structure}").format(structure=_structure(name, _)),
            [100 * row.shares.get(name, 0.0) for row in rows],
            False,
        )
        for name in structures
    ]
    columns += [
        (_("Weight bits"), [row.bits for row in rows], False),
        (_("Fewer parameters, times"), [row.fewer_params for row in rows], True),
        (_("{metric} (%)").format(metric=metric_label(rows[0].metric, _)),
         [None if row.value is None else 100 * row.value for row in rows], False),
        (_("Packed file, kB"), [row.size_bytes / 1e3 if row.size_bytes else None for row in rows], True),
        (_("Latency, ms"), [row.latency_ms for row in rows], False),
    ]  # fmt: skip
    dimensions = [_dimension(title, values, logarithmic) for title, values, logarithmic in columns]
    good, plain = palette.METHOD_MARKS["joint"].colour(dark), "#33415566" if dark else "#C9D2DE"
    if stands_out:
        line = {
            "color": [int(stands_out.get(row.id) is True) for row in rows], "cmin": 0, "cmax": 1,
            "colorscale": [[0, plain], [1, good]],
        }  # fmt: skip
    else:
        line = {
            "color": [100 * (row.value or 0.0) for row in rows],
            "colorscale": "Viridis",
            "showscale": True,
            "colorbar": {"title": {"text": "%"}},
        }
    ink = "#E6EBF2" if dark else "#18222F"
    figure = go.Figure(
        go.Parcoords(
            dimensions=[dimension for dimension in dimensions if dimension], line=line,
            labelfont={"color": ink, "size": 12}, tickfont={"color": ink, "size": 11},
            rangefont={"color": ink, "size": 10},
        )
    )  # fmt: skip
    style(figure, height_px=430)
    figure.update_layout(margin={"l": 70, "r": 40, "t": 60, "b": 24})
    return figure


def _structure(name: str, _: Translate) -> str:
    return _(STRUCTURES[name].label) if name in STRUCTURES else name


def _dimension(title: str, values: Sequence[float | None], logarithmic: bool) -> dict[str, Any] | None:
    """One upright axis; what is not known lies below it. None where nothing is known, or all are alike."""
    known = [v for v in values if v is not None and (v > 0 or not logarithmic)]
    if not known or min(known) == max(known):
        return None
    low, high = min(known), max(known)
    if not logarithmic:
        lacking = low - 0.12 * (high - low)
        return {
            "label": title,
            "tickformat": ".4~g",
            "values": [lacking if v is None else v for v in values],
            **_lacks(values, low, high),
        }
    ends = [math.log10(low), math.log10(high)]
    ticks = [ends[0] + share * (ends[1] - ends[0]) for share in (0, 0.25, 0.5, 0.75, 1)]
    return {
        "label": title, "values": [math.log10(v) if v and v > 0 else ends[0] for v in values],
        "tickvals": ticks, "ticktext": [f"{10**tick:.3g}" for tick in ticks],
    }  # fmt: skip


def _lacks(values: Sequence[float | None], low: float, high: float) -> dict[str, Any]:
    if None not in values:
        return {}
    ticks = [low + share * (high - low) for share in (0, 0.5, 1)]
    lacking = low - 0.12 * (high - low)
    return {"tickvals": [lacking, *ticks], "ticktext": ["–", *(f"{tick:.3g}" for tick in ticks)]}
