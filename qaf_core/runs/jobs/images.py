"""The images of a run, the same whenever they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qaf_core.data.load import load_images, load_pair

if TYPE_CHECKING:
    from qaf_core.data.load import ImageSet
    from qaf_core.data.models.source import ModelSource
    from qaf_core.runs.store.request import ImagesRequest

CALIBRATION_IMAGES = 512
CALIBRATION_IMAGES_GIVEN = 1024


def load_run_images(
    request: ImagesRequest,
    source: ModelSource,
    workspace: Path,
    on_read: Callable[[int, int], None] | None = None,
) -> tuple[ImageSet, ImageSet | None]:
    """Calibration images, and those for evaluation: None for built-in ones, drawn later.

    Args:
        request: What was asked for.
        source: The model.
        workspace: What is unpacked or decoded is kept there.
        on_read: Told how many of how many pictures are read.

    Raises:
        DataError: If either cannot be found or read, or does not fit the model.
    """
    data = request.data if request.calibration is None else request.calibration
    cache = workspace / "cache"
    if request.data == "builtin":
        limit = CALIBRATION_IMAGES if data == "builtin" else CALIBRATION_IMAGES_GIVEN
        calibration = load_images(
            data, source, split="calibration", limit=limit, seed=request.seed, cache=cache, on_read=on_read
        )
        return calibration, None
    images, calibration = load_pair(
        request.data,
        request.calibration,
        source,
        evaluation_limit=request.images,
        calibration_limit=CALIBRATION_IMAGES if data == "builtin" else CALIBRATION_IMAGES_GIVEN,
        seed=request.seed,
        cache=cache,
        on_read=on_read,
    )
    return calibration, images


def load_evaluation_images(request: ImagesRequest, source: ModelSource, workspace: Path) -> ImageSet:
    """The images a run is evaluated on.

    Raises:
        DataError: If they cannot be found or read, or do not fit the model.
    """
    images = None if request.data == "builtin" else load_run_images(request, source, workspace)[1]
    if images is None:
        images = load_images(request.data, source, split="evaluation", limit=request.images)
    return images
