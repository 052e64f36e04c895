"""The first half of Explore: a model and its images, chosen from cards."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.state import address, catalogue
from dashboard.state.overrides import (
    NOTHING,
    Overrides,
    keep_class_names,
    kept_class_names,
    overrides_of,
    read_class_text,
)
from dashboard.text import _, language, listed, plural
from dashboard.widgets import check_result, image_paths, preparation, ui
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.timm_names import TIMM_FAMILY
from qaf_core.errors import QafError
from qaf_core.network.plan.cost import original_cost
from qaf_core.review.metrics import metric_label
from qaf_core.runs.store.request import CheckRequest, RunRequest
from qaf_core.text.units import count_text, percent_text, size_text, with_prefix

MODE_KEY, MODEL_KEY, OTHER_KEY, WEIGHTS_KEY = "mode", "model", "other-model", "weights"
DATA_MODE_KEY = "data-mode"
REGISTERED_KEY, REGISTERED_DATA_KEY = "registered-model", "registered-data-mode"
OWN, CLASSES_KEY, PLACE = "own", "own-classes", "explore"
FIRST_MODEL = "inspection/resnet20"
FIRST_OTHER = "cifar/resnet20"
CARD_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user chose.

    Attributes:
        source: The model.
        overrides: The user's own weights, names of classes and preparation of images.
        data: Where the images to measure on come from.
        calibration: Where the calibration images come from, or None.
        obstacle: Why this cannot be run, in words, or None. It can still be planned.
    """

    source: ModelSource
    overrides: Overrides = NOTHING
    data: str
    calibration: str | None
    obstacle: str | None


def choose() -> Choice:
    """Draw the cards; what is chosen."""
    st.session_state.setdefault(MODE_KEY, "shipped")
    modes = {"shipped": _("Trained models"), "own": _("Your weights")}
    registered = catalogue.registered_models(ui.workspace())
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
    choice = _draw_choice(mode or next(iter(modes)), registered)
    _offer_check(choice)
    return choice


def _draw_choice(mode: str, registered: Sequence[ModelSource]) -> Choice:
    """What belongs to a mode, in a place of its own; the others' places are emptied at once.

    Looking into a model takes seconds, and Streamlit would leave what was there before standing meanwhile.
    """
    names = ("shipped", "registered", "own")
    places = {name: st.container() if name == mode else st.empty() for name in names}
    with places[mode]:
        if mode == "registered":
            return _registered_model(registered)
        return _own_model() if mode == "own" else _shipped_model()


def _offer_check(choice: Choice) -> None:
    """Look before a run whether the original is right on these images; not for what is shipped together."""
    if choice.source.shipped and choice.data == "builtin":
        return
    request = CheckRequest(
        **choice.overrides.of(choice.source.id), data=choice.data, **check_result.MADE_TO_BE_SHOWN
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            _("Check"),
            icon=":material/fact_check:",
            key="check-choice",
            disabled=choice.obstacle is not None,
            on_click=check_result.begin,
            args=(PLACE, request),
        )
        st.caption(_("Optional: is the original right on these images? Every run asks it first, too."))
    on_fix = _use_fix if choice.overrides.weights else None
    check_result.show(PLACE, fits=lambda begun: begun == request, on_fix=on_fix)


def _use_fix(checked: CheckRequest, evidence: Mapping[str, Any]) -> None:
    """Fill in what a finding says would be right, and check again."""
    mended = check_result.mended(checked, evidence)
    preparation.fill(OWN, mended.preprocessing)
    st.session_state[CLASSES_KEY] = read_class_text(mended.classes)
    check_result.begin(PLACE, mended)


