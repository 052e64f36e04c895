"""Short jobs that pages wait for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dashboard.state import jobs
from qaf_core.errors import QafError
from qaf_core.runs.store.request import InspectRequest
from qaf_core.runs.store.store import Store

REQUEST = InspectRequest(model="digits/cnn")


def test_a_result_is_waited_for_and_not_sought_twice(
    workspace: Path, store: Store, served: Callable[..., Any]
) -> None:
    told = served(lambda job: {"model": job.request.model})
    for _time in range(2):
        assert jobs.wait_for(workspace, REQUEST) == {"model": "digits/cnn"}
    assert len(told) == 1
    jobs.wait_for(workspace, REQUEST, anew=True)
    assert len(told) == 2


def test_a_refusal_comes_in_its_own_words(workspace: Path, store: Store, served: Callable[..., Any]) -> None:
    def refuse(_: object) -> dict[str, Any]:
        raise QafError("the folder is empty", remedy="add images")

    served(refuse)
    with pytest.raises(QafError, match=r"^the folder is empty; add images\.$"):
        jobs.wait_for(workspace, REQUEST)


def test_nobody_waits_for_ever(workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LONGEST_WAIT_SECONDS", 0.2)
    with pytest.raises(QafError, match="it took too long"):
        jobs.wait_for(workspace, REQUEST)
