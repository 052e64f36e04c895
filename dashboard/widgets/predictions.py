"""A few images with their labels and what the networks say about them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.text import _
from dashboard.widgets.blocks import legend_html
from qaf_core.pipeline.marks import DETECTION, INVENTED, MISSED, SEGMENTATION
from qaf_core.review.marks import mark_legend
from qaf_core.text.units import percent_text

MOST = 9


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The images of a preview, with one network's answers or with two; nothing where there are none.

    Args:
        rows: As ``preview_predictions`` or ``read_preview`` gives them.
    """
    cells = [_cell(row) for row in rows[:MOST] if str(row.get("image", "")).startswith("data:image/")]
    if not cells:
        return
    marked = any("found" in row for row in rows)
    wide = " wide" if any((row.get("compressed") or {}).get("image") for row in rows) else ""
    legend = legend_html(mark_legend(_)) if marked else ""
    st.html(f'{legend}<div class="qaf-preview{wide}">{"".join(cells)}</div>')
    if marked:
        caption = _("Drawn on each image: what the network finds, against the truth.")
        if wide:
            caption = _(
                "Against the truth: the original's findings on the left, the compressed network's on the "
                "right."
            )
        st.caption(caption)
        return
    compared = any("compressed" in row for row in rows)
    st.caption(
        _("Each image with its label, and below it what both networks say and how sure they are.")
        if compared
        else _("Each image with its label, and below it what the original network says.")
    )


def _cell(row: Mapping[str, Any]) -> str:
    label = str(row.get("label", ""))
    answers = [("", row), *([(_("Compressed"), row["compressed"])] if "compressed" in row else [])]
    if len(answers) > 1:
        answers[0] = (_("Original"), row)
    lines = "".join(_answer(who, answer) for who, answer in answers)
    right = all(answer.get("right", True) or answer.get("task") == SEGMENTATION for _who, answer in answers)
    return (
        f'<figure class="{"right" if right else "wrong"}">'
        f"{_pictures(row, label)}"
        f"<figcaption><b>{html.escape(label)}</b>{lines}</figcaption></figure>"
    )


def _pictures(row: Mapping[str, Any], label: str) -> str:
    """One picture, or that of both networks beside each other."""
    other = str((row.get("compressed") or {}).get("image") or "")
    addresses = [str(row["image"]), *([other] if other.startswith("data:image/") else [])]
    pictures = "".join(
        f'<img src="{html.escape(address)}" alt="{html.escape(label)}">' for address in addresses
    )
    return f'<div class="pair">{pictures}</div>' if len(addresses) > 1 else pictures


def _found(answer: Mapping[str, Any]) -> str:
    """How much is missed and invented, in numbers of objects or shares of pixels."""
    found = answer["found"]
    missed, invented = (
        f"{found[name]:.0f}" if answer.get("task") == DETECTION else percent_text(found[name])
        for name in (MISSED, INVENTED)
    )
    return _("missed {missed}, invented {invented}").format(missed=missed, invented=invented)


def _answer(who: str, answer: Mapping[str, Any]) -> str:
    shown = answer.get("predicted")
    if answer.get("found"):
        shown = _found(answer)
    if shown is None:
        return ""
    right = bool(answer.get("right"))
    sure = answer.get("confidence")
    share = f" ({percent_text(sure, 0)})" if isinstance(sure, float) else ""
    name = f"<i>{html.escape(who)}</i>" if who else ""
    if answer.get("task") == SEGMENTATION:  # hardly a mask is right to the last pixel
        return f"{name}<span>{html.escape(str(shown))}</span>"
    sign = "✓" if right else "✗"
    predicted = html.escape(str(shown))
    return f'{name}<span class="{"good" if right else "bad"}">{sign} {predicted}{share}</span>'
