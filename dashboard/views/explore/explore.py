"""Choose a model and images, make a plan, see what it saves, and run it."""

from __future__ import annotations

import streamlit as st

from dashboard.state import address, catalogue
from dashboard.text import _
from dashboard.views.explore import choose, controls, plan
from dashboard.widgets import run_choice, ui
from qaf_core.errors import QafError
from qaf_core.network.plan.types import Plan


def page() -> None:
    """The Explore page."""
    ui.page_title(
        _("Explore"),
        _(
            "Choose a trained network and how far to compress it. What it would save shows at once; "
            "what it costs in "
            "accuracy, a run measures."
        ),
    )
    _reuse_run()
    _begin_with()
    choice = choose.choose()
    model = choice.source.id
    address.set_values("model", *([] if model == choose.FIRST_MODEL else [model]))
    try:
        with st.spinner(_("Looking into the model…"), show_time=True):
            inventory = catalogue.inventory_of(choice.source, ui.workspace(), choice.overrides)
    except QafError as error:
        ui.say_error(error)
        return
    plan.plan_and_run(choice, inventory)


def _begin_with() -> None:
    """Begin from a model where the address names one."""
    restored, named = address.going_back("model"), address.values_of("model")
    for model_id in named or ((choose.FIRST_MODEL,) if restored else ()):
        try:
            catalogue.listed_model(model_id, ui.workspace())
        except QafError as error:
            ui.say_error(error)
        else:
            choose.begin_with(model_id)


def _reuse_run() -> None:
    """Begin from an earlier run where the address names one."""
    for run_id in address.values_of("run"):
        _take_up(run_id)
    address.set_values("run")


def _take_up(run_id: str) -> None:
    run = ui.find_run(run_id)
    if run is None:
        run_choice.say_unknown(run_id)
        return
    missing = run_choice.missing_model(run)
    if missing is not None:
        st.warning(ui.plain(missing), icon=":material/block:")
        return
    try:
        earlier = Plan.from_dict(dict(run.plan_row))
    except QafError as error:
        st.warning(ui.plain(error.text(_)), icon=":material/warning:")
        return
    address.leave_back()
    choose.use(run.request)
    controls.use(run.request, earlier)
