"""The images of a run whose answer changed, as small pictures for screens and reports without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qaf_core.errors import QafError
from qaf_core.files import read_json
from qaf_core.pipeline.marks import MARKED_TASKS, beside, mark, of_image, picture_address
from qaf_core.pipeline.thumbnails import image_address
from qaf_core.runs.evidence.predictions import PairedPredictions
from qaf_core.runs.jobs.images import load_evaluation_images
from qaf_core.runs.store.request import source_of
from qaf_core.runs.store.store import Store

PICTURES_NAME = "pictures.json"  # in a run's folder: what an import brought, where the images are not here


def picture_addresses(
    store: Store, run_id: str, places: Sequence[int], paired: PairedPredictions | None = None
) -> dict[int, str]:
    """Some of a run's evaluation images as data addresses, or those that came with an import.

    Args:
        store: The run store.
        run_id: A run.
        places: Places among its evaluation images, as ``ChangedAnswer.index``.
        paired: Both networks' answers: masks and boxes are drawn, the original's beside the compressed one's.

    Returns:
        Addresses by place; places that are not there are left out.

    Raises:
        QafError: If the model or the images are not here, and none came with an import.
    """
    try:
        return _read_pictures(store, run_id, places, paired)
    except (QafError, OSError):
        kept = read_json(store.run_folder(run_id) / PICTURES_NAME)
        if not isinstance(kept, dict):
            raise
        return {
            int(place): address
            for place, address in kept.items()
            if place.isdecimal() and int(place) in places and isinstance(address, str)
        }


def _read_pictures(
    store: Store, run_id: str, places: Sequence[int], paired: PairedPredictions | None
) -> dict[int, str]:
    record = store.run(run_id)
    images = load_evaluation_images(
        record.request, source_of(record.request, store.workspace), store.workspace
    )
    valid = [place for place in places if 0 <= place < len(images)]
    pixels = images.read(valid)
    if paired is None or paired.task not in MARKED_TASKS:
        return {place: image_address(picture) for place, picture in zip(valid, pixels, strict=True)}
    return {place: _both(paired, place, picture) for place, picture in zip(valid, pixels, strict=True)}


def _both(paired: PairedPredictions, place: int, pixels: NDArray[np.uint8]) -> str:
    truth = of_image(paired.task, paired.targets, place)
    answers = (of_image(paired.task, arrays, place) for arrays in (paired.original, paired.compressed))
    return picture_address(beside([mark(pixels, paired.task, answer, truth) for answer in answers]))
