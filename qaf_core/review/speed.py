"""Measured latencies as a figure and as a sentence, for the screens and the report alike."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from qaf_core.deploy.runtime.measure_kit import Latency, Ratio
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.factorization.options import Method
from qaf_core.review import palette
from qaf_core.review.charts import style
from qaf_core.text.said import Translate, untranslated
from qaf_core.text.units import factor_text, milliseconds_text

ROW_HEIGHT_PX = 42


def model_labels(_: Translate = untranslated) -> dict[str, str]:
    """The names of the models on screens."""
    return {file: _(file.label) for file in ModelFile}


def latency_figure(
    latencies: Mapping[str, Latency], *, dark: bool = False, _: Translate = untranslated
) -> go.Figure:
    """Median latency of each model as a bar, its 5 to 95 % range as a line.

    Args:
        latencies: By file.
        dark: Whether the ground is dark.
        _: Translation of texts.
    """
    labels = model_labels(_)
    names = [name for name in ModelFile if name in latencies]
    medians = [latencies[name].median_ms for name in names]
    colours = [
        (palette.METHOD_MARKS[Method.JOINT] if name.is_compressed else palette.OTHER_MARK).colour(dark)
        for name in names
    ]
    figure = go.Figure(
        go.Bar(
            x=medians,
            y=[labels[name] for name in names],
            orientation="h",
            marker={"color": colours},
            error_x={
                "type": "data",
                "symmetric": False,
                "thickness": 1.4,
                "width": 5,
                "color": palette.ORIGINAL_MARK.colour(dark),
                "array": [latencies[n].p95_ms - m for n, m in zip(names, medians, strict=True)],
                "arrayminus": [m - latencies[n].p5_ms for n, m in zip(names, medians, strict=True)],
            },
            text=[milliseconds_text(median) for median in medians],
            textposition="inside",
            insidetextanchor="start",
            textfont={"color": "#0F151E" if dark else "#FFFFFF"},
            hovertemplate="%{y}<br>%{x:.3f} ms<extra></extra>",
        )
    )
    style(figure, height_px=90 + ROW_HEIGHT_PX * max(1, len(names)))
    figure.update_xaxes(title_text=_("Milliseconds per inference (median, 5 to 95 %)"), rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return figure


def times_as_long(ratio: Ratio, _: Translate = untranslated) -> str:
    """A ratio of times in words: ``1.5 times as long``; as long where chance explains the difference.

    Args:
        ratio: Of one time over another.
        _: Translation of texts.
    """
    if ratio.low <= 1.0 <= ratio.high:
        return _("as long")
    return _("{times} times as long").format(times=f"{ratio.value:.2g}")


def speed_sentence(ratio: Ratio, _: Translate = untranslated) -> str:
    """Whether the compressed integer model is faster than the dense one, without flattery.

    Args:
        ratio: Of the compressed over the dense integer model's latency.
        _: Translation of texts.
    """
    value, low, high = ratio.value, ratio.low, ratio.high
    if high < 1.0:
        text = _("{times} faster than the original in 8 bits, measured in turns on this machine.")
        return text.format(times=factor_text(1 / value))
    if low > 1.0:
        text = _(
            "Slower than the original in 8 bits, by {times}: here fewer operations do not mean less time. "
            "Choose it for its size, or let the plan be chosen by measured speed."
        )
        return text.format(times=factor_text(value))
    return _("As fast as the original in 8 bits: the difference is within the noise of this machine.")
