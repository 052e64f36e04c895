"""How a user's images are prepared, where that is other than the model's own way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboard.state import address
from dashboard.text import _

NUMBER_FIELDS = ("mean", "std")
SCALES = (255.0, 1.0)
_FIELDS = (*NUMBER_FIELDS, "size", "order", "scale")
_SEPARATOR = re.compile(r"[\s,;]+")
_SIZE_SEPARATOR = re.compile(r"[\s,;x×*]+")


def ask(prefix: str) -> tuple[dict[str, Any] | None, str | None]:
    """The fields, folded away.

    Args:
        prefix: Of the fields' keys.

    Returns:
        What is given, by field of ``Preprocessing``, or None; and what is wrong with it, in words, or None.
    """
    orders = {"": _("the model's"), "rgb": _("Red first (RGB)"), "bgr": _("Blue first (BGR)")}
    ranges = (_("0 to 1"), _("0 to 255"))
    scales = {0.0: _("the model's"), **dict(zip(SCALES, ranges, strict=True))}
    with st.expander(_("How the images are prepared"), icon=":material/tune:"):
        st.caption(_("As in training. What is left empty stays as the model's own."))
        left, right = st.columns(2)
        left.text_input(
            _("Mean"), key=address.text("mean", key=f"{prefix}-mean"), placeholder="0.485, 0.456, 0.406",
            help=_("Taken off each channel, on the scale chosen here."),
        )  # fmt: skip
        right.text_input(
            _("Standard deviation"), key=address.text("std", key=f"{prefix}-std"),
            placeholder="0.229, 0.224, 0.225", help=_("Each channel is divided by it."),
        )  # fmt: skip
        left, middle, right = st.columns(3)
        left.text_input(
            _("Size, px"), key=address.text("size", key=f"{prefix}-size"), placeholder="224",
            help=_("The network's input: one number, or height × width. Images are scaled and cut to it."),
        )  # fmt: skip
        middle.selectbox(
            _("Channels"), list(orders), key=address.choice("order", list(orders), "", key=f"{prefix}-order"),
            format_func=orders.__getitem__,
        )  # fmt: skip
        right.selectbox(
            _("Pixels"), list(scales), key=address.choice("scale", list(scales), 0.0, key=f"{prefix}-scale"),
            format_func=scales.__getitem__, help=_("The range before mean and deviation."),
        )  # fmt: skip
        steps, problem = read({field: st.session_state.get(f"{prefix}-{field}") for field in _FIELDS})
        if problem:
            st.warning(problem, icon=":material/warning:")
    return steps, problem


def read(fields: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """What was typed, as fields of ``Preprocessing``; pure.

    Returns:
        The fields that were given, or None for none; and what is wrong, or None.
    """
    steps: dict[str, Any] = {}
    for field in NUMBER_FIELDS:
        text = str(fields.get(field) or "").strip()
        numbers = _numbers(text)
        if numbers:
            steps[field] = numbers
        elif text:
            return None, _("Mean and standard deviation are one number or three, as 0.5, 0.5, 0.5.")
    sides = [side for side in _SIZE_SEPARATOR.split(str(fields.get("size") or "").strip()) if side]
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 6 for side in sides):
        return None, _("The size is one number of pixels, or height × width.")
    if sides:
        # The model's own scaling goes with its own size.
        steps |= {"crop": [int(sides[0]), int(sides[-1])], "resize": None}
    if fields.get("order"):
        steps["channel_order"] = fields["order"]
    if fields.get("scale"):
        steps["scale"] = fields["scale"]
    return steps or None, None


def fill(prefix: str, steps: Mapping[str, Any] | None) -> None:
    """Set the fields, before they are drawn; what ``steps`` does not hold is left empty."""
    steps = steps or {}
    texts = {field: ", ".join(f"{value:g}" for value in steps.get(field) or ()) for field in NUMBER_FIELDS}
    texts["size"] = " × ".join(str(side) for side in steps.get("crop") or ())
    for field, text in texts.items():
        st.session_state[f"{prefix}-{field}"] = text
    st.session_state[f"{prefix}-order"] = steps.get("channel_order") or ""
    scale = float(steps.get("scale") or 0.0)
    st.session_state[f"{prefix}-scale"] = scale if scale in SCALES else 0.0


def _numbers(text: str) -> list[float]:
    """One number or three; empty where the text is something else."""
    try:
        numbers = [float(part) for part in _SEPARATOR.split(text) if part]
    except ValueError:
        return []
    return numbers if len(numbers) in (1, 3) else []
