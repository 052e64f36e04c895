"""Which faults the check of the original finds, and that it is silent when all is right; one JSON object.

Every shipped classifier and, where QAF_REAL_DATA names their folder, the real CIFAR-10 networks are given
right and with each fault, on images they were not trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qaf_core.data.load import ImageSet, load_images
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.pipeline.check.classifier import check_original

SHIPPED = ("digits/cnn", "inspection/resnet20", "inspection/vgg", "inspection/resnet18")
REAL = ("resnet20", "resnet32")


def sources() -> Iterator[tuple[ModelSource, str]]:
    """The networks, each with where its images come from."""
    for model_id in SHIPPED:
        yield find_model(model_id), "builtin"
    folder = os.environ.get("QAF_REAL_DATA")
    for name in REAL if folder else ():
        weights = Path(folder or "", f"cifar10_{name}.safetensors")
        yield find_model(f"cifar/{name}", weights), str(Path(folder or "", "cifar10_eval_2000.npz"))


def variants(source: ModelSource, images: ImageSet) -> dict[str, tuple[ModelSource, ImageSet]]:
    """The network right, and with each fault."""
    count, channels = len(source.classes), source.input_shape[0]
    shuffled = np.random.default_rng(3).permutation(count)
    exchanged = np.arange(count)
    exchanged[[1, 2]] = [2, 1]
    plain = replace(source.preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels)
    pixels = images.images[:]
    cases = {
        "right": (source, images),
        "classes shuffled": (source, replace(images, labels=shuffled[images.labels])),
        "two classes exchanged": (source, replace(images, labels=exchanged[images.labels])),
        "normalisation missing": (replace(source, preprocessing=plain), images),
        "0 to 255": (replace(source, preprocessing=replace(plain, std=(1 / 255,) * channels)), images),
    }
    if channels == 3:
        cases["bgr"] = (source, replace(images, images=np.ascontiguousarray(pixels[..., ::-1])))
    return cases


def measure(source: ModelSource, data: str, counts: list[int]) -> list[dict[str, Any]]:
    """A row for each fault and number of images."""
    model = build_model(source)
    images = load_images(data, source, split="evaluation", limit=max(counts))
    rows = []
    for fault, (fed, pictures) in variants(source, images).items():
        for count in counts:
            began = time.monotonic()
            result = check_original(model, fed, pictures, images=count)
            rows.append(
                {
                    "model": source.id,
                    "fault": fault,
                    "images": result.n,
                    "value": round(result.value, 4),
                    "found": [finding.kind for finding in result.findings],
                    "serious": result.serious is not None,
                    "blind_to_colours": result.blind_to_colours,
                    "seconds": round(time.monotonic() - began, 1),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="384,64", help="numbers of images, separated by commas")
    options = parser.parse_args()
    counts = [int(count) for count in options.images.split(",")]
    rows = [row for source, data in sources() for row in measure(source, data, counts)]
    faulty = [row for row in rows if row["fault"] != "right"]
    print(
        json.dumps(
            {
                "benchmark": "plausibility",
                "false_alarms": sum(bool(row["found"]) for row in rows if row["fault"] == "right"),
                "faults": len(faulty),
                "found": sum(bool(row["found"]) for row in faulty),
                "missed": [
                    f"{row['model']}, {row['fault']}, {row['images']} images"
                    for row in faulty
                    if not row["found"]
                ],
                "rows": rows,
                "load_average": round(os.getloadavg()[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
