"""A real browser, the dashboard served to it, and the wait until a page is still."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
# The dashboard as it is, but nobody carries out what is asked for.
SCRIPT = """
from dashboard import app
from dashboard.widgets import ui
ui.keep_worker = lambda: None
app.main()
"""


def require_chromium() -> str:
    """The path of the system's Chromium; skips where there is none and none is required."""
    found = os.environ.get("QAF_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = "no Chromium on this machine (Debian package chromium)"
        if os.environ.get("QAF_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless system Chromium; skips where there is none and none is required."""
    found = require_chromium()
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def open_page(height: int) -> Iterator[Any]:
    """A page of such a browser, 1440 pixels wide, that does not move."""
    with open_browser() as browser:
        view = browser.new_page(viewport={"width": 1440, "height": height}, reduced_motion="reduce")
        view.set_default_timeout(60_000)
        yield view


@contextmanager
def serve_pages(workspace: Path) -> Iterator[str]:
    """The dashboard over a workspace where nothing is carried out; its address."""
    script = workspace.parent / "page.py"
    script.write_text(SCRIPT)
    port = free_port()
    flags = ["--server.port", str(port), "--server.headless", "true", "--browser.gatherUsageStats", "false"]
    command = [sys.executable, "-m", "streamlit", "run", str(script), *flags]
    environment = {**os.environ, "QAF_WORKSPACE": str(workspace), "PYTHONPATH": str(ROOT)}
    log = workspace.parent / "page.log"
    with serve(command, port, log, cwd=ROOT / "dashboard", env=environment) as address:
        yield address


@contextmanager
def serve(command: Sequence[str], port: int, log: Path, **options: Any) -> Iterator[str]:
    """A Streamlit server for as long as it is needed; its address."""
    with log.open("wb") as messages:
        server = subprocess.Popen(command, stdout=messages, stderr=messages, **options)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(f"{address}/_stcore/health", server, log)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_server(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers, a minute at most."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            with opener.open(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the app did not answer within a minute: " + log.read_text())


def settle(page: Any) -> None:
    """Wait until the page has been still for a moment."""
    quiet_since = time.monotonic()
    deadline = quiet_since + 60
    while time.monotonic() < deadline and time.monotonic() - quiet_since < 0.6:
        if page.get_by_test_id("stApp").get_attribute("data-test-script-state") != "notRunning":
            quiet_since = time.monotonic()
        page.wait_for_timeout(50)