def use(request: RunRequest) -> None:
    """Set the widgets to what an earlier run used, before they are drawn."""
    overrides = overrides_of(request)
    if overrides == NOTHING or request.model not in catalogue.other_models():
        begin_with(request.model)
    else:
        st.session_state[MODE_KEY], st.session_state[OTHER_KEY] = "own", request.model
    st.session_state[WEIGHTS_KEY] = request.weights or ""
    st.session_state[CLASSES_KEY] = read_class_text(request.classes)
    preparation.fill(OWN, request.preprocessing)
    registered = {source.id: source for source in catalogue.registered_models(ui.workspace())}
    own = registered.get(request.model)
    same = own is None or request.data == (own.data or "builtin")
    st.session_state[REGISTERED_DATA_KEY] = "own" if same else "other"
    builtin = request.data == "builtin"
    st.session_state[DATA_MODE_KEY] = "builtin" if builtin else "own"
    st.session_state[image_paths.DATA_KEY] = "" if builtin else request.data
    st.session_state[image_paths.CALIBRATION_KEY] = request.calibration or ""


def begin_with(model_id: str) -> None:
    """Set the widgets to a model, before they are drawn."""
    keys = {"shipped": MODEL_KEY, "registered": REGISTERED_KEY, "own": OTHER_KEY}
    mode = "own"
    if model_id in {source.id for source in catalogue.shipped_models()}:
        mode = "shipped"
    elif model_id in {source.id for source in catalogue.registered_models(ui.workspace())}:
        mode = "registered"
    st.session_state[MODE_KEY], st.session_state[keys[mode]] = mode, model_id


def _registered_model(sources: Sequence[ModelSource]) -> Choice:
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
        data, calibration = _data_of_registered(source)
    obstacle = None
    if source.weights is None:
        obstacle = _("This model was registered without trained weights: add it again with them.")
    elif not source.weights.is_file():
        text = _("The file of this model's weights is gone: put {file} back, or add the model again.")
        obstacle = text.format(file=ui.plain(str(source.weights)))
    obstacle = obstacle or image_paths.problem(data, calibration)
    return Choice(source=source, data=data, calibration=calibration, obstacle=obstacle)


def _data_of_registered(source: ModelSource) -> tuple[str, str | None]:
    """The images a model was registered with, or others."""
    if source.data is None and source.default_data is None:
        return image_paths.ask(source.task)
    names = {"own": _("Its own"), "other": _("Others")}
    left, right = st.columns([1, 3], vertical_alignment="center")
    mode = left.segmented_control(
        _("Images"),
        list(names),
        format_func=names.__getitem__,
        required=True,
        key=address.choice("images", list(names), "own", key=REGISTERED_DATA_KEY),
    )
    with right:
        if mode == "other":
            return image_paths.ask(source.task)
        place = ui.plain(source.data) if source.data else _("the built-in images")
        text = _("Measured on {data}; a part of it, without labels, fits the layers.")
        st.caption(text.format(data=place))
    return source.data or "builtin", None


def _shipped_model() -> Choice:
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
        data=data,
        calibration=calibration,
        obstacle=obstacle or image_paths.problem(data, calibration),
    )


def _card(source: ModelSource, chosen: bool) -> None:
    name = source.id.replace("/", "-")
    with st.container(
        border=True,
        key=f"card-chosen-{name}" if chosen else f"card-{name}",
        height="stretch",
        vertical_alignment="distribute",
    ):
        st.html(card_html(source, language()))
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
def card_html(source: ModelSource, in_language: str) -> str:
    """A model's card: sample images, name, task and the numbers that matter."""
    del in_language  # it tells one card from another
    images = catalogue.sample_strip(source.id, CARD_IMAGES)
    small = " small" if source.input_shape[1] < catalogue.STRIP_SIDE_PX else ""
    strip = "".join(
        f'<img src="{address}" alt="{html.escape(label)}" title="{html.escape(label)}">'
        for address, label in images
    )
    name, subject = catalogue.title_of(source)
    task = plural("{count} class", "{count} classes", len(source.classes))
    rows = "".join(
        f"<div><dt>{html.escape(label)}</dt><dd>{value}</dd></div>" for label, value in _card_rows(source)
    )
    return (
        f'<div class="qaf-card"><div class="qaf-strip{small}">{strip}</div>'
        f"<h4>{html.escape(name)}</h4>"
        f'<p class="task">{html.escape(subject[:1].upper() + subject[1:])} · {task}</p><dl>{rows}</dl></div>'
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
            key=address.choice("images", list(names), "builtin", key=DATA_MODE_KEY),
            help=_(
                "The images accuracy is measured on, before and after. Others, without labels, fit "
                "the compressed "
                "layers to the original ones."
            ),
        )
    with right:
        if mode == "own":
            return image_paths.ask(source.task)
        classes = listed(source.classes)
        st.caption(_("Made for this model. Classes: {classes}.").format(classes=ui.plain(classes)))
    return "builtin", None


