"""The script that draws the dashboard, once for every session; ``serve.py`` serves it."""

from __future__ import annotations

from functools import partial

import streamlit as st

from dashboard.state import address
from dashboard.text import (
    ADDRESS_KEY,
    LANGUAGE_KEY,
    PLAIN_ADDRESS_KEY,
    PLAIN_KEY,
    _,
    browser_language,
    language,
    plain_words,
)
from dashboard.views import compare, glossary, layers
from dashboard.views.decide import decide
from dashboard.views.explore import explore
from dashboard.views.export import export
from dashboard.views.models import models
from dashboard.views.run import run as run_page
from dashboard.views.start import start
from dashboard.views.tradeoffs import tradeoffs
from dashboard.widgets import ui
from qaf_core.data.models.settings import read_settings
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store
from qaf_core.text.catalogue import LANGUAGES

BESIDE = ("glossary",)  # pages that the sidebar leads to, not the bar
MOST_DAMAGED = 3  # named above each page; all stand in the list of runs


def main(first_page: str = "start") -> None:
    """Draw the page the address asks for.

    Args:
        first_page: The page of the bare address.
    """
    st.set_page_config(
        page_title="QAF Workbench",
        page_icon=str(ui.ASSETS / "favicon.png"),
        layout="wide",
        initial_sidebar_state="collapsed",
        menu_items={"About": _("Joint tensor factorization and quantization of trained neural networks.")},
    )
    st.logo(str(ui.ASSETS / "logo.svg"), size="large")
    views = {
        "start": (start.page, _("Start"), "flag"),
        "models": (models.page, _("Models"), "deployed_code"),
        "explore": (explore.page, _("Explore"), "tune"),
        "run": (run_page.page, _("Live run"), "monitoring"),
        "tradeoffs": (tradeoffs.page, _("Trade-offs"), "scatter_plot"),
        "compare": (compare.page, _("Compare"), "compare"),
        "layers": (layers.page, _("Layers"), "stacks"),
        "export": (export.page, _("Export"), "download"),
        "decide": (decide.page, _("Decide"), "gavel"),
        "glossary": (glossary.page, _("Glossary"), "menu_book"),
    }
    # Streamlit finds the first page by the bare address alone: links by its name have a page of their own.
    paths = {name: name for name in views} | {first_page: "first"}
    pages = {
        name: st.Page(
            view,
            title=title,
            icon=f":material/{icon}:",
            url_path=paths[name],
            default=name == first_page,
            visibility="hidden" if name in BESIDE else "visible",
        )
        for name, (view, title, icon) in views.items()
    }
    st.session_state[ui.PAGES_KEY] = pages
    other_names = {first_page: first_page, "live": "run"}
    hidden = [
        st.Page(partial(_lead_to, page), title=views[page][1], url_path=name, visibility="hidden")
        for name, page in other_names.items()
    ]
    chosen = st.navigation([*pages.values(), *hidden], position="top")
    with address.drawing(chosen.url_path):
        _choose_words()
        ui.inject_style()
        ui.count_steps()
        _draw(chosen)


def _lead_to(page: str) -> None:
    """From another name of a page to the page, with what the address says."""
    st.switch_page(
        st.session_state[ui.PAGES_KEY][page],
        query_params=[(name, value) for name in st.query_params for value in st.query_params.get_all(name)],
    )


def _choose_words() -> None:
    """The sidebar: language and plain words, which the address keeps, and the way to the glossary."""
    before, codes = (language(), plain_words()), list(LANGUAGES)
    key = address.choice(ADDRESS_KEY, codes, browser_language(), key=LANGUAGE_KEY)
    plain = address.choice(PLAIN_ADDRESS_KEY, (False, True), False, key=PLAIN_KEY)
    if (language(), plain_words()) != before:  # what is drawn already is in other words
        st.rerun()
    with st.sidebar:
        st.selectbox(_("Language"), codes, format_func=LANGUAGES.__getitem__, key=key)
        st.toggle(
            _("Plain words"), key=plain,
            help=_("Says what results mean in place of the field's own terms."),
        )  # fmt: skip
        ui.link_to("glossary", _("Glossary"), ":material/menu_book:")


@ui.guarded
def _draw(page: st.Page) -> None:
    store = ui.open_store()
    store.check_there()
    if store.read_only:
        st.info(_("This workspace can only be read: its runs can be looked at, nothing new can be run."))
    for error in _damages(store)[:MOST_DAMAGED]:
        st.warning(ui.plain(error.text(_)), icon=":material/warning:")
    ui.keep_worker()
    place = st.container()
    page.run()
    for fault in address.faults():
        place.warning(ui.plain(fault), icon=":material/link_off:")


def _damages(store: Store) -> list[QafError]:
    """What of the workspace cannot be read and is left out."""
    damaged = [row.id for row in list_rows(store) if row.damaged][:MOST_DAMAGED]
    problems = [run.failure for run in store.runs(damaged) if run.failure]
    try:
        read_settings(store.workspace)
    except WorkspaceError as problem:
        problems.insert(0, problem)
    return problems


if __name__ == "__main__":
    main()
