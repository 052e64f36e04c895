"""The charts of the Trade-offs page: two of points, or one of lines over all runs."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from dashboard.state import address, rows
from dashboard.text import _, translation
from dashboard.views.tradeoffs.judged import TARGET_KEY, Judged
from dashboard.widgets import ui
from qaf_core.review.tradeoffs.axes import AXES, BOPS, SIZE, VALUE, axis_label, box_target
from qaf_core.review.tradeoffs.figure import (
    MOST_INTERVALS,
    View,
    closeup_floor,
    parallel_figure,
    tradeoff_figure,
)
from qaf_core.review.tradeoffs.points import RunPoint, original_point, run_point
from qaf_core.runs.listing import RunRow

POINTS, LINES = "points", "lines"
DRAW_KEY = "tradeoffs-draw"


def points_of(runs: Sequence[RunRow], judged: Judged) -> list[RunPoint]:
    """The points of all runs with a result, and of the original of each evaluation."""
    say, name = translation(), _("the original") if judged.reference is None else judged.reference.title
    points = [
        run_point(
            run,
            title=html.escape(f"{run.title} ({rows.part_done(run)})" if run.is_partial else run.title),
            stands_out=judged.passes[run.id] is True if judged.passes else None,
            difference=html.escape(_difference(run, judged, name, say)),
        )
        for run in runs
    ]
    originals = {
        (point.value, point.size_bytes): point
        for run in runs
        if (point := original_point(run, title=_("Original"))) is not None
    }
    return [point for point in points if point is not None] + list(originals.values())


def _difference(run: RunRow, judged: Judged, name: str, say: Callable[[str], str]) -> str:
    difference = judged.differences.get(run.id)
    if difference is None:
        return ""
    text = say("{points} points against {name}: {verdict}")
    return text.format(points=difference.text(say), name=name, verdict=difference.sentence(say))


def show(runs: Sequence[RunRow], points: Sequence[RunPoint], judged: Judged) -> None:
    """The charts with the choice of their axes."""
    views = {POINTS: _("Points"), LINES: _("Lines over all runs")}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        view = st.segmented_control(
            _("Chart"), list(views), format_func=views.__getitem__, required=True,
            key=address.choice("chart", list(views), POINTS),
        )  # fmt: skip
        upwards, floor = _upwards(points) if view == POINTS else (VALUE, None)
    if view == LINES:
        figure = parallel_figure(runs, judged.passes, dark=ui.is_dark(), _=_)
        if not figure.data[0].dimensions:
            st.info(_("Lines show in what runs differ: it takes two that do."), icon=":material/show_chart:")
            return
        st.plotly_chart(
            figure, key="tradeoff-lines", config={"displayModeBar": False},
            alt=_("Every run as a line over its plan and its results"),
        )  # fmt: skip
        st.caption(
            _("Drag along an axis to keep only the lines that pass there; drag an axis's name to move it.")
        )
        return
    st.toggle(_("Draw the target: drag a box over a chart"), key=DRAW_KEY)
    for place, (column, first) in enumerate(zip(st.columns(2, gap="medium"), (SIZE, BOPS), strict=True)):
        with column:
            _panel(points, judged, upwards, floor, first, f"x{place + 1}")
    note = _("Bars show 95 % intervals of the measurement; the dotted line joins the best trade-offs.")
    if len(points) > MOST_INTERVALS:
        note += " " + _("Of so many runs only the best have bars; point at a run for its interval.")
    if not st.session_state[DRAW_KEY]:
        note += " " + _("Click a point to open its run.")
    if floor is not None:
        note += " " + _("Open marks with an arrow belong further down.")
    if any(point.is_partial for point in points):
        note += " " + _("Open marks without an arrow: only a part of the layers is compressed.")
    st.caption(note)


def _upwards(points: Sequence[RunPoint]) -> tuple[str, float | None]:
    """The axis both charts share, and where its close-up ends."""
    upwards = st.selectbox(
        _("Upwards"), AXES, key=address.choice("y", AXES, VALUE, key="tradeoffs-y"), width=280,
        format_func=lambda axis: axis_label(axis, points[0].metric, _),
    )  # fmt: skip
    floor = closeup_floor(points)
    if floor is None or upwards != VALUE:
        return upwards, None
    views = {"near": _("Close-up of the best"), "all": _("Whole range")}
    near = st.segmented_control(
        _("Vertical axis"), list(views), format_func=views.__getitem__, required=True,
        key=address.choice("range", list(views), "near"),
    )  # fmt: skip
    return upwards, floor if near == "near" else None


def _panel(
    points: Sequence[RunPoint], judged: Judged, upwards: str, floor: float | None, first: str, name: str
) -> None:
    across = st.selectbox(
        _("Across"), AXES, key=address.choice(name, AXES, first, key=f"tradeoffs-{name}"),
        format_func=lambda axis: axis_label(axis, points[0].metric, _),
    )  # fmt: skip
    known = sum(None not in (getattr(p, across), getattr(p, upwards)) for p in points)
    if known < len(points):
        text = _("{known} of {count} points are shown: of the others this was not measured.")
        st.caption(text.format(known=known, count=len(points)))
    view = View(across=across, upwards=upwards, dark=ui.is_dark(), floor=floor, target=judged.target)
    figure = tradeoff_figure(points, view, _=translation())
    drawn = bool(st.session_state[DRAW_KEY])  # Streamlit tells of clicks on points only where none is
    if drawn:
        figure.update_layout(dragmode="select")
    # Once a box was drawn and read, the chart is another one: nothing stays selected.
    key = f"{name}-{across}-{upwards}-{drawn}-{' '.join(each.typed() for each in judged.target)}"
    event = st.plotly_chart(
        figure,
        key=key,
        on_select=(lambda: _read_box(key, across, upwards)) if drawn else "rerun",
        selection_mode="box" if drawn else "points",
        config={"displayModeBar": False},
        alt=f"{axis_label(upwards, points[0].metric, _)} / {axis_label(across, points[0].metric, _)}",
    )
    if not drawn:
        _open_clicked(event)


def _read_box(key: str, across: str, upwards: str) -> None:
    """Make a drawn box the target."""
    boxes = st.session_state[key].selection.get("box") or ()
    if not boxes:
        return
    sides = {}
    for axis, letter in ((across, "x"), (upwards, "y")):
        low, high = sorted(boxes[-1][letter])
        sides[axis] = (low / 100, high / 100) if axis == VALUE else (low, high)
    st.session_state[TARGET_KEY] = ", ".join(each.typed() for each in box_target(sides))


def _open_clicked(event: Any) -> None:
    for point in event.selection.points:
        run_id = next(iter(point.get("customdata") or ()), "")
        if run_id:
            ui.go_to("run", run=str(run_id))
