"""How long a new browser takes from a page's address to the page, with all that the address names.

PYTHONPATH=. python benchmarks/restore.py [--count 300] [--limit 2.0] [--run WORKSPACE RUN]

A workspace of copies of one real run is served by ``qaf app``; each page is asked for by an address that
names its full state, in a browser context of its own (nothing cached, no session), twice. The time ends when
what the address names is to be seen and the server is at rest. Exit code 1 where a page takes longer than
the limit. Needs a Chromium and playwright.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from many_runs import make_workspace

from qaf_core.files import ContentCache, digest_of
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store
from tests.browsing import ROOT, free_port, open_browser, serve

MODEL = "inspection/resnet20"
LAYER = "layer2.0.conv1"
DONE = "notRunning"


def main() -> None:
    """Make the workspace, serve it, and time every page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--limit", type=float, default=2.0, help="seconds")
    parser.add_argument("--run", nargs=2, metavar=("WORKSPACE", "RUN"), help=f"of {MODEL}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qaf-restore-") as place:
        origin, run_id = options.run or _make_run(Path(place) / "origin")
        workspace = Path(place) / "workspace"
        make_workspace(Path(origin), run_id, workspace, options.count)
        port = free_port()
        command = [sys.executable, "-m", "qaf_core.cli", "app", "--port", str(port), "--no-browser",
                   "--workspace", str(workspace)]  # fmt: skip
        with serve(command, port, Path(place) / "app.log", cwd=ROOT) as address, open_browser() as browser:
            seconds = {
                page: [_restore(browser, f"{address}/{page}", sign) for _look in range(2)]
                for page, sign in _addresses(workspace).items()
            }
    print(
        json.dumps(
            {"runs": options.count, "load": os.getloadavg()[0], "limit": options.limit, "seconds": seconds},
            indent=1,
        )
    )
    sys.exit(max(map(max, seconds.values())) > options.limit)


def _make_run(origin: Path) -> tuple[str, str]:
    command = [sys.executable, "-m", "qaf_core.cli", "compress", MODEL, "--ratio", "2", "--bits", "4",
               "--images", "200", "--json", "--workspace", str(origin)]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return str(origin), str(json.loads(output)["run_id"])


def _addresses(workspace: Path) -> dict[str, str]:
    """The pages, each with all that its address can name, and what shows that this is there."""
    with Store(workspace) as store:
        ids = [row.id for row in list_rows(store)][:5]
    runs, run = "&".join(f"run={one}" for one in ids), ids[0]
    edited = {"model": MODEL, "base": None, "edits": {LAYER: {"rank": "17", "bits": "6"}}}
    plan = digest_of(edited)[:12]
    ContentCache(workspace / "plans" / "drafts").keep(plan, edited)
    return {
        "start?step=2": "h3:has-text('What compression does')",
        f"models?model={MODEL}&colour=bops&compressed={run}": "[data-testid=stGraphVizChart] svg",
        f"explore?model={MODEL}&ratio=3.1&bits=6&structure=svd&plan={plan}": "text=Custom",
        f"run?run={run}": "text=Against the original",
        "run?find=point": "[data-testid=stDataFrame]",
        f"tradeoffs?target=%E2%89%A4+80+kB&reference={ids[3]}&x=bops&group=method": ".js-plotly-plot",
        "tradeoffs?chart=lines": ".js-plotly-plot",
        f"compare?{runs}&what=errors&sort=output": "text=By class",
        f"layers?run={run}&second={ids[1]}&layer={LAYER}": "text=Inside a layer",
        f"export?run={run}&batch=4": "input[aria-label='Images at once'][value='4']",
        f"decide?{runs}&part=changes": ".qaf-table, .qaf-verdict",
        f"decide?run={run}&part=report&lang=ja": "[data-testid=stDownloadButton]",
        "glossary?find=rank": "input[aria-label='Search the terms'][value='rank']",
    }  # fmt: skip


def _restore(browser: Any, address: str, sign: str) -> float:
    """Seconds until a new browser shows what an address names."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(15_000)
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.locator(sign).first.wait_for(state="attached")
    page.locator(f"[data-testid=stApp][data-test-script-state={DONE}]").wait_for()
    seconds = time.perf_counter() - began
    context.close()
    return round(seconds, 2)


if __name__ == "__main__":
    main()
