"""Writing a run's events down as they come, at a rate that screens can use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.store.store import Store

ITERATIONS_PER_SECOND = 20
STOP_POLL_SECONDS = 0.1

Item = TypeVar("Item")


class Recorder:
    """Keeps a run's events in the store, dates them from the run's beginning and thins out iterations.

    Of each layer's ``iteration`` events at most ``ITERATIONS_PER_SECOND`` a second are kept; the first and
    the last always are. Layers may be solved side by side.

    Args:
        store: Where the events go.
        run_id: The run.
        on_event: Also told of every event kept.
    """

    def __init__(self, store: Store, run_id: str, on_event: Callable[[RunEvent], None] | None = None) -> None:
        self._store = store
        self._run_id = run_id
        self._on_event = on_event
        self._began = time.monotonic()
        self._last_kept: dict[str | None, float] = {}  # iterations, by layer
        self._waiting: dict[str | None, RunEvent] = {}

    @property
    def elapsed_seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def __call__(self, event: RunEvent) -> None:
        """Keep ``event``, or hold it back until it turns out to be its layer's last."""
        event = replace(event, elapsed_seconds=self.elapsed_seconds)
        if event.kind == "iteration":
            last = self._last_kept.get(event.layer)
            if last is not None and event.elapsed_seconds - last < 1 / ITERATIONS_PER_SECOND:
                self._waiting[event.layer] = event
                return
            self._last_kept[event.layer] = event.elapsed_seconds
            self._waiting.pop(event.layer, None)
        elif event.layer is None:
            self.flush()
        else:
            self._last_kept.pop(event.layer, None)
            if (waiting := self._waiting.pop(event.layer, None)) is not None:
                self._keep(waiting)
        self._keep(event)

    def stage(self, stage: str, message: str, fraction: float | None = None) -> None:
        """Tell what the run is about now."""
        self(RunEvent(kind="stage", data={"stage": stage, "fraction": fraction, "message": message}))

    def evaluated(self, which: str, evaluation: dict[str, Any]) -> None:
        """Tell a result: ``which`` is ``original`` or ``compressed``."""
        self(RunEvent(kind="evaluated", data={"which": which, **evaluation}))

    def flush(self) -> None:
        """Keep the iterations held back."""
        waiting, self._waiting = self._waiting, {}
        for event in waiting.values():
            self._keep(event)

    def track(self, items: Iterable[Item], count: int, stage: str, message: str) -> Iterator[Item]:
        """Pass ``items`` on, telling how far the stage has come a few times a second.

        Args:
            items: What is worked through.
            count: How many there are.
            stage: The stage they belong to.
            message: One line for people.
        """
        told = time.monotonic()
        for index, item in enumerate(items):
            if time.monotonic() - told > 0.25:
                told = time.monotonic()
                self.stage(stage, message, index / max(count, 1))
            yield item

    def _keep(self, event: RunEvent) -> None:
        self._store.append_event(self._run_id, event)
        if self._on_event is not None:
            self._on_event(event)


class StopSignal:
    """Whether a run is to stop: asked of the store now and then, and of the caller at once.

    Args:
        store: Where stop requests are left.
        run_id: The run.
        also: Another reason to stop, such as Ctrl-C.
    """

    def __init__(self, store: Store, run_id: str, also: Callable[[], bool] | None = None) -> None:
        self._store = store
        self._run_id = run_id
        self._also = also
        self._asked = -STOP_POLL_SECONDS
        self._stop = False

    def __call__(self) -> bool:
        """True from the first request on."""
        now = time.monotonic()
        if not self._stop and self._also is not None and self._also():
            self._stop = True
        if not self._stop and now - self._asked >= STOP_POLL_SECONDS:
            self._asked = now
            self._stop = self._store.cancel_requested(self._run_id)
        return self._stop
