"""The first half of Explore: a model and its images, chosen from cards."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard import catalogue, common
from dashboard.text import _, plural
from qaf_core.data.models import ModelSource
from qaf_core.data.places import missing_path
from qaf_core.errors import DataError, QafError
from qaf_core.network.cost import original_cost
from qaf_core.review.metrics import metric_label
from qaf_core.review.units import count_text, percent_text, size_text, with_prefix

MODE_KEY, MODEL_KEY, OTHER_KEY, WEIGHTS_KEY = "mode", "model", "other-model", "weights"
DATA_MODE_KEY, DATA_KEY, CALIBRATION_KEY = "data-mode", "data-path", "calibration-path"
REGISTERED_KEY = "registered-model"
FIRST_MODEL = "inspection/resnet20"
FIRST_OTHER = "cifar/resnet20"
CARD_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user chose.

    Attributes:
        source: The model.
        weights: The user's weights file, or None for the shipped ones.
        data: Where the images to measure on come from.
        calibration: Where the calibration images come from, or None.
        obstacle: Why this cannot be run, in words, or None. It can still be planned.
    """

    source: ModelSource
    weights: str | None
    data: str
    calibration: str | None
    obstacle: str | None


def choose() -> Choice | None:
    """Draw the cards; what is chosen, or None where no model could be opened (the screen says why)."""
    st.session_state.setdefault(MODE_KEY, "shipped")
    st.session_state.setdefault(DATA_MODE_KEY, "builtin")
    modes = {"shipped": _("Trained models"), "own": _("Your weights")}
    registered = catalogue.registered_models(common.workspace())
    if registered:
        modes = {"shipped": modes["shipped"], "registered": _("Your models"), "own": modes["own"]}
    elif st.session_state[MODE_KEY] == "registered":
        st.session_state[MODE_KEY] = "shipped"
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    left.subheader(_("1 · Model and images"), anchor=False)
    with right, st.container(horizontal=True, horizontal_alignment="right"):
        mode = st.segmented_control(
            _("Where the model comes from"),
            list(modes),
            format_func=modes.__getitem__,
            required=True,
            key=MODE_KEY,
            persist_state="session",
            label_visibility="collapsed",
        )
    if mode == "registered":
        return _registered_model(registered)
    return _own_model() if mode == "own" else _shipped_model()


def use(request: Any) -> None:
    """Set the widgets to what an earlier run used, before they are drawn."""
    if request.weights is None:
        begin_with(request.model)
    else:
        st.session_state[MODE_KEY], st.session_state[OTHER_KEY] = "own", request.model
    st.session_state[WEIGHTS_KEY] = request.weights or ""
    builtin = request.data == "builtin"
    st.session_state[DATA_MODE_KEY] = "builtin" if builtin else "own"
    st.session_state[DATA_KEY] = "" if builtin else request.data
    st.session_state[CALIBRATION_KEY] = request.calibration or ""


def begin_with(model_id: str | None) -> None:
    """Set the widgets to a model, before they are drawn; None leaves them."""
    if model_id is None:
        return
    keys = {"shipped": MODEL_KEY, "registered": REGISTERED_KEY, "own": OTHER_KEY}
    mode = "own"
    if model_id in {source.id for source in catalogue.shipped_models()}:
        mode = "shipped"
    elif model_id in {source.id for source in catalogue.registered_models(common.workspace())}:
        mode = "registered"
    st.session_state[MODE_KEY], st.session_state[keys[mode]] = mode, model_id


