"""Workspaces of earlier versions open: ``schema_1.sqlite.gz`` is of the version before jobs had kinds."""

from __future__ import annotations

import gzip
from pathlib import Path

from qaf_core.runs.listing import list_rows
from qaf_core.runs.management import delete, restore, tag
from qaf_core.runs.store.database import DATABASE_NAME
from qaf_core.runs.store.request import InspectRequest
from qaf_core.runs.store.schema import SCHEMA_VERSION
from qaf_core.runs.store.store import Store

STORED = Path(__file__).parents[1] / "stored"


def test_a_store_without_kinds_is_brought_up_to_date(workspace: Path) -> None:
    workspace.mkdir()
    content = gzip.decompress((STORED / "schema_1.sqlite.gz").read_bytes())
    (workspace / DATABASE_NAME).write_bytes(content)
    for _time in range(2):
        with Store(workspace) as store:
            assert store.rows("SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]
            (compressed,) = [run for run in store.list_runs("digits/cnn") if run.request.name == "compressed"]
            assert (compressed.status, compressed.drop, len(compressed.layers)) == ("completed", 0.01, 1)
            assert compressed.request.images is None
            assert len(store.events_since(compressed.id)) == 1
            kinds = dict(
                store.rows("SELECT json_extract(request, '$.name'), kind FROM runs WHERE json_valid(request)")
            )
            assert kinds == {
                "compressed": "compress", "tuned": "finetune", "lost": "compress", "waiting": "compress"
            }  # fmt: skip
            (row,) = [row for row in list_rows(store, model="digits/cnn") if row.title == "compressed"]
            assert (row.drop, row.done, row.tags, row.archived) == (0.01, 1, (), False)
            (damaged,) = store.list_runs("old/damaged")
            assert (damaged.damaged, damaged.status) == (True, "failed")
            assert "a run in the store is damaged" in str(damaged.error)
    with Store(workspace) as store:
        tag(store, [compressed.id], add=["kept"])
        delete(store, [compressed.id])
        assert compressed.id not in {row.id for row in list_rows(store)}
        restore(store, [compressed.id])
        assert {row.id: row.tags for row in list_rows(store)}[compressed.id] == ("kept",)
        assert len(store.mark_interrupted()) == 1
        waiting = store.claim_next(pid=1)
        assert waiting is not None
        assert store.run(waiting).request.name == "waiting"
        job_id = store.ask(InspectRequest(model="digits/cnn"))
        assert {run.id for run in store.list_runs("digits/cnn")}.isdisjoint({job_id})
