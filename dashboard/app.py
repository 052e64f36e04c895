"""The script that draws the dashboard, once for every session; ``serve.py`` serves it."""

from __future__ import annotations

import streamlit as st

from dashboard.text import _
from dashboard.views import layers, tradeoffs
from dashboard.views.explore import explore
from dashboard.views.export import export
from dashboard.views.models import models
from dashboard.views.run import run
from dashboard.widgets import ui


def main(first_page: str = "explore") -> None:
    """Draw the page the address asks for.

    Args:
        first_page: The page of the bare address.
    """
    st.set_page_config(
        page_title="QAF Workbench",
        page_icon=str(ui.ASSETS / "favicon.png"),
        layout="wide",
        menu_items={"About": _("Joint tensor factorization and quantization of trained neural networks.")},
    )
    st.logo(str(ui.ASSETS / "logo.svg"), size="large")
    views = {
        "models": (models.page, _("Models"), "deployed_code"),
        "explore": (explore.page, _("Explore"), "tune"),
        "run": (run.page, _("Live run"), "monitoring"),
        "tradeoffs": (tradeoffs.page, _("Trade-offs"), "scatter_plot"),
        "layers": (layers.page, _("Layers"), "stacks"),
        "export": (export.page, _("Export"), "download"),
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
    ui.inject_style()
    _draw(chosen)


@ui.guarded
def _draw(page: st.Page) -> None:
    ui.open_store()
    ui.keep_worker()
    page.run()


if __name__ == "__main__":
    main()
