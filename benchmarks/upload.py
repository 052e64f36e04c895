"""How long a large upload takes, and how long it keeps others waiting; prints one JSON object.

python benchmarks/upload.py [--megabytes 200] [--browser /usr/bin/chromium]

Starts the dashboard on an empty workspace and opens two sessions of a headless Chromium. The first uploads a
zip of images and has it unpacked and checked; the second walks from page to page all the while. The zip holds
shipped images, enlarged and with noise, so that they are as many bytes as asked for.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model

ROOT = Path(__file__).resolve().parent.parent
MODEL, BASE = "inspection/resnet20", "cifar/resnet20"
SIDE_PX, NOISE = 512, 12
PAGES = ("Trade-offs", "Models")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--browser", default=os.environ.get("QAF_BROWSER", "/usr/bin/chromium"))
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "parts.zip"
        count = make_zip(archive, options.megabytes * 10**6)
        with served(Path(folder) / "workspace") as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS)
            measured = measure(browser, address, archive)
            browser.close()
        report = {
            "benchmark": "upload",
            "megabytes": round(archive.stat().st_size / 1e6, 1),
            "images": count,
            **measured,
            "cores": os.cpu_count(),
            "platform": platform.platform(),
        }
    print(json.dumps(report))


def make_zip(path: Path, size_bytes: int) -> int:
    """Write a zip of about this size with one folder a class; the number of images in it."""
    source = find_model(MODEL)
    images = load_images("builtin", source, split="evaluation", limit=512)
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, (SIDE_PX, SIDE_PX, 3))
    written = number = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as opened:
        while written < size_bytes:
            index = number % len(images)
            small = Image.fromarray(images.images[index])
            large = np.asarray(small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)).astype(int)
            rolled = np.roll(noise, 7 * number, axis=0)
            stream = io.BytesIO()
            Image.fromarray((large + rolled).clip(0, 255).astype(np.uint8)).save(
                stream, "PNG", compress_level=1
            )
            name = f"{images.classes[int(images.labels[index])]}/{number:05d}.png"
            opened.writestr(name, stream.getvalue())
            written, number = written + stream.tell(), number + 1
    return number


@contextmanager
def served(workspace: Path) -> Iterator[str]:
    """``qaf app`` on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "qaf_core.cli", "app", "--port", str(port), "--no-browser"]
    server = subprocess.Popen(
        [*command, "--workspace", str(workspace)], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _try in range(300):
            try:
                opener.open(f"{address}/_stcore/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def measure(browser: Any, address: str, archive: Path) -> dict[str, float]:
    """Upload in one session while the other goes from page to page; seconds."""
    uploading, other = (browser.new_context().new_page() for _session in range(2))
    for page in (uploading, other):
        page.set_default_timeout(300_000)
        page.goto(f"{address}/models")
        page.get_by_role("heading", name="Add your own").wait_for()
    time.sleep(8)  # the worker loads torch meanwhile
    idle = [walk(other) for _turn in range(6)]
    fill_form(uploading)
    field = uploading.get_by_label("or a path on this computer").nth(1)
    began = time.perf_counter()
    uploading.locator("input[type=file]").nth(1).set_input_files(str(archive))
    during_upload = walk_until(other, field.is_disabled)
    uploaded = time.perf_counter()
    button = uploading.get_by_test_id("stMain").get_by_role("button", name="Check", exact=True).last
    button.click()
    done = uploading.get_by_text("The original is right on")
    during_check = walk_until(other, done.is_visible)
    return {
        "upload_seconds": round(uploaded - began, 2),
        "longest_answer_seconds": round(max(during_upload), 2),
        "unpack_and_check_seconds": round(time.perf_counter() - uploaded, 2),
        "longest_answer_while_unpacking_seconds": round(max(during_check), 2),
        "idle_answer_seconds_median": round(statistics.median(idle), 2),
        "idle_answer_seconds_longest": round(max(idle), 2),
    }


def fill_form(page: Any) -> None:
    """Everything but the images."""
    source = find_model(MODEL)
    page.get_by_label("Name", exact=True).fill("my/parts")
    architecture = page.get_by_role("combobox", name="Architecture")
    architecture.click()
    architecture.fill(BASE)
    architecture.press("Enter")
    page.get_by_label("Class names (optional)").fill("\n".join(source.classes))
    page.get_by_text("How the images are prepared").click()
    for label, value in (
        ("Mean", ", ".join(map(str, source.preprocessing.mean))),
        ("Standard deviation", ", ".join(map(str, source.preprocessing.std))),
        ("Size, px", str(source.input_shape[1])),
    ):
        field = page.get_by_role("textbox", name=label, exact=True)
        field.fill(value)
        field.press("Enter")
    weights = page.get_by_label("or a path on this computer").first
    weights.fill(str(source.weights))
    weights.press("Enter")
    time.sleep(3)


def walk(page: Any) -> float:
    """Go to another page and back to this one; the longer of the two, in seconds."""
    times = []
    for name in PAGES:
        began = time.perf_counter()
        page.get_by_role("link", name=name).first.click()
        page.get_by_role("heading", name=name, exact=True).wait_for()
        times.append(time.perf_counter() - began)
    return max(times)


def walk_until(page: Any, ended: Callable[[], bool]) -> list[float]:
    """Walk from page to page until something has happened elsewhere; how long each answer took."""
    times = [walk(page)]
    while not ended():
        times.append(walk(page))
    return times


if __name__ == "__main__":
    main()
