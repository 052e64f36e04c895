"""Four words of the field, each with a picture to play with."""

from __future__ import annotations

import plotly.graph_objects as go
import streamlit as st

from dashboard.text import _
from dashboard.widgets import ui
from qaf_core.review import explain
from qaf_core.text.units import percent_text


def show() -> None:
    """Rank, bits, the solver and bit-operations."""
    dark = ui.is_dark()
    rank, bits, solver, operations = st.tabs(
        [_("Rank"), _("Bit-width"), _("The solver (ADMM)"), _("Bit-operations")]
    )
    with rank:
        chosen = st.slider(_("Rank"), 1, 32, 6, key="explain-rank")
        share = percent_text(explain.rank_picture(chosen)[1], 0)
        st.caption(
            _(
                "A layer is a large table of numbers, like this picture. It is rebuilt from a few columns "
                "and rows: their number is the rank. Here {share} of the numbers are stored."
            ).format(share=share)
        )
        _draw(explain.rank_figure(chosen, _), "rank")
    with bits:
        chosen = st.slider(_("Bits"), 1, 8, 3, key="explain-bits")
        st.caption(
            _(
                "Each number is stored as one of a few steps: {bits} bits are {steps} steps, in place of "
                "the 32 bits of a usual number."
            ).format(bits=chosen, steps=2**chosen)
        )
        _draw(explain.bits_figure(chosen, _, dark=dark), "bits")
    with solver:
        chosen = st.slider(_("Steps"), 0, explain.MOST_STEPS, 0, key="explain-admm")
        st.caption(
            _(
                "The best weights lie in the middle of the ellipses, but only whole numbers can be stored. "
                "Rounding at the end can miss the best ones; the solver draws free and whole weights "
                "together step by step, until they meet."
            )
        )
        _draw(explain.admm_figure(chosen, _, dark=dark), "admm")
    with operations:
        left, right = st.columns(2)
        weight = left.slider(_("Weight bits"), 1, 32, 4, key="explain-weight-bits")
        activation = right.slider(_("Activation bits"), 1, 32, 8, key="explain-activation-bits")
        st.caption(
            _(
                "A multiplication of a number of {weight} bits with one of {activation} counts {product} "
                "bit-operations, in place of 1,024 with 32-bit numbers."
            ).format(weight=weight, activation=activation, product=weight * activation)
        )
        _draw(explain.bops_figure(weight, activation, _, dark=dark), "bops")


def _draw(figure: go.Figure, key: str) -> None:
    st.plotly_chart(figure, key=f"explain-{key}-figure", config={"displayModeBar": False, "staticPlot": True})
