"""In a real browser: five runs beside each other, a target and who passes it, deletion and its undoing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store
from tests.browser.test_run_links import ROOT, SCRIPT
from tests.conftest import seed_finished_run
from tests.dashboard.test_browser import BROWSERS, FLAGS, settle, wait_for_server

Served = tuple[str, list[str], Path]
TICK = {"x": 20, "y": 52}  # of the first row, in the table's canvas


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The dashboard over five finished runs: its address, the runs and the workspace."""
    folder = tmp_path_factory.mktemp("compare")
    runs = (("joint", 2.0, 0.921), ("joint", 3.0, 0.897), ("paper", 2.0, 0.842), ("sequential", 2.0, 0.9),
            ("dense", 1.0, 0.931))  # fmt: skip
    with Store(folder / "workspace") as store:
        ids = [seed_finished_run(store, method=how, ratio=ratio, value=value) for how, ratio, value in runs]
    (folder / "page.py").write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--server.port", str(port), "--server.headless", "true", "--browser.gatherUsageStats", "false"]
    environment = {**os.environ, "QAF_WORKSPACE": str(folder / "workspace"), "PYTHONPATH": str(ROOT)}
    log = folder / "page.log"
    with log.open("wb") as messages:
        server = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", str(folder / "page.py"), *flags],
            cwd=ROOT / "dashboard", env=environment, stdout=messages, stderr=messages,
        )  # fmt: skip
    try:
        wait_for_server(f"http://127.0.0.1:{port}/_stcore/health", server, log)
        yield f"http://127.0.0.1:{port}", ids, folder / "workspace"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of a headless system Chromium."""
    found = os.environ.get("QAF_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian package chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
        view = opened.new_page(viewport={"width": 1440, "height": 1600}, reduced_motion="reduce")
        view.set_default_timeout(60_000)
        yield view
        opened.close()


def test_five_runs_stand_beside_each_other_by_their_address(page: Any, served: Served) -> None:
    address, ids, _ = served
    page.goto(f"{address}/compare?{'&'.join(f'run={run_id}' for run_id in ids)}")
    page.locator(".qaf-table").nth(1).wait_for()
    settle(page)
    heads = page.locator(".qaf-table").first.locator("th").all_inner_texts()
    assert heads[2:] == ["joint 2", "joint 3", "paper 2", "sequential 2", "dense 1"]
    page.get_by_role("radio", name="Errors").click()
    page.get_by_text("joint 2: outputs").wait_for()
    page.wait_for_url(re.compile("what=errors"))
    page.reload()
    page.get_by_text("joint 2: outputs").wait_for()
    assert page.locator(".qaf-table td.changed").count() > 5


def test_a_typed_target_says_who_passes_and_stays_in_the_address(page: Any, served: Served) -> None:
    address, _, _ = served
    page.goto(f"{address}/tradeoffs")
    box = page.get_by_label("Target", exact=True)
    box.fill("≥ 92 %, ≤ 80 kB")
    box.press("Enter")
    said = page.get_by_text("1 of 5 runs keep to: Accuracy ≥ 92.0 % · Size of the packed file ≤ 80 kB.")
    said.wait_for()
    page.wait_for_url(re.compile("target="))
    page.reload()
    said.wait_for()
    settle(page)
    assert page.locator(".js-plotly-plot .shapelayer path, .js-plotly-plot .layer-below path").count() >= 2
    page.goto(f"{address}/tradeoffs?target={quote('≤ 5 parsecs')}")
    page.get_by_text("this part of the target cannot be read").wait_for()


def test_runs_are_deleted_and_brought_back(page: Any, served: Served) -> None:
    address, ids, workspace = served
    page.goto(f"{address}/run")
    page.get_by_test_id("stDataFrame").wait_for()
    settle(page)
    page.get_by_test_id("stDataFrame").first.click(position=TICK, force=True)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("1 run was deleted").wait_for()
    with Store(workspace) as store:
        assert len(list_rows(store)) == len(ids) - 1
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("1 run was deleted").wait_for(state="detached")
    settle(page)
    with Store(workspace) as store:
        assert {row.id for row in list_rows(store)} == set(ids)