def _registered_model(sources: Sequence[ModelSource]) -> Choice | None:
    """A model of the workspace's settings, with its weights and, if it names any, its images."""
    by_id = {source.id: source for source in sources}
    if st.session_state.get(REGISTERED_KEY) not in by_id:
        st.session_state[REGISTERED_KEY] = sources[0].id
    with st.container(border=True):
        model = st.selectbox(
            _("Your model"),
            list(by_id),
            key=REGISTERED_KEY,
            persist_state="session",
            format_func=lambda model_id: f"{by_id[model_id].title} · {model_id}",
        )
        source = by_id[model]
        if source.data is not None or source.default_data is not None:
            data, calibration = source.data or "builtin", None
            text = _("Measured on {data}; a part of it, without labels, fits the layers.")
            st.caption(text.format(data=data if source.data else _("the built-in images")))
        else:
            data, calibration = _paths()
    obstacle = None
    if source.weights is None:
        obstacle = _("This model was registered without trained weights: add it again with them.")
    return Choice(
        source=source, weights=None, data=data, calibration=calibration,
        obstacle=obstacle or _path_problem(data, calibration),
    )  # fmt: skip


def _shipped_model() -> Choice | None:
    sources = catalogue.shipped_models()
    by_id = {source.id: source for source in sources}
    chosen = st.session_state.get(MODEL_KEY, FIRST_MODEL)
    chosen = chosen if chosen in by_id else sources[0].id
    for column, source in zip(st.columns(len(sources), gap="small"), sources, strict=True):
        with column:
            _card(source, source.id == chosen)
    source = by_id[chosen]
    data, calibration = _data_for(source)
    obstacle = (
        None
        if source.weights and source.weights.is_file()
        else _("This model's trained weights are missing: restore the folder sample_models.")
    )
    return Choice(
        source=source,
        weights=None,
        data=data,
        calibration=calibration,
        obstacle=obstacle or _path_problem(data, calibration),
    )


def _card(source: ModelSource, chosen: bool) -> None:
    name = source.id.replace("/", "-")
    with st.container(
        border=True,
        key=f"card-chosen-{name}" if chosen else f"card-{name}",
        height="stretch",
        vertical_alignment="distribute",
    ):
        st.html(card_html(source))
        with st.container(key=f"chosen-{name}" if chosen else f"other-{name}"):
            st.button(
                _("Chosen") if chosen else _("Choose"),
                key=f"choose-{source.id}",
                width="stretch",
                icon=":material/check_circle:" if chosen else None,
                on_click=st.session_state.__setitem__,
                args=(MODEL_KEY, source.id),
            )


@st.cache_data(show_spinner=False, hash_funcs={ModelSource: lambda source: (source.id, str(source.card))})
def card_html(source: ModelSource) -> str:
    """A model's card: sample images, name, task and the numbers that matter."""
    images = catalogue.sample_strip(source.id, CARD_IMAGES)
    small = " small" if source.input_shape[1] < catalogue.STRIP_SIDE_PX else ""
    strip = "".join(
        f'<img src="{address}" alt="{html.escape(label)}" title="{html.escape(label)}">'
        for address, label in images
    )
    name, _comma, subject = source.title.partition(", ")
    task = plural("{count} class", "{count} classes", len(source.classes))
    rows = "".join(f"<dt>{html.escape(label)}</dt><dd>{value}</dd>" for label, value in _card_rows(source))
    return (
        f'<div class="qaf-card"><div class="qaf-strip{small}">{strip}</div>'
        f"<h4>{html.escape(_(name))}</h4>"
        f'<p class="task">{html.escape(_(subject).capitalize())} · {task}</p><dl>{rows}</dl></div>'
    )


def _card_rows(source: ModelSource) -> list[tuple[str, str]]:
    rows = []
    metric = source.card.get("metric")
    if metric:
        low, high = metric["ci95"]
        half = 50 * (high - low)
        rows.append((metric_label(metric["name"], _), f"{percent_text(metric['value'])} ± {half:.1f}"))
    if source.card.get("inventory"):
        cost = original_cost(catalogue.inventory_of(source, Path()))
        rows += [
            (_("Size"), size_text(cost.size_bytes)),
            (_("Compute"), with_prefix(cost.macs, "MACs")),
            (_("Parameters"), count_text(cost.params)),
        ]
    return rows


