"""How long pages take to draw in a workspace of very many runs, copied from one real run.

python benchmarks/many_runs.py [--counts 300 3000] [--run WORKSPACE RUN]

Without ``--run`` it makes one run of the digits network first. Times are CPU seconds of a script, drawn
by Streamlit's test runner: the first look in a new process (nothing read yet) and the next one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGES = ("run", "tradeoffs", "compare", "layers", "export", "decide", "models", "explore")
LIMITS = {300: 1.0, 3000: 2.0}
PREDICTIONS = "predictions.npz"


def make_workspace(origin: Path, run_id: str, folder: Path, count: int) -> None:
    """A workspace with ``count`` runs like one, of other accuracies, sizes, methods, names and tags."""
    from qaf_core.runs.management import archive, tag
    from qaf_core.runs.store.store import Store

    chance = random.Random(0)
    with Store(origin) as store:
        run, kept = store.run(run_id), store.run_folder(run_id)
    predictions = kept / PREDICTIONS
    with Store(folder) as store:
        ids = []
        for place in range(count):
            new = f"20260101-{place // 3600:02d}{place // 60 % 60:02d}{place % 60:02d}-{place:06x}"
            result = json.loads(json.dumps(dict(run.result)))
            lost, size = chance.random() * 0.1, chance.uniform(0.3, 2.0)
            result["compressed"]["value"] -= lost
            result["compressed"]["ci95"] = [end - lost for end in result["compressed"]["ci95"]]
            result["drop"] += lost
            result["drop_ci95"] = [end + lost for end in result["drop_ci95"]]
            for key in ("size_bytes", "bops"):
                result["cost"][key] = int(result["cost"][key] * size)
            result["file"] = {"size_bytes": result["cost"]["size_bytes"]}
            request = type(run.request)(**{**vars(run.request), "name": f"point {place}",
                                           "method": chance.choice(("joint", "sequential"))})  # fmt: skip
            store.take_runs([{
                "id": new, "kind": run.kind, "status": run.status, "request": request, "result": result,
                "layers": run.layer_rows, "created_at": run.created_at + place,
                "started_at": run.started_at, "finished_at": run.finished_at,
            }])  # fmt: skip
            store.run_folder(new).mkdir(parents=True)
            os.link(kept / "model.safetensors", store.run_folder(new) / "model.safetensors")
            if predictions.is_file():
                os.link(predictions, store.run_folder(new) / PREDICTIONS)
            ids.append(new)
        tag(store, ids[::7], add=["candidate"])
        archive(store, ids[::11])


def draw(page: str, query: dict[str, object]) -> list[float]:
    """CPU seconds of two looks at a page in this process."""
    from streamlit.testing.v1 import AppTest

    from dashboard.widgets import ui

    ui.keep_worker = lambda: None
    test = AppTest.from_string(f"from dashboard import app\napp.main({page!r})", default_timeout=120)
    for name, value in query.items():
        test.query_params[name] = value  # type: ignore[assignment]
    from dashboard import app  # noqa: F401  # loaded before a look is timed, as in a server

    times = []
    for _look in range(2):
        began = time.process_time()
        test.run()
        times.append(time.process_time() - began)
        assert not test.exception, test.exception
        assert not any("could not be drawn" in str(error.value) for error in test.error), page
    return times


def main() -> None:
    """Make the workspaces and time every page in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--run", nargs=2, metavar=("WORKSPACE", "RUN"))
    parser.add_argument("--draw", nargs=2, metavar=("PAGE", "QUERY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        print(json.dumps(draw(options.draw[0], json.loads(options.draw[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="qaf-many-") as place:
        origin, run_id = options.run or _make_run(Path(place) / "origin")
        for count in options.counts:
            folder = Path(place) / str(count)
            make_workspace(Path(origin), run_id, folder, count)
            _time_pages(folder, count)
            shutil.rmtree(folder)


def _make_run(origin: Path) -> tuple[str, str]:
    command = [sys.executable, "-m", "qaf_core.cli", "compress", "digits/cnn", "--ratio", "2", "--bits", "4",
               "--json", "--workspace", str(origin)]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return str(origin), str(json.loads(output)["run_id"])


def _time_pages(folder: Path, count: int) -> None:
    from qaf_core.runs.listing import list_rows
    from qaf_core.runs.store.store import Store

    with Store(folder) as store:
        began = time.process_time()
        ids = [row.id for row in list_rows(store)]
        print(f"{count} runs: rows made once in {time.process_time() - began:.2f} s")
    queries: dict[str, dict[str, object]] = {"compare": {"run": ids[:5]}, "tradeoffs": {"reference": ids[3]}}
    for page in PAGES:
        command = [sys.executable, __file__, "--draw", page, json.dumps(queries.get(page, {}))]
        environment = {**os.environ, "QAF_WORKSPACE": str(folder)}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        first, again = json.loads(output.splitlines()[-1])
        limit = LIMITS.get(count, 2.0)
        print(f"  {page:10} {first:5.2f} s, again {again:5.2f} s" + ("" if first <= limit else "  TOO LONG"))


if __name__ == "__main__":
    main()
