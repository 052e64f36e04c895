"""What of a registered model lies in the workspace because it was uploaded for it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from qaf_core.data.formats.sources import BUILTIN, data_path, lies_in
from qaf_core.data.formats.zip import DATA_FOLDER, cached_place
from qaf_core.data.models.class_names import read_class_names
from qaf_core.errors import QafError, WorkspaceError

if TYPE_CHECKING:
    from qaf_core.data.models.settings import RegisteredModel

MODELS_FOLDER = "models"
CLASSES_FOLDER = "classes"
INCOMING_FOLDER = "incoming"
UNFINISHED = ".upload-"  # how a folder's name begins in which an upload is checked before it is kept
FORGOTTEN_SECONDS = 86_400.0


def uploads_of(workspace: Path, model: RegisteredModel) -> tuple[Path, ...]:
    """The model's weights, images and files of class names, as far as they lie in the workspace.

    Args:
        workspace: The workspace.
        model: Its images may be a zip from anywhere: what was unpacked of it counts.
    """
    folder = workspace.absolute()
    return tuple(
        path
        for path in (*_weights(folder, model), *_images(folder, model), *_class_files(folder, model))
        if path.exists() and not path.is_symlink()
    )


def receive_upload(workspace: Path, content: BinaryIO, name: str) -> dict[str, str]:
    """Write down what a user's browser sent, to be checked and kept, or not, by a job.

    Args:
        workspace: Its folder ``incoming`` takes the file; what was forgotten there a day ago is deleted.
        content: Read from its beginning.
        name: As the user's machine calls the file.

    Returns:
        ``path`` and ``name``.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    folder = workspace.absolute() / INCOMING_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _delete_forgotten(folder.iterdir())
        content.seek(0)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            shutil.copyfileobj(content, file)
    except OSError as error:
        raise WorkspaceError(
            "an uploaded file cannot be kept",
            got=f"{folder} ({error.strerror or error})",
            remedy="free some space, or choose another --workspace",
        ) from error
    return {"path": file.name, "name": name}


def sweep_uploads(workspace: Path) -> None:
    """Delete what is left of uploads that were cut off; one that was written to in the last day may go on."""
    _delete_forgotten(workspace.glob(f"{MODELS_FOLDER}/{UNFINISHED}*"))


def _delete_forgotten(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError, WorkspaceError):  # its own process may have tidied up meanwhile
            written = max(part.stat().st_mtime for part in (path, *path.rglob("*")))
            if written < time.time() - FORGOTTEN_SECONDS:
                delete_upload(path)


def delete_upload(path: Path) -> None:
    """Delete a file, or a folder with all that is in it.

    Raises:
        WorkspaceError: If that is not allowed.
    """
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise WorkspaceError(
            "something uploaded cannot be deleted",
            got=f"{path} ({error.strerror or error})",
            remedy="delete it yourself",
        ) from error


def _weights(folder: Path, model: RegisteredModel) -> Iterator[Path]:
    if model.weights is not None and Path(model.weights).parent == folder / MODELS_FOLDER:
        yield Path(model.weights)


def _images(folder: Path, model: RegisteredModel) -> Iterator[Path]:
    if model.data is None or model.data == BUILTIN:
        return
    with contextlib.suppress(OSError):
        yield from (path for path in (folder / DATA_FOLDER).iterdir() if lies_in(model.data, path))
    with contextlib.suppress(QafError, RuntimeError):  # it is gone, and with it what tells its content
        if data_path(model.data).suffix.lower() == ".zip":
            yield cached_place(data_path(model.data), folder / "cache" / "archives")


def _class_files(folder: Path, model: RegisteredModel) -> Iterator[Path]:
    """Files that hold just the names of the model's classes; older versions kept them beside weights."""
    older = (folder / MODELS_FOLDER).glob("*.classes.txt")
    for path in sorted((*(folder / CLASSES_FOLDER).glob("*.txt"), *older)):
        with contextlib.suppress(QafError):
            if read_class_names(path) == model.classes:
                yield path
