import errno
import json
import os
import sqlite3
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import begun_run

from qaf_core.errors import DataError, PlanError, QafError, WorkspaceError
from qaf_core.factorization.options import METHODS
from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.store import schema
from qaf_core.runs.store import workspace as workspace_module
from qaf_core.runs.store.database import DATABASE_NAME
from qaf_core.runs.store.request import InspectRequest, RunRequest
from qaf_core.runs.store.store import Store

REQUEST = RunRequest(model="digits/cnn", plan={"layers": []}, name="first")


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_goes_from_queued_to_running_to_completed(store: Store) -> None:
    run_id = store.create_run(REQUEST)
    assert store.run(run_id).status == "queued"
    assert store.claim_next(pid=os.getpid()) == run_id
    assert store.run(run_id).status == "running"
    store.put_layer(run_id, 0, {"name": "conv1", "relative_error": 0.1}, {"histograms": {}})
    store.finish(run_id, "completed", {"drop": 0.01, "drop_ci95": [0.0, 0.02], "cost": {"params": 5}})
    record = store.run(run_id)
    assert record.status == "completed"
    assert record.is_final
    assert record.request == REQUEST
    assert record.drop_ci95 == (0.0, 0.02)
    assert record.layers[0].relative_error == 0.1
    assert record.created_at <= record.started_at <= record.finished_at
    assert store.layer_details(run_id, "conv1") == {"histograms": {}}
    assert store.layer_details(run_id, "none") == {}


def test_what_is_kept_in_an_unknown_form_reads_as_not_known(store: Store) -> None:
    run_id = store.create_run(RunRequest(model="digits/cnn", plan={"schema_version": 9, "layers": []}))
    whole = {"params": 5, "size_bytes": 10, "macs": 3, "bops": 2, "peak_activation_bytes": 9}
    whole["energy_joules"] = 1
    store.put_layer(run_id, 0, {"name": "a", "rank": [2, 3], "later": True}, {})
    store.finish(run_id, "completed", {"cost": whole, "baseline_cost": {"params": 5}, "checks": {"n": 1}})
    record = store.run(run_id)
    assert (record.plan.model, record.plan.layers) == ("digits/cnn", ())
    assert (record.baseline_cost, record.checks, record.compressed) == (None, None, None)
    assert record.cost is not None
    assert record.cost.to_dict() == whole
    assert record.size_bytes == 10
    assert [(row.name, row.rank, row.seconds) for row in record.layers] == [("a", (2, 3), None)]
    store.add_to_result(run_id, {"file": {"size_bytes": 11}})
    assert store.run(run_id).size_bytes == 11


def test_ids_are_safe_in_urls_and_lists_are_newest_first(store: Store) -> None:
    ids = [store.create_run(REQUEST) for _ in range(3)]
    other = store.create_run(RunRequest(model="inspection/vgg"))
    assert all(run_id.replace("-", "").isalnum() for run_id in ids)
    assert [record.id for record in store.list_runs("digits/cnn")] == ids[::-1]
    assert store.list_runs()[0].id == other


def test_only_one_run_is_claimed_while_its_process_lives(store: Store) -> None:
    first, second = store.create_run(REQUEST), store.create_run(REQUEST)
    assert store.claim_next(os.getpid()) == first
    assert store.claim_next(os.getpid()) is None
    store.finish(first, "completed", {})
    assert store.claim_next(os.getpid()) == second


def test_claims_are_atomic_between_connections(workspace: Path) -> None:
    with Store(workspace) as opened:
        run_id = opened.create_run(REQUEST)
    claims: list[str | None] = []

    def claim() -> None:
        with Store(workspace) as own:
            claims.append(own.claim_next(os.getpid()))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert claims.count(run_id) == 1
    assert claims.count(None) == 7


def test_runs_of_dead_processes_become_interrupted(store: Store) -> None:
    lost = store.create_run(REQUEST)
    assert store.claim_next(dead_process()) == lost
    alive = begun_run(store, REQUEST)
    assert store.mark_interrupted() == (lost,)
    record = store.run(lost)
    assert record.status == "interrupted"
    assert record.error is not None
    assert store.run(alive).status == "running"


def test_a_dead_process_does_not_block_the_queue(store: Store) -> None:
    store.create_run(REQUEST)
    queued, waiting = store.create_run(REQUEST), store.ask_for_own(REQUEST, dead_process())
    assert store.claim_next(dead_process()) is not None
    assert store.claim_next(os.getpid()) == queued
    assert waiting in store.mark_interrupted()


def test_stopping_a_queued_run_cancels_it_at_once(store: Store) -> None:
    run_id = store.create_run(REQUEST)
    assert store.request_cancel(run_id)
    assert store.run(run_id).status == "cancelled"
    assert not store.request_cancel(run_id)
    assert store.claim_next(os.getpid()) is None


