"""The terms of the field that the pages use, on one page."""

from __future__ import annotations

import html

import streamlit as st

from dashboard.state import address
from dashboard.text import _
from dashboard.widgets import ui
from qaf_core.text.glossary import GLOSSARY, GROUPS, Term


def page() -> None:
    """The Glossary page: ``?find=WORD`` narrows it."""
    ui.page_title(
        _("Glossary"),
        _(
            "The terms that these pages use, each in a sentence or two. They also show where a term stands "
            "as a label: rest the pointer on it."
        ),
    )
    words = st.text_input(_("Search the terms"), key=address.text("find"), icon=":material/search:")
    found = [term for term in GLOSSARY.values() if _holds(term, words.casefold().split())]
    if not found:
        st.info(_("No term holds these words."), icon=":material/search_off:")
    for group, title in GROUPS.items():
        terms = [term for term in found if term.group == group]
        if terms:
            st.subheader(_(title), anchor=False)
            st.html(_list(terms))


def _holds(term: Term, words: list[str]) -> bool:
    text = f"{term.title} {term.meaning} {_(term.title)} {_(term.meaning)}".casefold()
    return all(word in text for word in words)


def _list(terms: list[Term]) -> str:
    rows = "".join(
        f"<dt>{html.escape(_(term.title))}</dt><dd>{html.escape(_(term.meaning))}</dd>" for term in terms
    )
    return f'<dl class="qaf-terms">{rows}</dl>'
