"""Histograms of a layer's weights and of its factors' integer codes, as Plotly figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from qaf_core.quantization.grid import Grid
from qaf_core.review import palette
from qaf_core.review.charts import style
from qaf_core.text.said import Translate, untranslated
from qaf_core.text.units import decimal_text

MOST_TICKS = 8  # more stand upside down on charts as narrow as a quarter of a page


def weight_histogram_figure(
    histogram: Mapping[str, Sequence[float]], *, dark: bool = False, _: Translate = untranslated
) -> go.Figure:
    """The original weights' values: ``edges`` (n+1) and ``counts`` (n)."""
    bins = list(pairwise(histogram["edges"]))
    figure = go.Figure(
        go.Bar(
            x=[(low + high) / 2 for low, high in bins],
            y=list(histogram["counts"]),
            width=[high - low for low, high in bins],
            marker={"color": palette.OTHER_MARK.colour(dark), "line": {"width": 0}},
            hovertemplate=_("value {x}<br>{count} weights").format(x="%{x:.3g}", count="%{y}")
            + "<extra></extra>",
        )
    )
    style(figure, height_px=240)
    figure.update_layout(showlegend=False, bargap=0, margin_t=8)
    figure.update_xaxes(title_text=_("Weight value"))
    figure.update_yaxes(title_text=_("Weights"))
    return figure


def code_histogram_figure(
    histogram: Mapping[str, Any], *, dark: bool = False, _: Translate = untranslated
) -> go.Figure:
    """How often each code of a factor is used, over the whole grid: ``codes``, ``counts``, ``bits``."""
    grid = Grid.of(int(histogram["bits"]))
    used = dict(zip((int(c) for c in histogram["codes"]), histogram["counts"], strict=True))
    codes = list(range(grid.low, grid.high + 1))
    figure = go.Figure(
        go.Bar(
            x=codes,
            y=[used.get(code, 0) for code in codes],
            marker={"color": palette.QUANTIZED_MARK.colour(dark), "line": {"width": 0}},
            hovertemplate=_("code {x}<br>used {count} times").format(x="%{x}", count="%{y}")
            + "<extra></extra>",
        )
    )
    style(figure, height_px=240)
    figure.update_layout(showlegend=False, bargap=0.12 if grid.levels <= 32 else 0, margin_t=8)
    figure.update_xaxes(
        title_text=_("Integer code ({low} to {high})").format(
            low=decimal_text(grid.low, 0), high=decimal_text(grid.high, 0)
        ),
        range=[grid.low - 0.6, grid.high + 0.6],
        dtick=max(1, grid.levels // MOST_TICKS),
    )
    figure.update_yaxes(title_text=_("Weights"))
    return figure
