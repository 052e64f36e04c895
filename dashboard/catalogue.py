"""What can be compressed here: models, their layers and sample images, without importing torch."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import streamlit as st
from PIL import Image, ImageDraw

from dashboard.jobs import run_command
from qaf_core.data.datasets import load_images
from qaf_core.data.images import ImageSet, one_of_each, shown_name
from qaf_core.data.models import ModelSource, find_model, list_models, load_inventory
from qaf_core.errors import QafError
from qaf_core.network.inventory import LayerInfo, inventory_from_rows
from qaf_core.runs.workspace import write_file

INSPECT_TIMEOUT_SECONDS = 120
STRIP_SIDE_PX = 64
TURNS = 5
MARK_COLOUR = (255, 176, 32)  # amber: apart from metal, light or dark
MARK_SHARE = 0.6


def shipped_models() -> tuple[ModelSource, ...]:
    """The models that come trained, with built-in images; the toy among them last."""
    shipped = [source for source in list_models() if source.shipped]
    return tuple(sorted(shipped, key=lambda source: source.default_data == "digits"))


def registered_models(workspace: Path) -> tuple[ModelSource, ...]:
    """The user's own models, as the workspace's settings list them.

    Raises:
        WorkspaceError: If the settings cannot be read.
    """
    return tuple(source for source in list_models(workspace) if source.registered)


def other_models() -> tuple[str, ...]:
    """Ids of the models that need the user's own weights."""
    return tuple(source.id for source in list_models() if not source.shipped)


def open_model(model_id: str, weights: str | None, workspace: Path | None = None) -> ModelSource:
    """A model, with the user's weights where they are given.

    Args:
        model_id: Its id.
        weights: Path of the weights, or None for the model's own.
        workspace: Whose registered models count too.

    Raises:
        ModelError: If there is no such model.
        WeightsError: If the file does not exist.
    """
    return find_model(model_id, weights or None, workspace=workspace)


def inventory_of(source: ModelSource, workspace: Path) -> tuple[LayerInfo, ...]:
    """The layers of a model: from its card, from an earlier look, or by asking another process.

    Raises:
        ModelError: If the model cannot be built or looked into.
    """
    if source.shipped and source.card.get("inventory"):
        return _inventory_from_card(source.id, source)
    # A registered model may be registered anew under its id, with another network.
    described = json.dumps([source.id, source.architecture, source.input_shape, len(source.classes)])
    name = hashlib.sha256(described.encode()).hexdigest()[:16]
    file = workspace / "cache" / "inventory" / f"{name}.json"
    return _inventory_from_file(source.id, str(file), str(workspace))


@st.cache_resource(show_spinner=False)
def _inventory_from_card(model_id: str, _source: ModelSource) -> tuple[LayerInfo, ...]:
    return load_inventory(_source)


@st.cache_resource(show_spinner=False, max_entries=64)
def _inventory_from_file(model_id: str, file: str, workspace: str) -> tuple[LayerInfo, ...]:
    path = Path(file)
    if not path.is_file():
        rows = _inspect(model_id, workspace)
        write_file(path, json.dumps(rows).encode())
    return inventory_from_rows(json.loads(path.read_text(encoding="utf-8")))


def _inspect(model_id: str, workspace: str) -> list[dict[str, object]]:
    """Have another process list the layers: torch takes seconds to load, and stays there."""
    arguments = ["inspect", model_id, "--workspace", workspace, "--json"]
    found = run_command(arguments, timeout_seconds=INSPECT_TIMEOUT_SECONDS)
    layers: list[dict[str, object]] = found["layers"]
    return layers


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
