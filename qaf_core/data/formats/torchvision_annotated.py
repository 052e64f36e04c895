"""torchvision's data sets with masks or boxes: Pascal VOC and COCO as they unpack, nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qaf_core.data.formats.annotated import CocoFolder, MaskFolder
from qaf_core.data.formats.files import Reading, load_annotated, load_folder
from qaf_core.data.formats.folder import match_classes
from qaf_core.data.formats.sources import TorchvisionPlace
from qaf_core.data.images.image_set import ImageSet, shown_name
from qaf_core.data.images.targets import UNLABELLED, accepted_data
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.torchvision_names import ANNOTATED_SETS
from qaf_core.errors import DataError
from qaf_core.text.said import say

_VOC = "VOCdevkit/VOC2012"
_VOC_OBJECTS = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
_COCO_YEARS = ("2017", "2014")
_HOLDS = {
    "VOCSegmentation": f"{_VOC} with JPEGImages, SegmentationClass and ImageSets/Segmentation",
    "CocoDetection": "val2017, train2017 and annotations/instances_val2017.json (or those of 2014)",
}


def load_annotated_set(place: TorchvisionPlace, reading: Reading) -> ImageSet:
    """Images with masks or boxes: the part for training calibrates, the one for validation evaluates.

    Args:
        place: The set's name and root.
        reading: What is asked for.

    Raises:
        DataError: When the set is not for the model's task, not in the root, or does not fit the model.
    """
    source, split = reading.source, reading.choice.split
    if ANNOTATED_SETS.get(place.name) != source.task:
        fitting = [name for name, task in ANNOTATED_SETS.items() if task == source.task]
        raise DataError(
            say("this torchvision data set is not read for {task}", task=source.task),
            got=shown_name(place.name),
            expected=", ".join(fitting) or accepted_data(source.task),
        )
    part = "val" if split == "evaluation" else "train"
    name = f"{place.name}, {'evaluation' if split == 'evaluation' else 'training'} part"
    try:
        if place.name == "VOCSegmentation":
            return load_annotated(_open_voc(place.root / _VOC, part, source), name, reading)
        images = _coco_images(place.root, part)
        if not reading.labelled:  # boxes are many, and nothing is compared with them
            return load_folder(images, name, reading)
        return load_annotated(_open_coco(images, source), name, reading)
    except OSError as error:
        raise DataError(
            say("torchvision's {place} is not, or not whole, in {root}", place=place.name, root=place.root),
            got=f"{error.filename} ({error.strerror})",
            expected=say("{holds} in this folder", holds=_HOLDS[place.name]),
        ) from error


def _open_voc(folder: Path, part: str, source: ModelSource) -> MaskFolder:
    ids = (folder / "ImageSets" / "Segmentation" / f"{part}.txt").read_text(encoding="utf-8").split()
    background = "background" if "background" in source.classes else "__background__"
    names = (background, *_VOC_OBJECTS.split())
    numbers = np.full(UNLABELLED + 1, UNLABELLED, np.uint8)
    numbers[: len(names)] = match_classes(names, source, say("classes of {name}", name="VOCSegmentation"))
    files = [Path(name).name for name in ids]  # whatever the list says, they lie in these folders
    masks = {
        folder / "JPEGImages" / f"{name}.jpg": folder / "SegmentationClass" / f"{name}.png" for name in files
    }
    return MaskFolder(masks, numbers, white=UNLABELLED)


def _open_coco(images: Path, source: ModelSource) -> CocoFolder:
    annotations = images.with_name("annotations") / f"instances_{images.name}.json"
    for path in (images, annotations):
        path.stat()  # where one is missing the set is not whole
    return CocoFolder(annotations, images, source)


def _coco_images(root: Path, part: str) -> Path:
    """The folder of a part's pictures, of the newest year that is there."""
    folders = [root / f"{part}{year}" for year in _COCO_YEARS]
    return next((folder for folder in folders if folder.is_dir()), folders[0])
