"""The script that draws the dashboard, once for every session; ``serve.py`` serves it."""

from __future__ import annotations

import streamlit as st

from dashboard.text import _, choose_language
from dashboard.views import layers, tradeoffs
from dashboard.views.decide import decide
from dashboard.views.explore import explore
from dashboard.views.export import export
from dashboard.views.models import models
from dashboard.views.run import run as run_page
from dashboard.views.start import start
from dashboard.widgets import ui
from qaf_core.data.models.settings import read_settings
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.runs.store.store import Store

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
        "layers": (layers.page, _("Layers"), "stacks"),
        "export": (export.page, _("Export"), "download"),
        "decide": (decide.page, _("Decide"), "gavel"),
    }
    # Streamlit finds the first page by the bare address alone: links by its name have a page of their own.
    paths = {name: name for name in views} | {first_page: "first"}
    pages = {
        name: st.Page(
            view, title=title, icon=f":material/{icon}:", url_path=paths[name], default=name == first_page
        )
        for name, (view, title, icon) in views.items()
    }
    st.session_state[ui.PAGES_KEY] = pages
    named = st.Page(
        lambda: ui.go_to(first_page, **st.query_params), title=views[first_page][1], url_path=first_page,
        visibility="hidden",
    )  # fmt: skip
    chosen = st.navigation([*pages.values(), named], position="top")
    choose_language()
    ui.inject_style()
    _draw(chosen)


@ui.guarded
def _draw(page: st.Page) -> None:
    store = ui.open_store()
    store.check_there()
    if store.read_only:
        st.info(_("This workspace can only be read: its runs can be looked at, nothing new can be run."))
    for error in _damages(store)[:MOST_DAMAGED]:
        st.warning(ui.plain(error.text(_)), icon=":material/warning:")
    ui.keep_worker()
    page.run()


def _damages(store: Store) -> list[QafError]:
    """What of the workspace cannot be read and is left out."""
    found = [run.failure for run in store.list_runs() if run.damaged and run.failure]
    try:
        read_settings(store.workspace)
    except WorkspaceError as problem:
        found.insert(0, problem)
    return found


if __name__ == "__main__":
    main()
