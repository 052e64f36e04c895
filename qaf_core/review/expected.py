"""What was expected of runs against what they measured, as a figure and in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qaf_core.factorization.options import Method
from qaf_core.review import palette
from qaf_core.review.charts import style
from qaf_core.text.said import Translate, untranslated
from qaf_core.text.units import percent_text


@dataclass(frozen=True, kw_only=True)
class ExpectedPoint:
    """A run with what was expected of its plan; fractions of the metric."""

    title: str
    expected: float
    low: float
    high: float
    measured: float

    @property
    def inside(self) -> bool:
        """Whether the interval held."""
        return self.low <= self.measured <= self.high


def expected_figure(
    points: Sequence[ExpectedPoint], *, dark: bool = False, _: Translate = untranslated
) -> go.Figure:
    """Measured against expected, with 95 % intervals of what was expected and the line where both agree."""
    colour = palette.METHOD_MARKS[Method.JOINT].colour(dark)
    quiet = palette.ORIGINAL_MARK.colour(dark)
    ends = [
        min(min(p.expected, p.measured) for p in points),
        max(max(p.expected, p.measured) for p in points),
    ]
    expected = [p.expected for p in points]
    bars = {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": quiet,
        "array": [p.high - p.expected for p in points], "arrayminus": [p.expected - p.low for p in points],
    }  # fmt: skip
    figure = go.Figure(
        [
            go.Scatter(x=ends, y=ends, mode="lines", line={"dash": "dot", "color": quiet}, hoverinfo="skip"),
            go.Scatter(
                x=expected,
                y=[p.measured for p in points],
                mode="markers",
                error_x=bars,
                marker={
                    "color": colour,
                    "size": 9,
                    "symbol": ["circle" if p.inside else "x" for p in points],
                },
                text=[p.title for p in points],
                hovertemplate="%{text}<br>"
                + _("expected")
                + " %{x:.1%}<br>"
                + _("measured")
                + " %{y:.1%}<extra></extra>",
            ),
        ]
    )
    figure.update_xaxes(title=_("Expected before any run"), tickformat=".0%")
    figure.update_yaxes(title=_("Measured"), tickformat=".0%")
    figure.update_layout(showlegend=False)
    style(figure, height_px=340)
    return figure


def expected_sentence(points: Sequence[ExpectedPoint], _: Translate = untranslated) -> str:
    """How well expectations held."""
    inside = sum(point.inside for point in points)
    error = sum(abs(point.expected - point.measured) for point in points) / len(points)
    return _(
        "{inside} of {count} runs measured what was expected within the 95 % interval; "
        "off by {error} on average."
    ).format(inside=inside, count=len(points), error=percent_text(error))
