import time
from collections.abc import Iterator

import pytest

from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.store.record import StoredEvent
from qaf_core.runs.store.recorder import ITERATIONS_PER_SECOND, Recorder, StopSignal
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store


@pytest.fixture
def run_id(store: Store) -> str:
    return store.create_run(RunRequest(model="digits/cnn"))


def iterations(events: tuple[StoredEvent, ...], layer: str) -> list[int]:
    return [stored.event.data["iteration"] for stored in events if stored.event.layer == layer]


def test_iterations_are_thinned_out_but_the_last_is_kept(store: Store, run_id: str) -> None:
    told: list[RunEvent] = []
    recorder = Recorder(store, run_id, told.append)
    for layer in ("a", "b"):
        recorder(RunEvent(kind="layer_started", layer=layer))
        for index in range(500):
            recorder(RunEvent(kind="iteration", layer=layer, data={"iteration": index}))
        recorder(RunEvent(kind="layer_finished", layer=layer))
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
    recorder = Recorder(store, run_id, told.append)
    for index in range(300):
        for layer in ("a", "b"):
            if index < 200 or layer == "b":
                recorder(RunEvent(kind="iteration", layer=layer, data={"iteration": index}))
        if index == 200:
            recorder(RunEvent(kind="layer_finished", layer="a"))
            before_stage = len(told)
            recorder.stage("solving", "c")
            # What is held back comes before what is told of the whole run.
            assert [event.layer for event in told[before_stage:]] == ["b", None]
    recorder(RunEvent(kind="layer_finished", layer="b"))
    for layer, last in (("a", 199), ("b", 299)):
        kept = iterations(store.events_since(run_id, kinds=("iteration",)), layer)
        assert (kept[0], kept[-1]) == (0, last)
        assert kept == sorted(kept)
        assert len(kept) <= 3 + 2 * ITERATIONS_PER_SECOND
    finished = [event.kind for event in told].index("layer_finished")
    assert told[finished - 1].layer == "a"
    assert told[finished - 1].data == {"iteration": 199}


def test_slow_iterations_are_all_kept(store: Store, run_id: str) -> None:
    recorder = Recorder(store, run_id)
    for index in range(3):
        recorder(RunEvent(kind="iteration", layer="a", data={"iteration": index}))
        time.sleep(1.5 / ITERATIONS_PER_SECOND)
    assert iterations(store.events_since(run_id), "a") == [0, 1, 2]


def test_events_are_dated_from_the_beginning_of_the_run(store: Store, run_id: str) -> None:
    recorder = Recorder(store, run_id)
    recorder.stage("loading", "Loading", 0.0)
    time.sleep(0.02)
    recorder.evaluated("original", {"value": 0.9})
    first, second = (stored.event for stored in store.events_since(run_id))
    assert first.data == {"stage": "loading", "message": "Loading", "fraction": 0.0}
    assert second.data == {"which": "original", "value": 0.9}
    assert second.elapsed_seconds - first.elapsed_seconds >= 0.02


def test_tracking_passes_on_and_tells_how_far_it_is(store: Store, run_id: str) -> None:
    recorder = Recorder(store, run_id)

    def items() -> Iterator[int]:
        for item in range(4):
            time.sleep(0.15)
            yield item

    assert list(recorder.track(items(), 4, "evaluating", "Evaluating")) == [0, 1, 2, 3]
    fractions = [stored.event.data["fraction"] for stored in store.events_since(run_id)]
    assert fractions
    assert all(0 < fraction < 1 for fraction in fractions)


def test_a_stop_comes_from_the_store_or_the_caller(store: Store, run_id: str) -> None:
    store.claim_next(1)
    stop = StopSignal(store, run_id)
    assert not stop()
    store.request_cancel(run_id)
    time.sleep(0.15)
    assert stop()
    assert StopSignal(store, run_id, also=lambda: True)()
