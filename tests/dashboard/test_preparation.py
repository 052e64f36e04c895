"""What is typed about the preparation of images."""

from __future__ import annotations

from typing import Any

import pytest

from dashboard.widgets.preparation import read


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, None),
        ({"mean": " ", "std": None, "size": "", "order": "", "scale": 0.0}, None),
        ({"mean": "0.5"}, {"mean": [0.5]}),
        ({"mean": "0.5, 0.4 0.3", "std": "1;1;1"}, {"mean": [0.5, 0.4, 0.3], "std": [1.0, 1.0, 1.0]}),
        ({"size": "32"}, {"crop": [32, 32], "resize": None}),
        ({"size": "64 × 48"}, {"crop": [64, 48], "resize": None}),
        ({"order": "bgr", "scale": 1.0}, {"channel_order": "bgr", "scale": 1.0}),
    ],
)
def test_only_what_is_given_is_changed(fields: dict[str, Any], steps: dict[str, Any] | None) -> None:
    assert read(fields) == (steps, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mean": "0.5, 0.5"}, "one number or three"),
        ({"std": "half"}, "one number or three"),
        ({"size": "big"}, "one number of pixels"),
        ({"size": "1, 2, 3"}, "one number of pixels"),
        ({"size": "-3"}, "one number of pixels"),
    ],
)
def test_what_cannot_be_read_is_said(fields: dict[str, Any], said: str) -> None:
    steps, problem = read(fields)
    assert steps is None
    assert said in str(problem)
