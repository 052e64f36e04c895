"""Models a user adds to a workspace: their entries in the settings, and weights stored beside them.

Code is only ever registered by `add_factory`, which the command line alone calls; `add_model` and
`add_weights`, for the dashboard, take names and files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qaf_core.data.formats.sources import ACCEPTED, absolute_data, lies_in, missing_path
from qaf_core.data.models.catalogue import find_model, list_models
from qaf_core.data.models.settings import RegisteredModel, Settings, change_settings, check_id, read_settings
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.timm_names import TIMM_ARCHITECTURE, TIMM_FAMILY
from qaf_core.data.weights.header import read_header
from qaf_core.data.workspace.trust import trust
from qaf_core.data.workspace.uploads import MODELS_FOLDER, UNFINISHED, delete_upload, uploads_of
from qaf_core.errors import DataError, ModelError, WeightsError, WorkspaceError
from qaf_core.text.said import say

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt")
LONGEST_FILE_NAME = 80
_FAMILIES = ("inspection", "digits", "cifar", "torchvision", "timm")


def add_model(
    workspace: Path,
    *,
    model_id: str,
    base: str,
    weights: str | None = None,
    classes: str | Path | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    data: str | None = None,
    title: str | None = None,
) -> ModelSource:
    """Register a model made like a named one; safe to offer on a page, for it takes no code.

    Args:
        workspace: Where it is registered.
        model_id: Its id; a registered model of this id is replaced.
        base: A named model, such as ``cifar/resnet20`` or ``torchvision/resnet50``.
        weights: File of weights, or a name of published ones; None for the named model's own.
        classes: File with the names of the classes.
        preprocessing: What is other than for the named model, by field of `Preprocessing`.
        data: Images to measure on when none are named.
        title: Name for people.

    Returns:
        The model as `find_model` gives it from now on.

    Raises:
        QafError: If the id, the base, the weights or the classes cannot be used, or there are no such images;
            nothing is changed then.
    """
    if ":" in base:
        raise ModelError(
            "a model's code cannot be registered here",
            got=base,
            expected="a named model, as `qaf models` lists them",
            remedy="register code on the command line: qaf models --add ID --factory package.module:factory",
        )
    source = find_model(base, weights, classes=classes, preprocessing=preprocessing, workspace=workspace)
    return _add(workspace, model_id, base, source, data, title, None)


def add_factory(
    workspace: Path,
    *,
    model_id: str,
    factory: str,
    weights: str | None = None,
    classes: str | Path | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    data: str | None = None,
    title: str | None = None,
) -> ModelSource:
    """Register a model of the user's own code, ``package.module:factory``; for the command line only.

    The folder the command is given in is kept, so that other processes find the package too. Other arguments
    and errors as in `add_model`.
    """
    if ":" not in factory:
        raise ModelError("a factory is malformed", got=factory, expected="package.module:factory")
    trust(factory, None)  # by name, on the command line
    source = find_model(factory, weights, classes=classes, preprocessing=preprocessing, workspace=workspace)
    return _add(workspace, model_id, factory, source, data, title, os.getcwd())


def _add(
    workspace: Path,
    model_id: str,
    base: str,
    source: ModelSource,
    data: str | None,
    title: str | None,
    code_path: str | None,
) -> ModelSource:
    _check_free(model_id)
    missing = None if data is None else missing_path(data)
    if missing is not None:
        raise DataError(
            say("data not found: {path}", path=missing), expected=ACCEPTED, remedy="check the path"
        )
    if source.registered:
        raise ModelError(
            "a registered model cannot be made like another one", got=base, expected="a named model"
        )
    entry = RegisteredModel(
        id=model_id,
        title=title or model_id,
        base=_with_tag(base, source),
        code_path=code_path,
        weights=None if source.weights is None else str(source.weights.absolute()),
        weights_part=source.weights_part,
        weights_url=source.weights_url,
        input_shape=source.input_shape,
        classes=source.classes,
        preprocessing=source.preprocessing.to_dict(),
        data=None if data is None else absolute_data(data),
        task=source.task,
        output=source.output,
        outputs=source.outputs,
    )

    def put(settings: Settings) -> Settings:
        others = tuple(model for model in settings.models if model.id != model_id)
        return replace(settings, models=(*others, entry))

    change_settings(workspace, put)
    return find_model(model_id, workspace=workspace)


def _with_tag(base: str, source: ModelSource) -> str:
    """The base; of timm's networks with the tag of the weights chosen, which may be for other images."""
    if not base.startswith(TIMM_FAMILY):
        return base
    return TIMM_FAMILY + source.architecture.removeprefix(TIMM_ARCHITECTURE)


