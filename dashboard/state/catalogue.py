"""What can be compressed here: models, their layers and sample images, without importing torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from PIL import Image, ImageDraw

from dashboard.state import jobs
from dashboard.state.overrides import NOTHING, Overrides
from dashboard.text import _
from qaf_core.data.images.image_set import ImageSet, one_of_each, shown_name
from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model, list_models, load_inventory
from qaf_core.data.models.listed import sketch_timm
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.models.published import is_published_name
from qaf_core.data.models.settings import read_settings
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.timm_names import TIMM_ARCHITECTURE, TIMM_FAMILY
from qaf_core.data.workspace.trust import check_trusted
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.network.plan.layer_info import LayerInfo, inventory_from_rows
from qaf_core.network.topology.description import Topology
from qaf_core.runs.store.kinds import digest_request
from qaf_core.runs.store.request import InspectRequest

REFUSAL_SECONDS = 60
STRIP_SIDE_PX = 64
TURNS = 5
MARK_COLOUR = (255, 176, 32)  # amber: apart from metal, light or dark
MARK_SHARE = 0.6


def shipped_models() -> tuple[ModelSource, ...]:
    """The models that come trained, with built-in images; the toy among them last."""
    shipped = [source for source in list_models() if source.shipped]
    return tuple(sorted(shipped, key=lambda source: source.default_data == "digits"))


def title_of(source: ModelSource) -> tuple[str, str]:
    """A model's name, and what it is for in the session's language; empty where that is not told."""
    name, _comma, subject = source.title.partition(", ")
    return name, _(subject) if subject else ""


def registered_models(workspace: Path) -> tuple[ModelSource, ...]:
    """The user's own models, as the workspace's settings list them; none where these cannot be read."""
    return tuple(source for source in list_models(_with_settings(workspace)) if source.registered)


def _with_settings(workspace: Path) -> Path | None:
    """The workspace, or None where its settings are damaged: what is always here can be used all the same."""
    try:
        read_settings(workspace)
    except WorkspaceError:
        return None
    return workspace


def other_models() -> tuple[str, ...]:
    """Ids of the models that need the user's own weights."""
    return tuple(source.id for source in list_models() if not source.shipped)


def open_model(model_id: str, workspace: Path, overrides: Overrides = NOTHING) -> ModelSource:
    """A model with what the user gives for it.

    Args:
        model_id: Its id.
        workspace: Whose registered models and limits count.
        overrides: Weights, names of classes, preparation of images.

    Raises:
        ModelError: If there is no such model.
        WeightsError: If the weights cannot be used.
        DataError: If the classes do not fit the weights.
    """
    listed = listed_model(model_id, workspace)
    if _needs_torch(listed, overrides):
        return _as_inspected(listed, workspace, overrides)
    return find_model(
        model_id,
        overrides.weights,
        classes=overrides.classes,
        preprocessing=overrides.preprocessing,
        workspace=_with_settings(workspace),
    )


