"""The script that draws the dashboard, once for every session; ``serve.py`` serves it."""

from __future__ import annotations

import streamlit as st

from dashboard.text import _, choose_language
from dashboard.views import layers, tradeoffs
from dashboard.views.decide import decide
from dashboard.views.explore import explore
from dashboard.views.export import export
from dashboard.views.models import models
from dashboard.views.run import run
from dashboard.views.start import start
from dashboard.widgets import ui


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
        "run": (run.page, _("Live run"), "monitoring"),
        "tradeoffs": (tradeoffs.page, _("Trade-offs"), "scatter_plot"),
        "layers": (layers.page, _("Layers"), "stacks"),
        "export": (export.page, _("Export"), "download"),
        "decide": (decide.page, _("Decide"), "gavel"),
    }
    pages = {
        name: st.Page(view, title=title, icon=f":material/{icon}:", url_path=name, default=name == first_page)
        for name, (view, title, icon) in views.items()
    }
    st.session_state[ui.PAGES_KEY] = pages
    chosen = st.navigation(list(pages.values()), position="top")
    choose_language()
    ui.inject_style()
    _draw(chosen)


@ui.guarded
def _draw(page: st.Page) -> None:
    ui.open_store()
    ui.keep_worker()
    page.run()


if __name__ == "__main__":
    main()
