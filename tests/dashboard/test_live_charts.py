"""The curves of the layer being solved."""

import math

from dashboard.state import live_charts


def test_data_are_long_and_without_gaps() -> None:
    rows = [
        {"iteration": 1, "quantized_error": 0.5, "float_error": None},
        {"iteration": 2, "quantized_error": 0.4, "float_error": math.inf},
        {"iteration": 3, "quantized_error": 0.3, "float_error": 0.2},
    ]
    data = live_charts.curve_data(rows, live_charts.convergence_series(), scale=100)
    assert list(data["iteration"]) == [1, 2, 3, 3]
    assert list(data["value"].round(6)) == [50, 40, 30, 20]
    assert data["series"].nunique() == 2


def test_a_log_axis_takes_positive_values_only() -> None:
    rows = [{"iteration": 1, "primal_residual": 0.0, "dual_residual": 0.1}]
    data = live_charts.curve_data(rows, live_charts.residual_series(), positive=True)
    assert list(data["value"]) == [0.1]


def test_the_drawing_tells_curves_apart_by_colour_and_dash() -> None:
    spec = live_charts.curve_spec(live_charts.residual_series(), title="r", dark=True, logarithmic=True)
    for channel in ("color", "strokeDash"):
        scale = spec["encoding"][channel]["scale"]
        assert len({str(value) for value in scale["range"]}) == len(scale["domain"]) == 2
    assert spec["encoding"]["y"]["scale"]["type"] == "log"
