"""A claimed job is carried out and its end stored, whatever it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qaf_core.errors import DataError, RunCancelled
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.runs.jobs import export, models
from qaf_core.runs.store.kinds import kind_of
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import (
    CheckRequest,
    ExportRequest,
    InspectRequest,
    JobRequest,
    LatencyRequest,
    RegisterRequest,
)
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.execute import JobFailed, execute_in_turn, execute_job


def claimed(store: Store, request: JobRequest) -> str:
    job_id = store.ask(request)
    assert store.claim_next(os.getpid(), kind_of(request).lane) == job_id
    return job_id


def ended(store: Store, job_id: str) -> JobRecord:
    job = store.job(job_id)
    assert job is not None
    assert job.is_final
    return job


def test_an_inspection_keeps_what_the_command_prints(store: Store) -> None:
    told: list[RunEvent] = []
    job_id = claimed(store, InspectRequest(model="digits/cnn"))
    result = execute_job(store, job_id, Progress(told.append))
    job = ended(store, job_id)
    assert (job.status, job.result) == ("completed", result)
    assert result["layers"][0]["name"] == "features.0"
    assert result["source"]["input_shape"] == [1, 8, 8]
    assert [event.data["message"] for event in told] == ["Looking into digits/cnn"]


def test_a_check_of_what_was_uploaded_stores_it_first(store: Store, tmp_path: Path) -> None:
    shipped = models.source_of(InspectRequest(model="digits/cnn"), store.workspace).weights
    assert shipped is not None
    incoming = tmp_path / "incoming"
    incoming.write_bytes(shipped.read_bytes())
    upload = {"path": str(incoming), "name": "mine.safetensors"}
    request = CheckRequest(
        model="digits/cnn", data="builtin", images=40, preview=True, uploads={"weights": upload}
    )
    job_id = claimed(store, request)
    result = execute_job(store, job_id)
    assert result["stored"]["weights"].startswith(str(store.workspace))
    assert Path(result["stored"]["weights"]).read_bytes() == shipped.read_bytes()
    assert (result["n"], len(result["preview"])) == (40, 9)
    assert not incoming.exists()
    stages = [stored.event.data["stage"] for stored in store.events_since(job_id)]
    assert (stages[0], stages[-1]) == ("weights", "check")


def test_an_upload_that_is_refused_leaves_nothing(store: Store, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.write_bytes(b"no weights")
    upload = {"path": str(incoming), "name": "mine.safetensors"}
    job_id = claimed(store, CheckRequest(model="digits/cnn", uploads={"weights": upload}))
    with pytest.raises(Exception, match="mine"):
        execute_job(store, job_id)
    assert ended(store, job_id).status == "failed"
    assert not incoming.exists()
    assert not [path for path in (store.workspace / "models").iterdir() if path.is_file()]


@pytest.mark.parametrize("name", ["weights", "data"])
def test_storing_an_upload_can_be_stopped(store: Store, tmp_path: Path, name: str) -> None:
    import zipfile

    incoming = tmp_path / "incoming"
    with zipfile.ZipFile(incoming, "w") as archive:
        archive.writestr("good/a.png", b"\0" * 1000)
    kind = {"weights": "mine.safetensors", "data": "parts.zip"}[name]
    request = CheckRequest(model="digits/cnn", uploads={name: {"path": str(incoming), "name": kind}})
    job_id = claimed(store, request)
    store.request_cancel(job_id)
    with pytest.raises(RunCancelled):
        execute_job(store, job_id)
    assert ended(store, job_id).status == "cancelled"
    kept = [path for folder in ("models", "data") for path in (store.workspace / folder).glob("*")]
    assert kept == []
    assert not incoming.exists()


def test_a_model_is_registered(store: Store) -> None:
    weights = models.source_of(InspectRequest(model="inspection/resnet20"), store.workspace).weights
    request = RegisterRequest(model="cifar/resnet20", name="my/parts", weights=str(weights))
    assert execute_job(store, claimed(store, request)) == {"added": "my/parts"}
    assert models.source_of(InspectRequest(model="my/parts"), store.workspace).registered


def fails(error: Exception) -> Callable[..., dict[str, Any]]:
    def work(*_: object) -> dict[str, Any]:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "raised", "status", "message"),
    [
        (DataError("the folder is empty"), DataError, "failed", "the folder is empty."),
        (ZeroDivisionError("by zero"), JobFailed, "failed", "Internal error: ZeroDivisionError: by zero."),
        (MemoryError(), JobFailed, "failed", "memory ran out"),
        (RunCancelled(), RunCancelled, "cancelled", ""),
    ],
)
def test_faults_and_stops_are_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception], status: str,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(models, "carry_out_inspection", fails(error))
    job_id = claimed(store, InspectRequest(model="digits/cnn"))
    with pytest.raises(raised):
        execute_job(store, job_id)
    job = ended(store, job_id)
    assert job.status == status
    assert message in (job.error or "")


SPEED = LatencyRequest(run="a", threads=1)
EXPORT = ExportRequest(run="a", format="packed")


def test_a_job_is_executed_here_once_what_must_be_alone_has_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "carry_out", lambda *_: {"size": 1})
    speed = claimed(store, SPEED)
    waited: list[bool] = []

    def end_speed() -> None:
        waited.append(ended_at_once(store, EXPORT))
        store.finish(speed, "completed", {})

    assert execute_in_turn(store, EXPORT, on_waiting=end_speed) == {"size": 1}
    assert waited == [False]
    kept = store.find_job(EXPORT)
    assert kept is not None
    assert (kept.status, kept.result) == ("completed", {"size": 1})
    assert execute_in_turn(store, EXPORT, on_waiting=end_speed) == {"size": 1}
    assert waited == [False]


def ended_at_once(store: Store, request: JobRequest) -> bool:
    job = store.find_job(request)
    assert job is not None
    return job.status != "queued"


@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C twice", "stopped by a page"])
def test_who_waits_may_leave(store: Store, how: str) -> None:
    claimed(store, SPEED)
    asked = False

    def leave() -> None:
        nonlocal asked
        job = store.find_job(EXPORT)
        assert job is not None
        if how == "stopped by a page":
            store.request_cancel(job.id)
        elif how == "Ctrl-C twice":
            raise KeyboardInterrupt
        asked = how == "Ctrl-C"

    with pytest.raises(KeyboardInterrupt if how == "Ctrl-C twice" else RunCancelled):
        execute_in_turn(store, EXPORT, Progress(should_stop=lambda: asked), leave)
    job = store.find_job(EXPORT)
    assert job is not None
    assert (job.status, job.started_at) == ("cancelled", None)
