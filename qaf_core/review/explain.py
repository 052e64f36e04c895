"""Small pictures that explain rank, bits, the solver and bit-operations to people who have not met them."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qaf_core.review import palette
from qaf_core.review.charts import style
from qaf_core.text.said import Translate

PICTURE_SIZE = 64
MOST_STEPS = 12
_HEIGHT_PX = 300
_TARGET = np.array([2.35, 1.55])  # what two weights would be if they need not be whole
_BEND = np.array([[2.0, 1.3], [1.3, 1.6]])  # how much worse other weights are

FloatArray = NDArray[np.float64]


def sample_picture() -> FloatArray:
    """A ring with a scratch on a ground that is not even: ``(64, 64)``, 0 to 1."""
    down, across = np.mgrid[0:PICTURE_SIZE, 0:PICTURE_SIZE] / PICTURE_SIZE
    far = np.hypot(down - 0.5, across - 0.5)
    picture: FloatArray = 0.25 + 0.15 * across + 0.55 * ((far > 0.2) & (far < 0.38))
    picture[np.abs(down - 0.9 * across) < 0.02] += 0.25
    return np.minimum(picture, 1.0)


def rank_picture(rank: int) -> tuple[FloatArray, float]:
    """The sample picture made of so many products of a column and a row; the share of numbers that takes."""
    left, sizes, right = np.linalg.svd(sample_picture())
    close = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    return close, min(1.0, rank * 2 * PICTURE_SIZE / PICTURE_SIZE**2)


def rank_figure(rank: int, _: Translate) -> go.Figure:
    """The sample picture, and what is left of it with a rank."""
    figure = go.Figure()
    pictures = ((sample_picture(), _("Original")), (rank_picture(rank)[0], _("Rank {rank}")))
    for place, (picture, _title) in enumerate(pictures):
        figure.add_trace(
            go.Heatmap(
                z=picture, x0=place * (PICTURE_SIZE + 6), zmin=0, zmax=1, colorscale="gray", showscale=False,
                hoverinfo="skip",
            )
        )  # fmt: skip
    style(figure, height_px=_HEIGHT_PX)
    for place, (_picture, title) in enumerate(pictures):
        figure.add_annotation(
            x=place * (PICTURE_SIZE + 6) + PICTURE_SIZE / 2, y=-5, text=title.format(rank=rank),
            showarrow=False,
        )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
    return figure


def bits_figure(bits: int, _: Translate, *, dark: bool = False) -> go.Figure:
    """A curve, and the nearest one with so many bits."""
    x = np.linspace(0, 2 * np.pi, 400)
    y = np.sin(x) * np.cos(0.5 * x)
    levels = 2**bits - 1
    steps = np.round((y + 1) / 2 * levels) / levels * 2 - 1
    figure = go.Figure()
    for values, title, mark in (
        (y, _("Original"), palette.ORIGINAL_MARK),
        (steps, _("{bits} bits").format(bits=bits), palette.QUANTIZED_MARK),
    ):
        figure.add_trace(go.Scatter(x=x, y=values, name=title, line={"color": mark.colour(dark)}))
    style(figure, height_px=_HEIGHT_PX)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(range=[-1.15, 1.15])
    return figure


def admm_path(steps: int) -> tuple[FloatArray, FloatArray]:
    """ADMM on two weights that must be whole numbers: the free and the whole ones after each step.

    Args:
        steps: How many, from 0.

    Returns:
        ``(steps + 1, 2)`` each.
    """
    integers, debt, penalty = np.round(_TARGET) + np.array([1.0, -1.0]), np.zeros(2), 0.4
    free = _TARGET.copy()
    path, grid = [free], [integers]
    for _step in range(steps):
        free = np.linalg.solve(_BEND + penalty * np.eye(2), _BEND @ _TARGET + penalty * (integers - debt))
        integers = np.round(free + debt)
        debt = debt + free - integers
        penalty *= 1.35
        path.append(free)
        grid.append(integers)
    return np.array(path), np.array(grid)


def admm_figure(steps: int, _: Translate, *, dark: bool = False) -> go.Figure:
    """The path of ADMM over the grid of whole numbers; the ellipses join weights that are equally good."""
    free, integers = admm_path(steps)
    x, y = np.linspace(0, 5, 80), np.linspace(-1, 4, 80)
    off = np.stack(np.meshgrid(x, y), -1) - _TARGET
    cost = np.einsum("...i,ij,...j->...", off, _BEND, off)
    figure = go.Figure(
        go.Contour(
            z=cost, x=x, y=y, ncontours=9, contours_coloring="lines", showscale=False, hoverinfo="skip",
            line={"width": 1}, colorscale=[[0, "#9CA3AF"], [1, "#9CA3AF"]],
        )
    )  # fmt: skip
    grid = np.stack(np.meshgrid(np.arange(0, 6), np.arange(-1, 5)), -1).reshape(-1, 2)
    figure.add_trace(
        go.Scatter(
            x=grid[:, 0], y=grid[:, 1], mode="markers", marker={"color": "#9CA3AF", "size": 5},
            name=_("Whole numbers"), hoverinfo="skip",
        )
    )  # fmt: skip
    for points, title, mark, mode in (
        (free, _("Free weights"), palette.FLOAT_MARK, "lines+markers"),
        (integers, _("Whole weights"), palette.QUANTIZED_MARK, "markers"),
    ):
        figure.add_trace(
            go.Scatter(
                x=points[:, 0], y=points[:, 1], mode=mode, name=title,
                line={"color": mark.colour(dark), "dash": "dot"},
                marker={"color": mark.colour(dark), "size": [6] * (len(points) - 1) + [14]},
            )
        )  # fmt: skip
    style(figure, height_px=_HEIGHT_PX + 40)
    figure.update_xaxes(range=[0, 5], showgrid=False)
    figure.update_yaxes(range=[-1, 4], showgrid=False)
    return figure


def bops_figure(weight_bits: int, activation_bits: int, _: Translate, *, dark: bool = False) -> go.Figure:
    """One multiplication as an area, weight bits by activation bits, within that of 32-bit numbers."""
    figure = go.Figure()
    for width, height, title, mark in (
        (32, 32, _("Original"), palette.OTHER_MARK),
        (weight_bits, activation_bits, _("Compressed"), palette.QUANTIZED_MARK),
    ):
        figure.add_trace(
            go.Scatter(
                x=[0, width, width, 0, 0], y=[0, 0, height, height, 0], fill="toself", mode="lines",
                name=title, line={"color": mark.colour(dark)},
            )
        )  # fmt: skip
    style(figure, height_px=_HEIGHT_PX + 40)
    figure.update_xaxes(title_text=_("Weight bits"), range=[-1, 34])
    figure.update_yaxes(title_text=_("Activation bits"), range=[-1, 34], scaleanchor="x")
    return figure
