"""Columns of tables: one format for each quantity, and on hover what its term means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.text import meaning
from qaf_core.text.units import column_unit


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
        found = column_unit(frame[name].dropna(), unit)
        frame[name] = frame[name].astype(float) / found.divisor
        forms[name] = found.form
    return forms


def _hover(term: str | None, more: str) -> str | None:
    return " ".join(part for part in (meaning(term) if term else "", more) if part) or None
