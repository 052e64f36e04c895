"""Runs over two axes and as lines over many: the data inside the figures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from qaf_core.pipeline.events import RunStatus
from qaf_core.review.palette import METHOD_MARKS
from qaf_core.review.tradeoffs.axes import read_target
from qaf_core.review.tradeoffs.figure import (
    FAINT,
    MOST_INTERVALS,
    MOST_TICKS,
    View,
    closeup_floor,
    front_of,
    parallel_figure,
    tradeoff_figure,
)
from qaf_core.review.tradeoffs.points import RunPoint, original_point, run_point
from qaf_core.runs.listing import RunRow, row_of
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import RunRequest

MEASURED = {"metric": "top1", "value": 0.9, "n": 100, "ci95": [0.8, 0.95]}
COST = {"params": 5, "size_bytes": 10, "macs": 3, "bops": 20, "peak_activation_bytes": 9, "energy_joules": 1}


def a_row(**result: Any) -> RunRow:
    asked = RunRequest(model="digits/cnn")
    run = RunRecord(
        id="x", kind="compress", status=RunStatus.COMPLETED, created_at=0.0, request=asked, result=result
    )
    return row_of(run)


def point(run_id: str, method: str, value: float, size: float) -> RunPoint:
    return RunPoint(
        run_id=run_id, title=run_id, method=method, value=value, low=value - 0.02, high=value + 0.01,
        size_bytes=size, bops=10 * size, summary="cp 18 · W4",
    )  # fmt: skip


POINTS = [
    point("a", "joint", 0.90, 1e6), point("b", "joint", 0.92, 2e6), point("c", "dense", 0.91, 3e6),
    point("d", "paper", 0.80, 1e6), point("", "original", 0.95, 40e6),
]  # fmt: skip


def trace(figure: go.Figure, name: str) -> Any:
    return next(t for t in figure.data if t.name == name)


def test_tradeoff_shows_intervals_methods_and_the_front() -> None:
    figure = tradeoff_figure(POINTS, View())
    joint = trace(figure, "Joint")
    assert list(joint.x) == [1e6, 2e6]
    assert list(joint.y) == pytest.approx([90, 92])
    assert list(joint.error_y.array) == pytest.approx([1, 1])
    assert list(joint.error_y.arrayminus) == pytest.approx([2, 2])
    assert [row[0] for row in joint.customdata] == ["a", "b"]
    assert list(trace(figure, "Best trade-offs").x) == [1e6, 2e6, 40e6]
    assert trace(figure, "Original").marker.symbol[0] == "star"


def test_a_close_up_keeps_the_far_runs_at_its_edge() -> None:
    far = [*POINTS, point("e", "sequential", 0.125, 1e6)]
    assert closeup_floor([POINTS[0], POINTS[1]]) is None
    assert closeup_floor([]) is None
    floor = closeup_floor(far)
    assert floor == pytest.approx(0.76)
    figure = tradeoff_figure(far, View(floor=floor))
    lost = trace(figure, "Sequential")
    assert list(lost.y) == pytest.approx([76])
    assert lost.text[0] == "↓ 12.5 %"
    assert lost.marker.symbol[0] == "triangle-up-open"
    assert lost.error_y.array[0] == 0
    assert figure.layout.yaxis.range[0] < 76


def test_bops_axis_takes_the_bops() -> None:
    figure = tradeoff_figure(POINTS, View(across="bops"))
    assert list(trace(figure, "Joint").x) == [1e7, 2e7]
    ticks = figure.layout.xaxis
    assert ticks.type == "log"
    assert len(ticks.tickvals) == len(ticks.ticktext) <= MOST_TICKS
    assert all(math.log10(tick) <= ticks.range[1] for tick in ticks.tickvals)


def test_an_unknown_method_is_drawn_too() -> None:
    figure = tradeoff_figure([point("x", "new", 0.5, 1e5)], View())
    assert [t.name for t in figure.data] == ["new"]


def test_hover_names_accuracy_cost_and_plan() -> None:
    text = trace(tradeoff_figure(POINTS, View()), "Dense").hovertext[0]
    assert "91.0 %" in text
    assert "3 MB" in text
    assert "cp 18 · W4" in text


def test_the_axis_and_the_hover_name_what_was_measured() -> None:
    points = [replace(each, metric="miou") for each in POINTS]
    figure = tradeoff_figure(points, View())
    assert figure.layout.yaxis.title.text == "Mean IoU (%)"
    assert "Mean IoU 91.0 %" in trace(figure, "Dense").hovertext[0]
    assert tradeoff_figure(POINTS, View()).layout.yaxis.title.text == "Accuracy (%)"
    made = run_point(a_row(compressed={**MEASURED, "metric": "map50"}, cost=COST), title="one")
    assert made is not None
    assert made.metric == "map50"


def test_texts_are_translated() -> None:
    figure = tradeoff_figure(POINTS, View(), _=lambda text: f"<{text}>")
    assert figure.layout.xaxis.title.text == "<Size of the packed file>"
    assert {t.name for t in figure.data} == {
        f"<{n}>" for n in ("Best trade-offs", "Joint", "Paper", "Dense", "Original")
    }


def test_points_of_unfinished_runs_are_none() -> None:
    assert run_point(a_row(compressed=None, cost=None), title="x") is None
    assert run_point(a_row(compressed=MEASURED, cost={"size_bytes": 10}), title="x") is None
    done = a_row(compressed=MEASURED, cost=COST)
    made = run_point(done, title="mine")
    assert made is not None
    assert (made.low, made.high, made.size_bytes) == (0.8, 0.95, 10)
    assert original_point(done, title="o") is None


@pytest.mark.parametrize("dark", [False, True])
def test_methods_differ_by_colour_and_by_symbol(dark: bool) -> None:
    marks = METHOD_MARKS.values()
    assert (
        len({mark.colour(dark) for mark in marks})
        == len({mark.symbol for mark in marks})
        == len(METHOD_MARKS)
    )


def test_axes_are_chosen_freely_and_what_is_not_known_is_left_out() -> None:
    timed = [replace(each, latency_ms=5.0 + place) for place, each in enumerate(POINTS[:3])]
    figure = tradeoff_figure([*timed, *POINTS[3:]], View(across="latency_ms", upwards="size_bytes"))
    assert [t.name for t in figure.data] == ["Best trade-offs", "Joint", "Dense"] or len(figure.data) == 2
    assert list(trace(figure, "Joint").x) == [5.0, 6.0]
    assert list(trace(figure, "Joint").y) == [1e6, 2e6]
    assert figure.layout.yaxis.type == "log"
    turned = tradeoff_figure(timed, View(across="value", upwards="latency_ms"))
    assert list(trace(turned, "Joint").error_x.array) == pytest.approx([1, 1])
    assert front_of(timed, "latency_ms", "value") == (0, 1)
    assert front_of(timed, "size_bytes", "latency_ms") == (0,)


def test_a_target_is_a_box_and_what_passes_stands_out() -> None:
    points = [replace(each, stands_out=each.run_id == "a") for each in POINTS[:3]]
    target = read_target("90 %, 1.5 MB")
    figure = tradeoff_figure(points, View(target=target))
    (box,) = figure.layout.shapes
    assert (box.y0, box.y1, box.x1, box.xref, box.yref) == (90, 100, 1.5e6, "x", "y")  # not above 100 %
    assert list(trace(figure, "Joint").marker.opacity) == [1, FAINT]
    (half,) = tradeoff_figure(points, View(across="bops", target=target)).layout.shapes
    assert (half.xref, half.x1, half.y0) == ("x domain", 1, 90)
    assert not tradeoff_figure(points, View(upwards="bops", across="latency_ms", target=target)).layout.shapes


def test_of_very_many_points_only_the_best_have_bars() -> None:
    many = [point(str(place), "joint", 0.9, 1e6 + place) for place in range(MOST_INTERVALS + 1)]
    bars = list(trace(tradeoff_figure(many, View()), "Joint").error_y.array)
    assert bars[0] > 0  # the smallest
    assert bars[1:] == [None] * MOST_INTERVALS
    assert None not in list(trace(tradeoff_figure(many[1:], View()), "Joint").error_y.array)


def test_lines_over_all_runs() -> None:
    rows = [
        replace(a_row(compressed={**MEASURED, "value": value}, cost={**COST, "size_bytes": size}), id=name,
                shares={"cp": share, "svd": 1 - share}, latency_ms=latency)
        for name, value, size, share, latency in (("a", 0.9, 10, 0.5, 3.0), ("b", 0.8, 1000, 0.25, None))
    ]  # fmt: skip
    (lines,) = parallel_figure(rows, {"a": True, "b": False}).data
    found = {each.label: list(each["values"]) for each in lines.dimensions}
    assert found["Share of CP"] == [50, 25]
    assert found["Accuracy (%)"] == pytest.approx([90, 80])
    assert found["Packed file, kB"] == pytest.approx([-2, 0])
    assert "Latency, ms" not in found, "known of one run only"
    assert list(lines.line.color) == [1, 0]
    assert list(parallel_figure(rows, {}).data[0].line.color) == pytest.approx([90, 80])
    assert not parallel_figure(rows[:1], {}).data[0].dimensions, "one run differs from none"
