"""Run events are plain data."""

from __future__ import annotations

import dataclasses
import json

import pytest

from qaf_core.pipeline.events import EVENT_KINDS, RunEvent


def test_an_event_needs_its_kind_only() -> None:
    event = RunEvent(kind="stage")
    assert (event.layer, event.data, event.elapsed_seconds) == (None, {}, 0.0)
    assert event.kind in EVENT_KINDS


def test_events_do_not_share_their_data() -> None:
    assert RunEvent(kind="stage").data is not RunEvent(kind="stage").data


def test_an_event_cannot_be_changed_and_is_ready_for_json() -> None:
    event = RunEvent(kind="iteration", layer="conv1", data={"iteration": 3, "rho": 0.5}, elapsed_seconds=1.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.kind = "stage"  # type: ignore[misc]
    assert RunEvent(**json.loads(json.dumps(dataclasses.asdict(event)))) == event
