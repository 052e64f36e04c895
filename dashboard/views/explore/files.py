"""The plan's toolbar: steps back and forth, plans kept by name, plans taken away and brought."""

from __future__ import annotations

import streamlit as st

from dashboard.state import sheets
from dashboard.state.plan_draft import Draft
from dashboard.text import _
from dashboard.widgets import ui
from qaf_core.errors import QafError
from qaf_core.files import digest_of
from qaf_core.network.plan.types import Plan

BROUGHT_KEY = "plan-brought"
LARGEST_MB = 5


def toolbar(model: str, draft: Draft) -> None:
    """Undo, redo, and the plans that are kept, taken away or brought."""
    back, forth = sheets.can_step(model)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="plan-toolbar"):
        st.button(
            _("Undo"), icon=":material/undo:", key="undo-plan", shortcut="Ctrl+Z", disabled=not back,
            on_click=sheets.undo, args=(model,), help=_("Takes back the last change of the plan."),
        )  # fmt: skip
        st.button(
            _("Redo"), icon=":material/redo:", key="redo-plan", shortcut="Ctrl+Shift+Z", disabled=not forth,
            on_click=sheets.redo, args=(model,), help=_("Makes the change again that was taken back."),
        )  # fmt: skip
        with st.popover(_("Plans"), icon=":material/folder_open:", key="plan-files"):
            _kept(model, draft)
            _carried(model, draft)
    if sheets.wiped():
        st.toast(
            _("What you typed into the table was replaced. Undo (Ctrl+Z) brings it back."),
            icon=":material/undo:",
        )


def _kept(model: str, draft: Draft) -> None:
    """Plans of the workspace: list, load, delete, keep this one."""
    plans = sheets.named_plans(ui.workspace(), model)
    with st.form("keep-plan", border=False, clear_on_submit=True):
        name = st.text_input(
            _("Save this plan as"), key="plan-name", max_chars=sheets.LONGEST_NAME, placeholder=_("its name")
        )
        keep = st.form_submit_button(
            _("Save"), icon=":material/save:", disabled=bool(draft.problems) or ui.open_store().read_only
        )
    if keep:
        try:
            sheets.keep_plan(ui.workspace(), name, draft.plan)
            st.rerun(scope="fragment")
        except QafError as error:
            ui.say_error(error)
    if not plans:
        st.caption(_("No plan of this model is saved yet."))
        return
    chosen = st.selectbox(
        _("Saved plans of this model"), list(plans), key="kept-plan", filter_mode="contains"
    )
    left, right = st.columns(2)
    left.button(
        _("Load"), icon=":material/file_open:", key="load-plan", width="stretch",
        on_click=sheets.fill, args=(model, plans[chosen]),
    )  # fmt: skip
    right.button(
        _("Delete"), icon=":material/delete:", key="delete-plan", width="stretch",
        on_click=sheets.delete_plans, args=(ui.workspace(), [chosen]), disabled=ui.open_store().read_only,
    )  # fmt: skip


def _carried(model: str, draft: Draft) -> None:
    """Plans as files: the command line's ``--plan`` takes them, and writes such."""
    st.download_button(
        _("Download as JSON"), data=draft.plan.to_json(), file_name=f"{model.replace('/', '-')}-plan.json",
        mime="application/json", icon=":material/download:", key="download-plan", width="stretch",
        on_click="ignore", disabled=bool(draft.problems),
    )  # fmt: skip
    upload = st.file_uploader(
        _("Upload a plan (JSON)"), type="json", key="upload-plan", max_upload_size=LARGEST_MB
    )
    if upload is None:
        st.session_state.pop(BROUGHT_KEY, None)
        return
    content = upload.getvalue()
    if st.session_state.get(BROUGHT_KEY) == digest_of(content):
        return
    st.session_state[BROUGHT_KEY] = digest_of(content)
    try:
        plan = fitting(content, draft)
    except QafError as error:
        ui.say_error(error)
        return
    sheets.fill(model, plan)
    st.rerun(scope="fragment")


def fitting(content: bytes, draft: Draft) -> Plan:
    """A plan from a file, for the layers of a draft.

    Raises:
        PlanError: If it is none, or names other layers.
    """
    plan = Plan.from_json(content)
    for row in draft.layers:
        plan.layer(row.name)
    for row in plan.layers:
        draft.base.layer(row.name)
    return Plan.from_dict({**plan.to_dict(), "model": draft.base.model})
