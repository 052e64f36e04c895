"""The dashboard's entry: ``streamlit run dashboard/app.py``, which ``qaf app`` does."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)  # Streamlit puts only this file's own folder there

import streamlit as st  # noqa: E402

from dashboard import common  # noqa: E402
from dashboard.text import _  # noqa: E402
from dashboard.views import explore, export, layers, models, run, tradeoffs  # noqa: E402


def main(first_page: str = "explore") -> None:
    """Draw the page the address asks for.

    Args:
        first_page: The page of the bare address.
    """
    st.set_page_config(
        page_title="QAF Workbench",
        page_icon=str(common.ASSETS / "favicon.png"),
        layout="wide",
        menu_items={"About": _("Joint tensor factorization and quantization of trained neural networks.")},
    )
    st.logo(str(common.ASSETS / "logo.svg"), size="large")
    views = {
        "models": (models.page, _("Models"), "deployed_code"),
        "explore": (explore.page, _("Explore"), "tune"),
        "run": (run.page, _("Live run"), "monitoring"),
        "tradeoffs": (tradeoffs.page, _("Trade-offs"), "scatter_plot"),
        "layers": (layers.page, _("Layers"), "stacks"),
        "export": (export.page, _("Export"), "download"),
    }
    pages = {
        name: st.Page(view, title=title, icon=f":material/{icon}:", url_path=name, default=name == first_page)
        for name, (view, title, icon) in views.items()
    }
    st.session_state[common.PAGES_KEY] = pages
    chosen = st.navigation(list(pages.values()), position="top")
    common.inject_style()
    _draw(chosen)


@common.guarded
def _draw(page: st.Page) -> None:
    common.open_store()
    common.keep_worker()
    page.run()


if __name__ == "__main__":
    main()
