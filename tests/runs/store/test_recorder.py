import time
from collections.abc import Iterator

import pytest

from qaf_core.errors import RunCancelled
from qaf_core.pipeline.events import ITERATIONS_PER_SECOND, STAGE_SECONDS, Progress, RunEvent
from qaf_core.runs.store.record import StoredEvent
from qaf_core.runs.store.recorder import record_progress
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store


@pytest.fixture
def run_id(store: Store) -> str:
    return store.create_run(RunRequest(model="digits/cnn"))


def iterations(events: tuple[StoredEvent, ...], layer: str) -> list[int]:
    return [stored.event.data["iteration"] for stored in events if stored.event.layer == layer]


def test_iterations_are_thinned_out_but_the_last_is_kept(store: Store, run_id: str) -> None:
    told: list[RunEvent] = []
    recorder = record_progress(store, run_id, Progress(told.append))
    for layer in ("a", "b"):
        recorder.send("layer_started", layer)
        for index in range(500):
            recorder.send("iteration", layer, iteration=index)
        recorder.send("layer_finished", layer)
    events = store.events_since(run_id, kinds=("iteration",))
    for layer in ("a", "b"):
        kept = iterations(events, layer)
        assert kept[0] == 0
        assert kept[-1] == 499
        assert len(kept) <= 2 + 1 + ITERATIONS_PER_SECOND
        assert kept == sorted(kept)
    order = [event.kind for event in told if event.layer == "a" and event.kind != "iteration"]
    assert order == ["layer_started", "layer_finished"]
    assert told[-1].kind == "layer_finished"


def test_layers_side_by_side_each_keep_their_first_and_last(store: Store, run_id: str) -> None:
    told: list[RunEvent] = []
    recorder = record_progress(store, run_id, Progress(told.append))
    for index in range(300):
        for layer in ("a", "b"):
            if index < 200 or layer == "b":
                recorder.send("iteration", layer, iteration=index)
        if index == 200:
            recorder.send("layer_finished", "a")
            before_stage = len(told)
            recorder.stage("solving", "c")
            # What is held back comes before what is told of the whole run.
            assert [event.layer for event in told[before_stage:]] == ["b", None]
    recorder.send("layer_finished", "b")
    for layer, last in (("a", 199), ("b", 299)):
        kept = iterations(store.events_since(run_id, kinds=("iteration",)), layer)
        assert (kept[0], kept[-1]) == (0, last)
        assert kept == sorted(kept)
        assert len(kept) <= 3 + 2 * ITERATIONS_PER_SECOND
    finished = [event.kind for event in told].index("layer_finished")
    assert told[finished - 1].layer == "a"
    assert told[finished - 1].data == {"iteration": 199}


def test_slow_iterations_are_all_kept(store: Store, run_id: str) -> None:
    recorder = record_progress(store, run_id)
    for index in range(3):
        recorder.send("iteration", "a", iteration=index)
        time.sleep(1.5 / ITERATIONS_PER_SECOND)
    assert iterations(store.events_since(run_id), "a") == [0, 1, 2]


def test_events_are_dated_from_the_beginning_of_the_run(store: Store, run_id: str) -> None:
    recorder = record_progress(store, run_id)
    recorder.stage("loading", "Loading", 0.0)
    time.sleep(0.02)
    recorder.send("evaluated", which="original", value=0.9)
    first, second = (stored.event for stored in store.events_since(run_id))
    assert first.data == {"stage": "loading", "message": "Loading", "fraction": 0.0}
    assert second.data == {"which": "original", "value": 0.9}
    assert second.elapsed_seconds - first.elapsed_seconds >= 0.02


def test_tracking_passes_on_and_tells_how_far_it_is(store: Store, run_id: str) -> None:
    recorder = record_progress(store, run_id)

    def items() -> Iterator[int]:
        for item in range(4):
            time.sleep(0.15)
            yield item

    assert list(recorder.track(items(), 4, "evaluating", "Evaluating")) == [0, 1, 2, 3]
    fractions = [stored.event.data["fraction"] for stored in store.events_since(run_id)]
    assert fractions[0] == 0.0
    assert len(fractions) > 1
    assert all(0 < fraction < 1 for fraction in fractions[1:])


def test_a_stop_comes_from_the_store_or_the_caller(store: Store, run_id: str) -> None:
    store.claim_next(1)
    progress = record_progress(store, run_id)
    assert not progress.stopped()
    store.request_cancel(run_id)
    time.sleep(0.15)
    with pytest.raises(RunCancelled):
        progress.check()
    other = store.create_run(RunRequest(model="digits/cnn"))
    assert record_progress(store, other, Progress(should_stop=lambda: True)).quiet().stopped()


def test_the_same_stage_is_told_now_and_then(store: Store, run_id: str) -> None:
    recorder = record_progress(store, run_id)
    for message in ("first", "second"):
        for index in range(200):
            recorder.stage("loading", message, index / 200)
    time.sleep(STAGE_SECONDS)
    recorder.stage("loading", "second", 1.0)
    told = [stored.event.data for stored in store.events_since(run_id)]
    assert [(row["message"], row["fraction"]) for row in told] == [
        ("first", 0.0), ("second", 0.0), ("second", 1.0)
    ]  # fmt: skip