def _own_model() -> Choice:
    with st.container(border=True):
        model, weights = _own_network()
        left, right = st.columns(2)
        for digest in address.values_of("classes"):
            kept = kept_class_names(ui.workspace(), digest)
            if kept is None:
                address.fault("classes", digest)
            st.session_state[CLASSES_KEY] = kept or ""
        with left, st.expander(_("Class names"), icon=":material/label:"):
            names = st.text_area(
                _("Class names (optional)"),
                key=CLASSES_KEY,
                persist_state="session",
                placeholder=_("one a line, in the order of the network's outputs"),
                height=140,
            )
        with right:
            steps, problem = preparation.ask(OWN)
        data, calibration = image_paths.ask(catalogue.listed_model(model, ui.workspace()).task)
    obstacle = problem
    if not weights:
        obstacle = _(
            "This model comes without trained weights: give the path of a weights file above to run it."
        )
    source, overrides, fault = _open_own(model, weights, names, steps)
    address.set_values("classes", *([Path(overrides.classes).stem] if overrides.classes else []))
    obstacle = fault or obstacle
    if obstacle is None and not data:
        obstacle = _("Give the path of labelled images above: accuracy is measured on them.")
    obstacle = obstacle or image_paths.problem(data, calibration)
    return Choice(source=source, overrides=overrides, data=data, calibration=calibration, obstacle=obstacle)


def _own_network() -> tuple[str, str]:
    """The architecture and where its weights come from."""
    left, right = st.columns([1, 2])
    st.session_state.setdefault(OTHER_KEY, FIRST_OTHER)
    model = left.selectbox(
        _("Architecture"),
        _architectures(),
        key=OTHER_KEY,
        persist_state="session",
        help=_(
            "ResNets for 32×32 images as in He et al. 2016 (cifar/…), networks of torchvision for "
            "classes, masks or boxes, and, where it is installed, well-known ones of timm; its others by "
            "their names on the command line."
        ),
    )
    weights = right.text_input(
        _("Trained weights"),
        key=address.text("weights", key=WEIGHTS_KEY),
        placeholder="/path/to/weights.safetensors",
        help=_(
            "A path on the computer the dashboard runs on: a safetensors file, or a PyTorch state dict; "
            "for torchvision and timm also the name of published weights, as DEFAULT. "
            "Without weights the model can be planned, not run."
        ),
    )
    return model, weights.strip()


def _architectures() -> tuple[str, ...]:
    """What is offered; a network of timm that an earlier run was made of stands there, listed or not."""
    offered, chosen = catalogue.other_models(), st.session_state[OTHER_KEY]
    return (*offered, chosen) if chosen.startswith(TIMM_FAMILY) and chosen not in offered else offered


def _open_own(
    model: str, weights: str, names: str, steps: Mapping[str, Any] | None
) -> tuple[ModelSource, Overrides, str | None]:
    """A model with what was given for it; as it is listed where that cannot be used, and why not."""
    folder = ui.workspace()
    try:
        classes = keep_class_names(folder, names)
        overrides = Overrides(weights=weights or None, classes=classes, preprocessing=steps)
        with st.spinner(_("Looking into the model…"), show_time=True):
            return catalogue.open_model(model, folder, overrides), overrides, None
    except QafError as error:
        ui.say_error(error)
    return catalogue.listed_model(model, folder), NOTHING, _("What was given cannot be used, see above.")
