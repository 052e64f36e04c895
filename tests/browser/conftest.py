"""A workspace with a run of every kind, served to a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME
from tests.browsing import open_page, serve_pages
from tests.conftest import seed_finished_run, seed_plan

UNKNOWN = "20200101-000000-abcdef"


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
    workspace = tmp_path_factory.mktemp("links") / "workspace"
    ids = seed(workspace)
    with serve_pages(workspace) as address:
        yield address, ids


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of a headless system Chromium."""
    with open_page(height=1500) as view:
        yield view
