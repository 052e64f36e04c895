"""Sections of the report as they stand on a page: tables, charts and galleries, all texts escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

import streamlit as st

from dashboard.text import translation
from dashboard.widgets import ui
from qaf_core.review.report.blocks import Block, Chart, Gallery, Section, Table
from qaf_core.review.report.figures import on_screen
from qaf_core.text.glossary import meanings_by_title

SHORT = 10  # characters that stay on one line


def draw_section(section: Section) -> None:
    """Paragraphs, points and blocks of a section, without its title."""
    for text in section.paragraphs:
        st.markdown(ui.plain(text))
    for text in section.listed:
        st.markdown(f"- {ui.plain(text)}")
    for block in section.blocks:
        draw_block(block)


def draw_block(block: Block) -> None:
    """One block with its title."""
    if isinstance(block, Chart):
        st.markdown(f"**{ui.plain(block.title)}**")
        st.plotly_chart(
            on_screen(block.figure, dark=ui.is_dark()), key=f"block-{block.key}",
            config={"displayModeBar": False}, alt=block.title,
        )  # fmt: skip
        if block.note:
            st.caption(ui.plain(block.note))
    elif isinstance(block, Table):
        st.html(_table(block))
    else:
        st.html(_gallery(block))


def _table(block: Table) -> str:
    meanings = meanings_by_title(translation())

    def cells(row: Sequence[str], tag: str, line: int = -1) -> str:
        parts = []
        for place, cell in enumerate(row):
            name = "number" if place >= block.numeric else "short" if len(cell) <= SHORT else ""
            name += " changed" if (line, place) in block.changed else ""
            meant = meanings.get(cell) if tag == "th" or place == 0 else None
            hover = f' title="{html.escape(meant)}"' if meant else ""
            parts.append(f'<{tag} class="{name}"{hover}>{html.escape(cell)}</{tag}>')
        return "".join(parts)

    marks = block.marks or [""] * len(block.rows)
    head = f"<thead><tr>{cells(block.header, 'th')}</tr></thead>" if any(block.header) else ""
    body = "".join(
        f'<tr class="{html.escape(mark)}">{cells(row, "td", line)}</tr>'
        for line, (mark, row) in enumerate(zip(marks, block.rows, strict=True))
    )
    title = f"<p><b>{html.escape(block.title)}</b></p>" if block.title else ""
    note = f"<p class=note>{html.escape(block.note)}</p>" if block.note else ""
    return f'<div class="qaf-table">{title}<table>{head}<tbody>{body}</tbody></table>{note}</div>'


def legend_html(legend: Sequence[tuple[str, str]]) -> str:
    """Colours and what they mean, in a row; nothing where there are none."""
    entries = "".join(
        f'<span><i style="background: {html.escape(colour)}"></i>{html.escape(meaning)}</span>'
        for colour, meaning in legend
    )
    return f'<div class="qaf-marks">{entries}</div>' if entries else ""


def _gallery(block: Gallery) -> str:
    figures = "".join(
        f'<figure class="{html.escape(mark)}"><img src="{html.escape(address)}" alt=""><figcaption>'
        + "".join(f"<span>{html.escape(line)}</span>" for line in lines)
        + "</figcaption></figure>"
        for address, lines, mark in block.pictures
        if address.startswith("data:image/")
    )
    return (
        f'<div class="qaf-table"><p><b>{html.escape(block.title)}</b></p></div>'
        f'{legend_html(block.legend)}<div class="qaf-preview qaf-changed{" wide" if block.wide else ""}">'
        f"{figures}</div>"
    )
