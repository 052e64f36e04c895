"""Told against real time left of runs of the shipped models, and how long Stop and Discard take.

Each model gets a workspace of its own: its first run is told by the built-in basis, the second by the first.
On a machine that does nothing else: ``python benchmarks/time_left.py [MODEL …]``; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dashboard.state.progress import RunProgress
from qaf_core.data.models.catalogue import find_model, list_models, load_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.runs.estimate import count_work, read_history
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.supervisor import start_worker

POLL_SECONDS = 0.5
TOLERANCE, FLOOR_SECONDS = 0.3, 2.0  # what is told in whole seconds cannot be nearer in the last ones
FIRST_SHARE = 0.2


class Watched:
    """A run in a worker of its own, with what a page would tell of it."""

    def __init__(self, store: Store, model: str, ratio: float) -> None:
        inventory = load_inventory(find_model(model))
        plan = plan_for_ratio(inventory, model=model, ratio=ratio, bits=4)
        request = RunRequest(model=model, plan=plan.to_dict())
        history = read_history(store, request)
        work = count_work(request, inventory, history)
        self.expected = sum(history.seconds(work).values())
        self.store, self.run_id = store, store.create_run(request)
        self.progress = RunProgress(run_id=self.run_id, history=history, work=work)
        self.estimates: list[tuple[float, float]] = []
        self.process = start_worker(store.workspace)

    def until(self, reached: Callable[[], bool]) -> float:
        """Look on until something is so, or the run has ended; seconds since the run began."""
        while True:
            run = self.store.run(self.run_id)
            elapsed = time.time() - run.started_at if run.started_at else 0.0
            if run.is_final or reached():
                return elapsed
            self.progress.absorb(self.store.events_since(self.run_id, self.progress.seq))
            left = self.progress.seconds_left(elapsed)
            if run.started_at and left is not None:
                self.estimates.append((elapsed, left))
            time.sleep(POLL_SECONDS)

    def end(self) -> float:
        """Wait for the worker to end; seconds that the run took."""
        self.until(lambda: False)
        self.process.wait()
        run = self.store.run(self.run_id)
        return (run.finished_at or 0.0) - (run.started_at or 0.0)


def judge(watched: Watched) -> dict[str, Any]:
    """How near what was told came to what was left."""
    total = watched.end()
    judged = [(left, total - at) for at, left in watched.estimates if FIRST_SHARE * total <= at <= total]
    within = [abs(left - real) <= max(TOLERANCE * real, FLOOR_SECONDS) for left, real in judged]
    return {
        "seconds": round(total, 1),
        "expected_before": round(watched.expected, 1),
        "within_30_percent": round(sum(within) / max(len(within), 1), 3),
        "largest_miss_of_whole": round(max((abs(a - b) for a, b in judged), default=0.0) / total, 3),
    }


def measure(model: str) -> dict[str, Any]:
    """Two runs to their end, one that is stopped and one that is discarded."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "workspace") as store:
        report: dict[str, Any] = {
            name: judge(Watched(store, model, ratio)) for name, ratio in (("first", 2.0), ("second", 3.0))
        }
        stopped = Watched(store, model, 1.5)
        at = stopped.until(lambda: bool(stopped.progress.done))
        announced, began = stopped.progress.seconds_to_stop(at), time.monotonic()
        store.request_cancel(stopped.run_id)
        stopped.end()
        report["stop"] = {"announced": announced, "seconds": round(time.monotonic() - began, 1)}
        discarded = Watched(store, model, 1.3)
        discarded.until(lambda: bool(discarded.progress.done))
        began = time.monotonic()
        store.discard(discarded.run_id)
        discarded.process.wait()
        report["discard_seconds"] = round(time.monotonic() - began, 2)
    return report


def main() -> None:
    """Measure the models named, or all that are shipped."""
    models = sys.argv[1:] or [source.id for source in list_models() if source.shipped]
    reports = {}
    for model in models:
        reports[model] = measure(model)
        print(f"{model}: {json.dumps(reports[model])}", file=sys.stderr)
    print(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
