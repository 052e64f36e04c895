"""In a real browser: links to runs of every kind, on every page, show that run or say why they do not."""

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

import pytest

from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME
from tests.conftest import seed_finished_run, seed_plan
from tests.dashboard.test_browser import BROWSERS, FLAGS, settle, wait_for_server

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "20200101-000000-abcdef"
# The dashboard as it is, but nobody carries out what is asked for.
SCRIPT = """
from dashboard import app
from dashboard.widgets import ui
ui.keep_worker = lambda: None
app.main()
"""


def packed(store: Store, run_id: str) -> str:
    folder = store.run_folder(run_id)
    folder.mkdir(parents=True)
    (folder / PACKED_NAME).write_bytes(b"\0" * 1000)
    return run_id


def seed(workspace: Path) -> dict[str, str]:
    """A workspace with a run of every kind; their ids."""
    with Store(workspace) as store:
        ids = {"unknown": UNKNOWN, "finished": packed(store, seed_finished_run(store, value=0.9))}
        run = store.run(ids["finished"])
        ids["stopped"] = packed(store, seed_finished_run(store, status="cancelled", done=2))
        ids["foreign"] = packed(store, store.create_run(RunRequest(model="my/gone", plan=dict(run.plan_row))))
        store.finish(
            ids["foreign"], "completed", {**run.result, "run_id": ids["foreign"], "model": "my/gone"}
        )
        ids["finetuned"] = store.create_run(
            RunRequest(model=run.model, plan=dict(run.plan_row), name="tuned")
        )
        told = {"run": ids["finished"], "best_epoch": 3, "epochs": 5, "before": 0.2, "after": 0.1,
                "trains": "scales"}  # fmt: skip
        store.finish(ids["finetuned"], "completed", {**run.result, "finetune": told})
        for run_id in (ids["foreign"], ids["finetuned"]):
            for position, row in enumerate(run.layer_rows):
                store.put_layer(run_id, position, row, {})
        for status in ("queued", "interrupted", "deleted"):
            ids[status] = store.create_run(RunRequest(model=run.model, plan=seed_plan("cp", 2.0)))
        store.finish(ids["interrupted"], "interrupted")
        with store.transaction() as connection:
            connection.execute("DELETE FROM runs WHERE id = ?", (ids["deleted"],))
    return ids


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The dashboard over that workspace: its address and the runs."""
    folder = tmp_path_factory.mktemp("links")
    ids = seed(folder / "workspace")
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
        yield f"http://127.0.0.1:{port}", ids
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page(served: tuple[str, dict[str, str]]) -> Iterator[Any]:
    """A page of a headless system Chromium."""
    found = os.environ.get("QAF_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian package chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
        view = opened.new_page(viewport={"width": 1440, "height": 1200})
        view.set_default_timeout(60_000)
        yield view
        opened.close()


GONE = "There is no run {run} in this workspace"
MISSING = "The model my/gone is not in this workspace"
# The seeded plan has five of the model's twenty layers.
OTHER_LAYERS = "The earlier plan names other layers than this model has"
SAID = {
    "unknown": (GONE, GONE, GONE, GONE),
    "deleted": (GONE, GONE, GONE, GONE),
    "interrupted": ("ended before it was done", "was interrupted", "was interrupted", OTHER_LAYERS),
    "queued": ("Waiting to start", "has not started yet", "has not started yet", OTHER_LAYERS),
    "stopped": (
        "of 5 layers, 2 layers were compressed",
        "2 of 5 layers are",
        "2 of 5 layers are",
        OTHER_LAYERS,
    ),
    "foreign": ("Change against the original", "Error of each layer", MISSING, MISSING),
}


@pytest.mark.parametrize("kind", SAID)
def test_a_link_shows_its_run_or_says_why_not(
    page: Any, served: tuple[str, dict[str, str]], kind: str
) -> None:
    address, ids = served
    for name, said in zip(("run", "layers", "export", "explore"), SAID[kind], strict=True):
        page.goto(f"{address}/{name}?run={ids[kind]}")
        page.get_by_text(said.format(run=ids[kind])).first.wait_for()
        settle(page)
        downloads = page.get_by_test_id("stDownloadButton")
        offered = 1 if name == "export" and kind in ("stopped", "foreign") else 0
        if offered:
            downloads.first.wait_for()
        assert downloads.count() == offered, (name, kind)
        if name == "layers":
            charts = page.locator(".js-plotly-plot")
            if kind in ("stopped", "foreign"):
                charts.first.wait_for()
            else:
                assert charts.count() == 0, kind
        if kind == "foreign":
            for label in ("Make and check it", "Measure", "Make the kit", "Start fine-tuning"):
                assert page.get_by_role("button", name=label, exact=True).count() == 0, (name, label)
    page.goto(f"{address}/tradeoffs?model=no/such")
    page.get_by_text("No run of no/such has been measured").wait_for()


def test_the_run_it_began_with_changes_the_address(page: Any, served: tuple[str, dict[str, str]]) -> None:
    address, ids = served
    page.goto(f"{address}/run?run={ids['finetuned']}")
    page.get_by_role("button", name="The run it began with").click()
    page.wait_for_url(re.compile(rf"run={ids['finished']}"))
    page.reload()
    page.get_by_role("heading", name="joint 2").wait_for()
