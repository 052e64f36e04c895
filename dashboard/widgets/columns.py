"""Tables: one format for each quantity, what a term means on hover, whole rows, and all of them on paper."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import streamlit as st

from dashboard.text import _, meaning
from qaf_core.text.units import MISSING, column_unit, points_text

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

MOST_ROWS = 18  # of a table on the screen; what is longer scrolls
ROW_PX, FRAME_PX = 33, 2
MOST_PRINTED = 500  # rows


@dataclass(frozen=True)
class Written:
    """A cell that is sorted as a number and shown in words of its own, as ``▼ −1.0 (−1.6 to −0.4)``.

    Attributes:
        value: The number.
        words: How it is shown.
    """

    value: float
    words: str


class _Number(float):
    """A number that knows its words."""

    words: str


def points(fraction: float | None) -> Written | None:
    """A difference of two fractions as a cell, in points."""
    return None if fraction is None else Written(100 * fraction, points_text(fraction))


def table(frame: pd.DataFrame, config: Mapping[str, Any], *, most: int = MOST_ROWS, **options: Any) -> Any:
    """A table as high as its rows; what the browser prints holds all rows and columns.

    Args:
        frame: Its cells.
        config: By column, as the functions below make it; columns without one keep their name.
        most: The most rows before it scrolls.
        options: Streamlit's own, such as ``key`` and ``on_select``.

    Returns:
        What Streamlit tells of a selection.
    """
    selection = st.dataframe(
        _in_words(frame), hide_index=True, column_config=dict(config), height=table_height(len(frame), most),
        **{"placeholder": MISSING, **options},
    )  # fmt: skip
    st.html(f'<div class="qaf-table qaf-printed">{printed(frame, config)}</div>')
    return selection


def _in_words(frame: pd.DataFrame) -> pd.DataFrame | Styler:
    """The same cells as numbers, with the words of those that have them."""
    named = [name for name in frame.columns if any(isinstance(cell, Written) for cell in frame[name])]
    if not named:
        return frame
    numbers = {name: pd.Series(map(_number, frame[name]), frame.index, dtype=object) for name in named}
    style = frame.assign(**numbers).style
    for name in named:
        style = style.format(_words, na_rep=MISSING, subset=pd.IndexSlice[:, name])
    return style


def _number(cell: Written | None) -> _Number | None:
    if not isinstance(cell, Written):
        return None
    number = _Number(cell.value)
    number.words = cell.words
    return number


def _words(cell: object) -> str:
    return str(getattr(cell, "words", cell))


def table_height(rows_shown: int, most: int = MOST_ROWS) -> int | Literal["content"]:
    """The height of a table: as high as its rows, up to ``most`` of them, so that none is cut."""
    return "content" if rows_shown <= most else ROW_PX * (most + 1) + FRAME_PX


def printed(frame: pd.DataFrame, config: Mapping[str, Any]) -> str:
    """A table as HTML, as it is printed."""
    columns = [dict(config.get(name) or {}) for name in frame.columns]
    heads = [column.get("label") or str(name) for column, name in zip(columns, frame.columns, strict=True)]
    forms = [(column.get("type_config") or {}).get("format") for column in columns]
    lines = [
        "".join(f"<td>{_cell(value, form)}</td>" for value, form in zip(row, forms, strict=True))
        for row in frame.head(MOST_PRINTED).itertuples(index=False, name=None)
    ]
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    left = len(frame) - MOST_PRINTED
    more = f"<p class=note>{html.escape(_('{count} more rows').format(count=left))}</p>" if left > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: Any, form: str | None) -> str:
    if isinstance(value, list | tuple):
        return html.escape(", ".join(map(str, value)))
    if isinstance(value, Written):
        return html.escape(value.words)
    if value is None or value != value:  # what is not a number differs from itself
        return MISSING
    text = form % value if form and "%" in form and isinstance(value, int | float) else str(value)
    return html.escape(text.replace("-", "−") if form else text)


def text(label: str, term: str | None = None, help_text: str = "", **options: Any) -> Any:
    """A column of words.

    Args:
        label: Its heading.
        term: Of the glossary, shown on hover.
        help_text: Shown on hover, after what the term means.
        options: Streamlit's own.
    """
    return st.column_config.TextColumn(label, help=_hover(term, help_text), **options)


def number(label: str, form: str, term: str | None = None, help_text: str = "", **options: Any) -> Any:
    """A column of numbers in a format such as ``%.1f kB``; the rest as for ``text``."""
    return st.column_config.NumberColumn(label, format=form, help=_hover(term, help_text), **options)


def written(label: str, term: str | None = None, help_text: str = "", **options: Any) -> Any:
    """A column of numbers with words of their own; the rest as for ``text``."""
    return st.column_config.NumberColumn(label, help=_hover(term, help_text), **options)


def percent(label: str, term: str | None = None, help_text: str = "") -> Any:
    """A column of percentages."""
    return number(label, "%.1f %%", term, help_text)


def factor(label: str, term: str | None = None, help_text: str = "", digits: int = 1) -> Any:
    """A column of multiples: ``13.9×``."""
    return number(label, f"%.{digits}f×", term, help_text)


def in_units(frame: pd.DataFrame, units: Mapping[str, str]) -> dict[str, str]:
    """Bring columns to the unit that fits their largest number, kB or MB; the format of each.

    Args:
        frame: Changed in place.
        units: By column the unit of its numbers, as for ``column_unit``.
    """
    forms = {}
    for name, unit in units.items():
        chosen = column_unit(frame[name].dropna(), unit)
        frame[name] = frame[name].astype(float) / chosen.divisor
        forms[name] = chosen.form
    return forms


def _hover(term: str | None, more: str) -> str | None:
    return " ".join(part for part in (meaning(term) if term else "", more) if part) or None
