"""Rows to Plotly figures, for the screens and the report alike: no Streamlit, no store, no state.

Every text a person reads passes through the caller's translation function, the argument ``_``. Fonts and
grounds are left to the page the figure stands on; only the colours of the series are set here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from qaf_core.factorization.options import Method
from qaf_core.review import palette
from qaf_core.review.palette import Mark
from qaf_core.text.said import Translate, untranslated

ROW_HEIGHT_PX = 24
MOST_POINTS = 400  # of a curve: more than pixels across


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """The relative reconstruction errors of one run, one entry per layer; None where nothing is known yet."""

    title: str
    names: tuple[str, ...]
    float_errors: tuple[float | None, ...]
    quantized_errors: tuple[float | None, ...]


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


def thinned(rows: Sequence[Any], most: int = MOST_POINTS) -> list[Any]:
    """Rows of a long curve, evenly chosen, the first and the last among them: what a screen can show."""
    if len(rows) <= most:
        return list(rows)
    last = len(rows) - 1
    return [rows[round(place * last / (most - 1))] for place in range(most)]


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
        positive = [row for row in thinned(iterations) if (row.get(key) or 0) > 0]
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
    shown = [row for row in thinned(rows) if row.get(key) is not None and math.isfinite(row[key])]
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
