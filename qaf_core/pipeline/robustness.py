"""How two networks take images that are unlike those they were fitted on.

Noise, blur, brightness, JPEG and small shifts, each at five severities (after Hendrycks & Dietterich 2019).
Every image is seen under each disturbance at one severity, spread evenly: so a thousand images tell as much
of a disturbance as of the undisturbed images, at a fifth of the time that all severities of all take.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from qaf_core.data.load import BATCH_SIZE, ImageSet, to_batches
from qaf_core.data.models.outputs import plain_scores
from qaf_core.errors import DataError
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.tasks import Arrays, Task, predict
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.data.models.source import ModelSource

SEVERITIES = 5
#: Strength of each disturbance at each severity. Lengths are of an image of ``_SIDE_PX`` and grow with it.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (0.02, 0.04, 0.08, 0.12, 0.18),  # standard deviation, of the whole range
    "blur": (0.4, 0.6, 0.9, 1.3, 1.8),  # standard deviation, pixels
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # brighter or darker by this share
    "jpeg": (80, 60, 40, 25, 12),  # quality
    "shift": (1, 2, 3, 5, 7),  # pixels
}
_SIDE_PX = 64
ODD_IMAGES = 8
SALIENCY_IMAGES, SALIENCY_GRID = 8, 6

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two networks for the same task, and how they are fed."""

    task: Task
    source: ModelSource
    original: nn.Module
    compressed: nn.Module

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Original and compressed."""
        return self.original, self.compressed


def check_robustness(
    pair: Pair,
    images: ImageSet,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure both networks on disturbed, broken and foreign images.

    Args:
        pair: The networks.
        images: Evaluation images with their targets.
        seed: Of noise, directions and severities.
        progress: Told how far it is (stage ``robustness``); may stop it.

    Returns:
        A JSON-ready object: ``n``; ``clean`` and ``disturbances`` with the metric of both networks (by
        severity: original, compressed, extra_drop, drop_ci95); ``worst``, the disturbance under which the
        compressed network demonstrably loses most more than undisturbed, or None; ``odd`` inputs; and
        ``saliency``, None where outputs are no class scores.

    Raises:
        DataError: If there are fewer images than severities.
        RunCancelled: If stopped.
    """
    if len(images) < SEVERITIES:
        raise DataError(
            "too few images to disturb",
            got=len(images),
            expected=say("at least {least}", least=SEVERITIES),
        )
    kinds = [name for name in STRENGTHS if name != "shift" or pair.task.name == "classification"]
    total, done = 2 * len(images) * (len(kinds) + 1), 0
    progress = progress or Progress()

    def report(count: int) -> None:
        nonlocal done
        done += count
        message = say("Disturbing {count:,} images", count=len(images))
        progress.step("robustness", message, min(1.0, done / total))

    clean = _measure(pair, images, report)
    severities = np.random.default_rng(seed).permutation(len(images)) % SEVERITIES
    disturbances = {
        kind: _disturbed(pair, images, kind, (severities + place) % SEVERITIES, clean, seed, report)
        for place, kind in enumerate(kinds)
    }
    return {
        "n": len(images),
        "metric": clean["metric"],
        "clean": {key: clean[key] for key in ("original", "compressed", "drop", "drop_ci95")},
        "disturbances": disturbances,
        "worst": _worst(disturbances, clean["drop"]),
        "odd": [_odd(pair, images, name, pixels) for name, pixels in odd_images(images, seed).items()],
        "saliency": _saliency(pair, images) if pair.task.name == "classification" else None,
    }


def disturb(pixels: Pixels, kind: str, severity: int, generator: np.random.Generator) -> Pixels:
    """Disturbed copies of images.

    Args:
        pixels: ``(N, H, W, C)``.
        kind: A key of ``STRENGTHS``.
        severity: 1 to 5.
        generator: Of noise and directions.
    """
    strength = STRENGTHS[kind][severity - 1]
    length = strength * max(pixels.shape[1:3]) / _SIDE_PX
    if kind == "noise":
        noisy = pixels + 255 * strength * generator.normal(size=pixels.shape)
        return noisy.round().clip(0, 255).astype(np.uint8)
    if kind == "blur":
        from scipy.ndimage import gaussian_filter

        blurred: Pixels = gaussian_filter(pixels, (0, length, length, 0), mode="nearest")
        return blurred
    if kind == "brightness":
        signs = np.where(np.arange(len(pixels)) % 2, 1, -1)[:, None, None, None]
        return (pixels * (1 + strength * signs)).round().clip(0, 255).astype(np.uint8)
    if kind == "jpeg":
        return np.stack([_through_jpeg(image, int(strength)) for image in pixels])
    return np.stack([_shifted(image, max(1, round(length)), generator) for image in pixels])


def _through_jpeg(image: Pixels, quality: int) -> Pixels:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        stream, "JPEG", quality=quality
    )
    return np.asarray(Image.open(stream), np.uint8).reshape(image.shape)


def _shifted(image: Pixels, by: int, generator: np.random.Generator) -> Pixels:
    """Moved along one axis; what comes in repeats the edge."""
    axis, forward = int(generator.integers(2)), bool(generator.integers(2))
    width = [(0, 0)] * 3
    width[axis] = (by, 0) if forward else (0, by)
    padded = np.pad(image, width, mode="edge")
    start = 0 if forward else by
    return padded.take(range(start, start + image.shape[axis]), axis=axis)