def _data_for(source: ModelSource) -> tuple[str, str | None]:
    """The images for a shipped model: built in, or the user's."""
    names = {"builtin": _("Built-in images"), "own": _("My images")}
    left, right = st.columns([1, 3], vertical_alignment="center")
    with left:
        mode = st.segmented_control(
            _("Images"),
            list(names),
            format_func=names.__getitem__,
            required=True,
            key=DATA_MODE_KEY,
            persist_state="session",
            help=_(
                "The images accuracy is measured on, before and after. Others, without labels, fit "
                "the compressed "
                "layers to the original ones."
            ),
        )
    with right:
        if mode == "own":
            return _paths(source.task)
        classes = ", ".join(source.classes)
        st.caption(_("Made for this model. Classes: {classes}.").format(classes=classes))
    return "builtin", None


def _paths(task: str) -> tuple[str, str | None]:
    left, right = st.columns(2)
    data = left.text_input(
        _("Labelled images to measure on"),
        key=DATA_KEY,
        persist_state="session",
        placeholder=_("/path/to/images or images.npz"),
        help=_data_help(task),
    )
    calibration = right.text_input(
        _("Images to fit with (optional)"),
        key=CALIBRATION_KEY,
        persist_state="session",
        placeholder=_("a part of the others"),
        help=_(
            "A few hundred images like those the network sees in use; labels are not used. Left "
            "empty, a part of the "
            "images on the left is set aside for it."
        ),
    )
    return data.strip(), calibration.strip() or None


def _data_help(task: str) -> str:
    if task == "segmentation":
        return _(
            "A path on the computer the dashboard runs on: a folder with images and masks (grey PNG files of "
            "the same names, the class number of each pixel), or an .npz file with x (N,H,W,3) uint8 and "
            "y (N,H,W)."
        )
    if task == "detection":
        return _(
            "A path on the computer the dashboard runs on: a folder with images and an annotations.json in "
            "COCO's form, or an .npz file with x (N,H,W,3) uint8, boxes (D,4), labels (D,) and counts (N,)."
        )
    return _(
        "A path on the computer the dashboard runs on: a folder with one sub-folder for each class, or an "
        ".npz file with x (N,H,W,3) uint8 and y (N,)."
    )


def _own_model() -> Choice | None:
    models = catalogue.other_models()
    with st.container(border=True):
        left, right = st.columns([1, 2])
        st.session_state.setdefault(OTHER_KEY, FIRST_OTHER)
        model = left.selectbox(
            _("Architecture"),
            models,
            key=OTHER_KEY,
            persist_state="session",
            help=_(
                "ResNets for 32×32 images as in He et al. 2016 (cifar/…), or any image classifier of "
                "torchvision."
            ),
        )
        weights = right.text_input(
            _("Trained weights"),
            key=WEIGHTS_KEY,
            persist_state="session",
            placeholder="/path/to/weights.safetensors",
            help=_(
                "A path on the computer the dashboard runs on: a safetensors file, or a PyTorch state dict. "
                "Without weights the model can be planned, not run."
            ),
        ).strip()
        data, calibration = _paths(catalogue.open_model(model, None).task)
    obstacle = (
        None
        if weights
        else _("This model comes without trained weights: give the path of a weights file above to run it.")
    )
    try:
        source = catalogue.open_model(model, weights)
    except QafError as error:
        st.error(_(str(error)), icon=":material/error:")
        obstacle = _("The weights cannot be opened.")
        source = catalogue.open_model(model, None)
        weights = ""
    if obstacle is None and not data:
        obstacle = _("Give the path of labelled images above: accuracy is measured on them.")
    return Choice(
        source=source,
        weights=weights or None,
        data=data,
        calibration=calibration,
        obstacle=obstacle or _path_problem(data, calibration),
    )


def _path_problem(data: str, calibration: str | None) -> str | None:
    if data != "builtin" and not data:
        return _("Give the path of labelled images: accuracy is measured on them.")
    for place in (data, calibration):
        try:
            path = missing_path(place) if place else None
        except DataError as error:
            return str(error)
        if path is not None:
            return _("There is no file or folder {path}.").format(path=path)
    return None
