"""The data inside the figures."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
import pytest

from qaf_core.review import charts, histograms
from qaf_core.review.charts import LayerErrors


def trace(figure: go.Figure, name: str) -> Any:
    return next(t for t in figure.data if t.name == name)


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


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_codes_under_a_histogram_have_room(bits: int) -> None:
    axis = histograms.code_histogram_figure({"codes": [0], "counts": [1], "bits": bits}).layout.xaxis
    assert (axis.range[1] - axis.range[0]) / axis.dtick <= 9


def test_weight_histogram_puts_bars_between_the_edges() -> None:
    bar = histograms.weight_histogram_figure({"edges": [0.0, 1.0, 3.0], "counts": [4, 2]}).data[0]
    assert list(bar.x) == [0.5, 2.0]
    assert list(bar.width) == [1.0, 2.0]
