"""The data inside the figures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.events import RunStatus
from qaf_core.review import charts, histograms
from qaf_core.review.charts import LayerErrors
from qaf_core.review.palette import METHOD_MARKS
from qaf_core.review.points import RunPoint, original_point, plan_text, run_point
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import RunRequest

MEASURED = {"metric": "top1", "value": 0.9, "n": 100, "ci95": [0.8, 0.95]}
COST = {"params": 5, "size_bytes": 10, "macs": 3, "bops": 20, "peak_activation_bytes": 9, "energy_joules": 1}


def a_run(**result: Any) -> RunRecord:
    asked = RunRequest(model="digits/cnn")
    return RunRecord(
        id="x", kind="compress", status=RunStatus.COMPLETED, created_at=0.0, request=asked, result=result
    )


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
    figure = charts.tradeoff_figure(POINTS, axis="size")
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
    assert charts.closeup_floor([POINTS[0], POINTS[1]]) is None
    assert charts.closeup_floor([]) is None
    floor = charts.closeup_floor(far)
    assert floor == pytest.approx(0.76)
    figure = charts.tradeoff_figure(far, axis="size", floor=floor)
    lost = trace(figure, "Sequential")
    assert list(lost.y) == pytest.approx([76])
    assert lost.text[0] == "↓ 12.5 %"
    assert lost.marker.symbol[0] == "triangle-up-open"
    assert lost.error_y.array[0] == 0
    assert figure.layout.yaxis.range[0] < 76


def test_bops_axis_takes_the_bops() -> None:
    figure = charts.tradeoff_figure(POINTS, axis="bops")
    assert list(trace(figure, "Joint").x) == [1e7, 2e7]
    ticks = figure.layout.xaxis
    assert ticks.type == "log"
    assert len(ticks.tickvals) == len(ticks.ticktext) <= charts.MOST_TICKS
    assert all(math.log10(tick) <= ticks.range[1] for tick in ticks.tickvals)


@pytest.mark.parametrize("dark", [False, True])
def test_methods_differ_by_colour_and_by_symbol(dark: bool) -> None:
    marks = METHOD_MARKS.values()
    assert (
        len({mark.colour(dark) for mark in marks})
        == len({mark.symbol for mark in marks})
        == len(METHOD_MARKS)
    )


def test_an_unknown_method_is_drawn_too() -> None:
    figure = charts.tradeoff_figure([point("x", "new", 0.5, 1e5)], axis="size")
    assert [t.name for t in figure.data] == ["new"]


def test_hover_names_accuracy_cost_and_plan() -> None:
    text = trace(charts.tradeoff_figure(POINTS, axis="size"), "Dense").hovertext[0]
    assert "91.0 %" in text
    assert "3 MB" in text
    assert "cp 18 · W4" in text


def test_the_axis_and_the_hover_name_what_was_measured() -> None:
    points = [replace(each, metric="miou") for each in POINTS]
    figure = charts.tradeoff_figure(points, axis="size")
    assert figure.layout.yaxis.title.text == "Mean IoU (%)"
    assert "Mean IoU 91.0 %" in trace(figure, "Dense").hovertext[0]
    assert charts.tradeoff_figure(POINTS, axis="size").layout.yaxis.title.text == "Accuracy (%)"
    made = run_point(a_run(compressed={**MEASURED, "metric": "map50"}, cost=COST), title="one")
    assert made is not None
    assert made.metric == "map50"


def test_texts_are_translated() -> None:
    figure = charts.tradeoff_figure(POINTS, axis="size", _=lambda text: f"<{text}>")
    assert figure.layout.xaxis.title.text == "<Model size (smaller is better)>"
    assert {t.name for t in figure.data} == {
        f"<{n}>" for n in ("Best trade-offs", "Joint", "Paper", "Dense", "Original")
    }


def test_convergence_is_in_percent_and_skips_what_is_unknown() -> None:
    rows = [
        {"iteration": 1, "float_error": 0.5, "quantized_error": 0.8},
        {"iteration": 2, "float_error": math.nan, "quantized_error": 0.6},
        {"iteration": 3, "float_error": None, "quantized_error": 0.5},
    ]
    quantized, floating = charts.convergence_figure(rows).data
    assert list(quantized.y) == pytest.approx([80, 60, 50])
    assert list(floating.x) == [1]


def test_residuals_that_are_zero_have_no_place_on_a_log_axis() -> None:
    rows = [{"iteration": 1, "primal_residual": 1.0, "dual_residual": 0.0}]
    primal, dual = charts.residual_figure(rows).data
    assert list(primal.x) == [1]
    assert list(dual.x) == []
    assert len(charts.residual_figure([]).layout.annotations) == 1


def test_layer_errors_of_two_runs_share_the_layers() -> None:
    first = LayerErrors(title="one", names=("a", "b"), float_errors=(0.1, None), quantized_errors=(0.2, None))
    second = LayerErrors(title="two", names=("b", "c"), float_errors=(0.3, 0.1), quantized_errors=(0.4, 0.2))
    figure = charts.layer_error_figure([first, second])
    assert list(figure.layout.yaxis.categoryarray) == ["a", "b", "c"]
    assert list(trace(figure, "Quantized (on the grid) · two").x) == pytest.approx([40, 20])
    assert list(figure.data[0].x) == [pytest.approx(10), pytest.approx(20), None]


def test_code_histogram_shows_codes_never_used() -> None:
    figure = histograms.code_histogram_figure({"codes": [-1, 0, 1], "counts": [5, 7, 5], "bits": 3})
    bar = figure.data[0]
    assert list(bar.x) == list(range(-4, 4))
    assert list(bar.y) == [0, 0, 0, 5, 7, 5, 0, 0]


def test_weight_histogram_puts_bars_between_the_edges() -> None:
    bar = histograms.weight_histogram_figure({"edges": [0.0, 1.0, 3.0], "counts": [4, 2]}).data[0]
    assert list(bar.x) == [0.5, 2.0]
    assert list(bar.width) == [1.0, 2.0]


def test_points_of_unfinished_runs_are_none() -> None:
    assert run_point(a_run(compressed=None, cost=None), title="x") is None
    assert run_point(a_run(compressed=MEASURED, cost={"size_bytes": 10}), title="x") is None
    done = a_run(compressed=MEASURED, cost=COST)
    made = run_point(done, title="mine")
    assert made is not None
    assert (made.low, made.high, made.size_bytes) == (0.8, 0.95, 10)
    assert original_point(done, title="o") is None


def test_a_plan_in_a_line() -> None:
    rows = [("dense", None, 8), ("cp", 12, 4), ("cp", 134, (4, 4, 8)), ("tucker2", (8, 16), 4),
            ("keep", None, None)]  # fmt: skip
    layers = [LayerPlan(name="a", structure=name, rank=rank, bits=bits) for name, rank, bits in rows]
    plan = Plan(model="m", layers=tuple(layers))
    assert plan_text(plan) == "cp 2, dense 1, tucker2 1, keep 1 · R 8–134 · W4/8 · A8"
    assert plan_text(replace(plan, layers=plan.layers[:1])) == "dense 1 · W8 · A8"
    assert plan_text(Plan(model="m", layers=())) == ""