def test_stopping_a_running_run_leaves_a_request(store: Store) -> None:
    run_id = begun_run(store, REQUEST)
    assert not store.cancel_requested(run_id)
    assert store.request_cancel(run_id)
    assert store.run(run_id).status == "running"
    assert store.cancel_requested(run_id)


def test_an_ended_run_keeps_its_end(store: Store) -> None:
    run_id = store.create_run(REQUEST)
    store.finish(run_id, "completed", {"drop": 0.5})
    store.finish(run_id, "failed", error="too late")
    assert store.run(run_id).status == "completed"
    assert store.run(run_id).drop == 0.5
    with pytest.raises(WorkspaceError, match="not a status to end with"):
        store.finish(run_id, "running")


def test_events_come_back_in_order_and_filtered(store: Store) -> None:
    run_id, other = store.create_run(REQUEST), store.create_run(REQUEST)
    store.append_event(run_id, RunEvent(kind="stage", data={"stage": "loading"}))
    store.append_event(other, RunEvent(kind="stage", data={"stage": "loading"}))
    for layer in ("a", "b"):
        for iteration in range(3):
            event = RunEvent(
                kind="iteration", layer=layer, data={"iteration": iteration}, elapsed_seconds=0.5
            )
            store.append_event(run_id, event)
    everything = store.events_since(run_id)
    assert [stored.event.kind for stored in everything] == ["stage"] + ["iteration"] * 6
    assert all(a.seq < b.seq for a, b in pairwise(everything))
    assert len(store.events_since(run_id, everything[3].seq)) == 3
    of_b = store.events_since(run_id, 0, kinds=("iteration",), layer="b")
    assert [stored.event.data["iteration"] for stored in of_b] == [0, 1, 2]
    assert of_b[0].event.elapsed_seconds == 0.5
    assert store.events_since(run_id, kinds=()) == ()


def test_one_store_serves_several_threads(store: Store) -> None:
    run_id = store.create_run(REQUEST)

    def append() -> None:
        for _ in range(50):
            store.append_event(run_id, RunEvent(kind="stage"))

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.events_since(run_id)) == 200


def test_an_unknown_run_is_told(store: Store) -> None:
    with pytest.raises(WorkspaceError, match="no such run; got nowhere"):
        store.run("nowhere")


def test_a_workspace_that_is_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("here")
    with pytest.raises(WorkspaceError, match="cannot be written to.*--workspace"):
        Store(path / "below")
    with pytest.raises(WorkspaceError, match="cannot be written to"):
        Store(path)


def test_a_damaged_store_is_told_with_the_remedy(workspace: Path) -> None:
    workspace.mkdir()
    (workspace / DATABASE_NAME).write_bytes(b"not a database, " * 512)
    with pytest.raises(WorkspaceError, match="damaged.*move runs.sqlite away"):
        Store(workspace)


@pytest.mark.parametrize(
    "change",
    [
        "request = '{'",
        "request = '[]'",
        'request = \'{"model":"digits/cnn","plan":[3]}\'',
        'request = \'{"model":"digits/cnn","plan":{"layers":[1]}}\'',
        "status = 'wild'",
        "created_at = 'yesterday'",
        "id = '../../elsewhere'",
        "result = '{'",
        "result = '[1]'",
        'result = \'{"cost":{"size_bytes":"much"}}\'',
        'result = \'{"cost":{"size_bytes":0}}\'',
        "result = '{\"drop_ci95\":[1]}'",
        'result = \'{"compressed":{"metric":"top1","value":NaN,"n":1,"ci95":[0,1]}}\'',
        "result = x'00ff'",
    ],
)
def test_a_damaged_run_is_named_and_takes_no_other_along(store: Store, change: str) -> None:
    sound = store.create_run(REQUEST)
    run_id = store.create_run(REQUEST)
    with store.transaction() as connection:
        connection.execute(f"UPDATE runs SET {change} WHERE id = ?", (run_id,))
    found = {run.damaged: run for run in store.list_runs()}
    assert found[False].id == sound
    assert found[True].status == "failed"
    assert f"a run in the store is damaged; got {found[True].id}" in str(found[True].error)
    assert store.run(found[True].id) == found[True]


def test_damaged_layers_and_events_are_passed_over(store: Store) -> None:
    run_id = store.create_run(REQUEST)
    store.append_event(run_id, RunEvent(kind="stage", data={"stage": "solving"}, elapsed_seconds=1.0))
    store.put_layer(run_id, 0, {"name": "conv1"}, {"histograms": {}})
    with store.transaction() as connection:
        connection.execute("UPDATE events SET data = '{\"sta'")
        connection.execute("UPDATE layers SET details = '[3]'")
    assert [stored.event.data for stored in store.events_since(run_id)] == [{}]
    assert store.layer_details(run_id, "conv1") == {}
    with store.transaction() as connection:
        connection.execute("UPDATE layers SET row = '{\"name\": 3}'")
    assert store.run(run_id).damaged


