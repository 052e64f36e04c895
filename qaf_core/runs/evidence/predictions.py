"""What both networks of a run said to each image, kept in the run's folder: no pickle, free of torch.

Runs of earlier versions have no such file, and very large ones (masks of many images) are not kept: then
``qaf_core.runs.evidence.networks.load_predictions`` makes them anew.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.errors import WorkspaceError
from qaf_core.files import write_file

if TYPE_CHECKING:
    from qaf_core.data.load import ImageSet

FILE_NAME = "predictions.npz"
FORMAT = 1
LARGEST_BYTES = 256 * 2**20  # before they are packed
_PARTS = ("original", "compressed", "targets")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class PairedPredictions:
    """The predictions of two networks for the same images.

    Attributes:
        task: Name of the task; it says what the arrays are.
        classes: Names of the classes.
        images: What the images are, in words.
        data_sha256: Of the pixels and targets, in order.
        original, compressed: Predictions.
        targets: What they are compared with.
    """

    task: str
    classes: tuple[str, ...]
    images: str
    data_sha256: str
    original: Arrays
    compressed: Arrays
    targets: Arrays


def describe_predictions(
    task: str, images: ImageSet, original: Arrays, compressed: Arrays, targets: Arrays
) -> PairedPredictions:
    """Predictions with what must be known of their images."""
    digest = hashlib.sha256(b"".join(images.digests()))
    for name, values in sorted(targets.items()):
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).data)
    return PairedPredictions(
        task=task,
        classes=tuple(images.classes),
        images=images.name,
        data_sha256=digest.hexdigest(),
        original=original,
        compressed=compressed,
        targets=targets,
    )


def keep_predictions(folder: Path, paired: PairedPredictions) -> None:
    """Write predictions into a run's folder, unless they are very large.

    Raises:
        WorkspaceError: If the file cannot be written.
    """
    arrays = {f"{part}/{key}": value for part in _PARTS for key, value in getattr(paired, part).items()}
    if sum(value.nbytes for value in arrays.values()) > LARGEST_BYTES:
        return
    header = {
        "format": FORMAT, "task": paired.task, "classes": list(paired.classes), "images": paired.images,
        "data_sha256": paired.data_sha256,
    }  # fmt: skip
    buffer = io.BytesIO()
    about = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(buffer, allow_pickle=False, about=about, **arrays)
    write_file(folder / FILE_NAME, buffer.getvalue())


def read_predictions(folder: Path) -> PairedPredictions | None:
    """The predictions kept in a run's folder; None where there are none.

    Raises:
        WorkspaceError: If they are damaged or of a newer version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["about"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}")
            parts: dict[str, dict[str, NDArray[Any]]] = {part: {} for part in _PARTS}
            for name in archive.files:
                part, _, key = name.partition("/")
                if part in parts:
                    parts[part][key] = archive[name]
        return PairedPredictions(
            task=str(header["task"]),
            classes=tuple(map(str, header["classes"])),
            images=str(header["images"]),
            data_sha256=str(header["data_sha256"]),
            original=parts["original"],
            compressed=parts["compressed"],
            targets=parts["targets"],
        )
    except Exception as error:  # zip and npy each have their own ways to be damaged
        raise WorkspaceError(
            "the predictions kept with a run cannot be read",
            got=f"{path} ({error})",
            remedy="move the file away: they are then made anew",
        ) from error
