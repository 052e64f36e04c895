"""The check of a model that is already on the Models page, and what may be kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboard.state.overrides import NOTHING, Overrides, keep_class_names, overrides_of
from dashboard.text import _
from dashboard.widgets import check_result, ui
from qaf_core.data.models.settings import RegisteredModel, read_settings
from qaf_core.data.models.source import ModelSource
from qaf_core.data.workspace.registry import add_model
from qaf_core.errors import QafError
from qaf_core.runs.store.request import CheckRequest

PLACE = "models"


def button(source: ModelSource) -> None:
    """Begins the check of a model on its own images."""
    data = source.data or ("builtin" if source.default_data else "")
    ready = bool(data) and source.weights is not None
    st.button(
        _("Check"),
        icon=":material/fact_check:",
        key="check-listed",
        disabled=not ready,
        on_click=check_result.begin,
        args=(PLACE, CheckRequest(model=source.id, data=data, **check_result.MADE_TO_BE_SHOWN)),
        help=_("Is the original right on its images?")
        if ready
        else _("It needs weights and images to be checked: choose them on the page Explore."),
    )


def show(source: ModelSource) -> None:
    """What the check of this model found."""
    entry = read_settings(ui.workspace()).model(source.id)
    mendable = entry is not None and ":" not in entry.base
    check_result.show(
        PLACE,
        fits=lambda request: request.model == source.id,
        on_fix=_use_fix if mendable else None,
        then=lambda request: _offer_to_keep(entry, overrides_of(request)),
    )


def _use_fix(checked: CheckRequest, evidence: Mapping[str, Any]) -> None:
    check_result.begin(PLACE, check_result.mended(checked, evidence))


def _offer_to_keep(entry: RegisteredModel | None, overrides: Overrides) -> None:
    """What was found to be right can become the model's own."""
    if entry is None or overrides == NOTHING:
        return
    if st.button(_("Keep this for the model"), icon=":material/save:", key="keep-found"):
        try:
            _keep(entry, overrides)
        except QafError as error:
            ui.say_error(error)
            return
        check_result.forget(PLACE)
        st.rerun()


def _keep(entry: RegisteredModel, overrides: Overrides) -> None:
    folder = ui.workspace()
    add_model(
        folder,
        model_id=entry.id,
        base=entry.base,
        weights=entry.named_weights,
        classes=overrides.classes or keep_class_names(folder, "\n".join(entry.classes)),
        preprocessing={**entry.preprocessing, **(overrides.preprocessing or {})},
        data=entry.data,
        title=entry.title,
    )