def test_a_damaged_job_is_asked_for_anew(store: Store) -> None:
    request = InspectRequest(model="digits/cnn")
    job_id = store.ask(request)
    store.finish(job_id, "completed", {"layers": []})
    assert store.ask(request) == job_id
    with store.transaction() as connection:
        connection.execute("UPDATE runs SET result = '{' WHERE id = ?", (job_id,))
    assert store.find_job(request) is None
    assert store.last_job("inspect", "digits/cnn") is None
    with pytest.raises(WorkspaceError, match="a job in the store is damaged"):
        store.job(job_id)
    assert store.ask(request) != job_id


def test_a_deleted_workspace_is_noticed(store: Store, workspace: Path) -> None:
    store.create_run(REQUEST)
    workspace.rename(workspace.with_name("moved"))
    ask = lambda: store.ask(InspectRequest(model="digits/cnn"))  # noqa: E731
    for use in (lambda: store.create_run(REQUEST), store.list_runs, ask):
        with pytest.raises(WorkspaceError, match="deleted or replaced while it was in use"):
            use()
    assert not workspace.exists(), "nothing is made where it was"
    Store(workspace).close()
    with pytest.raises(WorkspaceError, match="deleted or replaced"):
        store.list_runs()
    workspace.with_name("moved").rename(workspace.with_name("back"))


def test_a_workspace_that_can_only_be_read_is_looked_at(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(workspace) as writing:
        run_id = writing.ask_for_own(REQUEST, dead_process())
        before = {path.name for path in workspace.iterdir()}

        def refuse(**_options: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(workspace_module.tempfile, "TemporaryFile", refuse)
        with Store(workspace) as reading:  # what is not merged into the file yet is seen too
            assert reading.read_only
            assert reading.mark_interrupted() == ()
            assert [run.id for run in reading.list_runs()] == [run_id]
            for change in (lambda: reading.create_run(REQUEST), lambda: reading.request_cancel(run_id)):
                with pytest.raises(WorkspaceError, match="can only be read"):
                    change()
        assert {path.name for path in workspace.iterdir()} == before


def test_a_newer_store_is_refused(workspace: Path) -> None:
    Store(workspace).close()
    with sqlite3.connect(workspace / DATABASE_NAME) as connection:
        connection.execute("UPDATE schema_version SET version = 999")
    connection.close()
    with pytest.raises(WorkspaceError, match="newer version"):
        Store(workspace)


def test_an_older_store_is_migrated_step_by_step(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(workspace) as opened:
        run_id = opened.create_run(REQUEST)
    now = schema.SCHEMA_VERSION
    steps: list[int] = []
    monkeypatch.setattr(schema, "SCHEMA_VERSION", now + 2)
    monkeypatch.setitem(schema.MIGRATIONS, now, lambda _: steps.append(now))
    monkeypatch.setitem(
        schema.MIGRATIONS,
        now + 1,
        lambda connection: (
            steps.append(now + 1),
            connection.execute("ALTER TABLE runs ADD COLUMN later TEXT"),
        ),
    )
    for _ in range(2):
        with Store(workspace) as opened:
            assert opened.run(run_id).request == REQUEST
    assert steps == [now, now + 1]


def test_worker_states_hold_live_processes_only(store: Store) -> None:
    store.put_worker(os.getpid(), "starting")
    store.put_worker(os.getpid(), "ready")
    store.put_worker(dead_process(), "ready")
    assert store.worker_states() == {os.getpid(): "ready"}
    store.remove_worker(os.getpid())
    assert store.worker_states() == {}


def test_the_default_workspace_follows_the_environment(workspace: Path) -> None:
    with Store() as opened:
        assert opened.workspace == workspace


def test_requests_survive_json_and_forget_unknown_fields() -> None:
    request = RunRequest(
        model="digits/cnn", plan={"a": 1}, images=10, method="paper", seed=3, weights="w.safetensors"
    )
    assert RunRequest.from_json(request.to_json()) == request
    extended = {**json.loads(request.to_json()), "later": True}
    assert RunRequest.from_json(json.dumps(extended)) == request


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"plan": {}}'])
def test_unreadable_requests_are_told(text: str) -> None:
    with pytest.raises(QafError, match="request cannot be read"):
        RunRequest.from_json(text)


def test_requests_out_of_range_are_told() -> None:
    with pytest.raises(PlanError, match=f"expected {', '.join(METHODS)}"):
        RunRequest(model="m", method="magic")
    with pytest.raises(DataError, match="number of images"):
        RunRequest(model="m", images=0)
    with pytest.raises(QafError, match="seed"):
        RunRequest(model="m", seed=-1)
    with pytest.raises(QafError, match="name"):
        RunRequest(model="m", name="x" * 1000)
