"""What tests of weights share."""

from __future__ import annotations

import pytest


@pytest.fixture
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as they are built and loaded: capturing them takes seconds and is tested elsewhere."""
    monkeypatch.setattr("qaf_core.network.graph.capture.capture", lambda model, _shape: model)
