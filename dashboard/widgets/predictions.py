"""A few images with their labels and what the networks say about them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.text import _
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
    st.html(f'<div class="qaf-preview">{"".join(cells)}</div>')
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
    lines = "".join(_answer(who, answer) for who, answer in answers if answer.get("predicted") is not None)
    right = all(answer.get("right", True) for _who, answer in answers)
    return (
        f'<figure class="{"right" if right else "wrong"}">'
        f'<img src="{html.escape(str(row["image"]))}" alt="{html.escape(label)}">'
        f"<figcaption><b>{html.escape(label)}</b>{lines}</figcaption></figure>"
    )


def _answer(who: str, answer: Mapping[str, Any]) -> str:
    right = bool(answer.get("right"))
    sure = answer.get("confidence")
    share = f" ({percent_text(sure, 0)})" if isinstance(sure, float) else ""
    name = f"<i>{html.escape(who)}</i>" if who else ""
    sign = "✓" if right else "✗"
    predicted = html.escape(str(answer["predicted"]))
    return f'{name}<span class="{"good" if right else "bad"}">{sign} {predicted}{share}</span>'
