"""In a real browser: choose, edit, run, stop a run, finish another, find it again; upload, check and add."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dashboard.widgets.ui import plain
from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.store import Store
from tests.browsing import ROOT, free_port, open_browser, serve, settle

from .test_common import HOSTILE

UPLOAD_BYTES = 20_000_000
IMAGES, SIDE = 32, 768


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless system Chromium."""
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """``qaf app`` on a free port over an empty workspace: its address and the workspace."""
    workspace = tmp_path_factory.mktemp("browser") / "workspace"
    port = free_port()
    command = [sys.executable, "-m", "qaf_core.cli", "app", "--port", str(port), "--no-browser"]
    with serve(
        [*command, "--workspace", str(workspace)], port, workspace.parent / "app.log", cwd=ROOT
    ) as address:
        yield address, workspace


@pytest.fixture
def page(browser: Any, app: tuple[str, Path]) -> Iterator[Any]:
    """A browser page that fails the test if it asks anything of another machine."""
    context = browser.new_context(viewport={"width": 1440, "height": 1500}, reduced_motion="reduce")
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    opened.screenshot(path=str(app[1].parent / "last.png"))  # pytest keeps the folder of the last runs
    context.close()
    outside = [url for url in asked if not url.startswith((app[0], "ws://127.0.0.1", "data:", "blob:"))]
    assert not outside


def set_cell(page: Any, layer: str, column: str, text: str) -> None:
    """Type into a cell of the layer table."""
    settle(page)
    cell = page.get_by_label(f"{column}, {layer}", exact=True)
    cell.fill(text)
    cell.press("Enter")


def start(page: Any, name: str) -> str:
    """Press Run and follow to the run's page; the run's id, from the address."""
    settle(page)
    field = page.get_by_label("Name of the run")
    field.fill(name)
    field.press("Enter")
    settle(page)
    page.get_by_test_id("stMain").get_by_role("button", name="Run", exact=True).click()
    page.wait_for_url(re.compile(r"/run\?run="))
    page.get_by_role("heading", name=name).wait_for()
    return str(page.url).rpartition("run=")[2]


def saved(workspace: Path, run_id: str) -> RunRecord:
    with Store(workspace) as store:
        return store.run(run_id)


def choose_digits(page: Any, address: str) -> None:
    page.goto(f"{address}/explore")
    card = page.locator('[class*="st-key-card-"]').filter(has_text="Handwritten digits")
    card.get_by_role("button").click()
    page.get_by_text("smaller than 360 kB").wait_for()
    settle(page)


def test_stop_a_run(page: Any, app: tuple[str, Path]) -> None:
    address, workspace = app
    choose_digits(page, address)
    page.get_by_role("button", name="Gentle").click()  # higher ranks: time enough to stop
    run_id = start(page, "to be stopped")
    page.get_by_text("Layer being solved").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped on request").wait_for()
    run = saved(workspace, run_id)
    assert run.status == "cancelled"
    assert 0 < len(run.layers) <= 5
    assert run.compressed is not None


def test_edit_run_and_compare(page: Any, app: tuple[str, Path]) -> None:
    address, workspace = app
    choose_digits(page, address)
    page.get_by_role("button", name="Gentle").click()  # higher ranks and more bits: time enough to look
    size = page.get_by_test_id("stMetricValue").first

    # A rank out of range is said at the row, and Run is closed.
    set_cell(page, "features.3", "Rank", "9999")
    page.get_by_text("These rows cannot be used as they are").wait_for()
    assert page.get_by_role("button", name="Run", exact=True).is_disabled()

    # Another rank and other bits: the prediction follows.
    before = size.inner_text()
    set_cell(page, "features.3", "Rank", "40")
    page.get_by_text("These rows cannot be used as they are").wait_for(state="detached")
    set_cell(page, "features.7", "Bits", "8")
    page.wait_for_function(
        "before => document.querySelector('[data-testid=stMetricValue]').innerText !== before", arg=before
    )

    # Live progress, which a reload finds again.
    run_id = start(page, "to be finished")
    page.get_by_text("Layer being solved").wait_for()
    curves = page.get_by_test_id("stVegaLiteChart").first
    curves.locator("path[aria-roledescription='line mark']").first.wait_for()
    page.reload()
    page.get_by_role("heading", name="to be finished").wait_for()
    page.get_by_text("Against the original").wait_for(timeout=120_000)
    run = saved(workspace, run_id)
    assert run.status == "completed"
    rows = {row.name: row for row in run.plan.layers}
    assert (rows["features.3"].rank, rows["features.3"].bits) == (40, 6)
    assert rows["features.7"].bits == 8

    # It stands on the Trade-offs page, and a click on its point opens it.
    page.get_by_role("link", name="Compare with other runs").click()
    page.get_by_role("heading", name="Trade-offs").wait_for()
    points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path.point")
    points.first.wait_for()
    settle(page)
    assert "to be finished" in page.get_by_test_id("stDataFrame").first.text_content()
    points.first.scroll_into_view_if_needed()
    settle(page)
    box = points.first.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_url(re.compile(rf"run={run_id}"))
    page.get_by_role("heading", name="to be finished").wait_for()