def _measure(pair: Pair, images: ImageSet, report: Callable[[int], None]) -> dict[str, Any]:
    """Metric of both networks on the same images, and what the compressed one loses."""
    targets = pair.task.collate(images)
    predictions: list[Arrays] = []
    for network in pair.networks():
        before = 0

        def count(done: int) -> None:
            nonlocal before
            report(done - before)
            before = done

        predictions.append(predict(pair.task, network, to_batches(images, pair.source, BATCH_SIZE), count))
    drop, interval = pair.task.compare(predictions[0], predictions[1], targets)
    first, second = (pair.task.metric(one, targets, images.classes) for one in predictions)
    return {
        "metric": first.metric, "original": first.value, "compressed": second.value, "drop": drop,
        "drop_ci95": list(interval),
    }  # fmt: skip


def _disturbed(
    pair: Pair,
    images: ImageSet,
    kind: str,
    severities: NDArray[np.intp],
    clean: Mapping[str, Any],
    seed: int,
    report: Callable[[int], None],
) -> dict[str, list[Any]]:
    rows = []
    for severity in range(SEVERITIES):
        chosen = np.flatnonzero(severities == severity)
        subset = images.take(chosen, images.name)
        generator = np.random.default_rng((seed, list(STRENGTHS).index(kind), severity))
        pixels = disturb(subset.read(range(len(subset))), kind, severity + 1, generator)
        row = _measure(pair, replace(subset, images=pixels), report)
        rows.append({**row, "n": len(chosen), "extra_drop": row["drop"] - clean["drop"]})
    return {
        key: [row[key] for row in rows] for key in ("n", "original", "compressed", "extra_drop", "drop_ci95")
    }


def _worst(disturbances: Mapping[str, Mapping[str, list[Any]]], clean_drop: float) -> dict[str, Any] | None:
    rows = [
        {"disturbance": kind, "severity": place + 1, "extra_drop": extra}
        for kind, row in disturbances.items()
        for place, extra in enumerate(row["extra_drop"])
        if row["drop_ci95"][place][0] > clean_drop
    ]
    return max(rows, key=lambda row: row["extra_drop"], default=None)


def odd_images(images: ImageSet, seed: int = 0) -> dict[str, Pixels]:
    """Inputs that are no images of the task: ``(ODD_IMAGES, H, W, C)`` by name."""
    real = images.read(range(min(ODD_IMAGES, len(images))))
    shape = (ODD_IMAGES, *real.shape[1:])
    generator = np.random.default_rng(seed)
    rows, columns = np.indices(shape[1:3])
    widths = np.arange(1, ODD_IMAGES + 1)[:, None, None]
    board = 255 * ((rows // widths + columns // widths) % 2).astype(np.uint8)
    broken = real.copy()
    broken[:, shape[1] // 2 :] = 0  # a transfer that stopped half-way
    return {
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "broken": broken,
        "random": generator.integers(0, 256, shape, dtype=np.uint8),
        "foreign": np.repeat(board[..., None], shape[3], axis=3),
    }


def _odd(pair: Pair, images: ImageSet, name: str, pixels: Pixels) -> dict[str, Any]:
    """What both networks make of inputs that are none: whether they agree, and how sure they are."""
    subset = replace(images.take(np.zeros(len(pixels), np.intp), name), images=pixels)
    try:
        predictions = [
            predict(pair.task, network, to_batches(subset, pair.source, BATCH_SIZE))
            for network in pair.networks()
        ]
    except DataError as error:
        return {"input": name, "finite": False, "detail": str(error)}
    sure = [one["confidence"][:, 0].mean() if "confidence" in one else None for one in predictions]
    return {
        "input": name,
        "finite": True,
        "agreement": pair.task.agreement(*predictions),
        "original_confidence": None if sure[0] is None else float(sure[0]),
        "compressed_confidence": None if sure[1] is None else float(sure[1]),
    }


def _saliency(pair: Pair, images: ImageSet) -> dict[str, Any]:
    """Whether both networks look at the same places: correlation of their occlusion maps.

    A patch of mean colour hides a part of the image; how far the score of the original's answer falls is the
    part's weight. This needs no gradients, and so works for every network.
    """
    chosen = np.linspace(0, len(images) - 1, min(SALIENCY_IMAGES, len(images))).round().astype(np.intp)
    values = []
    for image in images.read(chosen):
        maps = [_occlusion_map(network, pair, image, images) for network in pair.networks()]
        if min(part.std() for part in maps) > 0:
            values.append(float(np.corrcoef(maps[0], maps[1])[0, 1]))
    return {
        "agreement": float(np.mean(values)) if values else None,
        "images": len(chosen),
        "grid": SALIENCY_GRID,
    }


@torch.inference_mode()
def _occlusion_map(network: nn.Module, pair: Pair, image: Pixels, images: ImageSet) -> NDArray[np.float64]:
    """How far the score of the best class falls with each part hidden, ``(SALIENCY_GRID²,)``."""
    hidden = np.stack([image, *_hidden(image)])
    subset = replace(images.take(np.zeros(len(hidden), np.intp), images.name), images=hidden)
    scores = torch.cat(
        [
            plain_scores(network(batch), len(batch), by_pixel=False)
            for batch, _ in to_batches(subset, pair.source, BATCH_SIZE)
        ]
    ).double()
    best = scores[:, int(scores[0].argmax())]
    falls: NDArray[np.float64] = (best[0] - best[1:]).cpu().numpy()
    return falls


def _hidden(image: Pixels) -> Iterator[Pixels]:
    height, width = image.shape[:2]
    rows = np.linspace(0, height, SALIENCY_GRID + 1).round().astype(int)
    columns = np.linspace(0, width, SALIENCY_GRID + 1).round().astype(int)
    colour = image.mean(axis=(0, 1)).round().astype(np.uint8)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            covered = image.copy()
            covered[top:bottom, left:right] = colour
            yield covered