def listed_model(model_id: str, workspace: Path) -> ModelSource:
    """A model as far as it is known at once: of timm's networks what stands in the list, of code its name.

    Raises:
        ModelError: If there is no such model.
    """
    if model_id.startswith(TIMM_FAMILY):
        return sketch_timm(model_id)
    if ":" in model_id:  # a user's own code, which this process never runs
        steps = Preprocessing(crop=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
        return ModelSource(
            id=model_id, title=model_id, architecture=model_id, preprocessing=steps, classes=()
        )
    return find_model(model_id, workspace=_with_settings(workspace))


def _needs_torch(listed: ModelSource, overrides: Overrides) -> bool:
    """Whether only a process with torch knows the model: of timm, own code, or with published weights."""
    if ":" in listed.id:
        return True
    if listed.architecture.startswith(TIMM_ARCHITECTURE):
        return not listed.registered or overrides.weights is not None
    return is_published_name(overrides.weights) and listed.architecture.startswith("torchvision.")


def _as_inspected(source: ModelSource, workspace: Path, overrides: Overrides) -> ModelSource:
    """A model with what another process says of it."""
    inspection = _look_into(workspace, InspectRequest(**overrides.of(source.id)))["source"]
    return replace(
        source,
        architecture=inspection["architecture"],
        shipped=False,
        card={},
        classes=tuple(inspection["classes"]),
        preprocessing=Preprocessing.from_dict(inspection["preprocessing"]),
        accuracy=inspection["accuracy"],
        task=inspection.get("task", source.task),
        weights=Path(inspection["weights"]) if inspection["weights"] else None,
        weights_url=inspection["weights_url"],
    )


def inventory_of(
    source: ModelSource, workspace: Path, overrides: Overrides = NOTHING
) -> tuple[LayerInfo, ...]:
    """The layers of a model: from its card, from an earlier look, or by asking another process.

    Args:
        source: As `open_model` gives it.
        workspace: Keeps what was found.
        overrides: What it was opened with.

    Raises:
        ModelError: If the model cannot be built or looked into.
    """
    if source.shipped and source.card.get("inventory"):
        return _inventory_from_card(source.id, source)
    request = InspectRequest(**overrides.of(source.id))
    return _inventory_of(digest_request(request, workspace), workspace, request)


def topology_of(source: ModelSource, workspace: Path, overrides: Overrides = NOTHING) -> Topology | None:
    """How the layers of a model are connected, found as `inventory_of` finds them; None where that is not
    known: from an answer without it, or as tensors cannot be followed through the network.

    Raises:
        ModelError: If the model cannot be built or looked into.
    """
    if source.shipped and source.card.get("graph"):
        return _topology_from_card(source.id, source)
    request = InspectRequest(**overrides.of(source.id))
    return _topology_of(digest_request(request, workspace), workspace, request)


@st.cache_resource(show_spinner=False)
def _topology_from_card(model_id: str, _source: ModelSource) -> Topology:
    return Topology.from_dict(_source.card["graph"])


@st.cache_resource(show_spinner=False, max_entries=64)
def _topology_of(digest: str, _workspace: Path, _request: InspectRequest) -> Topology | None:
    row = _look_into(_workspace, _request).get("graph")
    return None if row is None else Topology.from_dict(row)


@st.cache_resource(show_spinner=False)
def _inventory_from_card(model_id: str, _source: ModelSource) -> tuple[LayerInfo, ...]:
    return load_inventory(_source)


@st.cache_resource(show_spinner=False, max_entries=64)
def _inventory_of(digest: str, _workspace: Path, _request: InspectRequest) -> tuple[LayerInfo, ...]:
    return inventory_from_rows(_look_into(_workspace, _request)["layers"])


def _look_into(workspace: Path, request: InspectRequest) -> Mapping[str, Any]:
    """What another process tells of a model, now or at an earlier look.

    Raises:
        QafError: In its own words when it refuses.
    """
    _check_code(workspace, request.model)
    answer, refusal = _answer(digest_request(request, workspace), workspace, request)
    if refusal is not None:
        raise refusal
    return answer


def _check_code(workspace: Path, model: str) -> None:
    """Refuse to have code run that the workspace names and the user has not trusted."""
    entry = read_settings(workspace).model(model)
    factory, code_path = (model, None) if entry is None else (entry.base, entry.code_path)
    if ":" in factory:
        check_trusted(factory, code_path, model)


@st.cache_data(show_spinner=False, max_entries=64, ttl=REFUSAL_SECONDS)
def _answer(
    digest: str, _workspace: Path, _request: InspectRequest
) -> tuple[Mapping[str, Any], QafError | None]:
    """A job's answer, or why it is refused: kept for a while, as a page is drawn again at every click."""
    try:
        return jobs.wait_for(_workspace, _request), None
    except jobs.NoAnswerYet:
        raise
    except QafError as error:
        return {}, error


@st.cache_data(show_spinner=False)
def sample_strip(model_id: str, count: int) -> tuple[tuple[str, str], ...]:
    """A few built-in images of a model as data addresses, with their class names; empty if it has none."""
    source = find_model(model_id)
    if source.default_data is None:
        return ()
    try:
        images = load_images("builtin", source, split="calibration", limit=max(48, count))
    except QafError:
        return ()
    # Each model shows other examples of the same classes.
    turn = sum(model_id.encode()) % TURNS
    shown = images.take(np.array(one_of_each(images.labels.tolist(), count, turn)), images.name)
    names = [shown_name(shown.classes[int(label)]) for label in shown.labels]
    return tuple(zip(map(_data_address, with_targets(shown)), names, strict=True))


def with_targets(images: ImageSet) -> list[np.ndarray]:
    """The pictures, their masks tinted and their boxes drawn, where they have any."""
    pictures = [picture.copy() for chunk in images.in_chunks() for picture in chunk]
    for picture, mask in zip(pictures, images.targets.get("masks", ()), strict=False):
        tinted = MARK_SHARE * np.array(MARK_COLOUR) + (1 - MARK_SHARE) * picture
        picture[:] = np.where((mask > 0)[..., None], tinted, picture).astype(np.uint8)
    boxes = images.targets.get("boxes")
    if boxes is not None:
        of_image = np.repeat(np.arange(len(images)), images.targets["counts"])
        for image, (left, top, right, bottom) in zip(of_image, boxes, strict=True):
            drawn = Image.fromarray(pictures[image])
            corners = (int(left) - 1, int(top) - 1, int(right), int(bottom))
            ImageDraw.Draw(drawn).rectangle(corners, outline=MARK_COLOUR)
            pictures[image] = np.asarray(drawn)
    return pictures


def _data_address(image: np.ndarray) -> str:
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    small = picture.width < STRIP_SIDE_PX
    stream = io.BytesIO()
    picture.save(stream, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
