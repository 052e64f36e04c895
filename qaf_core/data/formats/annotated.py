"""Folders of pictures with masks or boxes, brought to the size of a model's input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from qaf_core.data.images.decode import IMAGE_SUFFIXES, upright_size
from qaf_core.data.images.targets import UNLABELLED, Targets, accepted_data, check_white, white_class
from qaf_core.data.models.class_names import find_classes
from qaf_core.data.models.preprocessing import Fit
from qaf_core.errors import DataError
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.data.models.source import ModelSource

_LEAST_SIDE_PX = 1.0  # of a box, once cut to the part of the picture that is used


class AnnotatedFolder(Protocol):
    """A folder of pictures with targets."""

    @property
    def files(self) -> Sequence[Path]:
        """The pictures, in order."""
        ...

    def arrays(self, chosen: Sequence[Path], source: ModelSource) -> Targets:
        """The arrays `npz_arrays` names, for some of the pictures."""
        ...


def open_annotated(folder: Path, source: ModelSource, white: int | None = None) -> AnnotatedFolder:
    """A user's folder for segmentation or detection.

    Args:
        folder: With pictures and masks or boxes.
        source: The model.
        white: The class that 255 in masks means, `UNLABELLED` for none; None where the masks must tell.

    Raises:
        DataError: When the folder is not laid out as expected.
    """
    if source.task == "segmentation":
        return open_masks(folder, white)
    if source.task == "detection":
        images = folder / "images" if (folder / "images").is_dir() else folder
        return CocoFolder(folder / "annotations.json", images, source)
    raise DataError(
        say("folders are not read for the task {task}", task=source.task),
        got=folder.name,
        expected=accepted_data(source.task),
    )


def open_masks(folder: Path, white: int | None = None) -> MaskFolder:
    """``images/NAME.*`` with ``masks/NAME.png``.

    Raises:
        DataError: When there are none, or an image has no mask.
    """
    files = _pictures(folder / "images", "segmentation")
    masks = {file.stem: file for file in _pictures(folder / "masks", "segmentation")}
    bare = [file.name for file in files if file.stem not in masks]
    if bare:
        raise DataError(
            say("{count} images of {folder} have no mask", count=len(bare), folder=folder.name),
            got=bare[0],
            expected=f"masks/{Path(bare[0]).stem}.png",
        )
    return MaskFolder({file: masks[file.stem] for file in files}, white=white, name=folder.name)


class MaskFolder:
    """Pictures with masks, whose pixels are class numbers (palette pictures too).

    Args:
        masks: The mask of each picture.
        numbers: (256,) the model's class for each number in the masks; None where they are the same.
        white: The class that 255 means, `UNLABELLED` for none; None where the masks must tell.
        name: Of the folder, for messages.
    """

    def __init__(
        self,
        masks: Mapping[Path, Path],
        numbers: npt.NDArray[np.uint8] | None = None,
        *,
        white: int | None = None,
        name: str = "the folder",
    ) -> None:
        self.files = tuple(masks)
        self._masks, self._numbers, self._white, self._name = masks, numbers, white, name

    def arrays(self, chosen: Sequence[Path], source: ModelSource) -> Targets:
        """The masks at the model's size; the nearest pixel counts, and 255 is no label.

        Raises:
            DataError: When a mask cannot be read, or 255 in the masks can mean two things.
        """
        white = None if self._white is None else white_class(self._white, source)
        masks: list[npt.NDArray[np.uint8]] = []
        values = np.zeros(UNLABELLED + 1, np.intp)
        for file in chosen:
            pixels, fit = self._read(self._masks[file], source)
            values += np.bincount(pixels.reshape(-1), minlength=len(values))
            if white is not None:
                pixels = np.where(pixels == UNLABELLED, np.uint8(white), pixels)
            # Only now comes what lies beyond the picture, which has no label whatever 255 means.
            masks.append(_cut(pixels if self._numbers is None else self._numbers[pixels], fit))
        if white is None and self._numbers is None:
            check_white(self._name, set(np.flatnonzero(values).tolist()), source)
        return {"y": np.stack(masks)}

    def _read(self, file: Path, source: ModelSource) -> tuple[npt.NDArray[np.uint8], Fit]:
        from PIL import Image

        try:
            with Image.open(file) as opened:
                picture = opened.copy()
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                say("mask {file} cannot be read", file=file.name), got=error, remedy="replace it"
            ) from error
        if picture.mode not in ("L", "P", "1", "I;16", "I"):
            raise DataError(
                say("mask {file} is a coloured picture", file=file.name),
                got=picture.mode,
                expected="one number a pixel: its class",
                remedy="save it as a grey or palette PNG",
            )
        fit = source.preprocessing.fit(picture.size)
        pixels = np.asarray(picture.resize(fit.size, Image.Resampling.NEAREST))
        if int(pixels.max()) > UNLABELLED:
            raise DataError(
                say("mask {file} holds large numbers", file=file.name),
                got=int(pixels.max()),
                expected="0 to 255",
            )
        return pixels.astype(np.uint8), fit


def _cut(pixels: npt.NDArray[np.uint8], fit: Fit) -> npt.NDArray[np.uint8]:
    """The part of a scaled mask that is used; what lies beyond the picture has no label."""
    left, top, right, bottom = fit.cut
    margin = max(0, -left, -top, right - pixels.shape[1], bottom - pixels.shape[0])
    padded = np.pad(pixels, margin, constant_values=UNLABELLED)
    return padded[top + margin : bottom + margin, left + margin : right + margin]


class CocoFolder:
    """Pictures with boxes in COCO's form.

    Args:
        annotations: The JSON file.
        images: The folder of the pictures.
        source: The model, for its classes.

    Raises:
        DataError: When the file cannot be read, or does not go with the pictures or the classes.
    """

    def __init__(self, annotations: Path, images: Path, source: ModelSource) -> None:
        content = _read_json(annotations)
        try:
            named = {entry["id"]: _inside(images, entry["file_name"]) for entry in content["images"]}
            numbers = _class_numbers(content["categories"], source)
            self._boxes: dict[Path, list[tuple[list[float], int]]] = {file: [] for file in named.values()}
            for entry in content["annotations"]:
                if not entry.get("iscrowd", 0):
                    left, top, width, height = map(float, entry["bbox"])
                    box = [left, top, left + width, top + height]
                    self._boxes[named[entry["image_id"]]].append((box, numbers[entry["category_id"]]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                say(
                    "{annotations} of {parent} is not in COCO's form",
                    annotations=annotations.name,
                    parent=annotations.parent.name,
                ),
                got=f"{type(error).__name__}: {error}",
                expected="images (id, file_name), categories (id, name), "
                "annotations (image_id, category_id, bbox)",
            ) from error
        self.files = sorted(self._boxes)
        lost = [file.name for file in self.files if not file.is_file()]
        if lost:
            raise DataError(
                say(
                    "{count} images of {parent} are missing", count=len(lost), parent=annotations.parent.name
                ),
                got=lost[0],
            )

    def arrays(self, chosen: Sequence[Path], source: ModelSource) -> Targets:
        """The boxes in the pixels of the model's input, those outside the part used left out."""
        from PIL import Image

        boxes: list[npt.NDArray[np.float32]] = []
        labels: list[int] = []
        counts: list[int] = []
        for file in chosen:
            with Image.open(file) as opened:
                before = upright_size(opened)
            fit = source.preprocessing.fit(before)
            kept = [(_moved(box, before, fit), label) for box, label in self._boxes[file]]
            kept = [row for row in kept if (row[0][2:] - row[0][:2]).min() >= _LEAST_SIDE_PX]
            boxes += [box for box, _ in kept]
            labels += [label for _, label in kept]
            counts.append(len(kept))
        return {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "labels": np.array(labels, np.int64),
            "counts": np.array(counts, np.int64),
        }


