"""The curves of the layer being solved, as Vega-Lite: pure.

Streamlit draws a Plotly chart anew whenever its data change, which flickers twice a second; of a Vega-Lite
chart it exchanges only the data. What stands still is a Plotly figure from ``qaf_core.review.charts``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dashboard.text import _
from qaf_core.review import palette
from qaf_core.review.charts import thinned
from qaf_core.review.palette import Mark

Series = tuple[tuple[str, str, Mark], ...]
HEIGHT_PX = 310
DASHES = {"solid": [1, 0], "dash": [6, 4], "dot": [2, 3]}


def convergence_series() -> Series:
    """Field, name and mark of the two error curves."""
    return (
        ("quantized_error", _("Quantized (on the grid)"), palette.QUANTIZED_MARK),
        ("float_error", _("Float (without the grid)"), palette.FLOAT_MARK),
    )


def residual_series() -> Series:
    """Field, name and mark of the two residual curves."""
    return (
        ("primal_residual", _("Distance from the grid"), palette.PRIMAL_MARK),
        ("dual_residual", _("Change per step"), palette.DUAL_MARK),
    )


def curve_data(
    iterations: Sequence[Mapping[str, Any]],
    series: Series,
    *,
    scale: float = 1.0,
    positive: bool = False,
    step: str = "iteration",
) -> pd.DataFrame:
    """One row per point: ``iteration``, ``series``, ``value``; what is unknown is left out.

    Args:
        iterations: Points with the fields of ``series``.
        series: The curves.
        scale: What values are multiplied with.
        positive: Leave out what a logarithmic axis cannot show.
        step: The field that counts the points.
    """
    shown = thinned(iterations)
    rows = [
        (row[step], name, scale * row[field])
        for field, name, _mark in series
        for row in shown
        if row.get(field) is not None and math.isfinite(row[field]) and (row[field] > 0 or not positive)
    ]
    return pd.DataFrame(rows, columns=["iteration", "series", "value"])


def finetune_series(points: Sequence[Mapping[str, Any]]) -> Series:
    """Field, name and mark of the curves of fine-tuning; one only where no codes left their grids."""
    on_grid = ("on_grid", _("Quantized (on the grid)"), palette.QUANTIZED_MARK)
    off_grid = ("off_grid", _("Float (without the grid)"), palette.FLOAT_MARK)
    return (on_grid,) if all(point.get("on_grid", True) for point in points) else (on_grid, off_grid)


def finetune_rows(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What fine-tuning told of each pass, as ``curve_data`` takes it: the loss on held-back images by
    whether all codes were on their grids; earlier versions did not say, and all were.
    """
    return [
        {
            "epoch": point["epoch"],
            "on_grid" if point.get("on_grid", True) else "off_grid": point["held_back"],
        }
        for point in points
    ]


def curve_spec(
    series: Series, *, title: str, dark: bool, logarithmic: bool = False, step: str | None = None
) -> dict[str, Any]:
    """The drawing of ``curve_data``, which stays the same while the data grow.

    Args:
        series: The curves.
        title: Of the vertical axis, with its unit.
        dark: Whether the ground is dark.
        logarithmic: Whether the vertical axis is.
        step: What the horizontal axis counts; iterations if None.
    """
    names = [name for _field, name, _mark in series]
    step = step or _("Iteration")
    colours = [mark.colour(dark) for _field, _name, mark in series]
    scale: dict[str, Any] = {"type": "log"} if logarithmic else {"zero": False}
    axis = {"tickCount": 5, "format": "~g"} if logarithmic else {"tickCount": 5}
    legend = {
        "orient": "top",
        "title": None,
        "symbolType": "stroke",
        "symbolSize": 320,
        "symbolStrokeWidth": 2.5,
        "labelLimit": 320,
    }
    return {
        "height": HEIGHT_PX,
        "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 22}},
        "encoding": {
            "x": {
                "field": "iteration",
                "type": "quantitative",
                "title": step,
                "scale": {"zero": not logarithmic, "nice": False},
                "axis": {"tickCount": 6, "format": "d", "grid": False},
            },
            "y": {"field": "value", "type": "quantitative", "title": title, "scale": scale, "axis": axis},
            "color": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": names, "range": colours},
                "legend": legend,
            },
            "strokeDash": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": names, "range": [DASHES[mark.dash] for _field, _name, mark in series]},
                "legend": legend,
            },
            "tooltip": [
                {"field": "series", "type": "nominal", "title": " "},
                {"field": "iteration", "type": "quantitative", "title": step},
                {"field": "value", "type": "quantitative", "title": title, "format": ".3~g"},
            ],
        },
    }
