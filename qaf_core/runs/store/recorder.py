"""A run's progress, written into the store as it comes."""

from __future__ import annotations

import time

from qaf_core.pipeline.events import Progress
from qaf_core.runs.store.store import Store

STOP_POLL_SECONDS = 0.1


def record_progress(store: Store, run_id: str, progress: Progress | None = None) -> Progress:
    """Progress whose events are kept with a run, and that also stops when that is asked of the store.

    Args:
        store: Where events go, and stop requests are left; it is asked now and then.
        run_id: The run.
        progress: Told and asked too; None for nobody.
    """
    polled_at, stop = -STOP_POLL_SECONDS, False

    def cancelled() -> bool:
        nonlocal polled_at, stop
        now = time.monotonic()
        if not stop and now - polled_at >= STOP_POLL_SECONDS:
            polled_at, stop = now, store.cancel_requested(run_id)
        return stop

    recorded = (progress or Progress()).with_stop(cancelled)
    return recorded.with_listener(lambda event: store.append_event(run_id, event))