def remove_model(workspace: Path, model_id: str, used: Collection[str] | None = None) -> tuple[Path, ...]:
    """Take a model off the settings, and what was uploaded for it alone from the workspace.

    That are its weights, its images, and files with the names of its classes; also what was unpacked of its
    images where they are a zip.

    Args:
        workspace: Where it is registered.
        model_id: Its id.
        used: Weights, images and files of class names that others than registered models use, by the names
            they are known by: they stay. None where that is not known: only weights are deleted then.

    Returns:
        What was deleted.

    Raises:
        WorkspaceError: If no such model is registered, or something of it cannot be deleted.
    """
    removed: list[RegisteredModel] = []

    def take(settings: Settings) -> Settings:
        entry = settings.model(model_id)
        if entry is None:
            known = ", ".join(model.id for model in settings.models) or "none"
            raise WorkspaceError("no such registered model", got=model_id, expected=known)
        removed.append(entry)
        return replace(settings, models=tuple(model for model in settings.models if model is not entry))

    left = change_settings(workspace, take).models
    in_use = {*(used or ()), *(place for model in left for place in (model.weights, model.data) if place)}
    kept_names = {model.classes for model in left}
    deleted = [
        path
        for path in uploads_of(workspace, removed[0])
        if (used is not None or path.parent.name == MODELS_FOLDER)
        and not any(lies_in(place, path) for place in in_use)
        and not (path.suffix == ".txt" and removed[0].classes in kept_names)
    ]
    for path in deleted:
        delete_upload(path)
    return tuple(deleted)


def add_weights(workspace: Path, name: str, chunks: Iterable[bytes], limit_bytes: int | None = None) -> Path:
    """Store an uploaded weights file in the workspace, once its header is found to be sound.

    Args:
        workspace: The file lands in its folder ``models``.
        name: As the user's machine calls the file; only its letters, digits, ``.``, ``_`` and ``-`` are kept.
        chunks: The content, piece by piece.
        limit_bytes: How large it may be; the workspace's limit when None.

    Returns:
        The path it is stored under. The same content under the same name is stored once.

    Raises:
        WeightsError: If it is too large, damaged, or holds more than tensors; nothing is kept then.
        WorkspaceError: If it cannot be written.
    """
    limits = read_settings(workspace).limits
    if limit_bytes is not None:
        limits = replace(limits, file_bytes=min(limit_bytes, limits.file_bytes))
    safe = clean_file_name(name)
    folder = workspace.absolute() / MODELS_FOLDER
    with _upload_folder(folder) as temporary:
        path = temporary / safe
        digest = _write_chunks(path, chunks, limits.file_bytes)
        read_header(path, limits)
        return _keep(path, folder, digest)


def clean_file_name(name: str) -> str:
    """A file name that stays in its folder, from whatever was given.

    Raises:
        WeightsError: If it does not end as a weights file does.
    """
    last = re.split(r"[/\\]", name)[-1]
    suffix = next((suffix for suffix in WEIGHT_SUFFIXES if last.lower().endswith(suffix)), None)
    if suffix is None:
        raise WeightsError(
            "a file of this kind holds no weights",
            got=last[-40:] or say("no name"),
            expected=", ".join(WEIGHT_SUFFIXES),
        )
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", last[: -len(suffix)]).strip(".-_")
    return (stem[: LONGEST_FILE_NAME - len(suffix)] or "weights") + suffix


def _check_free(model_id: str) -> None:
    family = check_id(model_id).split("/")[0]
    if family in _FAMILIES or model_id in {source.id for source in list_models()}:
        raise WorkspaceError(
            "this id belongs to a model that is always here",
            got=model_id,
            remedy=say("choose another, for example my/{name}", name=model_id.rpartition("/")[2]),
        )


@contextlib.contextmanager
def _upload_folder(folder: Path) -> Iterator[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
            yield Path(temporary)
    except OSError as error:
        raise WorkspaceError(
            "an uploaded file cannot be kept",
            got=f"{folder} ({error.strerror or error})",
            remedy="free some space, or choose another --workspace",
        ) from error


def _write_chunks(path: Path, chunks: Iterable[bytes], limit_bytes: int) -> str:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > limit_bytes:
                raise WeightsError(
                    say("weights file {path} is too large", path=path.name),
                    got=say("more than {size:,} bytes", size=limit_bytes),
                    expected=say("at most {most:,}", most=limit_bytes),
                )
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _keep(path: Path, folder: Path, digest: str) -> Path:
    """Move the checked file to a name that is free; one of the same content is used as it is."""
    number = 1
    while True:
        name = path.name if number == 1 else f"{path.stem}-{number}{path.suffix}"
        final = folder / name
        try:
            final.touch(exist_ok=False)  # the name is ours: nothing of another's is ever written over
        except FileExistsError:
            if final.is_file() and not final.is_symlink() and _digest(final) == digest:
                return final
            number += 1
            continue
        return path.replace(final)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
