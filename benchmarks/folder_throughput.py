"""How fast an image folder is read, against the decoder alone, and in how much memory; prints one JSON.

    python benchmarks/folder_throughput.py [--images 2000] [--cores 2] [--repeats 3]

`decoder` opens, converts, resizes and cuts the same files with Pillow in one process and does nothing else;
`decoder_processes` does so in one process a core, which is the limit.
`first_read` is `load_images` on the folder (listing, decoding, digests, the temporary file) and one pass over
all pixels; `second_read` is the pass a second network costs. Peak memory is that of a process of its own that
loads the folder and makes every batch, by the number of images.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.inspection import dataset
from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.runs.jobs.environment import peak_memory_bytes

WIDTH, HEIGHT = 400, 300
QUALITY = 90
DIFFERENT = 200  # pictures drawn; the others are turned and mirrored
COUNTS = (500, 1000, 2000)


def make_source() -> ModelSource:
    """A classifier of the inspection classes that takes 224×224 pixels."""
    source = find_model("inspection/resnet18")
    steps = replace(source.preprocessing, crop=(224, 224))
    return replace(source, preprocessing=steps, shipped=False, default_data=None)


def make_folder(folder: Path, count: int) -> None:
    """JPEGs put together of rendered surfaces, with one sub-folder a class."""
    across, down = -(-WIDTH // dataset.IMAGE_SIZE), -(-HEIGHT // dataset.IMAGE_SIZE)
    tiles = dataset.render(DIFFERENT, seed=5).images
    generator = np.random.default_rng(0)
    for number in range(count):
        chosen = tiles[generator.integers(0, len(tiles), (down, across))]
        mosaic = chosen.transpose(0, 2, 1, 3, 4).reshape(down * chosen.shape[2], -1, 3)
        place = folder / dataset.CLASSES[number % len(dataset.CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaic[:HEIGHT, :WIDTH]).save(place / f"{number:05d}.jpg", quality=QUALITY)


def decode_alone(files: list[Path], source: ModelSource) -> None:
    """What any reader must do, and nothing else."""
    steps = source.preprocessing
    for file in files:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        fit = steps.fit(picture.size)
        np.asarray(picture.resize(fit.size, Image.Resampling.BILINEAR).crop(fit.cut))


def pass_over(images: ImageSet) -> None:
    """Read every pixel once."""
    count = sum(len(chunk) for chunk in images.in_chunks(32))
    if count != len(images):
        raise SystemExit(f"read {count} of {len(images)} images")


def measure_peak(folder: str, count: int) -> None:
    """Print this process's peak memory before and after all batches are made of some images."""
    from qaf_core.data.load import to_batches

    source = make_source()
    warm = load_images(folder, source, split="evaluation", limit=64)
    for _ in to_batches(warm, source, 32):
        pass
    before = peak_memory_bytes()
    images = load_images(folder, source, split="evaluation", limit=count)
    for _ in to_batches(images, source, 32):
        pass
    print(json.dumps({"before": before, "after": peak_memory_bytes()}))


def peaks(folder: Path, counts: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Peak memory in MB by the number of images, each in a new process."""
    rows = {}
    for count in counts:
        command = [sys.executable, __file__, "--peak-of", str(folder), "--images", str(count)]
        memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows[str(count)] = {
            "peak_mb": round(memory["after"] / 1e6, 1),
            "above_64_images_mb": round((memory["after"] - memory["before"]) / 1e6, 1),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        measure_peak(options.peak_of, options.images)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    source = make_source()
    kinds = ("decoder", "decoder_processes", "first_read", "second_read")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as place,
        ProcessPoolExecutor(options.cores, mp_context=context) as pool,
    ):
        folder = Path(place) / "parts"
        make_folder(folder, options.images)
        files = sorted(folder.rglob("*.jpg"))
        parts = [files[part :: options.cores] for part in range(options.cores)]
        decode_alone(files[:100], source)
        list(pool.map(decode_alone, [files[:50]] * options.cores, [source] * options.cores))
        for _ in range(options.repeats):
            started = time.perf_counter()
            decode_alone(files, source)
            seconds["decoder"].append(time.perf_counter() - started)
            started = time.perf_counter()
            list(pool.map(decode_alone, parts, [source] * options.cores))
            seconds["decoder_processes"].append(time.perf_counter() - started)
            started = time.perf_counter()
            images = load_images(str(folder), source, split="evaluation")
            pass_over(images)
            seconds["first_read"].append(time.perf_counter() - started)
            started = time.perf_counter()
            pass_over(images)
            seconds["second_read"].append(time.perf_counter() - started)
        memory = peaks(folder, tuple(count for count in COUNTS if count <= options.images))
        size = sum(file.stat().st_size for file in files) / len(files)
    rates = {name: sorted(len(files) / value for value in values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "benchmark": "folder_throughput",
                "images": len(files),
                "picture": f"{WIDTH}×{HEIGHT} JPEG, {size / 1000:.0f} kB on average",
                "cores": options.cores,
                "images_per_second": {
                    name: {
                        "median": round(float(np.median(values))),
                        "range": [round(values[0]), round(values[-1])],
                    }
                    for name, values in rates.items()
                },
                **{
                    f"first_read_over_{kind}": round(
                        float(np.median(seconds[kind]) / np.median(seconds["first_read"])), 2
                    )
                    for kind in ("decoder", "decoder_processes")
                },
                "peak_memory": memory,
                "load_average": round(os.getloadavg()[0], 2),
                "pillow": PIL.__version__,
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
