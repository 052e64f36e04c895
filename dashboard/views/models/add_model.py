"""A user's own network: weights, class names and images, checked before anything is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO

import streamlit as st

from dashboard.state import catalogue, jobs
from dashboard.state.overrides import keep_class_names, overrides_of, read_class_text
from dashboard.text import _, listed
from dashboard.widgets import check_result, preparation, ui
from qaf_core.data.models.published import is_published_name
from qaf_core.data.models.timm_names import TIMM_FAMILY
from qaf_core.data.workspace.registry import WEIGHT_SUFFIXES, add_model
from qaf_core.data.workspace.uploads import receive_upload
from qaf_core.errors import QafError
from qaf_core.runs.store.request import CheckRequest, RegisterRequest

FORM = "add-model"


def show() -> None:
    """The form, then the check as it goes and what it found."""
    left, right = st.columns(2, gap="medium")
    with left:
        name, base, classes = _names()
        steps, problem = preparation.ask(FORM)
    with right:
        weights = _file_or_path(
            _("Trained weights"),
            "weights",
            [suffix.removeprefix(".") for suffix in WEIGHT_SUFFIXES],
            _("A safetensors file, or a PyTorch state dict. Files that hold code are refused."),
        )
        data = _file_or_path(
            _("Labelled images"),
            "data",
            ["zip"],
            _(
                "A zip of a folder with one sub-folder for each class, or of images with masks or "
                "annotations. A few hundred images are enough."
            ),
        )
    missing = problem or _missing({"name": name, "weights": weights, "data": data})
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(
            _("Check"),
            type="primary",
            icon=":material/fact_check:",
            disabled=bool(missing),
            key="check-model",
        )
        st.caption(missing or _("Nothing is compressed yet: the check runs the original on your images."))
    if pressed:
        request = CheckRequest(model=base, name=name, preprocessing=steps, **check_result.MADE_TO_BE_SHOWN)
        _begin(request, weights, data, classes)
    check_result.show(FORM, on_fix=_use_fix, then=_offer_to_add)


def _names() -> tuple[str, str, str]:
    """The model's name, the named model it is made like, and the typed names of its classes."""
    architectures = catalogue.other_models()
    name = st.text_input(
        _("Name"),
        key=f"{FORM}-name",
        placeholder="my/parts",
        help=_("What the model is called here: letters, digits, '.', '_' and '-', at most one '/'."),
    )
    base = st.selectbox(
        _("Architecture"),
        architectures,
        index=architectures.index("torchvision/resnet18"),
        key=f"{FORM}-base",
        help=_(
            "The network the weights were trained with. A module of your own is code: it is registered "
            "on the command line, with `qaf models --add`."
        ),
    )
    classes = st.text_area(
        _("Class names (optional)"),
        key=f"{FORM}-classes",
        placeholder=_("one a line, in the order of the network's outputs"),
        height=110,
    )
    return name.strip(), base, classes


def _file_or_path(label: str, field: str, types: list[str], help_text: str) -> BinaryIO | str:
    """An upload, or a path on the computer the dashboard runs on, whichever is given."""
    upload = st.file_uploader(label, type=types, key=f"{FORM}-{field}-upload", help=help_text)
    path = st.text_input(
        _("or a path on this computer"),
        key=f"{FORM}-{field}-path",
        placeholder=_("or a path on the computer the dashboard runs on"),
        label_visibility="collapsed",
        disabled=upload is not None,
    )
    return upload if upload is not None else path.strip()


def _missing(values: Mapping[str, Any]) -> str:
    labels = {"name": _("a name"), "weights": _("trained weights"), "data": _("labelled images")}
    lacking = [label for field, label in labels.items() if not values[field]]
    return _("Still to give: {fields}.").format(fields=listed(lacking)) if lacking else ""


def _begin(request: CheckRequest, weights: BinaryIO | str, data: BinaryIO | str, classes: str) -> None:
    folder, inputs = ui.workspace(), {"weights": weights, "data": data}
    try:
        uploads = {
            field: receive_upload(folder, upload, upload.name)
            for field, upload in inputs.items()
            if not isinstance(upload, str)
        }
        paths: dict[str, Any] = {field: path for field, path in inputs.items() if isinstance(path, str)}
        request = replace(request, classes=keep_class_names(folder, classes), uploads=uploads, **paths)
    except QafError as error:
        ui.say_error(error)
        return
    check_result.begin(FORM, request)


# --- what came of it


def _use_fix(checked: CheckRequest, evidence: Mapping[str, Any]) -> None:
    """Fill in what a finding says would be right, and check again what is stored by now."""
    mended = check_result.mended(checked, evidence)
    preparation.fill(FORM, mended.preprocessing)
    st.session_state[f"{FORM}-classes"] = read_class_text(mended.classes)
    check_result.begin(FORM, mended)


def _offer_to_add(checked: CheckRequest) -> None:
    if st.button(_("Add to this workspace"), icon=":material/add:", key="add-checked"):
        _add(checked)


def _add(checked: CheckRequest) -> None:
    try:
        with st.spinner(_("Adding the model…"), show_time=True):
            _register(checked)
    except QafError as error:
        ui.say_error(error)
        return
    check_result.forget(FORM)
    st.session_state["model-added"] = checked.name
    st.rerun()


def _register(checked: CheckRequest) -> None:
    """Add a checked model to the workspace.

    Raises:
        QafError: If its id is taken or something does not fit.
    """
    folder, fields = ui.workspace(), {**overrides_of(checked).of(checked.model), "data": checked.data}
    if is_published_name(checked.weights) or checked.model.startswith(TIMM_FAMILY):  # known where torch is
        jobs.wait_for(folder, RegisterRequest(name=checked.name, **fields), anew=True)
        return
    base = fields.pop("model")
    add_model(folder, model_id=checked.name, base=base, **fields)