def image_zip(path: Path, size_bytes: int) -> Path:
    """A zip of at least this size: shipped images, enlarged and with noise, in one folder a class."""
    images = load_images("builtin", find_model("inspection/resnet20"), split="evaluation", limit=IMAGES)
    noise = np.random.default_rng(0).integers(-12, 13, (SIDE, SIDE, 3))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as opened:
        for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            large = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE))).astype(int) + noise
            stream = io.BytesIO()
            Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(stream, "PNG", compress_level=1)
            opened.writestr(f"parts/{images.classes[int(label)]}/{number}.png", stream.getvalue())
    assert path.stat().st_size > size_bytes
    return path


def type_in(page: Any, label: str, text: str) -> None:
    field = page.get_by_role("textbox", name=label, exact=True)
    field.fill(text)
    field.press("Control+Enter" if "\n" in text else "Enter")
    settle(page)


def test_upload_check_and_add(page: Any, app: tuple[str, Path], tmp_path: Path) -> None:
    address, workspace = app
    source = find_model("inspection/resnet20")
    page.goto(f"{address}/models")
    page.get_by_role("heading", name="Add your own").wait_for()
    settle(page)
    type_in(page, "Name", "my/parts")
    architecture = page.get_by_role("combobox", name="Architecture")
    architecture.fill("cifar/resnet20")
    architecture.press("Enter")
    settle(page)
    type_in(page, "Class names (optional)", "\n".join(source.classes))
    page.get_by_text("How the images are prepared").click()
    for label, value in (("Size, px", "64"), ("Mean", "0, 0, 0"), ("Standard deviation", "1, 1, 1")):
        type_in(page, label, value)
    uploads = page.locator("input[type=file]")
    uploads.first.set_input_files(str(source.weights))
    settle(page)
    uploads.nth(1).set_input_files(str(image_zip(tmp_path / "parts.zip", UPLOAD_BYTES)))
    paths = page.get_by_label("or a path on this computer")
    page.wait_for_function("() => !document.body.innerText.includes('Still to give')")
    assert paths.first.is_disabled()

    # Images are not normalised as in training: that is found, and mended.
    page.get_by_role("button", name="Check", exact=True).last.click()
    mend = page.get_by_role("button", name="Use what was found")
    mend.wait_for(timeout=120_000)
    settle(page)
    mend.click()
    page.get_by_text("Nothing is wrong with class order").wait_for(timeout=120_000)
    page.locator(".qaf-preview figure").nth(8).wait_for()
    page.get_by_role("button", name="Add to this workspace").click()
    page.get_by_text("my/parts is ready to be compressed").wait_for()
    added = find_model("my/parts", workspace=workspace)
    assert added.classes == source.classes
    assert added.weights is not None
    assert added.weights.parent == workspace / "models"
    assert len(list((workspace / "data").glob("parts-*/*/*.png"))) == IMAGES
    settle(page)  # what is drawn anew would close it again
    page.get_by_text("Uploaded files").click()
    page.get_by_text("used by my/parts").first.wait_for()


@pytest.fixture
def text_app(tmp_path: Path) -> Iterator[str]:
    """A page of nothing but hostile texts made plain: its address."""
    script = tmp_path / "texts.py"
    script.write_text(
        f"import streamlit as st\nfor number, text in enumerate({[plain(text) for text in HOSTILE]!r}):\n"
        "    st.container(key=f'text-{number}').markdown(text)\n"
    )
    port = free_port()
    flags = ["--server.port", str(port), "--server.headless", "true", "--browser.gatherUsageStats", "false"]
    command = [sys.executable, "-m", "streamlit", "run", str(script), *flags]
    with serve(command, port, tmp_path / "texts.log") as address:
        yield address


def test_plain_text_is_drawn_as_it_stands(browser: Any, text_app: str) -> None:
    page = browser.new_page()
    page.goto(text_app)
    page.locator(f".st-key-text-{len(HOSTILE) - 1} p").wait_for()
    for number, text in enumerate(HOSTILE):
        drawn = page.locator(f".st-key-text-{number} [data-testid=stMarkdownContainer]")
        assert drawn.inner_text().replace("\u2060", "") == text
        assert drawn.inner_html().count("<") == 2, "a paragraph and nothing in it"
    page.close()
