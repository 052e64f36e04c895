"""What a report's sections are made of: tables, charts, lists and paragraphs, for HTML and CSV alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of finished texts.

    Attributes:
        key: Names the table, whatever the language.
        marks: Status of each row, which colours it; empty for none.
        numeric: Columns from this one on are set to the right.
        changed: Cells, by row and column, that are marked as different.
    """

    key: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Sequence[str] = ()
    numeric: int = 99
    note: str = ""
    changed: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with its title."""

    key: str
    title: str
    figure: go.Figure
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures with lines of text below.

    Attributes:
        pictures: Data address, lines, and the status that colours it.
        legend: What the colours drawn on them mean.
        wide: Each picture is two beside each other.
    """

    key: str
    title: str
    pictures: Sequence[tuple[str, Sequence[str], str]]
    legend: Sequence[tuple[str, str]] = ()
    wide: bool = False


Block = Table | Chart | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report."""

    key: str
    title: str
    paragraphs: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    listed: Sequence[str] = ()