def _moved(box: list[float], before: tuple[int, int], fit: Fit) -> npt.NDArray[np.float32]:
    """A box of the picture in the pixels of the part used, cut to it."""
    scale = np.array([fit.size[0] / before[0], fit.size[1] / before[1]] * 2)
    moved = np.array(box) * scale - np.array(fit.corner * 2)
    inside: npt.NDArray[np.float32] = np.clip(moved, 0, np.array(fit.used * 2)).astype(np.float32)
    return inside


def _inside(folder: Path, name: str) -> Path:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            "annotations.json names a file that is not in its folder", got=name, expected="plain file names"
        )
    return file


def _class_numbers(categories: Sequence[Mapping[str, Any]], source: ModelSource) -> dict[Any, int]:
    """Class of each category: by name where the model knows all of them, else the category's own id."""
    numbers = find_classes(
        [str(row.get("name", "")) for row in categories], source.classes, say("categories")
    )
    named = dict(zip([row["id"] for row in categories], numbers, strict=True))
    if all(number is not None for number in named.values()):
        return {key: number for key, number in named.items() if number is not None}
    # Their own ids, unless a name that is known says otherwise.
    numbered = all(type(key) is int and 0 <= key < len(source.classes) for key in named)
    if numbered and all(number in (None, key) for key, number in named.items()):
        return {key: int(key) for key in named}
    unknown = [str(row.get("name", row["id"])) for row in categories if named[row["id"]] is None]
    raise DataError(
        say("categories do not match {source}", source=source.id),
        got=", ".join(unknown[:4]),
        expected=", ".join(source.classes[:8]),
        remedy="name each category after a class of the model",
    )


def _pictures(folder: Path, task: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(
            say("{parent} has no folder {folder}", parent=folder.parent.name, folder=folder.name),
            expected=accepted_data(task),
        )
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise DataError(
            say("folder {parent}/{folder} holds no images", parent=folder.parent.name, folder=folder.name),
            expected=", ".join(IMAGE_SUFFIXES),
        )
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            say("{parent} has no {path}", parent=path.parent.name, path=path.name),
            expected=accepted_data("detection"),
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            say("{path} cannot be read", path=path.name), got=error, expected="COCO annotations"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            say("{path} is not in COCO's form", path=path.name),
            got=type(content).__name__,
            expected="an object",
        )
    return content
